"""Sorting. Stable; NaN counts as the largest value, as in torch. Both return (values, i64 indices)."""

from __future__ import annotations

from typing import Any

import numpy as np
from weft.ir.prims.base import Kind, Primitive, type_of
from weft.ir.prims.rules import apply, check_axis, check_dtype, wide, zeros
from weft.ir.types import REALS, TensorType, bool_, i64

__all__ = ["sort_p", "topk_p"]

ORDERED = (*REALS, bool_)


def argsort(x: np.ndarray, axis: int, descending: bool) -> np.ndarray:
    """Stable order along ``axis``; NaN last (first if descending); equals keep their order either way."""
    x = wide(x)
    if not descending:
        return np.argsort(x, axis, kind="stable")
    last = x.shape[axis] - 1
    return np.flip(last - np.argsort(np.flip(x, axis), axis, kind="stable"), axis)


def _sort_infer(x: TensorType, *, axis: int, descending: bool = False) -> tuple[TensorType, TensorType]:
    check_dtype("sort", x, ORDERED)
    check_axis("sort", axis, x.ndim)
    return x, x.with_(dtype=i64)


def _sort_eval(x: np.ndarray, *, axis: int, descending: bool = False) -> tuple[np.ndarray, np.ndarray]:
    order = argsort(x, axis, descending)
    values = np.take_along_axis(x, order, axis)
    return np.ascontiguousarray(values), np.ascontiguousarray(order, dtype=np.int64)


def _picked_vjp(ct: Any, out: Any, x: Any, *, axis: int, **how: Any) -> tuple[Any, ...]:
    """The values were picked from x at the indices (of which none occurs twice)."""
    if ct[0] is None:
        return (None,)
    return (apply("scatter_along", zeros(ct[0], type_of(x).shape), out[1], ct[0], axis=axis, mode="add"),)


sort_p = Primitive(
    "sort", Kind.SORT, infer=_sort_infer, eval=_sort_eval, vjp=_picked_vjp, needs="o", n_results=2,
    defaults={"descending": False}, dtypes=ORDERED,
)  # fmt: skip


def _topk_infer(x: TensorType, *, k: int, axis: int, largest: bool = True) -> tuple[TensorType, TensorType]:
    check_dtype("topk", x, ORDERED)
    check_axis("topk", axis, x.ndim)
    if not 0 <= k <= x.shape[axis]:
        raise ValueError(f"topk: k = {k} is out of range for axis {axis} of {x}")
    out = x.with_(shape=(*x.shape[:axis], k, *x.shape[axis + 1 :]))
    return out, out.with_(dtype=i64)


def _topk_eval(x: np.ndarray, *, k: int, axis: int, largest: bool = True) -> tuple[np.ndarray, np.ndarray]:
    if not 0 <= k <= x.shape[axis]:
        raise ValueError(f"topk: k = {k} is out of range for axis {axis} of shape {x.shape}")
    first = tuple(slice(k) if i == axis else slice(None) for i in range(x.ndim))
    order = np.ascontiguousarray(argsort(x, axis, largest)[first], dtype=np.int64)
    return np.ascontiguousarray(np.take_along_axis(x, order, axis)), order


topk_p = Primitive(
    "topk", Kind.SORT, infer=_topk_infer, eval=_topk_eval, vjp=_picked_vjp, needs="o", n_results=2,
    defaults={"largest": True}, dtypes=ORDERED,
)  # fmt: skip
