"""Exponentials, logarithms, hyperbolic functions and powers of f32 and f64, over the base vocabulary.

Cody-Waite range reduction with fma and minimax polynomials (Remez exchange, coefficients rounded to the
working precision); the usual functions of f32 go through the tables of :mod:`weft.ir.math_tables`. No
branches: one path serves all elements of a vector, special values are selected at the end.
"""

from __future__ import annotations

import math

from weft.ir import math_tables as tables
from weft.ir.scalarexpr import (
    BIAS,
    MANTISSA,
    Num,
    fast_two_sum,
    horner,
    pick,
    two_product,
    two_sum,
)
from weft.ir.types import DType, f32, f64

INF, NAN = math.inf, math.nan

# ln 2 as a sum of two numbers of the working precision
LN2 = {
    f32: (0.6931471824645996, -1.9046542121259336e-09),
    f64: (0.6931471805599453, 2.3190468138462996e-17),
}
LOG2E = 1.4426950408889634
# log2(e) likewise, for f64
LOG2E_PARTS = (1.4426950408889634, 2.0355273740931033e-17)
# adding and taking away 1.5 * 2^mantissa rounds to an integer, and leaves it in the low bits
ROUNDER = {f32: 1.5 * 2.0**23, f64: 1.5 * 2.0**52}

# (exp(r) - 1 - r) / r^2 on |r| <= ln2/2, best for exp (f64) and best for expm1
EXP = (
    0.5000000000000012,
    0.1666666666666613,
    0.04166666666651132,
    0.008333333333445384,
    0.001388888895095612,
    0.00019841269965805602,
    2.4801483335111855e-05,
    2.7556940686695213e-06,
    2.7634342042049237e-07,
    2.5261836256185187e-08,
)
EXPM1 = {
    f32: (
        0.4999999701976776,
        0.16666534543037415,
        0.04166771471500397,
        0.008367720060050488,
        0.001384137780405581,
    ),
    f64: (
        0.5,
        0.1666666666666668,
        0.04166666666666672,
        0.008333333333318923,
        0.0013888888888842117,
        0.00019841269893434448,
        2.4801587429575217e-05,
        2.755723654406975e-06,
        2.75571728665518e-07,
        2.5111791854011896e-08,
        2.0948272055425918e-09,
    ),
}
# (2^r - 1) / r on |r| <= 1/2
EXP2 = (
    0.6931471805599453,
    0.24022650695910072,
    0.05550410866482416,
    0.009618129107628416,
    0.0013333558145624926,
    0.00015403530392724582,
    1.5252734870974276e-05,
    1.3215487873080799e-06,
    1.0177399105315145e-07,
    7.054330594506144e-09,
    4.657538674179149e-10,
    2.6713189663629938e-11,
    -2.378244250819816e-11,
)
EXP2_SHORT = (  # the same in f32
    0.6931471824645996,
    0.24022594094276428,
    0.055503662675619125,
    0.00962543673813343,
    0.0013387887738645077,
    0.0001333514228463173,
)
# (log(1+f) - f + f^2/2) / f^3 on |f| <= 1/3
LOG_F32 = (
    0.3333321511745453,
    -0.24999795854091644,
    0.2001039832830429,
    -0.16680534183979034,
    0.14005954563617706,
    -0.12183673679828644,
    0.13984158635139465,
    -0.1289399117231369,
)
# (log((1+s)/(1-s))/s - 2) / s^2 as a polynomial in s^2, |s| <= 1/5
LOG_F64 = (
    0.6666666666666666,
    0.4000000000000857,
    0.2857142856699808,
    0.2222222309409636,
    0.18181734072904132,
    0.15389008416721806,
    0.13206966973925782,
    0.13629909431046372,
)
EXP_RANGE = {f32: (-104.0, 89.0), f64: (-746.0, 710.0)}
EXP2_RANGE = {f32: (-151.0, 129.0), f64: (-1076.0, 1025.0)}


def reduce_exp(x: Num) -> tuple[Num, Num]:
    """n and r with x = n ln2 + r, |r| <= ln2/2, n an integral float."""
    magic = ROUNDER[x.dtype]
    hi, lo = LN2[x.dtype]
    n = x.fma(LOG2E, magic) - magic
    return n, n.fma(-lo, n.fma(-hi, x))


def exp_poly(r: Num) -> Num:
    """exp(r) of f64, |r| <= ln2/2."""
    return (r * r).fma(horner(r, EXP), r) + 1.0


def power_of_two(n: Num) -> Num:
    """2^n for an integral float n within the exponents of normal numbers."""
    dt = n.dtype
    t = n + (ROUNDER[dt] + BIAS[dt])
    return (t.bits() << MANTISSA[dt]).as_float()


def scale2(p: Num, n: Num) -> Num:
    """p * 2^floor(n) rounded once, n a multiple of 1/16, |n| <= 2 * (bias - 1): by two powers of two."""
    dt = p.dtype
    t = (n + (ROUNDER[dt] / 16 + 2 * BIAS[dt])).bits() >> 4
    # the low bits of t hold floor(n) + 2 bias; the shifts push its other bits out
    half = t >> 1
    first, second = half << MANTISSA[dt], (t - half) << MANTISSA[dt]
    return p * first.as_float() * second.as_float()


def _scale(p: Num, n: Num) -> Num:
    return Num(p.b, p.b.scale2(p.h, n.h))


def exp(x: Num) -> Num:
    low, high = EXP_RANGE[x.dtype]
    return _scale(*exp_parts(x.at_least(low).at_most(high)))


def exp_parts(x: Num) -> tuple[Num, Num]:
    """p and n with exp(x) = p 2^floor(n)."""
    if x.dtype is f32:
        return tables.exp_parts(x)
    n, r = reduce_exp(x)
    return exp_poly(r), n


def exp2(x: Num) -> Num:
    low, high = EXP2_RANGE[x.dtype]
    x = x.at_least(low).at_most(high)
    if x.dtype is f32:
        return _scale(*tables.exp2_parts(x))
    magic = ROUNDER[x.dtype]
    n = (x + magic) - magic
    r = x - n
    return _scale(r.fma(horner(r, EXP2), 1.0), n)


def exp2_flushed(x: Num) -> Num:
    """2^x of an x of at most 0 (or hardly more): what lies below the smallest normal number is 0."""
    bias, shift = BIAS[x.dtype], MANTISSA[x.dtype]
    x = x.at_least(-float(bias))
    t = x + (ROUNDER[x.dtype] + bias)
    r = x - (t - (ROUNDER[x.dtype] + bias))
    return r.fma(horner(r, EXP2_SHORT if x.dtype is f32 else EXP2), 1.0) * (t.bits() << shift).as_float()


def expm1(x: Num) -> Num:
    dt = x.dtype
    y = x.at_least(-60.0).at_most(EXP_RANGE[dt][1])
    hi, lo = LN2[dt]
    n = y.fma(LOG2E, ROUNDER[dt]) - ROUNDER[dt]
    head = n.fma(-hi, y)
    r = n.fma(-lo, head)
    tail = n.fma(-lo, head - r)
    p = r + (r * r).fma(horner(r, EXPM1[dt]), tail)
    half = power_of_two(n - 1.0)
    whole = half.fma(p, half - 0.5)
    return pick(n.eq(0.0), p, whole + whole).copysign(x)


def _split_offset(dt: DType) -> tuple[int, int, int]:
    """Bits of 1.0 and of 2/3, and the mask of the mantissa."""
    if dt is f32:
        return 0x3F800000, 0x3F2AAAAB, 0x7FFFFF
    return 0x3FF0 << 48, 0x3FE5555555555555, (1 << 52) - 1


def _exponent(u: Num, dt: DType) -> Num:
    """The exponent field of the shifted bits ``u`` as a float, less the bias."""
    magic = ROUNDER[dt]
    raw = (u >> MANTISSA[dt]) | (0x4B400000 if dt is f32 else 0x4338 << 48)
    return raw.as_float() - (magic + BIAS[dt])


def split(x: Num) -> tuple[Num, Num]:
    """e and f with x = 2^e (1 + f), f in [-1/3, 1/3), e an integral float; x positive and normal."""
    one, two_thirds, mask = _split_offset(x.dtype)
    u = x.bits(signed=False) + (one - two_thirds)
    m = ((u & mask) + two_thirds).as_float()
    return _exponent(u, x.dtype), m - 1.0


def split_any(x: Num) -> tuple[Num, Num]:
    """:func:`split` for subnormal x too."""
    shift = MANTISSA[x.dtype] + 1
    tiny = x.lt(2.0 ** (1 - BIAS[x.dtype]))
    e, f = split(pick(tiny, x * 2.0**shift, x))
    return pick(tiny, e - float(shift), e), f


def log_series(f: Num) -> tuple[Num, Num]:
    """log(1 + f) as the sum of two numbers, the first of them f."""
    if f.dtype is f32:
        return f, (f * f) * f.fma(horner(f, LOG_F32), -0.5)
    s = f / (f + 2.0)
    z = s * s
    half_square = f * f * 0.5
    return f, s * (half_square + z * horner(z, LOG_F64)) - half_square


def log_of(e: Num, f: Num) -> Num:
    """e ln2 + log(1 + f)."""
    hi, lo = LN2[f.dtype]
    head, tail = log_series(f)
    return e.fma(hi, head + e.fma(lo, tail))


def at_the_edge(x: Num, edge: float, out: Num) -> Num:
    """The special values of a logarithm: NaN below the edge, -inf at it, inf at inf."""
    return pick(x.gt(edge), pick(x.lt(INF), out, x), pick(x.eq(edge), -INF, NAN * x))


def log(x: Num) -> Num:
    if x.dtype is f32:
        return tables.log(x)
    return at_the_edge(x, 0.0, log_of(*split_any(x)))


def log2(x: Num) -> Num:
    if x.dtype is f32:
        return tables.log2(x)
    e, f = split_any(x)
    hi, lo = LOG2E_PARTS
    head, tail = fast_two_sum(*log_series(f))
    p, rest = two_product(head, head.const(hi))
    rest = rest + head.fma(lo, tail * hi)
    total, error = two_sum(e, p)
    return at_the_edge(x, 0.0, total + (error + rest))


def normalise(x: Num) -> tuple[Num, Num]:
    """e and m with x = m 2^e, 1 <= m < 2, e an integral float.

    0 gives -inf and 1, infinity inf and 1; below 0, and for NaN, m is NaN.
    """
    dt = x.dtype
    least = 1 << MANTISSA[dt]
    most = (2 * BIAS[dt] + 1) << MANTISSA[dt]
    unusual = (x.bits(signed=False) - least).ge(most - least)  # unsigned: not a positive normal number

    def parts(x: Num) -> tuple[Num, Num]:
        bits = x.bits(signed=False)
        return _exponent(bits, dt), ((bits & (least - 1)) | (BIAS[dt] << MANTISSA[dt])).as_float()

    def slow() -> tuple[object, object]:
        shift = MANTISSA[dt] + 1
        e, m = parts(x * 2.0**shift)
        e = pick(x.lt(2.0 ** (1 - BIAS[dt])), pick(x.eq(0.0), -INF, e - float(shift)), INF)
        return e.h, pick(x.ge(0.0), pick(x.eq(0.0) | x.eq(INF), 1.0, m), NAN).h

    e, m = parts(x)
    e_h, m_h = x.b.rare(unusual.h, (e.h, m.h), slow)
    return Num(x.b, e_h), Num(x.b, m_h)


def log1p(x: Num) -> Num:
    dt = x.dtype
    if dt is f32:
        return at_the_edge(x, -1.0, tables.log1p(x)).copysign(x)
    one, two_thirds, mask = _split_offset(dt)
    u = (x + 1.0).bits(signed=False) + (one - two_thirds)
    e = _exponent(u, dt)
    shift = (u & ~mask & ((1 << dt.bits) - 1)) - one  # e in the exponent's place
    scaled = (x.bits(signed=False) - shift).as_float()  # x / 2^e
    four = 0x40800000 if dt is f32 else 0x4010 << 48
    quarter = (u.const(four) - shift).as_float()  # 4 / 2^e, which does not underflow
    f = pick(e.eq(0.0), x, scaled + quarter.fma(0.25, -1.0))
    return at_the_edge(x, -1.0, log_of(e, f)).copysign(x)
