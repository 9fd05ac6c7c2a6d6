"""Reductions: fold axes away. ``axes`` are sorted and non-negative; the reduced axes are dropped.

f16 and bf16 sums and products accumulate in f32 and round once. NaN wins in max, min, argmax and argmin.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import methodcaller
from typing import Any

import numpy as np
from weft.ir.prims.base import Kind, Primitive, full_like, type_of
from weft.ir.prims.rules import (
    apply,
    as_dtype,
    check_axes,
    check_axis,
    check_dtype,
    conjugate,
    inverse_permutation,
    is_low_precision,
    others,
)
from weft.ir.types import NUMERIC, REALS, DType, TensorType, bool_, i64

__all__ = ["all_p", "any_p", "argmax_p", "argmin_p", "prod_p", "reduce_max_p", "reduce_min_p", "sum_p"]

Ints = tuple[int, ...]
ORDERED = (*REALS, bool_)


def _folding(name: str, dtypes: tuple[DType, ...], *, identity: bool) -> Callable[..., TensorType]:
    def infer(x: TensorType, *, axes: Ints) -> TensorType:
        check_dtype(name, x, dtypes)
        check_axes(name, axes, x.ndim, ordered=True)
        if not identity and any(x.shape[a] == 0 for a in axes):
            raise ValueError(f"{name}: {x} has no elements along axes {tuple(axes)}")
        return x.with_(shape=tuple(x.shape[i] for i in others(axes, x.ndim)))

    return infer


def _accumulate(ufunc: np.ufunc) -> Callable[..., np.ndarray]:
    def eval(x: np.ndarray, *, axes: Ints) -> np.ndarray:
        if is_low_precision(x.dtype):
            return ufunc.reduce(x, axis=tuple(axes), dtype=np.float32).astype(x.dtype)
        return ufunc.reduce(x, axis=tuple(axes), dtype=x.dtype)

    return eval


def _reduction(ufunc: np.ufunc) -> Callable[..., Any]:
    """numpy's call for given axes; None for half precision."""

    def call(attrs: Any, x: TensorType) -> Any:
        axes = attrs["axes"]
        if is_low_precision(x.dtype.np):
            return None
        dtype = None if x.dtype.is_inexact or ufunc in (np.maximum, np.minimum) else x.dtype.np
        return partial(ufunc.reduce, axis=axes[0] if len(axes) == 1 else axes, dtype=dtype)

    return call


def unreduce(ct: Any, x: Any, axes: Ints) -> Any:
    """A reduced value spread over the reduced axes of ``x`` again."""
    t = type_of(x)
    return apply("broadcast", ct, shape=t.shape, axes=others(axes, t.ndim))


sum_p = Primitive(
    "sum", Kind.REDUCE, infer=_folding("sum", NUMERIC, identity=True), eval=_accumulate(np.add),
    vjp=lambda ct, out, x, *, axes: (unreduce(ct, x, axes),), needs="", dtypes=NUMERIC,
    call=_reduction(np.add),
)  # fmt: skip


def _exclusive_product(x: Any, axis: int, reverse: bool) -> Any:
    """At each element the product of those before it along ``axis`` (after it where ``reverse``)."""
    t = type_of(x)
    one = apply("full", shape=(), dtype=t.dtype, value=1, device=t.device)
    shift = tuple(int(i == axis) for i in range(t.ndim))
    back, flat = tuple(-s for s in shift), (0,) * t.ndim
    lo, hi = (back, shift) if reverse else (shift, back)
    return apply("cumprod", apply("pad", x, one, lo=lo, hi=hi, interior=flat), axis=axis, reverse=reverse)


def _prod_vjp(ct: Any, out: Any, x: Any, *, axes: Ints) -> tuple[Any, ...]:
    """ct times the product of all *other* elements: no division, so that zeros need no special case."""
    t = type_of(x)
    kept = others(axes, t.ndim)
    perm = (*kept, *axes)
    moved = apply("permute", x, perm=perm)
    rows = tuple(t.shape[i] for i in kept)
    n = 1
    for a in axes:
        n *= t.shape[a]
    flat = apply("reshape", moved, shape=(*rows, n))
    if t.size == 0:
        return (full_like(x, 0),)
    last = len(rows)
    rest = apply("mul", _exclusive_product(flat, last, False), _exclusive_product(flat, last, True))
    rest = apply("reshape", conjugate(rest), shape=type_of(moved).shape)
    rest = apply("permute", rest, perm=inverse_permutation(perm))
    return (apply("mul", unreduce(ct, x, axes), rest),)


prod_p = Primitive(
    "prod", Kind.REDUCE, infer=_folding("prod", NUMERIC, identity=True), eval=_accumulate(np.multiply),
    vjp=_prod_vjp, needs="0", dtypes=NUMERIC, call=_reduction(np.multiply),
)  # fmt: skip


def _extreme_vjp(ct: Any, out: Any, x: Any, *, axes: Ints) -> tuple[Any, ...]:
    """Divided evenly among ties (as torch.amax)."""
    dtype = type_of(x).dtype
    chosen = as_dtype(apply("eq", x, unreduce(out, x, axes)), dtype)
    share = apply("div", ct, apply("sum", chosen, axes=axes))
    return (apply("mul", unreduce(share, x, axes), chosen),)


reduce_max_p = Primitive(
    "reduce_max", Kind.REDUCE, infer=_folding("reduce_max", ORDERED, identity=False),
    eval=lambda x, *, axes: np.maximum.reduce(x, axis=tuple(axes)),
    vjp=_extreme_vjp, needs="0o", dtypes=ORDERED, call=_reduction(np.maximum),
)  # fmt: skip
reduce_min_p = Primitive(
    "reduce_min", Kind.REDUCE, infer=_folding("reduce_min", ORDERED, identity=False),
    eval=lambda x, *, axes: np.minimum.reduce(x, axis=tuple(axes)),
    vjp=_extreme_vjp, needs="0o", dtypes=ORDERED, call=_reduction(np.minimum),
)  # fmt: skip
any_p = Primitive(
    "any", Kind.REDUCE, infer=_folding("any", (bool_,), identity=True),
    eval=lambda x, *, axes: np.any(x, axis=tuple(axes)), nondifferentiable=True, dtypes=(bool_,),
    call=_reduction(np.logical_or),
)  # fmt: skip
all_p = Primitive(
    "all", Kind.REDUCE, infer=_folding("all", (bool_,), identity=True),
    eval=lambda x, *, axes: np.all(x, axis=tuple(axes)), nondifferentiable=True, dtypes=(bool_,),
    call=_reduction(np.logical_and),
)  # fmt: skip


def _arg_infer(name: str) -> Callable[..., TensorType]:
    def infer(x: TensorType, *, axis: int) -> TensorType:
        check_dtype(name, x, ORDERED)
        check_axis(name, axis, x.ndim)
        if x.shape[axis] == 0:
            raise ValueError(f"{name}: {x} has no elements along axis {axis}")
        return x.with_(shape=x.shape[:axis] + x.shape[axis + 1 :], dtype=i64)

    return infer


def _arg_eval(find: Callable[..., Any]) -> Callable[..., np.ndarray]:
    def eval(x: np.ndarray, *, axis: int) -> np.ndarray:
        if is_low_precision(x.dtype):
            x = x.astype(np.float32)  # exact, and the extension type's own search does not look for NaN
        return np.asarray(find(x, axis=axis), np.int64)

    return eval


def _arg_call(name: str) -> Callable[..., Any]:
    def call(attrs: Any, x: TensorType) -> Any:
        return None if is_low_precision(x.dtype.np) else methodcaller(name, attrs["axis"])

    return call


argmax_p = Primitive(
    "argmax", Kind.REDUCE, infer=_arg_infer("argmax"), eval=_arg_eval(np.argmax), nondifferentiable=True,
    dtypes=ORDERED, call=_arg_call("argmax"),
)  # fmt: skip
argmin_p = Primitive(
    "argmin", Kind.REDUCE, infer=_arg_infer("argmin"), eval=_arg_eval(np.argmin), nondifferentiable=True,
    dtypes=ORDERED, call=_arg_call("argmin"),
)  # fmt: skip
