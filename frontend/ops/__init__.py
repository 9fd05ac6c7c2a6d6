"""The functions on tensors, by family; ``FUNCTIONS`` are those that are exported as ``weft.<name>``."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

from weft.autograd.grad_mode import mode
from weft.dtypes import type_name
from weft.ops import (
    activation,
    complexes,
    equality,
    extra,
    index,
    layers,
    linalg,
    math,
    neural,
    reduce,
    shape,
    sort,
    statistics,
    window,
)
from weft.ops.inplace import copy_
from weft.ops.inplace import inplace as _inplace
from weft.ops.keywords import keywords
from weft.promotion import CATEGORY
from weft.tensor import Tensor

_HIDDEN = {
    "broadcast_to_",
    "view_as_shape",
    "reversed_dims",
    "matrix_transpose",
    "slice_dim",
    "constant_pad",
    "keep_dims",
    "pair_type",
    "view_alias",
    "reversed_",
    "interpreter_is_symbolic",
    "needs_gradient",
    "builtin_abs",
}


def _public(module: Any) -> dict[str, Callable[..., Any]]:
    """The public functions defined in a family module (aliases too, imports not)."""
    return {
        n: f
        for n, f in vars(module).items()
        if isinstance(f, types.FunctionType)
        and not n.startswith("_")
        and n not in _HIDDEN
        and f.__module__ == module.__name__
    }


_IN_PLACE_NAMES = (
    "relu",
    "exp",
    "sqrt",
    "abs",
    "neg",
    "sigmoid",
    "tanh",
    "clamp",
    "floor",
    "ceil",
    "round",
    "sin",
    "cos",
    "erf",
    "log",
    "reciprocal",
    "rsqrt",
)


def _write_out(name: str, out: Tensor, result: Tensor) -> Tensor:
    """``out=``: the result in the tensor given, resized if need be."""
    if mode.grad and (out.requires_grad or result.requires_grad):
        raise RuntimeError(
            f"{name}(): functions with out=... arguments don't support automatic differentiation, but one of "
            "the arguments requires grad."
        )
    if CATEGORY[result.dtype] > CATEGORY[out.dtype]:
        raise RuntimeError(
            f"result type {type_name(result.dtype)} can't be cast to the desired output type "
            f"{type_name(out.dtype)}"
        )
    if out.shape != result.shape:
        out.resize_(tuple(result.shape))
    return copy_(out, result)


def _with_out(fn: Any) -> Callable[..., Any]:
    """``fn`` with the keyword ``out``; the short way of small operands stays in front."""
    if hasattr(fn, "shorten"):
        return fn.shorten(_with_out(fn.__wrapped__))

    @functools.wraps(fn)
    def wrapped(*args: Any, out: Any = None, **kwargs: Any) -> Any:
        result = fn(*args, **kwargs)
        if out is None:
            return result
        if isinstance(result, tuple):
            return tuple(_write_out(fn.__name__, o, r) for o, r in zip(out, result, strict=True))
        return _write_out(fn.__name__, out, result)

    return wrapped


_WINDOW = (
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "max_pool1d",
    "max_pool2d", "max_pool3d", "avg_pool1d", "adaptive_avg_pool1d", "adaptive_max_pool1d", "pixel_shuffle",
    "pixel_unshuffle",
)  # fmt: skip
_NEURAL = ("celu", "cosine_similarity", "pairwise_distance", "prelu", "selu", "hardshrink", "threshold")
_LAYERS = ("dropout", "layer_norm", "group_norm", "rms_norm", "bilinear", "alpha_dropout")

FUNCTIONS: dict[str, Callable[..., Any]] = {}
for _module in (math, complexes, equality, reduce, shape, index, linalg, sort, statistics, extra, activation):
    FUNCTIONS.update({n: _with_out(keywords(f)) for n, f in _public(_module).items()})
for _module, _chosen in ((window, _WINDOW), (neural, _NEURAL), (layers, _LAYERS)):
    FUNCTIONS.update({n: getattr(_module, n) for n in _chosen})
FUNCTIONS.update({n + "_": _inplace(getattr(math, n)) for n in _IN_PLACE_NAMES})
FUNCTIONS.update(
    {
        n: FUNCTIONS[m]
        for n, m in (
            ("absolute", "abs"),
            ("negative", "neg"),
            ("multiply", "mul"),
            ("subtract", "sub"),
            ("divide", "div"),
        )
    }
)
