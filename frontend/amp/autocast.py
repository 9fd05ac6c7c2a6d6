"""``weft.autocast``: operations in the lower precision that suits them."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

from weft.autograd.grad_mode import mode
from weft.casting import DTYPES, Casting, Casts, casting, opened
from weft.ir.types import DType
from weft.tensor import Tensor


def _known(device_type: Any) -> str:
    if not isinstance(device_type, str):
        raise ValueError(f"Expected `device_type` of type `str`, got: `{type(device_type)}`")
    return device_type


def is_autocast_available(device_type: str) -> bool:
    """Whether :class:`autocast` takes this device type: ``"cpu"`` and ``"cuda"``."""
    return _known(device_type) in DTYPES


def is_autocast_enabled(device_type: str = "cuda") -> bool:
    """Whether autocast is on for a device type in this thread."""
    state: Casting | None = mode.autocast
    return state is not None and state.dtype(_known(device_type)) is not None


def get_autocast_dtype(device_type: str) -> DType:
    """The dtype that products run in on a device type while autocast is on there."""
    state: Casting | None = mode.autocast
    found = state.dtype(_known(device_type)) if state is not None else None
    return found or DTYPES[device_type][0]


class autocast:
    """Run products in a lower precision inside the block (or the decorated function), as ``torch.autocast``.

    ``dtype`` is float16 on ``"cuda"`` and bfloat16 on ``"cpu"`` if not given. Parameters stay what they are;
    their converted copies are kept to the end of the outermost block unless ``cache_enabled`` is false.
    RuntimeError for another device type.

    >>> import weft
    >>> x, w = weft.ones(2, 3), weft.ones(3, 4)
    >>> with weft.autocast("cpu"):
    ...     y = x @ w
    >>> y.dtype, (y + weft.ones(4)).dtype
    (weft.bfloat16, weft.float32)
    """

    def __init__(
        self,
        device_type: str,
        dtype: DType | None = None,
        enabled: bool = True,
        cache_enabled: bool | None = None,
    ) -> None:
        if not is_autocast_available(device_type):
            raise RuntimeError(f"User specified an unsupported autocast device_type '{device_type}'")
        self.device = device_type
        self.fast_dtype = dtype or DTYPES[device_type][0]
        self._enabled = bool(enabled)
        self._cache = cache_enabled is None or bool(cache_enabled)
        if self._enabled and self.fast_dtype not in DTYPES[device_type]:
            names = ", ".join(f"weft.{d.long_name}" for d in DTYPES[device_type])
            warnings.warn(
                f"In {device_type.upper()} autocast, but the target dtype is not supported. Disabling "
                f"autocast. {device_type.upper()} autocast only supports dtypes of {names} currently.",
                stacklevel=2,
            )
            self._enabled = False
        self._before: list[tuple[Casting | None, Casts | None]] = []

    def __enter__(self) -> autocast:
        state: Casting | None = mode.autocast
        self._before.append((state, mode.casts))
        dtypes = dict(state.dtypes) if state is not None else {}
        dtypes.pop(self.device, None)
        if self._enabled:
            dtypes[self.device] = self.fast_dtype
        mode.autocast = casting(tuple(sorted(dtypes.items(), key=lambda kv: kv[0])))
        mode.casts = (mode.casts or Casts()) if self._cache else None
        opened.add(1)
        return self

    def __exit__(self, *exc: Any) -> None:
        opened.add(-1)
        mode.autocast, mode.casts = self._before.pop()

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(fn)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with autocast(self.device, self.fast_dtype, self._enabled, self._cache):
                return fn(*args, **kwargs)

        return wrapped


def custom_fwd(
    fwd: Callable[..., Any] | None = None, *, device_type: str, cast_inputs: DType | None = None
) -> Callable[..., Any]:
    """Decorator of the ``forward`` of an ``autograd.Function``: with ``cast_inputs`` it runs without autocast
    on inputs of that dtype, else as its surroundings; ``backward`` (:func:`custom_bwd`) likewise."""
    if fwd is None:
        return functools.partial(custom_fwd, device_type=device_type, cast_inputs=cast_inputs)

    @functools.wraps(fwd)
    def run(ctx: Any, *args: Any, **kwargs: Any) -> Any:
        ctx._dtype = get_autocast_dtype(device_type)
        on = is_autocast_enabled(device_type)
        ctx._fwd_used_autocast = on and cast_inputs is None
        if cast_inputs is None or not on:
            return fwd(ctx, *args, **kwargs)
        with autocast(device_type, enabled=False):
            return fwd(ctx, *_converted(args, device_type, cast_inputs), **kwargs)

    return run


def custom_bwd(bwd: Callable[..., Any] | None = None, *, device_type: str) -> Callable[..., Any]:
    """Decorator of the ``backward`` that belongs to a ``forward`` under :func:`custom_fwd`."""
    if bwd is None:
        return functools.partial(custom_bwd, device_type=device_type)

    @functools.wraps(bwd)
    def run(ctx: Any, *args: Any) -> Any:
        with autocast(device_type, ctx._dtype, ctx._fwd_used_autocast):
            return bwd(ctx, *args)

    return run


def _converted(args: Any, device_type: str, dtype: DType) -> list[Any]:
    def one(x: Any) -> Any:
        wanted = isinstance(x, Tensor) and x.is_floating_point() and x.device.type == device_type
        return x.to(dtype) if wanted and x.dtype.itemsize < 8 else x

    return [one(x) for x in args]
