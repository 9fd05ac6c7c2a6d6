"""Elementwise functions: arithmetic, transcendental functions, comparison, logic, bits, selection."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from weft.casting import EXACT_UNARY, exact_on_gpu, widest
from weft.composite import composite_of_results
from weft.dispatch import apply, at_hand
from weft.dtypes import type_name
from weft.ir import prims as P
from weft.ir import types as T
from weft.ir.prims.base import Primitive
from weft.ir.types import DType
from weft.ops.common import (
    as_tensor,
    binary,
    broadcast_shapes,
    broadcast_to,
    check_tensor,
    convert,
    elementwise,
    in_float32,
    is_number,
    scalar_tensor,
    shape_of,
    to_inexact,
    unary,
)
from weft.prepared import prepared
from weft.promotion import CATEGORY, promote, scalar_category
from weft.quick import binary_function, unary_function
from weft.tensor import Tensor


def _float_unary(prim: Primitive, name: str, doc: str) -> Any:
    def fn(input: Tensor) -> Tensor:
        return unary(prim, input, to_float=True)

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = doc + " Elementwise; integers are computed in the default float dtype."
    made: Any = prepared(fn) if prim.ufunc is None else fn
    return unary_function(prim, exact_on_gpu(made) if name in EXACT_UNARY else made)


_FLOAT_UNARY = {
    "exp": "e to the power of x.", "exp2": "2 to the power of x.", "expm1": "exp(x) - 1.",
    "log": "Natural logarithm.", "log2": "Logarithm to base 2.", "log1p": "log(1 + x).", "sin": "Sine.",
    "cos": "Cosine.", "tan": "Tangent.", "asin": "Inverse sine.", "acos": "Inverse cosine.",
    "atan": "Inverse tangent.", "sinh": "Hyperbolic sine.", "cosh": "Hyperbolic cosine.",
    "tanh": "Hyperbolic tangent.", "asinh": "Inverse hyperbolic sine.",
    "acosh": "Inverse hyperbolic cosine.", "atanh": "Inverse hyperbolic tangent.", "erf": "Error function.",
    "erfc": "1 - erf(x), without cancellation.", "erfinv": "Inverse error function.",
    "lgamma": "Logarithm of the absolute gamma function.", "digamma": "Derivative of lgamma.",
    "sqrt": "Square root.", "rsqrt": "1 / sqrt(x).",
}  # fmt: skip
_made = {name: _float_unary(getattr(P, name + "_p"), name, doc) for name, doc in _FLOAT_UNARY.items()}
exp, exp2, expm1, log, log2, log1p = (_made[n] for n in ("exp", "exp2", "expm1", "log", "log2", "log1p"))
sin, cos, tan, asin, acos, atan = (_made[n] for n in ("sin", "cos", "tan", "asin", "acos", "atan"))
sinh, cosh, tanh, asinh, acosh, atanh = (
    _made[n] for n in ("sinh", "cosh", "tanh", "asinh", "acosh", "atanh")
)
erf, erfc, erfinv, lgamma, digamma, sqrt, rsqrt = (
    _made[n] for n in ("erf", "erfc", "erfinv", "lgamma", "digamma", "sqrt", "rsqrt")
)
arcsin, arccos, arctan, arcsinh, arccosh, arctanh = asin, acos, atan, asinh, acosh, atanh


@exact_on_gpu
@prepared
def log10(input: Tensor) -> Tensor:
    """Logarithm to base 10."""
    return log2(input) * math.log10(2.0) if input.dtype.itemsize < 4 else log(input) * (1 / math.log(10.0))


def polygamma(n: int, input: Tensor) -> Tensor:
    """The n-th derivative of digamma."""
    if n < 0:
        raise RuntimeError("polygamma(n, x) does not support negative n.")
    return digamma(input) if n == 0 else apply(P.polygamma_p, convert(input, to_inexact(input.dtype)), n=n)


@partial(unary_function, P.neg_p)
def neg(input: Tensor) -> Tensor:
    """-x. RuntimeError for bool tensors."""
    if input.dtype is T.bool_:
        raise RuntimeError(
            "Negation, the `-` operator, on a bool tensor is not supported. If you are trying to invert a "
            "mask, use the `~` or `logical_not()` operator instead."
        )
    return unary(P.neg_p, input)


def positive(input: Tensor) -> Tensor:
    if input.dtype is T.bool_:
        raise RuntimeError("The `+` operator, on a bool tensor is not supported.")
    return input


def _not_for_bool(input: Any, name: str) -> None:
    if (input if isinstance(input, DType) else input.dtype) is T.bool_:
        raise NotImplementedError(f""""{name}" not implemented for 'Bool'""")


@partial(unary_function, P.abs_p)
def abs(input: Tensor) -> Tensor:
    """Absolute value; real for complex tensors."""
    _not_for_bool(input, "abs_cpu")
    return unary(P.abs_p, input)


@prepared
def sign(input: Tensor) -> Tensor:
    """-1, 0 or 1; 0 for NaN."""
    return input.clone() if input.dtype is T.bool_ else unary(P.sign_p, input)


def sgn(input: Tensor) -> Tensor:
    """x / |x|, 0 at 0."""
    if not input.dtype.is_complex:
        return sign(input)
    a = abs(input)
    return where(a == 0, 0.0, input / a)


@partial(unary_function, P.floor_p)
def floor(input: Tensor) -> Tensor:
    """The largest integer not above x."""
    _not_for_bool(input, "floor_vml_cpu")
    return unary(P.floor_p, input)


@partial(unary_function, P.ceil_p)
def ceil(input: Tensor) -> Tensor:
    """The smallest integer not below x."""
    _not_for_bool(input, "ceil_vml_cpu")
    return unary(P.ceil_p, input)


@partial(unary_function, P.trunc_p)
def trunc(input: Tensor) -> Tensor:
    """x without its fraction."""
    _not_for_bool(input, "trunc_vml_cpu")
    return unary(P.trunc_p, input)


fix = trunc


@prepared
def round(input: Tensor, *, decimals: int = 0) -> Tensor:
    """To the nearest integer (or decimal place), halves to even."""
    _not_for_bool(input, "round_vml_cpu")
    if decimals == 0 or not input.dtype.is_floating_point:
        return unary(P.rint_p, input)
    ten = 10.0 ** builtin_abs(decimals)
    scaled = input * ten if decimals > 0 else input / ten
    r = unary(P.rint_p, scaled)
    return r / ten if decimals > 0 else r * ten


def builtin_abs(n: int) -> int:
    return -n if n < 0 else n


@prepared
def frac(input: Tensor) -> Tensor:
    """x minus trunc(x). NotImplementedError for integers."""
    if not input.dtype.is_inexact:
        raise NotImplementedError(f""""frac_cpu" not implemented for '{type_name(input.dtype)}'""")
    return input - trunc(input)


@exact_on_gpu
@prepared
def reciprocal(input: Tensor) -> Tensor:
    """1 / x."""
    return binary(P.div_p, 1, input, to_float=True)


@prepared
def square(input: Tensor) -> Tensor:
    return pow(input, 2)


@composite_of_results
@in_float32
def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + exp(-x)), by exp(-|x|) so that neither it nor its gradient overflows."""
    x = convert(input, to_inexact(input.dtype))
    if x.dtype.is_complex:
        return 1.0 / (1.0 + exp(-x))
    negative = x < 0
    z = exp(where(negative, x, -x))
    return where(negative, z, 1.0) / (1.0 + z)


@prepared
def logit(input: Tensor, eps: float | None = None) -> Tensor:
    """log(x / (1 - x)); x is clamped to [eps, 1 - eps] if eps is given."""
    x = input if eps is None else clamp(input, eps, 1 - eps)
    return log(x / (1 - x))


@prepared
def sinc(input: Tensor) -> Tensor:
    x = convert(input, to_inexact(input.dtype)) * math.pi
    return where(x == 0, 1.0, sin(x) / where(x == 0, 1.0, x))


def relu(input: Tensor) -> Tensor:
    """max(x, 0); the derivative at 0 is 0."""
    if input.dtype is T.bool_:
        raise RuntimeError("Boolean inputs not supported for relu")
    if interpreter_is_symbolic() or (input._rg and input.dtype.is_inexact):
        return _rectified(input)
    return maximum(input, 0)


relu = unary_function(P.maximum_p, relu, 0)


@composite_of_results
def _rectified(x: Tensor) -> Tensor:
    return where(x <= 0, 0, x)


def interpreter_is_symbolic() -> bool:
    """Whether operations are recorded, and a gradient may be taken of them later."""
    from weft.dispatch import interpreter

    found: Any = interpreter()
    return found.recording and getattr(found, "gradients", True)


@prepared
def deg2rad(input: Tensor) -> Tensor:
    return input * (math.pi / 180)


@prepared
def rad2deg(input: Tensor) -> Tensor:
    return input * (180 / math.pi)


# -- two operands -------------------------------------------------------------------------------------------


def _scaled(other: Any, alpha: Any, name: str, dtype: Any) -> Any:
    if alpha is None or (type(alpha) is int and alpha == 1):
        return other
    if not is_number(alpha):
        raise TypeError(f"{name}(): argument 'alpha' must be Number, not {type(alpha).__name__}")
    if scalar_category(alpha) > CATEGORY[dtype]:
        kind = "floating point" if scalar_category(alpha) == 2 else "complex"
        raise RuntimeError(f"For integral input tensors, argument alpha must not be a {kind} number.")
    return other * alpha


@prepared
def add(input: Any, other: Any, *, alpha: Any = 1) -> Tensor:
    """input + alpha * other, broadcast and promoted.

    >>> import weft
    >>> weft.add(weft.tensor([1, 2]), 0.5)
    tensor([1.5000, 2.5000])
    """
    if type(alpha) is not int or alpha != 1:
        other = _scaled(other, alpha, "add", promote(input, other))
    return binary(P.add_p, input, other)


def _no_bool_sub(a: Any, b: Any) -> None:
    bools = [x.dtype is T.bool_ if isinstance(x, Tensor) else isinstance(x, bool) for x in (a, b)]
    if all(bools):
        raise RuntimeError(
            "Subtraction, the `-` operator, with two bool tensors is not supported. Use the `^` or "
            "`logical_xor()` operator instead."
        )
    if any(bools):
        raise RuntimeError(
            "Subtraction, the `-` operator, with a bool tensor is not supported. If you are trying to "
            "invert a mask, use the `~` or `logical_not()` operator instead."
        )


@prepared
def sub(input: Any, other: Any, *, alpha: Any = 1) -> Tensor:
    """input - alpha * other. RuntimeError for bool tensors."""
    for x in (input, other):
        if isinstance(x, bool) or (isinstance(x, Tensor) and x.dtype is T.bool_):
            _no_bool_sub(input, other)
    if type(alpha) is not int or alpha != 1:
        other = _scaled(other, alpha, "sub", promote(input, other))
    return binary(P.sub_p, input, other)


def rsub(input: Any, other: Any, *, alpha: Any = 1) -> Tensor:
    return sub(other, input, alpha=alpha)


@partial(binary_function, P.mul_p)
def mul(input: Any, other: Any) -> Tensor:
    """input * other."""
    return binary(P.mul_p, input, other)


@prepared
def div(input: Any, other: Any, *, rounding_mode: str | None = None) -> Tensor:
    """input / other: true division, or rounded by ``"trunc"`` or ``"floor"``."""
    if rounding_mode is None:
        return binary(P.div_p, input, other, to_float=True)
    if rounding_mode == "floor":
        return floor_divide(input, other)
    if rounding_mode != "trunc":
        raise RuntimeError(
            f"div expected rounding_mode to be one of None, 'trunc', or 'floor' but found '{rounding_mode}'"
        )
    d = promote(input, other)
    q = binary(P.div_p, input, other)
    return trunc(q) if d.is_floating_point else _check_zero(q, other)


true_divide = div


def _check_zero(q: Tensor, divisor: Any) -> Tensor:
    """Integer division by zero is an error, as in torch. Kernels find the zeros that are not at hand."""
    if isinstance(divisor, Tensor):
        d = at_hand(divisor)
        zero = d is not None and not d.all()
    else:
        zero = not getattr(divisor, "_weft_scalar", False) and divisor == 0
    if zero and q.numel():
        raise RuntimeError("ZeroDivisionError")
    return q


@prepared
def floor_divide(input: Any, other: Any) -> Tensor:
    """The quotient rounded down."""
    d = promote(input, other)
    _not_for_bool(d, "div_floor_cpu")
    if d.is_floating_point:
        # as Python and torch: exact where the division is, by way of the remainder
        a, b = (as_tensor(x, d) for x in (input, other))
        mod = binary(P.rem_p, a, b)
        q = (a - mod) / b
        q = where((mod != 0) & ((b < 0) != (mod < 0)), q - 1, q)
        f = floor(q)
        f = where(q - f > 0.5, f + 1, f)
        return where(b == 0, a / b, f)
    q = _check_zero(binary(P.div_p, input, other), other)
    if not d.is_signed:
        return q
    r = binary(P.rem_p, input, other)
    return q - convert((r != 0) & ((r < 0) != (as_tensor(other) < 0)), q.dtype)


@prepared
def fmod(input: Any, other: Any) -> Tensor:
    """The remainder with the sign of ``input`` (C's fmod)."""
    d = promote(input, other)
    _not_for_bool(d, "fmod_cpu")
    return _check_zero(binary(P.rem_p, input, other), other if not d.is_floating_point else 1)


@prepared
def remainder(input: Any, other: Any) -> Tensor:
    """The remainder with the sign of ``other`` (Python's %)."""
    d = promote(input, other)
    _not_for_bool(d, "remainder_cpu")
    r = _check_zero(binary(P.rem_p, input, other), other if not d.is_floating_point else 1)
    if not d.is_signed:
        return r
    b = as_tensor(other, r.dtype)
    return where((r != 0) & ((r < 0) != (b < 0)), r + b, r)


@exact_on_gpu
@prepared
def pow(input: Any, exponent: Any) -> Tensor:
    """input ** exponent. RuntimeError for integers to a negative integer power."""
    if isinstance(input, Tensor) and type(exponent) in (int, float):
        quick = _small_power(input, exponent)
        if quick is not None:
            return quick
        if input.dtype.is_integer and type(exponent) is int and exponent < 0:
            raise RuntimeError("Integers to negative integer powers are not allowed.")
    if promote(input, exponent) is T.bool_:
        return as_tensor(input) | ~as_tensor(exponent)
    return binary(P.pow_p, input, exponent)


def _small_power(x: Tensor, e: float) -> Tensor | None:
    """The powers that need no pow: 0, 1, 2, 3, 0.5, -0.5, -1, -2."""
    if x.dtype is T.bool_ or (isinstance(e, float) and not x.dtype.is_inexact):
        return None
    if e == 1:
        return x.clone()
    if e == 2:
        return mul(x, x)
    if e == 3:
        return mul(mul(x, x), x)
    if not x.dtype.is_inexact:
        return None
    if e == 0.5:
        return sqrt(x)
    if e == -0.5 and not x.dtype.is_complex:
        return rsqrt(x)
    if e == -1:
        return reciprocal(x)
    return reciprocal(mul(x, x)) if e == -2 else None


@prepared
def float_power(input: Any, exponent: Any) -> Tensor:
    """pow in float64 (complex128)."""
    d = T.c128 if promote(input, exponent).is_complex else T.f64
    return pow(as_tensor(input, d), as_tensor(exponent, d))


@partial(binary_function, P.atan2_p)
@widest
def atan2(input: Any, other: Any) -> Tensor:
    """The angle of the point (other, input)."""
    return binary(P.atan2_p, input, other, to_float=True)


arctan2 = atan2


@partial(binary_function, P.maximum_p)
def maximum(input: Tensor, other: Tensor) -> Tensor:
    """The larger of the two; NaN wins."""
    return binary(P.maximum_p, input, other)


@partial(binary_function, P.minimum_p)
def minimum(input: Tensor, other: Tensor) -> Tensor:
    """The smaller of the two; NaN wins."""
    return binary(P.minimum_p, input, other)


@prepared
def fmax(input: Tensor, other: Tensor) -> Tensor:
    """The larger of the two; a NaN loses."""
    d = promote(input, other)
    a, b = as_tensor(input, d), as_tensor(other, d)
    return where(isnan(b) | (a >= b), a, b)


@prepared
def fmin(input: Tensor, other: Tensor) -> Tensor:
    """The smaller of the two; a NaN loses."""
    d = promote(input, other)
    a, b = as_tensor(input, d), as_tensor(other, d)
    return where(isnan(b) | (a <= b), a, b)


@prepared
def copysign(input: Any, other: Any) -> Tensor:
    """The magnitude of ``input`` with the sign of ``other``."""
    return binary(P.copysign_p, input, other, to_float=True)


@prepared
def hypot(input: Tensor, other: Tensor) -> Tensor:
    """sqrt(input² + other²), without undue overflow."""
    d = promote(input, other)
    if not d.is_floating_point:
        raise NotImplementedError(f""""hypot_cpu" not implemented for '{type_name(d)}'""")
    a, b = abs(input), abs(other)
    big, small = maximum(a, b), minimum(a, b)
    safe = where((big == 0) | isinf(big), 1.0, big)
    r = where(isinf(big), 0.0, small / safe)
    return big * sqrt(r * r + 1.0)


@prepared
def xlogy(input: Any, other: Any) -> Tensor:
    """input * log(other), 0 where input is 0 (unless other is NaN)."""
    d = to_inexact(promote(input, other))
    x, y = as_tensor(input, d), as_tensor(other, d)
    safe = where(x == 0, where(isnan(y), y, scalar_tensor(1.0, d)), y)
    return x * log(safe)


@prepared
def logaddexp(input: Tensor, other: Tensor) -> Tensor:
    """log(exp(a) + exp(b))."""
    m = maximum(input, other).detach()
    m = where(isinf(m), 0.0, m)
    return log(exp(input - m) + exp(other - m)) + m


@prepared
def logaddexp2(input: Tensor, other: Tensor) -> Tensor:
    m = maximum(input, other).detach()
    m = where(isinf(m), 0.0, m)
    return log2(exp2(input - m) + exp2(other - m)) + m


@prepared
def lerp(input: Tensor, end: Tensor, weight: Any) -> Tensor:
    """input + weight * (end - input), in the form that is exact at both ends."""
    if input.dtype is not end.dtype:
        raise RuntimeError(f"expected dtype {input.dtype} for `end` but got dtype {end.dtype}")
    delta = end - input
    if is_number(weight) and not getattr(weight, "_weft_scalar", False):
        return input + delta * weight if weight < 0.5 else end - delta * (1 - weight)
    w = as_tensor(weight, input.dtype)
    return where(w < 0.5, input + delta * w, end - delta * (1 - w))


@widest
@prepared
def addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: Any = 1) -> Tensor:
    """input + value * tensor1 * tensor2."""
    p = tensor1 * tensor2
    return input + (p if type(value) is int and value == 1 else p * value)


@widest
@prepared
def addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: Any = 1) -> Tensor:
    """input + value * tensor1 / tensor2."""
    if not any(t.dtype.is_inexact for t in (tensor1, tensor2)):
        raise RuntimeError(
            "Integer division with addcdiv is no longer supported, and in a future  release addcdiv will "
            "perform a true division of tensor1 and tensor2."
        )
    q = (tensor1 if type(value) is int and value == 1 else tensor1 * value) / tensor2
    return input + q


# -- comparison and logic -----------------------------------------------------------------------------------


def _comparison(prim: Primitive, name: str, symbol: str) -> Any:
    def fn(input: Any, other: Any) -> Tensor:
        return binary(prim, input, other)

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = f"input {symbol} other, as a bool tensor."
    return binary_function(prim, fn)


eq, ne = _comparison(P.eq_p, "eq", "=="), _comparison(P.ne_p, "ne", "!=")
lt, le = _comparison(P.lt_p, "lt", "<"), _comparison(P.le_p, "le", "<=")
gt, ge = _comparison(P.gt_p, "gt", ">"), _comparison(P.ge_p, "ge", ">=")
not_equal, less, less_equal, greater, greater_equal = ne, lt, le, gt, ge


def _truth(x: Any) -> Tensor:
    """Not zero, as a bool tensor."""
    return as_tensor(x) if isinstance(x, Tensor) and x.dtype is T.bool_ else convert(as_tensor(x), T.bool_)


@prepared
def logical_not(input: Tensor) -> Tensor:
    return apply(P.bit_not_p, _truth(input))


@prepared
def logical_and(input: Tensor, other: Tensor) -> Tensor:
    return binary(P.bit_and_p, _truth(input), _truth(other))


@prepared
def logical_or(input: Tensor, other: Tensor) -> Tensor:
    return binary(P.bit_or_p, _truth(input), _truth(other))


@prepared
def logical_xor(input: Tensor, other: Tensor) -> Tensor:
    return binary(P.bit_xor_p, _truth(input), _truth(other))


def _bits(name: str, *operands: Any) -> None:
    d = promote(*operands)
    if d.is_inexact:
        raise NotImplementedError(f""""{name}_cpu" not implemented for '{type_name(d)}'""")


@partial(unary_function, P.bit_not_p)
def bitwise_not(input: Tensor) -> Tensor:
    """~x; logical for bool."""
    _bits("bitwise_not", input)
    return apply(P.bit_not_p, input)


@partial(binary_function, P.bit_and_p)
def bitwise_and(input: Any, other: Any) -> Tensor:
    _bits("bitwise_and", input, other)
    return binary(P.bit_and_p, input, other)


@partial(binary_function, P.bit_or_p)
def bitwise_or(input: Any, other: Any) -> Tensor:
    _bits("bitwise_or", input, other)
    return binary(P.bit_or_p, input, other)


@partial(binary_function, P.bit_xor_p)
def bitwise_xor(input: Any, other: Any) -> Tensor:
    _bits("bitwise_xor", input, other)
    return binary(P.bit_xor_p, input, other)


def bitwise_left_shift(input: Any, other: Any) -> Tensor:
    _bits("lshift", input, other)
    return binary(P.shl_p, input, other)


def bitwise_right_shift(input: Any, other: Any) -> Tensor:
    _bits("rshift", input, other)
    return binary(P.shr_p, input, other)


@prepared
def isnan(input: Tensor) -> Tensor:
    """Whether each element is NaN."""
    if not input.dtype.is_inexact:
        return _always(input, False)
    return binary(P.ne_p, input, input)


def _always(x: Tensor, value: bool) -> Tensor:
    from weft.creation import full

    return full(tuple(x.shape), value, dtype=T.bool_, device=x.device)


@prepared
def isinf(input: Tensor) -> Tensor:
    if not input.dtype.is_inexact:
        return _always(input, False)
    if input.dtype.is_complex:
        return isinf(input.real) | isinf(input.imag)
    return binary(P.eq_p, abs(input), math.inf)


@prepared
def isposinf(input: Tensor) -> Tensor:
    return binary(P.eq_p, input, math.inf) if input.dtype.is_inexact else _always(input, False)


@prepared
def isneginf(input: Tensor) -> Tensor:
    return binary(P.eq_p, input, -math.inf) if input.dtype.is_inexact else _always(input, False)


@prepared
def isfinite(input: Tensor) -> Tensor:
    if not input.dtype.is_inexact:
        return _always(input, True)
    if input.dtype.is_complex:
        return isfinite(input.real) & isfinite(input.imag)
    return binary(P.lt_p, abs(input), math.inf)


def isreal(input: Tensor) -> Tensor:
    return input.imag == 0 if input.dtype.is_complex else _always(input, True)


@prepared
def signbit(input: Tensor) -> Tensor:
    """Whether the sign bit is set (-0.0 too)."""
    if not input.dtype.is_floating_point:
        return input < 0 if input.dtype is not T.bool_ else _always(input, False)
    return copysign(scalar_tensor(1.0, input.dtype), input.detach()) < 0


# -- selection ----------------------------------------------------------------------------------------------


@prepared
def where(condition: Tensor, input: Any = None, other: Any = None) -> Any:
    """``input`` where the condition holds, else ``other``; alone, the indices where it holds."""
    if input is None and other is None:
        from weft.ops.index import nonzero

        return nonzero(condition, as_tuple=True)
    check_tensor(condition, "where", "condition")
    if condition.dtype is not T.bool_:
        if condition.dtype is not T.u8:
            raise RuntimeError(
                "where expected condition to be a boolean tensor, but got a tensor with dtype "
                f"{type_name(condition.dtype)}"
            )
        condition = convert(condition, T.bool_)
    if isinstance(input, Tensor) and isinstance(other, Tensor) and input.dtype is other.dtype:
        x, y = input, other
    else:
        d = promote(input, other)
        x, y = as_tensor(input, d), as_tensor(other, d)
    shape = shape_of(condition)
    if shape_of(x) == shape == shape_of(y):
        return apply(P.where_p, condition, x, y)
    shape = broadcast_shapes(shape, shape_of(x), shape_of(y))
    return apply(P.where_p, *[broadcast_to(t, shape) for t in (condition, x, y)])


@prepared
def clamp(input: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """Limit to [min, max]; NaN stays. The gradient flows where the value is within them, ends included."""
    if min is None and max is None:
        raise RuntimeError("torch.clamp: At least one of 'min' or 'max' must not be None")
    d = promote(input, *[b for b in (min, max) if b is not None])
    out = convert(input, d)
    bounds = [(maximum, P.lt_p, min), (minimum, P.gt_p, max)]
    for limit, outside, bound in bounds:
        if bound is None:
            continue
        if needs_gradient(out, bound):
            b = as_tensor(bound, d)
            out = where(elementwise(outside, out.detach(), b.detach()), b, out)
        else:
            out = limit(out, convert(bound, d) if isinstance(bound, Tensor) else bound)
    return out if out is not input else input.clone()


def needs_gradient(*xs: Any) -> bool:
    from weft.autograd.grad_mode import mode

    return interpreter_is_symbolic() or (
        mode.grad and any(isinstance(x, Tensor) and x.requires_grad for x in xs)
    )


clip = clamp


def clamp_min(input: Tensor, min: Any) -> Tensor:
    return clamp(input, min=min)


def clamp_max(input: Tensor, max: Any) -> Tensor:
    return clamp(input, max=max)


@prepared
def nan_to_num(
    input: Tensor, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None
) -> Tensor:
    """NaN and infinities replaced (by default with 0 and the dtype's limits)."""
    from weft.dtypes import finfo

    if not input.dtype.is_inexact:
        return input.clone()
    info = finfo(input.dtype)
    out = where(isnan(input), nan, input)
    out = where(isposinf(input), info.max if posinf is None else posinf, out)
    return where(isneginf(input), info.min if neginf is None else neginf, out)


@prepared
def heaviside(input: Tensor, values: Tensor) -> Tensor:
    return where(input == 0, values, convert(input > 0, input.dtype))
