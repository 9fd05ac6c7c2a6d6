"""Element types, devices, symbolic dimensions and tensor types."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
from weft.ir.record import record


class DType:
    """An element type. Instances are interned: compare with ``is`` or ``==``.

    ``name`` is the short form of the IR text (``f32``), ``long_name`` PyTorch's (``float32``).
    """

    __slots__ = ("bits", "category", "itemsize", "long_name", "name", "np", "rank")
    _by_name: ClassVar[dict[str, DType]] = {}
    _by_np: ClassVar[dict[Any, DType]] = {}

    def __init__(self, name: str, long_name: str, np_dtype: Any, category: str, rank: int) -> None:
        self.name, self.long_name, self.category, self.rank = name, long_name, category, rank
        self.np = np.dtype(np_dtype)
        self.itemsize = self.np.itemsize
        self.bits = 1 if category == "bool" else 8 * self.itemsize
        DType._by_name[name] = self
        DType._by_np[self.np] = self

    def __repr__(self) -> str:
        return f"weft.{self.long_name}"

    def __reduce__(self) -> tuple[Any, ...]:
        return dtype_named, (self.name,)

    def __copy__(self) -> DType:
        return self

    def __deepcopy__(self, memo: Any) -> DType:
        return self

    @property
    def is_floating_point(self) -> bool:
        return self.category == "float"

    @property
    def is_complex(self) -> bool:
        return self.category == "complex"

    @property
    def is_signed(self) -> bool:
        return self.category in ("int", "float", "complex")

    @property
    def is_integer(self) -> bool:
        """True for the signed and unsigned integers; False for bool."""
        return self.category in ("int", "uint")

    @property
    def is_inexact(self) -> bool:
        return self.category in ("float", "complex")


bool_ = DType("bool", "bool", np.bool_, "bool", 0)
u8 = DType("u8", "uint8", np.uint8, "uint", 1)
i8 = DType("i8", "int8", np.int8, "int", 1)
u16 = DType("u16", "uint16", np.uint16, "uint", 2)
i16 = DType("i16", "int16", np.int16, "int", 2)
u32 = DType("u32", "uint32", np.uint32, "uint", 3)
i32 = DType("i32", "int32", np.int32, "int", 3)
u64 = DType("u64", "uint64", np.uint64, "uint", 4)
i64 = DType("i64", "int64", np.int64, "int", 4)
f16 = DType("f16", "float16", np.float16, "float", 5)
bf16 = DType("bf16", "bfloat16", ml_dtypes.bfloat16, "float", 5)
f32 = DType("f32", "float32", np.float32, "float", 6)
f64 = DType("f64", "float64", np.float64, "float", 7)
c64 = DType("c64", "complex64", np.complex64, "complex", 8)
c128 = DType("c128", "complex128", np.complex128, "complex", 9)

DTYPES: tuple[DType, ...] = tuple(DType._by_name.values())
FLOATS = (f16, bf16, f32, f64)
COMPLEXES = (c64, c128)
SIGNED_INTS = (i8, i16, i32, i64)
UNSIGNED_INTS = (u8, u16, u32, u64)
INTS = SIGNED_INTS + UNSIGNED_INTS
BITS = INTS + (bool_,)
REALS = INTS + FLOATS
NUMERIC = REALS + COMPLEXES


def dtype_named(name: str) -> DType:
    """The dtype of an IR name such as ``"f32"``; KeyError if there is none."""
    return DType._by_name[name]


def dtype_of_numpy(dtype: Any) -> DType:
    """The weft dtype of a numpy dtype; TypeError where weft has none."""
    found = DType._by_np.get(dtype)
    if found is None:
        found = DType._by_np.get(np.dtype(dtype))
    if found is None:
        raise TypeError(f"can't convert numpy dtype {dtype} to a weft dtype; supported: "
                        + ", ".join(d.long_name for d in DTYPES))
    return found


@record(frozen=True, slots=True)
class Device:
    """A place where tensors live: ``cpu``, ``cuda:N`` or ``null`` (compiles, runs nothing)."""

    type: str
    index: int | None = None

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def __repr__(self) -> str:
        inner = f"type='{self.type}'" + ("" if self.index is None else f", index={self.index}")
        return f"device({inner})"


CPU = Device("cpu")


@record(frozen=True, slots=True)
class Dim:
    """A symbolic dimension: a name, known only at run time."""

    name: str

    def __str__(self) -> str:
        return self.name


Shape = tuple[Any, ...]  # of int | Dim


@record(frozen=True)
class TensorType:
    """Shape, dtype and device of a value. Dimensions are ints or symbolic :class:`Dim`."""

    shape: Shape
    dtype: DType
    device: Device = CPU

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @cached_property
    def size(self) -> int:
        """Number of elements (static shapes only)."""
        n = 1
        for d in self.shape:
            n *= d
        return n

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def with_(self, shape: Shape | None = None, dtype: DType | None = None) -> TensorType:
        return TensorType(self.shape if shape is None else tuple(shape), dtype or self.dtype, self.device)

    def __str__(self) -> str:
        on = "" if self.device == CPU else f"@{self.device}"
        return f"{self.dtype.name}[{','.join(map(str, self.shape))}]{on}"
