"""DeviceArray: an array in the memory of a GPU, the payload of a tensor that lives there.

It looks like a numpy array as far as the rest of weft asks: shape, strides in bytes, dtype, views by
strides. Nothing here computes: copies between strided views are one generated kernel (``strided.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from weft.ir.graph import Operators
from weft.ir.types import Device, TensorType, dtype_of_numpy
from weft.runtime.cuda.device import DeviceState, current_device, device_state
from weft.runtime.cuda.memory import Lease, round_size
from weft.runtime.cuda.stream import stream_of

WIDE = 16  # kernels may access parameters by as many bytes at once
Ints = tuple[int, ...]


class Flags:
    """What of numpy's flags applies."""

    __slots__ = ("aligned", "c_contiguous", "writeable")

    def __init__(self, c_contiguous: bool, aligned: bool) -> None:
        self.c_contiguous, self.aligned, self.writeable = c_contiguous, aligned, True


@lru_cache(4096)
def contiguous_strides(shape: Ints, itemsize: int) -> Ints:
    """Row-major strides in bytes."""
    out = []
    n = itemsize
    for d in reversed(shape):
        out.append(n)
        n *= max(d, 1)
    return tuple(reversed(out))


class Dense:
    """What all arrays of one device, shape and dtype have in common that lie densely at a multiple of 16
    bytes. There is one object for each such kind (:func:`dense_of`), so that one comparison tells whether an
    array is what a kernel was compiled for. ``block``: bytes of the block that it takes."""

    __slots__ = ("block", "dtype", "shape", "state", "strides")

    def __init__(self, state: DeviceState, shape: Ints, dtype: np.dtype[Any]) -> None:
        self.state, self.shape, self.dtype = state, shape, dtype
        self.strides = contiguous_strides(shape, dtype.itemsize)
        nbytes = math.prod(shape) * dtype.itemsize
        self.block = round_size(nbytes) if nbytes else 0

    def new(self, stream: int) -> DeviceArray:
        """An uninitialised array for work on a stream (a handle). Written out: every call makes some."""
        out = _make(DeviceArray)
        allocator = self.state.allocator
        if self.block:
            lease = _make(Lease)
            lease.allocator, lease.block = allocator, allocator.take_block(self.block, stream)
            out.address, out.owner = lease.block.address, lease
        else:
            out.address, out.owner = 0, None
        out.state, out.shape, out.dtype, out.strides = self.state, self.shape, self.dtype, self.strides
        out._contiguous, out.base, out.dense = True, None, self
        return out


_make: Any = object.__new__


def dense_of(state: DeviceState, shape: Ints, dtype: np.dtype[Any]) -> Dense:
    """The kind of the dense arrays of this shape and dtype."""
    found = state.dense.get((shape, dtype))
    if found is None:
        found = state.dense.setdefault((shape, dtype), Dense(state, shape, dtype))
    return found


class DeviceArray(Operators):
    """``shape`` elements of a numpy ``dtype`` at ``address`` of a device, ``strides`` bytes apart.

    ``owner`` keeps the memory; a view has that of its ``base``. Made by :func:`empty`, :func:`from_host`
    and by views of other arrays. ``dense`` is its kind; None where it does not lie densely.
    """

    __slots__ = ("__weakref__", "_contiguous", "address", "base", "dense", "dtype", "owner", "shape", "state",
                 "strides")  # fmt: skip

    on_device = True

    def __init__(
        self, state: DeviceState, address: int, shape: Ints, dtype: np.dtype[Any],
        strides: Ints | None = None, owner: Any = None, base: DeviceArray | None = None,
    ) -> None:  # fmt: skip
        self.state, self.address, self.shape, self.dtype = state, address, shape, dtype
        self.owner, self.base = owner, base
        if strides is None:
            self._contiguous, self.strides = True, contiguous_strides(shape, dtype.itemsize)
        else:
            self._contiguous = _is_contiguous(shape, strides, dtype.itemsize)
            self.strides = strides
        lies_well = self._contiguous and not address % WIDE
        self.dense = dense_of(state, shape, dtype) if lies_well else None

    # -- what it is -------------------------------------------------------------------------------------
    @property
    def device(self) -> Device:
        return self.state.device

    @property
    def type(self) -> TensorType:
        """The type of the array in a graph."""
        return TensorType(self.shape, dtype_of_numpy(self.dtype), self.state.device)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def contiguous(self) -> bool:
        """Whether the elements lie one after the other."""
        return self._contiguous

    @property
    def flags(self) -> Flags:
        return Flags(self._contiguous, self.address % self.dtype.itemsize == 0)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a 0-d array")
        return self.shape[0]

    def __repr__(self) -> str:
        return f"DeviceArray({self.type}, address={self.address:#x})"

    # -- views ------------------------------------------------------------------------------------------
    def as_strided(self, shape: Ints, strides: Ints, offset: int = 0) -> DeviceArray:
        """The view of these strides (in bytes) that begins ``offset`` bytes further on."""
        base = self if self.base is None else self.base
        at = self.address + offset
        return DeviceArray(self.state, at, tuple(shape), self.dtype, tuple(strides), self.owner, base)

    def view(self, dtype: Any = None) -> DeviceArray:
        """The same elements; with ``dtype``, of equal size, their bits as that."""
        dtype = self.dtype if dtype is None else np.dtype(dtype)
        if dtype.itemsize != self.dtype.itemsize:
            raise ValueError(f"a view of {self.dtype} as {dtype}: the sizes of the elements differ")
        base = self if self.base is None else self.base
        return DeviceArray(self.state, self.address, self.shape, dtype, self.strides, self.owner, base)

    def transpose(self, perm: Sequence[int]) -> DeviceArray:
        """The axes in another order."""
        return self.as_strided(tuple(self.shape[i] for i in perm), tuple(self.strides[i] for i in perm))

    def broadcast(self, shape: Ints, axes: Ints) -> DeviceArray:
        """Axis ``i`` becomes axis ``axes[i]`` of ``shape``; the other ones repeat it."""
        strides = [0] * len(shape)
        for i, axis in enumerate(axes):
            strides[axis] = self.strides[i] if self.shape[i] == shape[axis] else 0
        return self.as_strided(shape, tuple(strides))

    def slice(self, start: Ints, stop: Ints, step: Ints) -> DeviceArray:
        """Every ``step[i]``-th index of axis ``i`` from ``start[i]`` to before ``stop[i]``."""
        shape = tuple(max(0, -(-(b - a) // k)) for a, b, k in zip(start, stop, step, strict=True))
        offset = sum(s * a for s, a in zip(self.strides, start, strict=True))
        strides = tuple(s * k for s, k in zip(self.strides, step, strict=True))
        return self.as_strided(shape, strides, offset if math.prod(shape) else 0)

    def diagonal(self, offset: int, axis1: int, axis2: int) -> DeviceArray:
        """The elements with ``index[axis2] - index[axis1] == offset``, along a new last axis."""
        rows, columns = self.shape[axis1] - max(-offset, 0), self.shape[axis2] - max(offset, 0)
        n = max(0, min(rows, columns))
        a, b = self.strides[axis1], self.strides[axis2]
        rest = [i for i in range(self.ndim) if i not in (axis1, axis2)]
        at = (max(-offset, 0) * a + max(offset, 0) * b) if n else 0
        shape = (*[self.shape[i] for i in rest], n)
        return self.as_strided(shape, (*[self.strides[i] for i in rest], a + b), at)

    def reshape_view(self, shape: Ints) -> DeviceArray | None:
        """The same elements in another shape without a copy; None where the strides do not allow it."""
        if self._contiguous:
            return self.as_strided(shape, contiguous_strides(shape, self.dtype.itemsize))
        strides = reshaped_strides(self.shape, self.strides, shape)
        return None if strides is None else self.as_strided(shape, strides)

    def reshape(self, shape: Any) -> DeviceArray:
        """The same elements in another shape, as a view where that is possible."""
        shape = tuple(shape) if isinstance(shape, Sequence) else (shape,)
        found = self.reshape_view(shape)
        if found is None:
            found = self.copy().as_strided(shape, contiguous_strides(shape, self.itemsize))
        return found

    def __getitem__(self, key: Any) -> DeviceArray:
        """Basic indexing as in numpy: integers, slices, None and ``...``; always a view."""
        key = key if isinstance(key, tuple) else (key,)
        shape, strides, offset, axis = [], [], 0, 0
        missing = self.ndim - sum(k is not None and k is not Ellipsis for k in key)
        if missing < 0:
            raise IndexError(f"too many indices for an array of {self.ndim} dimensions")
        if not any(k is Ellipsis for k in key):
            key = (*key, Ellipsis)
        for k in key:
            if k is None:
                shape.append(1)
                strides.append(0)
            elif k is Ellipsis:
                shape += self.shape[axis : axis + missing]
                strides += self.strides[axis : axis + missing]
                axis += missing
            elif isinstance(k, slice):
                start, stop, step = k.indices(self.shape[axis])
                shape.append(len(range(start, stop, step)))
                strides.append(self.strides[axis] * step)
                offset += self.strides[axis] * start if shape[-1] else 0
                axis += 1
            else:
                offset += self.strides[axis] * _position(k, self.shape[axis], axis)
                axis += 1
        return self.as_strided(tuple(shape), tuple(strides), offset)

    # -- copies -----------------------------------------------------------------------------------------
    def copy(self) -> DeviceArray:
        """A contiguous copy, on the current stream."""
        out = empty(self.shape, self.dtype, self.state.index)
        out.copy_from(self)
        return out

    def packed(self) -> DeviceArray:
        """The array itself where it is contiguous and lies as kernels want it, else a copy that is."""
        return self if self.dense is not None else self.copy()

    def copy_from(self, source: DeviceArray) -> None:
        """Write the elements of an array of the same shape and dtype, of any device, into this one."""
        if source.shape != self.shape or source.dtype != self.dtype:
            raise ValueError(f"cannot copy {source.type} into {self.type}")
        if not self.nbytes:
            return
        if source.state is not self.state:
            self._copy_from_peer(source)
        elif self._contiguous and source._contiguous:
            stream = stream_of(self.state).cuda_stream
            self.state.activate()
            self.state.driver.dtod(self.address, source.address, self.nbytes, stream)
        else:
            from weft.runtime.cuda.strided import strided_copy

            strided_copy(self, source)

    def _copy_from_peer(self, source: DeviceArray) -> None:
        """Between devices: dense arrays on either side, and the streams of both wait for one another."""
        dense = source.packed()
        target = self if self._contiguous else empty(self.shape, self.dtype, self.state.index)
        here, there = stream_of(self.state), stream_of(source.state)
        here.wait_stream(there)
        self.state.activate()
        self.state.driver.peer(
            target.address, self.state.context, dense.address, source.state.context, self.nbytes,
            here.cuda_stream,
        )  # fmt: skip
        there.wait_stream(here)
        if target is not self:
            self.copy_from(target)

    def fill_zero(self) -> None:
        """Set every byte to zero; only for contiguous arrays."""
        if self.nbytes:
            self.state.activate()
            stream = stream_of(self.state).cuda_stream
            self.state.driver.memset(self.address, 0, self.nbytes, stream)

    def copy_to_host(self, out: np.ndarray | None = None, non_blocking: bool = False) -> np.ndarray:
        """The elements as a numpy array (``out``, contiguous, where it is given). Waits for the stream,
        unless ``non_blocking`` and ``out`` is pinned. IndexError for an index that a kernel found out of
        range."""
        if out is None:
            out = np.empty(self.shape, self.dtype)
        stream = stream_of(self.state).cuda_stream
        if out.nbytes:
            dense = self if self._contiguous else self.copy()
            self.state.activate()
            self.state.driver.dtoh(out.__array_interface__["data"][0], dense.address, out.nbytes, stream)
        if non_blocking and out.nbytes and self.state.pinned.contains(out):
            self.state.pinned.hold(out, stream)
        else:
            self.state.synchronize(stream)
        return out

    def copy_from_host(self, array: np.ndarray, non_blocking: bool = False) -> None:
        """Write a numpy array of the same shape and dtype into this one. ``non_blocking`` from pinned memory
        does not wait, and the array must not be written to before the stream has come so far."""
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ValueError(f"cannot copy {array.dtype}{array.shape} into {self.type}")
        if not self.nbytes:
            return
        if not self._contiguous:
            self.copy_from(from_host(array, self.state.index, non_blocking))
            return
        array = np.ascontiguousarray(array)
        stream = stream_of(self.state).cuda_stream
        self.state.activate()
        # from memory that is not pinned the driver has copied all when it returns
        self.state.driver.htod(self.address, array.__array_interface__["data"][0], self.nbytes, stream)
        if self.state.pinned.contains(array):
            if non_blocking:
                self.state.pinned.hold(array, stream)
            else:
                self.state.synchronize(stream)

    def record_stream(self, stream: Any) -> None:
        """Work on ``stream`` uses this memory, too: it is not used again before that work is done."""
        block = getattr(self.owner, "block", None)
        if block is not None:
            self.state.allocator.record_stream(block, stream.cuda_stream)

    def item(self) -> Any:
        """The value of an array of one element; waits for it."""
        return self.copy_to_host().item()

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise TypeError(f"can't convert a {self.device} array to numpy; copy it to the host first")

    # -- exchange ---------------------------------------------------------------------------------------
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of the interface of numba, CuPy and PyTorch."""
        if self.dtype.kind == "V":
            raise TypeError(f"__cuda_array_interface__ has no name for {self.dtype}")
        stream = stream_of(self.state).cuda_stream
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None if self._contiguous else self.strides,
            "stream": stream or 1,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        from weft.runtime.cuda.dlpack import CUDA

        return CUDA, self.state.index

    def __dlpack__(self, *, stream: int | None = None, **kwargs: Any) -> Any:
        """A DLPack capsule; a consumer's ``stream`` waits for the work that is on the current one."""
        from weft.runtime.cuda.dlpack import export

        return export(self, stream)


def _is_contiguous(shape: Ints, strides: Ints, itemsize: int) -> bool:
    if 0 in shape:
        return True
    expected = itemsize
    for d, s in zip(reversed(shape), reversed(strides), strict=True):
        if d != 1 and s != expected:
            return False
        expected *= d
    return True


def _position(index: Any, n: int, axis: int) -> int:
    i = index.__index__()
    if not -n <= i < n:
        raise IndexError(f"index {i} is out of bounds for axis {axis} with size {n}")
    return i + n if i < 0 else i


def reshaped_strides(shape: Ints, strides: Ints, new: Ints) -> Ints | None:
    """The strides of a reshaped view, None where there is none: runs of axes that lie as one are merged, and
    every merged run must be split into whole axes of the new shape."""
    if 0 in shape:
        return contiguous_strides(new, 1)
    old = [(d, s) for d, s in zip(shape, strides, strict=True) if d != 1]
    out: list[int] = [0] * len(new)
    k = len(new) - 1
    while old:
        n, step = old.pop()
        while old and old[-1][1] == n * step and _needs_more(n, new, k):
            n *= old.pop()[0]
        while n > 1:
            while k >= 0 and new[k] == 1:
                k -= 1
            if k < 0 or n % new[k]:
                return None
            out[k], step, n, k = step, step * new[k], n // new[k], k - 1
    return tuple(out)


def _needs_more(n: int, new: Ints, k: int) -> bool:
    """Whether a run of ``n`` elements does not end where an axis of the new shape ends."""
    while k >= 0 and n % new[k] == 0 and n > 1:
        n //= new[k]
        k -= 1
    return n > 1


def empty(shape: Ints, dtype: np.dtype[Any], index: int | None = None) -> DeviceArray:
    """An uninitialised array on a device (the current one), for work on the current stream."""
    state = device_state(current_device() if index is None else index)
    return new(state, tuple(shape), dtype, stream_of(state).cuda_stream)


def new(state: DeviceState, shape: Ints, dtype: np.dtype[Any], stream: int) -> DeviceArray:
    """An uninitialised array for work on a stream (a handle)."""
    return dense_of(state, shape, dtype).new(stream)


def from_host(array: np.ndarray, index: int | None = None, non_blocking: bool = False) -> DeviceArray:
    """A copy of a numpy array on a device (the current one)."""
    out = empty(array.shape, array.dtype, index)
    out.copy_from_host(array, non_blocking)
    return out


def pinned_empty(shape: Ints, dtype: np.dtype[Any], index: int | None = None) -> np.ndarray:
    """An uninitialised numpy array in pinned memory, from which copies to a device do not wait."""
    return device_state(current_device() if index is None else index).pinned.empty(tuple(shape), dtype)
