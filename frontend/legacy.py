"""The typed tensor constructors of older scripts: ``FloatTensor([1, 2])``, ``LongTensor(3)``."""

from __future__ import annotations

from typing import Any

from weft.creation import empty, shape_of_args, tensor
from weft.ir import types as T
from weft.ir.types import DType
from weft.tensor import Tensor


class _TypedMeta(type):
    """``isinstance(x, FloatTensor)`` asks for the dtype."""

    dtype: DType

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, Tensor) and instance.dtype is cls.dtype

    def __call__(cls, *args: Any) -> Tensor:
        if len(args) == 1 and not isinstance(args[0], int):
            return tensor(args[0], dtype=cls.dtype)
        return empty(shape_of_args(args), dtype=cls.dtype)


def _typed(name: str, dtype: DType) -> Any:
    doc = f"Sizes or data as a {dtype.long_name} tensor."
    return _TypedMeta(name, (), {"dtype": dtype, "__doc__": doc, "__module__": "weft"})


TYPES: dict[str, Any] = {
    name: _typed(name, dtype)
    for name, dtype in {
        "FloatTensor": T.f32,
        "DoubleTensor": T.f64,
        "HalfTensor": T.f16,
        "BFloat16Tensor": T.bf16,
        "LongTensor": T.i64,
        "IntTensor": T.i32,
        "ShortTensor": T.i16,
        "CharTensor": T.i8,
        "ByteTensor": T.u8,
        "BoolTensor": T.bool_,
    }.items()
}
