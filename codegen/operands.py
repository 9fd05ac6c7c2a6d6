"""How an operand of a contraction lies in memory, and the packing of those that do not lie well."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from weft.codegen.blocks import Code, Ix
from weft.codegen.llvm import mem_type
from weft.codegen.microkernel import accumulator
from weft.codegen.places import Coord, Place, Region
from weft.ir.access import Access, Ints, access_of, merge
from weft.ir.contraction import Axes, unfolded
from weft.ir.graph import Graph, Value
from weft.ir.prims.base import Kind
from weft.ir.record import record
from weft.ir.types import DType


@record(frozen=True)
class Matrix:
    """A contraction's operand as a batch of matrices: rows (free dimensions) by k (contracted ones).

    ``axes`` are the operand's axes: batch, rows, k. The first of the row axes may be longer than ``rows``
    tells: what lies there is padding.
    """

    value: Value
    axes: Axes
    access: Access | None
    rows: int

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
    def panel(self) -> int:
        """Rows of the panels in which memory holds the operand: one line for each k, rows side by side.

        They follow each other at one distance, and whole panels lie in memory, so that vectors may be read
        beyond the last row. 0 where the operand does not lie so, or one stride would do.
        """
        if not self.affine or self.row_stride is not None or self.k_stride is None:
            return 0
        groups = self.groups(1)
        return groups[1][0] if len(groups) == 2 and groups[1][1] == 1 else 0

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


def matrix(v: Value, graph: Graph, axes: Axes) -> Matrix:
    """Describe ``v`` of a region as a batch of matrices."""
    return Matrix(v, axes, access_of(v, graph.producers()), prod(v.type.shape[i] for i in axes[1]))


def unfolded_matrix(v: Value, graph: Graph, axes: Axes) -> Matrix:
    """As :func:`matrix`, with the axes that memory has: ``v`` may merge some of them, or cut padding off."""
    plain = matrix(v, graph, axes)
    if plain.access is not None:
        return plain
    producers = graph.producers()
    inner, apart = unfolded(v, axes, producers)
    found = access_of(inner, producers)
    return plain if found is None or not found.pure else Matrix(inner, apart, found, plain.rows)


def made_matrix(v: Value, graph: Graph, axes: Axes) -> Matrix:
    """As :func:`matrix`, where what is computed lies in memory: in a graph that is not fused yet."""
    moves = {x: op for x, op in graph.producers().items() if op.prim.kind is Kind.MOVE}
    return Matrix(v, axes, access_of(v, moves), prod(v.type.shape[i] for i in axes[1]))
