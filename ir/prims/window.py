"""Reductions over sliding windows of all dims of x (a dim that is not windowed has window 1 and stride 1).

``padding`` is a pair (lo, hi) per dim, negative to crop; what is padded never wins a max or min and adds
nothing to a sum. A window must touch at least one element for its argmax to mean anything. ``window_scatter``
adds a number for each window to the place of the window's maximum: the gradient of the maxima.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from weft.ir.prims.base import Kind, Primitive, type_of
from weft.ir.prims.contract import conv_lengths
from weft.ir.prims.move import dilated, pad_array
from weft.ir.prims.rules import apply, check_dtype, check_rank, check_same_dtype, wide, zeros
from weft.ir.types import FLOATS, NUMERIC, REALS, DType, TensorType, bool_, i64

__all__ = ["reduce_window_p", "window_argmax_p", "window_scatter_p"]

Ints = tuple[int, ...]
Pads = tuple[Ints, ...]
ORDERED = (*REALS, bool_)
OPS = ("max", "min", "sum")


def lowest(dtype: np.dtype) -> Any:
    """The value that every other is at least as large as."""
    if dtype.kind == "b":
        return False
    return np.iinfo(dtype).min if dtype.kind in "iu" else -np.inf


def highest(dtype: np.dtype) -> Any:
    if dtype.kind == "b":
        return True
    return np.iinfo(dtype).max if dtype.kind in "iu" else np.inf


def _check(
    prim: str, x: TensorType, dtypes: tuple[DType, ...],
    window: Ints, stride: Ints, padding: Pads, dilation: Ints,
) -> Ints:  # fmt: skip
    """The result's shape, once all is well."""
    check_dtype(prim, x, dtypes)
    attrs = {"window": window, "stride": stride, "padding": padding, "dilation": dilation}
    for name, values in attrs.items():
        check_rank(prim, name, values, x.ndim)
    if any(v < 1 for v in (*window, *stride, *dilation)):
        raise ValueError(f"{prim}: window, stride and dilation must be positive")
    return conv_lengths(x.shape, window, stride, padding, (1,) * x.ndim, dilation)


def _windows(
    x: np.ndarray, fill: Any, window: Ints, stride: Ints, padding: Pads, dilation: Ints
) -> np.ndarray:
    """A view [*positions, *window] of the padded x."""
    size = conv_lengths(x.shape, window, stride, padding, (1,) * x.ndim, dilation)
    if 0 in size:
        return np.empty((*size, *window), x.dtype)
    if any(map(any, padding)):
        x = pad_array(x, fill, tuple(p[0] for p in padding), tuple(p[1] for p in padding), (0,) * x.ndim)
    steps = [t * s for t, s in zip(x.strides, stride, strict=True)]
    steps += [t * d for t, d in zip(x.strides, dilation, strict=True)]
    return np.lib.stride_tricks.as_strided(x, (*size, *window), steps, writeable=False)


def _reduce_window_infer(
    x: TensorType, *, op: str, window: Ints, stride: Ints, padding: Pads, dilation: Ints
) -> TensorType:
    if op not in OPS:
        raise ValueError(f"reduce_window: op must be one of {', '.join(OPS)}, got {op!r}")
    dtypes = NUMERIC if op == "sum" else ORDERED
    return x.with_(shape=_check("reduce_window", x, dtypes, window, stride, padding, dilation))


def _reduce_window_eval(
    x: np.ndarray, *, op: str, window: Ints, stride: Ints, padding: Pads, dilation: Ints
) -> np.ndarray:
    dtype, axes = x.dtype, tuple(range(x.ndim, 2 * x.ndim))
    fill = {"max": lowest, "min": highest, "sum": lambda _: 0}[op](dtype)
    views = _windows(wide(x) if op == "sum" else x, fill, window, stride, padding, dilation)
    ufunc = {"max": np.maximum, "min": np.minimum, "sum": np.add}[op]
    # one elementwise step per place in the window: numpy is slow at many tiny reductions
    places = list(np.ndindex(*window))
    out = np.array(views[(..., *places[0])], order="C")
    for place in places[1:]:
        ufunc(out, views[(..., *place)], out=out)
    assert out.ndim == len(axes)
    return out.astype(dtype, copy=False)


def _reduce_window_vjp(
    ct: Any, out: Any, x: Any, *, op: str, window: Ints, stride: Ints, padding: Pads, dilation: Ints
) -> tuple[Any, ...]:
    how = {"window": window, "stride": stride, "padding": padding, "dilation": dilation}
    if 0 in type_of(ct).shape:
        return (zeros(ct, type_of(x).shape),)
    if op == "sum":
        return (_window_sum_vjp(ct, x, **how),)
    return (apply("window_scatter", ct, apply("neg", x) if op == "min" else x, **how),)


def _window_sum_vjp(ct: Any, x: Any, *, window: Ints, stride: Ints, padding: Pads, dilation: Ints) -> Any:
    """Each element gets the sum of the cotangents of the windows that it is in: again a window sum."""
    lo, hi = [], []
    for n, m, k, s, (before, _), d in zip(
        type_of(x).shape, type_of(ct).shape, window, stride, padding, dilation, strict=True
    ):
        reach = dilated(k, d) - 1
        lo.append(reach - before)
        hi.append(n + reach - dilated(m, s) - lo[-1])
    gaps = tuple(s - 1 for s in stride)
    spread = apply("pad", ct, zeros(ct, ()), lo=tuple(lo), hi=tuple(hi), interior=gaps)
    ones, none = (1,) * len(window), ((0, 0),) * len(window)
    return apply(
        "reduce_window", spread, op="sum", window=window, stride=ones, padding=none, dilation=dilation
    )


reduce_window_p = Primitive(
    "reduce_window", Kind.WINDOW, infer=_reduce_window_infer, eval=_reduce_window_eval,
    vjp=_reduce_window_vjp, needs="0", needs_for=lambda attrs: "" if attrs["op"] == "sum" else "0",
    dtypes=NUMERIC,
)  # fmt: skip


def _window_argmax_infer(
    x: TensorType, *, window: Ints, stride: Ints, padding: Pads, dilation: Ints
) -> TensorType:
    shape = _check("window_argmax", x, ORDERED, window, stride, padding, dilation)
    return x.with_(shape=shape, dtype=i64)


def _flat_index(
    shape: Ints, size: Ints, place: Ints, stride: Ints, padding: Pads, dilation: Ints
) -> tuple[np.ndarray, np.ndarray]:
    """For one place of the window, at each position: the flat index into x, and whether it is inside of x."""
    flat, inside = np.zeros((), np.int64), np.ones((), np.bool_)
    for n, m, j, s, (lo, _), d in zip(shape, size, place, stride, padding, dilation, strict=True):
        at = np.arange(m) * s + (j * d - lo)
        flat = flat[..., None] * n + at
        inside = inside[..., None] & ((at >= 0) & (at < n))
    return flat, inside


def _window_argmax_eval(
    x: np.ndarray, *, window: Ints, stride: Ints, padding: Pads, dilation: Ints
) -> np.ndarray:
    values = _windows(wide(x), lowest(wide(x).dtype), window, stride, padding, dilation)
    size, where, padded = values.shape[: x.ndim], (stride, padding, dilation), any(map(any, padding))
    places = list(np.ndindex(*window))
    steps = [int(np.prod(x.shape[i + 1 :])) * d for i, d in enumerate(dilation)]
    offsets = np.array([sum(j * s for j, s in zip(p, steps, strict=True)) for p in places], np.int64)
    origin, found = _flat_index(x.shape, size, places[0], *where)
    best = np.array(values[(..., *places[0])], order="C")
    # the number of the winning place; later winners are larger, so that maximum replaces a slow masked store
    winner = np.zeros(size, np.min_scalar_type(len(places)))
    for k, place in enumerate(places[1:], 1):
        v = np.ascontiguousarray(values[(..., *place)]).reshape(size)
        better = np.greater(v, best)
        if v.dtype.kind == "f":
            better |= (v != v) & (best == best)  # the first NaN beats all
        if padded:
            inside = _flat_index(x.shape, size, place, *where)[1]
            better = inside & (better | ~found)  # an element beats padding, as low as it may be
            found = found | inside
        np.maximum(best, v, out=best)
        np.maximum(winner, better * winner.dtype.type(k), out=winner)
    out = origin + offsets[winner]
    return np.where(found, out, 0) if padded else np.asarray(out)


window_argmax_p = Primitive(
    "window_argmax", Kind.WINDOW, infer=_window_argmax_infer, eval=_window_argmax_eval,
    nondifferentiable=True, dtypes=ORDERED,
)  # fmt: skip


def _window_scatter_infer(
    ct: TensorType, x: TensorType, *, window: Ints, stride: Ints, padding: Pads, dilation: Ints
) -> TensorType:
    shape = _check("window_scatter", x, FLOATS, window, stride, padding, dilation)
    check_same_dtype("window_scatter", ct, x)
    if ct.shape != shape:
        raise ValueError(f"window_scatter: {ct} is not one element for each of the windows {list(shape)}")
    return x


def _window_scatter_eval(ct: np.ndarray, x: np.ndarray, **how: Any) -> np.ndarray:
    out = np.zeros(x.size, wide(ct).dtype)
    if ct.size:
        np.add.at(out, _window_argmax_eval(x, **how).reshape(-1), wide(ct).reshape(-1))
    return out.reshape(x.shape).astype(ct.dtype, copy=False)


def _window_scatter_vjp(ct: Any, out: Any, y: Any, x: Any, **how: Any) -> tuple[Any, ...]:
    """Linear in what is scattered: its cotangent is gathered from the same places."""
    shape = type_of(y).shape
    none = zeros(ct, type_of(x).shape)
    if 0 in shape:
        return zeros(ct, shape), none
    flat = apply("reshape", apply("window_argmax", x, **how), shape=(*shape, 1))
    return apply("gather", apply("reshape", ct, shape=(type_of(x).size,)), flat, axes=(0,)), none


window_scatter_p = Primitive(
    "window_scatter", Kind.WINDOW, infer=_window_scatter_infer, eval=_window_scatter_eval,
    vjp=_window_scatter_vjp, needs="1", dtypes=FLOATS,
)  # fmt: skip
