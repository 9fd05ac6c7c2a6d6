"""Reciprocal square root and the exact remainder."""

from __future__ import annotations

from weft.ir.scalarexpr import Num, pick
from weft.ir.types import f32, f64

NAN, INF = float("nan"), float("inf")


def rsqrt(x: Num) -> Num:
    return 1.0 / x.sqrt()


def _step(r: Num, divisor: Num) -> Num:
    """r mod divisor for r / divisor below 2^52 or so: the quotient may be one too large, the fma is exact."""
    out = (-(r / divisor).trunc()).fma(divisor, r)
    return pick(out.lt(0.0), out + divisor, out)


def _long_division(a: Num, b: Num) -> Num:
    """a mod b for any finite a >= 0, b > 0: fifty bits of the quotient at a time."""
    top = 2050 if a.dtype is f64 else 0
    if a.dtype is f32:
        return _long_division_f32(a.to(f64), b.to(f64)).to(f32)
    for shift in range(top, -1, -50):
        divisor = b
        left = shift
        while left:
            part = min(left, 1000)
            divisor, left = divisor * 2.0**part, left - part
        a = pick(divisor.lt(INF), _step(a, divisor), a)
    return a


def _long_division_f32(a: Num, b: Num) -> Num:
    for shift in range(250, -1, -50):
        a = _step(a, b * 2.0**shift)
    return a


def fmod(x: Num, y: Num) -> Num:
    """x - trunc(x / y) y, exactly, with the sign of x (C's fmod)."""
    a, b = abs(x), abs(y)
    many = a.ge(b * (2.0**23 if x.dtype is f32 else 2.0**52))

    def slow() -> tuple[object]:
        return (_long_division(a, b).h,)

    (out_h,) = x.b.rare(many.h, (_step(a, b).h,), slow)
    out = pick(b.eq(INF), a, Num(x.b, out_h))
    bad = a.eq(INF) | b.eq(0.0) | y.ne(y)
    return pick(bad, NAN, out).copysign(x)
