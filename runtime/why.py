"""Why operations of a graph were not fused, for reports."""

from __future__ import annotations

from weft.ir.graph import Graph
from weft.runtime.build import lower


def refusals(graph: Graph) -> list[str]:
    """Lower ``graph`` again and tell the refusals of the fusion pass, one line each."""
    from weft.passes import fuse

    lower(graph)
    return [f"{a} and {b}: {why}" for a, b, why in fuse.refusals]
