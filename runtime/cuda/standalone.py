"""GPU kernels compiled and run alone, on the emulated device: for tests and for looking at a kernel."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from weft.codegen.gpu.kernel import DeviceCode, emit_device_kernel
from weft.codegen.gpu.module import device_module
from weft.codegen.gpu.target import GpuTarget
from weft.codegen.standalone import kernel_op
from weft.ir.errors import DIVISION_BY_ZERO
from weft.ir.graph import Op
from weft.ir.prims.base import Primitive, trace
from weft.ir.types import TensorType
from weft.runtime.cuda.ptx import compile_ptx
from weft.runtime.emulate import LaunchStatistics, Machine


class DeviceStandalone:
    """A kernel on a machine of its own. A call takes arrays and returns fresh results; ``status`` is what it
    left, ``statistics`` what its launches did. What races or reads unwritten memory raises EmulationError.
    """

    def __init__(self, op: Op, target: GpuTarget, prefix: str = "k0") -> None:
        self.op, self.target = op, target
        self.code: DeviceCode = emit_device_kernel(op, target, prefix)
        self.llvm = device_module(target, [self.code])
        self.ptx = compile_ptx(self.llvm, target)
        self.status = 0
        self.statistics: list[LaunchStatistics] = []

    def __call__(self, *arrays: np.ndarray, chunks: int = 0) -> list[np.ndarray]:
        """Run all launches on copies of the arrays."""
        results = [np.empty(r.type.shape, r.type.dtype.np) for r in self.op.results]
        inputs = [np.ascontiguousarray(x) for x in arrays]
        room = sum(x.nbytes + 1024 for x in (*inputs, *results)) + self.code.scratch_bytes
        machine = Machine(self.target, 2 * room + (1 << 20), strict=True)
        slots = [_upload(machine, x) for x in inputs]
        slots += [machine.malloc(max(r.nbytes, 1)) for r in results]
        slots.append(machine.malloc(max(self.code.scratch_bytes, 1)))
        slots.append(_upload(machine, np.zeros(1, np.int64)))
        module = machine.load(self.ptx)
        for launch in self.code.launches:
            params = struct.pack(f"<{len(launch.buffers)}Q", *(slots[i] for i in launch.buffers))
            function = module.function(launch.symbol)
            machine.launch(function, launch.grid, launch.block, launch.shared_bytes, params)
        for r, at in zip(results, slots[len(inputs) :], strict=False):
            if r.nbytes:
                machine.dtoh(r, at)
        status = np.zeros(1, np.int64)
        machine.dtoh(status, slots[-1])
        self.status, self.statistics = int(status[0]), machine.launches
        return results


def _upload(machine: Machine, x: np.ndarray) -> int:
    at = machine.malloc(max(x.nbytes, 1))
    if x.nbytes:
        machine.htod(at, np.frombuffer(x.tobytes(), np.uint8))
    return at


def run_region(op: Op, arrays: Sequence[np.ndarray], target: GpuTarget) -> list[np.ndarray]:
    """The results of one ``kernel`` op on the emulated device. IndexError for an index out of range."""
    kernel = DeviceStandalone(op, target)
    out = kernel(*arrays)
    if kernel.status == DIVISION_BY_ZERO:
        raise RuntimeError("ZeroDivisionError")
    if kernel.status:
        raise IndexError("an index is out of range")
    return out


def compile_function(fn: Any, *types: TensorType, form: str, target: GpuTarget) -> DeviceStandalone:
    """Trace ``fn`` over these types and compile the whole graph as one kernel of ``form``."""
    return DeviceStandalone(kernel_op(trace(fn, *types), form), target)


def compile_primitive(
    prim: Primitive, *types: TensorType, form: str, target: GpuTarget, **attrs: Any
) -> DeviceStandalone:
    """One primitive as a kernel of ``form``."""
    return compile_function(lambda *xs: prim.bind(*xs, **attrs), *types, form=form, target=target)
