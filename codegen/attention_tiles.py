"""What the attention kernels share: how operands lie in memory, copies of them, and the product of tiles."""

from __future__ import annotations

from collections.abc import Mapping

from weft.codegen.blocks import Code, Ix
from weft.codegen.emit import Reg, VectorBuilder
from weft.codegen.kernel import Unsupported
from weft.codegen.lanes import load_lanes, store_lanes, tail_mask
from weft.codegen.llvm import reg_type
from weft.codegen.microkernel import Tile, multiply_add, share
from weft.codegen.packing import transpose, transpose_function
from weft.codegen.places import Coord, Region
from weft.ir import math_exponential
from weft.ir.access import access_of
from weft.ir.graph import Graph, Op, Value
from weft.ir.record import record
from weft.ir.scalarexpr import Num
from weft.ir.types import DType

LOG2E = 1.4426950408889634
LN2 = 0.6931471805599453
_OWN_POINTERS = 8  # rows up to which each row of A has an address register


@record(frozen=True)
class Lies:
    """A value [batch, heads, rows, columns] in the memory of parameter number ``param``, in elements."""

    param: int
    dtype: DType
    offset: int
    strides: tuple[int, int, int, int]
    size: int

    def at(self, fn: Code, batch: Ix, head: Ix, row: Ix, col: Ix = 0) -> Ix:
        """The index of an element."""
        return fn.dot((batch, head, row, col), self.strides, self.offset)

    def address(self, fn: Code, batch: Ix, head: Ix, row: Ix, col: Ix = 0) -> str:
        return fn.at(fn.arg(self.param), fn.mul(self.at(fn, batch, head, row, col), self.dtype.itemsize))

    @property
    def row_bytes(self) -> int:
        return self.strides[2] * self.dtype.itemsize


def lies(graph: Graph, v: Value) -> Lies:
    """How an operand of the kernel's attention lies. Unsupported where it is no strided view."""
    found = access_of(v, graph.producers())
    if found is None or not found.pure:
        raise Unsupported("an operand of attention that is no view of memory")
    strides = tuple(0 if d == 1 else s for d, s in zip(v.type.shape, found.strides, strict=True))
    param = graph.params.index(found.param)
    return Lies(param, v.type.dtype, found.offset, strides, found.param.type.size)  # type: ignore[arg-type]


def attention_of(graph: Graph, name: str) -> Op:
    """The op of this primitive in a region of views; Unsupported for anything else."""
    found = [op for op in graph.ops if op.prim.name == name]
    if len(found) != 1 or not set(graph.results) <= set(found[0].results):
        raise Unsupported(f"a kernel of {name} holds one of it and returns results of it")
    if any(v.type.size == 0 for v in (*found[0].operands, *found[0].results)):
        raise Unsupported("an empty value")
    return found[0]


def exp2(b: VectorBuilder, x: Reg) -> Reg:
    """2^x of an x of at most 0."""
    return math_exponential.exp2_flushed(Num(b, x)).h


def load_vector(fn: Code, base: str, dtype: DType, acc: DType, lanes: int, stride: int, index: Ix,
                mask: str | None, size: int) -> Reg:  # fmt: skip
    """Elements index, index + stride ... after ``base``, as the accumulator dtype."""
    empty: Mapping[Value, str] = {}
    region = Region(fn, Graph([], [], []), lanes, empty, mask)
    step = Coord(index, stride)
    if stride == 0:
        got = region.builder.splat(region.load(base, dtype, Coord(index), size), lanes)
    else:
        got = region.load(base, dtype, step, size)
    return region.builder.convert(got, acc)


def tile_kernel(
    fn: Code, tile: Tile, *, step: str, start: str, masked: bool = False, peak: bool = False
) -> str:
    """Declare in ``fn`` and name the function that computes t = A B, + t or + scales t (one per row).

    Its arguments: a, bytes between rows of A, bytes between k of A, b, bytes between k of B, k (positive), t,
    bytes between rows of t, scales (one number per row), peaks, columns. ``step``: ``"k"`` if consecutive k
    of A are neighbours, ``"m"`` if consecutive rows are. ``start`` is ``"zero"``, ``"add"`` or ``"scale"``.
    ``peak``: the maxima over the vectors of each row go to the vectors at ``peaks``, with what was there.
    ``masked``: only the first ``columns`` of B are memory; its last vector is read under a mask.
    """
    flags = f"{step}_{start}{'_peak' if peak else ''}{'_masked' if masked else ''}"
    params = ("ptr noalias %a, i64 %ars, i64 %aks, ptr noalias %b, i64 %bks, i64 %k, ptr noalias %t, "
              "i64 %trs, ptr noalias %scales, ptr noalias %peaks, i64 %n")  # fmt: skip
    name = f"weft_tile_{tile.dtype.name}_{tile.rows}x{tile.vectors}x{tile.lanes}_{flags}"
    k = Code(name, params, linkage="internal")
    t, elem, lanes, size = (
        reg_type(tile.dtype, tile.lanes),
        reg_type(tile.dtype),
        tile.lanes,
        tile.dtype.itemsize,
    )
    ars, aks = (size if step == "m" else "%ars"), (size if step == "k" else "%aks")
    last = tail_mask(k, k.sub("%n", (tile.vectors - 1) * lanes), lanes) if masked else None
    masks = [None] * (tile.vectors - 1) + [last]
    rows = [k.at("%t", k.mul(r, "%trs")) for r in range(tile.rows)]
    bases: list[str] = []
    if step == "k" and tile.rows <= _OWN_POINTERS:
        bases = [k.op(f'call ptr asm "", "=r,0"(ptr {k.at("%a", k.mul(r, ars))})') for r in range(tile.rows)]
    carried = [("ptr", "%a"), ("ptr", "%b")]
    for r in range(tile.rows):
        scale = k.splat(elem, k.load(elem, k.at("%scales", r, elem), size), lanes) if start == "scale" else ""
        for v in range(tile.vectors):
            init = (
                "zeroinitializer"
                if start == "zero"
                else load_lanes(k, k.at(rows[r], v, t), tile.dtype, lanes)
            )
            carried.append((t, k.op(f"fmul {t} {init}, {scale}") if scale else init))
    with k.range(0, "%k", 1, carried, runs=True) as turn:
        at, bp, acc = turn.vars[0], turn.vars[1], turn.vars[2:]
        row = [load_lanes(k, k.at(bp, v, t), tile.dtype, lanes, masks[v]) for v in range(tile.vectors)]
        for r in range(tile.rows):
            if bases:
                at = k.at(bases[r], turn.i, elem)
            x = k.splat(elem, k.load(elem, at, size), lanes)
            at = k.at(at, ars)
            for v in range(tile.vectors):
                i = r * tile.vectors + v
                turn.next[2 + i] = multiply_add(k, tile.dtype, lanes, x, row[v], acc[i])
        turn.next[0] = k.at(turn.vars[0], aks)
        turn.next[1] = k.at(bp, "%bks")
    for r in range(tile.rows):
        out = turn.out[2 + r * tile.vectors : 2 + (r + 1) * tile.vectors]
        for v, x in enumerate(out):
            k.store(t, x, k.at(rows[r], v, t), size)
        if peak:
            _keep_peak(k, out, k.at("%peaks", r, t), tile)
    return share(fn, k)


def _keep_peak(k: Code, vectors: list[str], at: str, tile: Tile) -> None:
    b = VectorBuilder(k, tile.lanes)
    top = b.reg(load_lanes(k, at, tile.dtype, tile.lanes), tile.dtype, tile.lanes)
    for x in vectors:
        top = b.binary("fmax", top, b.reg(x, tile.dtype, tile.lanes))
    store_lanes(k, top.text, at, tile.dtype, tile.lanes)


@record(frozen=True)
class Panels:
    """Columns 0 .. n in panels of up to ``wide`` vectors; the last may be narrower, and partly padding."""

    n: int
    wide: int
    lanes: int

    @property
    def cols(self) -> int:
        return self.wide * self.lanes

    @property
    def whole(self) -> int:
        """Panels of full width."""
        return self.n // self.cols

    @property
    def rest(self) -> int:
        """Vectors of the narrow panel, 0 if there is none."""
        return -(-(self.n % self.cols) // self.lanes)

    @property
    def padded(self) -> int:
        return -(-self.n // self.lanes) * self.lanes


def pack_turned(fn: Code, src: Lies, where: tuple[Ix, Ix, Ix], count: Ix, width: int, dst: str, ld: int,
                acc: DType, lanes: int) -> None:  # fmt: skip
    """Store the rows from ``where`` = (batch, head, row) on as columns: dst[c * ld + row], up to ``lanes`` a
    time; rows beyond ``count`` (at most a whole number of vectors) read as copies of the last one.
    """
    batch, head, row = where
    base, size = src.address(fn, batch, head, row), acc.itemsize
    plain = src.dtype is acc and src.strides[3] == 1
    with fn.range(0, count, lanes, runs=True) as r:
        have = fn.min(fn.sub(count, r.i), lanes)
        to = fn.at(dst, fn.mul(r.i, size))
        if plain:
            name = transpose_function(fn, acc, lanes)
            with fn.range(0, width, lanes) as c:
                high = fn.min(fn.sub(width, c.i), lanes)
                at = fn.at(base, fn.add(fn.mul(r.i, src.row_bytes), fn.mul(c.i, size)))
                dst_at = fn.at(to, fn.mul(c.i, ld * size))
                fn.do(f"call void @{name}(ptr {at}, i64 {src.row_bytes}, ptr {dst_at}, "
                      f"i64 {ld * size}, i64 {high}, i64 {have}, i64 {lanes})")  # fmt: skip
        else:
            mask = tail_mask(fn, have, lanes)
            with fn.range(0, width) as c:
                index = fn.add(fn.mul(r.i, src.strides[2]), fn.mul(c.i, src.strides[3]))
                x = load_vector(fn, base, src.dtype, acc, lanes, src.strides[2], index, mask, src.size)
                store_lanes(fn, x.text, fn.at(to, fn.mul(c.i, ld * size)), acc, lanes)


def pack_rows(fn: Code, src: Lies, where: tuple[Ix, Ix, Ix], count: Ix, width: int, dst: str, ld: int,
              acc: DType, lanes: int, factor: float = 1.0) -> None:  # fmt: skip
    """Copy ``count`` rows from ``where`` = (batch, head, row) on to rows of ``ld``, times ``factor``; what
    lies between ``width`` and the next whole vector becomes 0.
    """
    batch, head, row = where
    base, size = src.address(fn, batch, head, row), acc.itemsize
    b = VectorBuilder(fn, lanes)
    with fn.range(0, count) as r, fn.range(0, width, lanes) as c:
        mask = tail_mask(fn, fn.sub(width, c.i), lanes) if width % lanes else None
        index = fn.add(fn.mul(r.i, src.strides[2]), fn.mul(c.i, src.strides[3]))
        x = load_vector(fn, base, src.dtype, acc, lanes, src.strides[3], index, mask, src.size)
        if factor != 1.0:
            x = b.binary("mul", x, b.const(factor, acc))
        at = fn.add(fn.mul(r.i, ld), c.i)
        store_lanes(fn, b.text(x, lanes), fn.at(dst, fn.mul(at, size)), acc, lanes)


__all__ = [
    "LN2", "LOG2E", "Lies", "Panels", "attention_of", "exp2", "lies", "load_vector", "pack_rows",
    "pack_turned", "tile_kernel", "transpose",
]  # fmt: skip
