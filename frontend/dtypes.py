"""The names under which users meet dtypes, devices and sizes, and the default dtype."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np
from weft.ir import types as T
from weft.ir.types import CPU, Device, DType

dtype = DType
float16 = half = T.f16
bfloat16 = T.bf16
float32 = float_ = T.f32
float64 = double = T.f64
complex64 = cfloat = T.c64
complex128 = cdouble = T.c128
uint8, uint16, uint32, uint64 = T.u8, T.u16, T.u32, T.u64
int8, int16, int32, int64 = T.i8, T.i16, T.i32, T.i64
short, int_, long = T.i16, T.i32, T.i64
bool_ = T.bool_

# The names exported as ``weft.<name>``; the Python builtins' names are bound there, not here.
DTYPE_NAMES: dict[str, DType] = {
    **{d.long_name: d for d in T.DTYPES},
    "half": T.f16,
    "float": T.f32,
    "double": T.f64,
    "cfloat": T.c64,
    "cdouble": T.c128,
    "short": T.i16,
    "int": T.i32,
    "long": T.i64,
}

_PYTHON_TYPES: dict[Any, DType] = {bool: T.bool_, int: T.i64, float: T.f32, complex: T.c64}
_BY_NP = {d.np: d for d in T.DTYPES}


class _Defaults(threading.local):
    dtype: DType = T.f32


_defaults = _Defaults()


class _Changed:
    """Whether the default has ever been another than float32, in any thread."""

    used: bool = False


changed = _Changed()


def get_default_dtype() -> DType:
    """The dtype of tensors made from Python floats; float32 unless :func:`set_default_dtype` changed it."""
    return _defaults.dtype


def set_default_dtype(d: DType) -> None:
    """Set the default floating point dtype. TypeError unless it is a float dtype."""
    if not isinstance(d, DType) or not d.is_floating_point:
        raise TypeError(f"only floating-point types are supported as the default type, got {d!r}")
    _defaults.dtype = d
    changed.used = changed.used or d is not T.f32


def default_complex() -> DType:
    return T.c128 if _defaults.dtype is T.f64 else T.c64


def as_dtype(d: Any) -> DType:
    """A dtype from a weft dtype, a Python type (``float``) or a numpy dtype; TypeError otherwise."""
    if isinstance(d, DType):
        return d
    if d is float:
        return _defaults.dtype
    if isinstance(d, type) and d in _PYTHON_TYPES:
        return _PYTHON_TYPES[d]
    if isinstance(d, np.dtype) or (isinstance(d, type) and issubclass(d, np.generic)):
        return T.dtype_of_numpy(d)
    raise TypeError(f"dtype must be a weft.dtype, not {type(d).__name__}")


def dtype_of_scalar(x: Any) -> DType:
    """The dtype that a Python number has as a tensor."""
    if isinstance(x, (bool, np.bool_)):
        return T.bool_
    if isinstance(x, (int, np.integer)):
        return T.i64
    if isinstance(x, (float, np.floating)):
        return _defaults.dtype
    if isinstance(x, (complex, np.complexfloating)):
        return default_complex()
    raise TypeError(f"expected a number, not {type(x).__name__}")


def dtype_of_array(a: np.ndarray) -> DType:
    found = _BY_NP.get(a.dtype)
    return found if found is not None else T.dtype_of_numpy(a.dtype)


_TYPE_NAMES = {
    "float16": "Half",
    "float32": "Float",
    "float64": "Double",
    "bfloat16": "BFloat16",
    "int8": "Char",
    "int16": "Short",
    "int32": "Int",
    "int64": "Long",
    "uint8": "Byte",
    "uint16": "UInt16",
    "uint32": "UInt32",
    "uint64": "UInt64",
    "bool": "Bool",
    "complex64": "ComplexFloat",
    "complex128": "ComplexDouble",
}


def type_name(d: DType) -> str:
    """PyTorch's name of a scalar type, as its messages have it: ``Float``, ``Long``."""
    return _TYPE_NAMES[d.long_name]


class _DeviceMeta(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, Device)


class device(metaclass=_DeviceMeta):
    """A device from ``"cpu"``, ``"cuda:1"``, ``("cuda", 1)`` or another device.

    >>> device("cuda:1")
    device(type='cuda', index=1)
    """

    def __new__(cls, type: Any = "cpu", index: int | None = None) -> Any:
        if isinstance(type, Device):
            return type
        if isinstance(type, int) and not isinstance(type, bool):
            return Device("cuda", type)
        if not isinstance(type, str):
            raise TypeError(f"device(): expected a string or a device, not {type.__class__.__name__}")
        name, _, tail = type.partition(":")
        if name not in ("cpu", "cuda", "null"):
            raise RuntimeError(
                f"Expected one of cpu, cuda, null device type at start of device string: {name}"
            )
        if tail:
            if not tail.isdigit():
                raise RuntimeError(f"Invalid device string: '{type}'")
            index = int(tail)
        return CPU if name == "cpu" and index is None else Device(name, index)


class _DefaultDevice:
    value = CPU


def as_device(d: Any) -> Device:
    """The device meant by ``d`` (None is the default one), with its index. RuntimeError for one that this
    machine cannot hold tensors on.
    """
    found: Any = _DefaultDevice.value if d is None else device(d)
    if found is CPU:
        return CPU
    from weft.devices import resolved

    return resolved(found)


def set_default_device(device_: Any) -> None:
    """Make tensors on this device where none is asked for. None is the CPU.

    >>> set_default_device("cpu")
    """
    _DefaultDevice.value = CPU if device_ is None else as_device(device_)


def get_default_device() -> Device:
    """The device on which tensors are made where none is asked for."""
    return _DefaultDevice.value


class Size(tuple):
    """A shape: a tuple of ints with ``numel``.

    >>> Size((2, 3)).numel()
    6
    """

    __slots__ = ()

    def numel(self) -> int:
        n = 1
        for d in self:
            n *= d
        return n

    def __repr__(self) -> str:
        return f"weft.Size([{', '.join(map(str, self))}])"

    def __getitem__(self, key: Any) -> Any:
        got = tuple.__getitem__(self, key)
        return Size(got) if isinstance(key, slice) else got

    def __add__(self, other: Iterable[int]) -> Size:  # type: ignore[override]
        return Size(tuple(self) + tuple(other))


class finfo:
    """Limits of a floating point dtype: bits, eps, max, min, tiny, smallest_normal, resolution, dtype.

    >>> finfo(float32).eps
    1.1920928955078125e-07
    """

    def __init__(self, dtype: DType | None = None) -> None:
        d = dtype or _defaults.dtype
        if not d.is_inexact:
            raise TypeError(
                f"weft.finfo() requires a floating point input type. Use weft.iinfo to handle '{d}'"
            )
        real = {T.c64: T.f32, T.c128: T.f64}.get(d, d)
        info: Any = ml_dtypes.finfo(real.np)
        self.bits, self.dtype = real.bits, d.long_name
        self.eps, self.max, self.min = float(info.eps), float(info.max), float(info.min)
        self.tiny = self.smallest_normal = float(info.tiny)
        self.resolution = float(info.resolution)

    def __repr__(self) -> str:
        return (
            f"finfo(resolution={self.resolution:g}, min={self.min:g}, max={self.max:g}, eps={self.eps:g}, "
            f"smallest_normal={self.smallest_normal:g}, tiny={self.tiny:g}, dtype={self.dtype})"
        )


class iinfo:
    """Limits of an integer dtype: bits, min, max, dtype."""

    def __init__(self, dtype: DType) -> None:
        if not dtype.is_integer:
            raise TypeError(
                f"weft.iinfo() requires an integer input type. Use weft.finfo to handle '{dtype}'"
            )
        info = np.iinfo(dtype.np)
        self.bits, self.min, self.max, self.dtype = dtype.bits, int(info.min), int(info.max), dtype.long_name

    def __repr__(self) -> str:
        return f"iinfo(min={self.min}, max={self.max}, dtype={self.dtype})"
