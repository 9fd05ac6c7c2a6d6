"""The gamma family of f32 and f64, over the base vocabulary.

f32 to the right of zero has formulas of its own. To its left the functions have zeros between all the poles,
next to which a result in f32 needs more than f32: there they are computed in f64.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from weft.ir import math_pieces
from weft.ir import math_tables as tables
from weft.ir.math_exponential import INF, NAN, log
from weft.ir.math_trig import cot_pi, sin_pi_magnitude
from weft.ir.scalarexpr import Num, horner, pick
from weft.ir.types import f32, f64

# lgamma(2 + x)/x on |x| <= 1/2
LGAMMA = (
    0.42278433509846713,
    0.32246703342411326,
    -0.06735230105319831,
    0.020580808427780567,
    -0.00738555102864966,
    0.002890510331023849,
    -0.0011927539127595918,
    0.0005096695156731903,
    -0.0002231547351536696,
    9.945767007309587e-05,
    -4.492653115881378e-05,
    2.0505617091782256e-05,
    -9.437237113972823e-06,
    4.384591052765855e-06,
    -2.0497510307523705e-06,
    9.203116767194663e-07,
    -4.2005313099464287e-07,
    2.784973258055112e-07,
    -1.4328389246305772e-07,
)
# (lgamma(x) - (x - 1/2) log x + x - log(2 pi)/2) x and (log x - 1/(2x) - digamma(x)) x^2, in 1/x^2
STIRLING = (
    0.08333333333333333,
    -0.0027777777777740994,
    0.0007936507898350415,
    -0.0005952366069750761,
    0.0008414728495168573,
    -0.0018905398389384466,
    0.005069244253820121,
)
DIGAMMA = (
    0.08333333333333333,
    -0.0083333333333292,
    0.003968253961576539,
    -0.0041666626135418335,
    0.007574581101894613,
    -0.020915893206945403,
    0.0698307445426394,
)
# the same of f32 for x >= 8
STIRLING_SHORT = (0.083333313, -0.0027663524)
DIGAMMA_SHORT = (0.083333336, -0.0083342046, 0.0039672474)
HALF_LOG_2PI = 0.9189385332046728
BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6)


def _lgamma_positive(x: Num) -> Num:
    """x > 0. Recurrence to [3/2, 5/2] below 8, Stirling's series above."""
    small, first, second = x.lt(8.0), x.lt(0.5), x.lt(1.5)
    factor = pick(first, x * (x + 1.0), pick(second, x, 1.0))
    y = x
    for _ in range(6):
        down = y.gt(2.5)
        factor = pick(down, factor * (y - 1.0), factor)
        y = pick(down, y - 1.0, y)
    logs = log(pick(small, factor, x))
    t = pick(first, x, pick(second, x - 1.0, y - 2.0))  # exact
    near = t.fma(horner(t, LGAMMA), pick(second, -logs, logs))
    z = 1.0 / (x * x)
    series = horner(z, STIRLING) / x + HALF_LOG_2PI
    far = (x - 0.5).fma(logs - 1.0, series - 0.5)
    return pick(small, near, pick(x.lt(1e305), far, x * (logs - 1.0)))


def _left_of_zero(x: Num, out: Num, wide: Callable[[Num], Num]) -> Num:
    """``out``, but for negative x a function of f64."""
    (h,) = x.b.rare(x.lt(0.0).h, (out.h,), lambda: (wide(x.to(f64)).to(f32).h,))
    return Num(x.b, h)


def _lgamma_f32(x: Num) -> Num:
    """x >= 0: pieces up to 8, those at x + 1 next to zero, and Stirling's series above."""
    up, far = x.lt(0.75), x.gt(8.0)
    head, rest = tables.log_double(x)
    series = (1.0 / x).fma(horner(1.0 / (x * x), STIRLING_SHORT), HALF_LOG_2PI - 0.5)
    factor = x - 0.5
    stirling = factor.fma(head - 1.0, factor.fma(rest, series))
    near = math_pieces.lgamma_near(x, up)
    return pick(far, pick(x.lt(INF), stirling, x), pick(up, near - (head + rest), near))


def _digamma_f32(x: Num) -> Num:
    """x >= 0, likewise."""
    up, far = x.lt(1.0), x.gt(8.0)
    inverse = 1.0 / x
    z = inverse * inverse
    series = log(x) - inverse.fma(0.5, z * horner(z, DIGAMMA_SHORT))
    near = math_pieces.digamma_near(x, up)
    near = pick(up, near - inverse, near)
    # 0 is a pole, which the sign of the zero tells the side of
    return pick(far, series, near)


def lgamma(x: Num) -> Num:
    """log |gamma(x)|; inf at 0, -1, -2 ... and at both infinities."""
    if x.dtype is f32:
        return _left_of_zero(x, _lgamma_f32(x), lgamma)
    a = abs(x)
    out = _lgamma_positive(a)
    # gamma(-a) gamma(a) = -pi / (a sin(pi a))
    reflected = log(math.pi / (a * sin_pi_magnitude(a))) - out
    pole = x.le(0.0) & x.eq(x.floor())
    out = pick(x.lt(-(2.0**-60)), reflected, out)
    return pick(pole | a.eq(INF), INF, out)


def digamma(x: Num) -> Num:
    """Recurrence to x >= 10 with one division, an asymptotic series, reflection below 1/2."""
    if x.dtype is f32:
        return _left_of_zero(x, _digamma_f32(x), digamma)
    low = x.lt(0.5)
    y = pick(low, 1.0 - x, x)
    top, bottom = y.const(0.0), y.const(1.0)
    for _ in range(10):
        small = y.lt(10.0)
        top = pick(small, top.fma(y, bottom), top)
        bottom = pick(small, bottom * y, bottom)
        y = pick(small, y + 1.0, y)
    z = 1.0 / (y * y)
    out = (log(y) - 0.5 / y) - z.fma(horner(z, DIGAMMA), top / bottom)
    out = pick(low, out - math.pi * cot_pi(x), out)
    out = pick(x.lt(0.0) & x.eq(x.floor()), NAN, out)
    out = pick(x.eq(0.0), x.const(INF).copysign(-x), out)
    return pick(x.eq(INF), x, out)


def _zeta_sum(n: int, y: Num, steps: int, factor: float) -> Num:
    """factor sum 1 / (y + k)^(n + 1) over all k >= 0: Hurwitz's zeta by recurrence and Euler-Maclaurin."""

    def over_power(inverse: Num, n: int) -> Num:
        out = inverse * factor  # first, so that the product does not underflow before the result does
        for _ in range(n - 1):
            out = out * inverse
        return out

    total = y.const(0.0)
    for _ in range(steps):
        small = y.lt(float(steps))
        total = pick(small, total + over_power(1.0 / y, n + 1), total)
        y = pick(small, y + 1.0, y)
    inverse = 1.0 / y
    z = inverse * inverse
    rising, series = n + 1.0, []
    for k, b in enumerate(BERNOULLI, 1):
        series.append(rising * b / math.factorial(2 * k))
        rising *= (n + 2.0 * k) * (n + 2.0 * k + 1.0)
    tail = over_power(inverse, n) * (1.0 / n + 0.5 * inverse)
    return total + over_power(inverse, n + 2).fma(horner(z, series), tail)


def polygamma(n: int, x: Num) -> Num:
    """The n-th derivative of digamma, n >= 1. In f64 where x is negative, or n so large that n + 1 roundings
    of a power count.
    """
    sign = 1.0 if n % 2 else -1.0
    factorial = float(math.factorial(n))
    if x.dtype is f32 and n > 4:
        return polygamma(n, x.to(f64)).to(f32)
    if x.dtype is f32:
        out = pick(x.lt(INF), _zeta_sum(n, x, n + 4, factorial) * sign, 0.0)
        out = pick(x.eq(0.0), INF if n % 2 else NAN, pick(x.eq(x), out, x))
        return _left_of_zero(x, out, lambda x: polygamma(n, x))
    low = x.lt(0.5)
    out = _zeta_sum(n, pick(low, 1.0 - x, x), n + 12, factorial) * sign
    reflected = horner(cot_pi(x), [float(c) for c in cot_derivative(n)]) * math.pi ** (n + 1)
    out = pick(low, -sign * out - reflected, out)
    out = pick(x.le(0.0) & x.eq(x.floor()), INF if n % 2 else NAN, out)
    return pick(x.eq(INF), 0.0, out)


def cot_derivative(n: int) -> list[int]:
    """Coefficients of P with d^n/dt^n cot(t) = P(cot(t)), by P' = -(1 + c^2) dP/dc."""
    p = [0, 1]
    for _ in range(n):
        d = [k * p[k] for k in range(1, len(p))]
        p = [0] * (len(d) + 2)
        for k, c in enumerate(d):
            p[k] -= c
            p[k + 2] -= c
    return p
