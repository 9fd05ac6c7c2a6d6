"""DLPack capsules of arrays on a GPU, by ctypes.

Source: dlpack.h 0.8 (DLTensor, DLManagedTensor). The stream arguments follow the Python Array API standard:
None or 1 the legacy default stream, 2 the default stream per thread, -1 no synchronisation, else a handle.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import ml_dtypes
import numpy as np
from weft.runtime.cuda.array import DeviceArray
from weft.runtime.cuda.device import device_state
from weft.runtime.cuda.stream import Event, Stream, current_stream, stream_of

CUDA, PINNED, MANAGED = 2, 3, 13  # kDLCUDA, kDLCUDAHost, kDLCUDAManaged
_CODES = {"i": 0, "u": 1, "f": 2, "c": 5, "b": 6}
_BFLOAT = 4
_BF16 = np.dtype(ml_dtypes.bfloat16)


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64),
    )  # fmt: skip


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))  # type: ignore[misc]
_Destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

_alive: dict[int, tuple[Any, ...]] = {}  # what exported capsules stand on, by the address of the structure


@_Deleter
def _delete(managed: Any) -> None:
    _alive.pop(ctypes.addressof(managed.contents), None)


def _python(name: str, result: Any, *arguments: Any) -> Any:
    """A function of the C API of Python; one of its own, so that its types are not another module's."""
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))


_new_capsule = _python("PyCapsule_New", ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_pointer = _python("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
_is_valid = _python("PyCapsule_IsValid", ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
_rename = _python("PyCapsule_SetName", ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
_raw_valid = _python("PyCapsule_IsValid", ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)
_raw_pointer = _python("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)
_NAME, _USED = b"dltensor", b"used_dltensor"


@_Destructor
def _forget(capsule: int) -> None:
    """Nobody took what is in the capsule: it is let go of."""
    if _raw_valid(capsule, _NAME):
        _alive.pop(_raw_pointer(capsule, _NAME), None)


def export(array: DeviceArray, stream: int | None = None) -> Any:
    """A capsule that a consumer takes the array over from. TypeError for a dtype that DLPack has not."""
    _hand_over(array, stream)
    managed = _Managed()
    n = max(array.ndim, 1)
    shape = (ctypes.c_int64 * n)(*array.shape)
    strides = (ctypes.c_int64 * n)(*[s // array.itemsize for s in array.strides])
    t = managed.tensor
    t.data, t.device_type, t.device_id, t.ndim = array.address, CUDA, array.state.index, array.ndim
    t.code, t.bits, t.lanes = _code(array.dtype), 8 * array.itemsize, 1
    t.shape, t.strides, t.byte_offset = shape, strides, 0
    managed.deleter = _delete
    address = ctypes.addressof(managed)
    _alive[address] = managed, shape, strides, array
    return _new_capsule(address, _NAME, ctypes.cast(_forget, ctypes.c_void_p))


def _hand_over(array: DeviceArray, stream: int | None) -> None:
    """Let a consumer's stream wait for the work on the array."""
    ours = stream_of(array.state)
    wanted = 0 if stream in (None, 1) else stream
    if wanted not in (-1, ours.cuda_stream):
        Stream(array.state.index, handle=wanted).wait_stream(ours)


def _code(dtype: np.dtype[Any]) -> int:
    if dtype == _BF16:
        return _BFLOAT
    if dtype.kind not in _CODES:
        raise TypeError(f"DLPack has no name for {dtype}")
    return _CODES[dtype.kind]


def _dtype(code: int, bits: int) -> np.dtype[Any]:
    if (code, bits) == (_BFLOAT, 16):
        return _BF16
    kind = next((k for k, c in _CODES.items() if c == code), None)
    if kind is None or bits % 8:
        raise TypeError(f"weft has no dtype for DLPack's code {code} with {bits} bits")
    return np.dtype(np.bool_) if kind == "b" else np.dtype(f"{kind}{bits // 8}")


class _Taken:
    """Memory of another library; its deleter runs with the last array on it."""

    def __init__(self, managed: Any) -> None:
        self.managed = managed

    def __del__(self) -> None:
        if self.managed.contents.deleter:
            self.managed.contents.deleter(self.managed)


def take(source: Any) -> DeviceArray:
    """The array of a capsule, or of an object with ``__dlpack__``, without a copy. RuntimeError for a capsule
    that was used already, ValueError for one of another kind of device."""
    if hasattr(source, "__dlpack__"):
        index = source.__dlpack_device__()[1]
        source = source.__dlpack__(stream=current_stream(index).cuda_stream or 1)
    if not _is_valid(source, _NAME):
        raise RuntimeError("a DLPack capsule can be used once only")
    managed = ctypes.cast(_pointer(source, _NAME), ctypes.POINTER(_Managed))
    t = managed.contents.tensor
    if t.device_type not in (CUDA, MANAGED) or t.lanes != 1:
        raise ValueError(f"not an array on a CUDA device: DLPack device {t.device_type}, {t.lanes} lanes")
    dtype, shape = _dtype(t.code, t.bits), tuple(t.shape[i] for i in range(t.ndim))
    strides = tuple(t.strides[i] * dtype.itemsize for i in range(t.ndim)) if t.strides else None
    _rename(source, _USED)
    owner = _Taken(managed)
    address = (t.data or 0) + t.byte_offset
    return DeviceArray(device_state(t.device_id), address, shape, dtype, strides, owner)


def from_interface(source: Any, index: int) -> DeviceArray:
    """The array of an object with ``__cuda_array_interface__``, without a copy."""
    found = source.__cuda_array_interface__
    state = device_state(index)
    stream = found.get("stream")
    if stream is not None and stream not in (1, current_stream(index).cuda_stream):
        event = Event()
        event.record(Stream(index, handle=stream))
        event.wait(current_stream(index))
    dtype, shape, strides = np.dtype(found["typestr"]), tuple(found["shape"]), found.get("strides")
    address = found["data"][0] if math.prod(shape) else 0
    return DeviceArray(state, address, shape, dtype, None if strides is None else tuple(strides), source)
