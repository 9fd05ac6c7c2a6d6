"""Whether operations are recorded for gradients: a thread-local mode and its context managers."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any


class _Mode(threading.local):
    grad: bool = True
    inference: bool = False
    autocast: Any = None  # the state of weft.casting; None outside
    casts: Any = None  # converted parameters, kept for the block


mode = _Mode()


class _Inference:
    """How many blocks of inference mode are open in all threads: what asks for the mode of its thread often,
    asks here first."""

    def __init__(self) -> None:
        self.used, self._lock = 0, threading.Lock()

    def add(self, n: int) -> None:
        with self._lock:
            self.used += n


inference = _Inference()


def is_grad_enabled() -> bool:
    """Whether operations on tensors that require grad are recorded in this thread."""
    return mode.grad


def is_inference_mode_enabled() -> bool:
    return mode.inference


class _GradContext:
    """A context manager that is a decorator too; a generator function keeps the mode between its yields."""

    def __enter__(self) -> Any:
        self._previous = (mode.grad, mode.inference)
        self._set()

    def __exit__(self, *exc: Any) -> None:
        mode.grad, mode.inference = self._previous

    def _set(self) -> None:
        raise RuntimeError("abstract")

    def clone(self) -> _GradContext:
        return self.__class__()

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.isgeneratorfunction(fn):
            return self._generator(fn)

        @functools.wraps(fn)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self.clone():
                return fn(*args, **kwargs)

        return wrapped

    def _generator(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(fn)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            gen = fn(*args, **kwargs)
            sent: Any = None
            while True:
                with self.clone():
                    try:
                        item = gen.send(sent)
                    except StopIteration as stop:
                        return stop.value
                sent = yield item

        return wrapped


class _Decorable(type):
    """``@no_grad`` without parentheses decorates at once."""

    def __call__(cls, fn: Any = None, *args: Any, **kwargs: Any) -> Any:
        if callable(fn):
            return super().__call__()(fn)
        return super().__call__()


class no_grad(_GradContext, metaclass=_Decorable):
    """Operations in the block (or decorated function) are not recorded.

    >>> import weft
    >>> x = weft.ones(2, requires_grad=True)
    >>> with weft.no_grad():
    ...     y = x * 2
    >>> y.requires_grad
    False
    """

    def _set(self) -> None:
        mode.grad = False


class enable_grad(_GradContext, metaclass=_Decorable):
    """Operations in the block are recorded, also inside ``no_grad``."""

    def _set(self) -> None:
        if not mode.inference:
            mode.grad = True


class inference_mode(_GradContext):
    """As ``no_grad``; tensors made in the block can never take part in a recorded operation."""

    def __new__(cls, mode: Any = True) -> Any:
        if callable(mode):
            return cls()(mode)
        return super().__new__(cls)

    def __init__(self, mode: bool = True) -> None:
        self.value = mode

    def __enter__(self) -> Any:
        inference.add(1)
        super().__enter__()

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        inference.add(-1)

    def _set(self) -> None:
        mode.inference = self.value
        mode.grad = mode.grad and not self.value

    def clone(self) -> _GradContext:
        return self.__class__(self.value)


class set_grad_enabled(_GradContext):
    """Turn recording on or off: at once as a function, to the end of the block as a context manager."""

    def __init__(self, mode: bool) -> None:
        self.value = bool(mode)
        self._previous = (_mode().grad, _mode().inference)
        _mode().grad = self.value

    def __enter__(self) -> None:
        _mode().grad = self.value

    def clone(self) -> _GradContext:
        return self.__class__(self.value)

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        _mode().grad = self._previous[0]  # used as a decorator: it changes nothing now
        return super().__call__(fn)


def _mode() -> _Mode:
    return mode
