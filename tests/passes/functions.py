"""Small functions over graph values, as a frontend would capture them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from weft.ir import prims as P
from weft.ir.graph import Graph
from weft.ir.prims.base import full_like, scale, trace, type_of
from weft.ir.types import TensorType, f64, i64


def spread(x: Any, like: Any, axes: tuple[int, ...]) -> Any:
    return P.broadcast_p.bind(x, shape=type_of(like).shape, axes=axes)


def linear(x: Any, w: Any, b: Any) -> Any:
    """x[N,I], w[O,I], b[O]."""
    y = P.dot_general_p.bind(x, P.permute_p.bind(w, perm=(1, 0)), contract=((1,), (0,)))
    return y + spread(b, y, (1,))


def relu(x: Any) -> Any:
    return P.maximum_p.bind(x, full_like(x, 0.0))


def gelu(x: Any) -> Any:
    return scale(x, 0.5) * (P.erf_p.bind(scale(x, 0.5**0.5)) + full_like(x, 1.0))


def log_softmax(x: Any) -> Any:
    top = P.reduce_max_p.bind(x, axes=(1,))
    shifted = x - spread(top, x, (0,))
    total = P.sum_p.bind(P.exp_p.bind(shifted), axes=(1,))
    return shifted - spread(P.log_p.bind(total), x, (0,))


def nll(logits: Any, target: Any) -> Any:
    n = type_of(logits).shape[0]
    column = P.reshape_p.bind(target, shape=(n, 1))
    picked = P.take_along_p.bind(log_softmax(logits), column, axis=1)
    return scale(P.sum_p.bind(picked, axes=(0, 1)), -1.0 / n)


def layer_norm(x: Any, weight: Any, bias: Any) -> Any:
    n = type_of(x).shape[1]
    mean = scale(P.sum_p.bind(x, axes=(1,)), 1.0 / n)
    centred = x - spread(mean, x, (0,))
    var = scale(P.sum_p.bind(centred * centred, axes=(1,)), 1.0 / n)
    inv = P.rsqrt_p.bind(var + full_like(var, 1e-5))
    return centred * spread(inv, x, (0,)) * spread(weight, x, (1,)) + spread(bias, x, (1,))


def mlp_loss(w1: Any, b1: Any, w2: Any, b2: Any, x: Any, target: Any) -> Any:
    return nll(linear(relu(linear(x, w1, b1)), w2, b2), target)


def total(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The sum of squares of a function's result: one number to differentiate."""

    def loss(*xs: Any) -> Any:
        y = fn(*xs)
        return P.sum_p.bind(y * y, axes=tuple(range(len(type_of(y).shape))))

    return loss


def typed(*shapes: tuple[int, ...], dtype: Any = f64) -> list[TensorType]:
    return [TensorType(s, dtype) for s in shapes]


def mlp_graph(n: int = 8, i: int = 6, h: int = 16, o: int = 5, dtype: Any = f64) -> Graph:
    types = typed((h, i), (h,), (o, h), (o,), (n, i), dtype=dtype)
    return trace(mlp_loss, *types, TensorType((n,), i64))


CASES: dict[str, tuple[Callable[..., Any], list[TensorType]]] = {
    "linear": (total(linear), typed((4, 3), (5, 3), (5,))),
    "gelu": (total(gelu), typed((4, 3))),
    "log_softmax": (total(log_softmax), typed((4, 5))),
    "layer_norm": (total(layer_norm), typed((4, 6), (6,), (6,))),
    "linear_gelu": (total(lambda x, w, b: gelu(linear(x, w, b))), typed((4, 3), (5, 3), (5,))),
    "shared": (total(lambda x, y: (x * y + x) * P.tanh_p.bind(x)), typed((3, 2), (3, 2))),
    "moves": (
        total(lambda x: P.pad_p.bind(P.flip_p.bind(P.permute_p.bind(x, perm=(1, 0)), axes=(0,)),
                                     full_like(P.sum_p.bind(x, axes=(0, 1)), 0.5),
                                     lo=(1, 0), hi=(0, 2), interior=(0, 1))),
        typed((3, 4)),
    ),
    "conv": (
        total(lambda x, w: P.conv_p.bind(x, w, stride=(2, 1), padding=((1, 1), (0, 1)), lhs_dilation=(1, 1),
                                         rhs_dilation=(1, 1), groups=1)),
        typed((2, 3, 5, 4), (4, 3, 3, 2)),
    ),
}  # fmt: skip
