"""How an operand of a contraction lies in memory, and the packing of those that do not lie well."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from weft.codegen.blocks import Code, Ix
from weft.codegen.lanes import load_lanes, store_lanes, tail_mask
from weft.codegen.llvm import mem_type, reg_type
from weft.codegen.microkernel import accumulator, widened
from weft.codegen.places import Coord, Place, Region
from weft.ir.graph import Graph, Op, Value
from weft.ir.prims.base import Kind
from weft.ir.types import DType, f32

Ints = tuple[int, ...]


@dataclass(frozen=True)
class Access:
    """Element number ``offset + sum(coordinate * stride)`` of the kernel parameter ``param``.

    ``pure`` is False where maps are applied on the way: then it tells only which way memory runs.
    """

    param: Value
    offset: int
    strides: Ints
    pure: bool = True


def row_major(shape: Sequence[int]) -> Ints:
    """Element strides of a contiguous array."""
    out, n = [], 1
    for d in reversed(shape):
        out.append(n)
        n *= d
    return tuple(reversed(out))


def access_of(v: Value, producers: Mapping[Value, Op]) -> Access | None:
    """The access of a value through index moves (and, impurely, through maps); None where none is affine."""
    op = producers.get(v)
    if op is None:
        return Access(v, 0, row_major(v.type.shape))
    if op.prim.kind is Kind.MAP:
        sources = [x for x in op.operands if access_of(x, producers) is not None]
        if not sources:
            return None
        largest = max(sources, key=lambda x: _size_read(x, producers))
        found = access_of(largest, producers)
        return None if found is None else replace(found, pure=False)
    if op.prim.kind is Kind.MOVE and op.prim.name in _STEPS:
        inner = access_of(op.operands[0], producers)
        return None if inner is None else _STEPS[op.prim.name](inner, op)
    return None


def _size_read(v: Value, producers: Mapping[Value, Op]) -> int:
    found = access_of(v, producers)
    return found.param.type.size if found else 0


def _permute(a: Access, op: Op) -> Access:
    return replace(a, strides=tuple(a.strides[p] for p in op.attrs["perm"]))


def _broadcast(a: Access, op: Op) -> Access:
    strides = [0] * len(op.attrs["shape"])
    for d, s, axis in zip(op.operands[0].type.shape, a.strides, op.attrs["axes"], strict=True):
        strides[axis] = 0 if d == 1 else s
    return replace(a, strides=tuple(strides))


def _slice(a: Access, op: Op) -> Access:
    start, step = op.attrs["start"], op.attrs["step"]
    offset = a.offset + sum(s * b for s, b in zip(a.strides, start, strict=True))
    return replace(a, offset=offset, strides=tuple(s * k for s, k in zip(a.strides, step, strict=True)))


def _flip(a: Access, op: Op) -> Access:
    shape, axes = op.result.type.shape, op.attrs["axes"]
    offset = a.offset + sum((shape[i] - 1) * a.strides[i] for i in axes)
    return replace(a, offset=offset, strides=tuple(-s if i in axes else s for i, s in enumerate(a.strides)))


def _reshape(a: Access, op: Op) -> Access | None:
    strides = reshaped_strides(op.operands[0].type.shape, a.strides, op.result.type.shape)
    return None if strides is None else replace(a, strides=strides)


def reshaped_strides(old: Ints, strides: Ints, new: Ints) -> Ints | None:
    """The strides of a view of another shape, or None where a copy is needed.

    >>> reshaped_strides((2, 3, 4), (12, 4, 1), (6, 4))
    (4, 1)
    >>> reshaped_strides((3, 2), (1, 3), (6,)) is None
    True
    """
    kept = [(d, s) for d, s in zip(old, strides, strict=True) if d != 1]
    out: list[int] = []
    i = j = 0
    while j < len(new):
        if new[j] == 1:
            out.append(0)
            j += 1
            continue
        i0, j0, a, b = i, j, kept[i][0], new[j]
        i, j = i + 1, j + 1
        while a != b:
            if a < b:
                a, i = a * kept[i][0], i + 1
            else:
                b, j = b * new[j], j + 1
        group = collapse([d for d, _ in kept[i0:i]], [s for _, s in kept[i0:i]])
        if group is None:
            return None
        out.extend(s * group for s in row_major(new[j0:j]))
    return tuple(out)


_STEPS: dict[str, Callable[[Access, Op], Access | None]] = {
    "permute": _permute, "broadcast": _broadcast, "slice": _slice, "flip": _flip, "reshape": _reshape,
    "copy": lambda a, op: a,
}  # fmt: skip


def collapse(sizes: Sequence[int], strides: Sequence[int]) -> int | None:
    """The stride with which several dimensions run as one, or None where they do not."""
    found: int | None = None
    extent = 1
    for d, s in zip(reversed(sizes), reversed(strides), strict=True):
        if d == 1:
            continue
        if found is None:
            found = s
        elif s != found * extent:
            return None
        extent *= d
    return 0 if found is None else found


def merge(sizes: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """The fewest (size, stride) pairs that walk the same elements; none for a single element."""
    out: list[tuple[int, int]] = []
    for d, s in zip(sizes, strides, strict=True):
        if d == 1:
            continue
        if out and out[-1][1] == s * d:
            out[-1] = (out[-1][0] * d, s)
        else:
            out.append((d, s))
    return out


@dataclass(frozen=True)
class Matrix:
    """A contraction's operand as a batch of matrices: rows (free dimensions) by k (contracted ones).

    ``axes`` are the operand's axes: batch, rows, k.
    """

    value: Value
    axes: tuple[Ints, Ints, Ints]
    access: Access | None

    def groups(self, which: int) -> list[tuple[int, int]]:
        """Merged (size, stride) pairs of the batch (0), rows (1) or k (2); needs an access."""
        assert self.access is not None
        return merge(self.sizes(which), [self.access.strides[i] for i in self.axes[which]])

    def _stride(self, which: int) -> int | None:
        if self.access is None:
            return None
        groups = self.groups(which)
        return 0 if not groups else groups[0][1] if len(groups) == 1 else None

    @property
    def row_stride(self) -> int | None:
        """Elements between rows; None where the row dimensions do not run as one."""
        return self._stride(1)

    @property
    def k_stride(self) -> int | None:
        """Elements between consecutive k; None where the contracted dimensions do not run as one."""
        return self._stride(2)

    def last_stride(self, which: int) -> int | None:
        """The stride of the innermost group: 1 tells that vectors can be loaded along it."""
        if self.access is None:
            return None
        groups = self.groups(which)
        return groups[-1][1] if groups else 0

    def run(self, which: int) -> int:
        """Consecutive indices over which :meth:`index` is affine."""
        if self.affine:
            groups = self.groups(which)
            return groups[-1][0] if groups else 1
        sizes = [d for d in self.sizes(which) if d != 1]
        return sizes[-1] if sizes else 1

    @property
    def dtype(self) -> DType:
        return self.value.type.dtype

    def sizes(self, which: int) -> Ints:
        return tuple(self.value.type.shape[i] for i in self.axes[which])

    @property
    def batch(self) -> int:
        return prod(self.sizes(0))

    @property
    def rows(self) -> int:
        return prod(self.sizes(1))

    @property
    def depth(self) -> int:
        return prod(self.sizes(2))

    @property
    def affine(self) -> bool:
        """True where no map stands between memory and the operand."""
        return self.access is not None and self.access.pure

    @property
    def pure(self) -> bool:
        """True where, besides, rows and k have one stride each."""
        return self.affine and self.row_stride is not None and self.k_stride is not None

    def index(self, region: Region, row: Coord, k: Coord) -> Coord:
        """Elements from the matrix's base to (row, k); affine accesses only."""
        out = Coord()
        for which, c in ((1, row), (2, k)):
            groups = self.groups(which)
            parts = region.split(c, [d for d, _ in groups])
            for part, (_, stride) in zip(parts, groups, strict=True):
                out = region.plus(out, region.times(part, stride))
        return out

    @property
    def plain(self) -> bool:
        """True where no map stands before memory, which holds the accumulator's dtype."""
        return self.affine and mem_type(accumulator(self.dtype)) == mem_type(self.dtype)

    @property
    def in_registers(self) -> bool:
        """True where the kernels can read memory unpacked."""
        return self.pure and self.plain

    @property
    def same_for_batch(self) -> bool:
        a = self.access
        return a is not None and a.pure and all(a.strides[i] == 0 for i in self.axes[0])

    def base(self, fn: Code, pointers: Mapping[Value, str], batch: Ix) -> str:
        """The address of element (0, 0) of matrix number ``batch`` (pure accesses only)."""
        assert self.access is not None
        a = self.access
        coords = fn.split(batch, self.sizes(0))
        index = fn.dot(coords, [a.strides[i] for i in self.axes[0]], a.offset)
        return fn.at(pointers[a.param], fn.mul(index, self.dtype.itemsize))

    def place(self, region: Region, batch: Ix, row: Coord, k: Coord) -> Place:
        """Where the operand's value is to be evaluated."""

        def coords() -> list[Coord]:
            out = [Coord()] * self.value.type.ndim
            for which, c in ((0, Coord(batch)), (1, row), (2, k)):
                parts = region.split(c, self.sizes(which))
                for axis, part in zip(self.axes[which], parts, strict=True):
                    out[axis] = part
            return out

        return Place(self.value.type.shape, coords)


def matrix(v: Value, graph: Graph, axes: tuple[Ints, Ints, Ints]) -> Matrix:
    """Describe ``v`` of a region as a batch of matrices."""
    return Matrix(v, axes, access_of(v, graph.producers()))


@dataclass(frozen=True)
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


@dataclass
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
            _vectors(self.fn, first, last, self.packing.rows, self.packing.run, self.lanes, self._across)
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

    def _across(self, r: Ix, height: int) -> None:
        """Transpose the blocks of ``height`` rows from ``r`` on."""
        whole = self.packing.cols // self.lanes * self.lanes
        if whole:
            with self.fn.range(0, whole, self.lanes) as c:
                self._block(r, c.i, height, self.lanes)
        if whole < self.packing.cols:
            self._block(r, whole, height, self.packing.cols - whole)

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


def unit_rows(run: int, total: int, want: int = 256) -> int:
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
    fn.declares |= k.declares
    fn.declare(k.finish())
    return k.symbol


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
