"""From a graph to an executable: passes, plan, code, link, cache."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from weft.ir.graph import Graph
from weft.runtime import stats
from weft.runtime.executable import Executable


def _lower(graph: Graph, target_kind: str) -> Any:
    try:
        from weft.passes.pipeline import lower
    except ImportError:
        return SimpleNamespace(stages=[("captured", graph)], graph=graph)
    return lower(graph, target_kind)


def compile_graph(
    graph: Graph, *, donate: Mapping[int, int] | None = None, target: Any = None, name: str | None = None
) -> Executable:
    """Compile ``graph`` for the host (or ``target``). Result ``i`` is written into the buffer of param ``donate[i]``."""
    stats.count("compiles")
    return Executable(graph, _lower(graph, "cpu"), dict(donate or {}), name or graph.name)
