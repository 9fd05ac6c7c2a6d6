"""Profile hooks that cost little: events of code that is known not to matter never reach Python."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from functools import cache
from types import CodeType
from typing import Any, TypeVar

from weft.runtime import callpath, watch_ir

Result = TypeVar("Result")
_MOST = watch_ir.SLOTS // 2  # code objects in the table: a fuller one is slow to search
_known: list[Any] = []  # what the table refers to, kept alive
_current = threading.local()  # its ``callback`` is what this thread was started with


@cache
def _native() -> tuple[int, Any] | None:
    """(address of the profile function, its data); None where there is none."""
    found = callpath.symbols()
    if found is None:
        return None
    data = (ctypes.c_int64 * (watch_ir.HEAD + 2 * watch_ir.SLOTS)).from_address(found["weft_watch_data"])
    names = [sys.intern("call"), sys.intern("c_call"), None]
    _known.extend(names)
    data[: watch_ir.HEAD] = [id(x) for x in names]
    return found["weft_watch"], data


def ready() -> bool:
    """Whether the native function is there; until it is compiled, :func:`start` does without."""
    return callpath.ready()


def start(callback: Callable[..., Any]) -> None:
    """Call ``callback(frame, event, arg)`` at each "call" and "c_call" in this thread, but for those of code
    that :func:`pass_over` named; ``sys.setprofile`` ends it. It may be told of other events, too. It may call
    this again, when :func:`ready` has become true."""
    _current.callback = callback
    native = _native() if ready() else None
    if native is None:
        sys.setprofile(callback)
    else:
        _install()(native[0], callback)


@cache
def _install() -> Callable[[int, Any], None]:
    kind = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.py_object)
    return kind(("PyEval_SetProfile", ctypes.pythonapi))


def unwatched(fn: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """``fn(*args, **kwargs)`` without telling the callback: for what calls nothing that it would want to know
    of. While there is a profile function, whatever it does, the interpreter is much slower."""
    callback = sys.getprofile()
    if callback is None or callback is not getattr(_current, "callback", None):
        return fn(*args, **kwargs)
    sys.setprofile(None)
    try:
        return fn(*args, **kwargs)
    finally:
        start(callback)


def pass_over(code: CodeType) -> None:
    """Tell nobody of calls of ``code`` and of the C functions that it calls, from now on."""
    native = _native() if ready() else None
    if native is None or len(_known) > _MOST:
        return
    data, slot = native[1], watch_ir.slot_of(id(code))
    while data[watch_ir.HEAD + 2 * slot] not in (0, id(code)):
        slot = (slot + 1) % watch_ir.SLOTS
    at = watch_ir.HEAD + 2 * slot
    if not data[at]:
        _known.append(code)
    data[at + 1], data[at] = watch_ir.CALLS | watch_ir.C_CALLS, id(code)
