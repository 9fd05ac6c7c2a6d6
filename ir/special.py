"""Special functions that numpy lacks, for arrays of f32 and f64: the composed functions, run by numpy.

They run in f64, without the emulated fma (which costs f64 results about one ULP more), in pieces that stay in
cache. f32 ``erf``, which eager GELU needs often, runs in f32.
"""

from __future__ import annotations

from collections.abc import Callable
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


def _erf_f32(x: np.ndarray) -> np.ndarray:
    from weft.ir.scalarnumpy import NumpyBuilder

    return NumpyBuilder(exact_fma=False).erf(x)  # type: ignore[attr-defined]


def erf(x: np.ndarray) -> np.ndarray:
    return _in_chunks(_erf_f32 if x.dtype == np.float32 else _composed("erf"), x)


def erfinv(x: np.ndarray) -> np.ndarray:
    return _in_chunks(_composed("erfinv"), x)


def lgamma(x: np.ndarray) -> np.ndarray:
    return _in_chunks(_composed("lgamma"), x)


def digamma(x: np.ndarray) -> np.ndarray:
    return _in_chunks(_composed("digamma"), x)


def polygamma(n: int, x: np.ndarray) -> np.ndarray:
    """The n-th derivative of digamma, n >= 1. The poles give inf for odd n and NaN for even n."""
    return _in_chunks(_composed("polygamma", n), x)
