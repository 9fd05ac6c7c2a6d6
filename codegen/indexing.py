"""What gather and scatter kernels share: where an index points, and what is moved there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod

from weft.codegen.blocks import Code, Ix
from weft.codegen.kernel import Unsupported
from weft.codegen.llvm import mem_type
from weft.ir.access import merge, row_major
from weft.ir.graph import Graph, Op, Value
from weft.ir.record import record
from weft.ir.types import TensorType

Ints = tuple[int, ...]


def only_op(graph: Graph, some: bool = False) -> Op:
    """The op of a region that holds one; Unsupported otherwise, or for complex or empty values.

    Where ``some`` the region need not return all of its results.
    """
    if len(graph.ops) != 1:
        raise Unsupported(f"{len(graph.ops)} operations in a kernel for one")
    op = graph.ops[0]
    wanted = [v for v in op.results if v in graph.results] if some else op.results
    if tuple(wanted) != tuple(graph.results):
        raise Unsupported("the kernel returns something else than its operation")
    for v in (*op.operands, *op.results):
        if v.type.dtype.is_complex:
            raise Unsupported("complex values are not compiled")
        if v.type.size == 0:
            raise Unsupported("an empty value")
    return op


def operand_pointers(fn: Code, kernel: Op) -> list[str]:
    """The addresses of the operands of the region's single op."""
    graph = kernel.regions[0]
    at: dict[Value, str] = {v: fn.arg(i) for i, v in enumerate(graph.params)}
    return [at[v] for v in graph.ops[0].operands]


@record(frozen=True)
class Addressing:
    """Items (index rows) and the element of ``x`` each points at; a block of x's other dims goes with each
    item.

    ``block`` are (size, stride) pairs in x, and it is contiguous on the other side. For the ``along``
    primitives an item is one index, its block is one element, and its own coordinates beside ``axis`` address
    the rest.
    """

    x: TensorType
    index: TensorType
    axes: Ints
    along: bool

    @property
    def strides(self) -> Ints:
        return row_major(self.x.shape)

    @property
    def items(self) -> int:
        return self.index.size if self.along else prod(self.index.shape[:-1])

    @property
    def block(self) -> list[tuple[int, int]]:
        if self.along:
            return []
        rest = [i for i in range(self.x.ndim) if i not in self.axes]
        return merge([self.x.shape[i] for i in rest], [self.strides[i] for i in rest])

    @property
    def block_size(self) -> int:
        return prod(d for d, _ in self.block)

    def index_value(self, fn: Code, pointer: str, position: Ix) -> str:
        """An index as i64."""
        dtype = self.index.dtype
        raw = fn.load(mem_type(dtype), fn.at(pointer, position, mem_type(dtype)), dtype.itemsize)
        return raw if dtype.bits == 64 else fn.op(f"sext {mem_type(dtype)} {raw} to i64")

    def point(self, fn: Code, pointer: str, item: Ix) -> tuple[Ix, Ix, str]:
        """Of item number ``item``: its first index, its offset in x, and the i1 that it is in range.

        The offset is only to be used where the i1 holds.
        """
        if self.along:
            axis = self.axes[0]
            coords = fn.split(item, self.index.shape)
            coords[axis] = self.index_value(fn, pointer, item)
            ok = fn.op(f"icmp ult i64 {coords[axis]}, {self.x.shape[axis]}")
            return coords[axis], fn.dot(coords, self.strides), ok
        offset: Ix = 0
        first: Ix = 0
        ok = "true"
        for j, axis in enumerate(self.axes):
            value = self.index_value(fn, pointer, fn.add(fn.mul(item, len(self.axes)), j))
            first = value if j == 0 else first
            here = fn.op(f"icmp ult i64 {value}, {self.x.shape[axis]}")
            ok = here if ok == "true" else fn.op(f"and i1 {ok}, {here}")
            offset = fn.add(offset, fn.mul(value, self.strides[axis]))
        return first, offset, ok


def addressing(op: Op) -> Addressing:
    """How a gather or scatter op, of either family, addresses its first operand."""
    x, index = op.operands[0].type, op.operands[1].type
    if index.dtype.bits not in (32, 64):
        raise Unsupported(f"indices of dtype {index.dtype.name}")
    if "axis" in op.attrs:
        return Addressing(x, index, (op.attrs["axis"],), True)
    return Addressing(x, index, tuple(op.attrs["axes"]), False)


@contextmanager
def in_range(fn: Code, ok: str, status: str) -> Iterator[None]:
    """Emit the block for indices in range; the others set the status word."""
    if ok == "true":
        yield
        return
    yes, no, done = fn.new_label("inside"), fn.new_label("outside"), fn.new_label("next")
    fn.cond_br(ok, yes, no)
    fn.label(no)
    fn.do(f"store atomic i64 1, ptr {status} monotonic, align 8")
    fn.br(done)
    fn.label(yes)
    outer = fn.memos[-1]
    fn.memos[-1] = dict(outer)
    yield
    fn.memos[-1] = outer
    fn.br(done)
    fn.label(done)


@contextmanager
def block_vectors(fn: Code, block: Sequence[tuple[int, int]], lanes: int) -> Iterator[tuple[Ix, Ix, int, Ix]]:
    """Loop over a block: yields (offset in x, offset in the contiguous copy, lanes or 0, count left).

    Lanes are used where the innermost dimension is contiguous and long enough; the count then limits them.
    """
    outer, inner = list(block[:-1]), block[-1] if block else (1, 1)
    dims, strides = [d for d, _ in outer], [s for _, s in outer]
    wide = inner[1] == 1 and inner[0] >= lanes // 2
    with fn.range(0, prod(dims)) as o:
        base = fn.dot(fn.split(o.i, dims), strides) if dims else 0
        packed = fn.mul(o.i, inner[0])
        with fn.range(0, inner[0], lanes if wide else 1) as c:
            yield (
                fn.add(base, fn.mul(c.i, inner[1])), fn.add(packed, c.i), lanes if wide else 0,
                fn.sub(inner[0], c.i),
            )  # fmt: skip
