"""One form for what can be written in several ways."""

from __future__ import annotations

import numpy as np
from weft.ir.graph import Graph, Op, Value
from weft.ir.prims.move import diagonal_slice
from weft.ir.types import DType, TensorType
from weft.passes.dce import dce
from weft.passes.rewriting import Rewriter, Rewritten, Rules

CANONICAL = Rules()
COMMUTATIVE = ("add", "mul", "maximum", "minimum", "bit_and", "bit_or", "bit_xor", "eq", "ne")
# Array constants up to this many elements are searched for being uniform.
MAX_UNIFORM = 4096


def canonicalise(graph: Graph) -> Graph:
    """Bring operations into one form each, so that later passes have fewer patterns to know.

    Expects any verified graph. Leaves: constants on the right of commutative operations; ``lt`` and ``le``
    for ``gt`` and ``ge``; uniform constants as ``full`` with a number of the dtype's own kind; no move or
    conversion that does nothing; moves that only add, drop or pass by axes of length 1 as ``reshape``;
    ``pad`` without negative edges; no ``copy`` but where a result of the graph asks for storage of its own.
    Exact to the bit.
    """
    return dce(Rewriter(graph, CANONICAL).run())


def as_number(value: complex, dtype: DType) -> complex:
    """``value`` as the Python number that an element of ``dtype`` holds (floats keep all their digits)."""
    if dtype.category == "float" and not isinstance(value, complex):
        return float(value)
    if dtype.category == "complex":
        return complex(value)
    return np.asarray(value).astype(dtype.np).item()


@CANONICAL.on("full")
def typed_full(r: Rewriter, op: Op) -> Rewritten:
    attrs = op.attrs
    number = as_number(attrs["value"], attrs["dtype"])
    if type(number) is type(attrs["value"]) and (number == attrs["value"] or number != number):
        return None
    return r.full(op.result.type, number)


@CANONICAL.on("constant")
def uniform_constant(r: Rewriter, op: Op) -> Rewritten:
    array = op.attrs["value"]
    if not 0 < array.size <= MAX_UNIFORM:
        return None
    if array.size > 1:
        items = np.ascontiguousarray(array).view(np.uint8).reshape(array.size, array.itemsize)
        if (items != items[0]).any():
            return None
    return r.full(op.result.type, array.flat[0].item())


@CANONICAL.on("iota")
def short_iota(r: Rewriter, op: Op) -> Rewritten:
    t = op.result.type
    return r.full(t, as_number(0, t.dtype)) if t.shape[op.attrs["axis"]] == 1 else None


@CANONICAL.on(*COMMUTATIVE)
def constant_on_the_right(r: Rewriter, op: Op) -> Rewritten:
    x, y = op.operands
    if r.uniform(x) is None or r.uniform(y) is not None:
        return None
    return r.emit(op.prim, y, x)


@CANONICAL.on("gt")
def gt_as_lt(r: Rewriter, op: Op) -> Rewritten:
    return r.emit("lt", op.operands[1], op.operands[0])


@CANONICAL.on("ge")
def ge_as_le(r: Rewriter, op: Op) -> Rewritten:
    return r.emit("le", op.operands[1], op.operands[0])


@CANONICAL.on("copy")
def copy_is_its_operand(r: Rewriter, op: Op) -> Rewritten:
    return None if r.is_result() else op.operands[0]


@CANONICAL.on("convert", "reshape", "bitcast", "transfer")
def to_the_same_type(r: Rewriter, op: Op) -> Rewritten:
    x = op.operands[0]
    return x if x.type == op.result.type else None


@CANONICAL.on("permute")
def permute_of_units(r: Rewriter, op: Op) -> Rewritten:
    x, perm = op.operands[0], op.attrs["perm"]
    long = [p for p in perm if x.type.shape[p] != 1]
    return r.reshape(x, op.result.type.shape) if long == sorted(long) else None


@CANONICAL.on("broadcast")
def broadcast_of_units(r: Rewriter, op: Op) -> Rewritten:
    """Axes of length 1 go into a reshape of the operand: what is left of the broadcast is a spread."""
    x, axes = op.operands[0], op.attrs["axes"]
    if _units_differ(x.type, op.result.type):
        return r.reshape(x, op.result.type.shape)
    if 1 not in x.type.shape:
        return None
    long = [i for i, d in enumerate(x.type.shape) if d != 1]
    x = r.reshape(x, [x.type.shape[i] for i in long])
    return r.emit("broadcast", x, shape=op.attrs["shape"], axes=tuple(axes[i] for i in long))


def _units_differ(a: TensorType, b: TensorType) -> bool:
    """Whether two shapes agree but for axes of length 1."""
    return [d for d in a.shape if d != 1] == [d for d in b.shape if d != 1]


@CANONICAL.on("slice")
def slice_of_everything(r: Rewriter, op: Op) -> Rewritten:
    x = op.operands[0]
    return x if x.type == op.result.type and all(s == 1 for s in op.attrs["step"]) else None


@CANONICAL.on("diagonal")
def diagonal_as_slice(r: Rewriter, op: Op) -> Rewritten:
    """Every so-many-th element of the matrix in one row: what all later passes know."""
    x = op.operands[0]
    *lead, rows, cols = x.type.shape
    start, stop, step = diagonal_slice(rows, cols, op.attrs["offset"])
    flat, zeros, ones = r.reshape(x, (*lead, rows * cols)), (0,) * len(lead), (1,) * len(lead)
    return r.emit("slice", flat, start=(*zeros, start), stop=(*lead, stop), step=(*ones, step))


@CANONICAL.on("flip")
def flip_of_units(r: Rewriter, op: Op) -> Rewritten:
    x, axes = op.operands[0], op.attrs["axes"]
    kept = tuple(a for a in axes if x.type.shape[a] != 1)
    if len(kept) == len(axes):
        return x if not axes else None
    return r.emit("flip", x, axes=kept) if kept else x


@CANONICAL.on("concatenate")
def concatenate_without_empties(r: Rewriter, op: Op) -> Rewritten:
    axis = op.attrs["axis"]
    kept = [x for x in op.operands if x.type.shape[axis] != 0] or [op.operands[0]]
    if len(kept) == 1:
        return kept[0]
    return r.emit("concatenate", *kept, axis=axis) if len(kept) < len(op.operands) else None


@CANONICAL.on("pad")
def pad_without_negatives(r: Rewriter, op: Op) -> Rewritten:
    x, value = op.operands
    lo, hi, interior = (op.attrs[k] for k in ("lo", "hi", "interior"))
    if not any(lo) and not any(hi) and not any(interior):
        return x
    if min((*lo, *hi), default=0) >= 0:
        return None
    if any(interior):
        return _pad_then_crop(r, x, value, op)
    start = tuple(max(0, -a) for a in lo)
    stop = tuple(d - max(0, -b) for d, b in zip(x.type.shape, hi, strict=True))
    if any(a > d or b < 0 or b < a for a, b, d in zip(start, stop, x.type.shape, strict=True)):
        return _pad_then_crop(r, x, value, op)
    kept = r.emit("slice", x, start=start, stop=stop, step=(1,) * len(lo))
    lo, hi = tuple(max(0, a) for a in lo), tuple(max(0, b) for b in hi)
    return r.emit("pad", kept, value, lo=lo, hi=hi, interior=interior)


def _pad_then_crop(r: Rewriter, x: Value, value: Value, op: Op) -> Value:
    lo, hi = op.attrs["lo"], op.attrs["hi"]
    above, below = tuple(max(0, a) for a in lo), tuple(max(0, b) for b in hi)
    wide = r.emit("pad", x, value, lo=above, hi=below, interior=op.attrs["interior"])
    start = tuple(max(0, -a) for a in lo)
    stop = tuple(d + min(0, b) for d, b in zip(wide.type.shape, hi, strict=True))
    return r.emit("slice", wide, start=start, stop=stop, step=(1,) * len(lo))


@CANONICAL.on("sum", "prod", "reduce_max", "reduce_min", "any", "all")
def reduce_of_units(r: Rewriter, op: Op) -> Rewritten:
    x, axes = op.operands[0], op.attrs["axes"]
    long = tuple(a for a in axes if x.type.shape[a] != 1)
    if not long:
        return r.reshape(x, op.result.type.shape)
    return r.reshape(r.emit(op.prim, x, axes=long), op.result.type.shape) if len(long) < len(axes) else None


@CANONICAL.on("argmax", "argmin")
def arg_of_one(r: Rewriter, op: Op) -> Rewritten:
    return r.full(op.result.type, 0) if op.operands[0].type.shape[op.attrs["axis"]] == 1 else None


@CANONICAL.on("cumsum", "cumprod", "cummax", "cummin")
def scan_of_one(r: Rewriter, op: Op) -> Rewritten:
    x = op.operands[0]
    return x if len(op.results) == 1 and x.type.shape[op.attrs["axis"]] == 1 else None


@CANONICAL.on("sort")
def sort_of_one(r: Rewriter, op: Op) -> Rewritten:
    x = op.operands[0]
    return (x, r.full(op.results[1].type, 0)) if x.type.shape[op.attrs["axis"]] == 1 else None
