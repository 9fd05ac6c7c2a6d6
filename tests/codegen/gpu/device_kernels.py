"""One kernel emitted for a GPU, compiled to PTX and run on the emulated device."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from weft.codegen.gpu.kernel import DeviceCode, emit_device_kernel
from weft.codegen.gpu.module import device_module
from weft.codegen.gpu.target import gpu_target
from weft.codegen.standalone import kernel_op
from weft.ir.prims.base import trace
from weft.ir.types import TensorType, dtype_of_numpy
from weft.runtime.cuda.ptx import compile_ptx
from weft.runtime.emulate.machine import Machine

rng = np.random.default_rng(0)


def normal(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return rng.standard_normal(shape).astype(dtype)


def double(x: Any) -> np.ndarray:
    x = np.asarray(x)
    return x if x.dtype == np.bool_ else x.astype(np.float64)


class DeviceKernel:
    """``fn`` over arrays of some types as one kernel of ``form``. A call runs it; races are errors."""

    def __init__(
        self,
        fn: Any,
        arrays: Any,
        form: str,
        arch: str = "sm_80",
        emit: Any = None,
        graph: Any = None,
        target: Any = None,
        **how: Any,
    ):
        self.target = target or gpu_target(arch)
        types = [TensorType(a.shape, dtype_of_numpy(a.dtype)) for a in arrays]
        traced = trace(fn, *types)
        self.op = kernel_op(graph(traced) if graph else traced, form)
        self.code: DeviceCode = (emit or emit_device_kernel)(self.op, self.target, "k0", **how)
        self.ptx = compile_ptx(device_module(self.target, [self.code]), self.target)

    def __call__(self, *arrays: np.ndarray) -> list[np.ndarray]:
        machine = Machine(self.target, 1 << 26, strict=True)
        results = [np.empty(r.type.shape, r.type.dtype.np) for r in self.op.results]
        addresses = [machine.malloc(max(x.nbytes, 1)) for x in (*arrays, *results)]
        addresses += [machine.malloc(max(self.code.scratch_bytes, 1)), machine.malloc(8)]
        for array, address in zip(arrays, addresses, strict=False):
            machine.htod(address, np.ascontiguousarray(array))
        module = machine.load(self.ptx)
        for launch in self.code.launches:
            params = struct.pack(f"<{len(launch.buffers)}Q", *(addresses[b] for b in launch.buffers))
            function = module.function(launch.symbol)
            machine.launch(function, launch.grid, launch.block, launch.shared_bytes, params)
        self.launches = machine.launches
        for array, address in zip(results, addresses[len(arrays) :], strict=False):
            machine.dtoh(array, address)
        return results


def check(fn: Any, *arrays: np.ndarray, form: str, tol: float = 2e-5, **how: Any) -> DeviceKernel:
    """Run ``fn`` as one kernel and compare with its evaluation."""
    kernel = DeviceKernel(fn, arrays, form, **how)
    want = fn(*arrays)
    for got, w in zip(kernel(*arrays), want if isinstance(want, (list, tuple)) else [want], strict=True):
        assert got.dtype == w.dtype and got.shape == w.shape
        scale = np.abs(double(w)).max() or 1.0
        np.testing.assert_allclose(double(got) / scale, double(w) / scale, atol=tol, rtol=0)
    return kernel
