"""Hyperbolic functions and their inverses, for f32 and f64, over the base vocabulary."""

from __future__ import annotations

from weft.ir import math_tables as tables
from weft.ir.math_exponential import INF, LN2, NAN, exp_parts, expm1, log1p
from weft.ir.scalarexpr import Num, fast_two_sum, horner, pick
from weft.ir.types import f32, f64

# (sinh(x)/x - 1) / x^2 in x^2, |x| <= 1.8 (f32) or 1
SINH = {
    f32: (
        0.1666666716337204,
        0.008333315141499043,
        0.00019843372865580022,
        2.7454377686808584e-06,
        2.724609338145001e-08,
    ),
    f64: (
        0.16666666666666669,
        0.008333333333332912,
        0.00019841269841593405,
        2.7557319106762763e-06,
        2.505213099669303e-08,
        1.6056659430184429e-10,
        7.776588517413244e-13,
    ),
}
# (asinh(x)/x - 1) / x^2 in x^2, |x| <= 1; (atanh(x)/x - 1) / x^2 in x^2, |x| <= 1/2
ASINH = (
    -0.1666663,
    0.07498716,
    -0.044487886,
    0.02945636,
    -0.01918232,
    0.010431253,
    -0.0038387533,
    0.0006740775,
)
ATANH = (0.333333, 0.20002455, 0.14223748, 0.118167207, 0.05159059, 0.17639609)
BIG = 2.0**60  # 1 does not change its square, which is finite


def half_exp(a: Num) -> Num:
    """exp(a) / 2 for a >= 0, without overflow before the result overflows."""
    p, n = exp_parts(a.at_most(91.0 if a.dtype is f32 else 711.0))
    return Num(a.b, a.b.scale2(p.h, (n - 1.0).h))


def sinh(x: Num) -> Num:
    a = abs(x)
    z = a * a
    small = (a * z).fma(horner(z, SINH[x.dtype]), a)
    h = half_exp(a)
    return pick(a.lt(1.8 if x.dtype is f32 else 1.0), small, h - 0.25 / h).copysign(x)


def cosh(x: Num) -> Num:
    h = half_exp(abs(x))
    return h + 0.25 / h


def tanh(x: Num) -> Num:
    if x.dtype is f32:
        return tables.tanh(x)
    t = expm1(abs(x).at_most(20.0) * 2.0)
    return (t / (t + 2.0)).copysign(x)


def _odd(a: Num, coefficients: tuple[float, ...]) -> Num:
    """a + a^3 p(a^2)."""
    z = a * a
    return (a * z).fma(horner(z, coefficients), a)


def asinh(x: Num) -> Num:
    a = abs(x)
    big = a.gt(BIG)
    if x.dtype is f32:
        # log(a + sqrt(a^2 + 1)), the sum with its error; of a large a, log(2 a)
        total, low = fast_two_sum(pick(big, 0.0, a.fma(a, 1.0).sqrt()), a)
        far = tables.log_sum(total, low, pick(big, a.const(1.0), 0.0))
        return pick(a.lt(1.0), _odd(a, ASINH), pick(a.lt(INF), far, a)).copysign(x)
    square = a * a
    v = pick(big, a, a + square / ((square + 1.0).sqrt() + 1.0))
    return (log1p(v) + pick(big, v.const(LN2[f64][0]), 0.0)).copysign(x)


def acosh(x: Num) -> Num:
    big = x.gt(BIG)
    t = x - 1.0
    if x.dtype is f32:
        # log1p(t + sqrt(t^2 + 2 t)) likewise
        total, low = fast_two_sum(pick(big, 0.0, t.fma(t, t + t).sqrt()), t)
        out = tables.log1p_sum(total, low, pick(big, t.const(1.0), 0.0))
        return pick(x.ge(1.0), pick(x.lt(INF), out, x), NAN)
    v = pick(big, x, t + (t * (t + 2.0)).sqrt())
    return pick(x.lt(1.0), NAN, log1p(v) + pick(big, v.const(LN2[f64][0]), 0.0))


def atanh(x: Num) -> Num:
    a = abs(x)
    if x.dtype is f32:
        return pick(a.le(0.5), _odd(a, ATANH), _atanh_far(a)).copysign(x)
    return (log1p((a + a) / (1.0 - a)) * 0.5).copysign(x)


def _atanh_far(a: Num) -> Num:
    """log((1 + a) / (1 - a)) / 2 for 1/2 <= a, the quotient with its error."""
    over, under = a + 1.0, 1.0 - a
    q = over / under
    rest = (-q).fma(under, over) + (a - (over - 1.0))  # relative to 1 + a; a few bits of it are enough
    out = tables.log_plus(q, rest * over.fma(-1.0 / 3, 7.0 / 6)) * 0.5
    return pick(a.lt(1.0), out, pick(a.eq(1.0), a.const(INF), NAN))
