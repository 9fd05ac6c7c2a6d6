"""Second spellings of keyword arguments: numpy's ``axis`` and ``keepdims``, names of variable arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

RENAMED = {"axis": "dim", "keepdims": "keepdim", "axis0": "dim0", "axis1": "dim1", "self": "input"}
_VARARGS = 0x04  # inspect.CO_VARARGS


def keywords(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn`` that also takes ``axis`` for ``dim`` and its variable arguments (``*dims``) by keyword.

    Functions for which neither means anything come back as they are.
    """
    if hasattr(fn, "shorten"):  # the short way stays in front
        inner = keywords(fn.__wrapped__)  # type: ignore[attr-defined]
        return fn if inner is fn.__wrapped__ else fn.shorten(inner)  # type: ignore[attr-defined]
    code = fn.__code__  # type: ignore[attr-defined]
    n = code.co_argcount + code.co_kwonlyargcount
    names = code.co_varnames[:n]
    several = code.co_varnames[n] if code.co_flags & _VARARGS else None
    renamed = {a: b for a, b in RENAMED.items() if b in names and a not in names}
    if several is None and not (renamed.keys() - {"self"}):
        return fn

    @functools.wraps(fn)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if kwargs:
            for name in kwargs.keys() & renamed.keys():
                kwargs[renamed[name]] = kwargs.pop(name)
            if several in kwargs:
                args = (*args, kwargs.pop(several))
        return fn(*args, **kwargs)

    return wrapped
