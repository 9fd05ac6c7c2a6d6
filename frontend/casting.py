"""Which dtype an operation runs in under ``autocast``: decorators of the functions that it concerns.

The state of a thread (``mode.autocast``) is one of a few :class:`Casting` objects, compared by identity; None
outside. Inside a decorated function it is off, as in PyTorch. The lists follow PyTorch's "Autocast Op
Reference": products run in the lower precision, what needs range or digits in float32, and what takes several
tensors in the widest of their dtypes.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from weft.autograd.grad_mode import mode
from weft.ir import types as T
from weft.ir.prims.base import _NUMPY, _current
from weft.ir.record import record
from weft.ir.types import DType
from weft.tensor import Tensor

Fn = TypeVar("Fn", bound=Callable[..., Any])
DTYPES = {"cuda": (T.f16, T.bf16), "cpu": (T.bf16, T.f16)}  # by device; the first is the default
_FLOATS = (T.f16, T.bf16, T.f32)


@record(frozen=True)
class Casting:
    """The dtype of products by device type, for the devices where autocast is on."""

    dtypes: tuple[tuple[str, DType], ...]

    def dtype(self, device: str) -> DType | None:
        return next((d for name, d in self.dtypes if name == device), None)

    def __str__(self) -> str:
        return " and ".join(f"{d.long_name} on {name}" for name, d in self.dtypes)


@functools.cache
def casting(dtypes: tuple[tuple[str, DType], ...]) -> Casting | None:
    """The state with these dtypes; None for none."""
    return Casting(dtypes) if dtypes else None


class Casts:
    """Parameters in the lower precision, kept from their first use in a block to its end, so that a weight
    that is used often is converted once."""

    def __init__(self) -> None:
        self.known: dict[tuple[int, DType], tuple[Tensor, int, Tensor]] = {}

    def get(self, t: Tensor, dtype: DType) -> Tensor:
        found = self.known.get((id(t), dtype))
        if found is None or found[1] != t._vc[0]:
            found = self.known[id(t), dtype] = t, t._vc[0], t.to(dtype)
        return found[2]


class Open:
    """How many blocks are open in all threads: what every product asks first."""

    def __init__(self) -> None:
        self.blocks, self._lock = 0, threading.Lock()

    def add(self, n: int) -> None:
        with self._lock:
            self.blocks += n


opened = Open()


def _cast(x: Any, dtype: DType, device: str) -> Any:
    """A tensor (or those of a list) in ``dtype``; f64, other dtypes and other devices stay what they are."""
    if isinstance(x, Tensor):
        if x.dtype is dtype or x.dtype not in _FLOATS or x.device.type != device:
            return x
        leaf = x._rg and x.is_leaf and x.dtype is T.f32 and mode.grad
        if leaf and mode.casts is not None and _current.get() is _NUMPY:
            return mode.casts.get(x, dtype)
        return x.to(dtype)
    if type(x) in (list, tuple):
        return type(x)([_cast(i, dtype, device) for i in x])
    return x


def _tensors(args: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for x in args:
        if isinstance(x, Tensor):
            found.append(x)
        elif type(x) in (list, tuple):
            found += _tensors(x)
    return found


Policy = Callable[[Casting, list[Tensor], dict[str, Any]], tuple[DType, str] | None]
_BOTH = ("cpu", "cuda")


def _decorated(policy: Policy) -> Any:
    """A decorator; ``policy`` gives the dtype of the floating point operands and their device, or None."""

    def decorate(fn: Fn) -> Fn:
        @functools.wraps(fn)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not opened.blocks:
                return fn(*args, **kwargs)
            state = mode.autocast
            if state is None:
                return fn(*args, **kwargs)
            to = policy(state, _tensors((*args, *kwargs.values())), kwargs)
            if to is None:
                return fn(*args, **kwargs)
            args = tuple([_cast(x, *to) for x in args])
            kwargs = {k: _cast(x, *to) for k, x in kwargs.items()}
            mode.autocast = None
            try:
                return fn(*args, **kwargs)
            finally:
                mode.autocast = state

        # what puts other spellings or a short way before a function puts them inside
        shorten = getattr(fn, "shorten", None)
        made: Any = call
        made.shorten = decorate
        if shorten is not None:
            made.shorten, made.__wrapped__ = lambda inner: decorate(shorten(inner)), fn.__wrapped__
        return made

    return decorate


def _device(state: Casting, tensors: list[Tensor]) -> tuple[str, DType] | None:
    """The device of the operands and its dtype, where autocast is on there."""
    for t in tensors:
        if t.dtype in _FLOATS:
            dtype = state.dtype(t.device.type)
            if dtype is not None:
                return t.device.type, dtype
    return None


def _low(*devices: str) -> Policy:
    def policy(state: Casting, tensors: list[Tensor], kwargs: Any) -> tuple[DType, str] | None:
        found = _device(state, tensors)
        return (found[1], found[0]) if found is not None and found[0] in devices else None

    return policy


def _high(*devices: str) -> Policy:
    def policy(state: Casting, tensors: list[Tensor], kwargs: Any) -> tuple[DType, str] | None:
        found = _device(state, tensors)
        if found is None or found[0] not in devices or kwargs.get("dtype") is not None:
            return None
        return T.f32, found[0]

    return policy


def _wide(*devices: str) -> Policy:
    def policy(state: Casting, tensors: list[Tensor], kwargs: Any) -> tuple[DType, str] | None:
        found = _device(state, tensors)
        if found is None or found[0] not in devices:
            return None
        dtypes = {t.dtype for t in tensors if t.dtype in _FLOATS and t.device.type == found[0]}
        return (dtypes.pop() if len(dtypes) == 1 else T.f32), found[0]

    return policy


def refused_on_gpu(why: str) -> Callable[[Fn], Fn]:
    """A decorator: RuntimeError under autocast on a GPU, where the function would overflow."""

    def policy(state: Casting, tensors: list[Tensor], kwargs: Any) -> None:
        found = _device(state, tensors)
        if found is not None and found[0] == "cuda":
            raise RuntimeError(why)

    return _decorated(policy)


lower, lower_on_gpu, lower_on_cpu = (_decorated(_low(*d)) for d in (_BOTH, ("cuda",), ("cpu",)))
"""Run in the lower precision (on one kind of device; on the other nothing changes)."""
exact, exact_on_gpu, exact_on_cpu = (_decorated(_high(*d)) for d in (_BOTH, ("cuda",), ("cpu",)))
"""Run in float32, unless a ``dtype`` is asked for."""
EXACT_UNARY = frozenset(
    ("exp", "expm1", "log", "log2", "log1p", "asin", "acos", "sinh", "cosh", "tan", "erfinv", "rsqrt")
)
"""Elementwise functions of that kind on GPUs."""
widest, widest_on_gpu = (_decorated(_wide(*d)) for d in (_BOTH, ("cuda",)))
"""Run in the widest dtype among the operands."""
