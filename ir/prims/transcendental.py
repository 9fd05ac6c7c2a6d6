"""Exponentials, logarithms, trigonometric, hyperbolic and special functions, powers.

The scalar rules call the composed functions of :mod:`weft.ir.scalarmath`; ``eval`` is numpy's function, or
:mod:`weft.ir.special` where numpy has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from weft.ir import special
from weft.ir.prims.base import Primitive, full_like, scale, type_of
from weft.ir.prims.bits import bit_and_p
from weft.ir.prims.elementwise import div_p, eq_p, ge_p
from weft.ir.prims.mapping import conj, elementwise, same_type, where
from weft.ir.types import COMPLEXES, FLOATS, NUMERIC, DType, TensorType, f64

INEXACT = FLOATS + COMPLEXES


def _unary(
    name: str,
    eval: Callable[..., Any],
    slope: Callable[[Any, Any], Any] | None,
    needs: str,
    domain: Sequence[DType] = INEXACT,
    vjp: Callable[..., Any] | None = None,
) -> Primitive:
    """``slope(out, x)`` is the derivative; ``vjp`` replaces it where a quotient is better conditioned."""

    def product(ct: Any, out: Any, x: Any) -> tuple[Any]:
        assert slope is not None
        return (ct * conj(slope(out, x)),)

    return elementwise(
        name,
        domain=domain,
        eval=eval,
        scalar=lambda b, x: getattr(b, name)(x),
        vjp=vjp or product,
        needs=needs,
    )


def _quotient(divisor: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda ct, out, x: (div_p.bind(ct, conj(divisor(out, x))),)


def _one(x: Any) -> Any:
    return full_like(x, 1)


_LN2 = math.log(2.0)

exp_p = _unary("exp", np.exp, lambda out, x: out, "o")
exp2_p = _unary("exp2", np.exp2, lambda out, x: scale(out, _LN2), "o")
expm1_p = _unary("expm1", np.expm1, lambda out, x: out + _one(out), "o")
log_p = _unary("log", np.log, None, "0", vjp=_quotient(lambda out, x: x))
log2_p = _unary("log2", np.log2, None, "0", vjp=_quotient(lambda out, x: scale(x, _LN2)))
log1p_p = _unary("log1p", np.log1p, None, "0", vjp=_quotient(lambda out, x: x + _one(x)))

sin_p = _unary("sin", np.sin, lambda out, x: cos_p.bind(x), "0")
cos_p = _unary("cos", np.cos, lambda out, x: -sin_p.bind(x), "0")
tan_p = _unary("tan", np.tan, lambda out, x: _one(out) + out * out, "o")
asin_p = _unary("asin", np.arcsin, lambda out, x: rsqrt_p.bind(_one(x) - x * x), "0")
acos_p = _unary("acos", np.arccos, lambda out, x: -rsqrt_p.bind(_one(x) - x * x), "0")
atan_p = _unary("atan", np.arctan, None, "0", vjp=_quotient(lambda out, x: _one(x) + x * x))

sinh_p = _unary("sinh", np.sinh, lambda out, x: cosh_p.bind(x), "0")
cosh_p = _unary("cosh", np.cosh, lambda out, x: sinh_p.bind(x), "0")
tanh_p = _unary("tanh", np.tanh, lambda out, x: _one(out) - out * out, "o")
asinh_p = _unary("asinh", np.arcsinh, lambda out, x: rsqrt_p.bind(x * x + _one(x)), "0")
acosh_p = _unary(
    "acosh", np.arccosh, lambda out, x: rsqrt_p.bind(x - _one(x)) * rsqrt_p.bind(x + _one(x)), "0"
)
atanh_p = _unary("atanh", np.arctanh, None, "0", vjp=_quotient(lambda out, x: _one(x) - x * x))


def _rsqrt_eval(x: np.ndarray) -> np.ndarray:
    if x.dtype == np.float32:
        # twice the precision, one rounding: the composed function is as good
        return (1.0 / np.sqrt(x.astype(np.float64))).astype(np.float32)
    return np.divide(x.dtype.type(1), np.sqrt(x))


def _rsqrt_vjp(ct: Any, out: Any, x: Any) -> tuple[Any]:
    y = conj(out)
    return (ct * scale(y * y * y, -0.5),)


sqrt_p = elementwise(
    "sqrt",
    domain=INEXACT,
    eval=np.sqrt,
    scalar=lambda b, x: b.unary("sqrt", x),
    vjp=lambda ct, out, x: (div_p.bind(ct, scale(conj(out), 2.0)),),
    needs="o",
)
rsqrt_p = _unary("rsqrt", _rsqrt_eval, None, "o", vjp=_rsqrt_vjp)

_TWO_OVER_SQRT_PI = 2.0 / math.sqrt(math.pi)

erf_p = _unary("erf", special.erf, lambda out, x: scale(exp_p.bind(-(x * x)), _TWO_OVER_SQRT_PI), "0", FLOATS)
erfc_p = _unary(
    "erfc", special.erfc, lambda out, x: scale(exp_p.bind(-(x * x)), -_TWO_OVER_SQRT_PI), "0", FLOATS
)
erfinv_p = _unary(
    "erfinv",
    special.erfinv,
    lambda out, x: scale(exp_p.bind(out * out), 1.0 / _TWO_OVER_SQRT_PI),
    "o",
    FLOATS,
)
lgamma_p = _unary("lgamma", special.lgamma, lambda out, x: digamma_p.bind(x), "0", FLOATS)
digamma_p = _unary("digamma", special.digamma, lambda out, x: polygamma_p.bind(x, n=1), "0", FLOATS)


def _polygamma_infer(x: TensorType, *, n: int) -> TensorType:
    if n < 1:
        raise ValueError(f"polygamma: n must be at least 1, got {n}")
    return same_type("polygamma", (x,), FLOATS)


# the n-th derivative of digamma, n >= 1
polygamma_p = elementwise(
    "polygamma",
    domain=FLOATS,
    infer=_polygamma_infer,
    eval=lambda x, *, n: special.polygamma(n, x),
    scalar=lambda b, x, *, n: b.polygamma(n, x),
    vjp=lambda ct, out, x, *, n: (ct * polygamma_p.bind(x, n=n + 1),),
    needs="0",
)


def _int_pow(x: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Wraps on overflow; a negative exponent gives 0, but for the bases 1 and -1."""
    out, base, left = np.ones_like(x), x.copy(), np.where(n < 0, n & 1, n)
    while left.any():
        out = np.where(left & 1 != 0, out * base, out)
        base, left = base * base, left >> 1
    if x.dtype.kind == "i":
        out = np.where((n < 0) & (x != 1) & (x != -1), np.zeros_like(out), out)
    return out


def _pow_eval(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.power(x, y) if x.dtype.kind in "fc" else _int_pow(x, y)


def _pow_scalar(b: Any, x: Any, y: Any) -> Any:
    return b.pow(x, y) if b.dtype(x).is_floating_point else b.int_pow(x, y)


def _pow_vjp(ct: Any, out: Any, x: Any, y: Any) -> tuple[Any, Any]:
    """As PyTorch: no gradient to the base where y == 0, none to the exponent where x == 0 and y >= 0."""
    zero = full_like(x, 0)
    dx = where(eq_p.bind(y, zero), zero, ct * conj(y * pow_p.bind(x, y - _one(y))))
    flat = eq_p.bind(x, zero)
    if not type_of(x).dtype.is_complex:
        flat = bit_and_p.bind(flat, ge_p.bind(y, zero))
    return dx, where(flat, zero, ct * conj(out * log_p.bind(x)))


pow_p = elementwise("pow", domain=NUMERIC, eval=_pow_eval, scalar=_pow_scalar, vjp=_pow_vjp, needs="01o")


def _atan2_vjp(ct: Any, out: Any, y: Any, x: Any) -> tuple[Any, Any]:
    k = div_p.bind(ct, x * x + y * y)
    return k * x, -(k * y)


atan2_p = elementwise(
    "atan2",
    domain=FLOATS,
    eval=np.arctan2,
    scalar=lambda b, y, x: b.atan2(y, x),
    vjp=_atan2_vjp,
    needs="01",
)


def _box_muller_scalar(b: Any, u: Any, v: Any) -> Any:
    def times(x: Any, value: float) -> Any:
        return b.binary("mul", x, b.const(value, b.dtype(x)))

    radius = b.unary("sqrt", times(b.log(u), -2.0))
    return b.binary("mul", radius, b.cos(times(v, 2.0 * math.pi)))


# sqrt(-2 log u) cos(2 pi v): a normal number of two uniform ones (Box and Muller, 1958). One operation, so
# that eager and compiled give the same bits: numpy's logarithm and cosine have others.
box_muller_p = elementwise("box_muller", domain=(f64,), eval=special.box_muller, scalar=_box_muller_scalar)
