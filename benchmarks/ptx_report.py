"""What the GPU kernels of the workloads take, as ``ptxas`` says: registers, shared memory, spills.

Run: ``python -m benchmarks.ptx_report [--arch sm_80,sm_90] [--only TEXT]``. Each workload is compiled for the
CPU and called once, which gives its graph; its kernels are then emitted for each architecture and assembled.
Nothing is run on a GPU. Exits with 1 where a kernel spills.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

import weft
from weft.codegen.gpu.kernel import DeviceCode, emit_device_kernel
from weft.codegen.gpu.module import device_module
from weft.codegen.gpu.target import GpuTarget, gpu_target
from weft.codegen.kernel import Unsupported
from weft.ir.graph import Graph, Op
from weft.runtime.cuda.assembler import Resources, assemble
from weft.runtime.cuda.ptx import compile_ptx

from benchmarks.workloads import ROWS

ARCHITECTURES = "sm_75,sm_80,sm_86,sm_89,sm_90,sm_90a,sm_100,sm_120"


def graphs_of(build: Any) -> list[Graph]:
    """The lowered graphs of a workload, after one call."""
    seen: list[Any] = []

    def compile(fn: Any, **options: Any) -> Any:
        seen.append(weft.compile(fn, **options))
        return seen[-1]

    build(weft, compile)()
    return [c.stages()[-1][1] for c in seen]


def kernels(graph: Graph) -> Iterator[Op]:
    """The kernels of a graph, those inside of its control flow too."""
    for op in graph.ops:
        if op.prim.name == "kernel":
            yield op
        else:
            for region in op.regions:
                yield from kernels(region)


def report(graph: Graph, target: GpuTarget) -> Iterator[tuple[str, DeviceCode, Resources]]:
    """Form, code and resources of every function of every distinct kernel."""
    known: set[str] = set()
    for op in kernels(graph):
        key = str(op.regions[0])
        if key in known:
            continue
        known.add(key)
        try:
            code = emit_device_kernel(op, target, "k")
        except Unsupported as reason:
            print(f"    {op.attrs['name']}: {reason}")
            continue
        if code.launches:
            _, found = assemble(compile_ptx(device_module(target, [code]), target), target.name)
            for resources in found:
                yield op.attrs["form"], code, resources


def show(name: str, graph: Graph, target: GpuTarget) -> int:
    """Print the lines of one graph; the bytes that its kernels spill."""
    spilled = 0
    for form, code, r in report(graph, target):
        spilled += r.spill_bytes
        launch = next(s for s in code.launches if s.symbol == r.kernel)
        what = f"{name:20.20s} {target.name:7s} {form:10s} {code.name:32.32s}"
        threads = f"{launch.grid[0]:7d} x {launch.block[0]:4d}"
        memory = f"{r.shared_bytes:6d} shared {r.spill_bytes:5d} spilled {r.stack_bytes:5d} stack"
        print(f"{what} {threads} {r.registers:4d} regs {memory}", flush=True)
    return spilled


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default=ARCHITECTURES)
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    options = parser.parse_args()
    spilled = 0
    for name, workload in ROWS.items():
        if options.only in name:
            for graph in graphs_of(workload.build):
                spilled += sum(show(name, graph, gpu_target(a)) for a in options.arch.split(","))
    print(f"{spilled} bytes spilled")
    return 1 if spilled else 0


if __name__ == "__main__":
    sys.exit(main())
