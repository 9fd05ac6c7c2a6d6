"""The driver: what the runtime asks of CUDA, over a table of driver API functions.

:func:`driver` gives the one of this process: over libcuda with pycuda, or, with ``WEFT_CUDA=emulate``, over
emulated machines that run PTX in numpy.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from ctypes import byref, c_size_t, c_uint64
from functools import cache
from typing import Any

from weft.codegen.gpu.target import GpuTarget
from weft.ir.record import record
from weft.runtime.cuda import api

_HELP = "install it with `pip install weft[cuda]` and an NVIDIA driver, or set WEFT_CUDA=emulate"


class CudaError(RuntimeError):
    """A function of the driver API failed; ``code`` is its CUresult."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class CudaUnavailable(RuntimeError):
    """There is no CUDA to run on; the message says what to install."""


@record(frozen=True)
class DeviceProperties:
    """What is known of one device; ``target`` is what code for it is generated for."""

    name: str
    capability: tuple[int, int]
    total_memory: int
    target: GpuTarget

    @property
    def major(self) -> int:
        return self.capability[0]

    @property
    def minor(self) -> int:
        return self.capability[1]

    @property
    def multi_processor_count(self) -> int:
        return self.target.multiprocessors


class Driver:
    """Calls the functions of a table and raises :class:`CudaError` for what fails.

    ``functions`` are ctypes functions by name; native code takes their addresses from ``addresses``. Streams,
    events, modules and functions are handles (integers), device memory is addresses.
    """

    kind = ""  # how executables of this driver are kept apart on disk

    def __init__(self, functions: Mapping[str, Any]) -> None:
        self.functions = functions

    @property
    def addresses(self) -> dict[str, int]:
        """The addresses of the functions, for native code."""
        return {n: ctypes.cast(f, ctypes.c_void_p).value or 0 for n, f in self.functions.items()}

    # -- what implementations say -----------------------------------------------------------------------
    def device_count(self) -> int:
        raise NotImplementedError

    def properties(self, index: int) -> DeviceProperties:
        """Of the device ``index``."""
        raise NotImplementedError

    def context(self, index: int) -> int:
        """The handle of the primary context of a device."""
        raise NotImplementedError

    def explain(self, name: str, code: int) -> str:
        """What a failed call says."""
        return f"{name} failed: {api.ERRORS.get(code, f'CUresult {code}')}"

    def runs_cubins_of(self, ptxas: str) -> bool:
        """Whether machine code of this ``ptxas`` can be loaded, in place of PTX."""
        return False

    # -- calls ------------------------------------------------------------------------------------------
    def call(self, name: str, *args: Any) -> None:
        code = self.functions[name](*args)
        if code:
            raise CudaError(self.explain(name, code), code)

    def _word(self, name: str, *args: Any) -> int:
        """The 64-bit word that a function writes to its first argument."""
        out = c_uint64()
        self.call(name, byref(out), *args)
        return out.value

    def word(self, name: str, handle: int) -> int:
        """The word that a function writes to its second argument."""
        out = c_uint64()
        self.call(name, handle, byref(out))
        return out.value

    def instantiate(self, graph: int) -> int:
        """A graph made ready to be launched."""
        return self._word("cuGraphInstantiateWithFlags", graph, 0)

    def activate(self, context: int) -> None:
        """Make a context that of the calling thread."""
        self.call("cuCtxSetCurrent", context)

    def malloc(self, nbytes: int) -> int:
        return self._word("cuMemAlloc_v2", nbytes)

    def free(self, address: int) -> None:
        self.call("cuMemFree_v2", address)

    def memory_info(self) -> tuple[int, int]:
        """(free, total) bytes of the current device."""
        free, total = c_size_t(), c_size_t()
        self.call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value, total.value

    def host_alloc(self, nbytes: int) -> int:
        """Pinned memory of the host."""
        return self._word("cuMemHostAlloc", nbytes, 0)

    def host_free(self, address: int) -> None:
        self.call("cuMemFreeHost", address)

    def htod(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self.call("cuMemcpyHtoDAsync_v2", target, source, nbytes, stream)

    def dtoh(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self.call("cuMemcpyDtoHAsync_v2", target, source, nbytes, stream)

    def dtod(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self.call("cuMemcpyDtoDAsync_v2", target, source, nbytes, stream)

    def peer(self, target: int, to: int, source: int, origin: int, nbytes: int, stream: int) -> None:
        """Copy between the contexts ``origin`` and ``to``."""
        self.call("cuMemcpyPeerAsync", target, to, source, origin, nbytes, stream)

    def memset(self, target: int, value: int, nbytes: int, stream: int) -> None:
        self.call("cuMemsetD8Async", target, value, nbytes, stream)

    def stream_create(self, priority: int = 0) -> int:
        """A stream that does not wait for the default one; lower numbers go first."""
        return self._word("cuStreamCreateWithPriority", api.STREAM_NON_BLOCKING, priority)

    def stream_synchronize(self, stream: int) -> None:
        self.call("cuStreamSynchronize", stream)

    def event_create(self, timing: bool) -> int:
        return self._word("cuEventCreate", api.EVENT_DEFAULT if timing else api.EVENT_DISABLE_TIMING)

    def event_elapsed(self, start: int, end: int) -> float:
        """Milliseconds between two recorded events."""
        out = api.elapsed()
        self.call("cuEventElapsedTime", byref(out), start, end)
        return out.value

    def is_ready(self, name: str, handle: int) -> bool:
        """Whether a query (``cuStreamQuery``, ``cuEventQuery``) finds all work done."""
        code = self.functions[name](handle)
        if code not in (api.SUCCESS, api.NOT_READY):
            raise CudaError(self.explain(name, code), code)
        return code == api.SUCCESS

    def load(self, image: bytes) -> int:
        """A module from a cubin, or from PTX text."""
        text = image if image[:4] == b"\x7fELF" else image + b"\0"
        return self._word("cuModuleLoadData", text)

    def function(self, module: int, name: str, shared_bytes: int = 0) -> int:
        """A function of a module that is launched with this much dynamic shared memory."""
        found = self._word("cuModuleGetFunction", module, name.encode())
        if shared_bytes > api.SHARED_WITHOUT_OPT_IN:
            self.call("cuFuncSetAttribute", found, api.MAX_DYNAMIC_SHARED, shared_bytes)
        return found

    def launch(
        self, function: int, grid: Sequence[int], block: Sequence[int], shared: int, stream: int, data: bytes
    ) -> None:
        """Launch a function on a block of parameters."""
        size = c_size_t(len(data))
        words = (api.PARAM_BUFFER, _address(data), api.PARAM_SIZE, ctypes.addressof(size), api.PARAM_END)
        extra = (c_uint64 * len(words))(*words)
        self.call("cuLaunchKernel", function, *grid, *block, shared, stream, None, ctypes.addressof(extra))


def _address(data: bytes) -> int:
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0


@cache
def _emulated(architecture: str) -> Any:
    from weft.runtime.cuda.emulated_driver import EmulatedDriver

    return EmulatedDriver(architecture)


def _with_devices(emulated: Any, devices: str) -> Driver:
    """The emulated driver with so many devices; those that it had before stay what they are."""
    if not devices.isdigit() or not int(devices):
        raise ValueError(f"WEFT_CUDA_DEVICES={devices}: expected the number of emulated devices")
    emulated.devices = int(devices)
    return emulated


@cache
def _real() -> Driver:
    from weft.runtime.cuda.pycuda_driver import PycudaDriver

    return PycudaDriver()


def driver() -> Driver:
    """The driver that the environment asks for. CudaUnavailable, with what to install, where it has none."""
    wanted = os.environ.get("WEFT_CUDA", "")
    if wanted == "emulate":
        emulated = _emulated(os.environ.get("WEFT_CUDA_ARCH", "sm_80"))
        return _with_devices(emulated, os.environ.get("WEFT_CUDA_DEVICES", "1"))
    if wanted in ("0", "off", "no"):
        raise CudaUnavailable(f"CUDA is turned off by WEFT_CUDA={wanted}")
    return _real()


def unavailable(what: str) -> CudaUnavailable:
    """The error for a missing part of CUDA."""
    return CudaUnavailable(f"no CUDA device can be used: {what}; {_HELP}")


@cache
def _count(environment: tuple[str | None, ...]) -> int:
    try:
        return driver().device_count()
    except Exception:  # whatever is wrong with the installation: there is no device
        return 0


def device_count() -> int:
    """The number of devices; 0 where CUDA cannot be used. Never raises."""
    return _count(tuple(os.environ.get(n) for n in ("WEFT_CUDA", "WEFT_CUDA_ARCH", "WEFT_CUDA_DEVICES")))


def is_available() -> bool:
    """Whether there is a device to run on. Never raises."""
    return device_count() > 0
