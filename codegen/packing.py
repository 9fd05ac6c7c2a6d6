"""Packing: copies of operands in the order in which the inner loops of contractions read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from weft.codegen.blocks import Code, Ix
from weft.codegen.lanes import load_lanes, store_lanes, tail_mask
from weft.codegen.llvm import reg_type
from weft.codegen.microkernel import accumulator, share, widened
from weft.codegen.operands import Matrix
from weft.codegen.places import Coord, Region
from weft.ir.graph import Value
from weft.ir.record import record
from weft.ir.types import DType, f32


@record(frozen=True)
class Packing:
    """A copy of ``rows`` by ``cols`` elements into ``dst[row * ld + col]`` of the accumulator dtype.

    ``lanes_down`` says that memory runs along rows: then square blocks are transposed in registers. Vectors
    are loaded from runs of ``run`` indices (along columns, or rows if ``lanes_down``). ``fill`` stores whole
    vectors of columns, zeros after the last one (what is left unwritten could be denormal, which multiplies
    slowly).
    """

    rows: int
    cols: int
    ld: int
    lanes_down: bool
    run: int
    fill: bool = False


def element_of(
    region: Region, m: Matrix, pointers: Mapping[Value, str], batch: Ix, row: Coord, k: Coord
) -> str:
    """The operand at (row, k) as a vector of the accumulator dtype."""
    fn, acc = region.fn, accumulator(m.dtype)
    if m.affine:
        assert m.access is not None
        param = m.access.param
        got = region.load(
            m.base(fn, pointers, batch), param.type.dtype, m.index(region, row, k), param.type.size
        )
    else:
        got = region.value(m.value, m.place(region, batch, row, k))
    if acc is f32 and m.dtype.is_floating_point:
        return region.wide(got)
    return widened(fn, region.wide(got), m.dtype, region.lanes)


@record
class Packer:
    """Writes a packing at ``dst``. ``region(mask)`` gives an evaluator of the elements.

    ``source(region, row, col)`` gives the vector of elements from there on, in the accumulator dtype ``acc``.
    ``origin`` is, where elements lie in memory as they are packed and lanes run down, the address of (0, 0)
    and the bytes between columns: whole blocks are then left to a function that all kernels share.
    """

    fn: Code
    region: Callable[[str | None], Region]
    source: Callable[[Region, Coord, Coord], str]
    packing: Packing
    acc: DType
    dst: str
    lanes: int
    origin: tuple[str, int] | None = None

    def rows(self, first: Ix, last: Ix) -> None:
        """Write rows ``first`` to ``last``; if lanes run down, they begin at a run and end with one."""
        if self.packing.lanes_down:
            self._columns(first, last)
            return
        with self.fn.range(first, last) as r:
            self._row(r.i)

    def _at(self, row: Ix, col: Ix) -> str:
        index = self.fn.add(self.fn.mul(row, self.packing.ld), col)
        return self.fn.at(self.dst, self.fn.mul(index, self.acc.itemsize))

    def _row(self, r: Ix) -> None:
        fn, p, lanes = self.fn, self.packing, self.lanes

        def write(c: Ix, count: int) -> None:
            mask = None if count == lanes else tail_mask(fn, count, lanes)
            x = self.source(self.region(mask), Coord(r), Coord(c, 1, block=p.run))
            store_lanes(fn, x, self._at(r, c), self.acc, lanes, None if p.fill else mask)

        _vectors(fn, 0, p.cols, p.cols, p.run, lanes, write)

    def _columns(self, first: Ix, last: Ix) -> None:
        """Transpose rows ``first`` to ``last``: some columns, each read from end to end, after the others."""
        fn, p, lanes = self.fn, self.packing, self.lanes

        def down(c: Ix, width: int) -> None:
            def block(r: Ix, height: int) -> None:
                self._block(r, c, height, width)

            _vectors(fn, first, last, p.rows, p.run, lanes, block)

        whole = p.cols // lanes * lanes
        if whole:
            with fn.range(0, whole, lanes) as c:
                down(c.i, lanes)
        if whole < p.cols:
            down(whole, p.cols - whole)

    def _block(self, r: Ix, c: Ix, height: int, width: int) -> None:
        fn, p, lanes = self.fn, self.packing, self.lanes
        if self.origin is not None:
            base, step = self.origin
            src = fn.at(base, fn.add(fn.mul(r, self.acc.itemsize), fn.mul(c, step)))
            name = transpose_function(fn, self.acc, lanes)
            stored = lanes if p.fill else width
            to, ld = self._at(r, c), p.ld * self.acc.itemsize
            fn.do(f"call void @{name}(ptr {src}, i64 {step}, ptr {to}, i64 {ld}, i64 {height}, i64 {width}, "
                  f"i64 {stored})")  # fmt: skip
            return
        region = self.region(None if height == lanes else tail_mask(fn, height, lanes))
        rows = [self.source(region, Coord(r, 1, block=p.run), Coord(fn.add(c, j))) for j in range(width)]
        turned = transpose(fn, rows + ["zeroinitializer"] * (lanes - width), self.acc, lanes)
        mask = None if width == lanes or p.fill else tail_mask(fn, width, lanes)
        for i in range(height):
            store_lanes(fn, turned[i], self._at(fn.add(r, i), c), self.acc, lanes, mask)


def unit_rows(run: int, total: int, want: int = 1024) -> int:
    """Rows of a packing per unit of work, so that units begin where vectors may. ``want`` is a power of 2."""
    return want if run >= total else run * -(-want // run)


def _vectors(
    fn: Code, first: Ix, last: Ix, total: int, run: int, lanes: int, emit: Callable[[Ix, int], None]
) -> None:
    """Call ``emit(index, count)`` for vectors that cover ``first`` to ``last`` and cross no run."""
    if run < total:
        whole, rest = run // lanes * lanes, run % lanes
        with fn.range(first, last, run) as block:
            if whole:
                with fn.range(0, whole, lanes) as v:
                    emit(fn.add(block.i, v.i), lanes)
            if rest:
                emit(fn.add(block.i, whole), rest)
        return
    whole, rest = total // lanes * lanes, total % lanes
    if whole:
        with fn.range(first, fn.min(last, whole), lanes) as v:
            emit(v.i, lanes)
    if rest:  # belongs to whoever ends at the end
        here: Ix = int(last == total) if isinstance(last, int) else (
            fn.op(f"zext i1 {fn.op(f'icmp eq i64 {last}, {total}')} to i64"))  # fmt: skip
        with fn.range(0, here):
            emit(whole, rest)


def transpose_function(fn: Code, dtype: DType, lanes: int) -> str:
    """Declare in ``fn`` and name the function that transposes a block in memory.

    Its arguments: source, bytes between its columns, target, bytes between its rows, rows and columns to read
    (each 1 to ``lanes``), columns to store. One function for whole and partial blocks: compiling it is what
    costs.
    """
    k = Code(f"weft_transpose_{dtype.name}_{lanes}",
             "ptr noalias %src, i64 %step, ptr noalias %dst, i64 %ld, i64 %rows, i64 %cols, i64 %stored",
             linkage="internal")  # fmt: skip
    reading, storing = tail_mask(k, "%rows", lanes), tail_mask(k, "%stored", lanes)
    last_row, last_col = k.sub("%rows", 1), k.sub("%cols", 1)
    # beyond the edge the last column is read again, and what lies below is stored first, to be overwritten
    columns = [k.at("%src", k.mul(k.min(j, last_col), "%step")) for j in range(lanes)]
    turned = transpose(k, [load_lanes(k, c, dtype, lanes, reading) for c in columns], dtype, lanes)
    for i in reversed(range(lanes)):
        at = k.at("%dst", k.mul(k.min(i, last_row), "%ld"))
        store_lanes(k, turned[i], at, dtype, lanes, storing)
    return share(fn, k)


def transpose(fn: Code, rows: list[str], dtype: DType, lanes: int) -> list[str]:
    """A square block of registers transposed by exchanging ever larger sub-blocks (Eklundh 1972)."""
    t = reg_type(dtype, lanes)
    rows = list(rows)
    d = 1
    while d < lanes:
        low = [c if not c & d else lanes + c - d for c in range(lanes)]
        high = [c + d if not c & d else lanes + c for c in range(lanes)]
        for i in range(lanes):
            if not i & d:
                x, y = rows[i], rows[i + d]
                rows[i], rows[i + d] = (
                    fn.op(f"shufflevector {t} {x}, {t} {y}, <{lanes} x i32> <"
                          + ", ".join(f"i32 {j}" for j in pick) + ">")
                    for pick in (low, high)
                )  # fmt: skip
        d *= 2
    return rows
