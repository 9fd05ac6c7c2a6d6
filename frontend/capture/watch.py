"""Watches a trace for what a graph cannot hold: calls of C functions with side effects or hidden inputs, and
user code that the walk over the environment did not foresee.

A profile hook sees every Python call and every call of a C function; those made by weft itself do not count,
and reach Python once.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

from weft.capture.userland import kind_of, user_frame
from weft.runtime import watching

_PURE_MODULES = frozenset(
    {
        "math",
        "cmath",
        "_operator",
        "itertools",
        "_functools",
        "_collections",
        "numpy",
        "_struct",
        "_sre",
        "_abc",
        "_weakref",
        "_typing",
        "_bisect",
        "_heapq",
        "_statistics",
        "_json",
        "_string",
        "_stat",
        "_decimal",
        "binascii",
        "numpy._core._multiarray_umath",
        "numpy.core._multiarray_umath",
        "unicodedata",
        "_locale",
        "_contextvars",
    }
)
_IMPURE_BUILTINS = frozenset(
    {"print", "open", "input", "exec", "eval", "compile", "breakpoint", "__import__", "globals"}
)
_PURE_SELF = (
    list,
    dict,
    set,
    frozenset,
    tuple,
    str,
    bytes,
    bytearray,
    int,
    float,
    complex,
    bool,
    type(None),
    range,
    slice,
    type,
    BaseException,
)
_PURE_SELF_MODULES = (
    "numpy",
    "collections",
    "builtins",
    "weft",
    "_collections",
    "functools",
    "re",
    "types",
    "_contextvars",
    "operator",
    "decimal",
    "fractions",
    "weakref",
    "_weakrefset",
    "_abc",
)
_IMPURE_METHODS = frozenset({"tofile", "dump"})


def impurity(fn: Any) -> str | None:
    """Why a call of this C function cannot be part of a graph, or None."""
    name = getattr(fn, "__name__", "")
    owner = getattr(fn, "__self__", None)
    module = getattr(fn, "__module__", None)
    if owner is builtins or (module == "builtins" and type(owner) is type(builtins)):
        return f"calls {name}()" if name in _IMPURE_BUILTINS else None
    if owner is None or type(owner) is type(sys):
        where = module or getattr(owner, "__name__", "")
        return (
            None
            if where.split(".")[0] in _PURE_MODULES or where in _PURE_MODULES
            else f"calls {where}.{name}()"
        )
    if isinstance(owner, type):
        home = owner.__module__
        return None if home.startswith(_PURE_SELF_MODULES) else f"calls {home}.{owner.__qualname__}.{name}()"
    home = type(owner).__module__
    if name in _IMPURE_METHODS:
        return f"calls {name}()"
    if isinstance(owner, _PURE_SELF) or (home.startswith(_PURE_SELF_MODULES) and "random" not in home):
        return None
    if home in ("random", "_random"):
        return f"calls random.{name}()"
    if name.startswith("__") or type(owner).__flags__ & (
        1 << 9
    ):  # a method that a Python class inherits from C
        return None
    return f"calls {home}.{type(owner).__qualname__}.{name}()"


def _restore(profiler: Any) -> None:
    """Give the profile hook back. A profiler written in C (cProfile) is no callable: it is started again."""
    if profiler is None or callable(profiler):
        sys.setprofile(profiler)
    else:
        sys.setprofile(None)
        profiler.enable()


def _random_state() -> Any:
    """The state of Python's random numbers; None where nobody has imported them."""
    random = sys.modules.get("random")
    return random.getstate() if random is not None else None


class Watch:
    """``impure`` is the first (reason, location) seen that a graph cannot hold; None if there was none."""

    def __init__(self, foreseen: dict[int, CodeType]) -> None:
        self.impure: tuple[str, str] | None = None
        self.executed: set[int] = set()
        self._foreseen = foreseen
        self._fast = True  # whether the hook is native
        self._hook = self._event

    @contextmanager
    def on(self) -> Iterator[Watch]:
        """Watch the block (of this thread)."""
        before = sys.getprofile()
        state = _random_state()
        self._fast = watching.ready()
        watching.start(self._hook)
        try:
            yield self
        finally:
            _restore(before)
            if self.impure is None and state not in (None, _random_state()):
                self.impure = ("uses Python's random numbers", "")

    def _event(self, frame: FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        kind = kind_of(code)
        if kind == "weft":
            watching.pass_over(code)
            if not self._fast and watching.ready():
                self._fast = True
                watching.start(self._hook)
        elif event == "c_call":
            if self.impure is None:
                self._c_call(frame, arg)
        elif event == "call":
            if id(code) in self._foreseen:
                self.executed.add(id(code))
            elif kind == "user" and self.impure is None:
                self._unforeseen(frame, code)

    def _c_call(self, frame: FrameType, fn: Any) -> None:
        reason = impurity(fn)
        if reason is not None and not _called_by_weft(frame) and not _importing(frame):
            self.impure = (reason, _where(frame))

    def _unforeseen(self, frame: FrameType, code: CodeType) -> None:
        if code.co_filename.startswith("<string>") or _importing(frame):
            return
        self.impure = (
            f"runs {code.co_qualname}, which was reached in a way that cannot be followed",
            _where(frame.f_back),
        )


def _called_by_weft(frame: FrameType) -> bool:
    """Whether a library call was made on behalf of weft's own code (contextlib, typing, numpy)."""
    f: FrameType | None = frame
    while f is not None:
        kind = kind_of(f.f_code)
        if kind != "library":
            return kind == "weft"
        f = f.f_back
    return False


def _importing(frame: FrameType) -> bool:
    """Whether a module is being imported: that happens once, eagerly or not."""
    f: FrameType | None = frame
    while f is not None:
        if f.f_code.co_filename.startswith("<frozen importlib"):
            return True
        f = f.f_back
    return False


def _where(frame: FrameType | None) -> str:
    f = user_frame(frame)
    return "" if f is None else f"{f.f_code.co_filename}:{f.f_lineno}"
