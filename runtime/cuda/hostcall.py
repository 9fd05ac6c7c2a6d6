"""Operations that Python runs for a GPU: their operands come to the host, their results go back."""

from __future__ import annotations

import ctypes
import itertools
import threading
from functools import cache
from typing import Any

import numpy as np
from weft.codegen.gpu.entry import FRAME
from weft.runtime import stats
from weft.runtime.cuda.device import DeviceState
from weft.runtime.cuda.driver import CudaError
from weft.runtime.hostcall import FAILED, HostOp

_STREAM, _ERROR, _HOSTS = (FRAME.index(n) for n in ("stream", "error", "hosts"))
_contexts: dict[int, tuple[DeviceState, tuple[HostOp, ...]]] = {}
_errors: dict[int, BaseException] = {}
_serial = itertools.count(1)
_lock = threading.Lock()


def register(state: DeviceState, ops: tuple[HostOp, ...]) -> int:
    """A number under which native entries ask for these operations."""
    with _lock:
        number = next(_serial)
        _contexts[number] = state, ops
    return number


def _callback(frame: int, index: int, bufs: int) -> None:
    words = (ctypes.c_int64 * len(FRAME)).from_address(frame)
    try:
        stats.count("host_calls")
        state, ops = _contexts[words[_HOSTS]]
        if words[_STREAM] in state.capturing:
            raise CudaError("an operation that runs on the host cannot be captured")
        _run(state, ops[index], words[_STREAM], bufs)
    except BaseException as e:  # it must not cross native frames; the caller raises it again
        _errors[frame] = e
        words[_ERROR] = FAILED


def _run(state: DeviceState, op: HostOp, stream: int, bufs: int) -> None:
    addresses = (ctypes.c_uint64 * (len(op.ins) + len(op.outs))).from_address(bufs)
    arrays = [np.empty(t.shape, t.dtype.np) for t in (*op.ins, *op.outs)]
    host = (ctypes.c_void_p * len(arrays))(*[a.ctypes.data for a in arrays])
    n = len(op.ins)
    for k, a in enumerate(arrays[:n]):
        if a.nbytes:
            state.driver.dtoh(host[k] or 0, addresses[k], a.nbytes, stream)
    stats.count("device_synchronisations")
    state.driver.stream_synchronize(stream)
    op.run(ctypes.addressof(host))
    for k, a in enumerate(arrays[n:], n):
        if a.nbytes:
            state.driver.htod(addresses[k], host[k] or 0, a.nbytes, stream)


_TYPE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)


@cache
def _bound() -> Any:
    thunk = _TYPE(_callback)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thunk))  # native code may call it until the process ends
    return thunk


def callback_address() -> int:
    """The address of ``weft_device_host``."""
    return ctypes.cast(_bound(), ctypes.c_void_p).value or 0


def error_of(frame: int) -> BaseException:
    """The exception that a call with this frame met in Python."""
    return _errors.pop(frame)
