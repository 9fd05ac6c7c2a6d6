"""Operations that Python runs from inside a native entry: LAPACK, user functions, and what has no kernel."""

from __future__ import annotations

import ctypes
import itertools
import threading
from functools import cache
from typing import Any

import numpy as np
from weft.ir.errors import DIVISION_BY_ZERO
from weft.ir.graph import Graph, Op
from weft.ir.prims.base import Kind, NumpyInterpreter, Primitive, interpreting
from weft.ir.record import record
from weft.ir.types import TensorType
from weft.runtime import stats

FAILED = -1  # the status that means: a Python exception is waiting


@record(frozen=True, eq=False)
class HostOp:
    """What is needed to run one operation again and again; picklable."""

    prim: Primitive
    attrs: dict[str, Any]
    regions: tuple[Graph, ...]
    ins: tuple[TensorType, ...]
    outs: tuple[TensorType, ...]

    @staticmethod
    def of(op: Op) -> HostOp:
        ins, outs = (tuple(v.type for v in vs) for vs in (op.operands, op.results))
        return HostOp(op.prim, dict(op.attrs), op.regions, ins, outs)

    def run(self, bufs: int) -> None:
        """Evaluate on the buffers whose addresses stand at ``bufs``."""
        n = len(self.ins)
        pointers = (ctypes.c_void_p * (n + len(self.outs))).from_address(bufs)
        arrays = [array_at(pointers[i], t) for i, t in enumerate(self.ins)]
        if self.prim.kind is Kind.HOST:  # a user's function may keep what it is given; our buffers are reused
            arrays = [a.copy() for a in arrays]
        with np.errstate(all="ignore"), interpreting(_NUMPY):
            outs = self.prim.evaluate(arrays, self.attrs, self.regions)
        for i, (out, t) in enumerate(zip(outs, self.outs, strict=True)):
            array_at(pointers[n + i], t)[...] = _checked(out, t, self.prim.name)


_NUMPY = NumpyInterpreter()
_contexts: dict[int, tuple[HostOp, ...]] = {}
_errors: dict[int, BaseException] = {}
_serial = itertools.count(1)
_lock = threading.Lock()


def _checked(out: np.ndarray, expected: TensorType, name: str) -> np.ndarray:
    if out.shape != expected.shape:
        raise RuntimeError(f"{name} returned shape {out.shape}, expected {expected.shape}")
    return out


def array_at(address: int | None, t: TensorType) -> np.ndarray:
    """An array standing on foreign memory."""
    if not t.nbytes:
        return np.empty(t.shape, t.dtype.np)
    memory: Any = (ctypes.c_char * t.nbytes).from_address(address or 0)
    return np.ndarray(t.shape, t.dtype.np, memory)


def register(ops: tuple[HostOp, ...]) -> int:
    """A context number under which a native entry can ask for these operations."""
    with _lock:
        context = next(_serial)
        _contexts[context] = ops
    return context


def _callback(context: int, index: int, bufs: int, status: int) -> None:
    try:
        stats.count("host_calls")
        _contexts[context][index].run(bufs)
    except BaseException as e:  # it must not cross native frames; the caller raises it again
        _errors[status] = e
        ctypes.c_int64.from_address(status).value = FAILED


_TYPE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)


@cache
def _bound() -> Any:
    thunk = _TYPE(_callback)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thunk))  # native code may call it until the process ends
    return thunk


def callback_address() -> int:
    """The address of ``weft_host``."""
    return ctypes.cast(_bound(), ctypes.c_void_p).value or 0


def raise_status(status: int, address: int) -> None:
    """Raise what a non-zero status word stands for."""
    if status == FAILED:
        raise _errors.pop(address)
    if status == DIVISION_BY_ZERO:
        raise RuntimeError("ZeroDivisionError")
    raise IndexError("index out of range in a compiled kernel")
