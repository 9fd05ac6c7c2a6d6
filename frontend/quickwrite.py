"""The short way of writes to tensors that no gradient is wanted of: numpy writes into their memory.

Everything else (history, capture, devices, memory that may not be written, operands to be converted, errors
in torch's words) takes the general way, ``views.write_``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import EllipsisType, NoneType
from typing import Any

import numpy as np
from weft.autograd.grad_mode import mode
from weft.ir.prims.base import _NUMPY, Primitive, _current
from weft.quick import _FLOATS, _INTEGERS, number, quietly
from weft.tensor import Tensor

_ndarray = np.ndarray
_copyto = np.copyto
_current_interpreter = _current.get
_KEYS = frozenset((int, slice, NoneType, EllipsisType))
_WRITABLE = _FLOATS | _INTEGERS


def target(t: Any) -> Any:
    """The array of a tensor that may be written at once; None: take the general way."""
    if not isinstance(t, Tensor) or t._inference:
        return None
    a, view = t._data, t._view
    if type(a) is not _ndarray or _current_interpreter() is not _NUMPY:
        return None
    if mode.grad and (
        t._rg
        or (view is not None and (view.edge_version != t._vc[0] or (view.differentiable and view.base._rg)))
    ):
        return None
    return a if a.flags.writeable else None


def source(value: Any, dtype: Any) -> Any:
    """What numpy writes for a number or a tensor of ``dtype`` without gradient; None: the general way."""
    if isinstance(value, Tensor):
        b, view = value._data, value._view
        if type(b) is not _ndarray or b.dtype is not dtype:
            return None
        if mode.grad and (value._rg or (view is not None and view.edge_version != value._vc[0])):
            return None
        return b
    kind = type(value)
    if (kind is float and dtype.kind == "f") or (kind is int and dtype.kind in "fi"):
        try:
            return number(value, dtype)
        except OverflowError:
            return None
    return None


def inplace_function(prim: Primitive, general: Callable[..., Any]) -> Callable[..., Any]:
    """``general``, the in-place form of a function of one or two operands that is one ufunc, with the short
    way before it."""
    ufunc = prim.ufunc
    assert ufunc is not None
    scalable = prim.name in ("add", "sub")
    allowed = frozenset(d.np for d in prim.dtypes) & (_WRITABLE if prim.plain_ufunc else _FLOATS)

    def method(input: Any, *args: Any, **kwargs: Any) -> Any:
        a = target(input)
        if a is None or a.dtype not in allowed:
            return general(input, *args, **kwargs)
        if kwargs:
            b = _scaled(args, kwargs, a.dtype) if scalable else None
            if b is None:
                return general(input, *args, **kwargs)
            args_: Any = a, b
        elif args:
            b = source(args[0], a.dtype)
            if b is None or len(args) > 1:
                return general(input, *args)
            args_ = a, b
        else:
            args_ = (a,)
        try:
            quietly(ufunc, *args_, a)
        except (RuntimeError, ValueError, TypeError):  # nothing was written: shapes, another thread
            return general(input, *args, **kwargs)
        input._vc[0] += 1
        return input

    return functools.wraps(general)(method)


def _scaled(args: Any, kwargs: dict[str, Any], dtype: Any) -> Any:
    """The second operand times ``alpha``; None: take the general way."""
    if len(args) != 1 or len(kwargs) != 1 or "alpha" not in kwargs or dtype not in _FLOATS:
        return None
    b, alpha = source(args[0], dtype), source(kwargs["alpha"], dtype)
    if b is None or alpha is None or isinstance(kwargs["alpha"], Tensor):
        return None
    try:
        return quietly(np.multiply, b, alpha)
    except RuntimeError:
        return None


def wrote(input: Tensor, out: Any) -> bool:
    """Whether the value of ``out``, a fresh tensor, could be written to ``input`` at once."""
    if not isinstance(out, Tensor) or (out._rg and mode.grad):
        return False
    b, a = out._data, target(input)
    if a is None or type(b) is not _ndarray or b.dtype is not a.dtype or b.shape != a.shape:
        return False
    _copyto(a, b)
    input._vc[0] += 1
    return True


def filled(input: Any, value: Any) -> bool:
    """Whether every element of ``input`` could be set to a number at once."""
    a = target(input)
    if a is None or isinstance(value, Tensor):
        return False
    b = source(value, a.dtype)
    if b is None:
        return False
    a.fill(b)
    input._vc[0] += 1
    return True


def copied(input: Any, src: Any) -> bool:
    """Whether a tensor of the same type could be copied at once."""
    a = target(input)
    if a is None or not isinstance(src, Tensor):
        return False
    b = source(src, a.dtype)
    if b is None or b.shape != a.shape:
        return False
    _copyto(a, b)
    input._vc[0] += 1
    return True


def assigned(x: Any, key: Any, value: Any) -> bool:
    """Whether ``x[key] = value`` could be done at once: for keys without arrays, numbers and tensors that
    fit."""
    a = target(x)
    if a is None:
        return False
    for k in key if type(key) is tuple else (key,):
        if type(k) not in _KEYS or (type(k) is slice and not _forward(k)):
            return False
    b = source(value, a.dtype)
    if b is None:
        return False
    try:
        a[key] = b
    except (IndexError, ValueError):
        return False
    x._vc[0] += 1
    return True


def _forward(k: slice) -> bool:
    bounds = all(v is None or type(v) is int for v in (k.start, k.stop, k.step))
    return bounds and (k.step is None or k.step > 0)
