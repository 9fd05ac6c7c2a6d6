"""The state of each device: its context, allocator, streams, and the words in which kernels report errors."""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
from collections import defaultdict
from functools import cache, cached_property
from typing import Any

from weft.codegen.gpu.target import GpuTarget
from weft.ir.errors import DIVISION_BY_ZERO
from weft.ir.types import Device
from weft.runtime import stats
from weft.runtime.cuda.driver import CudaError, CudaUnavailable, DeviceProperties, Driver, driver, unavailable
from weft.runtime.cuda.memory import Allocator, PinnedPool

_WORDS = 4096  # executables of one device that can report an index out of range


class CurrentStream(threading.local):
    """The ``handle`` of the stream that a thread's work on a device goes to; at first the default one."""

    handle = 0


class DeviceState:
    """One device of a driver. RuntimeError for an index that it has not."""

    def __init__(self, of: Driver, index: int) -> None:
        if not 0 <= index < of.device_count():
            n = of.device_count()
            raise CudaError(f"invalid device ordinal: cuda:{index}, where the number of devices is {n}")
        self.driver, self.index = of, index
        self.device = Device("cuda", index)
        self.context = of.context(index)
        self.allocator = Allocator(of, self.context, f"GPU {index}")
        self.pinned = PinnedPool(of, self.context)
        self.status = StatusWords(self)
        self.capturing: set[int] = set()  # streams whose work is recorded, not run
        self.idle_streams: dict[int, list[int]] = defaultdict(list)  # that nobody holds, by priority
        self.functions: dict[Any, int] = {}  # kernels of the runtime's own
        self.dense: dict[Any, Any] = {}  # the kinds of dense arrays, by shape and dtype
        self.current = CurrentStream()
        self._pid = os.getpid()

    @cached_property
    def properties(self) -> DeviceProperties:
        return self.driver.properties(self.index)

    @property
    def target(self) -> GpuTarget:
        return self.properties.target

    @property
    def usable(self) -> bool:
        """Whether work can be given to the device: by the process that opened it, not by the child of a fork,
        and as long as the environment asks for the same driver."""
        if os.getpid() != self._pid:
            return False
        try:
            return driver() is self.driver
        except CudaUnavailable:
            return False

    def take_stream(self, priority: int) -> int:
        """A stream for one holder, who gives it back to ``idle_streams``. Streams are never destroyed: memory
        is kept by stream, and the driver could give the handle to another one whose work runs beside."""
        try:
            return self.idle_streams[priority].pop()
        except IndexError:
            self.activate()
            return self.driver.stream_create(priority)

    def activate(self) -> None:
        """Make this device's context that of the calling thread. RuntimeError in the child of a fork."""
        if os.getpid() != self._pid:
            raise RuntimeError("CUDA cannot be used in a forked subprocess; start it by spawn")
        self.driver.activate(self.context)

    def synchronize(self, stream: int) -> None:
        """Wait for a stream; IndexError for an index that a kernel found out of range."""
        if stream in self.capturing:
            raise CudaError("the host cannot wait for a stream whose work is being captured")
        self.activate()
        self.status.fetch(stream)
        stats.count("device_synchronisations")
        self.driver.stream_synchronize(stream)
        self.status.check(stream)

    def synchronize_all(self) -> None:
        """Wait for all streams of the device."""
        self.activate()
        stats.count("device_synchronisations")
        self.driver.call("cuCtxSynchronize")
        for stream in self.status.streams():
            self.synchronize(stream)


class StatusWords:
    """A page of device memory with a word for each executable whose kernels check indices.

    A kernel sets its word to 1. Whoever waits for a stream reads the words of what ran on it since.
    """

    def __init__(self, state: DeviceState) -> None:
        self._state = state
        self._names: dict[int, str] = {}
        self._serial = itertools.count()
        self._lock = threading.Lock()
        self._pending: dict[int, set[int]] = {}  # by stream, the words of executables that ran
        self._fetched: dict[int, tuple[list[int], ctypes.Array[ctypes.c_int64]]] = {}

    @cached_property
    def base(self) -> int:
        state = self._state
        state.activate()
        address = state.driver.malloc(8 * _WORDS)
        state.driver.memset(address, 0, 8 * _WORDS, 0)
        state.driver.stream_synchronize(0)
        return address

    def word(self, name: str) -> int:
        """The number of a word for what is called ``name``; one that is taken where there are too many."""
        word = next(self._serial) % _WORDS
        self._names[word] = name
        return word

    def address(self, word: int) -> int:
        return self.base + 8 * word

    def ran(self, stream: int, word: int) -> None:
        """An executable with this word was launched on ``stream``."""
        with self._lock:
            self._pending.setdefault(stream, set()).add(word)

    def streams(self) -> list[int]:
        """The streams on which something ran that was not yet looked at."""
        return [s for s, words in list(self._pending.items()) if words]

    def fetch(self, stream: int) -> None:
        """Start to copy the words of what ran on a stream."""
        with self._lock:
            words = sorted(self._pending.pop(stream, ()))
        if words:
            n = words[-1] - words[0] + 1
            values = (ctypes.c_int64 * n)()
            self._state.driver.dtoh(ctypes.addressof(values), self.address(words[0]), 8 * n, stream)
            self._fetched[stream] = words, values

    def check(self, stream: int) -> None:
        """Look at the words that came, and raise what stands in one: IndexError, or RuntimeError for a zero
        divisor.
        """
        fetched = self._fetched.pop(stream, None)
        if fetched is None:
            return
        words, values = fetched
        bad = [w for w in words if values[w - words[0]]]
        for w in bad:
            self._state.driver.memset(self.address(w), 0, 8, stream)
        if bad and values[bad[0] - words[0]] == DIVISION_BY_ZERO:
            raise RuntimeError("ZeroDivisionError")
        if bad:
            raise IndexError(f"index out of range in {self._names[bad[0]]}")


_states: dict[tuple[Driver, int], DeviceState] = {}
_lock = threading.RLock()


def device_state(index: int) -> DeviceState:
    """The state of device ``index`` of this process's driver."""
    key = driver(), index
    found = _states.get(key)
    if found is None:
        with _lock:
            found = _states.get(key) or DeviceState(*key)
            _states[key] = found
    return found


def is_pinned(array: Any) -> bool:
    """Whether a numpy array lies in pinned memory of this process."""
    return any(state.pinned.contains(array) for state in list(_states.values()))


_tls = threading.local()


def current_device() -> int:
    """The index of the calling thread's device."""
    return getattr(_tls, "index", 0)


def set_device(index: int) -> None:
    """Make ``index`` the calling thread's device. RuntimeError for one that is not there."""
    device_state(index)
    _tls.index = index


@cache
def _checked(device: Device) -> int:
    if device.type != "cuda":
        raise unavailable(f"{device} is no CUDA device")
    return -1 if device.index is None else device.index


def index_of(device: Device) -> int:
    """The index of a device, the current one where it has none."""
    found = _checked(device)
    return current_device() if found < 0 else found
