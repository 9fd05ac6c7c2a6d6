"""Small helpers shared by the rules of structural primitives: operand checks and composition by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from weft.ir.prims.base import PRIMITIVES, full_like, type_of
from weft.ir.types import DType, TensorType, i32, i64

INDEX_DTYPES = (i64, i32)


def apply(name: str, *operands: Any, **attrs: Any) -> Any:
    """Bind the primitive called ``name``: for gradient rules, so that families do not import each other."""
    return PRIMITIVES[name].bind(*operands, **attrs)


def zeros_like(x: Any) -> Any:
    return full_like(x, 0)


def zeros(like: Any, shape: Sequence[Any]) -> Any:
    """Zeros of another shape with the dtype and device of ``like``."""
    t = type_of(like)
    return apply("full", shape=tuple(shape), dtype=t.dtype, value=0, device=t.device)


def iota_like(x: Any, axis: int) -> Any:
    """The i64 index along ``axis`` at each element of ``x``."""
    t = type_of(x)
    return apply("iota", shape=t.shape, dtype=i64, axis=axis, device=t.device)


def as_dtype(x: Any, dtype: DType) -> Any:
    """``x`` converted, or ``x`` itself where it has the dtype already."""
    return x if type_of(x).dtype is dtype else apply("convert", x, dtype=dtype)


def conjugate(x: Any) -> Any:
    """The complex conjugate; real values as they are."""
    return apply("conj", x) if type_of(x).dtype.is_complex else x


def check_dtype(prim: str, t: TensorType, allowed: Iterable[DType], what: str = "operand") -> None:
    """TypeError unless the dtype of ``t`` is one of ``allowed``."""
    if t.dtype not in allowed:
        names = ", ".join(d.name for d in allowed)
        raise TypeError(f"{prim}: {what} of type {t} is not supported; supported dtypes: {names}")


def check_index_dtype(prim: str, t: TensorType) -> None:
    if t.dtype not in INDEX_DTYPES:
        raise TypeError(f"{prim}: indices must be i64 or i32, got {t}")


def check_same_dtype(prim: str, *types: TensorType) -> None:
    if any(t.dtype is not types[0].dtype for t in types):
        raise TypeError(f"{prim}: operands must have one dtype, got " + ", ".join(map(str, types)))


def check_axis(prim: str, axis: Any, ndim: int) -> None:
    """ValueError unless ``axis`` is a non-negative axis of an array of ``ndim`` axes."""
    if not (isinstance(axis, (int, np.integer)) and 0 <= axis < ndim):
        raise ValueError(f"{prim}: axis {axis} is out of range for {ndim} dimensions")


def check_axes(prim: str, axes: Sequence[int], ndim: int, *, ordered: bool = False) -> None:
    """ValueError unless ``axes`` are distinct axes of the operand (increasing where ``ordered``)."""
    for a in axes:
        check_axis(prim, a, ndim)
    if len(set(axes)) != len(axes) or (ordered and tuple(axes) != tuple(sorted(axes))):
        raise ValueError(f"{prim}: axes {tuple(axes)} must be distinct" + " and increasing" * ordered)


def check_rank(prim: str, name: str, values: Sequence[Any], ndim: int) -> None:
    """ValueError unless the attribute has one entry per dimension."""
    if len(values) != ndim:
        raise ValueError(f"{prim}: {name} {tuple(values)} needs {ndim} entries")


def others(axes: Iterable[int], ndim: int) -> tuple[int, ...]:
    """The axes of an array of ``ndim`` axes that are not in ``axes``."""
    taken = set(axes)
    return tuple(i for i in range(ndim) if i not in taken)


def inverse_permutation(perm: Sequence[int]) -> tuple[int, ...]:
    out = [0] * len(perm)
    for i, p in enumerate(perm):
        out[p] = i
    return tuple(out)


def is_low_precision(dtype: np.dtype) -> bool:
    """True for f16 and bf16, which accumulate in f32."""
    return dtype.itemsize == 2 and dtype.kind in "fV"


def wide(x: np.ndarray) -> np.ndarray:
    """f16 and bf16 arrays as f32, others as they are."""
    return x.astype(np.float32) if is_low_precision(x.dtype) else x
