"""What all operations share: operands from tensors and numbers, broadcasting, promotion, dimensions."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from weft.autograd.grad_mode import mode
from weft.dispatch import apply, apply_small, interpreter, wrap, wrap_value
from weft.dtypes import get_default_dtype
from weft.eager import LEAST_BYTES
from weft.ir import prims as P
from weft.ir import types as T
from weft.ir.graph import Value
from weft.ir.prims.base import _NUMPY, Primitive, _current
from weft.ir.types import DType
from weft.promotion import promote, scalar_category, scalar_dtype
from weft.quick import number
from weft.tensor import Tensor
from weft.views import own

_ndarray = np.ndarray
_LARGE = 1 << 18
_F32 = np.dtype(np.float32)


def is_number(x: Any) -> bool:
    """Whether ``x`` counts as a Python number in an operation (traced and numpy numbers too)."""
    return isinstance(x, (int, float, complex, np.generic)) or getattr(x, "_weft_scalar", False)


def check_tensor(x: Any, fn: str, arg: str = "input") -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{fn}(): argument '{arg}' must be Tensor, not {type(x).__name__}")
    return x


def shape_of(t: Tensor) -> tuple[int, ...]:
    d = t._data
    return d.type.shape if type(d) is Value else d.shape


def number_array(value: Any, dtype: DType) -> np.ndarray:
    """A Python number as a 0-d array; integers wrap as in C."""
    try:
        return np.array(value, dtype.np)
    except OverflowError:
        return np.array(int(value) & (2**64 - 1), np.uint64).astype(dtype.np)
    except TypeError:
        return np.array(value).astype(dtype.np)


def scalar_tensor(value: Any, dtype: DType) -> Tensor:
    """A number (traced ones too) as a 0-d tensor of ``dtype``."""
    interp: Any = interpreter()
    if getattr(value, "_weft_scalar", False):
        return convert(wrap_value(interp, interp.scalar(value)), dtype)
    if interp.recording:
        return apply(
            P.full_p, shape=(), dtype=dtype, value=value.item() if isinstance(value, np.generic) else value
        )
    return wrap(number_array(value, dtype))


def as_tensor(x: Any, dtype: DType | None = None) -> Tensor:
    """A tensor of a tensor or a number."""
    if isinstance(x, Tensor):
        return x if dtype is None else convert(x, dtype)
    return scalar_tensor(x, dtype if dtype is not None else scalar_dtype(scalar_category(x)))


def convert(x: Tensor, dtype: DType) -> Tensor:
    """``x`` in ``dtype``; itself where it already is."""
    return x if x.dtype is dtype else apply(P.convert_p, x, dtype=dtype)


def broadcast_shapes(*shapes: Sequence[int]) -> tuple[int, ...]:
    """The shape that all broadcast to. RuntimeError names the two extents that do not fit."""
    if len(shapes) == 2:
        a, b = shapes
        if len(a) >= len(b) and tuple(a[len(a) - len(b) :]) == tuple(b):
            return tuple(a)
    out: list[int] = list(shapes[0]) if shapes else []
    for shape in shapes[1:]:
        a, b = list(out), list(shape)
        n = max(len(a), len(b))
        a, b = [1] * (n - len(a)) + a, [1] * (n - len(b)) + b
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            if x != y and x != 1 and y != 1:
                raise RuntimeError(
                    f"The size of tensor a ({x}) must match the size of tensor b ({y}) at non-singleton "
                    f"dimension {i}"
                )
        out = [y if x == 1 else x for x, y in zip(a, b, strict=True)]
    return tuple(out)


def broadcast_to(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``x`` repeated to ``shape`` without memory. For operands of primitives: not a view of the user's."""
    have = shape_of(x)
    if have == shape:
        return x
    out = apply(P.broadcast_p, x, shape=shape, axes=tuple(range(len(shape) - len(have), len(shape))))
    if type(out._data) is not Value:  # the same memory: a later write to x must be noticed by who saves this
        out._vc = x._vc
    return out


def broadcast_tensors(*tensors: Tensor) -> tuple[Tensor, ...]:
    shape = broadcast_shapes(*(shape_of(t) for t in tensors))
    return tuple(broadcast_to(t, shape) for t in tensors)


def in_float32(fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of a tensor that is computed in float32 where the tensor is of half precision, and rounded
    once at the end, as PyTorch does for activations.
    """

    @functools.wraps(fn)
    def wide(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not (x.dtype.is_floating_point and x.dtype.bits == 16):
            return fn(x, *args, **kwargs)
        return convert(fn(convert(x, T.f32), *args, **kwargs), x.dtype)

    return wide


def to_inexact(dtype: DType) -> DType:
    """What an integer dtype becomes where the result is not an integer."""
    return dtype if dtype.is_inexact else get_default_dtype()


def elementwise(
    prim: Primitive, *operands: Any, dtype: DType | None = None, to_float: bool = False
) -> Tensor:
    """``prim`` on tensors and numbers: promoted (to ``dtype`` if given), broadcast."""
    if dtype is None:
        dtype = promote(*operands)
        if to_float:
            dtype = to_inexact(dtype)
    if _current.get() is _NUMPY and not any(
        isinstance(x, Tensor) and x.requires_grad and mode.grad for x in operands
    ):
        return _unrecorded(prim, operands, dtype)
    tensors = [as_tensor(x, dtype) for x in operands]
    shape = broadcast_shapes(*(shape_of(t) for t in tensors))
    return apply(prim, *[broadcast_to(t, shape) for t in tensors])


def _unrecorded(prim: Primitive, operands: Sequence[Any], dtype: DType) -> Tensor:
    """Eager without gradient: numpy broadcasts in the MAP rules, so no views are made first."""
    tensors = [
        x
        if isinstance(x, Tensor) and x.dtype is dtype
        else convert(x, dtype)
        if isinstance(x, Tensor)
        else wrap(number_array(x, dtype))
        for x in operands
    ]
    if len(tensors) > 1:
        broadcast_shapes(*[t._data.shape for t in tensors])  # the error in torch's words
    return apply(prim, *tensors)


def binary(prim: Primitive, a: Any, b: Any, *, to_float: bool = False) -> Tensor:
    """An elementwise operation of two operands; the common case (same shape and dtype) goes straight."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        x, y = a._data, b._data
        if (
            type(x) is _ndarray
            and type(y) is _ndarray
            and x.dtype is y.dtype
            and (not to_float or x.dtype.kind == "f")
        ):
            if x.shape != y.shape:
                return _broadcast_binary(prim, a, b)
            if x.dtype is _F32 and prim.ufunc and x.nbytes < LEAST_BYTES and _current.get() is _NUMPY:
                return apply_small(prim, a, b)
            return apply(prim, a, b)
        kind = getattr(x, "dense", None)  # of arrays on a GPU
        if kind is not None and getattr(y, "dense", None) is kind and (not to_float or x.dtype.kind == "f"):
            return apply(prim, a, b)
    elif _current.get() is _NUMPY:
        quick = _with_number(prim, a, b, to_float)
        if quick is not None:
            return quick
    return elementwise(prim, a, b, to_float=to_float)


def _broadcast_binary(prim: Primitive, a: Tensor, b: Tensor) -> Tensor:
    """Two operands of one dtype and different shapes."""
    shape = broadcast_shapes(a._data.shape, b._data.shape)
    if _current.get() is _NUMPY and not (mode.grad and (a.requires_grad or b.requires_grad)):
        if b._data.size == 1 and a._data.shape == shape:  # as with a number
            return apply(prim, a, wrap(b._data.reshape(())))
        if a._data.size == 1 and b._data.shape == shape:
            return apply(prim, wrap(a._data.reshape(())), b)
    if math.prod(shape) * a._data.itemsize >= _LARGE:  # so that the size of the result shows
        a, b = broadcast_to(a, shape), broadcast_to(b, shape)
    if _current.get() is _NUMPY and not (mode.grad and (a.requires_grad or b.requires_grad)):
        return apply(prim, a, b)
    return apply(prim, broadcast_to(a, shape), broadcast_to(b, shape))


_PLAIN = {int: "fi", float: "f"}  # kinds of tensors that keep their dtype with such a number


def _with_number(prim: Primitive, a: Any, b: Any, to_float: bool) -> Tensor | None:
    """A tensor and a plain Python number that does not change its dtype, eager; None for other cases."""
    swapped = not isinstance(a, Tensor)
    x, value = (b, a) if swapped else (a, b)
    if not isinstance(x, Tensor):
        return None
    d = x._data
    kinds = _PLAIN.get(type(value))
    if kinds is None or type(d) is Value:
        return None
    kind = d.dtype.kind
    if kind not in kinds or (to_float and kind != "f"):
        return None
    if mode.grad and (x._rg or x._view is not None) and x.requires_grad:
        operand = np.ndarray(d.shape, d.dtype, number(value, d.dtype), 0, (0,) * d.ndim)  # strides of zero
    elif kind == "f":
        operand = number(value, d.dtype)
    else:
        return None  # integers may overflow
    n = wrap(operand)
    return apply(prim, n, x) if swapped else apply(prim, x, n)



def unary(prim: Primitive, x: Tensor, *, to_float: bool = False) -> Tensor:
    """An elementwise operation of one operand, always with memory of its own."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{prim.name}(): argument 'input' must be Tensor, not {type(x).__name__}")
    d = x._data
    if type(d) is _ndarray and d.dtype is _F32 and prim.ufunc and d.nbytes < LEAST_BYTES:
        if _current.get() is _NUMPY:
            return apply_small(prim, x)
    elif to_float and (type(d) is not _ndarray or d.dtype.kind != "f") and not x.dtype.is_inexact:
        x = convert(x, get_default_dtype())
    out = apply(prim, x)
    return own(out, x) if out._data is x._data else out


def wrap_dim(dim: int, ndim: int) -> int:
    """A dimension argument as a non-negative int; torch's IndexError out of range. 0-d tensors have dimension
    0 and -1.
    """
    n = max(ndim, 1)
    if not hasattr(dim, "__index__"):
        raise TypeError(f"argument 'dim' must be int, not {type(dim).__name__}")
    if not -n <= dim < n:
        raise IndexError(
            f"Dimension out of range (expected to be in range of [{-n}, {n - 1}], but got {dim})"
        )
    return dim.__index__() % n


def wrap_dims(dim: Any, ndim: int) -> tuple[int, ...]:
    """Reduction dimensions, sorted; None and () mean all. RuntimeError for one that appears twice."""
    if dim is None:
        return tuple(range(ndim))
    dims = (dim,) if hasattr(dim, "__index__") else tuple(dim)
    if not dims:
        return tuple(range(ndim))
    out = [wrap_dim(d, ndim) for d in dims]
    if len(set(out)) != len(out):
        twice = next(d for d in out if out.count(d) > 1)
        raise RuntimeError(f"dim {twice} appears multiple times in the list of dims")
    return tuple(sorted(out)) if ndim else ()
