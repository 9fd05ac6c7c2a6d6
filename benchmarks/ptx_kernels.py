"""The GPU kernels of graphs, and what ``ptxas`` makes of them on each architecture, without a GPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any
from unittest import mock

import weft
from weft.codegen.gpu.kernel import emit_device_kernel
from weft.codegen.gpu.module import device_module
from weft.codegen.gpu.target import gpu_target
from weft.codegen.kernel import Unsupported
from weft.codegen.standalone import kernel_op
from weft.ir.errors import CompilerError
from weft.ir.graph import Graph
from weft.ir.text import canonical_text, parse_graph
from weft.runtime.build import lower
from weft.runtime.cuda.assembler import Resources, assemble
from weft.runtime.cuda.build import without_devices
from weft.runtime.cuda.ptx import compile_ptx

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_90a", "sm_100", "sm_120")


@dataclass(frozen=True)
class Kernel:
    """A kernel operation as text, so that processes can share the work; ``where`` says whose it is."""

    where: str
    form: str
    text: str
    name: str = ""


@dataclass(frozen=True)
class Module:
    """A module of PTX that was made for one architecture, and runs on later ones, too."""

    where: str
    target: str
    ptx: str
    name: str = "module"


@dataclass(frozen=True)
class Row:
    """What one kernel takes on one architecture: its functions, with the dynamic shared memory.

    ``unsupported``: why there is no kernel for this architecture; ``problem``: why LLVM or ``ptxas``
    refused it.
    """

    kernel: Kernel | Module
    architecture: str
    functions: tuple[tuple[int, Resources], ...] = ()
    unsupported: str = ""
    problem: str = ""


class Captured(Exception):
    """Ends a call when its graph is there."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph.name)
        self.graph = graph


class Blank:
    """``weft``, whose large random tensors are memory that nobody has written: only shapes are looked at."""

    def __getattr__(self, name: str) -> Any:
        return getattr(weft, name)

    def randn(self, *shape: int, device: Any = None, dtype: Any = None) -> Any:
        return weft.empty(*shape, dtype=dtype)

    def randint(self, low: int, high: int, shape: tuple[int, ...], device: Any = None) -> Any:
        return weft.empty(*shape, dtype=weft.int64)


def graph_of(build: Callable[..., Callable[[], Any]], *args: Any) -> Graph:
    """The graph of a workload's compiled function, lowered for a GPU; it is captured, not run."""

    def stop(graph: Graph, **options: Any) -> Any:
        raise Captured(graph)

    call = build(Blank(), weft.compile, *args)
    with mock.patch("weft.capture.compiled.compile_graph", stop):
        try:
            call()
        except Captured as captured:
            return lower(without_devices(captured.graph), "cuda").graph
    raise RuntimeError("the workload compiles nothing")


def kernels_of(graph: Graph, where: str) -> Iterator[Kernel]:
    """The distinct kernels of a graph, those inside of its control flow too."""
    known: set[str] = set()
    for op in _kernel_ops(graph):
        kernel = kernel_of(op, where)
        if kernel.text not in known:
            known.add(kernel.text)
            yield kernel


def kernel_of(op: Any, where: str = "") -> Kernel:
    """A kernel operation as text."""
    form = op.attrs["form"]
    return Kernel(where, form, canonical_text(op.regions[0]), op.attrs.get("name") or form)


def _kernel_ops(graph: Graph) -> Iterator[Any]:
    for op in graph.ops:
        if op.prim.name == "kernel":
            yield op
        else:
            for region in op.regions:
                yield from _kernel_ops(region)


def row(kernel: Kernel | Module, architecture: str) -> Row:
    """Emit and assemble one kernel."""
    try:
        if isinstance(kernel, Module):
            _, found = assemble(kernel.ptx, architecture)
            return Row(kernel, architecture, tuple((0, r) for r in found))
        target = gpu_target(architecture)
        code = emit_device_kernel(kernel_op(parse_graph(kernel.text), kernel.form), target, "k")
        if not code.launches:
            return Row(kernel, architecture)
        _, found = assemble(compile_ptx(device_module(target, [code]), target), architecture)
    except Unsupported as reason:
        return Row(kernel, architecture, unsupported=str(reason))
    except CompilerError as problem:
        return Row(kernel, architecture, problem=str(problem))
    dynamic = {launch.symbol: launch.shared_bytes for launch in code.launches}
    return Row(kernel, architecture, tuple((dynamic[r.kernel], r) for r in found))


def _row(pair: tuple[Kernel | Module, str]) -> Row:
    return row(*pair)


def runs(kernel: Kernel | Module, architecture: str) -> bool:
    """Whether a kernel can be assembled for an architecture: a module, if it was made for an older one."""
    if isinstance(kernel, Kernel) or kernel.target == architecture:
        return True
    made = gpu_target(kernel.target)
    return made.name[-1] != "a" and made.capability <= gpu_target(architecture).capability


def rows(kernels: Iterable[Kernel | Module], architectures: Iterable[str]) -> Iterator[Row]:
    """The rows of all kernels on all architectures, by a process for each processor."""
    architectures = list(architectures)
    pairs = [(k, a) for k in kernels for a in architectures if runs(k, a)]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield from pool.map(_row, pairs, chunksize=4)
