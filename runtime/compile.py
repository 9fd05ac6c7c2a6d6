"""From a graph to an executable, through the caches."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping

from weft.codegen.target import Target, host_target
from weft.ir.graph import Graph
from weft.runtime import jit, stats
from weft.runtime.build import build
from weft.runtime.executable import Artifact, Executable
from weft.runtime.fingerprint import fingerprint

_MEMORY_LIMIT = 1024  # executables kept for graphs that come again
_memory: OrderedDict[str, Executable] = OrderedDict()
_lock = threading.RLock()


def compile_graph(
    graph: Graph, *, donate: Mapping[int, int] | None = None, target: Target | None = None, name: str | None = None
) -> Executable:
    """Compile ``graph`` for the host. Result ``i`` is written into the buffer of param ``donate[i]``.

    With another ``target`` the graph is compiled only: the executable shows its code and refuses to run.
    """
    donate = dict(donate or {})
    key = fingerprint(graph) + repr(sorted(donate.items())) + repr(target)
    with _lock:
        found = _memory.get(key)
        if found is not None:
            _memory.move_to_end(key)
            stats.count("cache_memory_hits")
            return found
        made = _compile(graph, donate, target, name or graph.name)
        _memory[key] = made
        if len(_memory) > _MEMORY_LIMIT:
            _memory.popitem(last=False)
        return made


def compile_only(graph: Graph, target: Target, name: str | None = None) -> Executable:
    """Compile for any machine LLVM knows and run nothing."""
    return compile_graph(graph, target=target, name=name)


def _compile(graph: Graph, donate: dict[int, int], target: Target | None, name: str) -> Executable:
    stats.count("compiles")
    machine = target or host_target()
    built = build(graph, machine, donate)
    native = sum(k.native for k in built.kernels)
    artifact = Artifact(
        jit.compile_object(built.llvm, machine), built.arena_bytes, built.hosts, len(built.kernels), native, built.cost_ns
    )
    foreign = target is not None and target != host_target()
    return Executable(graph, donate, machine, name, artifact, built, compile_only=foreign)
