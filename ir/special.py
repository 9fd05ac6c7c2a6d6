"""Special functions that numpy lacks, for arrays of f32 and f64: the composed functions, run by numpy.

They run in f64, without the emulated fma (which costs f64 results about one ULP more), in pieces that stay in
cache. f32 ``erf``, which eager GELU needs often, runs in f32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

_CHUNK = 16384


def _in_chunks(fn: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    flat = np.ascontiguousarray(x).reshape(-1)
    out = np.empty_like(flat)
    with np.errstate(all="ignore"):
        for start in range(0, flat.size, _CHUNK):
            out[start : start + _CHUNK] = fn(flat[start : start + _CHUNK])
    return out.reshape(x.shape)


def _composed(name: str, *args: Any) -> Callable[[np.ndarray], np.ndarray]:
    from weft.ir.scalarnumpy import NumpyBuilder

    method = getattr(NumpyBuilder(exact_fma=False), name)
    return lambda x: method(*args, x.astype(np.float64))


@cache
def _erf_columns() -> np.ndarray:
    """The coefficients of each of the sixteen polynomials, side by side."""
    from weft.ir.math_tables import ERF

    return np.ascontiguousarray(np.array(ERF, np.float32).T)


def _erf_f32(x: np.ndarray) -> np.ndarray:
    """:func:`weft.ir.math_tables.erf` with fewer and cheaper calls of numpy: a column is fetched at once."""
    a = np.minimum(np.abs(x), np.float32(3.8749998))
    shifted = a + np.float32(1.5 * 2.0**21)
    index = shifted.view(np.int32) & 15
    r = a - (shifted - np.float32(1.5 * 2.0**21))
    c = _erf_columns().take(index, axis=0)
    out = c[:, -1] * r
    for k in range(c.shape[1] - 2, 0, -1):
        out += c[:, k]
        out *= r
    start = c[:, 0]
    np.copyto(start, r, where=index == 0)
    out += start
    return np.copysign(out, x, out=out)


def erf(x: np.ndarray) -> np.ndarray:
    return _in_chunks(_erf_f32 if x.dtype == np.float32 else _composed("erf"), x)


def erfc(x: np.ndarray) -> np.ndarray:
    return _in_chunks(_composed("erfc"), x)


def erfinv(x: np.ndarray) -> np.ndarray:
    return _in_chunks(_composed("erfinv"), x)


def lgamma(x: np.ndarray) -> np.ndarray:
    return _in_chunks(_composed("lgamma"), x)


def digamma(x: np.ndarray) -> np.ndarray:
    return _in_chunks(_composed("digamma"), x)


def polygamma(n: int, x: np.ndarray) -> np.ndarray:
    """The n-th derivative of digamma, n >= 1. The poles give inf for odd n and NaN for even n."""
    return _in_chunks(_composed("polygamma", n), x)


def box_muller(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The rule of the primitive with exact fma, as in a kernel."""
    from weft.ir.prims.base import PRIMITIVES
    from weft.ir.scalarnumpy import NumpyBuilder

    rule = PRIMITIVES["box_muller"].scalar
    assert rule is not None
    with np.errstate(all="ignore"):
        return np.asarray(rule(NumpyBuilder(), u, v))
