"""Automatic differentiation: modes, backward, grad, user functions, checks against finite differences."""

from __future__ import annotations

from typing import Any

from weft.autograd.engine import backward, grad
from weft.autograd.function import Function
from weft.autograd.grad_mode import enable_grad, inference_mode, is_grad_enabled, no_grad, set_grad_enabled
from weft.autograd.gradcheck import gradcheck, gradgradcheck
from weft.tensor import Tensor

Variable = Tensor


class set_detect_anomaly:
    """Accepted for compatibility: errors of the backward walk name the operation without it."""

    def __init__(self, mode: bool = True, check_nan: bool = True) -> None:
        self.mode = mode

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exc: Any) -> None:
        return None


detect_anomaly = set_detect_anomaly

__all__ = [
    "Function",
    "Variable",
    "backward",
    "detect_anomaly",
    "enable_grad",
    "grad",
    "gradcheck",
    "gradgradcheck",
    "inference_mode",
    "is_grad_enabled",
    "no_grad",
    "set_detect_anomaly",
    "set_grad_enabled",
]
