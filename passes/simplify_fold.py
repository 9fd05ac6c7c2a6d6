"""Constant folding, and computing before broadcasting."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from weft.ir.graph import Op, Value
from weft.ir.prims.base import Kind
from weft.ir.types import DType, bf16, f16, f32, f64
from weft.passes.rewriting import Rewriter, Rewritten, Rules

FOLDING = Rules()
# Constants with more elements than this are not computed at compile time.
MAX_FOLDED = 64
FOLDED_KINDS = (Kind.MAP, Kind.MOVE, Kind.REDUCE, Kind.SCAN)
_MANTISSA = {f16: 11, bf16: 8, f32: 24, f64: 53}


@FOLDING.on("*")
def fold_map(r: Rewriter, op: Op) -> Rewritten:
    """A map of uniform constants is a uniform constant."""
    if op.prim.kind is not Kind.MAP or not op.operands or len(op.results) != 1:
        return None
    numbers = []
    for v in op.operands:
        n = r.uniform(v)
        if n is None:
            return None
        numbers.append(scalar_array(n, v.type.dtype))
    try:
        (out,) = _evaluate(op, numbers)
    except RuntimeError:  # a division by zero: an error of the program, if it comes there
        return None
    return r.full(op.result.type, out.item())


@FOLDING.on("*")
def fold_small(r: Rewriter, op: Op) -> Rewritten:
    """An operation on small constants is a constant, computed by the reference rule."""
    if op.prim.kind not in FOLDED_KINDS or not op.operands or len(op.results) != 1:
        return None
    if op.result.type.size > MAX_FOLDED:
        return None
    arrays = []
    for v in op.operands:
        array = _small_array(r, v)
        if array is None:
            return None
        arrays.append(array)
    try:
        (out,) = _evaluate(op, arrays)
    except RuntimeError:
        return None
    return r.emit("constant", value=np.array(out, order="C"), device=op.result.type.device)


def _evaluate(op: Op, arrays: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    with np.errstate(all="ignore"):
        return op.prim.evaluate(arrays, op.attrs)


def scalar_array(value: complex, dtype: DType) -> np.ndarray:
    return np.asarray(value).astype(dtype.np)


def _small_array(r: Rewriter, v: Value) -> np.ndarray | None:
    op = r.producer(v)
    if op is None or op.prim.kind is not Kind.SOURCE or op.results[0].type.size > MAX_FOLDED:
        return None
    if op.prim.name == "iota":
        return None  # a loop computes it from its index, and rules know it
    return op.prim.evaluate((), op.attrs)[0]


@FOLDING.on("reshape", "permute", "broadcast", "slice", "flip")
def move_of_uniform(r: Rewriter, op: Op) -> Rewritten:
    value = r.uniform(op.operands[0])
    return None if value is None else r.full(op.result.type, value)


@FOLDING.on("concatenate", "pad", "update_slice")
def joined_uniform(r: Rewriter, op: Op) -> Rewritten:
    values = [r.uniform(v) for v in op.operands]
    if any(v is None for v in values) or not all(same_number(v, values[0]) for v in values):
        return None
    return r.full(op.result.type, values[0])


def same_number(a: Any, b: Any) -> bool:
    """Equal to the bit (but for the payload of a NaN)."""
    if isinstance(a, float) and isinstance(b, float):
        return (a == b and math.copysign(1.0, a) == math.copysign(1.0, b)) or (a != a and b != b)
    return type(a) is type(b) and a == b


@FOLDING.on("gather", "take_along")
def gather_of_uniform(r: Rewriter, op: Op) -> Rewritten:
    """Only where the index is uniform and in range: a wrong index must still be found."""
    value, index = r.uniform(op.operands[0]), r.uniform(op.operands[1])
    if value is None or index is None:
        return None
    axes = op.attrs["axes"] if "axes" in op.attrs else (op.attrs["axis"],)
    inside = all(0 <= index < op.operands[0].type.shape[a] for a in axes)
    return r.full(op.result.type, value) if inside else None


@FOLDING.on("reduce_max", "reduce_min", "any", "all")
def extreme_of_uniform(r: Rewriter, op: Op) -> Rewritten:
    value = r.uniform(op.operands[0])
    return None if value is None or op.operands[0].type.size == 0 else r.full(op.result.type, value)


@FOLDING.on("sum")
def sum_of_uniform(r: Rewriter, op: Op) -> Rewritten:
    """Only where every partial sum is exact: an integer of few enough bits."""
    x = op.operands[0].type
    value = r.uniform(op.operands[0])
    n = math.prod(x.shape[a] for a in op.attrs["axes"])
    if value is None or n == 0 or x.dtype.is_complex:
        return None
    if x.dtype.is_integer:
        return r.full(op.result.type, np.uint64(value * n % (1 << 64)).astype(x.dtype.np).item())
    if not float(value).is_integer() or value == 0 or abs(value) * n > 2 ** _MANTISSA[x.dtype]:
        return None
    return r.full(op.result.type, float(value) * n)


@FOLDING.on("*")
def map_before_broadcast(r: Rewriter, op: Op) -> Rewritten:
    """A map of operands that are broadcast alike is computed on the small shape, then broadcast."""
    if op.prim.kind is not Kind.MAP or len(op.results) != 1:
        return None
    makers = [r.producer(v) for v in op.operands]
    if any(m is None or m.prim.name not in ("broadcast", "full") for m in makers):
        return None
    spreads = [m for m in makers if m is not None and m.prim.name == "broadcast"]
    if any(_spread(m) != _spread(spreads[0]) for m in spreads[1:]):
        return None
    source = spreads[0] if spreads else None
    if source is None or source.operands[0].type.size >= op.result.type.size:
        return None
    small = source.operands[0].type.shape
    operands = [_small_operand(r, v, small) for v in op.operands]
    return r.emit("broadcast", r.emit(op.prim, *operands, **op.attrs), **source.attrs)


@FOLDING.on("*")
def map_before_reshape(r: Rewriter, op: Op) -> Rewritten:
    """A map of operands that gain or lose axes of length 1 alike is computed before: such reshapes move down
    and meet. A reshape that merges axes stays: next to a parameter it is free, inside a loop it is not.
    """
    if op.prim.kind is not Kind.MAP or len(op.results) != 1:
        return None
    makers = [r.producer(v) for v in op.operands]
    if any(m is None or m.prim.name not in ("reshape", "full") for m in makers):
        return None
    shapes = {m.operands[0].type.shape for m in makers if m is not None and m.prim.name == "reshape"}
    if len(shapes) != 1:
        return None
    (shape,) = shapes
    if [d for d in shape if d != 1] != [d for d in op.result.type.shape if d != 1]:
        return None
    operands = [_small_operand(r, v, shape) for v in op.operands]
    return r.emit("reshape", r.emit(op.prim, *operands, **op.attrs), shape=op.result.type.shape)


def _spread(op: Op) -> tuple[object, object]:
    return op.attrs["axes"], op.operands[0].type.shape


def _small_operand(r: Rewriter, v: Value, shape: tuple[int, ...]) -> Value:
    value = r.uniform(v)
    if value is None:
        op = r.producer(v)
        assert op is not None
        return op.operands[0]
    return r.full(v.type.with_(shape=shape), value)
