"""The scalar vocabulary in which the rules of MAP primitives are written.

A rule ``scalar(b, x, y)`` calls methods of a builder ``b``. The *base* methods below are what a target must
give (the LLVM emitters, the numpy builder, the cost counter, the kernel-IR printer); everything else (exp,
log, sin ...) is composed from them once, in :mod:`weft.ir.scalarmath`, so that both targets and the
interpreter agree to the bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from weft.ir.types import DType


class ScalarBuilder(ABC):
    """Base vocabulary. ``x``, ``y``, ``z`` are opaque handles of one element (or one vector of elements)."""

    @abstractmethod
    def dtype(self, x: Any) -> DType:
        """The dtype of a handle."""

    @abstractmethod
    def const(self, value: complex, dtype: DType) -> Any:
        """A constant. An int given for a float dtype is converted; bit patterns go through ``bitcast``."""

    @abstractmethod
    def unary(self, op: str, x: Any) -> Any:
        """op: neg abs sqrt floor ceil trunc rint (half to even) not (bitwise; logical on bool)."""

    @abstractmethod
    def binary(self, op: str, x: Any, y: Any) -> Any:
        """op: add sub mul div (float) idiv irem (C semantics, safe for 0 and overflow: gives 0) min max (NaN
        wins) fmin fmax (x < y ? x : y and x > y ? x : y, as x86: y if either is NaN) copysign and or xor shl
        shr (arithmetic if signed).
        """

    @abstractmethod
    def fma(self, x: Any, y: Any, z: Any) -> Any:
        """x * y + z rounded once (float dtypes)."""

    @abstractmethod
    def compare(self, op: str, x: Any, y: Any) -> Any:
        """op: eq ne lt le gt ge; ordered comparisons but for ne (NaN != NaN is true). A bool handle."""

    @abstractmethod
    def select(self, c: Any, x: Any, y: Any) -> Any:
        """x where the bool c holds, else y."""

    @abstractmethod
    def convert(self, x: Any, dtype: DType) -> Any:
        """Numeric conversion: float to int truncates (and saturates, NaN gives 0), to bool is ``!= 0``."""

    @abstractmethod
    def bitcast(self, x: Any, dtype: DType) -> Any:
        """The same bits as another dtype of the same width."""

    @abstractmethod
    def table(self, values: tuple[float, ...], index: Any, dtype: DType) -> Any:
        """``values[index mod 16]`` for sixteen values of f32 and an index of i32."""
