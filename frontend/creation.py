"""Functions that make tensors from data and from nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from weft import dtypes as D
from weft.devices import cuda, put
from weft.dispatch import apply, interpreter, wrap
from weft.dtypes import as_device, as_dtype, get_default_dtype
from weft.ir import prims as P
from weft.ir import types as T
from weft.ir.types import CPU, Device, DType
from weft.promotion import promote_types, scalar_category, scalar_dtype
from weft.runtime import buffers
from weft.tensor import Tensor


def shape_of_args(args: Sequence[Any], name: str = "size") -> tuple[int, ...]:
    """``f(2, 3)``, ``f((2, 3))`` or ``f(torch.Size)`` as a tuple of ints."""
    if len(args) == 1 and isinstance(args[0], (tuple, list)):
        args = args[0]
    for a in args:
        if type(a) is not int:
            break
    else:
        return tuple(args)
    out = []
    for a in args:
        if isinstance(a, bool) or not hasattr(a, "__index__"):
            raise TypeError(
                f"argument '{name}' must be tuple of ints, but found element of type {type(a).__name__}"
            )
        out.append(a.__index__())
    return tuple(out)


_PLAIN_NUMBERS = frozenset((int, float, bool))


def _check_size(shape: tuple[int, ...]) -> tuple[int, ...]:
    for d in shape:
        if d < 0:
            raise RuntimeError(f"Trying to create tensor with negative dimension {d}: {list(shape)}")
    return shape


def _finish(t: Tensor, requires_grad: bool) -> Tensor:
    return t.requires_grad_(True) if requires_grad else t


def _filled(shape: tuple[int, ...], value: Any, dtype: DType, device: Device = CPU) -> Tensor:
    """A fresh tensor of one value: real memory in eager mode, a ``full`` in capture."""
    _check_size(shape)
    if type(value) not in _PLAIN_NUMBERS and getattr(value, "_weft_scalar", False):
        from weft.ops.common import scalar_tensor

        return scalar_tensor(value, dtype).to(device).expand(shape).clone()
    if device is not CPU or interpreter().recording:
        return apply(P.full_p, shape=shape, dtype=dtype, value=_plain(value), device=device)
    return wrap(buffers.filled(shape, value, dtype))


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def zeros(
    *size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False, **kw: Any
) -> Tensor:
    """Zeros of a shape.

    >>> zeros(2)
    tensor([0., 0.])
    """
    place = as_device(device)
    shape = shape_of_args(size or (kw.get("size", ()),))
    d = as_dtype(dtype) if dtype is not None else get_default_dtype()
    return _finish(_filled(shape, 0, d, place), requires_grad)


def ones(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False, **kw: Any) -> Tensor:
    """Ones of a shape."""
    place = as_device(device)
    shape = shape_of_args(size or (kw.get("size", ()),))
    d = as_dtype(dtype) if dtype is not None else get_default_dtype()
    return _finish(_filled(shape, 1, d, place), requires_grad)


def empty(
    *size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False, **kw: Any
) -> Tensor:
    """Memory of a shape, uninitialised (zeros in capture)."""
    place = as_device(device)
    shape = _check_size(shape_of_args(size or (kw.get("size", ()),)))
    d = as_dtype(dtype) if dtype is not None else get_default_dtype()
    if interpreter().recording:
        t = _filled(shape, 0, d, place)
    else:
        t = wrap(buffers.empty(shape, d) if place is CPU else cuda.array.empty(shape, d.np, place.index))
    return _finish(t, requires_grad)


def empty_strided(
    size: Any, stride: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """Uninitialised memory with the strides (in elements) given."""
    place = as_device(device)
    d = as_dtype(dtype) if dtype is not None else get_default_dtype()
    n = 1 + sum((s - 1) * st for s, st in zip(size, stride, strict=True)) if all(size) else 0
    flat = np.empty(n, d.np)
    strides = tuple(s * d.itemsize for s in stride)
    if place is CPU:
        return _finish(wrap(np.lib.stride_tricks.as_strided(flat, tuple(size), strides)), requires_grad)
    memory = cuda.array.empty((n,), d.np, place.index)
    return _finish(wrap(memory.as_strided(tuple(size), strides)), requires_grad)


def full(
    size: Any, fill_value: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """One value in a shape; the dtype follows the value (bool, int64 or the default float)."""
    place = as_device(device)
    shape = shape_of_args((size,))
    if isinstance(fill_value, Tensor):
        if fill_value.ndim:
            raise TypeError("full(): argument 'fill_value' must be a number or a 0-d tensor")
        d = as_dtype(dtype) if dtype is not None else fill_value.dtype
        return _finish(fill_value.detach().to(place, d).expand(shape).clone(), requires_grad)
    d = as_dtype(dtype) if dtype is not None else scalar_dtype(scalar_category(fill_value))
    return _finish(_filled(shape, fill_value, d, place), requires_grad)


def scalar_tensor(s: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    d = as_dtype(dtype) if dtype is not None else get_default_dtype()
    return full((), s, dtype=d, device=device, requires_grad=requires_grad)


def _like(x: Tensor, value: Any, dtype: Any, device: Any, requires_grad: bool) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"argument 'input' must be Tensor, not {type(x).__name__}")
    place = x.device if device is None else as_device(device)
    d = as_dtype(dtype) if dtype is not None else x.dtype
    return _finish(_filled(tuple(x.shape), value, d, place), requires_grad)


def zeros_like(
    input: Tensor, *, dtype: Any = None, device: Any = None, requires_grad: bool = False, **kw: Any
) -> Tensor:
    """Zeros of the shape and dtype of ``input``."""
    return _like(input, 0, dtype, device, requires_grad)


def ones_like(
    input: Tensor, *, dtype: Any = None, device: Any = None, requires_grad: bool = False, **kw: Any
) -> Tensor:
    """Ones of the shape and dtype of ``input``."""
    return _like(input, 1, dtype, device, requires_grad)


def empty_like(
    input: Tensor, *, dtype: Any = None, device: Any = None, requires_grad: bool = False, **kw: Any
) -> Tensor:
    """Uninitialised memory of the shape and dtype of ``input``."""
    d = as_dtype(dtype) if dtype is not None else input.dtype
    place = input.device if device is None else device
    return empty(tuple(input.shape), dtype=d, device=place, requires_grad=requires_grad)


def full_like(
    input: Tensor,
    fill_value: Any,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    **kw: Any,
) -> Tensor:
    """One value in the shape and dtype of ``input``."""
    return full(
        tuple(input.shape),
        fill_value,
        dtype=input.dtype if dtype is None else dtype,
        device=input.device if device is None else device,
        requires_grad=requires_grad,
    )


def _range_dtype(*values: Any) -> DType:
    top = max(
        (
            1
            if not isinstance(v, Tensor) and scalar_category(v) == 0
            else (_tensor_category(v) if isinstance(v, Tensor) else scalar_category(v))
        )
        for v in values
    )
    return T.i64 if top <= 1 else get_default_dtype()


def _tensor_category(t: Tensor) -> int:
    return 2 if t.dtype.is_floating_point else 1


def arange(
    start: Any,
    end: Any = None,
    step: Any = 1,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Values from ``start`` (0) to before ``end`` in steps: int64 for integers, else the default float.

    >>> arange(3)
    tensor([0, 1, 2])
    """
    place = as_device(device)
    if end is None:
        start, end = 0, start
    ints = dtype is None and type(start) is type(end) is type(step) is int
    if ints and step > 0 and start <= end and place is CPU and not interpreter().recording:
        return _finish(wrap(np.arange(start, end, step)), requires_grad)
    d = as_dtype(dtype) if dtype is not None else _range_dtype(start, end, step)
    start, end, step = (_number(v) for v in (start, end, step))
    if step == 0:
        raise RuntimeError("step must be nonzero")
    if (end - start) * step < 0:
        raise RuntimeError("upper bound and lower bound inconsistent with step sign")
    exact = all(isinstance(v, int) for v in (start, end, step))
    n = -((start - end) // step) if exact else math.ceil((end - start) / step)
    t = _affine(n, start, step, d, place)
    return _finish(t, requires_grad)


def _number(v: Any) -> Any:
    v = v.item() if isinstance(v, Tensor) else v
    return v.item() if isinstance(v, np.generic) else v


def _affine(n: int, start: Any, step: Any, d: DType, device: Device) -> Tensor:
    """``start + i * step``, computed in int64 or float64 (as numpy and torch do on the CPU) and then
    converted.
    """
    wide = T.i64 if isinstance(start, int) and isinstance(step, int) else T.f64
    if not interpreter().recording:
        i = np.arange(n, dtype=wide.np)
        plain = (start, step) == (0, 1)
        return wrap(put(i.astype(d.np, copy=False) if plain else (start + i * step).astype(d.np), device))
    i = apply(P.iota_p, shape=(n,), dtype=wide, axis=0, device=device)
    return (i * step + start).to(d)


def range_(start: Any, end: Any, step: Any = 1, **kw: Any) -> Tensor:
    n = math.floor((end - start) / step) + 1
    return arange(n, dtype=kw.get("dtype") or get_default_dtype()) * step + start


def linspace(
    start: Any, end: Any, steps: int, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """``steps`` values from ``start`` to ``end``, both included, symmetric about the middle as torch's."""
    place = as_device(device)
    if steps < 0:
        raise RuntimeError("number of steps must be non-negative")
    d = as_dtype(dtype) if dtype is not None else get_default_dtype()
    start, end = _number(start), _number(end)
    values = _linspace_values(start, end, steps, d)
    return _finish(constant(values.astype(d.np), place), requires_grad)


def _linspace_values(start: Any, end: Any, steps: int, d: DType) -> np.ndarray:
    if steps == 1:
        return np.asarray([start])
    wide = np.dtype(np.float64) if not d.is_complex else np.dtype(np.complex128)
    real = d.np if d in (T.f32, T.f64, T.c64, T.c128) else wide
    if not d.is_inexact:
        real = wide
    i = np.arange(steps)
    one = real.type
    step = (one(end) - one(start)) / one(max(steps - 1, 1))
    low = one(start) + step * i.astype(real)
    high = one(end) - step * (steps - 1 - i).astype(real)
    return np.where(i < steps // 2, low, high)


def logspace(
    start: Any,
    end: Any,
    steps: int,
    base: float = 10.0,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """``base ** x`` for ``x`` in a linspace."""
    place = as_device(device)
    d = as_dtype(dtype) if dtype is not None else get_default_dtype()
    x = np.linspace(_number(start), _number(end), steps, dtype=np.float64)
    return _finish(constant(np.power(float(base), x).astype(d.np), place), requires_grad)


def eye(
    n: int, m: int | None = None, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """Ones on the diagonal of an n by m matrix."""
    place = as_device(device)
    m = n if m is None else m
    if n < 0 or m < 0:
        raise RuntimeError(f"n must be greater or equal to 0, got {min(n, m)}")
    d = as_dtype(dtype) if dtype is not None else get_default_dtype()
    if not interpreter().recording:
        return _finish(wrap(put(np.eye(n, m, dtype=d.np), place)), requires_grad)
    rows, cols = (apply(P.iota_p, shape=(n, m), dtype=T.i64, axis=i, device=place) for i in (0, 1))
    return _finish(apply(P.convert_p, apply(P.eq_p, rows, cols), dtype=d), requires_grad)


def constant(a: np.ndarray, device: Device = CPU) -> Tensor:
    """A tensor of an array nobody else writes to: itself, a copy of it on a GPU, or a constant of the
    captured graph."""
    if interpreter().recording:
        return apply(P.constant_p, value=a, device=device)
    return wrap(put(a, device))


# -- from data ----------------------------------------------------------------------------------------------


def tensor(
    data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False, pin_memory: bool = False
) -> Tensor:
    """A new leaf from numbers, nested sequences, arrays or a tensor (always a copy).

    Python floats give the default dtype, ints int64, bools bool. ValueError for ragged sequences.

    >>> tensor([[1.0, 2.0], [3.0, 4.0]]).shape
    weft.Size([2, 2])
    """
    place = as_device(device)
    d = None if dtype is None else as_dtype(dtype)
    if d is None and place is CPU and not pin_memory and not interpreter().recording:
        a = _floats(data)
        if a is not None:
            return _finish(wrap(a), requires_grad)
    if isinstance(data, Tensor):
        place = data.device if device is None else place
        t = data.detach().clone()
        t = t.to(place) if d is None else t.to(place, d)
    elif _has_tensors(data):
        t = _from_tensors(data, d).to(place)
    else:
        t = constant(array_of(data, d), place)
    if pin_memory and place is CPU and not interpreter().recording:
        t = t.pin_memory()
    return _finish(t, requires_grad)


_FLOAT = {float}


def _floats(data: Any) -> np.ndarray | None:
    """The array of a Python float or of a list of them, in the default dtype; None for other data."""
    if type(data) is not float and not (type(data) is list and {*map(type, data)} == _FLOAT):
        return None
    with np.errstate(over="ignore"):
        return np.array(data, get_default_dtype().np)


def _has_tensors(data: Any) -> bool:
    if isinstance(data, Tensor) or getattr(data, "_weft_scalar", False):
        return True
    return isinstance(data, (list, tuple)) and any(_has_tensors(x) for x in data)


def _from_tensors(data: Any, d: DType | None) -> Tensor:
    """Nested sequences that hold 0-d tensors or traced numbers. In eager mode their values are read."""
    if getattr(data, "_weft_scalar", False):
        from weft.ops.common import scalar_tensor as lifted

        return lifted(data, d or scalar_dtype(scalar_category(data)))
    if not interpreter().recording:
        return wrap(array_of(_to_numbers(data), d))
    parts = [tensor(x, dtype=d) for x in data]
    common = parts[0].dtype
    for p in parts[1:]:
        common = promote_types(common, p.dtype)
    from weft.ops.shape import stack

    return stack([p.to(common) for p in parts])


def _to_numbers(data: Any) -> Any:
    if isinstance(data, Tensor):
        if data.numel() != 1:
            raise ValueError("only one element tensors can be converted to Python scalars")
        return data.item()
    return [_to_numbers(x) for x in data] if isinstance(data, (list, tuple)) else data


def array_of(data: Any, d: DType | None) -> np.ndarray:
    """A fresh numpy array of data, with torch's dtype for Python numbers."""
    if isinstance(data, (np.ndarray, np.generic)):
        a = np.array(data)
        T.dtype_of_numpy(a.dtype)
    elif hasattr(data, "__array__") and not isinstance(data, (list, tuple)):
        a = np.array(data.__array__())
    elif hasattr(data, "__dlpack__"):
        a = np.array(np.from_dlpack(data))  # type: ignore[arg-type]
    else:
        return _array_of_sequence(data, d)
    return a if d is None or a.dtype == d.np else a.astype(d.np)


def _array_of_sequence(data: Any, d: DType | None) -> np.ndarray:
    shape = _nested_shape(data)
    flat: list[Any] = []
    _flatten(data, shape, 0, flat)
    d = d or _dtype_of_items(flat)
    try:
        with np.errstate(all="ignore"):
            if d.is_integer and any(isinstance(x, (float, np.floating)) for x in flat):
                flat = [int(x) for x in flat]
            return np.array(flat, dtype=d.np).reshape(shape)
    except OverflowError as e:
        raise RuntimeError(f"value cannot be converted to type {d.long_name} without overflow") from e


def _dtype_of_items(flat: list[Any]) -> DType:
    if flat and all(isinstance(x, np.generic) for x in flat):
        return T.dtype_of_numpy(np.result_type(*flat))
    return scalar_dtype(max((scalar_category(x) for x in flat), default=2))


def _nested_shape(data: Any) -> tuple[int, ...]:
    shape: list[int] = []
    while isinstance(data, (list, tuple, range)) or (isinstance(data, np.ndarray) and data.ndim):
        shape.append(len(data))
        if not len(data):
            break
        data = data[0]
    _check_element(data)
    return tuple(shape)


def _check_element(data: Any) -> None:
    if isinstance(data, (str, bytes)):
        raise TypeError(f"new(): invalid data type '{type(data).__name__}'")
    if data is None or isinstance(data, (dict, set)):
        raise RuntimeError(f"Could not infer dtype of {type(data).__name__}")


def _flatten(data: Any, shape: tuple[int, ...], depth: int, out: list[Any]) -> None:
    if depth == len(shape):
        if isinstance(data, (list, tuple)):
            raise TypeError(f"not a sequence but {type(data).__name__} expected at dim {depth}")
        _check_element(data)
        out.append(data)
        return
    if not isinstance(data, (list, tuple, range, np.ndarray)):
        raise TypeError(
            f"expected a sequence of length {shape[depth]} at dim {depth} (got {type(data).__name__})"
        )
    if len(data) != shape[depth]:
        raise ValueError(f"expected sequence of length {shape[depth]} at dim {depth} (got {len(data)})")
    for x in data:
        _flatten(x, shape, depth + 1, out)


def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
    """``data`` as a tensor, sharing memory with a tensor, a numpy array or an array of a GPU
    (``__cuda_array_interface__``) where dtypes and devices allow."""
    place = as_device(device)
    d = None if dtype is None else as_dtype(dtype)
    if isinstance(data, Tensor):
        place = data.device if device is None else place
        return data.to(place) if d is None else data.to(place, d)
    if hasattr(data, "__cuda_array_interface__"):
        index = place.index if place.type == "cuda" else cuda.device.current_device()
        t = wrap(cuda.dlpack.from_interface(data, index))
        return t if d is None else t.to(d)
    if isinstance(data, np.ndarray):
        t = from_numpy(data).to(place)
        return t if d is None else t.to(d)
    return tensor(data, dtype=d, device=place)


def asarray(
    obj: Any, *, dtype: Any = None, device: Any = None, copy: bool | None = None, requires_grad: bool = False
) -> Tensor:
    """``obj`` as a tensor; copied only if need be, or as ``copy`` says."""
    t = as_tensor(obj, dtype, device)
    if copy and t._data is getattr(obj, "_data", obj):
        t = t.clone()
    return _finish(t, requires_grad)


def from_numpy(ndarray: np.ndarray) -> Tensor:
    """A tensor on the memory of a numpy array: writes go both ways. TypeError for dtypes that weft lacks."""
    if not isinstance(ndarray, np.ndarray):
        raise TypeError(f"expected np.ndarray (got {type(ndarray).__name__})")
    T.dtype_of_numpy(ndarray.dtype)
    if not ndarray.dtype.isnative:
        raise ValueError(
            "given numpy array has byte order different from the native byte order. Conversion between byte "
            "orders is currently not supported."
        )
    if any(s < 0 for s in ndarray.strides):
        raise ValueError(
            "At least one stride in the given numpy array is negative, and tensors with negative strides "
            "are not currently supported. (You can probably work around this by making a copy of your array "
            " with array.copy().)"
        )
    return concrete_tensor(np.asarray(ndarray))


def concrete_tensor(a: np.ndarray) -> Tensor:
    """A tensor of an array that others may write to: never a constant of a graph."""
    return wrap(a)


def frombuffer(
    buffer: Any, *, dtype: Any, count: int = -1, offset: int = 0, requires_grad: bool = False
) -> Tensor:
    """A one-dimensional tensor on the memory of a buffer."""
    return _finish(wrap(np.frombuffer(buffer, as_dtype(dtype).np, count, offset)), requires_grad)


def from_dlpack(ext_tensor: Any) -> Tensor:
    """A tensor on the memory of any object with ``__dlpack__``."""
    where = getattr(ext_tensor, "__dlpack_device__", None)
    if where is not None and int(where()[0]) == cuda.dlpack.CUDA:
        return wrap(cuda.dlpack.take(ext_tensor))
    a = np.from_dlpack(ext_tensor)
    return wrap(a)


def legacy_constructor(*args: Any, device: Any = None) -> Tensor:
    """What ``Tensor(...)`` means: sizes, or data as floats."""
    if not args:
        return empty(0, device=device)
    if len(args) == 1 and isinstance(args[0], Tensor):
        return args[0].detach()
    if all(isinstance(a, int) and not isinstance(a, bool) for a in args):
        return empty(*args, device=device)
    if len(args) == 1 and isinstance(args[0], D.Size):
        return empty(tuple(args[0]), device=device)
    return tensor(args[0], dtype=get_default_dtype(), device=device)


def is_tensor(obj: Any) -> bool:
    """Whether ``obj`` is a Tensor."""
    return isinstance(obj, Tensor)


def complex_(real: Tensor, imag: Tensor) -> Tensor:
    """A complex tensor of its parts (both float32 or both float64)."""
    if real.dtype is not imag.dtype:
        raise RuntimeError(
            f"Expected object of scalar type {real.dtype} but got scalar type {imag.dtype} for second "
            "argument"
        )
    from weft.ops.common import broadcast_tensors

    real, imag = broadcast_tensors(real, imag)
    return apply(P.complex_p, real, imag)


def polar(abs: Tensor, angle: Tensor) -> Tensor:
    return complex_(abs * angle.cos(), abs * angle.sin())
