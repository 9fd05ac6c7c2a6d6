"""PyTorch's type promotion: categories, the join of two dtypes, weak scalars and 0-d tensors.

Operands fall in three priority classes: tensors with dimensions, 0-d tensors, Python numbers. A lower class
takes part only if its category (bool < integer < float < complex) is above that of all higher classes.
Source: PyTorch's documentation of tensor attributes, "type promotion".
"""

from __future__ import annotations

from typing import Any

from weft.dtypes import _defaults, default_complex
from weft.ir import types as T
from weft.ir.graph import Value
from weft.ir.types import DType

_CATEGORY = {"bool": 0, "uint": 1, "int": 1, "float": 2, "complex": 3}
CATEGORY: dict[DType, int] = {d: _CATEGORY[d.category] for d in T.DTYPES}
_LADDER = (T.i8, T.i16, T.i32, T.i64)


def _join_ints(a: DType, b: DType) -> DType:
    if a.category == b.category:
        return a if a.bits >= b.bits else b
    signed, unsigned = (a, b) if a.category == "int" else (b, a)
    if signed.bits > unsigned.bits:
        return signed
    for d in _LADDER:
        if d.bits > unsigned.bits:
            return d
    raise TypeError(f"Promotion for uint64 with {signed.long_name} is not supported")


def _join_floats(a: DType, b: DType) -> DType:
    if a.bits == b.bits:
        return T.f32  # float16 with bfloat16
    return a if a.bits > b.bits else b


def _join(a: DType, b: DType) -> DType:
    if a is b:
        return a
    ca, cb = CATEGORY[a], CATEGORY[b]
    if ca != cb:
        low, high = (a, b) if ca < cb else (b, a)
        if high.is_complex and low is T.f64:
            return T.c128
        return high
    if ca == 1:
        return _join_ints(a, b)
    if ca == 2:
        return _join_floats(a, b)
    return T.c128


_TABLE: dict[tuple[DType, DType], DType] = {}


def promote_types(a: DType, b: DType) -> DType:
    """The smallest dtype that holds both, by PyTorch's table.

    >>> promote_types(T.u8, T.i8)
    weft.int16
    >>> promote_types(T.f16, T.bf16)
    weft.float32
    """
    found = _TABLE.get((a, b))
    if found is None:
        found = _TABLE[a, b] = _join(a, b)
    return found


_SCALAR_CATEGORY: dict[type, int] = {bool: 0, int: 1, float: 2, complex: 3}


def scalar_category(x: Any) -> int:
    """0 bool, 1 int, 2 float, 3 complex for a Python number (or a traced or numpy one)."""
    found = _SCALAR_CATEGORY.get(type(x))
    if found is not None:
        return found
    for t in (bool, int, float, complex):
        if isinstance(x, t):
            return _SCALAR_CATEGORY[t]
    kind = getattr(getattr(x, "dtype", None), "kind", None)
    if kind in ("b", "i", "u", "f", "c"):
        return {"b": 0, "i": 1, "u": 1, "f": 2, "c": 3}[kind]
    raise TypeError(f"expected a Tensor or a number, not {type(x).__name__}")


def scalar_dtype(category: int) -> DType:
    """The dtype a Python number of this category has on its own."""
    return (T.bool_, T.i64, _defaults.dtype, default_complex())[category]


def _weak(strong: DType, category: int) -> DType:
    """``strong`` joined with Python numbers of this category."""
    own = CATEGORY[strong]
    if category <= own:
        return strong
    if category == 3 and own == 2:
        return T.c128 if strong is T.f64 else T.c64
    return scalar_dtype(category)


def result_dtype(dims: list[DType], zeros: list[DType], scalar: int) -> DType:
    """The dtype of an operation on tensors with dimensions, 0-d tensors and Python numbers.

    ``scalar`` is the highest category among the numbers, -1 for none.
    """
    acc: DType | None = None
    for d in dims:
        acc = d if acc is None else promote_types(acc, d)
    low: DType | None = None
    for d in zeros:
        low = d if low is None else promote_types(low, d)
    if low is not None:
        if acc is None:
            acc = low
        elif CATEGORY[low] > CATEGORY[acc]:
            acc = low if CATEGORY[low] != 3 or CATEGORY[acc] != 2 else _weak(acc, 3)
    if scalar < 0:
        assert acc is not None
        return acc
    return scalar_dtype(scalar) if acc is None else _weak(acc, scalar)


def promote(*operands: Any) -> DType:
    """The result dtype of tensors and Python numbers together, as ``torch.result_type``."""
    dims: list[DType] = []
    zeros: list[DType] = []
    scalar = -1
    for x in operands:
        data = getattr(x, "_data", None)
        if data is None:
            scalar = max(scalar, scalar_category(x))
        else:
            shape = data.type.shape if type(data) is Value else data.shape
            (dims if shape else zeros).append(x.dtype)
    return result_dtype(dims, zeros, scalar)
