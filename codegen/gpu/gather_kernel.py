"""Kernels of form ``gather`` on a GPU: a thread moves one piece of one item's block."""

from __future__ import annotations

from weft.codegen.blocks import Ix
from weft.codegen.gpu.device import DeviceFunction
from weft.codegen.gpu.kernel import DeviceCode
from weft.codegen.gpu.target import GpuTarget
from weft.codegen.gpu.writer import DeviceWriter, move, report, widest
from weft.codegen.indexing import Addressing, addressing, only_op
from weft.ir.graph import Op


def emit(op: Op, target: GpuTarget, prefix: str) -> DeviceCode:
    """The code of a kernel of form ``gather``. Elements are moved as bits, whatever the dtype."""
    w = DeviceWriter(op, target, prefix)
    gather = only_op(w.graph)
    where, size = addressing(gather), gather.result.type.dtype.itemsize
    lanes = block_lanes(where, size)
    pieces = where.block_size // lanes
    slots = (w.operand(gather.operands[0]), w.operand(gather.operands[1]), w.result(0), w.status)
    with w.each(slots, where.items * pieces) as (fn, number):
        item, piece = fn.div(number, pieces), fn.mod(number, pieces)
        _, offset, ok = where.point(fn, "%a1", item)
        bits = f"i{8 * size}"
        inner = block_offset(fn, where, fn.mul(piece, lanes))
        yes, no, done = fn.new_label("inside"), fn.new_label("outside"), fn.new_label("next")
        fn.cond_br(ok, yes, no)
        fn.label(no)
        report(fn, "%a3")
        fn.br(done)
        fn.label(yes)
        source = fn.at(fn.at("%a0", offset, bits), inner, bits)
        move(fn, source, fn.at("%a2", fn.mul(number, lanes), bits), lanes, size)
        fn.br(done)
        fn.label(done)
    return w.code(f"gather {where.items} blocks of {where.block_size} elements, {lanes} per thread")


def block_lanes(where: Addressing, itemsize: int) -> int:
    """Elements of a block that one access moves."""
    if not where.block or where.block[-1][1] != 1:
        return 1
    steps = [where.strides[a] for a in where.axes] + [s for _, s in where.block[:-1]]
    return widest(itemsize, where.block[-1][0], *steps)


def block_offset(fn: DeviceFunction, where: Addressing, at: Ix) -> Ix:
    """Where element ``at`` of a block lies in x."""
    dims, strides = [d for d, _ in where.block], [s for _, s in where.block]
    return fn.dot(fn.split(at, dims), strides)
