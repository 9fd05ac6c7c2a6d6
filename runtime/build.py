"""From a graph to object code: passes, one emission per distinct kernel, the memory plan, the entry."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from weft.codegen.entry import emit_entry, module_text, profile_globals
from weft.codegen.kernel import KernelCode, Unsupported, emit_kernel
from weft.codegen.merge import Merger
from weft.codegen.steps import (
    Branch,
    Host,
    Launch,
    Loc,
    Move,
    Program,
    Scan,
    Step,
    While,
    cost_ns,
)  # fmt: skip
from weft.codegen.target import Target
from weft.ir.errors import CompilerError
from weft.ir.graph import Graph, Op, Value
from weft.ir.prims.base import Kind
from weft.ir.record import field, record
from weft.passes.plan import ALIGN, Place, Plan, is_constant, is_free_view, plan_memory
from weft.runtime import shared
from weft.runtime.fingerprint import op_fingerprint
from weft.runtime.hostcall import HostOp
from weft.runtime.jit import ENTRY
from weft.runtime.pieces import Pieces


@record(frozen=True)
class KernelInfo:
    """One kernel as reports show it: the fused graph, the loops, bytes moved and operations per call."""

    name: str
    form: str
    region: Graph
    loops: str = ""
    bytes_moved: int = 0
    flops: int = 0
    native: bool = True
    why: str = ""

    @property
    def text(self) -> str:
        """The fused graph."""
        return str(self.region)


@record
class Built:
    """Everything that compiling a graph made, before machine code."""

    stages: list[tuple[str, Graph]]
    graph: Graph
    plan: Plan
    llvm: str  # all of it, to be read
    module: str  # without the shared functions, to be compiled
    shared: dict[str, str]  # modules of the shared functions it calls, by name
    kernels: list[KernelInfo]
    hosts: tuple[HostOp, ...]
    arena_bytes: int
    cost_ns: float
    entries: tuple[str, ...] = ()  # those of the parts of the module that are no kernels


def lower(graph: Graph, kind: str = "cpu") -> Any:
    """Run the pipeline (imported here: it pulls in all passes)."""
    from weft.passes.pipeline import lower as run

    return run(graph, kind)


def build(
    graph: Graph,
    target: Target,
    donate: Mapping[int, int],
    profile: bool = False,
    pieces: Pieces | None = None,
) -> Built:
    """Lower a graph and write its LLVM module; with ``profile`` one that times its kernels. Kernels also go
    to ``pieces``, which compiles them while the rest is written."""
    lowered = lower(graph)
    b = CpuBuilder(target, profile, pieces)
    plan, cost = b.program(lowered.graph, ENTRY, donate)
    if profile:
        b.parts.insert(0, profile_globals(len(b.infos)))
    functions, rest = shared.split(b.declares)
    calls = [shared.declaration(f) for f in functions.values()]
    return Built(
        lowered.stages, lowered.graph, plan, module_text(target, b.parts, b.declares),
        module_text(target, b.parts, [*rest, *calls]), shared.modules(functions, rest, target),
        b.infos, tuple(b.hosts), plan.arena_bytes, cost, tuple(b.entries),
    )  # fmt: skip


@record
class Region:
    symbol: str
    arena_bytes: int


@record
class Control:
    """The nested entries of a control operation and where, in its scratch memory, their buffers stand."""

    regions: list[Region]
    spare: list[int] = field(default_factory=list)
    flag: int = 0
    arena: int = 0
    nbytes: int = 0
    staging: list[int | None] = field(default_factory=list)


class Builder:
    """Collects the parts of one module while it walks a graph and its regions. What a kernel becomes, and how
    an entry is written, is of the device: see :class:`CpuBuilder`."""

    kind = "cpu"  # what passes are told
    align = ALIGN  # of values in the arena

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.declares: set[str] = set()
        self.hosts: list[HostOp] = []
        self.infos: list[KernelInfo] = []
        self.number: dict[Op, int] = {}  # of each kernel in ``infos``
        self.codes: dict[str, Any] = {}
        self.programs = 0

    def program(self, graph: Graph, symbol: str, donate: Mapping[int, int]) -> tuple[Plan, float]:
        """Emit the entry of ``graph``; its plan and the estimated time of one run."""
        codes = {i: self.kernel(op) for i, op in enumerate(graph.ops) if _wants_code(op)}
        native = {i: c for i, c in codes.items() if c is not None}
        control = {i: self.control(op) for i, op in enumerate(graph.ops) if op.prim.kind is Kind.CONTROL}
        scratch = {i: c.scratch_bytes for i, c in native.items()} | {i: c.nbytes for i, c in control.items()}
        plan = plan_memory(graph, donate, scratch, {i: c.inplace for i, c in native.items()}, self.align)
        out = self.new_program(symbol, graph)
        for i, op in enumerate(graph.ops):
            if is_constant(op):
                out.constants.append(op.attrs["value"].tobytes())
            elif is_free_view(op) or (_idle(op) and op.prim.kind is not Kind.HOST):
                continue
            elif i in control:
                out.steps.append(self.control_step(op, i, plan, control[i]))
            elif i in native:
                out.steps.append(self.launch(op, i, plan, native[i]))
            else:
                out.steps.append(Host(self.host(op), _locs(plan, op.operands), _locs(plan, op.results)))
        out.steps += [Move(_loc(c.target), _loc(c.source), c.nbytes) for c in plan.copies]
        return plan, self.entry(out)

    def host(self, op: Op) -> int:
        self.hosts.append(HostOp.of(op))
        return len(self.hosts) - 1

    def kernel(self, op: Op) -> Any:
        """The code of a kernel, emitted once for all kernels alike; None where it must run in Python."""
        key = op_fingerprint(op)
        code = self.codes.get(key)
        if code is None:
            name = re.sub(r"\W", "_", str(op.attrs["name"]))
            try:
                code = self.emit(op, f"k{len(self.codes)}_{name}")
            except Unsupported as e:
                code = e
            except Exception as e:
                why = f"{type(e).__name__}: {e}"
                raise CompilerError(f"no code for kernel {name}: {why}", op.regions[0]) from e
            self.codes[key] = code
        self.number[op] = len(self.infos)
        self.infos.append(_info(op, code))
        return None if isinstance(code, Unsupported) else code

    def control(self, op: Op) -> Control:
        """Emit the regions of a control operation and lay out the memory they share."""
        regions = [self.region(g) for g in op.regions]
        layout = Control(regions)
        n_carry = {"while_loop": len(op.results)}.get(op.prim.name, op.attrs.get("n_carry", 0))
        for r in op.results[:n_carry]:
            layout.spare.append(self.reserve(layout, r.type.nbytes))
        layout.flag = self.reserve(layout, 1)
        self.stage(op, layout)
        layout.arena = layout.nbytes
        layout.nbytes += max(r.arena_bytes for r in regions)
        return layout

    def reserve(self, layout: Control, nbytes: int) -> int:
        """An offset in the memory of a control operation."""
        at = layout.nbytes
        layout.nbytes += -(-nbytes // self.align) * self.align
        return at

    def region(self, graph: Graph) -> Region:
        symbol = f"{ENTRY}_{self.programs}"
        self.programs += 1
        if not any(op.prim.kind is Kind.KERNEL for op in graph.ops):
            graph = lower(graph, self.kind).graph
        plan, _ = self.program(graph, symbol, {})
        return Region(symbol, plan.arena_bytes)

    def new_program(self, symbol: str, graph: Graph) -> Program:
        return Program(symbol, len(graph.params), len(graph.results))

    # -- what devices differ in ---------------------------------------------------------------------------
    def emit(self, op: Op, symbol: str) -> Any:
        """The code of a kernel, which this also adds to the module. Raises Unsupported."""
        raise NotImplementedError

    def launch(self, op: Op, i: int, plan: Plan, code: Any) -> Step:
        """The step that runs a kernel."""
        raise NotImplementedError

    def entry(self, program: Program) -> float:
        """Add the entry of a program to the module; the estimated time of one run in nanoseconds."""
        raise NotImplementedError

    def stage(self, op: Op, layout: Control) -> None:
        """Reserve what else a control operation needs."""

    def control_step(self, op: Op, i: int, plan: Plan, layout: Control) -> Step:
        return _control_step(op, i, plan, layout)


class CpuBuilder(Builder):
    """Kernels are phases of the thread pool."""

    def __init__(self, target: Target, profile: bool, pieces: Pieces | None = None) -> None:
        super().__init__()
        self.target, self.profile, self.pieces = target, profile, pieces
        self.merger = Merger()
        self.entries: list[str] = []

    def emit(self, op: Op, symbol: str) -> KernelCode:
        code = self.merger.add(emit_kernel(op, self.target, symbol))
        self.parts.append(code.llvm)
        self.declares |= code.declares
        if self.pieces is not None:
            self.pieces.add(code.llvm, code.declares)
        return code

    def launch(self, op: Op, i: int, plan: Plan, code: KernelCode) -> Step:
        operands, results, scratch = buffers_of(op, i, plan)
        return Launch(code.phases, operands, results, scratch, self.number[op])

    def new_program(self, symbol: str, graph: Graph) -> Program:
        return Program(symbol, len(graph.params), len(graph.results), profile=self.profile)

    def entry(self, program: Program) -> float:
        self.entries.append(emit_entry(program))
        self.parts.append(self.entries[-1])
        return sum(cost_ns(s) for s in program.steps)


def _idle(op: Op) -> bool:
    """Nothing to compute: all results are empty."""
    return all(r.type.nbytes == 0 for r in op.results)


def _wants_code(op: Op) -> bool:
    """Kernels with elements on both sides; code for empty operands is not worth having."""
    return op.prim.kind is Kind.KERNEL and all(v.type.nbytes for v in (*op.operands, *op.results))


def _info(op: Op, code: Any) -> KernelInfo:
    name, form, region = str(op.attrs["name"]), str(op.attrs["form"]), op.regions[0]
    if isinstance(code, Unsupported):
        return KernelInfo(name, form, region, native=False, why=str(code))
    return KernelInfo(name, form, region, code.loops, code.bytes_moved, code.flops)


def _loc(place: Place) -> Loc:
    return Loc({"param": "in", "result": "out"}.get(place.kind, place.kind), place.index)


def _locs(plan: Plan, values: tuple[Value, ...]) -> tuple[Loc, ...]:
    return tuple(_loc(plan.places[v]) for v in values)


def buffers_of(op: Op, i: int, plan: Plan) -> tuple[tuple[Loc, ...], tuple[Loc, ...], Loc | None]:
    """Where the operands, the results and the scratch memory of operation ``i`` are."""
    scratch = Loc("arena", plan.scratch[i]) if i in plan.scratch else None
    return _locs(plan, op.operands), _locs(plan, op.results), scratch


def _control_step(op: Op, i: int, plan: Plan, c: Control) -> Step:
    base = plan.scratch[i]
    operands, results = _locs(plan, op.operands), _locs(plan, op.results)
    arena, symbols = Loc("arena", base + c.arena), [r.symbol for r in c.regions]
    spare = tuple(Loc("arena", base + s) for s in c.spare)
    sizes = tuple(r.type.nbytes for r in op.results[: len(spare)])
    if op.prim.name == "cond":
        return Branch(operands[0], (symbols[0], symbols[1]), operands[1:], results, arena)
    if op.prim.name == "while_loop":
        flag = Loc("arena", base + c.flag)
        return While(symbols[0], symbols[1], operands, results, spare, sizes, flag, arena)
    region, n = op.regions[0], op.attrs["n_consts"]
    ins = tuple(p.type.nbytes for p in region.params[n + len(spare) :])
    outs = tuple(r.type.nbytes for r in region.results[len(spare) :])
    length, reverse, rest = op.attrs["length"], bool(op.attrs["reverse"]), operands[n:]
    return Scan(symbols[0], length, reverse, operands[:n], rest, results, spare, sizes, ins, outs, arena)
