"""Run a fused region natively, without the runtime: a bare JIT and a serial loop over the phases."""

from __future__ import annotations

import ctypes
from functools import cache

import llvmlite.binding as llvm
import numpy as np
from weft.codegen.kernel import KernelCode, emit_kernel
from weft.codegen.llvm import module_text
from weft.codegen.target import Target, host_target
from weft.ir.graph import Graph, GraphBuilder
from weft.ir.prims.base import PRIMITIVES

_ENTRY = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


@cache
def _init() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


def machine(target: Target) -> llvm.TargetMachine:
    _init()
    t = llvm.Target.from_triple(target.triple)
    return t.create_target_machine(cpu=target.cpu, features=target.features, opt=2, reloc="pic", codemodel="small")


def kernel_op(region: Graph, form: str = "loop", name: str = "k"):
    b = GraphBuilder()
    params = [b.param(p.type) for p in region.params]
    b.add(PRIMITIVES["kernel"], params, {"form": form, "name": name}, [region])
    return b.ops[-1]


def compile_region(region: Graph, target: Target | None = None, form: str = "loop", name: str = "k") -> KernelCode:
    return emit_kernel(kernel_op(region, form, name), target or host_target(), name)


class Native:
    """A compiled kernel. Calling it runs all phases, in pieces of ``grain`` units to show that pieces do not matter."""

    def __init__(self, code: KernelCode, region: Graph, target: Target | None = None) -> None:
        self.code, self.region = code, region
        target = target or host_target()
        self.text = module_text(target, [code.llvm], code.declares)
        mod = llvm.parse_assembly(self.text)
        mod.verify()
        self.tm = machine(target)
        self._mod = mod
        jit = llvm.create_lljit_compiler(machine(target))
        self._tracker = (
            llvm.JITLibraryBuilder().add_ir(mod).export_symbol(code.phases[0].symbol)
        )
        for p in code.phases[1:]:
            self._tracker.export_symbol(p.symbol)
        self._tracker.add_current_process()
        self._lib = self._tracker.link(jit, code.name)
        self._jit = jit
        self.fns = [_ENTRY(self._lib[p.symbol]) for p in code.phases]

    def asm(self) -> str:
        return self.tm.emit_assembly(llvm.parse_assembly(self.text))

    def buffers(self, arrays):
        ins = [np.ascontiguousarray(a) for a in arrays]
        outs = [np.empty(r.type.shape, r.type.dtype.np) for r in self.region.results]
        scratch = np.empty(self.code.scratch_bytes + 64, np.uint8)
        base = scratch.ctypes.data
        status = np.zeros(1, np.int64)
        ptrs = [a.ctypes.data for a in (*ins, *outs)] + [base + (-base) % 64, status.ctypes.data]
        bufs = (ctypes.c_void_p * len(ptrs))(*ptrs)
        return bufs, outs, status, (ins, scratch)

    def __call__(self, *arrays, grain: int | None = None):
        bufs, outs, status, keep = self.buffers(arrays)
        for fn, p in zip(self.fns, self.code.phases, strict=True):
            step = grain or max(p.units, 1)
            for begin in range(0, p.units, step):
                fn(bufs, begin, min(begin + step, p.units), 0)
        self.status = int(status[0])
        del keep
        return outs


def run_fused(graph: Graph, arrays, target: Target | None = None, counts: list | None = None):
    """Run a fused graph: loop kernels natively, everything else by its numpy reference."""
    env = dict(zip(graph.params, arrays, strict=True))
    for i, op in enumerate(graph.ops):
        xs = [np.asarray(env[v]) for v in op.operands]
        if op.prim.name == "kernel" and op.attrs["form"] == "loop":
            code = emit_kernel(op, target or host_target(), f"k{i}")
            if counts is not None:
                counts.append(code)
            native = Native(code, op.regions[0], target)
            outs = native(*xs, grain=3 if max(p.units for p in code.phases) < 200 else None)
        else:
            outs = op.prim.evaluate(xs, op.attrs, op.regions)
        env.update(zip(op.results, outs, strict=True))
    return [env[r] for r in graph.results]
