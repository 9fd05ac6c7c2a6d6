"""Powers of f32, f64 and integers, over the base vocabulary.

a^y is 2^(y log2 a), with the logarithm as the unevaluated sum of two numbers: an error in it is multiplied by
the exponent.
"""

from __future__ import annotations

from weft.ir import math_tables as tables
from weft.ir.math_exponential import (
    EXP2_RANGE,
    EXP_RANGE,
    INF,
    LN2,
    NAN,
    exp_poly,
    reduce_exp,
    split_any,
)
from weft.ir.scalarexpr import (
    BIAS,
    MANTISSA,
    SIGNED,
    UNSIGNED,
    Num,
    fast_two_sum,
    horner,
    pick,
    two_product,
    two_sum,
)
from weft.ir.types import f32, f64

# (log((1+s)/(1-s))/s - 2 - 2/3 s^2) / s^4 in s^2
LOG_DD = (
    0.4,
    0.2857142857142149,
    0.2222222222592315,
    0.18181817444610288,
    0.1538468757122249,
    0.13329485691017276,
    0.11878923001054906,
    0.0873713046777628,
    0.21488926888262588,
)
SIGNED_MIN = {dt: -(1 << (SIGNED[dt].bits - 1)) for dt in UNSIGNED}


def _pow_f32(a: Num, y: Num) -> Num:
    """a^y for a >= 0, to 0.6 ULP."""
    log, log_low = tables.log2_double(a)
    t = y * log
    # beyond the exponents of f32 the lower part is noise, or NaN where t is infinite
    t_low = pick(abs(t).lt(200.0), y.fma(log_low, y.fma(log, -t)), 0.0)
    low, high = EXP2_RANGE[f32]
    p, n = tables.exp2_sum_parts(t.at_least(low).at_most(high), t_low)
    return Num(a.b, a.b.scale2(p.h, n.h))


def _log_double(a: Num) -> tuple[Num, Num]:
    """log(a) of a positive f64 as an unevaluated sum, to about 2^-66 relative."""
    e, f = split_any(a)
    g, g_low = fast_two_sum(f.const(2.0), f)
    s = f / g
    s_low = ((-s).fma(g, f) - s * g_low) / g
    z, z_low = two_product(s, s)
    z_low = s.fma(s_low + s_low, z_low)
    # u = z (2/3 + z q)
    t, t_low = fast_two_sum(f.const(0.6666666666666666), z * horner(z, LOG_DD))
    t_low = t_low + 3.700743415417188e-17
    u, u_low = two_product(z, t)
    u_low = u_low + z.fma(t_low, z_low * t)
    w, w_low = fast_two_sum(f.const(2.0), u)
    w_low = w_low + u_low
    p, p_low = two_product(s, w)
    p_low = p_low + s.fma(w_low, s_low * w)
    hi, lo = LN2[f64]
    k, k_low = two_product(e, e.const(hi))
    total, error = two_sum(k, p)
    return fast_two_sum(total, error + (e.fma(lo, k_low) + p_low))


def _pow_f64(a: Num, y: Num) -> Num:
    log, log_low = _log_double(a)
    log = pick(a.eq(0.0), -INF, pick(a.lt(INF), log, a))
    t = y * log
    inside = abs(t).lt(800.0)
    t_low = pick(inside, y.fma(log, -t) + y * log_low, 0.0)
    low, high = EXP_RANGE[f64]
    n, r = reduce_exp(t.at_least(low).at_most(high))
    return Num(a.b, a.b.scale2(exp_poly(r + t_low).h, n.h))


def _special(x: Num, y: Num, out: Num) -> Num:
    """x^y, given |x|^y: negative bases, and exponents that make even NaN a one."""
    a = abs(x)
    half = y * 0.5
    whole, odd = y.eq(y.trunc()), half.ne(half.trunc())
    # a one to any power is one; so is anything to the power zero, NaN too
    out = pick(a.eq(1.0), pick(y.eq(y), 1.0, y), out)
    sign_bit = x.bits() & SIGNED_MIN[x.dtype]
    out = (out.bits() ^ pick(whole & odd, sign_bit, 0)).as_float()
    out = pick(x.lt(0.0) & x.gt(-INF) & ~whole, NAN, out)
    return pick(x.eq(1.0) | y.eq(0.0), 1.0, out)


def pow(x: Num, y: Num) -> Num:
    dt = x.dtype
    out = (_pow_f32 if dt is f32 else _pow_f64)(abs(x), y)
    least, most = 1 << MANTISSA[dt], (2 * BIAS[dt] + 1) << MANTISSA[dt]
    # unsigned: not a positive normal number; y - y is NaN where y is not finite
    unusual = (x.bits(signed=False) - least).ge(most - least) | (y - y).ne(0.0)

    def slow() -> tuple[object]:
        return (_special(x, y, out).h,)

    return Num(x.b, x.b.rare(unusual.h, (out.h,), slow)[0])


def int_pow(x: Num, n: Num) -> Num:
    """Integer power by squaring; wraps. A negative exponent gives 0, but for the bases 1 and -1."""
    dt = n.dtype
    one = x.const(1)
    out, base, left = one, x, n
    for _ in range(dt.bits - (1 if dt.is_signed else 0)):
        out = pick((left & 1).ne(0), out * base, out)
        base, left = base * base, left >> 1
    if not dt.is_signed:
        return out
    parity = pick((n & 1).ne(0), x, one)
    unit = x.eq(1) | x.eq(-1)
    return pick(n.lt(0), pick(unit, parity, 0), out)
