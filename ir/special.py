"""Special functions that numpy lacks, for arrays of f32 and f64: the composed functions, run by numpy.

They run in f64, without the emulated fma (which costs f64 results about one ULP more), in pieces that stay in
cache. f32 ``erf``, which eager GELU needs often, has a shorter path.
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
    from weft.ir.math_special import ERF_F32_FAR, ERF_F32_NEAR

    t = np.minimum(np.abs(x), np.float32(4.0))
    z = t * t
    far, near = np.full_like(x, ERF_F32_FAR[-1]), np.full_like(x, ERF_F32_NEAR[-1])
    for c in reversed(ERF_F32_FAR[:-1]):
        far *= t
        far += np.float32(c)
    for c in reversed(ERF_F32_NEAR[:-1]):
        near *= z
        near += np.float32(c)
    near *= x
    near += x
    far *= t
    far -= t
    tail = np.subtract(np.float32(1.0), np.exp(far, out=far), out=far)
    # several times faster than np.where
    np.putmask(near, t > np.float32(0.927734375), np.copysign(tail, x, out=tail))
    return near


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
