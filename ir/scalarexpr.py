"""Arithmetic notation for scalar builders: :class:`Num` wraps a handle, so that formulas read as such."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weft.ir.types import DType, f32, f64, i32, i64, u32, u64

SIGNED = {f32: i32, f64: i64}
UNSIGNED = {f32: u32, f64: u64}
MANTISSA = {f32: 23, f64: 52}
BIAS = {f32: 127, f64: 1023}


class Num:
    """A handle with its builder. A Python number beside one becomes a constant of its dtype.

    Comparisons are methods named as in the builder (``lt``, ``eq`` ...); they give bool Nums, for ``pick``.
    """

    __slots__ = ("b", "h")

    def __init__(self, b: Any, h: Any) -> None:
        self.b, self.h = b, h  # a ScalarMath, and one of its handles

    @property
    def dtype(self) -> DType:
        return self.b.dtype(self.h)

    def const(self, value: float) -> Num:
        """A constant of this dtype."""
        return Num(self.b, self.b.const(value, self.dtype))

    def _lift(self, other: Any) -> Any:
        return other.h if isinstance(other, Num) else self.b.const(other, self.dtype)

    def _binary(self, op: str, other: Any) -> Num:
        return Num(self.b, self.b.binary(op, self.h, self._lift(other)))

    def _reversed(self, op: str, other: Any) -> Num:
        return Num(self.b, self.b.binary(op, self._lift(other), self.h))

    def __add__(self, other: Any) -> Num:
        return self._binary("add", other)

    def __radd__(self, other: Any) -> Num:
        return self._reversed("add", other)

    def __sub__(self, other: Any) -> Num:
        return self._binary("sub", other)

    def __rsub__(self, other: Any) -> Num:
        return self._reversed("sub", other)

    def __mul__(self, other: Any) -> Num:
        return self._binary("mul", other)

    def __rmul__(self, other: Any) -> Num:
        return self._reversed("mul", other)

    def __truediv__(self, other: Any) -> Num:
        return self._binary("div", other)

    def __rtruediv__(self, other: Any) -> Num:
        return self._reversed("div", other)

    def __and__(self, other: Any) -> Num:
        return self._binary("and", other)

    def __or__(self, other: Any) -> Num:
        return self._binary("or", other)

    def __xor__(self, other: Any) -> Num:
        return self._binary("xor", other)

    def __lshift__(self, other: Any) -> Num:
        return self._binary("shl", other)

    def __rshift__(self, other: Any) -> Num:
        return self._binary("shr", other)

    def __neg__(self) -> Num:
        return Num(self.b, self.b.unary("neg", self.h))

    def __abs__(self) -> Num:
        return Num(self.b, self.b.unary("abs", self.h))

    def __invert__(self) -> Num:
        return Num(self.b, self.b.unary("not", self.h))

    def sqrt(self) -> Num:
        return Num(self.b, self.b.unary("sqrt", self.h))

    def rint(self) -> Num:
        return Num(self.b, self.b.unary("rint", self.h))

    def floor(self) -> Num:
        return Num(self.b, self.b.unary("floor", self.h))

    def trunc(self) -> Num:
        return Num(self.b, self.b.unary("trunc", self.h))

    def fma(self, y: Any, z: Any) -> Num:
        """self * y + z, rounded once."""
        return Num(self.b, self.b.fma(self.h, self._lift(y), self._lift(z)))

    def copysign(self, sign: Num) -> Num:
        return self._binary("copysign", sign)

    def at_most(self, bound: Any) -> Num:
        """min(self, bound); NaN stays NaN. One instruction on x86: it gives the second operand then."""
        return Num(self.b, self.b.binary("fmin", self._lift(bound), self.h))

    def at_least(self, bound: Any) -> Num:
        """max(self, bound); NaN stays NaN."""
        return Num(self.b, self.b.binary("fmax", self._lift(bound), self.h))

    def _compare(self, op: str, other: Any) -> Num:
        return Num(self.b, self.b.compare(op, self.h, self._lift(other)))

    def eq(self, other: Any) -> Num:
        return self._compare("eq", other)

    def ne(self, other: Any) -> Num:
        return self._compare("ne", other)

    def lt(self, other: Any) -> Num:
        return self._compare("lt", other)

    def le(self, other: Any) -> Num:
        return self._compare("le", other)

    def gt(self, other: Any) -> Num:
        return self._compare("gt", other)

    def ge(self, other: Any) -> Num:
        return self._compare("ge", other)

    def to(self, dtype: DType) -> Num:
        return Num(self.b, self.b.convert(self.h, dtype))

    def bits(self, signed: bool = True) -> Num:
        """The bits as an integer."""
        return Num(self.b, self.b.bitcast(self.h, (SIGNED if signed else UNSIGNED)[self.dtype]))

    def as_float(self) -> Num:
        """The inverse of :meth:`bits`."""
        return Num(self.b, self.b.bitcast(self.h, f32 if self.dtype.bits == 32 else f64))


def pick(c: Num, x: Any, y: Any) -> Num:
    """x where c holds, else y; one of them may be a number."""
    like = x if isinstance(x, Num) else y
    return Num(c.b, c.b.select(c.h, like._lift(x), like._lift(y)))


def horner(x: Num, coefficients: Sequence[float]) -> Num:
    """sum c[k] x^k, by Horner's scheme: the fewest operations."""
    out = x.const(coefficients[-1])
    for c in reversed(coefficients[:-1]):
        out = out.fma(x, c)
    return out


def two_sum(x: Num, y: Num) -> tuple[Num, Num]:
    """x + y and its rounding error (Knuth)."""
    s = x + y
    t = s - x
    return s, (x - (s - t)) + (y - t)


def fast_two_sum(x: Num, y: Num) -> tuple[Num, Num]:
    """The same where |x| >= |y| or x == 0 (Dekker)."""
    s = x + y
    return s, y - (s - x)


def two_product(x: Num, y: Num) -> tuple[Num, Num]:
    """x * y and its rounding error, by fma."""
    p = x * y
    return p, x.fma(y, -p)
