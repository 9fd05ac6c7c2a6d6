"""From a ``kernel`` operation to LLVM IR for a GPU: one emitter per form, found in a registry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module

from weft.codegen.gpu.target import GpuTarget
from weft.codegen.kernel import Unsupported
from weft.codegen.target import emitting_for
from weft.ir.graph import Op


@dataclass(frozen=True)
class DeviceLaunch:
    """One launch of a kernel function: ``symbol<<<grid, block, shared_bytes>>>(buffers)``.

    The function is ``ptx_kernel void @symbol(ptr, ptr, ...)``, a generic pointer to global memory for each
    of ``buffers``: numbers into operands, results, scratch, status, in this order. Every pointer is aligned
    to 16 bytes: who launches copies what is not. ``shared_bytes`` is dynamic shared memory, on top of what
    the function declares.
    """

    symbol: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    buffers: tuple[int, ...]
    shared_bytes: int = 0


@dataclass(frozen=True)
class DeviceCode:
    """The code of one kernel: functions, and the launches that run them, one after the other.

    ``scratch`` is ``scratch_bytes`` of uninitialised memory, 256-byte aligned, shared by the launches; status
    is an i64, to be set to 1 by an index out of range. ``llvm`` holds the functions, ``declares`` the
    module-level lines (declarations, globals). ``inplace`` lists the pairs (operand, result) that may share
    memory: each element is read before it is written, by the same thread.
    """

    name: str
    llvm: str
    declares: frozenset[str]
    launches: tuple[DeviceLaunch, ...]
    scratch_bytes: int = 0
    loops: str = ""
    bytes_moved: int = 0
    flops: int = 0
    inplace: frozenset[tuple[int, int]] = field(default_factory=frozenset)


DeviceEmitter = Callable[[Op, GpuTarget, str], DeviceCode]

# form -> "module:function", imported at first use
FORMS: dict[str, str] = {
    "loop": "weft.codegen.gpu.loop_kernel:emit",
    "contract": "weft.codegen.gpu.contract:emit",
    "conv": "weft.codegen.gpu.conv:emit",
    "attention": "weft.codegen.gpu.attention:emit",
    "gather": "weft.codegen.gpu.gather_kernel:emit",
    "scatter": "weft.codegen.gpu.scatter_kernel:emit",
    "sort": "weft.codegen.gpu.sort_kernel:emit",
    "cumulative": "weft.codegen.gpu.cumulative_kernel:emit",
    "window": "weft.codegen.gpu.window_kernel:emit",
}


def emit_device_kernel(op: Op, target: GpuTarget, symbol_prefix: str) -> DeviceCode:
    """The code of one ``kernel`` op. Raises Unsupported with a reason where it cannot be compiled."""
    where = FORMS.get(op.attrs["form"])
    if where is None:
        raise Unsupported(f"no GPU code generation for kernels of form {op.attrs['form']!r}")
    module, _, function = where.partition(":")
    emit: DeviceEmitter = getattr(import_module(module), function)
    with emitting_for(target):
        return emit(op, target, symbol_prefix)
