"""The functions on tensors, by family; ``FUNCTIONS`` are those that are exported as ``weft.<name>``."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from weft.ops import activation, index, linalg, math, reduce, shape, sort
from weft.ops.inplace import inplace as _inplace

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
    "interpreter_is_symbolic",
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

FUNCTIONS: dict[str, Callable[..., Any]] = {}
for _module in (math, reduce, shape, index, linalg, sort, activation):
    FUNCTIONS.update(_public(_module))
FUNCTIONS.update({n + "_": _inplace(getattr(math, n)) for n in _IN_PLACE_NAMES})
FUNCTIONS.update(
    {
        "absolute": math.abs,
        "negative": math.neg,
        "multiply": math.mul,
        "subtract": math.sub,
        "divide": math.div,
    }
)
