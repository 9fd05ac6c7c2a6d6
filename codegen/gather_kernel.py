"""Kernels of form ``gather``: rows (or elements) of x read at indices, where fusion left them alone."""

from __future__ import annotations

from weft.codegen.indexing import addressing, block_vectors, in_range, only_op, operand_pointers
from weft.codegen.kernel import KernelCode
from weft.codegen.lanes import load_raw, store_lanes, tail_mask
from weft.codegen.llvm import mem_type
from weft.codegen.phases import Writer
from weft.codegen.target import Target
from weft.ir.graph import Op
from weft.ir.types import DType, i8, i16, i32, i64

_UNIT = 1 << 12  # elements moved by one unit of work, about
_BITS: dict[int, DType] = {1: i8, 8: i8, 16: i16, 32: i32, 64: i64}


def emit(op: Op, target: Target, prefix: str) -> KernelCode:
    """The code of a kernel of form ``gather``. Elements are moved as bits, whatever the dtype."""
    writer = Writer(op, target, prefix)
    gather = only_op(writer.graph)
    where = addressing(gather)
    bits = _BITS[gather.result.type.dtype.bits]
    lanes = target.lanes(bits.bits)
    per_unit = max(1, _UNIT // where.block_size)
    units = -(-where.items // per_unit)
    fn = writer.start(f"{prefix}_unit")
    x, index = operand_pointers(fn, op)
    out, status = fn.arg(len(op.operands)), writer.status_of(fn)
    elem, size = mem_type(bits), where.block_size
    first = fn.mul("%u", per_unit)
    with fn.range(first, fn.min(fn.add(first, per_unit), where.items), runs=True) as item:
        _, offset, ok = where.point(fn, index, item.i)
        with in_range(fn, ok, status):
            src, dst = fn.at(x, offset, elem), fn.at(out, fn.mul(item.i, size), elem)
            with block_vectors(fn, where.block, lanes) as (a, b, width, left):
                mask = tail_mask(fn, left, width) if width and where.block[-1][0] % width else None
                raw = load_raw(fn, fn.at(src, a, elem), bits, width, mask)
                store_lanes(fn, raw, fn.at(dst, b, elem), bits, width, mask)
    writer.keep(fn)
    phase = writer.phase("gather", [(fn.symbol, units)], 0.5 * per_unit * size)
    return writer.code([phase], 0, f"gather {where.items} blocks of {size} elements, {per_unit} per unit")
