"""Conversions between dtypes, by value and by bits."""

from __future__ import annotations

from operator import methodcaller
from typing import Any

import numpy as np
from weft.ir.prims.base import Kind, Primitive, type_of
from weft.ir.types import DTYPES, FLOATS, INTS, DType, TensorType, bf16, bool_, f16, f32


def _convert_infer(x: TensorType, *, dtype: DType) -> TensorType:
    return x.with_(dtype=dtype)


def _float_to_int(x: np.ndarray, dtype: DType) -> np.ndarray:
    """Truncates; values out of range saturate, NaN gives 0."""
    wide = x if x.dtype in (np.float32, np.float64) else x.astype(np.float32)
    info = np.iinfo(dtype.np)
    # high may round up to the next power of two
    low, high = wide.dtype.type(info.min), wide.dtype.type(info.max)
    if wide.size and low <= wide.min() and wide.max() < high:  # the usual case; a NaN fails both
        return wide.astype(dtype.np)
    t = np.trunc(wide)
    inside = (t >= low) & (t < high) if int(high) != info.max else (t >= low) & (t <= high)
    out = np.where(inside, t, 0).astype(dtype.np)
    out = np.where(wide >= high, dtype.np.type(info.max), out)
    return np.where(wide < low, dtype.np.type(info.min), out)


def convert_array(x: np.ndarray, *, dtype: DType) -> np.ndarray:
    """``x`` as ``dtype``: float to int truncates and saturates, to bool is ``!= 0``, to real drops imag."""
    src = x.dtype
    if src == dtype.np:
        return x.copy()
    if dtype is bool_:
        return x != 0
    if src.kind == "c" and not dtype.is_complex:
        return convert_array(np.real(x), dtype=dtype)
    if dtype.is_integer and src.kind not in "iub":
        return _float_to_int(x, dtype)
    if dtype in (f16, bf16) or src == bf16.np:  # through f32, as torch
        return x.astype(np.float32).astype(dtype.np)
    return x.astype(dtype.np)


def _convert_call(attrs: Any, x: TensorType) -> Any:
    """numpy's conversion where it is weft's: to wider or equal categories, without half precision."""
    dtype = attrs["dtype"]
    if dtype in (f16, bf16) or x.dtype in (f16, bf16) or dtype is bool_ or x.dtype.is_complex:
        return None
    if x.dtype.is_inexact and not dtype.is_inexact:
        return None
    return methodcaller("astype", dtype.np)


def _convert_scalar(b: Any, x: Any, *, dtype: DType) -> Any:
    src = b.dtype(x)
    if src is dtype:
        return x
    if dtype is bool_ and src in (f16, bf16):
        return b.convert(b.convert(x, f32), bool_)
    if src in (f16, bf16) and dtype is not f32:
        return _convert_scalar(b, b.convert(x, f32), dtype=dtype)
    if dtype in (f16, bf16) and src is not f32:
        return b.convert(b.convert(x, f32), dtype)
    return b.convert(x, dtype)


def _convert_vjp(ct: Any, out: Any, x: Any, *, dtype: DType) -> tuple[Any]:
    source = type_of(x).dtype
    return (convert_p.bind(ct, dtype=source) if source.is_inexact and dtype.is_inexact else None,)


convert_p = Primitive(
    "convert",
    Kind.MAP,
    infer=_convert_infer,
    eval=convert_array,
    scalar=_convert_scalar,
    vjp=_convert_vjp,
    needs="",
    dtypes=DTYPES,
    call=_convert_call,
)


def _bitcast_infer(x: TensorType, *, dtype: DType) -> TensorType:
    for d in (x.dtype, dtype):
        if d not in INTS + FLOATS:
            raise TypeError(f"bitcast is not defined for {d.long_name}")
    if x.dtype.itemsize != dtype.itemsize:
        raise ValueError(f"bitcast: {x.dtype.long_name} and {dtype.long_name} differ in width")
    return x.with_(dtype=dtype)


bitcast_p = Primitive(
    "bitcast",
    Kind.MAP,
    infer=_bitcast_infer,
    eval=lambda x, *, dtype: x.view(dtype.np),
    scalar=lambda b, x, *, dtype: b.bitcast(x, dtype),
    nondifferentiable=True,
    needs="",
    dtypes=INTS + FLOATS,
)
