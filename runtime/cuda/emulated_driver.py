"""The driver API over emulated machines: Python functions with the signatures of libcuda's.

Native code calls them as it would call libcuda's. Streams run what they are given at once, so events are
done when they are recorded. A capture notes what was issued and runs it, node by node, at each launch of the
graph.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from weft.codegen.gpu.target import GpuTarget, gpu_target
from weft.runtime.cuda import api
from weft.runtime.cuda.driver import DeviceProperties, Driver

if TYPE_CHECKING:
    from weft.runtime.emulate.machine import Machine

_POINTER = 8
_MEMORY = 1 << 30  # of a device; pages that nothing touches cost nothing
_VERSION = 13000


class _Failure(Exception):
    """Raised by an API function to return a code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class _Event:
    """When it was recorded, in seconds; None before. While it marks a place in a graph it is ``captured``,
    and the host cannot see it."""

    def __init__(self) -> None:
        self.at: float | None = None
        self.captured = False


Node = Callable[[], object]


class EmulatedDriver(Driver):
    """Devices of one architecture, each a machine of its own. ``machines`` gives access to their findings."""

    kind = "emulate"

    def __init__(self, architecture: str) -> None:
        from weft.runtime.emulate.faults import EmulationError  # the emulator loads with the first device
        from weft.runtime.emulate.machine import Machine

        self._fault = EmulationError
        self.target: GpuTarget = gpu_target(architecture)
        self.devices = 1
        self._make = partial(Machine, self.target, memory_bytes=_MEMORY)
        self.machines: list[Machine] = []
        self._tls = threading.local()
        self._lock = threading.RLock()
        self._handles = itertools.count(0x5700_0000)
        self._objects: dict[int, Any] = {}
        self._pinned: dict[int, Any] = {}
        self._captures: dict[int, list[Node]] = {}
        self._strict: dict[int, int] = {}  # threads, by streams that they capture in a mode but relaxed
        self.failure: BaseException | None = None
        self._thunks = {n: api.prototype(n)(partial(self._enter, getattr(self, "_" + n)))
                        for n in api.PROTOTYPES}  # fmt: skip
        for thunk in self._thunks.values():  # native code may hold their addresses until the process ends
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(thunk))
        super().__init__(self._thunks)

    def device_count(self) -> int:
        return self.devices

    def properties(self, index: int) -> DeviceProperties:
        t = self.target
        return DeviceProperties(f"emulated {t.name}", t.capability, _MEMORY, t)

    def context(self, index: int) -> int:
        if not 0 <= index < self.devices:
            raise IndexError(f"there is no device {index}")
        with self._lock:
            while len(self.machines) <= index:
                self.machines.append(self._make())
        return index + 1

    def explain(self, name: str, code: int) -> str:
        failure, self.failure = self.failure, None
        said = super().explain(name, code)
        return said if failure is None else f"{said}: {failure}"

    # -- from C and back --------------------------------------------------------------------------------
    def _enter(self, function: Callable[..., None], *args: Any) -> int:
        try:
            with self._lock:
                function(*args)
        except _Failure as e:
            return e.code
        except MemoryError:
            return api.OUT_OF_MEMORY
        except BaseException as e:  # nothing may cross native frames
            if not isinstance(e, self._fault):  # whose message tells kernel, line and thread
                traceback.print_exc()
            self.failure = e
            return api.LAUNCH_FAILED
        return api.SUCCESS

    @property
    def _machine(self) -> Machine:
        current = getattr(self._tls, "context", 0)
        if not current:
            raise _Failure(201)
        return self.machines[current - 1]

    def _new(self, thing: Any) -> int:
        handle = next(self._handles)
        self._objects[handle] = thing
        return handle

    def _get(self, handle: int, kind: type) -> Any:
        found = self._objects.get(handle)
        if not isinstance(found, kind):
            raise _Failure(api.INVALID_HANDLE)
        return found

    def _issue(self, stream: int, node: Node) -> None:
        """Run a node at once, or note it where the stream is captured."""
        capture = self._captures.get(stream)
        if capture is None:
            node()
        else:
            capture.append(node)

    # -- the functions ----------------------------------------------------------------------------------
    def _cuDriverGetVersion(self, out: int) -> None:
        ctypes.c_int.from_address(out).value = _VERSION

    def _cuCtxSetCurrent(self, context: int) -> None:
        if context > len(self.machines):
            raise _Failure(201)
        self._tls.context = context

    def _cuCtxSynchronize(self) -> None:
        pass

    def _cuMemGetInfo_v2(self, free: int, total: int) -> None:
        ctypes.c_size_t.from_address(free).value = _MEMORY - sum(self._machine.arena.sizes.values())
        ctypes.c_size_t.from_address(total).value = _MEMORY

    def _not_while_capturing(self) -> None:
        """Refuse what is unsafe while the calling thread captures, but in relaxed mode."""
        if threading.get_ident() in self._strict.values():
            raise _Failure(api.CAPTURE_UNSUPPORTED)

    def _cuMemAlloc_v2(self, out: int, nbytes: int) -> None:
        self._not_while_capturing()
        if not nbytes:
            raise _Failure(api.INVALID_VALUE)
        _write(out, self._machine.malloc(nbytes))

    def _cuMemFree_v2(self, address: int) -> None:
        self._not_while_capturing()
        self._machine.free(address)

    def _cuMemHostAlloc(self, out: int, nbytes: int, flags: int) -> None:
        memory = ctypes.create_string_buffer(nbytes)
        self._pinned[ctypes.addressof(memory)] = memory
        _write(out, ctypes.addressof(memory))

    def _cuMemFreeHost(self, address: int) -> None:
        if self._pinned.pop(address, None) is None:
            raise _Failure(api.INVALID_VALUE)

    def _cuMemcpyHtoDAsync_v2(self, target: int, source: int, nbytes: int, stream: int) -> None:
        machine = self._machine
        self._issue(stream, lambda: machine.htod(target, _host(source, nbytes)))

    def _cuMemcpyDtoHAsync_v2(self, target: int, source: int, nbytes: int, stream: int) -> None:
        machine = self._machine
        self._issue(stream, lambda: machine.dtoh(_host(target, nbytes), source))

    def _cuMemcpyDtoDAsync_v2(self, target: int, source: int, nbytes: int, stream: int) -> None:
        machine = self._machine
        self._issue(stream, lambda: machine.dtod(target, source, nbytes))

    def _cuMemcpyPeerAsync(
        self, target: int, to: int, source: int, origin: int, nbytes: int, stream: int
    ) -> None:
        def copy() -> None:
            between = bytearray(nbytes)
            self.machines[origin - 1].dtoh(memoryview(between), source)
            self.machines[to - 1].htod(target, memoryview(between))

        self._issue(stream, copy)

    def _cuMemsetD8Async(self, target: int, value: int, nbytes: int, stream: int) -> None:
        machine = self._machine
        self._issue(stream, lambda: machine.memset(target, value, nbytes))

    def _cuStreamCreateWithPriority(self, out: int, flags: int, priority: int) -> None:
        _write(out, self._new("stream"))

    def _cuStreamSynchronize(self, stream: int) -> None:
        if stream in self._captures:
            raise _Failure(api.CAPTURE_UNSUPPORTED)

    def _cuStreamQuery(self, stream: int) -> None:
        pass

    def _cuStreamWaitEvent(self, stream: int, event: int, flags: int) -> None:
        self._get(event, _Event)

    def _cuEventCreate(self, out: int, flags: int) -> None:
        _write(out, self._new(_Event()))

    def _cuEventDestroy_v2(self, event: int) -> None:
        del self._objects[event]

    def _cuEventRecord(self, event: int, stream: int) -> None:
        found = self._get(event, _Event)
        found.captured = stream in self._captures
        self._issue(stream, lambda: setattr(found, "at", time.perf_counter()))

    def _seen(self, event: int) -> _Event:
        """An event that the host asks about."""
        found = self._get(event, _Event)
        if found.captured:
            raise _Failure(api.CAPTURED_EVENT)
        return found

    def _cuEventQuery(self, event: int) -> None:
        self._not_while_capturing()
        self._seen(event)

    def _cuEventSynchronize(self, event: int) -> None:
        self._not_while_capturing()
        self._seen(event)

    def _cuEventElapsedTime(self, out: int, start: int, end: int) -> None:
        a, b = self._seen(start).at, self._seen(end).at
        if a is None or b is None:
            raise _Failure(api.INVALID_HANDLE)
        ctypes.c_float.from_address(out).value = 1000 * (b - a)

    def _cuModuleLoadData(self, out: int, image: int) -> None:
        _write(out, self._new((self._machine.load(ctypes.string_at(image).decode()),)))

    def _cuModuleUnload(self, module: int) -> None:
        self._get(module, tuple)
        del self._objects[module]

    def _cuModuleGetFunction(self, out: int, module: int, name: bytes) -> None:
        (loaded,) = self._get(module, tuple)
        try:
            function = loaded.function(name.decode())
        except KeyError:
            raise _Failure(api.NOT_FOUND) from None
        _write(out, self._new([function]))

    def _cuFuncSetAttribute(self, function: int, attribute: int, value: int) -> None:
        self._get(function, list)
        if attribute == api.MAX_DYNAMIC_SHARED and value > self.target.shared_bytes:
            raise _Failure(api.INVALID_VALUE)

    def _cuLaunchKernel(self, function: int, *rest: Any) -> None:
        grid, block, shared, stream, params, extra = rest[:3], rest[3:6], *rest[6:]
        if not extra or params or not all(grid) or not all(block):
            raise _Failure(api.INVALID_VALUE)
        (found,), data, machine = self._get(function, list), _parameters(extra), self._machine
        self._issue(stream, lambda: machine.launch(found, grid, block, shared, data))

    def _cuStreamBeginCapture_v2(self, stream: int, mode: int) -> None:
        if stream == 0 or stream in self._captures:
            raise _Failure(api.CAPTURE_UNSUPPORTED)
        self._captures[stream] = []
        if mode != api.CAPTURE_RELAXED:
            self._strict[stream] = threading.get_ident()

    def _cuStreamEndCapture(self, stream: int, out: int) -> None:
        self._strict.pop(stream, None)
        _write(out, self._new(tuple(self._captures.pop(stream))))

    def _cuGraphInstantiateWithFlags(self, out: int, graph: int, flags: int) -> None:
        _write(out, self._new(self._get(graph, tuple)))

    def _cuGraphLaunch(self, graph: int, stream: int) -> None:
        for node in self._get(graph, tuple):
            self._issue(stream, node)

    def _cuGraphDestroy(self, graph: int) -> None:
        del self._objects[graph]

    _cuGraphExecDestroy = _cuGraphDestroy


def _write(address: int, value: int) -> None:
    ctypes.c_uint64.from_address(address).value = value


def _host(address: int, nbytes: int) -> memoryview:
    """The bytes of host memory at an address."""
    return memoryview((ctypes.c_char * nbytes).from_address(address)).cast("B")


def _parameters(extra: int) -> bytes:
    """The block of parameters that CU_LAUNCH_PARAM_BUFFER_POINTER and _SIZE describe."""
    found: dict[int, int] = {}
    while (key := ctypes.c_uint64.from_address(extra).value) != api.PARAM_END:
        found[key] = ctypes.c_uint64.from_address(extra + _POINTER).value
        extra += 2 * _POINTER
    size = ctypes.c_size_t.from_address(found[api.PARAM_SIZE]).value
    return ctypes.string_at(found[api.PARAM_BUFFER], size)
