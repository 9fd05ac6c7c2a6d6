"""In-place forms: the function's result written into the tensor, and the writers that have no function."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from weft.autograd.grad_mode import mode
from weft.autograd.tape import sequence_mark
from weft.creation import full
from weft.dispatch import apply
from weft.dtypes import type_name
from weft.ir import prims as P
from weft.ops.common import as_tensor, broadcast_to, convert, is_number, shape_of
from weft.promotion import CATEGORY
from weft.quickwrite import copied, filled, inplace_function, target, wrote
from weft.tensor import Tensor
from weft.views import check_inplace, write_


def _fit(out: Tensor, target: Tensor) -> Tensor:
    """The result as what can be written to ``target``; torch's RuntimeErrors where it cannot."""
    if shape_of(out) != shape_of(target):
        raise RuntimeError(
            f"output with shape {list(target.shape)} doesn't match the broadcast shape {list(out.shape)}"
        )
    if out.dtype is target.dtype:
        return out
    if CATEGORY[out.dtype] > CATEGORY[target.dtype]:
        raise RuntimeError(
            f"result type {type_name(out.dtype)} can't be cast to the desired output type "
            f"{type_name(target.dtype)}"
        )
    return convert(out, target.dtype)


def inplace(fn: Callable[..., Tensor], prim: Any = None) -> Callable[..., Tensor]:
    """``x.fn_(...)`` of ``fn(x, ...)``; ``prim``: the primitive that the function is, if it is one ufunc."""

    @functools.wraps(fn)
    def method(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        mark = sequence_mark() if mode.grad else None
        if target(input) is not None:
            out = fn(input, *args, **kwargs)
            if wrote(input, out):
                return input
        else:
            check_inplace(input)
            out = fn(input, *args, **kwargs)
        if out is input:
            return input
        return write_(input, _fit(out, input), mark)

    method.__name__ = method.__qualname__ = fn.__name__ + "_"
    method.__doc__ = f"In-place form of ``{fn.__name__}``."
    prim = prim or getattr(fn, "prim", None)
    return method if prim is None or prim.ufunc is None else inplace_function(prim, method)


def copy_(input: Tensor, src: Any, non_blocking: bool = False) -> Tensor:
    """Write ``src`` (broadcast, converted) into the tensor."""
    if copied(input, src):
        return input
    if is_number(src):
        return fill_(input, src)
    if not isinstance(src, Tensor):
        raise TypeError(f"copy_(): argument 'other' (position 1) must be Tensor, not {type(src).__name__}")
    check_inplace(input)
    if src is input:
        return input
    from weft.ops.shape import expand

    value = convert(src, input.dtype)
    if shape_of(value) != shape_of(input):
        expand(value, *shape_of(input))  # the error in torch's words
        value = broadcast_to(value, shape_of(input))
    elif value is src:
        value = apply(P.copy_p, value) if mode.grad and src.requires_grad else value
    return write_(input, value, replaces=True)


def fill_(input: Tensor, value: Any) -> Tensor:
    """Every element becomes ``value`` (a number or 0-d tensor)."""
    if filled(input, value):
        return input
    check_inplace(input)
    if isinstance(value, Tensor):
        if value.ndim:
            raise RuntimeError(
                f"fill_ only supports 0-dimension value tensor but got tensor with {value.ndim} dimensions."
            )
        return write_(input, broadcast_to(convert(value, input.dtype), shape_of(input)), replaces=True)
    return write_(input, broadcast_to(as_tensor(value, input.dtype), shape_of(input)), replaces=True)


def zero_(input: Tensor) -> Tensor:
    """Every element becomes zero."""
    return fill_(input, 0)


def set_(input: Tensor, source: Any = None) -> Tensor:
    """Take over the storage of another tensor."""
    input.data = source if source is not None else full((0,), 0, dtype=input.dtype, device=input.device)
    return input


def fill_diagonal_(input: Tensor, fill_value: Any, wrap: bool = False) -> Tensor:
    """The main diagonal becomes ``fill_value``."""
    fill_(input.diagonal(), fill_value)
    return input


def resize_(input: Tensor, *sizes: Any) -> Tensor:
    """Another shape; new elements are uninitialised."""
    from weft.creation import empty, shape_of_args

    shape = shape_of_args(sizes)
    out = empty(shape, dtype=input.dtype, device=input.device)
    n = min(out.numel(), input.numel())
    out.reshape(-1)[:n].copy_(input.detach().reshape(-1)[:n])
    input.data = out
    return input


def squeezer(fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """In-place forms of shape functions: the tensor becomes the view."""

    @functools.wraps(fn)
    def method(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = fn(input, *args, **kwargs)
        input._data, input._view, input._edge, input._rg = out._data, out._view, out._edge, out._rg
        return input

    method.__doc__ = f"In-place form of ``{fn.__name__}``."
    return method
