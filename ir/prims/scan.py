"""Running reductions along one axis. f16 and bf16 accumulate in f32. NaN wins in cummax and cummin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from weft.ir.prims.base import Kind, Primitive, full_like, type_of
from weft.ir.prims.rules import (
    apply,
    check_axis,
    check_dtype,
    conjugate,
    iota_like,
    is_low_precision,
    zeros,
    zeros_like,
)
from weft.ir.types import NUMERIC, REALS, DType, TensorType, bool_

__all__ = ["cummax_p", "cummin_p", "cumprod_p", "cumsum_p"]

ORDERED = (*REALS, bool_)


def _infer(name: str, dtypes: tuple[DType, ...]) -> Callable[..., TensorType]:
    def infer(x: TensorType, *, axis: int, reverse: bool = False) -> TensorType:
        check_dtype(name, x, dtypes)
        check_axis(name, axis, x.ndim)
        return x

    return infer


def _running(ufunc: np.ufunc) -> Callable[..., np.ndarray]:
    def eval(x: np.ndarray, *, axis: int, reverse: bool = False) -> np.ndarray:
        dtype = x.dtype
        x = np.flip(x, axis) if reverse else x
        wide = np.dtype(np.float32) if is_low_precision(dtype) else dtype
        out = ufunc.accumulate(x, axis=axis, dtype=wide)
        out = np.flip(out, axis) if reverse else out
        return np.ascontiguousarray(out.astype(dtype, copy=False))

    return eval


cumsum_p = Primitive(
    "cumsum", Kind.SCAN, infer=_infer("cumsum", NUMERIC), eval=_running(np.add), needs="",
    vjp=lambda ct, out, x, *, axis, reverse: (apply("cumsum", ct, axis=axis, reverse=not reverse),),
    defaults={"reverse": False}, dtypes=NUMERIC,
)  # fmt: skip


def _shift(x: Any, by: int, axis: int) -> Any:
    """Elements moved ``by`` places towards the front of ``axis`` (the back where negative); zeros come in."""
    ndim = type_of(x).ndim
    hi = tuple(by if i == axis else 0 for i in range(ndim))
    return apply("pad", x, zeros(x, ()), lo=tuple(-h for h in hi), hi=hi, interior=(0,) * ndim)


def _cumprod_vjp(ct: Any, out: Any, x: Any, *, axis: int, reverse: bool) -> tuple[Any, ...]:
    """Gradient of x[k]: (product before k) * s[k], where s[k] = ct[k] + x[k+1] s[k+1].

    The recurrence is solved by doubling, in log2(n) steps of multiplications and additions: no division, so
    that zeros need no special case and the rule can be differentiated again.
    """
    t = type_of(x)
    n = t.shape[axis]
    if n == 0:
        return (ct,)
    sign = -1 if reverse else 1
    one = apply("full", shape=(), dtype=t.dtype, value=1, device=t.device)
    lo = tuple(sign if i == axis else 0 for i in range(t.ndim))
    before = apply(
        "cumprod",
        apply("pad", x, one, lo=lo, hi=tuple(-i for i in lo), interior=(0,) * t.ndim),
        axis=axis,
        reverse=reverse,
    )
    factor, total, by = _shift(conjugate(x), sign, axis), ct, 1
    while by < n:
        total = apply("add", total, apply("mul", factor, _shift(total, sign * by, axis)))
        by *= 2
        if by < n:
            factor = apply("mul", factor, _shift(factor, sign * (by // 2), axis))
    return (apply("mul", conjugate(before), total),)


cumprod_p = Primitive(
    "cumprod", Kind.SCAN, infer=_infer("cumprod", NUMERIC), eval=_running(np.multiply), vjp=_cumprod_vjp,
    needs="0", defaults={"reverse": False}, dtypes=NUMERIC,
)  # fmt: skip


def _extreme_vjp(ct: Any, out: Any, x: Any, *, axis: int, reverse: bool) -> tuple[Any, ...]:
    """Each result's cotangent goes to the element it was taken from: of ties, and of NaNs, the latest."""
    n = type_of(x).shape[axis]
    chosen = apply("bit_or", apply("eq", x, out), apply("ne", x, x))
    place = iota_like(x, axis)
    nowhere = full_like(place, n - 1 if reverse else 0)
    source = apply("where", chosen, place, nowhere)
    source = apply("cummin" if reverse else "cummax", source, axis=axis, reverse=reverse)
    return (apply("scatter_along", zeros_like(x), source, ct, axis=axis, mode="add"),)


cummax_p = Primitive(
    "cummax", Kind.SCAN, infer=_infer("cummax", ORDERED), eval=_running(np.maximum), vjp=_extreme_vjp,
    needs="0o", defaults={"reverse": False}, dtypes=ORDERED,
)  # fmt: skip
cummin_p = Primitive(
    "cummin", Kind.SCAN, infer=_infer("cummin", ORDERED), eval=_running(np.minimum), vjp=_extreme_vjp,
    needs="0o", defaults={"reverse": False}, dtypes=ORDERED,
)  # fmt: skip
