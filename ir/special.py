"""Special functions that numpy lacks, for arrays of f32 and f64, accurate to about f64's precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np


def _as_f64(fn: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Compute in f64, round once to the dtype of the last argument."""

    def wrapped(*args: Any) -> np.ndarray:
        x = args[-1]
        with np.errstate(all="ignore"):
            out = fn(*args[:-1], np.asarray(x, np.float64))
            return np.asarray(out).astype(x.dtype)

    return wrapped


def _each(fn: Callable[[float], float]) -> Callable[[np.ndarray], np.ndarray]:
    ufunc = np.frompyfunc(fn, 1, 1)
    return lambda x: np.asarray(ufunc(x)).astype(np.float64)


def _lgamma1(x: float) -> float:
    if x == math.inf or x == -math.inf or (x <= 0 and x == math.floor(x)):
        return math.inf
    try:
        return math.lgamma(x)
    except OverflowError:
        return math.inf


_erf = _each(math.erf)
_erfc = _each(math.erfc)
erf = _as_f64(_erf)
lgamma = _as_f64(_each(_lgamma1))


@_as_f64
def erfinv(x: np.ndarray) -> np.ndarray:
    """Giles' starting value (2010), then three Newton steps on erfc, which keeps the digits next to 1."""
    a = np.minimum(np.abs(x), 1.0)
    w = -np.log((1.0 - a) * (1.0 + a))
    y = np.where(w < 5, 0.886 * a * (1 + 0.23 * w), np.sqrt(np.maximum(w - 0.5 * np.log(np.maximum(w, 1)) - 0.57, 0)))
    y = np.minimum(y, 5.9)
    for _ in range(6):
        error = np.where(a < 0.5, _erf(y) - a, (1.0 - a) - _erfc(y))
        step = error * (math.sqrt(math.pi) / 2) * np.exp(y * y)
        y = y - step / (1 + y * step)
    out = np.where(a == 1.0, np.inf, np.where(a < 1e-9, a * (math.sqrt(math.pi) / 2), y))
    return np.where(np.abs(x) <= 1.0, np.copysign(out, x), np.nan)


_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6)  # B2, B4, ...


@_as_f64
def digamma(x: np.ndarray) -> np.ndarray:
    """Reflection to x >= 1/2, recurrence to x >= 10, Stirling's series. +-0 gives -+inf, -1, -2 ... give NaN."""
    low = x < 0.5
    y = np.where(low, 1.0 - x, x)
    out = np.zeros_like(y)
    for _ in range(10):
        small = y < 10
        out = out - np.where(small, 1.0 / y, 0.0)
        y = np.where(small, y + 1.0, y)
    z, series = 1.0 / (y * y), np.zeros_like(y)
    for k in range(len(_BERNOULLI), 0, -1):
        series = (series + _BERNOULLI[k - 1] / (2 * k)) * z
    out = out + np.log(y) - 0.5 / y - series
    r = x - np.rint(x)
    out = np.where(low, out - math.pi / np.tan(math.pi * r), out)
    out = np.where((x < 0) & (x == np.floor(x)), np.nan, out)
    return np.where(x == 0, np.copysign(np.inf, -x), np.where(x == np.inf, np.inf, out))


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


def _polygamma(n: int, x: np.ndarray) -> np.ndarray:
    sign = 1.0 if n % 2 else -1.0
    low = x < 0.5
    y = np.where(low, 1.0 - x, x)
    total = np.zeros_like(y)
    for _ in range(n + 12):  # zeta(n + 1, y) by the recurrence, then Euler-Maclaurin
        small = y < n + 12
        total = total + np.where(small, y ** -(n + 1.0), 0.0)
        y = np.where(small, y + 1.0, y)
    total = total + y**-n * (1.0 / n + 0.5 / y)
    term = np.asarray(y ** -(n + 2.0) * (n + 1.0))
    for k, b in enumerate(_BERNOULLI, 1):
        total = total + term * (b / math.factorial(2 * k))
        term = term * (n + 2.0 * k) * (n + 2.0 * k + 1.0) / (y * y)
    out = sign * math.factorial(n) * total
    c = 1.0 / np.tan(math.pi * (x - np.rint(x)))
    reflected = np.zeros_like(c)
    for coefficient in reversed(cot_derivative(n)):
        reflected = reflected * c + coefficient
    # psi_n(x) = (-1)^n psi_n(1 - x) - pi d^n/dx^n cot(pi x)
    out = np.where(low, -sign * out - math.pi ** (n + 1) * reflected, out)
    pole = np.inf if n % 2 else np.nan
    return np.where((x <= 0) & (x == np.floor(x)), pole, np.where(x == np.inf, 0.0, out))


def polygamma(n: int, x: np.ndarray) -> np.ndarray:
    """The n-th derivative of digamma, n >= 1. The poles give inf for odd n and NaN for even n."""
    return _as_f64(lambda y: _polygamma(n, y))(x)
