"""The part of the CUDA driver API that weft calls: prototypes, constants and the names of errors.

Source: CUDA Driver API reference manual (cuda.h). A table of these functions is what a driver is made of: the
real one takes their addresses from libcuda, the emulated one makes them of Python functions. Native code and
ctypes call both alike.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any

# every pointer is a c_void_p, handles and device addresses are 64-bit words
_P, _I, _U, _W, _N = c_void_p, c_int, c_uint, c_uint64, c_size_t

PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "cuDriverGetVersion": (_P,),
    "cuCtxSetCurrent": (_W,),
    "cuCtxSynchronize": (),
    "cuMemGetInfo_v2": (_P, _P),
    "cuMemAlloc_v2": (_P, _N),
    "cuMemFree_v2": (_W,),
    "cuMemHostAlloc": (_P, _N, _U),
    "cuMemFreeHost": (_P,),
    "cuMemcpyHtoDAsync_v2": (_W, _P, _N, _W),
    "cuMemcpyDtoHAsync_v2": (_P, _W, _N, _W),
    "cuMemcpyDtoDAsync_v2": (_W, _W, _N, _W),
    "cuMemcpyPeerAsync": (_W, _W, _W, _W, _N, _W),
    "cuMemsetD8Async": (_W, ctypes.c_ubyte, _N, _W),
    "cuStreamCreateWithPriority": (_P, _U, _I),
    "cuStreamSynchronize": (_W,),
    "cuStreamQuery": (_W,),
    "cuStreamWaitEvent": (_W, _W, _U),
    "cuEventCreate": (_P, _U),
    "cuEventDestroy_v2": (_W,),
    "cuEventRecord": (_W, _W),
    "cuEventQuery": (_W,),
    "cuEventSynchronize": (_W,),
    "cuEventElapsedTime": (_P, _W, _W),
    "cuModuleLoadData": (_P, _P),
    "cuModuleUnload": (_W,),
    "cuModuleGetFunction": (_P, _W, ctypes.c_char_p),
    "cuFuncSetAttribute": (_W, _I, _I),
    # function, grid, block, shared bytes, stream, parameters, extra
    "cuLaunchKernel": (_W, _U, _U, _U, _U, _U, _U, _U, _W, _P, _P),
    "cuStreamBeginCapture_v2": (_W, _I),
    "cuStreamEndCapture": (_W, _P),
    "cuGraphInstantiateWithFlags": (_P, _W, _W),
    "cuGraphLaunch": (_W, _W),
    "cuGraphDestroy": (_W,),
    "cuGraphExecDestroy": (_W,),
}

SUCCESS = 0
INVALID_VALUE = 1
OUT_OF_MEMORY = 2
INVALID_IMAGE = 200
INVALID_HANDLE = 400
NOT_FOUND = 500
NOT_READY = 600
ILLEGAL_ADDRESS = 700
LAUNCH_FAILED = 719
CAPTURE_UNSUPPORTED = 900
CAPTURED_EVENT = 907

ERRORS = {
    INVALID_VALUE: "CUDA_ERROR_INVALID_VALUE",
    OUT_OF_MEMORY: "CUDA_ERROR_OUT_OF_MEMORY",
    3: "CUDA_ERROR_NOT_INITIALIZED",
    4: "CUDA_ERROR_DEINITIALIZED",
    100: "CUDA_ERROR_NO_DEVICE",
    101: "CUDA_ERROR_INVALID_DEVICE",
    INVALID_IMAGE: "CUDA_ERROR_INVALID_IMAGE",
    201: "CUDA_ERROR_INVALID_CONTEXT",
    209: "CUDA_ERROR_NO_BINARY_FOR_GPU",
    218: "CUDA_ERROR_INVALID_PTX",
    221: "CUDA_ERROR_JIT_COMPILER_NOT_FOUND",
    222: "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
    INVALID_HANDLE: "CUDA_ERROR_INVALID_HANDLE",
    NOT_FOUND: "CUDA_ERROR_NOT_FOUND",
    NOT_READY: "CUDA_ERROR_NOT_READY",
    ILLEGAL_ADDRESS: "CUDA_ERROR_ILLEGAL_ADDRESS",
    701: "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES",
    702: "CUDA_ERROR_LAUNCH_TIMEOUT",
    716: "CUDA_ERROR_MISALIGNED_ADDRESS",
    LAUNCH_FAILED: "CUDA_ERROR_LAUNCH_FAILED",
    CAPTURE_UNSUPPORTED: "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
    901: "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
    CAPTURED_EVENT: "CUDA_ERROR_CAPTURED_EVENT",
}

STREAM_NON_BLOCKING = 1
EVENT_DEFAULT, EVENT_DISABLE_TIMING = 0, 2
CAPTURE_RELAXED = 2  # the only mode in which the allocator may ask the driver for memory meanwhile
MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
SHARED_WITHOUT_OPT_IN = 48 << 10

# CU_LAUNCH_PARAM_*: how native code hands over one block of parameters
PARAM_END, PARAM_BUFFER, PARAM_SIZE = 0, 1, 2

RESULT = c_int


def prototype(name: str) -> Any:
    """The ctypes function type of an API function."""
    return ctypes.CFUNCTYPE(RESULT, *PROTOTYPES[name])


def elapsed() -> Any:
    """Room for what cuEventElapsedTime writes."""
    return c_float()
