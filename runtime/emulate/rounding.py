"""Sums, products, quotients and roots of numpy floats, rounded as an instruction asks: rn, rz, rm or rp.

Numpy rounds to nearest. Another mode takes that result and the sign of what it lost, and steps to the
neighbour where needed. f32 results lose nothing in f64 but in sums, where the error is known (Knuth).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from weft.ir.scalarnumpy import NumpyBuilder

Array = Any
_EXACT = NumpyBuilder()
_F32 = np.dtype(np.float32)
_F64 = np.dtype(np.float64)
_TINY = np.float64(2.0**-126)
_LOST = np.uint64(0x1FFFFFFF)
_HALFWAY = np.uint64(0x10000000)


def two_sum(x: Array, y: Array) -> tuple[Array, Array]:
    s = x + y
    t = s - x
    return s, (x - (s - t)) + (y - t)


def round_to_odd(s: Array, error: Array) -> Array:
    """The f64 sum s + error, truncated, its last bit set where that is inexact."""
    bits = np.ascontiguousarray(s).view(np.int64)
    lost = (error != 0) & np.isfinite(s) & (s != 0)
    towards_zero = (error < 0) != (s < 0)
    truncated = np.where(lost & towards_zero, bits - 1, bits)
    return np.where(lost, truncated | 1, bits).view(np.float64)


def step(rounded: Array, lost: Array, mode: str) -> Array:
    """The directed rounding of ``rounded + lost``: only the sign of ``lost`` matters."""
    up = {"rp": lost > 0, "rm": np.False_, "rz": (lost > 0) & (rounded < 0)}[mode]
    down = {"rp": np.False_, "rm": lost < 0, "rz": (lost < 0) & (rounded > 0)}[mode]
    t = rounded.dtype.type
    higher, lower = np.nextafter(rounded, t(np.inf)), np.nextafter(rounded, t(-np.inf))
    return np.where(up, higher, np.where(down, lower, rounded))


def narrow(exact: Array, mode: str = "rn", error: Array | None = None) -> Array:
    """An f64 value (or the sum exact + error) to f32."""
    if error is not None:
        exact = round_to_odd(exact, error)
    rounded = exact.astype(np.float32)
    if mode == "rn":
        return rounded
    stepped = step(rounded, exact - rounded.astype(np.float64), mode)
    return np.where(np.isfinite(exact), stepped, rounded)


def either(exact: Array, like: Array) -> Array:
    """An f64 value as one of its two neighbours among floats of ``like``, whose bits decide which: hardware
    that approximates does not always give the nearer one, and what is built on it must not need it."""
    rounded = exact.astype(like.dtype)
    if like.dtype != _F32:
        return rounded
    lost = exact - rounded
    beyond = np.where(lost > 0, np.inf, np.where(lost < 0, -np.inf, rounded)).astype(np.float32)
    hashed = np.ascontiguousarray(like).view(np.uint32) * np.uint32(2654435761)
    usual = np.isfinite(rounded) & (np.abs(rounded) > np.finfo(np.float32).tiny)
    return np.where(usual & (hashed >> 31 != 0), np.nextafter(rounded, beyond), rounded)


def _zero_sign(value: Array, opposite: Array, mode: str) -> Array:
    """Towards minus infinity the sum of opposite numbers is -0."""
    return np.where((value == 0) & opposite, -np.abs(value), value) if mode == "rm" else value


def add(a: Array, b: Array, mode: str) -> Array:
    if mode == "rn":
        return a + b
    if a.dtype == _F32:
        s, e = two_sum(a.astype(_F64), b.astype(_F64))
        value = narrow(s, mode, e)
    else:
        s, e = two_sum(a, b)
        value = _directed64(s, e, mode, np.isfinite(a) & np.isfinite(b))
    return _zero_sign(value, ~((a == 0) & (b == 0) & (np.signbit(a) == np.signbit(b))), mode)


def _directed64(value: Array, lost: Array, mode: str, finite: Array) -> Array:
    overflow = np.isinf(value) & finite
    lost = np.where(overflow, -value, lost)
    return np.where(finite, step(value, lost, mode), value)


def multiply(a: Array, b: Array, mode: str) -> Array:
    if mode == "rn":
        return a * b
    if a.dtype == _F32:
        return narrow(a.astype(_F64) * b.astype(_F64), mode)
    product = a * b
    a, b = np.broadcast_arrays(a, b)
    lost = _EXACT.fma(a, b, -product)
    return _directed64(product, lost, mode, np.isfinite(a) & np.isfinite(b))


def fma(a: Array, b: Array, c: Array, mode: str) -> Array:
    """a * b + c, rounded once."""
    if a.dtype == _F32:
        return _fma32(a, b, c, mode)
    a, b, c = np.broadcast_arrays(a, b, c)
    value = np.asarray(_EXACT.fma(a, b, c))
    if mode == "rn":
        return value
    product = a * b
    low = _EXACT.fma(a, b, -product)
    s, e = two_sum(product, c)
    lost = ((s - value) + e) + low
    finite = np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
    return _zero_sign(_directed64(value, lost, mode, finite), product == -c, mode)


def _fma32(a: Array, b: Array, c: Array, mode: str) -> Array:
    product = np.multiply(a, b, dtype=_F64)  # exact
    s = np.add(product, c, dtype=_F64)
    if mode == "rn":
        # a second rounding harms only where the first one's result lies halfway, or will be subnormal
        doubtful = (s.view(np.uint64) & _LOST) == _HALFWAY
        if not doubtful.any() and not ((np.abs(s) < _TINY) & (s != 0)).any():
            return s.astype(np.float32)
    s, e = two_sum(product, np.broadcast_to(c.astype(_F64), product.shape))
    return _zero_sign(narrow(s, mode, e), product == -c.astype(_F64), mode)


def divide(a: Array, b: Array, mode: str) -> Array:
    quotient = a / b
    if mode == "rn":
        return quotient
    finite = np.isfinite(a) & np.isfinite(b) & (b != 0)
    if a.dtype == _F32:
        left = a.astype(_F64) - quotient.astype(_F64) * b.astype(_F64)  # exact where it matters
    else:
        q, b2, a2 = np.broadcast_arrays(quotient, b, a)
        left = np.asarray(_EXACT.fma(-q, b2, a2))
    lost = np.where(b < 0, -left, left)
    return _directed64(quotient, lost, mode, finite)


def root(a: Array, mode: str) -> Array:
    value = np.sqrt(a)
    if mode == "rn":
        return value
    if a.dtype == _F32:
        left = a.astype(_F64) - value.astype(_F64) * value.astype(_F64)
    else:
        left = np.asarray(_EXACT.fma(-value, value, a))
    return np.where(np.isfinite(value), step(value, left, mode), value)
