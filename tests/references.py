"""References for the accuracy of functions of float32: f64 functions, and errors in ULP."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Function = Callable[..., np.ndarray]


def each(fn: Callable[..., float]) -> Function:
    """A function of Python floats over arrays."""
    ufunc = np.frompyfunc(fn, 1, 1)
    return lambda x: np.asarray(ufunc(np.asarray(x, np.float64))).astype(np.float64)


def _lgamma(x: float) -> float:
    if math.isinf(x) or (x <= 0 and x == math.floor(x)):
        return math.inf
    try:
        return math.lgamma(x)
    except OverflowError:
        return math.inf


def digamma(x: np.ndarray) -> np.ndarray:
    """A plain one: 30 steps of the recurrence, then Stirling's series; the reflection by sin and cos."""
    low = x < 0
    y = np.where(low, 1.0 - x, x)
    total = np.zeros_like(y)
    for _ in range(30):
        total, y = total + 1.0 / y, y + 1.0
    z = 1.0 / (y * y)
    out = np.log(y) - 0.5 / y - z * (1 / 12 - z * (1 / 120 - z * (1 / 252 - z / 240))) - total
    r = math.pi * (x - np.rint(x))
    out = np.where(low, out - math.pi * np.cos(r) / np.sin(r), out)
    out = np.where(low & (x == np.floor(x)), np.nan, out)
    return np.where(x == 0, np.copysign(np.inf, -x), out)


def erfinv(x: np.ndarray) -> np.ndarray:
    """Halley's method on the standard library's erf and erfc, from a bound above."""
    a = np.abs(x)
    erf, erfc = each(math.erf), each(math.erfc)
    y = np.minimum(np.sqrt(-np.log(np.maximum(1.0 - a, 1e-300))), 5.9)
    for _ in range(50):
        error = np.where(a < 0.5, erf(y) - a, (1.0 - a) - erfc(y))
        u = error * math.sqrt(math.pi) / 2 * np.exp(y * y)
        step = u / (1 + y * u)
        y = y - step
        if np.all(np.abs(step[np.isfinite(step)]) <= 1e-15 * y[np.isfinite(step)]):
            break
    y = np.where(a < 1e-8, a * (math.sqrt(math.pi) / 2), y)
    return np.copysign(np.where(a == 1, np.inf, np.where(a > 1, np.nan, y)), x)


_SPECIAL: dict[str, Function] = {
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "erf": each(math.erf),
    "erfc": each(math.erfc),
    "erfinv": erfinv,
    "lgamma": each(_lgamma),
    "digamma": digamma,
    "rsqrt": lambda x: 1.0 / np.sqrt(x),
    "pow": np.power,
    "atan2": np.arctan2,
}
UNARY = [
    "exp",
    "exp2",
    "expm1",
    "log",
    "log2",
    "log1p",
    "sin",
    "cos",
    "tan",
    "asin",
    "acos",
    "atan",
    "sinh",
    "cosh",
    "tanh",
    "asinh",
    "acosh",
    "atanh",
    "erf",
    "erfc",
    "erfinv",
    "lgamma",
    "digamma",
    "sqrt",
    "rsqrt",
]
LIMITS = {"tan": 4.0, "erfinv": 4.0, "lgamma": 4.0, "digamma": 4.0, "pow": 4.0}


def limit(name: str) -> float:
    """The largest error promised, in ULP."""
    return LIMITS.get(name, 2.0)


def reference(name: str) -> Function:
    """The function in f64, by numpy or the standard library."""
    return _SPECIAL.get(name) or getattr(np, name)


def ulp_errors(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Distance of f32 results from f64 references in ULP; inf for a wrong special value.

    Where the result is the rounded reference it counts as 0.5: computing the exact distance of all would take
    longer than all the rest.
    """
    with np.errstate(all="ignore"):
        rounded = exact.astype(np.float32)
        same = np.ascontiguousarray(got).view(np.int32) == np.ascontiguousarray(rounded).view(np.int32)
        error = np.where(same, 0.5, 0.0)
        odd = np.flatnonzero(~same)
        error[odd] = _exact_errors(got[odd], exact[odd], rounded[odd])
    return error


def _exact_errors(got: np.ndarray, exact: np.ndarray, rounded: np.ndarray) -> np.ndarray:
    size = np.maximum(np.abs(exact), 2.0**-126)
    error = np.abs(got.astype(np.float64) - exact) / 2.0 ** (np.floor(np.log2(size)) - 23)
    special = ~np.isfinite(rounded) | ~np.isfinite(got) | ((got == 0) & (rounded == 0))
    both_nan = np.isnan(got) & np.isnan(rounded)
    return np.where(both_nan, 0.5, np.where(special, np.inf, error))


def all_halves() -> np.ndarray:
    """Every float16 value, as float32."""
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


def bit_patterns(start: int, stop: int, step: int = 1) -> np.ndarray:
    """The float32 numbers whose bits are ``range(start, stop, step)``."""
    return np.arange(start, stop, step, dtype=np.uint64).astype(np.uint32).view(np.float32)


def describe(name: str, x: Any, error: np.ndarray) -> str:
    i = int(np.argmax(error))
    return f"{name}: {error[i]:.3f} ULP at {x[i]!r}"
