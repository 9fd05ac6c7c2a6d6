"""From a graph of a GPU to code: passes, device code per distinct kernel, PTX, the plan, the native entry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weft.codegen.gpu.entry import Run, device_entry_module, emit_device_entry
from weft.codegen.gpu.kernel import DeviceCode, emit_device_kernel
from weft.codegen.gpu.module import device_module
from weft.codegen.gpu.target import GpuTarget
from weft.codegen.steps import Loc, Program, Scan, Step
from weft.codegen.target import Target
from weft.ir.graph import Graph, Op, Value
from weft.ir.record import record, replace
from weft.ir.types import CPU, TensorType
from weft.passes.plan import Plan
from weft.runtime.build import Builder, Control, KernelInfo, buffers_of, lower
from weft.runtime.cuda.ptx import compile_ptx
from weft.runtime.hostcall import HostOp
from weft.runtime.jit import ENTRY

ALIGN = 256  # of values in the arena and of constants
WIDE = 16  # kernels may access parameters by as many bytes at once


@record
class DeviceBuilt:
    """Everything that compiling a graph for a GPU made, before machine code.

    ``functions`` are the kernel functions with their bytes of dynamic shared memory, in the order in which
    the entry numbers them; ``constants`` what goes into the constants' memory; ``llvm`` the device's module,
    ``entry`` the host's.
    """

    stages: list[tuple[str, Graph]]
    graph: Graph
    plan: Plan
    llvm: str
    ptx: str
    entry: str
    kernels: list[KernelInfo]
    hosts: tuple[HostOp, ...]
    functions: tuple[tuple[str, int], ...]
    constants: bytes
    arena_bytes: int
    uses_status: bool


def build_for_device(
    graph: Graph, target: GpuTarget, host: Target, donate: Mapping[int, int], profile: bool = False
) -> DeviceBuilt:
    """Lower a graph and write its modules: PTX for the device, LLVM for the host; with ``profile`` one that
    records events around its kernels."""
    lowered = lower(without_devices(graph), "cuda")
    b = DeviceBuilder(target, profile)
    plan, _ = b.program(lowered.graph, ENTRY, donate)
    codes = [c for c in b.codes.values() if isinstance(c, DeviceCode)]
    llvm = device_module(target, codes)
    return DeviceBuilt(
        lowered.stages, lowered.graph, plan, llvm, compile_ptx(llvm, target) if codes else "",
        device_entry_module(host, b.parts), b.infos, tuple(b.hosts), tuple(b.functions.items()),
        bytes(b.memory), plan.arena_bytes, b.uses_status,
    )  # fmt: skip


class DeviceBuilder(Builder):
    """Kernels are launches; constants are collected in one block of memory."""

    kind = "cuda"
    align = ALIGN

    def __init__(self, target: GpuTarget, profile: bool = False) -> None:
        super().__init__()
        self.target, self.profile = target, profile
        self.functions: dict[str, int] = {}
        self.memory = bytearray()
        self.uses_status = False

    def emit(self, op: Op, symbol: str) -> DeviceCode:
        code = emit_device_kernel(op, self.target, symbol)
        n = len(op.operands) + len(op.results)
        for launch in code.launches:
            self.functions[launch.symbol] = max(launch.shared_bytes, self.functions.get(launch.symbol, 0))
            self.uses_status |= n + 1 in launch.buffers
        return code

    def launch(self, op: Op, i: int, plan: Plan, code: DeviceCode) -> Any:
        numbers = list(self.functions)
        launches = tuple((numbers.index(x.symbol), x) for x in code.launches)
        return Run(launches, *buffers_of(op, i, plan), self.number[op])

    def new_program(self, symbol: str, graph: Graph) -> Program:
        return Program(symbol, len(graph.params), len(graph.results), profile=self.profile)

    def entry(self, program: Program) -> float:
        offsets = []
        for data in program.constants:
            offsets.append(len(self.memory))
            self.memory += data.ljust(-(-len(data) // ALIGN) * ALIGN, b"\0")
        self.parts.append(emit_device_entry(program, offsets, program.symbol == ENTRY))
        return 0.0

    def stage(self, op: Op, layout: Control) -> None:
        """Room for the slices of a scan that do not lie as kernels want them."""
        if op.prim.name == "scan":
            layout.staging = [self.reserve(layout, s) if s % WIDE else None for s in _slices(op)]

    def control_step(self, op: Op, i: int, plan: Plan, layout: Control) -> Step:
        step = super().control_step(op, i, plan, layout)
        if not isinstance(step, Scan):
            return step
        base = plan.scratch[i]
        staging = tuple(None if s is None else Loc("arena", base + s) for s in layout.staging)
        return replace(step, staging=staging)


def _slices(op: Op) -> list[int]:
    """The bytes of each slice of a scan, inputs first."""
    region, n_consts, n_carry = op.regions[0], op.attrs["n_consts"], op.attrs["n_carry"]
    values = [*region.params[n_consts + n_carry :], *region.results[n_carry:]]
    return [v.type.nbytes for v in values]


# -- types without devices ----------------------------------------------------------------------------------


def without_devices(graph: Graph) -> Graph:
    """The graph with every value on the CPU. What is compiled for one device says so once, not on every
    value; kernels alike on two devices are then the same text."""
    known: dict[Value, Value] = {}
    params = [known.setdefault(p, _moved(p)) for p in graph.params]
    ops = []
    for op in graph.ops:
        operands = [known[v] for v in op.operands]
        if op.prim.name == "transfer":
            known[op.result] = operands[0]
            continue
        results = [known.setdefault(r, _moved(r)) for r in op.results]
        attrs = {k: CPU if k == "device" else v for k, v in op.attrs.items()}
        ops.append(Op(op.prim, operands, attrs, results, [without_devices(g) for g in op.regions], op.loc))
    return Graph(params, ops, [known[r] for r in graph.results], graph.name)


def _moved(v: Value) -> Value:
    return v if v.type.device == CPU else Value(TensorType(v.type.shape, v.type.dtype), v.name)


def devices_of(graph: Graph) -> set[Any]:
    """The devices of all values of a graph."""
    values = [*graph.params, *(r for op in graph.walk() for r in op.results)]
    return {v.type.device for v in values}
