"""Trigonometric functions and their inverses, for f32 and f64, over the base vocabulary.

Arguments up to 2^17 (f32) or 2^30 (f64) are reduced by three products with parts of pi/2 (Cody and Waite;
with fma the first is exact). Larger ones take the exact product with the bits of 1/(2 pi) that matter
(Payne and Hanek, 1983).
"""

from __future__ import annotations

import math

from weft.ir.math_exponential import INF, NAN, ROUNDER
from weft.ir.scalarexpr import BIAS, MANTISSA, SIGNED, Num, horner, pick
from weft.ir.types import f32, f64, i64, u64

# pi/2 as a sum of three numbers of the working precision
PI_OVER_2 = {
    f32: (1.5707963705062866, -4.371138828673793e-08, -1.7151245100058819e-15),
    f64: (1.5707963267948966, 6.123233995736766e-17, -1.4973849048591698e-33),
}
TWO_OVER_PI = 2.0 / math.pi
REDUCTION_BOUND = {f32: 2.0**17, f64: 2.0**30}

# (sin(r)/r - 1) / r^2 and (cos(r) - 1 + r^2/2) / r^4 in r^2, |r| <= pi/4
SIN = {
    f32: (
        -0.16666653752326965,
        0.008332106284797192,
        -0.0001950782025232911,
    ),
    f64: (
        -0.16666666666666627,
        0.008333333333321069,
        -0.00019841269828697978,
        2.7557313298396927e-06,
        -2.5050695430001417e-08,
        1.5893109643691442e-10,
    ),
}
COS = {
    f32: (
        0.04166664555668831,
        -0.0013887297827750444,
        2.443007360852789e-05,
    ),
    f64: (
        0.04166666666666658,
        -0.001388888888887097,
        2.4801587287527967e-05,
        -2.7557313791557795e-07,
        2.0875647485312362e-09,
        -1.1355743459224416e-11,
    ),
}
# (asin(x)/x - 1) / x^2 in x^2, |x| <= 1/2; (atan(x)/x - 1) / x^2 in x^2, |x| <= 1
ASIN = {
    f32: (
        0.16666752099990845,
        0.07495306432247162,
        0.045469772070646286,
        0.02418077364563942,
        0.04216644912958145,
    ),
    f64: (
        0.16666666666665403,
        0.07500000000338528,
        0.04464285682700017,
        0.030381959194762782,
        0.022371756599424565,
        0.017359727529143398,
        0.01388500266187664,
        0.012170788181770423,
        0.006520963090348455,
        0.019547955544712243,
        -0.016255897982441782,
        0.031934450936266914,
    ),
}
ATAN = {
    f32: (
        -0.33333298563957214,
        0.1999852955341339,
        -0.1426401436328888,
        0.10950861126184464,
        -0.08399207144975662,
        0.057878825813531876,
        -0.03109343908727169,
        0.010866185650229454,
        -0.0017821162473410368,
    ),
    f64: (
        -0.3333333333333307,
        0.19999999999951762,
        -0.14285714282585665,
        0.11111111007170782,
        -0.09090907003188824,
        0.07692279820269474,
        -0.06666403774819626,
        0.05880525625834553,
        -0.05253507537460903,
        0.04722283422324841,
        -0.0421908028880363,
        0.03664008187931696,
        -0.029901413865593987,
        0.02198259577055085,
        -0.01389929848052256,
        0.007196330210965908,
        -0.0028852532083653137,
        0.0008316077514946017,
        -0.00015226288839438024,
        1.3239674399317974e-05,
    ),
}

# words of 32 bits of 1 / (2 pi), after one word of zeros
INVERSE_TWO_PI = (
    0x00000000, 0x28BE60DB, 0x9391054A, 0x7F09D5F4, 0x7D4D3770, 0x36D8A566, 0x4F10E410,
    0x7F9458EA, 0xF7AEF158, 0x6DC91B8E, 0x909374B8, 0x01924BBA, 0x82746487, 0x3F877AC7,
    0x2C4A69CF, 0xBA208D7D, 0x4BAED121, 0x3A671C09, 0xAD17DF90, 0x4E64758E, 0x60D4CE7D,
    0x272117E2, 0xEF7E4A0E, 0xC7FE25FF, 0xF7816603, 0xFBCBC462, 0xD6829B47, 0xDB4D9FB3,
    0xC9F2C26D, 0xD3D18FD9, 0xA797FA8B, 0x5D49EEB1, 0xFAF97C5E, 0xCF41CE7D, 0xE294A4BA,
    0x9AFED7EC, 0x47E35742, 0x1580CC11, 0xBF1EDAEA, 0xFC33EF08, 0x26BD0D87, 0x6A78E458,
    0x57B986C2, 0x19666157, 0xC5281A10,
)


def _window(words: list[Num], index: Num, count: int) -> list[Num]:
    """``words[index : index + count]``, by halving."""
    step = 1
    while step * 2 <= len(words) - count:
        step *= 2
    while step:
        keep = min(len(words), count + 2 * step - 1)
        take = (index & step).ne(0)
        shifted = [pick(take, words[min(i + step, len(words) - 1)], words[i]) for i in range(keep - step)]
        words = shifted + words[keep - step : keep] if step > 1 else shifted
        words = words[: count + step - 1]
        step //= 2
    return words


def _turns(a: Num) -> tuple[Num, list[Num]]:
    """a / (2 pi) mod 1 of a large a as words of 32 bits in u64, most significant first."""
    dt = a.dtype
    bits = a.bits(signed=False)
    mantissa = ((bits & ((1 << MANTISSA[dt]) - 1)) | (1 << MANTISSA[dt])).to(u64)
    # a = mantissa * 2^shift; the table starts 32 bits before the binary point
    shift = (bits >> MANTISSA[dt]).to(u64) - (BIAS[dt] + MANTISSA[dt] - 32)
    limbs = 1 if dt is f32 else 2
    count = 3 if dt is f32 else 6  # words of the product that are right, and enough
    largest = BIAS[dt] - MANTISSA[dt] + 32 + 1
    table = [shift.const(w) for w in INVERSE_TWO_PI[: largest // 32 + count + 2]]
    raw = _window(table, shift >> 5, count + 1)
    left = shift & 31
    words = [((raw[i] << left) | (raw[i + 1] >> (32 - left))) & 0xFFFFFFFF for i in range(count)]
    parts = [(mantissa >> (32 * k)) & 0xFFFFFFFF for k in range(limbs)]
    # schoolbook product modulo 2^(32 count), columns from the least significant
    out: list[Num] = []
    carry = mantissa.const(0)
    for column in range(count):
        low, high = carry, mantissa.const(0)
        for k, part in enumerate(parts):
            if column - k >= 0:
                p = part * words[count - 1 - (column - k)]
                low, high = low + (p & 0xFFFFFFFF), high + (p >> 32)
        out.append(low & 0xFFFFFFFF)
        carry = high + (low >> 32)
    return mantissa, out[::-1]


def _reduce_huge(a: Num) -> tuple[Num, Num]:
    """Quadrant (as an integer) and remainder of a large a; NaN for inf."""
    dt = a.dtype
    _, w = _turns(a)
    top = (w[0] << 32) | w[1]
    # to the nearest quarter: the two highest bits of the rounded fraction
    quadrant = (top + (1 << 61)) >> 62
    head = (top - (quadrant << 62)).to(i64)  # a signed fraction: 2^64 is one turn
    if dt is f32:
        # two bits more from the third word: at most 34 of the 62 bits are zeros
        signed = (head << 2) | (w[2] >> 30).to(i64)
        r = (signed.to(f64) * (math.pi / 2 * 2.0**-64)).to(f32)
    else:
        rest = (w[2] << 32) | w[3]
        high = (head >> 10 << 10).to(f64) * 2.0**64
        low = (((head & 1023).to(u64) << 54) | (rest >> 10)).to(f64) * 2.0**10
        r = (high + low) * (math.pi * 2.0 * 2.0**-128)
    return quadrant.to(SIGNED[dt]), pick(a.lt(INF), r, NAN)


def _reduce_usual(a: Num) -> tuple[Num, Num]:
    dt = a.dtype
    t = a.fma(TWO_OVER_PI, ROUNDER[dt])
    n = t - ROUNDER[dt]
    first, second, third = PI_OVER_2[dt]
    r = n.fma(-third, n.fma(-second, n.fma(-first, a)))
    return t.bits(), r


def reduce(a: Num) -> tuple[Num, Num]:
    """Quadrant q (its two low bits count) and r with a = q pi/2 + r, |r| <= pi/4, for a >= 0."""
    q, r = _reduce_usual(a)
    huge = a.gt(REDUCTION_BOUND[a.dtype])

    def slow() -> tuple[object, object]:
        q, r = _reduce_huge(a)
        return q.h, r.h

    q_h, r_h = a.b.rare(huge.h, (q.h, r.h), slow)
    return Num(a.b, q_h), Num(a.b, r_h)


def sin_poly(r: Num) -> Num:
    z = r * r
    return (r * z).fma(horner(z, SIN[r.dtype]), r)


def cos_poly(r: Num) -> Num:
    z = r * r
    return (z * z).fma(horner(z, COS[r.dtype]), z.fma(-0.5, 1.0))


def _flip(x: Num, sign: Num) -> Num:
    """x with its sign changed where the sign bit of the integer ``sign`` is set."""
    return (x.bits() ^ sign).as_float()


def _sign_bit(q: Num) -> Num:
    """Bit 1 of a quadrant in the place of the sign."""
    width = q.dtype.bits
    return (q << (width - 2)) & -(1 << (width - 1))


def _sign_of(x: Num) -> Num:
    bits = x.bits()
    return bits & -(1 << (bits.dtype.bits - 1))


def sin(x: Num) -> Num:
    q, r = reduce(abs(x))
    out = pick((q & 1).ne(0), cos_poly(r), sin_poly(r))
    return _flip(out, _sign_bit(q) ^ _sign_of(x))


def cos(x: Num) -> Num:
    q, r = reduce(abs(x))
    out = pick((q & 1).ne(0), sin_poly(r), cos_poly(r))
    return _flip(out, _sign_bit(q + 1))


def tan(x: Num) -> Num:
    q, r = reduce(abs(x))
    s, c = sin_poly(r), cos_poly(r)
    odd = (q & 1).ne(0)
    return _flip(pick(odd, -c, s) / pick(odd, s, c), _sign_of(x))


def _asin_poly(s: Num, z: Num) -> Num:
    return (s * z).fma(horner(z, ASIN[s.dtype]), s)


def asin(x: Num) -> Num:
    a = abs(x)
    big = a.gt(0.5)
    z = pick(big, (1.0 - a) * 0.5, a * a)
    t = _asin_poly(pick(big, z.sqrt(), a), z)
    hi, lo, _ = PI_OVER_2[x.dtype]
    return pick(big, (hi - (t + t)) + lo, t).copysign(x)


def acos(x: Num) -> Num:
    a = abs(x)
    big = a.gt(0.5)
    z = pick(big, (1.0 - a) * 0.5, a * a)
    t = _asin_poly(pick(big, z.sqrt(), x), z)
    twice = t + t
    hi, lo, _ = PI_OVER_2[x.dtype]
    far = pick(x.lt(0.0), (2.0 * hi - twice) + 2.0 * lo, twice)
    return pick(big, far, (hi - t) + lo)


def _atan_poly(q: Num) -> Num:
    z = q * q
    return (q * z).fma(horner(z, ATAN[q.dtype]), q)


def atan(x: Num) -> Num:
    a = abs(x)
    big = a.gt(1.0)
    t = _atan_poly(pick(big, 1.0 / a, a))
    hi, lo, _ = PI_OVER_2[x.dtype]
    return pick(big, (hi - t) + lo, t).copysign(x)


def atan2(y: Num, x: Num) -> Num:
    a, b = abs(y), abs(x)
    steep = a.gt(b)
    q = pick(steep, b, a) / pick(steep, a, b)
    q = pick(a.eq(b), pick(a.eq(0.0), q.const(0.0), 1.0), q)
    t = _atan_poly(q)
    hi, lo, _ = PI_OVER_2[y.dtype]
    t = pick(steep, (hi - t) + lo, t)
    t = pick(x.bits().lt(0), (2.0 * hi - t) + 2.0 * lo, t)
    return t.copysign(y)


def cot_pi(x: Num) -> Num:
    """cot(pi x)."""
    q = (x * 2.0).rint()
    r = q.fma(-0.5, x) * math.pi
    s, c = sin_poly(r), cos_poly(r)
    odd = (q * 0.5).ne((q * 0.5).trunc())
    return pick(odd, -s, c) / pick(odd, c, s)


def sin_pi_magnitude(x: Num) -> Num:
    """|sin(pi x)|."""
    q = (x * 2.0).rint()
    r = q.fma(-0.5, x) * math.pi
    odd = (q * 0.5).ne((q * 0.5).trunc())
    return abs(pick(odd, cos_poly(r), sin_poly(r)))


