"""CUDA by pycuda: initialisation, devices and primary contexts are pycuda's, so that what it and weft
allocate is of one context; what it gives no handles of (modules, functions, events) is called in libcuda."""

from __future__ import annotations

import ctypes
import sys
from functools import cached_property
from typing import Any

from weft.codegen.gpu.target import GpuTarget, target_of
from weft.ir.record import replace
from weft.runtime.cuda import api
from weft.runtime.cuda.assembler import ptx_version, ptxas_release
from weft.runtime.cuda.driver import DeviceProperties, Driver, unavailable

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_LARGE_PARAMETERS = 81  # the PTX version from which kernels take more than 4096 bytes of parameters


class PycudaDriver(Driver):
    """Devices of this machine. CudaUnavailable where pycuda or the NVIDIA driver is missing."""

    kind = "cuda"

    def __init__(self) -> None:
        library = _library()
        self._cuda = _pycuda()
        super().__init__({n: _function(library, n) for n in api.PROTOTYPES})
        self._contexts: dict[int, Any] = {}

    @cached_property
    def version(self) -> tuple[int, int]:
        """The version of CUDA that the driver is of."""
        out = ctypes.c_int()
        self.call("cuDriverGetVersion", ctypes.byref(out))
        return out.value // 1000, out.value % 1000 // 10

    def device_count(self) -> int:
        return self._cuda.Device.count()

    def properties(self, index: int) -> DeviceProperties:
        device = self._cuda.Device(index)
        capability = tuple(device.compute_capability())
        return DeviceProperties(device.name(), capability, device.total_memory(), self._target(device))

    def runs_cubins_of(self, ptxas: str) -> bool:
        """Machine code runs on drivers of the same major version of CUDA and later ones; else the driver
        compiles the PTX."""
        return ptxas_release(ptxas)[0] <= self.version[0]

    def _target(self, device: Any) -> GpuTarget:
        """The architecture with what this device has of everything, in a PTX that its driver knows."""
        known, of = target_of(tuple(device.compute_capability())), self._cuda.device_attribute
        ptx = min(known.ptx, ptx_version(self.version))
        return replace(
            known,
            ptx=ptx,
            shared_bytes=_attribute(device, of, "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN", known.shared_bytes),
            sm_shared_bytes=_attribute(device, of, "MAX_SHARED_MEMORY_PER_MULTIPROCESSOR",
                                       known.sm_shared_bytes),
            sm_threads=_attribute(device, of, "MAX_THREADS_PER_MULTIPROCESSOR", known.sm_threads),
            multiprocessors=_attribute(device, of, "MULTIPROCESSOR_COUNT", known.multiprocessors),
            parameter_bytes=known.parameter_bytes if ptx >= _LARGE_PARAMETERS else 4096,
        )  # fmt: skip

    def context(self, index: int) -> int:
        held = self._contexts.get(index)
        if held is None:  # kept for good: pycuda releases a context with its object
            held = self._contexts[index] = self._cuda.Device(index).retain_primary_context()
        return held.handle


def _attribute(device: Any, attributes: Any, name: str, otherwise: int) -> int:
    """An attribute of a device; pycuda names those that its CUDA headers knew."""
    which = getattr(attributes, name, None)
    return otherwise if which is None else device.get_attribute(which)


def _library() -> Any:
    try:
        return ctypes.CDLL(_LIBRARY)
    except OSError:
        raise unavailable(f"there is no NVIDIA driver ({_LIBRARY})") from None


def _pycuda() -> Any:
    try:
        import pycuda.driver as cuda  # pyright: ignore[reportMissingImports]
    except ImportError as e:
        raise unavailable(f"pycuda cannot be imported ({e})") from None
    try:
        cuda.init()
    except cuda.Error as e:
        raise unavailable(f"the NVIDIA driver does not start ({e})") from None
    return cuda


def _function(library: Any, name: str) -> Any:
    function = getattr(library, name, None)
    if function is None:
        raise unavailable(f"the NVIDIA driver is too old: it has no {name}")
    function.restype, function.argtypes = api.RESULT, api.PROTOTYPES[name]
    return function
