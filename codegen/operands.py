"""How an operand of a contraction lies in memory, and the packing of those that do not lie well."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from weft.codegen.blocks import Code, Ix
from weft.codegen.llvm import mem_type
from weft.codegen.microkernel import accumulator
from weft.codegen.places import Coord, Place, Region
from weft.ir.graph import Graph, Op, Value
from weft.ir.prims.base import Kind
from weft.ir.types import DType

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
