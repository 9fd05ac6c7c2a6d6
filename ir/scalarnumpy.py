"""The scalar vocabulary on numpy arrays: scalar rules run element by element without a code generator.

Used by the kernel-IR interpreter, by the tests of the composed functions, and by special functions that numpy
lacks. Handles are arrays (0-d ones for constants).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from weft.ir.prims.convert import convert_array
from weft.ir.scalarmath import ScalarMath
from weft.ir.types import DType, bool_, dtype_of_numpy

_UNARY: dict[str, Callable[..., Any]] = {
    "neg": np.negative,
    "abs": np.abs,
    "sqrt": np.sqrt,
    "floor": np.floor,
    "ceil": np.ceil,
    "trunc": np.trunc,
    "rint": np.rint,
    "not": np.invert,
}
_BINARY: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "min": np.minimum,
    "max": np.maximum,
    "fmin": lambda x, y: np.where(x < y, x, y),
    "fmax": lambda x, y: np.where(x > y, x, y),
    "copysign": np.copysign,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "shl": np.left_shift,
    "shr": np.right_shift,
}
_COMPARE: dict[str, Callable[..., Any]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


class NumpyBuilder(ScalarMath):
    """Every handle is an ndarray. ``exact_fma=False`` rounds products too: faster, about 1 ULP less accurate.

    >>> from weft.ir.types import f32
    >>> b = NumpyBuilder()
    >>> float(b.exp(b.const(0.0, f32)))
    1.0
    """

    def __init__(self, exact_fma: bool = True) -> None:
        self.exact_fma = exact_fma

    def dtype(self, x: Any) -> DType:
        return dtype_of_numpy(x.dtype)

    def const(self, value: complex, dtype: DType) -> Any:
        if dtype.is_integer and isinstance(value, int):
            return np.asarray(value & (2**dtype.bits - 1), f"u{dtype.itemsize}").view(dtype.np)
        return np.asarray(value).astype(dtype.np)

    def unary(self, op: str, x: Any) -> Any:
        return np.asarray(_UNARY[op](x))

    def binary(self, op: str, x: Any, y: Any) -> Any:
        if op in ("idiv", "irem"):
            from weft.ir.prims.elementwise import int_quotient, int_remainder

            return np.asarray((int_quotient if op == "idiv" else int_remainder)(*np.broadcast_arrays(x, y)))
        return np.asarray(_BINARY[op](x, y))

    def fma(self, x: Any, y: Any, z: Any) -> Any:
        if not self.exact_fma:
            return np.asarray(x * y + z)
        return _fma32(x, y, z) if x.dtype == np.float32 else _fma64(x, y, z)

    def compare(self, op: str, x: Any, y: Any) -> Any:
        return np.asarray(_COMPARE[op](x, y))

    def select(self, c: Any, x: Any, y: Any) -> Any:
        return np.where(c, x, y)

    def convert(self, x: Any, dtype: DType) -> Any:
        return np.asarray(x != 0) if dtype is bool_ else np.asarray(convert_array(x, dtype=dtype))

    def rare(
        self, condition: Any, usual: tuple[Any, ...], slow: Callable[[], tuple[Any, ...]]
    ) -> tuple[Any, ...]:
        return super().rare(condition, usual, slow) if np.any(condition) else usual

    def bitcast(self, x: Any, dtype: DType) -> Any:
        return np.ascontiguousarray(x).view(dtype.np).reshape(x.shape)

    def table(self, values: tuple[float, ...], index: Any, dtype: DType) -> Any:
        return np.asarray(np.array(values, dtype.np)[index & (len(values) - 1)])


def _two_sum(x: Any, y: Any) -> tuple[Any, Any]:
    """x + y rounded, and its error (Knuth)."""
    s = x + y
    t = s - x
    return s, (x - (s - t)) + (y - t)


def _round_to_odd(s: Any, error: Any) -> Any:
    """The sum s + error, rounded to odd: the neighbour of s on the side of the error, where s is even."""
    bits = np.ascontiguousarray(s).view(np.int64)
    inexact = np.isfinite(s) & (error != 0) & (bits & 1 == 0)
    # toward larger magnitude where the error has the sign of s, else toward zero
    step = np.where((error > 0) == (s > 0), 1, -1)
    return np.where(inexact, bits + step, bits).view(np.float64).reshape(np.shape(s))


def _fma32(x: Any, y: Any, z: Any) -> Any:
    """Exact: the product fits f64; the sum is rounded to odd there, so the second rounding is innocuous."""
    s, error = _two_sum(x.astype(np.float64) * y, z.astype(np.float64))
    return np.asarray(_round_to_odd(s, error)).astype(np.float32)


def _split(x: Any) -> tuple[Any, Any]:
    c = x * 134217729.0  # 2^27 + 1 (Veltkamp)
    high = c - (c - x)
    return high, x - high


def _fma64(x: Any, y: Any, z: Any) -> Any:
    """Boldo and Melquiond, "Emulation of FMA and correctly rounded sums" (2008)."""
    out = _fma64_in_range(x, y, z)
    size = np.abs(x * y)
    unsafe = ~np.isfinite(out) | (size < 1e-290) | (np.abs(x) > 1e290) | (np.abs(y) > 1e290)
    return np.where(unsafe, _fma64_scaled(x, y, z), out) if np.any(unsafe) else out


def _fma64_in_range(x: Any, y: Any, z: Any) -> Any:
    p = x * y
    (a, b), (c, d) = _split(x), _split(y)
    low = ((a * c - p) + a * d + b * c) + b * d
    th, tl = _two_sum(z, low)
    vh, vl = _two_sum(p, th)
    return vh + _round_to_odd(*_two_sum(tl, vl))


def _fma64_scaled(x: Any, y: Any, z: Any) -> Any:
    """With the exponents of the factors taken out (a subnormal result is rounded twice)."""
    (xm, xe), (ym, ye) = np.frexp(x), np.frexp(y)
    e = xe + ye
    zs = np.ldexp(z, -e)
    zs = np.where((np.abs(zs) < 1e-290) & (z != 0), np.copysign(1e-290, z), zs)
    out = np.ldexp(_fma64_in_range(xm, ym, zs), e)
    plain = x * y + z
    special = (x == 0) | (y == 0) | (z == 0) | ~np.isfinite(x) | ~np.isfinite(y) | ~np.isfinite(zs)
    return np.where(special, plain, out)
