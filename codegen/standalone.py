"""One kernel compiled and run alone, without the runtime: for tests and for measuring a kernel."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from weft.codegen.kernel import Emitter, KernelCode, emit_kernel
from weft.codegen.llvm import module_text
from weft.codegen.target import Target, host_target
from weft.ir.graph import Graph, Op, Value
from weft.ir.prims.base import PRIMITIVES, Primitive, trace
from weft.ir.types import TensorType


def kernel_op(graph: Graph, form: str) -> Op:
    """A ``kernel`` op around a region, as fusion makes them."""
    operands = [Value(p.type) for p in graph.params]
    results = [Value(r.type) for r in graph.results]
    attrs = {"form": form, "name": graph.name}
    return Op(PRIMITIVES["kernel"], operands, attrs, results, [graph])


class Standalone:
    """A compiled kernel. A call takes arrays and returns fresh results; ``status`` is what it left."""

    def __init__(
        self, op: Op, target: Target | None = None, prefix: str = "k0", emit: Emitter = emit_kernel
    ) -> None:
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        self.op, self.target = op, target or host_target()
        self.code: KernelCode = emit(op, self.target, prefix)
        self.llvm = module_text(self.target, [self.code.llvm], self.code.declares)
        machine = llvm.Target.from_triple(self.target.triple).create_target_machine(
            cpu=self.target.cpu, features=self.target.features, opt=1, codemodel="small", reloc="pic"
        )
        self.machine = machine
        self._jit = llvm.create_lljit_compiler(machine)
        builder = llvm.JITLibraryBuilder().add_ir(self.llvm).add_current_process()
        for phase in self.code.phases:
            builder.export_symbol(phase.symbol)
        self._library = builder.link(self._jit, f"kernel_{prefix}_{id(self)}")
        signature = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
        self._phases = [(signature(self._library[p.symbol]), p.units) for p in self.code.phases]
        self.scratch = aligned(self.code.scratch_bytes)
        self.status = 0

    def asm(self) -> str:
        """The assembly of the module."""
        import llvmlite.binding as llvm

        return self.machine.emit_assembly(llvm.parse_assembly(self.llvm))

    def block(self, arrays: Sequence[np.ndarray], results: Sequence[np.ndarray], status: np.ndarray) -> Any:
        addresses = [x.ctypes.data for x in (*arrays, *results, self.scratch, status)]
        return (ctypes.c_void_p * len(addresses))(*addresses)

    def __call__(self, *arrays: np.ndarray, chunks: int = 2) -> list[np.ndarray]:
        """Run every phase, its units in ``chunks`` consecutive calls."""
        arrays = tuple(np.ascontiguousarray(x) for x in arrays)
        results = [np.empty(r.type.shape, r.type.dtype.np) for r in self.op.results]
        status = np.zeros(1, np.int64)
        self.run(self.block(arrays, results, status), chunks)
        self.status = int(status[0])
        return results

    def run(self, block: Any, chunks: int = 1) -> None:
        """Run every phase on a block of :meth:`block`."""
        for fn, units in self._phases:
            cuts = [units * i // chunks for i in range(chunks + 1)]
            for begin, end in itertools.pairwise(cuts):
                fn(block, begin, end, 0)


def aligned(nbytes: int) -> np.ndarray:
    """64-byte aligned memory."""
    raw = np.empty(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes]


def compile_function(fn: Any, *types: TensorType, form: str, target: Target | None = None) -> Standalone:
    """Trace ``fn`` over these types and compile the whole graph as one kernel of ``form``."""
    return Standalone(kernel_op(trace(fn, *types), form), target)


def compile_primitive(
    prim: Primitive, *types: TensorType, form: str, target: Target | None = None, **attrs: Any
) -> Standalone:
    """One primitive as a kernel of ``form``."""
    return compile_function(lambda *xs: prim.bind(*xs, **attrs), *types, form=form, target=target)
