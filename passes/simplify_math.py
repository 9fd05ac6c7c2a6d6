"""Rules for arithmetic, comparison, selection and conversion. Exact to the bit unless the docstring says
otherwise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from weft.ir.graph import Op, Value
from weft.ir.types import BITS, DType, bool_, f16, f32, f64
from weft.passes.rewriting import Rewriter, Rewritten, Rules

MATH = Rules()


def is_zero(value: Any, negative: bool) -> bool:
    """Whether a constant is the zero with this sign."""
    return isinstance(value, float) and value == 0 and (math.copysign(1.0, value) < 0) == negative


def _real(v: Value) -> bool:
    return not v.type.dtype.is_complex


@MATH.on("add")
def add_zero(r: Rewriter, op: Op) -> Rewritten:
    """x + -0.0 is x; x + 0.0 is not (it turns -0.0 into 0.0)."""
    x, c = op.operands[0], r.uniform(op.operands[1])
    if c is None:
        return None
    if x.type.dtype is bool_:
        return op.operands[1] if c else x
    neutral = c == 0 if x.type.dtype.is_integer else is_zero(c, negative=True)
    return x if neutral else None


@MATH.on("add")
def add_of_negation(r: Rewriter, op: Op) -> Rewritten:
    x, y = op.operands
    if (b := r.operand_of(y, "neg")) is not None:
        return r.emit("sub", x, b)
    if (a := r.operand_of(x, "neg")) is not None:
        return r.emit("sub", y, a)
    return None


@MATH.on("sub")
def sub_zero(r: Rewriter, op: Op) -> Rewritten:
    x, c = op.operands[0], r.uniform(op.operands[1])
    if c is None:
        return None
    return x if (c == 0 if x.type.dtype.is_integer else is_zero(c, negative=False)) else None


@MATH.on("sub")
def sub_from_zero(r: Rewriter, op: Op) -> Rewritten:
    """-0.0 - y is -y; 0.0 - y is not where y is 0."""
    c, y = r.uniform(op.operands[0]), op.operands[1]
    if c is None:
        return None
    return r.emit("neg", y) if (c == 0 if y.type.dtype.is_integer else is_zero(c, negative=True)) else None


@MATH.on("sub")
def sub_of_negation(r: Rewriter, op: Op) -> Rewritten:
    b = r.operand_of(op.operands[1], "neg")
    return None if b is None else r.emit("add", op.operands[0], b)


@MATH.on("sub", "bit_xor")
def difference_with_itself(r: Rewriter, op: Op) -> Rewritten:
    """For integers: NaN - NaN and inf - inf are NaN."""
    x, y = op.operands
    return r.full(x.type, x.type.dtype.np.type(0).item()) if x is y and x.type.dtype in BITS else None


@MATH.on("mul")
def mul_by_constant(r: Rewriter, op: Op) -> Rewritten:
    x, c = op.operands[0], r.uniform(op.operands[1])
    dtype = x.type.dtype
    if c is None or dtype.is_complex:
        return None
    if dtype is bool_:
        return x if c else op.operands[1]
    if c == 1:
        return x
    if c == -1 and dtype.is_signed:
        return r.emit("neg", x)
    if c == 0 and dtype.is_integer:
        return op.operands[1]
    inner = r.operand_of(x, "neg")
    return r.emit("mul", inner, r.full(x.type, -c)) if inner is not None and dtype.is_floating_point else None


@MATH.on("mul", "div")
def product_of_negations(r: Rewriter, op: Op) -> Rewritten:
    x, y = (r.operand_of(v, "neg") for v in op.operands)
    floats = op.result.type.dtype.is_floating_point
    return r.emit(op.prim, x, y) if x is not None and y is not None and floats else None


@MATH.on("add", "mul")
def integer_constants_meet(r: Rewriter, op: Op) -> Rewritten:
    """(x + c) + d is x + (c + d) for integers, which wrap."""
    x, d = op.operands
    inner = r.producer(x, op.prim.name)
    if inner is None or not x.type.dtype.is_integer:
        return None
    if r.uniform(d) is None or r.uniform(inner.operands[1]) is None:
        return None
    return r.emit(op.prim, inner.operands[0], r.emit(op.prim, inner.operands[1], d))


@MATH.on("div")
def div_by_constant(r: Rewriter, op: Op) -> Rewritten:
    """By one, and by a power of two whose reciprocal is a normal number: then the product is exact too."""
    x, c = op.operands[0], r.uniform(op.operands[1])
    dtype = x.type.dtype
    if c is None or dtype.is_complex:
        return None
    if c == 1:
        return x
    if not dtype.is_floating_point or not math.isfinite(c) or c == 0:
        return None
    if c == -1:
        return r.emit("neg", x)
    limits = np.finfo(dtype.np) if dtype in (f16, f32, f64) else np.finfo(np.float32)
    low, high = float(limits.smallest_normal), float(limits.max)
    exact = abs(math.frexp(c)[0]) == 0.5 and low <= abs(c) <= high and low <= 1 / abs(c) <= high
    return r.emit("mul", x, r.full(x.type, 1 / c)) if exact else None


@MATH.on("pow")
def small_power(r: Rewriter, op: Op) -> Rewritten:
    """Powers -1, 0, 1 and 2 exactly; 3 and 4 within 1.5 ULP, well inside what ``pow`` promises."""
    x, c = op.operands[0], r.uniform(op.operands[1])
    if c is None or not _real(x) or x.type.dtype is bool_:
        return None
    floats = x.type.dtype.is_floating_point
    if c == 0:
        return r.full(x.type, x.type.dtype.np.type(1).item())
    if c == 1:
        return x
    if c == -1 and floats:
        return r.emit("div", r.full(x.type, 1.0), x)
    if c == 2:
        return r.emit("mul", x, x)
    if c not in (3, 4) or (floats and x.type.dtype.itemsize < 4):
        return None
    square = r.emit("mul", x, x)
    return r.emit("mul", square, x if c == 3 else square)


@MATH.on("neg", "bit_not", "conj")
def twice_is_nothing(r: Rewriter, op: Op) -> Rewritten:
    return r.operand_of(op.operands[0], op.prim.name)


@MATH.on("neg")
def negated_product(r: Rewriter, op: Op) -> Rewritten:
    """-(x * c) is x * -c, -(x / c) is x / -c (floats: the sign is apart from the magnitude)."""
    inner = r.producer(op.operands[0])
    if inner is None or inner.prim.name not in ("mul", "div") or not op.result.type.dtype.is_floating_point:
        return None
    c = r.uniform(inner.operands[1])
    return None if c is None else r.emit(inner.prim, inner.operands[0], r.full(op.result.type, -c))


@MATH.on("abs")
def abs_without_sign(r: Rewriter, op: Op) -> Rewritten:
    x = op.operands[0]
    if not _real(x):
        return None
    if not x.type.dtype.is_signed or r.producer(x, "abs") is not None:
        return x
    inner = r.operand_of(x, "neg")
    return None if inner is None else r.emit("abs", inner)


@MATH.on("floor", "ceil", "rint", "trunc")
def rounding_of_integers(r: Rewriter, op: Op) -> Rewritten:
    x = op.operands[0]
    inner = r.producer(x)
    rounded = inner is not None and inner.prim.name in ("floor", "ceil", "rint", "trunc")
    return x if rounded or not x.type.dtype.is_floating_point else None


@MATH.on("maximum", "minimum", "bit_and", "bit_or")
def idempotent(r: Rewriter, op: Op) -> Rewritten:
    return op.operands[0] if op.operands[0] is op.operands[1] else None


@MATH.on("bit_and", "bit_or", "bit_xor")
def bits_with_constant(r: Rewriter, op: Op) -> Rewritten:
    x, c = op.operands[0], r.uniform(op.operands[1])
    if c is None:
        return None
    name, ones = op.prim.name, _all_ones(x.type.dtype)
    if c == 0:
        return op.operands[1] if name == "bit_and" else x
    if c == ones:
        return {"bit_and": x, "bit_or": op.operands[1]}.get(name) or r.emit("bit_not", x)
    return None


def _all_ones(dtype: DType) -> int:
    if dtype is bool_:
        return True
    return -1 if dtype.is_signed else int(np.iinfo(dtype.np).max)


@MATH.on("shl", "shr")
def shift_by_nothing(r: Rewriter, op: Op) -> Rewritten:
    return op.operands[0] if r.uniform(op.operands[1]) == 0 else None


# --- comparison and selection
# ------------------------------------------------------------------------------------


@MATH.on("eq", "ne", "lt", "le")
def compare_with_itself(r: Rewriter, op: Op) -> Rewritten:
    """For integers and bool: NaN is not equal to itself."""
    x, y = op.operands
    if x is not y or x.type.dtype not in BITS:
        return None
    return r.full(op.result.type, op.prim.name in ("eq", "le"))


@MATH.on("eq", "ne")
def compare_of_bool(r: Rewriter, op: Op) -> Rewritten:
    """b != 0 is b for a bool b, converted or not; b == 0 is its negation."""
    x, c = op.operands[0], r.uniform(op.operands[1])
    inner = r.operand_of(x, "convert")
    x = x if inner is None else inner
    if c is None or x.type.dtype is not bool_ or c not in (0, 1):
        return None
    return x if (op.prim.name == "ne") == (c == 0) else r.emit("bit_not", x)


@MATH.on("bit_not")
def not_of_equality(r: Rewriter, op: Op) -> Rewritten:
    """The order comparisons have no such partner: both are false for NaN."""
    inner = r.producer(op.operands[0])
    if inner is None or inner.prim.name not in ("eq", "ne"):
        return None
    return r.emit("ne" if inner.prim.name == "eq" else "eq", *inner.operands)


@MATH.on("where")
def where_of_constants(r: Rewriter, op: Op) -> Rewritten:
    c, x, y = op.operands
    if x is y:
        return x
    known = r.uniform(c)
    if known is not None:
        return x if known else y
    if x.type.dtype is bool_ and r.uniform(x) is True and r.uniform(y) is False:
        return c
    if x.type.dtype is bool_ and r.uniform(x) is False and r.uniform(y) is True:
        return r.emit("bit_not", c)
    return None


@MATH.on("where")
def where_of_where(r: Rewriter, op: Op) -> Rewritten:
    c, x, y = op.operands
    if (inner := r.operand_of(c, "bit_not")) is not None:
        return r.emit("where", inner, y, x)
    a, b = r.producer(x, "where"), r.producer(y, "where")
    x = a.operands[1] if a is not None and a.operands[0] is c else x
    y = b.operands[2] if b is not None and b.operands[0] is c else y
    return r.emit("where", c, x, y) if (x, y) != op.operands[1:] else None


# --- conversion
# --------------------------------------------------------------------------------------------------


@MATH.on("convert")
def convert_of_convert(r: Rewriter, op: Op) -> Rewritten:
    """The middle of two conversions goes where it holds every value of the source."""
    x = r.operand_of(op.operands[0], "convert")
    if x is None:
        return None
    a, b, c = x.type.dtype, op.operands[0].type.dtype, op.result.type.dtype
    saturates = (
        b.is_floating_point and c.is_integer
    )  # an integer out of range wraps, one from a float does not
    if not holds(b, a) or (saturates and not a.is_floating_point and not holds(c, a)):
        return None
    return r.convert(x, c)


@MATH.on("bitcast")
def bitcast_of_bitcast(r: Rewriter, op: Op) -> Rewritten:
    x = r.operand_of(op.operands[0], "bitcast")
    if x is None:
        return None
    return x if x.type.dtype is op.attrs["dtype"] else r.emit("bitcast", x, dtype=op.attrs["dtype"])


def holds(wide: DType, narrow: DType) -> bool:
    """Whether every value of ``narrow`` is a value of ``wide`` (real dtypes).

    >>> from weft.ir.types import i8, i32, f16, f32, u8
    >>> holds(f32, f16), holds(f32, i32), holds(i32, u8), holds(u8, i8)
    (True, False, True, False)
    """
    if narrow is wide or narrow is bool_:
        return not wide.is_complex
    if wide is bool_ or wide.is_complex or narrow.is_complex:
        return False
    if narrow.is_floating_point:
        return wide.is_floating_point and wide.itemsize > narrow.itemsize
    bits = narrow.bits - narrow.is_signed
    if wide.is_floating_point:
        return bits <= {"f16": 11, "bf16": 8, "f32": 24, "f64": 53}[wide.name]
    return (wide.is_signed or not narrow.is_signed) and wide.bits - wide.is_signed >= bits


@MATH.on("real", "imag")
def part_of_complex(r: Rewriter, op: Op) -> Rewritten:
    inner = r.producer(op.operands[0], "complex")
    return None if inner is None else inner.operands[0 if op.prim.name == "real" else 1]


@MATH.on("complex")
def complex_of_parts(r: Rewriter, op: Op) -> Rewritten:
    re, im = (r.operand_of(v, part) for v, part in zip(op.operands, ("real", "imag"), strict=True))
    return re if re is not None and re is im else None
