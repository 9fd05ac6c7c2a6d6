"""Sorting and order statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
from weft.devices import put
from weft.dispatch import apply, wrap
from weft.ir import prims as P
from weft.ir import types as T
from weft.ops.common import convert, shape_of, wrap_dim
from weft.ops.reduce import pair_type
from weft.prepared import prepared
from weft.tensor import Tensor


@prepared
def sort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> Any:
    """Sorted values along a dimension and their indices; stable, NaN last (first if descending)."""
    d = wrap_dim(dim, input.ndim)
    if input.ndim == 0:
        return pair_type("sort")(input.clone(), convert(input.detach() != input.detach(), T.i64) * 0)
    return pair_type("sort")(*apply(P.sort_p, input, axis=d, descending=descending))


@prepared
def argsort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> Tensor:
    """The indices that sort along a dimension."""
    return sort(input.detach(), dim, descending)[1]


def msort(input: Tensor) -> Tensor:
    return sort(input, 0)[0]


@prepared
def topk(input: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    """The ``k`` largest (smallest) elements along a dimension, in order, and their indices."""
    d = wrap_dim(dim, input.ndim)
    n = shape_of(input)[d] if input.ndim else 1
    if not 0 <= k <= n:
        raise RuntimeError("selected index k out of range")
    if input.ndim == 0:
        return pair_type("topk")(*sort(input))
    return pair_type("topk")(*apply(P.topk_p, input, k=k, axis=d, largest=largest))


def _at(values: Tensor, indices: Tensor, d: int, i: int, keepdim: bool, name: str) -> Any:
    v, j = values.select(d, i), indices.select(d, i)
    if keepdim:
        v, j = v.unsqueeze(d), j.unsqueeze(d)
    return pair_type(name)(v.clone(), j.clone())


def kthvalue(input: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    """The k-th smallest element (k from 1) along a dimension and its index."""
    d = wrap_dim(dim, input.ndim)
    if input.ndim and not 1 <= k <= shape_of(input)[d]:
        raise RuntimeError(f"kthvalue(): selected number k out of range for dimension {d}")
    if input.ndim == 0:
        return pair_type("kthvalue")(*sort(input))
    values, indices = sort(input, d)
    return _at(values, indices, d, k - 1, keepdim, "kthvalue")


def median(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """The lower median; with ``dim`` a pair (values, indices). NaN wins."""
    if dim is None:
        flat = input.reshape(-1)
        if flat.numel() == 0:
            return input.new_full((), float("nan"))
        return _median(flat, 0, False)[0]
    return _median(input, wrap_dim(dim, input.ndim), keepdim)


def _median(x: Tensor, d: int, keepdim: bool) -> Any:
    if x.ndim == 0:
        return pair_type("median")(*sort(x))
    n = shape_of(x)[d]
    values, indices = sort(x, d)
    out = _at(values, indices, d, (n - 1) // 2, keepdim, "median")
    if not x.dtype.is_floating_point:
        return out
    last = _at(values, indices, d, n - 1, keepdim, "median")  # NaN sorts last
    bad = last[0].isnan()
    return pair_type("median")(last[0].where(bad, out[0]), last[1].where(bad, out[1]))


def nanmedian(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """The lower median of the elements that are not NaN."""
    x = input.reshape(-1) if dim is None else input
    d = wrap_dim(0 if dim is None else dim, x.ndim)
    values, indices = sort(x, d)
    count = (~x.isnan()).sum(d, keepdim=True)
    k = ((count - 1) // 2).clamp(min=0)
    v, i = values.gather(d, k), indices.gather(d, k)
    if dim is None:
        return v.reshape(())
    return pair_type("nanmedian")(v, i) if keepdim else pair_type("nanmedian")(v.squeeze(d), i.squeeze(d))


def mode(input: Tensor, dim: int = -1, keepdim: bool = False) -> Any:
    """The most frequent value along a dimension (the smallest of several) and its last index."""
    d = wrap_dim(dim, input.ndim)
    if input.ndim == 0:
        return pair_type("mode")(*sort(input))
    same = (input.unsqueeze(d) == input.unsqueeze(d + 1)).sum(d + 1)
    values, order = sort(input.detach(), d)
    best = same.gather(d, order).argmax(d, keepdim=True)
    value = values.gather(d, best)
    n = shape_of(input)[d]
    position = n - 1 - (input.detach() == value).to(T.i64).flip(d).argmax(d, keepdim=True)
    v = input.gather(d, position)
    return pair_type("mode")(v, position) if keepdim else pair_type("mode")(v.squeeze(d), position.squeeze(d))


def unique(
    input: Tensor,
    sorted: bool = True,
    return_inverse: bool = False,
    return_counts: bool = False,
    dim: int | None = None,
) -> Any:
    """The distinct elements (or slices along ``dim``) in order, with inverse indices and counts if asked."""
    a = input._array("unique() (the size of the result depends on values)")
    out = np.unique(a, return_inverse=True, return_counts=True, axis=dim)
    values, inverse, counts = out[0], out[1], out[2]
    result = [wrap(put(np.ascontiguousarray(values), input.device))]
    if return_inverse:
        inverse = np.asarray(inverse, np.int64).reshape(a.shape if dim is None else -1)
        result.append(wrap(put(inverse, input.device)))
    if return_counts:
        result.append(wrap(put(np.asarray(counts, np.int64), input.device)))
    return result[0] if len(result) == 1 else tuple(result)


def unique_consecutive(
    input: Tensor, return_inverse: bool = False, return_counts: bool = False, dim: int | None = None
) -> Any:
    """The elements without repeats of the one before."""
    a = input._array("unique_consecutive() (the size of the result depends on values)")
    rows = a.reshape(-1) if dim is None else np.moveaxis(a, dim, 0)
    flat = rows.reshape(rows.shape[0], -1)
    new = np.ones(rows.shape[0], bool)
    new[1:] = (flat[1:] != flat[:-1]).any(1)
    values = rows[new] if dim is None else np.moveaxis(rows[new], 0, dim)
    result = [wrap(put(np.ascontiguousarray(values), input.device))]
    starts = np.flatnonzero(new)
    if return_inverse:
        inverse = np.cumsum(new) - 1
        result.append(wrap(inverse.reshape(a.shape) if dim is None else inverse))
    if return_counts:
        result.append(wrap(put(np.diff(np.append(starts, rows.shape[0])), input.device)))
    return result[0] if len(result) == 1 else tuple(result)


def searchsorted(
    sorted_sequence: Tensor,
    values: Any,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
) -> Tensor:
    """Where each value would be inserted to keep the last dimension sorted."""
    from weft.creation import tensor

    v = values if isinstance(values, Tensor) else tensor(
        values, dtype=sorted_sequence.dtype, device=sorted_sequence.device
    )
    right = right or side == "right"
    s = sorted_sequence.unsqueeze(-2) if sorted_sequence.ndim > 1 else sorted_sequence
    less = s <= v.unsqueeze(-1) if right else s < v.unsqueeze(-1)
    return less.sum(-1).to(T.i32 if out_int32 else T.i64)


def bucketize(input: Any, boundaries: Tensor, *, out_int32: bool = False, right: bool = False) -> Tensor:
    return searchsorted(boundaries, input, out_int32=out_int32, right=right)


def bincount(input: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    """How often each non-negative integer occurs."""
    a = input._array("bincount() (the size of the result depends on values)")
    w = None if weights is None else weights._array("bincount()")
    return wrap(put(np.bincount(a, w, minlength), input.device))


def histc(input: Tensor, bins: int = 100, min: float = 0, max: float = 0) -> Tensor:
    """The number of elements in each of ``bins`` equal intervals of [min, max]."""
    a = input._array("histc()")
    lo, hi = (float(a.min()), float(a.max())) if min == max else (min, max)
    counts, _ = np.histogram(a, bins, (lo, hi))
    return wrap(counts.astype(a.dtype))


def isin(elements: Any, test_elements: Any, *, invert: bool = False) -> Tensor:
    """Whether each element is among the test elements."""
    from weft.creation import as_tensor

    e, t = as_tensor(elements), as_tensor(test_elements)
    found = (e.unsqueeze(-1) == t.reshape(-1)).any(-1)
    return ~found if invert else found
