"""Error functions and the gamma family, for f32 and f64, over the base vocabulary."""

from __future__ import annotations

import math

from weft.ir import math_tables as tables
from weft.ir.math_exponential import INF, NAN, exp, exp_poly, log, reduce_exp
from weft.ir.math_trig import cot_pi, sin_pi_magnitude
from weft.ir.scalarexpr import Num, horner, pick
from weft.ir.types import f32, f64

# erf(x)/x in x^2 on |x| <= 1
ERF_F64 = (
    1.1283791670955126,
    -0.3761263890318332,
    0.11283791670934933,
    -0.0268661706414193,
    0.005223977590091451,
    -0.0008548325032004353,
    0.00012055261680908114,
    -1.4923965019353023e-05,
    1.6435439962340409e-06,
    -1.6085386256592221e-07,
    1.2917184083756608e-08,
    -4.784152766163745e-10,
    -4.947773158244161e-11,
)
# exp(x^2) erfc(x) (1 + 2x) in t = (x - 4)/(x + 4), 0 <= x <= 28
ERFC = (
    1.2329951186255526,
    -0.1396211168405629,
    0.015379652102619762,
    0.0680970542547366,
    -0.10103906603630111,
    0.09373283499682389,
    -0.06633036581256459,
    0.03716751556185094,
    -0.01619773404841855,
    0.005031969763585606,
    -0.0007577734048873249,
    -0.00019925556135237817,
    0.00015062247162059842,
    -2.4402941231398412e-05,
    -1.1225283028146484e-05,
    5.717294747469443e-06,
    3.019561845592814e-07,
    -8.342399012682632e-07,
    6.23894558743626e-08,
    1.1456107288498833e-07,
    -7.779112188522125e-09,
    -1.3386234901409443e-08,
    -1.7175868338668363e-09,
)
# erfinv(x)/x in w = -log(1 - x^2) up to 6, and in sqrt(w) up to w = 37; about 2^-28
ERFINV_LOW = (
    0.8862269277938704,
    0.23201354158634085,
    0.01155042484634454,
    -0.0023387157588123245,
    -0.00012191613777259169,
    4.0606945075387364e-05,
    5.640441142204888e-06,
    -2.3760637544901606e-06,
    2.685423323309494e-07,
    -9.206858425021518e-09,
    -4.85956896193708e-10,
    3.5315891089226125e-11,
)
ERFINV_HIGH = (
    -3.384382717807858,
    15.492731674175163,
    -24.388062474684066,
    22.675163621737767,
    -13.496625373552595,
    5.516723468440102,
    -1.6031577777011057,
    0.3356326400838367,
    -0.05042576905179101,
    0.005315326282702576,
    -0.0003737904471944482,
    1.576607277067597e-05,
    -3.0193261213860514e-07,
)
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

HALF_SQRT_PI = math.sqrt(math.pi) / 2
BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6)


def _erf_near(x: Num) -> Num:
    return x * horner(x * x, ERF_F64)


def _erfc_parts(a: Num) -> Num:
    """erfc(a) for 0 <= a, f64."""
    a = a.at_most(28.0)
    g = horner((a - 4.0) / (a + 4.0), ERFC) / (1.0 + 2.0 * a)
    s = a * a
    low = a.fma(a, -s)
    n, r = reduce_exp(-s)
    return Num(a.b, a.b.scale2((exp_poly(r - low) * g).h, n.h))


def erfc(x: Num) -> Num:
    if x.dtype is f32:
        return erfc(x.to(f64)).to(f32)
    a = abs(x)
    out = _erfc_parts(a)
    return pick(a.lt(0.5), 1.0 - _erf_near(x), pick(x.lt(0.0), 2.0 - out, out))


def erf(x: Num) -> Num:
    if x.dtype is f32:
        return tables.erf(x)
    a = abs(x)
    return pick(a.lt(1.0), _erf_near(x), (1.0 - _erfc_parts(a)).copysign(x))


def erfinv(x: Num) -> Num:
    """A polynomial in log(1 - x^2) (after M. Giles, 2010); for f64 one step of Halley's method on it."""
    if x.dtype is f32:
        return _erfinv_start(x.to(f64)).to(f32)
    a = abs(x)
    y = _erfinv_start(a)
    error = pick(a.lt(0.5), erf(y) - a, (1.0 - a) - _erfc_parts(y))
    u = error * HALF_SQRT_PI * exp(y * y)
    better = y - u / (1.0 + y * u)
    return pick(a.lt(2.0**-30), x * HALF_SQRT_PI, pick(a.lt(1.0), better, y).copysign(x))


def _erfinv_start(x: Num) -> Num:
    w = -log((1.0 - x) * (1.0 + x))
    s = w.sqrt()
    scale = pick(w.lt(6.0), horner(w, ERFINV_LOW), horner(s.at_most(6.1), ERFINV_HIGH))
    return x * pick(w.eq(INF), w, scale)


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
    series = horner(z, STIRLING) / x + 0.9189385332046728
    far = (x - 0.5).fma(logs - 1.0, series - 0.5)
    return pick(small, near, pick(x.lt(1e305), far, x * (logs - 1.0)))


def lgamma(x: Num) -> Num:
    """log |gamma(x)|; inf at 0, -1, -2 ... and at both infinities."""
    if x.dtype is f32:
        return lgamma(x.to(f64)).to(f32)
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
        return digamma(x.to(f64)).to(f32)
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


def polygamma(n: int, x: Num) -> Num:
    """The n-th derivative of digamma, n >= 1: Hurwitz's zeta by recurrence and Euler-Maclaurin."""
    if x.dtype is f32:
        return polygamma(n, x.to(f64)).to(f32)
    sign = 1.0 if n % 2 else -1.0
    low = x.lt(0.5)
    y = pick(low, 1.0 - x, x)
    total = y.const(0.0)
    for _ in range(n + 12):
        small = y.lt(n + 12.0)
        total = pick(small, total + _power(1.0 / y, n + 1), total)
        y = pick(small, y + 1.0, y)
    inverse = 1.0 / y
    total = total + _power(inverse, n) * (1.0 / n + 0.5 * inverse)
    z = inverse * inverse
    factor, series = n + 1.0, []
    for k, b in enumerate(BERNOULLI, 1):
        series.append(factor * b / math.factorial(2 * k))
        factor *= (n + 2.0 * k) * (n + 2.0 * k + 1.0)
    total = _power(inverse, n + 2).fma(horner(z, series), total)
    out = total * (sign * math.factorial(n))
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


def _power(x: Num, n: int) -> Num:
    out = x
    for _ in range(n - 1):
        out = out * x
    return out
