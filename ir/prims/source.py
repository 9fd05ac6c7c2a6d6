"""Primitives without operands: full, iota, constant."""

from __future__ import annotations

from typing import Any

import numpy as np
from weft.ir.prims.base import Kind, Primitive
from weft.ir.prims.rules import check_axis
from weft.ir.types import CPU, DTYPES, Device, DType, TensorType, dtype_of_numpy

__all__ = ["constant_p", "full_p", "iota_p"]

def _scalar_bytes(value: complex, dtype: DType) -> bytes:
    if dtype.category in ("int", "uint") or isinstance(value, complex) != dtype.is_complex:
        # integers wrap and fractions truncate, as a C cast does
        return np.asarray(value).astype(dtype.np).tobytes()
    return np.array(value, dtype.np).tobytes()


def _full_infer(*, shape: tuple[Any, ...], dtype: DType, value: complex, device: Device = CPU) -> TensorType:
    if not isinstance(value, (bool, int, float, complex)):
        raise TypeError(f"full: value must be a Python number, got {type(value).__name__}")
    return TensorType(tuple(shape), dtype, device)


def _full_eval(*, shape: tuple[int, ...], dtype: DType, value: complex, device: Device = CPU) -> np.ndarray:
    # one element behind strides of zero: a read-only array that costs nothing to make
    return np.ndarray(shape, dtype.np, _scalar_bytes(value, dtype), 0, (0,) * len(shape))


full_p = Primitive(
    "full", Kind.SOURCE, infer=_full_infer, eval=_full_eval, nondifferentiable=True,
    defaults={"device": CPU}, dtypes=DTYPES,
)  # fmt: skip


def _iota_infer(*, shape: tuple[Any, ...], dtype: DType, axis: int, device: Device = CPU) -> TensorType:
    check_axis("iota", axis, len(shape))
    if dtype.category == "bool":
        raise TypeError("iota: a bool count is not defined")
    return TensorType(tuple(shape), dtype, device)


def _iota_eval(*, shape: tuple[int, ...], dtype: DType, axis: int, device: Device = CPU) -> np.ndarray:
    count = np.arange(shape[axis]).astype(dtype.np)
    if len(shape) == 1:
        return count
    return np.broadcast_to(count.reshape([-1 if i == axis else 1 for i in range(len(shape))]), shape)


iota_p = Primitive(
    "iota", Kind.SOURCE, infer=_iota_infer, eval=_iota_eval, nondifferentiable=True,
    defaults={"device": CPU, "axis": 0}, dtypes=DTYPES[1:],
)  # fmt: skip


def _constant_infer(*, value: np.ndarray, device: Device = CPU) -> TensorType:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"constant: value must be an ndarray, got {type(value).__name__}")
    return TensorType(value.shape, dtype_of_numpy(value.dtype), device)


def _constant_eval(*, value: np.ndarray, device: Device = CPU) -> np.ndarray:
    out = value.view()
    out.flags.writeable = False  # the graph owns it
    return out


constant_p = Primitive(
    "constant", Kind.SOURCE, infer=_constant_infer, eval=_constant_eval, nondifferentiable=True,
    defaults={"device": CPU}, dtypes=DTYPES,
)  # fmt: skip
