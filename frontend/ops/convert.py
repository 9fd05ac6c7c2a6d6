"""Between dtypes, devices, Python values, numpy and DLPack."""

from __future__ import annotations

from typing import Any

import numpy as np
from weft.autograd.grad_mode import mode
from weft.creation import empty, full, ones, tensor, zeros
from weft.devices import pinned, transfer
from weft.dispatch import apply, at_hand, recording, wrap
from weft.dtypes import as_device, as_dtype
from weft.ir import prims as P
from weft.ir import types as T
from weft.ir.types import CPU, Device, DType
from weft.ops.common import convert
from weft.ops.shape import clone
from weft.prepared import prepared
from weft.tensor import Tensor
from weft.views import alias


def to(
    input: Tensor,
    *args: Any,
    dtype: Any = None,
    device: Any = None,
    non_blocking: bool = False,
    copy: bool = False,
    memory_format: Any = None,
) -> Tensor:
    """The tensor in another dtype or on another device: ``to(dtype)``, ``to(device, dtype)``, ``to(other)``.

    Itself where nothing changes and ``copy`` is False. With ``non_blocking`` a copy from pinned memory, or
    into it, does not wait.
    """
    for a in args:
        if isinstance(a, Tensor):
            dtype, device = a.dtype, a.device
        elif isinstance(a, DType) or a in (float, int, bool, complex):
            dtype = a
        elif isinstance(a, (str, Device, int)) and not isinstance(a, bool):
            device = a
    here = input.device
    place = here if device is None else as_device(device)
    d = input.dtype if dtype is None else as_dtype(dtype)
    if d is not input.dtype and d.itemsize <= input.itemsize:  # the fewer bytes travel
        return moved(convert(input, d), place, non_blocking)
    if place != here or d is not input.dtype:
        return convert(moved(input, place, non_blocking), d)
    return clone(input) if copy else input


def moved(input: Tensor, device: Device, non_blocking: bool = False) -> Tensor:
    """The tensor on a device: itself if it is there already."""
    if input.device == device:
        return input
    if non_blocking and not recording() and not (mode.grad and input.requires_grad):
        return wrap(transfer(input._data, device, non_blocking=True))
    return apply(P.transfer_p, input, device=device)


def type_(input: Tensor, dtype: Any = None, non_blocking: bool = False) -> Any:
    """The name of the tensor's type, or the tensor in another dtype."""
    if dtype is None:
        names = {
            "float32": "FloatTensor",
            "float64": "DoubleTensor",
            "float16": "HalfTensor",
            "int64": "LongTensor",
            "bfloat16": "BFloat16Tensor",
            "int32": "IntTensor",
            "int16": "ShortTensor",
            "int8": "CharTensor",
            "uint8": "ByteTensor",
            "bool": "BoolTensor",
            "complex64": "ComplexFloatTensor",
            "complex128": "ComplexDoubleTensor",
        }
        where = "cuda." if input.is_cuda else ""
        return f"weft.{where}{names.get(input.dtype.long_name, input.dtype.long_name)}"
    return convert(input, as_dtype(dtype))


def type_as(input: Tensor, other: Tensor) -> Tensor:
    """The tensor with the dtype and on the device of another."""
    return to(input, other)


def _caster(dtype: DType, name: str) -> Any:
    @prepared
    def cast(input: Tensor) -> Tensor:
        return convert(input, dtype)

    def fn(input: Tensor, memory_format: Any = None) -> Tensor:
        return input if input.dtype is dtype else cast(input)

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = f"The tensor as {dtype.long_name}."
    return fn


CASTS: dict[str, Any] = {
    n: _caster(d, n)
    for n, d in {
        "float": T.f32,
        "double": T.f64,
        "half": T.f16,
        "bfloat16": T.bf16,
        "int": T.i32,
        "long": T.i64,
        "short": T.i16,
        "char": T.i8,
        "byte": T.u8,
        "bool": T.bool_,
        "cfloat": T.c64,
        "cdouble": T.c128,
    }.items()
}


def cpu(input: Tensor, memory_format: Any = None) -> Tensor:
    """The tensor on the CPU: itself if it is there."""
    return moved(input, CPU)


def cuda(
    input: Tensor, device: Any = None, non_blocking: bool = False, memory_format: Any = None
) -> Tensor:
    """The tensor on a GPU (the current one): itself if it is there. RuntimeError where there is none."""
    return moved(input, as_device("cuda" if device is None else device), non_blocking)


def pin_memory(input: Tensor, device: Any = None) -> Tensor:
    """A copy in pinned memory, from which copies to a GPU need not wait; itself if it is there already.
    RuntimeError for tensors that are not on the CPU."""
    if input.device is not CPU:
        raise RuntimeError(f"cannot pin '{input.type()}' only dense CPU tensors can be pinned")
    if input.is_pinned():
        return input
    return wrap(pinned(input._array("pin_memory()")))


def detach(input: Tensor) -> Tensor:
    """A tensor on the same storage without history."""
    return alias(input)


def detach_(input: Tensor) -> Tensor:
    """Cut this tensor from its history. RuntimeError for views."""
    if input._is_view():
        raise RuntimeError(
            "Can't detach views in-place. Use detach() instead. If you are using DistributedDataParallel "
            "(DDP) for training, and gradient_as_bucket_view is set as True, gradients are views of DDP "
            "buckets, and hence detach_() cannot be called on these gradients."
        )
    input._edge, input._rg = None, False
    return input


# -- Python values ------------------------------------------------------------------------------------------


def item(input: Tensor) -> Any:
    """The only element as a Python number. RuntimeError for more than one."""
    a = at_hand(input)
    if a is not None and a.size == 1:
        v = a.item()
        return v if type(v) in _NUMBERS else _exact(v)
    if input.numel() != 1:
        raise RuntimeError(f"a Tensor with {input.numel()} elements cannot be converted to Scalar")
    v = input._array("item()").item()
    return v if isinstance(v, (bool, int, float, complex)) else _exact(v)


_NUMBERS = frozenset((bool, int, float, complex))


def _exact(v: Any) -> Any:
    return complex(v) if isinstance(v, complex) else float(v)


def tolist(input: Tensor) -> Any:
    """Nested lists of Python numbers."""
    a = at_hand(input)
    if a is None:
        a = input._array("tolist()")
    return a.tolist() if a.dtype.kind != "V" and input.dtype is not T.bf16 else a.astype(np.float32).tolist()


def numpy(input: Tensor, *, force: bool = False) -> np.ndarray:
    """The values as an ndarray that shares memory. RuntimeError for tensors that require grad (unless
    ``force``).
    """
    if input.requires_grad and not force:
        raise RuntimeError(
            "Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead."
        )
    if input.device is not CPU and not force:
        raise TypeError(
            f"can't convert {input.device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor "
            "to host memory first."
        )
    return input._array("numpy()")


def to_array(input: Tensor, dtype: Any = None, copy: Any = None) -> np.ndarray:
    """``numpy.asarray(tensor)``."""
    a = numpy(input)
    if dtype is not None and a.dtype != dtype:
        return a.astype(dtype)
    return np.array(a) if copy else a


def dlpack(input: Tensor, *, stream: Any = None, **kwargs: Any) -> Any:
    """The DLPack capsule of the tensor's memory. BufferError for dtypes DLPack lacks here (bfloat16)."""
    if input.requires_grad:
        raise BufferError("Can't export tensors that require gradient, use tensor.detach()")
    a = input._data if input.device is not CPU and not recording() else input._array("__dlpack__()")
    kwargs.pop("dl_device", None)
    return a.__dlpack__(stream=stream, **kwargs)


def dlpack_device(input: Tensor) -> tuple[Any, int]:
    """The kind and number of the device, as DLPack has them."""
    return (1, 0) if input.device is CPU else input._data.__dlpack_device__()


def cuda_array_interface(input: Tensor) -> dict[str, Any]:
    """The ``__cuda_array_interface__`` of a tensor on a GPU. AttributeError for others."""
    if input.device is CPU:
        raise AttributeError("Can't get __cuda_array_interface__ on non-CUDA tensor")
    if input.requires_grad:
        raise RuntimeError(
            "Can't get __cuda_array_interface__ on Variable that requires grad. If gradients aren't "
            "required, use var.detach() to get Variable that doesn't require grad."
        )
    return input._data.__cuda_array_interface__


def _truth_of(x: Tensor) -> Any:
    a = at_hand(x)
    if a is not None and a.size == 1:
        return a.item()
    n = x.numel()
    if n == 0:
        raise RuntimeError("Boolean value of Tensor with no values is ambiguous")
    if n > 1:
        raise RuntimeError("Boolean value of Tensor with more than one value is ambiguous")
    return x._array("bool() (Python control flow on a tensor)").item()


def to_bool(x: Tensor) -> bool:
    """``bool(tensor)`` of one element."""
    return _py_bool(_truth_of(x))


_py_bool = bool


def _single(x: Tensor, what: str) -> Any:
    a = at_hand(x)
    if a is not None and a.size == 1:
        return a.item()
    if x.numel() != 1:
        raise RuntimeError(f"a Tensor with {x.numel()} elements cannot be converted to Scalar")
    return x._array(what).item()


def to_int(x: Tensor) -> int:
    return int(_single(x, "int()"))


def to_float(x: Tensor) -> float:
    return float(_single(x, "float()"))


def to_complex(x: Tensor) -> complex:
    return complex(_single(x, "complex()"))


def to_index(x: Tensor) -> int:
    """Use as a Python index. TypeError unless it is one integer."""
    if x.numel() != 1 or not (x.dtype.is_integer or x.dtype is T.bool_):
        raise TypeError("only integer tensors of a single element can be converted to an index")
    return int(_single(x, "use as an index"))


def length(x: Tensor) -> int:
    if x.ndim == 0:
        raise TypeError("len() of a 0-d tensor")
    return x.shape[0]


def iterate(x: Tensor) -> Any:
    """The parts along the first dimension. TypeError for 0-d tensors."""
    if x.ndim == 0:
        raise TypeError("iteration over a 0-d tensor")
    return iter(x.unbind(0))


def contains(x: Tensor, element: Any) -> bool:
    if isinstance(element, (Tensor, int, float, complex, _py_bool)):
        return to_bool((x == element).any())
    raise RuntimeError(
        f"Tensor.__contains__ only supports Tensor or scalar, but you passed in a {type(element)}."
    )


# -- new tensors like this one ------------------------------------------------------------------------------


def _new(maker: Any) -> Any:
    def fn(
        input: Tensor,
        *size: Any,
        dtype: Any = None,
        device: Any = None,
        requires_grad: bool = False,
        **kw: Any,
    ) -> Tensor:
        return maker(
            *size,
            dtype=input.dtype if dtype is None else dtype,
            device=input.device if device is None else device,
            requires_grad=requires_grad,
            **kw,
        )

    fn.__doc__ = f"``{maker.__name__}`` with this tensor's dtype."
    return fn


new_zeros, new_ones, new_empty = _new(zeros), _new(ones), _new(empty)


def new_full(
    input: Tensor,
    size: Any,
    fill_value: Any,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    d, place = input.dtype if dtype is None else dtype, input.device if device is None else device
    return full(size, fill_value, dtype=d, device=place, requires_grad=requires_grad)


def new_tensor(
    input: Tensor, data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    d, place = input.dtype if dtype is None else dtype, input.device if device is None else device
    return tensor(data, dtype=d, device=place, requires_grad=requires_grad)
