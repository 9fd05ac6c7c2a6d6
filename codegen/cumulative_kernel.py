"""Kernels of form ``cumulative``: running sums, products, maxima and minima along one axis.

Always added up in order, so that results do not depend on the number of threads (and are numpy's to the bit).
"""

from __future__ import annotations

from math import prod

from weft.codegen.blocks import Code, Ix
from weft.codegen.emit import VectorBuilder
from weft.codegen.indexing import only_op, operand_pointers
from weft.codegen.kernel import KernelCode, Unsupported
from weft.codegen.lanes import load_lanes, store_lanes, tail_mask
from weft.codegen.llvm import mem_type, reg_type
from weft.codegen.phases import Writer
from weft.codegen.target import Target
from weft.ir.graph import Op
from weft.ir.types import DType, f32

_OPS = {"cumsum": "add", "cumprod": "mul", "cummax": "max", "cummin": "min"}


def emit(op: Op, target: Target, prefix: str) -> KernelCode:
    """The code of a kernel of form ``cumulative``. Lanes run over what lies inside the axis, if anything."""
    writer = Writer(op, target, prefix)
    scan = only_op(writer.graph)
    if scan.prim.name not in _OPS:
        raise Unsupported(f"{scan.prim.name} is no running reduction that is compiled")
    t, axis = scan.result.type, scan.attrs["axis"]
    n, inner = t.shape[axis], prod(t.shape[axis + 1 :])
    lanes = target.lanes(max(t.dtype.bits, 32)) if inner > 1 else 0
    chunks = -(-inner // lanes) if lanes else 1
    fn = writer.start(f"{prefix}_unit")
    (x,), out = operand_pointers(fn, op), fn.arg(len(op.operands))
    col = fn.mul(fn.mod("%u", chunks), lanes) if lanes else 0
    base = fn.add(fn.mul(fn.div("%u", chunks), n * inner), col)
    mask = tail_mask(fn, fn.sub(inner, col), lanes) if lanes and inner % lanes else None
    _line(fn, x, out, base, (n, inner), t.dtype, lanes, mask, _OPS[scan.prim.name], scan.attrs["reverse"])
    writer.keep(fn)
    units = t.size // (n * inner) * chunks
    phase = writer.phase("scan", [(fn.symbol, units)], 1.5 * n)
    return writer.code([phase], 0, f"{scan.prim.name} of {units} lines of {n}, {max(lanes, 1)} abreast")


def _line(
    fn: Code,
    x: str,
    out: str,
    base: Ix,
    line: tuple[int, int],
    dtype: DType,
    lanes: int,
    mask: str | None,
    combine: str,
    reverse: bool,
) -> None:
    """Run along ``line`` = (length, stride); the half types are carried as f32 and rounded when stored."""
    n, stride = line
    b, elem = VectorBuilder(fn, lanes), mem_type(dtype)
    half = dtype.is_floating_point and dtype.bits == 16
    carried = f32 if half else dtype

    def at(pointer: str, i: Ix) -> str:
        j = fn.sub(n - 1, i) if reverse else i
        return fn.at(pointer, fn.add(base, fn.mul(j, stride)), elem)

    def store(i: Ix, value: str) -> None:
        got = b.reg(value, carried, lanes)
        text = b.convert(got, dtype).text if half else value
        store_lanes(fn, text, at(out, i), dtype, lanes, mask)

    first = load_lanes(fn, at(x, 0), dtype, lanes, mask)
    store(0, first)
    with fn.range(1, n, 1, [(reg_type(carried, lanes), first)]) as turn:
        new = b.reg(load_lanes(fn, at(x, turn.i), dtype, lanes, mask), carried, lanes)
        total = b.binary(combine, b.reg(turn.vars[0], carried, lanes), new).text
        store(turn.i, total)
        turn.next[0] = total
