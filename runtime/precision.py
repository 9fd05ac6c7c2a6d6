"""What products of float32 on GPUs may give up for speed, as PyTorch's switches say.

Kernels are compiled for the switches of the moment, which are part of the key of every cache and of the
guards of compiled functions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from weft.ir.record import record


@record(frozen=True)
class Precision:
    """``matmul_tf32`` and ``conv_tf32``: whether the factors of matrix products and of convolutions may be
    rounded to TF32 (10 bits of mantissa), for tensor cores. There is one object for each combination."""

    matmul_tf32: bool
    conv_tf32: bool

    def __str__(self) -> str:
        return f"allow_tf32 is {self.matmul_tf32} for products and {self.conv_tf32} for convolutions"


@cache
def _precision(matmul_tf32: bool, conv_tf32: bool) -> Precision:
    return Precision(matmul_tf32, conv_tf32)


class Switches:
    """``now`` is what holds for work that is issued from here on, in all threads; PyTorch's defaults."""

    def __init__(self) -> None:
        self.now = _precision(False, True)
        self.listeners: list[Callable[[], Any]] = []  # whose caches have no room for it in their keys

    def allow(self, matmul_tf32: bool | None = None, conv_tf32: bool | None = None) -> None:
        """Change what is given."""
        old = self.now
        matmul = old.matmul_tf32 if matmul_tf32 is None else matmul_tf32
        conv = old.conv_tf32 if conv_tf32 is None else conv_tf32
        self.now = _precision(matmul, conv)
        if self.now is not old:
            for listener in self.listeners:
                listener()


switches = Switches()
