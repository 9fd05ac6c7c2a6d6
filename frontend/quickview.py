"""The short way of views: what a call with these arguments takes of a tensor of this shape is found once.

``view_function`` puts it before a function whose results are views. The first call with a combination of
shape and arguments takes the general way; what it did is kept as one numpy expression and the steps that go
into :class:`weft.views.View`. Basic indexing needs no table: numpy takes the same keys, and the steps are
worked out when somebody asks for them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from operator import itemgetter, methodcaller
from types import EllipsisType, NoneType
from typing import Any

import numpy as np
from weft.autograd.grad_mode import mode
from weft.autograd.tape import record_steps, shaped
from weft.ir import prims as P
from weft.ir.prims.base import _NUMPY, _current
from weft.tensor import Tensor
from weft.views import Step, View

MOST = 4096  # combinations that one function keeps

_new = object.__new__
_ndarray = np.ndarray
_current_interpreter = _current.get
_INDICES = frozenset((int, slice, NoneType, EllipsisType))
_BOUNDS = frozenset((int, NoneType))


def _broadcast(shape: tuple[int, ...], axes: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """The rule of ``broadcast`` on an array whose strides may be those it had last."""
    last: list[Any] = [None, None, None]
    rule = P.broadcast_p.eval

    def call(a: np.ndarray) -> np.ndarray:
        if a.strides != last[0] or a.shape != last[1] or not a.flags.c_contiguous:
            out = rule(a, shape=shape, axes=axes)
            last[:] = a.strides, a.shape, out.strides
            return out
        out = _ndarray(shape, a.dtype, a, 0, last[2])
        out.setflags(write=False)
        return out

    return call


# numpy's way of a step, where it is one call
_CALLS: dict[Any, Callable[[Any], Callable[[np.ndarray], np.ndarray]]] = {
    P.permute_p: lambda attrs: methodcaller("transpose", attrs["perm"]),
    P.reshape_p: lambda attrs: methodcaller("reshape", attrs["shape"]),
    P.broadcast_p: lambda attrs: _broadcast(attrs["shape"], attrs["axes"]),
    P.slice_p: lambda attrs: itemgetter(tuple(map(slice, attrs["start"], attrs["stop"], attrs["step"]))),
}


def _expression(steps: Sequence[Step]) -> Callable[[np.ndarray], np.ndarray]:
    """All steps as one function of an array."""
    calls = [
        _CALLS[p](a) if p in _CALLS else functools.partial(p.eval, **p.normalize_attrs(a)) for p, a in steps
    ]
    if len(calls) == 1:
        return calls[0]

    def chain(a: np.ndarray) -> np.ndarray:
        for call in calls:
            a = call(a)
        return a

    return chain


def derived(x: Tensor, a: np.ndarray, data: np.ndarray, last: Any, origin: str | None) -> Tensor:
    """The tensor of ``data``, a view of ``a``, the array of ``x``; ``last``: its steps, see View."""
    t = _new(Tensor)
    t._data, t._vc, t._rg = data, x._vc, False
    made = t._view = _new(View)
    version = x._vc[0]
    before = x._view
    if before is not None and before.differentiable:
        made.base, made.before = before.base, before
        made.origin = origin or before.origin
    else:
        made.base, made.before = x, None
        made.origin = origin if before is None else origin or before.origin
    made.last, made.differentiable = last, True
    made.edge_version = made.value_version = version
    return t


class _Found:
    """What a function gives for one combination: for each result its expression, steps and origin."""

    __slots__ = ("parts", "single")

    def __init__(self, parts: list[tuple[Any, tuple[Step, ...], str | None]], single: bool) -> None:
        self.parts, self.single = parts, single


def _plain(args: Sequence[Any]) -> bool:
    return all(type(a) is int or (type(a) is tuple and _plain(a)) for a in args)


def _find(x: Tensor, args: Sequence[Any], out: Any) -> _Found | None:
    """What the general way did, if it can be done again."""
    outs = (out,) if isinstance(out, Tensor) else out
    if x._view is not None and x._view.origin is not None:
        return None
    before = x._view.steps if x._view is not None and x._view.differentiable else ()
    parts = []
    for o in outs:
        v = o._view
        if v is None or not v.differentiable:
            return None
        if len(v.steps) <= len(before) or v.steps[: len(before)] != before:
            return None
        steps = v.steps[len(before) :]
        parts.append((_expression(steps), steps, v.origin))
    return _Found(parts, out is not outs) if _plain(args) else None


def _shaped(a: np.ndarray, steps: Any, name: Any) -> list[Any]:
    """The steps as the tape takes them, worked out once for each name."""
    try:
        return _recorded[name]
    except KeyError:
        if len(_recorded) >= MOST:
            _recorded.clear()
        made: Any = steps() if callable(steps) else steps
        found = _recorded[name] = shaped(a.shape, a.dtype, made)
        return found


_recorded: dict[Any, list[Any]] = {}


def view_function(general: Callable[..., Any]) -> Callable[..., Any]:
    """``general``, a function of a tensor, ints and tuples of ints that gives views, with the short way
    before it."""
    table: dict[Any, _Found] = {}

    def quick(input: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            a = input._data
            found = table[(a.shape, args)]
        except (KeyError, TypeError, AttributeError):
            return meet(input, args, kwargs)
        if kwargs or type(a) is not _ndarray or input._inference or _current_interpreter() is not _NUMPY:
            return general(input, *args, **kwargs)
        view = input._view
        if view is not None and view.edge_version != input._vc[0]:
            view.refresh_edge(input)
        taped = input._rg and mode.grad
        results = []
        for expression, steps, origin in found.parts:
            data = expression(a)
            base = data.base
            if base is not a and (base is None or base is not a.base):  # numpy had to copy
                return general(input, *args)
            t = derived(input, a, data, steps, origin)
            if taped:
                record_steps(input, a, t, _shaped(a, steps, (general, a.shape, a.dtype, args, len(results))))
            if found.single:
                return t
            results.append(t)
        return tuple(results)

    def meet(input: Any, args: Any, kwargs: Any) -> Any:
        out = general(input, *args, **kwargs)
        if kwargs or not isinstance(input, Tensor) or type(input._data) is not _ndarray:
            return out
        if _current_interpreter() is not _NUMPY or input._inference:
            return out
        found = _find(input, args, out)
        if found is not None:
            if len(table) >= MOST:
                table.clear()
            table[(input._data.shape, args)] = found
        return out

    made: Any = functools.wraps(general)(quick)
    made.shorten = view_function
    return made


def _basic(key: Any) -> bool:
    """Whether numpy takes this key as torch does, and gives a view."""
    kind = type(key)
    if kind is slice:
        step = key.step
        if step is not None and (type(step) is not int or step <= 0):
            return False
        return type(key.start) in _BOUNDS and type(key.stop) in _BOUNDS
    return kind in _INDICES


def item_view(x: Tensor, key: Any, steps: Callable[[Any, Any], tuple[Step, ...]]) -> Tensor | None:
    """``x[key]`` where the key makes a view; None: take the general way. ``steps(shape, key)`` says what the
    view consists of."""
    a = x._data
    if type(a) is not _ndarray or x._inference or _current_interpreter() is not _NUMPY:
        return None
    if type(key) is tuple:
        for k in key:
            if not _basic(k):
                return None
    elif not _basic(key):
        return None
    try:
        data = a[key]
        if type(data) is not _ndarray:  # a number
            data = a[(*key, ...)] if type(key) is tuple else a[key, ...]
    except IndexError:
        return None
    view = x._view
    if view is not None and view.edge_version != x._vc[0]:
        view.refresh_edge(x)
    t = derived(x, a, data, (steps, a.shape, key), None)
    if x._rg and mode.grad:
        name = (a.shape, a.dtype, tuple([_name(k) for k in key]) if type(key) is tuple else _name(key))
        record_steps(x, a, t, _shaped(a, lambda: steps(a.shape, key), name))
    return t


def _name(k: Any) -> Any:
    """An index as something to find it by."""
    return (k.start, k.stop, k.step) if type(k) is slice else k
