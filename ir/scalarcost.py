"""What a MAP primitive costs per element: its scalar rule, counted."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from weft.ir.graph import Op
from weft.ir.prims.base import PRIMITIVES
from weft.ir.scalarmath import ScalarMath
from weft.ir.types import DType, bool_, f32

# Throughput relative to a multiplication, as measured on Zen 4 (an integer division is per lane).
_WEIGHT = {
    "div": 8.0, "sqrt": 14.0, "idiv": 30.0, "irem": 30.0, "neg": 0.5, "abs": 0.5, "not": 0.5, "and": 0.5,
    "or": 0.5, "xor": 0.5, "copysign": 0.5,
}  # fmt: skip


class CostCounter(ScalarMath):
    """A builder whose handles are dtypes and which only adds up."""

    def __init__(self) -> None:
        self.total = 0.0

    def dtype(self, x: Any) -> DType:
        return x

    def const(self, value: complex, dtype: DType) -> Any:
        return dtype

    def _count(self, cost: float, dtype: DType) -> DType:
        self.total += cost * (2 if dtype.itemsize == 8 else 1)
        return dtype

    def unary(self, op: str, x: Any) -> Any:
        return self._count(_WEIGHT.get(op, 1.0), x)

    def binary(self, op: str, x: Any, y: Any) -> Any:
        return self._count(_WEIGHT.get(op, 1.0), x)

    def fma(self, x: Any, y: Any, z: Any) -> Any:
        return self._count(1.0, x)

    def compare(self, op: str, x: Any, y: Any) -> Any:
        self._count(1.0, x)
        return bool_

    def select(self, c: Any, x: Any, y: Any) -> Any:
        return self._count(1.0, x)

    def convert(self, x: Any, dtype: DType) -> Any:
        return self._count(1.0, dtype) if x is not dtype else dtype

    def bitcast(self, x: Any, dtype: DType) -> Any:
        return dtype

    def table(self, values: tuple[float, ...], index: Any, dtype: DType) -> Any:
        return self._count(1.0, dtype)

    def scale2(self, p: Any, n: Any) -> Any:
        return self._count(2.0, p)

    def normalise(self, x: Any) -> Any:
        return self._count(1.0, x), self._count(1.0, x)

    def rare(self, condition: Any, usual: tuple[Any, ...], slow: Callable[[], tuple[Any, ...]]) -> Any:
        self._count(2.0, bool_)  # a test of all lanes and a jump
        return usual


@cache
def _cost(name: str, dtypes: tuple[DType, ...], attrs: tuple[tuple[str, Any], ...]) -> float:
    counter = CostCounter()
    rule = PRIMITIVES[name].scalar
    if rule is None:
        return 1.0
    try:
        rule(counter, *dtypes, **dict(attrs))
    except (AttributeError, TypeError):  # a rule that asks for more than the base vocabulary
        return 20.0
    return counter.total


def cost_for(name: str, dtypes: tuple[DType, ...]) -> float:
    """Simple vector operations per element of a MAP primitive without attributes."""
    return _cost(name, dtypes, ())


def cost_of(op: Op) -> float:
    """Simple vector operations per element of a MAP op."""
    attrs = tuple(sorted((k, v) for k, v in op.attrs.items() if isinstance(v, (DType, int, float, str))))
    return _cost(op.prim.name, tuple(x.type.dtype for x in op.operands), attrs)


@cache
def cost_by_name(prim: str, dtype: DType = f32) -> float:
    """A typical cost of a MAP primitive, given only its name."""
    if prim in ("convert", "bitcast"):
        return 1.0
    if prim == "random_bits":
        return 120.0
    rule = PRIMITIVES[prim].scalar
    n = 3 if prim == "where" else 2
    for count in (1, n):
        try:
            counter = CostCounter()
            rule(counter, *([bool_, dtype, dtype] if count == 3 else [dtype] * count))  # type: ignore[misc]
            return counter.total
        except (AttributeError, TypeError, KeyError, AssertionError):
            continue
    return 20.0
