"""Error functions of f32 and f64, over the base vocabulary."""

from __future__ import annotations

import math

from weft.ir import math_pieces
from weft.ir import math_tables as tables
from weft.ir.math_exponential import INF, exp, exp_poly, log, reduce_exp
from weft.ir.scalarexpr import Num, horner, pick
from weft.ir.types import f32

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

HALF_SQRT_PI = math.sqrt(math.pi) / 2


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
    a = abs(x)
    if x.dtype is f32:
        out = math_pieces.erfc(a)
        return pick(x.lt(0.0), 2.0 - out, out)
    out = _erfc_parts(a)
    return pick(a.lt(0.5), 1.0 - _erf_near(x), pick(x.lt(0.0), 2.0 - out, out))


def erf(x: Num) -> Num:
    if x.dtype is f32:
        return tables.erf(x)
    a = abs(x)
    return pick(a.lt(1.0), _erf_near(x), (1.0 - _erfc_parts(a)).copysign(x))


def erfinv(x: Num) -> Num:
    """Polynomials in log(1 - x^2) (after M. Giles, 2010); for f64 one step of Halley's method on them."""
    if x.dtype is f32:
        w = -log((-x).fma(x, 1.0))
        return x * pick(w.eq(INF), w, math_pieces.erfinv_scale(w))
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
