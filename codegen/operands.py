"""How an operand of a contraction lies in memory, and the packing of those that do not lie well."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from weft.codegen.blocks import Code, Ix
from weft.codegen.lanes import store_lanes, tail_mask
from weft.codegen.llvm import reg_type
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
    """The access of a value through index moves (and, impurely, through maps); None where it is no affine one."""
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


@dataclass(frozen=True)
class Matrix:
    """A contraction's operand as a batch of matrices: rows (free dimensions) by k (contracted ones).

    ``axes`` are the operand's axes: batch, rows, k. ``row_stride`` and ``k_stride`` are in elements, None where the
    dimensions do not run as one; ``pure`` says that memory can be read as it is.
    """

    value: Value
    axes: tuple[Ints, Ints, Ints]
    access: Access | None
    row_stride: int | None
    k_stride: int | None

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
    def pure(self) -> bool:
        """True where rows and k have one stride each and no map stands between memory and the operand."""
        a = self.access
        return a is not None and a.pure and self.row_stride is not None and self.k_stride is not None

    @property
    def in_registers(self) -> bool:
        """True where memory holds the accumulator's dtype, so that the kernels can read it unpacked."""
        return self.pure and reg_type(accumulator(self.dtype)) == reg_type(self.dtype) and self.dtype.bits > 16

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
    access = access_of(v, graph.producers())
    strides: list[int | None] = [None, None]
    if access is not None:
        for i in (0, 1):
            group = axes[i + 1]
            strides[i] = collapse([v.type.shape[j] for j in group], [access.strides[j] for j in group])
    return Matrix(v, axes, access, strides[0], strides[1])


@dataclass(frozen=True)
class Packing:
    """A copy of ``rows`` by ``cols`` elements into ``dst[row * ld + col]`` of the accumulator dtype.

    ``lanes_down`` says that memory runs along rows: then square blocks are transposed in registers.
    """

    rows: int
    cols: int
    ld: int
    lanes_down: bool


def element_of(region: Region, m: Matrix, pointers: Mapping[Value, str], batch: Ix, row: Coord, k: Coord) -> str:
    """The operand at (row, k) as a vector of the accumulator dtype."""
    fn, acc = region.fn, accumulator(m.dtype)
    if m.pure:
        assert m.access is not None and m.row_stride is not None and m.k_stride is not None
        index = region.plus(region.times(row, m.row_stride), region.times(k, m.k_stride))
        param = m.access.param
        got = region.load(m.base(fn, pointers, batch), param.type.dtype, index, param.type.size)
    else:
        got = region.value(m.value, m.place(region, batch, row, k))
    if acc is f32 and m.dtype.is_floating_point:
        return region.wide(got)
    return widened(fn, region.wide(got), m.dtype, region.lanes)


Source = Callable[[Region, Coord, Coord], str]


def pack(
    fn: Code, make: Callable[[str | None], Region], source: Source, p: Packing, acc: DType, dst: str, lanes: int,
    first: Ix, last: Ix,
) -> None:
    """Write rows ``first`` to ``last`` (multiples of ``lanes``, or the end, if lanes run down) of a packing.

    ``make(mask)`` gives an evaluator and ``source(region, row, col)`` the vector of elements from there on.
    """
    if p.lanes_down:
        _pack_transposing(fn, make, source, p, acc, dst, lanes, first, last)
        return
    whole = p.cols // lanes * lanes
    with fn.range(first, last) as r:
        row = fn.at(dst, fn.mul(r.i, p.ld * acc.itemsize))

        def write(c: Ix, mask: str | None) -> None:
            x = source(make(mask), Coord(r.i), Coord(c, 1))
            store_lanes(fn, x, fn.at(row, fn.mul(c, acc.itemsize)), acc, lanes, mask)

        if whole:
            with fn.range(0, whole, lanes) as c:
                write(c.i, None)
        if whole < p.cols:
            write(whole, tail_mask(fn, p.cols - whole, lanes))


def _pack_transposing(
    fn: Code, make: Callable[[str | None], Region], source: Source, p: Packing, acc: DType, dst: str, lanes: int,
    first: Ix, last: Ix,
) -> None:
    def block(r: Ix, c: Ix, height: int, width: int) -> None:
        mask = None if height == lanes else tail_mask(fn, height, lanes)
        region = make(mask)
        rows = [source(region, Coord(r, 1), Coord(fn.add(c, j))) for j in range(width)]
        rows += ["zeroinitializer"] * (lanes - width)
        turned = transpose(fn, rows, acc, lanes)
        across = None if width == lanes else tail_mask(fn, width, lanes)
        for i in range(height):
            index = fn.add(fn.mul(fn.add(r, i), p.ld), c)
            store_lanes(fn, turned[i], fn.at(dst, fn.mul(index, acc.itemsize)), acc, lanes, across)

    def across(r: Ix, height: int) -> None:
        whole = p.cols // lanes * lanes
        if whole:
            with fn.range(0, whole, lanes) as c:
                block(r, c.i, height, lanes)
        if whole < p.cols:
            block(r, whole, height, p.cols - whole)

    whole = p.rows // lanes * lanes
    if whole:
        with fn.range(first, fn.min(last, whole), lanes) as r:
            across(r.i, lanes)
    if whole < p.rows:
        reaches = fn.op(f"icmp eq i64 {last}, {p.rows}")
        # the partial block belongs to whoever ends at the last row
        with fn.range(0, fn.op(f"zext i1 {reaches} to i64")):
            across(whole, p.rows - whole)


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
