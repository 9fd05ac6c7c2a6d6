"""Fusion: group operations into ``kernel`` operations.

Grouping is greedy in program order and by kind: each operation tries to join the groups that produce its
operands (:mod:`weft.passes.fuse_groups`); then small independent groups are put side by side. What could not
be joined, and why, is kept in :data:`refusals`.
"""

from __future__ import annotations

from weft.ir.graph import Graph, Op
from weft.ir.prims.base import Kind
from weft.passes.dce import dce
from weft.passes.fuse_build import build
from weft.passes.fuse_groups import Grouping
from weft.passes.fuse_reshape import sink_reshapes
from weft.passes.fuse_side import side_by_side

refusals: list[tuple[str, str, str]] = []
"""(producer, consumer, reason) of the last call of :func:`fuse`: neighbours that stayed in kernels of their
own."""


def fuse(graph: Graph, target_kind: str = "cpu") -> Graph:
    """Form kernels.

    Expects a decomposed graph. Leaves ``kernel`` operations (attrs ``form`` and ``name``, the fused
    operations in the region), operations that the runtime evaluates (HOST, CONTROL with fused regions,
    complex dtypes, array constants) and free views (reshapes of whole values).

    >>> from weft.ir import prims as P
    >>> from weft.ir.prims.base import trace
    >>> from weft.ir.types import TensorType, f32
    >>> g = trace(lambda x: P.exp_p.bind(x * x), TensorType((8,), f32))
    >>> [(op.prim.name, len(op.regions[0].ops)) for op in fuse(g).ops]
    [('kernel', 2)]
    """
    refusals.clear()
    return _fuse(graph, target_kind)


def _fuse(graph: Graph, target_kind: str) -> Graph:
    graph = _fuse_regions(graph, target_kind)
    grouping = Grouping(dce(sink_reshapes(graph)), target_kind)
    grouping.run()
    side_by_side(grouping)
    refusals.extend(grouping.refusals)
    return build(grouping)


def _fuse_regions(graph: Graph, target_kind: str) -> Graph:
    """Fuse the bodies of control operations."""
    if not any(op.prim.kind is Kind.CONTROL for op in graph.ops):
        return graph
    ops = [
        Op(op.prim, op.operands, op.attrs, op.results, [_fuse(r, target_kind) for r in op.regions], op.loc)
        if op.prim.kind is Kind.CONTROL
        else op
        for op in graph.ops
    ]
    return Graph(graph.params, ops, graph.results, graph.name)
