"""Kernels of form ``scatter``: updates written, or combined, into a copy of x at indices; or into a number.

Deterministic for any number of threads: what meets in one element is applied in program order by one thread.
Units of work own ranges of the first indexed dimension (every unit reads all indices and applies its own),
or, for the ``along`` primitives, lines along the axis.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from weft.codegen.blocks import Code
from weft.codegen.emit import Reg, VectorBuilder, memory_form, memory_literal
from weft.codegen.indexing import Addressing, addressing, block_vectors, in_range, only_op
from weft.codegen.kernel import KernelCode, Phase
from weft.codegen.lanes import load_lanes, store_lanes, tail_mask
from weft.codegen.llvm import mem_type
from weft.codegen.phases import Writer
from weft.codegen.target import Target
from weft.ir.graph import Graph, Op
from weft.ir.types import DType, f32, i8, i16, i32, i64

_COPY_UNIT = 1 << 16  # bytes of x copied by one unit
_RANGES = 16  # parts into which the first indexed dimension is cut
_SMALL = 1 << 14  # elements below which one unit does it all
_LINE_UNIT = 1 << 12  # elements per unit where lines are independent

_BITS: dict[int, DType] = {1: i8, 2: i16, 4: i32, 8: i64}

Combine = Callable[[VectorBuilder, Reg, Reg], Reg]


def emit(op: Op, target: Target, prefix: str) -> KernelCode:
    """The code of a kernel of form ``scatter``."""
    return _Scatter(op, target, prefix).emit()


def _combine(mode: str) -> Combine:
    """The new value of an element from the old one and an update."""
    if mode == "set":
        return lambda b, old, new: new

    def apply(b: VectorBuilder, old: Reg, new: Reg) -> Reg:
        dtype = old.dtype
        if dtype.is_floating_point and dtype.bits == 16:
            return b.convert(b.binary(mode, b.convert(old, f32), b.convert(new, f32)), dtype)
        return b.binary(mode, old, new)

    return apply


class _Scatter(Writer):
    def __init__(self, op: Op, target: Target, prefix: str) -> None:
        super().__init__(op, target, prefix)
        self.scatter, self.fill = self._parts()
        self.where: Addressing = addressing(self.scatter)
        self.mode = self.scatter.attrs["mode"]
        self.dtype: DType = self.scatter.result.type.dtype
        self.lanes = target.lanes(max(self.dtype.bits, 32))

    def _parts(self) -> tuple[Op, float | None]:
        """The scatter of the region, and the number that it writes into, if that is what it starts from."""
        *before, scatter = self.graph.ops
        if [op.prim.name for op in before] != ["full"] or before[0].result is not scatter.operands[0]:
            return only_op(self.graph), None
        only_op(Graph([*self.graph.params, before[0].result], [scatter], self.graph.results))
        return scatter, before[0].attrs["value"]

    def _pointers(self, fn: Code) -> tuple[str, str]:
        """The addresses of the indices and of the updates."""
        at = {v: fn.arg(i) for i, v in enumerate(self.graph.params)}
        return at[self.scatter.operands[1]], at[self.scatter.operands[2]]

    def emit(self) -> KernelCode:
        phases = [self._copy() if self.fill is None else self._set()]
        phases.append(self._along() if self.where.along else self._rows())
        moved = self.where.items * self.where.block_size
        return self.code(phases, 0, f"scatter {self.mode}: {moved} updates in {phases[1].units} units")

    def _copy(self) -> Phase:
        """Copy x to the result."""
        fn = self.start(f"{self.prefix}_copy_unit")
        nbytes = self.where.x.nbytes
        first = fn.mul("%u", _COPY_UNIT)
        count = fn.min(_COPY_UNIT, fn.sub(nbytes, first))
        x, out = fn.arg(self.graph.params.index(self.scatter.operands[0])), fn.arg(len(self.op.operands))
        fn.declare("declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)")
        to, of = fn.at(out, first), fn.at(x, first)
        fn.do(f"call void @llvm.memcpy.p0.p0.i64(ptr {to}, ptr {of}, i64 {count}, i1 false)")
        self.keep(fn)
        return self.phase("copy", [(fn.symbol, -(-nbytes // _COPY_UNIT))], _COPY_UNIT / 10)

    def _set(self) -> Phase:
        """Fill the result with one number."""
        assert self.fill is not None
        fn, size = self.start(f"{self.prefix}_fill_unit"), self.where.x.size
        per_unit = _COPY_UNIT // self.dtype.itemsize
        first = fn.mul("%u", per_unit)
        elem, lanes = mem_type(memory_form(self.dtype)), self.target.lanes(8 * self.dtype.itemsize)
        number = fn.splat(elem, memory_literal(self.fill, self.dtype), lanes)
        out, last = fn.arg(len(self.op.operands)), fn.min(fn.add(first, per_unit), size)
        raw = _BITS[self.dtype.itemsize]
        number = fn.op(f"bitcast <{lanes} x {elem}> {number} to <{lanes} x {mem_type(raw)}>")
        with fn.range(first, last, lanes, runs=True) as i:
            mask = tail_mask(fn, fn.sub(last, i.i), lanes) if size % lanes else None
            store_lanes(fn, number, fn.at(out, i.i, elem), raw, lanes, mask)
        self.keep(fn)
        return self.phase("fill", [(fn.symbol, -(-size // per_unit))], _COPY_UNIT / 20)

    def _rows(self) -> Phase:
        """Each unit applies, in order, the updates whose first index lies in its range."""
        fn, where = self.start(f"{self.prefix}_unit"), self.where
        index, updates = self._pointers(fn)
        out, status = fn.arg(len(self.op.operands)), self.status_of(fn)
        elem, size = mem_type(self.dtype), where.block_size
        extent = where.x.shape[where.axes[0]] if where.axes else 1
        # every unit reads all indices, which small blocks do not repay
        ranges = min(_RANGES, extent, max(1, size // 8)) if where.items * size > _SMALL else 1
        low = fn.div(fn.mul("%u", extent), ranges)
        high = fn.div(fn.mul(fn.add("%u", 1), extent), ranges)
        with fn.range(0, where.items, runs=True) as item:
            first, offset, ok = where.point(fn, index, item.i)
            with in_range(fn, ok, status):
                mine = fn.op(f"icmp ult i64 {fn.sub(first, low)}, {fn.sub(high, low)}")
                with fn.when(mine):
                    src, dst = fn.at(updates, fn.mul(item.i, size), elem), fn.at(out, offset, elem)
                    with block_vectors(fn, where.block, self.lanes) as (a, b, width, left):
                        mask = tail_mask(fn, left, width) if width and where.block[-1][0] % width else None
                        self._apply(fn, fn.at(dst, a, elem), fn.at(src, b, elem), width, mask)
        self.keep(fn)
        cost = where.items + where.items * size * 0.5 / ranges
        return self.phase("scatter", [(fn.symbol, ranges)], cost)

    def _along(self) -> Phase:
        """Lines along the axis do not meet: a unit takes some of them."""
        fn, where = self.start(f"{self.prefix}_unit"), self.where
        index, updates = self._pointers(fn)
        out, status = fn.arg(len(self.op.operands)), self.status_of(fn)
        elem, axis, shape = mem_type(self.dtype), where.axes[0], where.index.shape
        n, inner = shape[axis], prod(shape[axis + 1 :])
        lines = where.items // n
        per_unit = max(1, min(_LINE_UNIT // n, inner))
        chunks = -(-inner // per_unit)
        outer, chunk = fn.div("%u", chunks), fn.mod("%u", chunks)
        first = fn.mul(chunk, per_unit)
        last = fn.min(fn.add(first, per_unit), inner)
        with fn.range(0, n, runs=True) as j, fn.range(first, last, runs=True) as i:
            item = fn.add(fn.mul(fn.add(fn.mul(outer, n), j.i), inner), i.i)
            _, offset, ok = where.point(fn, index, item)
            with in_range(fn, ok, status):
                self._apply(fn, fn.at(out, offset, elem), fn.at(updates, item, elem), 0, None)
        self.keep(fn)
        units = lines // inner * chunks
        return self.phase("scatter", [(fn.symbol, units)], 2.0 * n * per_unit)

    def _apply(self, fn: Code, dst: str, src: str, width: int, mask: str | None) -> None:
        b = VectorBuilder(fn, width or self.lanes)
        new = b.reg(load_lanes(fn, src, self.dtype, width, mask), self.dtype, width)
        old = new
        if self.mode != "set":
            old = b.reg(load_lanes(fn, dst, self.dtype, width, mask), self.dtype, width)
        store_lanes(fn, _combine(self.mode)(b, old, new).text, dst, self.dtype, width, mask)
