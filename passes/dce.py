"""Dead code elimination."""

from __future__ import annotations

from weft.ir.graph import Graph, Op, Value


def dce(graph: Graph) -> Graph:
    """Drop the operations whose results nothing reads.

    Expects any graph. Leaves the parameters and the results as they are, and operations whose primitive or
    attributes say ``effects``. Regions are swept too. One walk from the end; the graph itself comes back
    when nothing was dead.
    """
    live: set[Value] = set(graph.results)
    kept: list[Op] = []
    changed = False
    for op in reversed(graph.ops):
        if not any(r in live for r in op.results) and not _has_effects(op):
            changed = True
            continue
        swept = _sweep_regions(op)
        changed |= swept is not op
        kept.append(swept)
        live.update(op.operands)
    return Graph(graph.params, reversed(kept), graph.results, graph.name) if changed else graph


def _has_effects(op: Op) -> bool:
    return bool(op.prim.tags.get("effects") or op.attrs.get("effects"))


def _sweep_regions(op: Op) -> Op:
    if not op.regions:
        return op
    regions = [dce(r) for r in op.regions]
    if all(a is b for a, b in zip(regions, op.regions, strict=True)):
        return op
    return Op(op.prim, op.operands, op.attrs, op.results, regions, op.loc)
