"""The short way of eager operations on small operands, whose cost is that of getting to numpy and back.

One Python call leads from the method to the ufunc: operands whose payloads are numpy arrays of one dtype, the
eager interpreter, and nobody who could want a gradient. Whatever else there is (mixed dtypes, capture,
devices, errors in torch's words) takes the general way, which gives the same result.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import Context
from typing import Any

import numpy as np
from weft.autograd.grad_mode import inference, mode
from weft.autograd.tape import record_map
from weft.eager import LEAST_BYTES
from weft.ir.prims.base import _NUMPY, Primitive, _current
from weft.tensor import Tensor

# Elements of operands of two shapes together. However they broadcast, the result has at most the product
# of the halves, 65536 elements, for which numpy is as good as a kernel.
FEW = 512
# Elements of an operand from which on the general way chooses between numpy and a kernel.
SMALL = LEAST_BYTES // 4
NUMBERS = 4096  # kept as arrays

_NO: Any = object()  # a number that would change the dtype

_new = object.__new__
_ndarray = np.ndarray
_asarray = np.asarray
_current_interpreter = _current.get
_F32, _F64, _BOOL = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.bool_)
_FLOATS = frozenset((_F32, _F64))
_INTEGERS = frozenset(map(np.dtype, ("int64", "int32", "int16", "int8", "uint8", "bool")))

# ``quietly(ufunc, *arrays)`` with floating point errors off: to enter a context in which they are costs a
# tenth of setting and resetting them. RuntimeError where another thread is in it at this moment.
_context = Context()
_context.run(np.seterr, all="ignore")
quietly = _context.run

_numbers: dict[
    tuple[type, int], dict[Any, np.ndarray]
] = {}  # by the type of the number and that of the array


def _table(kind: type, dtype: Any) -> dict[Any, np.ndarray]:
    return _numbers.setdefault((kind, dtype.num), {})


def number(value: float, dtype: Any) -> np.ndarray:
    """A plain Python number as a 0-d array of ``dtype`` that nobody writes to."""
    table = _table(type(value), dtype)
    found = table.get(value)
    if found is None:
        found = np.array(value, dtype)
        if value or type(value) is int:  # 0.0 and -0.0 would be one key
            if len(table) >= NUMBERS:
                table.clear()
            table[value] = found
    return found


_f32_of_float, _f32_of_int = _table(float, _F32), _table(int, _F32)


def _taped(
    prim: Primitive, operands: tuple[Tensor | None, ...], arrays: tuple[np.ndarray, ...]
) -> Tensor | None:
    """The result of one operation on operands of one type, on the tape; None: take the general way."""
    for x in operands:
        if x is not None and x._inference:
            return None
    try:
        data = quietly(prim.ufunc, *arrays)  # type: ignore[arg-type]
    except RuntimeError:
        return None
    t = _new(Tensor)
    t._data = data if type(data) is _ndarray else _asarray(data)
    t._vc = [0]
    t._view = None
    record_map(prim, operands, arrays, t)
    return t


def _marked(fn: Any, general: Callable[..., Any], shorten: Callable[..., Any]) -> Callable[..., Any]:
    """``fn`` under the name of ``general``; ``shorten`` puts the short way before another general way."""
    fn = functools.wraps(general)(fn)
    fn.shorten = shorten
    return fn


def _dtypes(prim: Primitive) -> frozenset[Any]:
    """The dtypes on which the numpy rule of a primitive is its ufunc and nothing more."""
    domain = frozenset(d.np for d in prim.dtypes)
    return domain & (_FLOATS | _INTEGERS if prim.plain_ufunc else _FLOATS)


def _stretches(small: np.ndarray, large: np.ndarray) -> bool:
    """Whether ``small`` broadcasts to the shape of ``large`` along leading dimensions, or along the last."""
    a, b = small.shape, large.shape
    return a == b[len(b) - len(a) :] or (len(a) == len(b) and a[-1] == 1 and a[:-1] == b[:-1])


def _few(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether the result of two small operands is small, whatever way they broadcast to it."""
    n, m = x.size, y.size
    return n == 1 or m == 1 or (_stretches(y, x) if n > m else _stretches(x, y))


def binary_function(
    prim: Primitive, general: Callable[..., Any], swapped: bool = False
) -> Callable[..., Any]:
    """``general``, a function of a tensor and another operand, with the short way before it. ``swapped``: a
    reflected operator, whose other operand comes first."""
    ufunc, differentiable = prim.ufunc, not prim.nondifferentiable
    if ufunc is None:
        return general
    dtypes, integers = _dtypes(prim), prim.plain_ufunc
    usual = _F32 if _F32 in dtypes else _BOOL

    def method(input: Any, other: Any, *, out: Any = None) -> Any:
        if out is not None:
            return general(input, other, out=out)
        if not isinstance(input, Tensor):
            return general(input, other)
        x, taped, view = input._data, input._rg, input._view
        if type(x) is not _ndarray or x.size >= SMALL:
            return general(input, other)
        if view is not None and view.edge_version != input._vc[0]:
            return general(input, other)
        d = x.dtype
        if (d is not usual and d not in dtypes) or _current_interpreter() is not _NUMPY:
            return general(input, other)
        if isinstance(other, Tensor):
            y, view = other._data, other._view
            if type(y) is not _ndarray or y.dtype is not d or y.size >= SMALL:
                return general(input, other)
            if view is not None and view.edge_version != other._vc[0]:
                return general(input, other)
            if x.shape != y.shape and x.size + y.size > FEW and not _few(x, y):
                return general(input, other)
            if (taped or other._rg) and differentiable and mode.grad:
                t = _taped(prim, (input, other), (x, y)) if x.shape == y.shape else None
                return general(input, other) if t is None else t
        else:
            if type(other) is float:
                y = _f32_of_float.get(other) if d is _F32 else None if d is _F64 else _NO
            elif type(other) is int:
                y = _f32_of_int.get(other) if d is _F32 else None if d is _F64 or integers else _NO
            else:
                return general(input, other)
            if y is None:
                if d.kind != "f" and d.kind != "i":
                    return general(input, other)
                try:
                    y = number(other, d)
                except OverflowError:
                    return general(input, other)
            elif y is _NO:
                return general(input, other)
            if taped and differentiable and mode.grad:
                y = _ndarray(x.shape, d, y, 0, (0,) * x.ndim)
                t = _taped(prim, (None, input), (y, x)) if swapped else _taped(prim, (input, None), (x, y))
                return general(input, other) if t is None else t
        try:
            data = quietly(ufunc, y, x) if swapped else quietly(ufunc, x, y)
        except (RuntimeError, ValueError, TypeError):
            return general(input, other)
        t = _new(Tensor)
        t._data = data if type(data) is _ndarray else _asarray(data)
        t._vc = [0]
        t._view = None
        t._rg = False
        if inference.used and mode.inference:
            t._inference = True
        return t

    made = _marked(method, general, functools.partial(binary_function, prim, swapped=swapped))
    made.prim = prim
    return made


def unary_function(prim: Primitive, general: Callable[..., Any], *numbers: float) -> Callable[..., Any]:
    """``general``, a function of one tensor, with the short way before it: ``prim`` of it and ``numbers``."""
    ufunc, differentiable = prim.ufunc, not prim.nondifferentiable
    if ufunc is None:
        return general
    dtypes = _FLOATS if numbers else _dtypes(prim)
    usual = _F32 if _F32 in dtypes else _BOOL
    singles, doubles = ([number(n, d) for n in numbers] for d in (_F32, _F64))

    def fn(input: Any, *, out: Any = None) -> Any:
        if out is not None:
            return general(input, out=out)
        if not isinstance(input, Tensor):
            return general(input)
        x, view = input._data, input._view
        if type(x) is not _ndarray or x.size >= SMALL:
            return general(input)
        if view is not None and view.edge_version != input._vc[0]:
            return general(input)
        d = x.dtype
        if (d is not usual and d not in dtypes) or _current_interpreter() is not _NUMPY:
            return general(input)
        if input._rg and differentiable and mode.grad:
            t = None if numbers else _taped(prim, (input,), (x,))
            return general(input) if t is None else t
        try:
            if not numbers:
                data = quietly(ufunc, x)
            else:
                data = quietly(ufunc, x, *(singles if d is _F32 else doubles))
        except RuntimeError:
            return general(input)
        t = _new(Tensor)
        t._data = data if type(data) is _ndarray else _asarray(data)
        t._vc = [0]
        t._view = None
        t._rg = False
        if inference.used and mode.inference:
            t._inference = True
        return t

    made = _marked(fn, general, lambda again: unary_function(prim, again, *numbers))
    if not numbers:
        made.prim = prim
    return made
