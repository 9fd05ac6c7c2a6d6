"""Softmax and its logarithm: the map-reduce-map compositions that capture fuses into one kernel each."""

from __future__ import annotations

from typing import Any

from weft.casting import exact_on_gpu
from weft.composite import composite_of_results
from weft.dispatch import apply
from weft.dtypes import as_dtype, type_name
from weft.ir import prims as P
from weft.ops.common import convert, shape_of, wrap_dim
from weft.ops.reduce import keep_dims
from weft.tensor import Tensor


def _centred(input: Tensor, dim: int, dtype: Any) -> tuple[Tensor, int]:
    """x - max(x) along ``dim``; the maximum takes no part in the gradient."""
    x = convert(input, as_dtype(dtype)) if dtype is not None else input
    if not x.dtype.is_floating_point:
        raise NotImplementedError(
            f""""softmax_lastdim_kernel_impl" not implemented for '{type_name(x.dtype)}'"""
        )
    d = wrap_dim(dim, x.ndim)
    shape = shape_of(x)
    if not shape:
        return x - x.detach(), d
    if shape[d] == 0:
        return x, d
    top = keep_dims(apply(P.reduce_max_p, x.detach(), axes=(d,)), shape, (d,), True)
    return x - top, d


def _total(e: Tensor, d: int) -> Tensor:
    shape = shape_of(e)
    return keep_dims(apply(P.sum_p, e, axes=(d,)), shape, (d,), True) if shape else e


@exact_on_gpu
@composite_of_results
def softmax(input: Tensor, dim: int, dtype: Any = None) -> Tensor:
    """exp(x) / sum(exp(x)) along ``dim``.

    >>> import weft
    >>> weft.softmax(weft.zeros(2), 0)
    tensor([0.5000, 0.5000])
    """
    x, d = _centred(input, dim, dtype)
    e = x.exp()
    return e / _total(e, d)


@exact_on_gpu
@composite_of_results
def log_softmax(input: Tensor, dim: int, dtype: Any = None) -> Tensor:
    """log(softmax(x)) along ``dim``, without overflow."""
    x, d = _centred(input, dim, dtype)
    return x - _total(x.exp(), d).log()
