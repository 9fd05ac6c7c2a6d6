"""Python's side of the native call path: descriptors, arenas, and the check that the ABI is what we think
it is."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from importlib import import_module
from typing import Any

import numpy as np
from weft.codegen.target import Target
from weft.ir.types import TensorType, bool_, f64, i64
from weft.runtime import buffers, call_ir, host, hostcall, jit, stats, workers
from weft.runtime import cache as disk

_CONTIGUOUS, _ALIGNED, _WRITEABLE = 0x1, 0x100, 0x400
_PYARRAY_EMPTY = 184  # index in numpy's C API table
_METH_FASTCALL = 0x80
_SLOTS = 16  # arenas that calls in flight may hold
_SCALARS = {f64: 1, i64: 2, bool_: 3}
_kept: list[Any] = []


class _MethodDef(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p), ("function", ctypes.c_void_p), ("flags", ctypes.c_int), ("doc",
        ctypes.c_char_p)
    )  # fmt: skip


def supported() -> bool:
    """Whether the native call path may be used: CPython with its lock, and arrays laid out as we expect."""
    if sys.implementation.name != "cpython" or _without_lock():
        return False
    a = np.zeros((3, 5), np.float32)
    read = [ctypes.c_int64.from_address(id(a) + k).value for k in (8, 16, 32, 56)]
    small = [ctypes.c_int32.from_address(id(a) + k).value for k in (24, 64)]
    dims = (ctypes.c_int64 * 2).from_address(read[2])
    expected = [id(np.ndarray), a.ctypes.data, id(a.dtype)]
    flags = _CONTIGUOUS | _ALIGNED | _WRITEABLE
    if [read[0], read[1], read[3]] != expected or small[0] != 2:
        return False
    return small[1] & flags == flags and list(dims) == [3, 5]


def _without_lock() -> bool:
    """Whether this Python is built without its lock."""
    if not hasattr(sys, "_is_gil_enabled"):  # before 3.13
        return False
    import sysconfig

    return bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


@cache
def begin() -> workers.Task[bytes] | None:
    """Begin to compile the native functions that Python calls, in another thread: every first call waits for
    them at its end, and has other things to do until then. None where they cannot be used."""
    if not supported():
        return None
    target = host.remembered()
    stored = _stored(target) if target else None
    return workers.begin(_compiled) if stored is None else workers.finished(stored)


def _compiled() -> bytes:
    target, store = host.host_target(), disk.disk_cache()
    image = _stored(target)
    if image is None:
        # level 1 would gain 40 ns a call and take 13 ms longer
        image = jit.compile_object(call_ir.module(target.triple), target, level=0)
        if store:
            store.store(_key(target), image)
    return image


def _stored(target: Target) -> bytes | None:
    store = disk.disk_cache()
    return store.load(_key(target)) if store else None


def _key(target: Target) -> str:
    return disk.key_of("call path", repr(target))


@cache
def symbols() -> dict[str, int] | None:
    """The addresses of these functions; None where they cannot be used."""
    task = begin()
    return None if task is None else jit.link(task.result(), call_ir.EXPORTS, {}, call_ir.PYTHON)


def ready() -> bool:
    """Whether :func:`symbols` would not wait."""
    task = begin()
    return task is None or task.done


@cache
def _native() -> tuple[int, Any, Any] | None:
    """(address of the function, globals, slots), made at first use; None where it cannot be used."""
    found = symbols()
    if found is None:
        return None
    address = found["weft_call"]
    slots = (ctypes.c_int64 * (3 * _SLOTS))()
    grow, complain = partial(_grow, slots), hostcall.raise_status
    _kept.extend((grow, complain, slots))
    values = [
        _numpy_api(_PYARRAY_EMPTY), id(np.ndarray), id(float), id(int), id(True), id(False),
        ctypes.addressof(slots), _SLOTS, id(complain), id(grow), 0,
    ]  # fmt: skip
    table = (ctypes.c_int64 * len(values))(*values)
    buffers.holders.append(release_arenas)
    stats.add_source("kernels_launched", lambda: table[10])
    return address, table, slots


def _numpy_api(index: int) -> int:
    core = import_module("numpy._core._multiarray_umath")
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    table = get(core._ARRAY_API, None)
    return ctypes.c_int64.from_address(table + 8 * index).value


_blocks: dict[int, buffers.Block] = {}


def _grow(slots: Any, need: int) -> None:
    """Give the largest idle arena slot at least ``need`` bytes. With all slots busy nothing changes."""
    idle = [k for k in range(_SLOTS) if not slots[3 * k]]
    if not idle:
        return
    k = max(idle, key=lambda k: slots[3 * k + 1])
    old = _blocks.pop(k, None)
    if old is not None:
        buffers.POOL.give_back(old)
    block = _blocks[k] = buffers.POOL.take(need)
    slots[3 * k + 1], slots[3 * k + 2] = block.size, block.address


def release_arenas() -> None:
    """Give idle arenas back to the allocator."""
    native = _native() if _native.cache_info().currsize else None
    for k in list(_blocks):
        if native and not native[2][3 * k]:
            native[2][3 * k + 1] = 0
            block = _blocks.pop(k)
            buffers.POOL.give_back(block)


def native_runner(
    ins: Sequence[TensorType],
    outs: Sequence[TensorType],
    donate: Mapping[int, int],
    entry: int,
    arena_bytes: int,
    context: int,
    release_gil: bool,
    n_kernels: int,
    slow: Callable[..., Any],
) -> Callable[..., list[np.ndarray]] | None:
    """A built-in function that calls ``entry``; None where the native call path cannot be used."""
    native = _native()
    if native is None:
        return None
    address, table, _ = native
    own: list[Any] = [slow]  # what the descriptor points to; lives as long as the function
    in_specs = _words(own, [x for i, t in enumerate(ins) for x in _in_spec(own, t, i in donate.values())])
    out_specs = _words(own, [x for i, t in enumerate(outs) for x in _out_spec(own, t, donate.get(i))])
    last = _words(own, [0] * len(ins))
    descriptor = _words(own, [
        len(ins), len(outs), entry, arena_bytes, context, int(release_gil), n_kernels, in_specs, out_specs,
        id(slow), ctypes.addressof(table), len(donate), last,
    ])  # fmt: skip
    return _builtin(address, _capsule(descriptor), tuple(own))


def _in_spec(own: list[Any], t: TensorType, donated: bool) -> list[int]:
    flags = _CONTIGUOUS | _ALIGNED | (_WRITEABLE if donated else 0)
    kind = 0 if t.shape or donated else _SCALARS.get(t.dtype, 0)
    return [kind, t.ndim, _words(own, t.shape), id(t.dtype.np), flags, t.nbytes]


def _out_spec(own: list[Any], t: TensorType, donated: int | None) -> list[int]:
    kind, alloc = -1 if donated is None else donated, 0
    if donated is None and t.nbytes >= buffers.SMALL:
        own.append(buffers.maker(t.shape, t.dtype.np, t.nbytes))
        kind, alloc = -2, id(own[-1])
    return [kind, t.ndim, _words(own, t.shape), id(t.dtype.np), alloc]


def _words(own: list[Any], values: Sequence[int]) -> int:
    """The address of these values as 64-bit words, in memory that ``own`` keeps."""
    own.append((ctypes.c_int64 * max(len(values), 1))(*values))
    return ctypes.addressof(own[-1])


def _capsule(address: int) -> Any:
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return new(address, None, None)


@cache
def _method(address: int) -> _MethodDef:
    return _MethodDef(b"runner", address, _METH_FASTCALL, None)


def _builtin(address: int, capsule: Any, own: tuple[Any, ...]) -> Any:
    """A built-in function over native code; ``own`` stands in for its module, and so lives as long."""
    new = ctypes.pythonapi.PyCFunction_NewEx
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.py_object, ctypes.py_object]
    return new(ctypes.addressof(_method(address)), capsule, own)
