"""The short way of small reads by index: numpy's own indexing, where it means what torch's does.

Everything else (gradients, capture, devices, indices out of range) takes the general way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from weft.autograd.grad_mode import inference, mode
from weft.ir.prims.base import _NUMPY, _current
from weft.quick import SMALL
from weft.tensor import Tensor

_new = object.__new__
_ndarray = np.ndarray
_asarray = np.asarray
_current_interpreter = _current.get
_I64, _I32, _BOOL = np.dtype(np.int64), np.dtype(np.int32), np.dtype(np.bool_)
_UNSIGNED = {_I64: np.dtype(np.uint64), _I32: np.dtype(np.uint32)}
_ONLY = {int}
_largest = np.maximum.reduce


def readable(t: Tensor) -> Any:
    """The array of a small tensor that no gradient is wanted of; None: take the general way."""
    a, view = t._data, t._view
    if type(a) is not _ndarray or a.size >= SMALL or _current_interpreter() is not _NUMPY:
        return None
    if mode.grad and (t._rg or (view is not None and view.edge_version != t._vc[0])):
        return None
    return a


def fresh(data: np.ndarray) -> Tensor:
    """The tensor of an array that numpy has just made."""
    t = _new(Tensor)
    t._data = data if type(data) is _ndarray and data.base is None else np.array(data, order="C")
    t._vc = [0]
    t._view = None
    t._rg = False
    if inference.used and mode.inference:
        t._inference = True
    return t


def within(index: np.ndarray, n: int) -> bool:
    """Whether all indices are in [0, n)."""
    return not index.size or bool(_largest(index.view(_UNSIGNED[index.dtype]), None) < n)


def positions(index: Any, mask: bool = False) -> Any:
    """The array of an index tensor on the CPU (``mask``: also of a mask); None for others."""
    if not isinstance(index, Tensor):
        return None
    k = index._data
    if type(k) is not _ndarray:
        return None
    d = k.dtype
    return k if d is _I64 or d is _I32 or (mask and d is _BOOL) else None


def item_copy(x: Tensor, key: Any) -> Tensor | None:
    """``x[key]`` where the key is an array of indices, several of them, a list of ints or a mask; None: take
    the general way."""
    kind = type(key)
    if kind is list:
        index: Any = key
        if not key or {*map(type, key)} != _ONLY:
            return None
    elif kind is tuple:
        found = [positions(k) for k in key]
        if not found or any(k is None or not k.ndim for k in found):
            return None
        index = tuple(found)
    else:
        index = positions(key, mask=True)
        if index is None or not index.ndim or index.size >= SMALL:
            return None
    a = readable(x)
    if a is None:
        return None
    try:
        return fresh(a[index])
    except IndexError:
        return None


def along(x: Tensor, index: Any, axis: int | None) -> Tensor | None:
    """The parts of ``x`` at a vector of indices along an axis; without one, the elements of the flattened
    ``x``, where negative indices count from the end."""
    k = positions(index)
    if k is None:
        return None
    a = readable(x)
    if a is None or (axis is not None and not within(k, a.shape[axis])):
        return None
    try:
        return fresh(a.take(k, axis))
    except IndexError:
        return None
