"""Moving values between devices: the only operation whose result may live elsewhere than its operands."""

from __future__ import annotations

from typing import Any

import numpy as np
from weft.ir.prims.base import Kind, Primitive, type_of
from weft.ir.types import DTYPES, Device, TensorType

__all__ = ["transfer_p"]


def _transfer_infer(x: TensorType, *, device: Device) -> TensorType:
    return TensorType(x.shape, x.dtype, device)


def _transfer_eval(x: np.ndarray, *, device: Device) -> np.ndarray:
    return x.copy(order="C")


def _transfer_vjp(ct: Any, out: Any, x: Any, *, device: Device) -> tuple[Any]:
    return (transfer_p.bind(ct, device=type_of(x).device),)


transfer_p = Primitive(
    "transfer", Kind.MOVE, infer=_transfer_infer, eval=_transfer_eval, vjp=_transfer_vjp, needs="",
    dtypes=DTYPES,
)  # fmt: skip
