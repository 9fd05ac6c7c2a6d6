"""Splitting a joint graph into forward and backward: what to save and what to compute again."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from weft.ir.graph import Graph, Op, Value
from weft.ir.prims.base import Kind
from weft.passes.dce import dce
from weft.passes.flow import INFINITE, Flow

# Cheap enough to run twice: they fuse into the loops that read them. Everything else is saved or its
# readers are.
RECOMPUTABLE = frozenset({Kind.MAP, Kind.SOURCE, Kind.MOVE})
# A chain of more maps than this is not computed again: its time would no longer hide behind the memory
# traffic.
MAX_DEPTH = 24


def partition(
    joint: Graph, n_params: int, n_results: int, unsaved: Collection[Value] = ()
) -> tuple[Graph, Graph, int]:
    """Split ``joint``: (params..., cotangents...) -> (results..., gradients...) into forward, backward,
    n_saved.

    Expects the forward operations before those that read a cotangent, as
    :func:`weft.passes.autodiff.joint_graph` leaves them. ``forward`` returns the results and the saved
    values; ``backward`` takes the saved values and the cotangents. The saved set is a minimum cut: of all
    sets from which the backward part can be computed with cheap operations alone (maps, moves, constants:
    never a contraction, reduction or random bits again) the one with the fewest bytes. A parameter is alive
    anyway and counts as nothing; a result counts half. The ``unsaved`` parameters may change before the
    backward part runs: it reads them only if nothing else will do.
    """
    params, cotangents = joint.params[:n_params], joint.params[n_params:]
    results, grads = joint.results[:n_results], joint.results[n_results:]
    backward_ops, forward_ops = _split(joint, cotangents)
    readable = set(params).union(*(op.results for op in forward_ops)) if forward_ops else set(params)
    wanted = _unique(v for op in backward_ops for v in op.operands if v in readable)
    wanted += [v for v in _unique(grads) if v in readable and v not in set(wanted)]
    saved = _minimum_cut(forward_ops, params, results, wanted, unsaved)
    again = _recomputed(forward_ops, wanted, saved)
    forward = _closed(params, forward_ops, [*results, *saved], joint.name)
    backward = _closed([*saved, *cotangents], [*again, *backward_ops], grads, f"{joint.name}_backward")
    return forward, backward, len(saved)


def _split(joint: Graph, cotangents: tuple[Value, ...]) -> tuple[list[Op], list[Op]]:
    """The operations that depend on a cotangent, and the others."""
    tainted = set(cotangents)
    backward: list[Op] = []
    forward: list[Op] = []
    for op in joint.ops:
        if any(v in tainted for v in op.operands):
            tainted.update(op.results)
            backward.append(op)
        else:
            forward.append(op)
    return backward, forward


def _unique(values: Iterable[Value]) -> list[Value]:
    return list(dict.fromkeys(values))


def _closed(params: Sequence[Value], ops: list[Op], results: Sequence[Value], name: str) -> Graph:
    """A graph of those of ``ops`` that the results need."""
    return dce(Graph(params, ops, results, name))


def _recomputed(ops: list[Op], wanted: list[Value], saved: list[Value]) -> list[Op]:
    """The forward operations that the backward part runs again to get ``wanted`` from ``saved``."""
    have = set(saved)
    need = {v for v in wanted if v not in have}
    again: list[Op] = []
    for op in reversed(ops):
        if any(r in need for r in op.results):
            again.append(op)
            need.update(v for v in op.operands if v not in have)
    return again[::-1]


def _minimum_cut(
    ops: list[Op],
    params: Sequence[Value],
    results: Sequence[Value],
    wanted: list[Value],
    unsaved: Collection[Value],
) -> list[Value]:
    """The values to save, in program order.

    Each value is an edge of its bytes; the source feeds the parameters and what may not be computed again;
    the sink drinks what the backward part reads. Of the minimum cuts the one nearest the sink: least
    computed again.
    """
    if not wanted:
        return []
    flow = Flow()
    source, sink = flow.node(), flow.node()
    producers = {r: op for op in ops for r in op.results}
    fixed = set(params) | _not_again(ops)
    halved = set(results)
    edges: dict[Value, int] = {}
    pending = list(wanted)
    while pending:
        v = pending.pop()
        if v in edges:
            continue
        into, out = flow.node(), flow.node()
        cost = max(2 * v.type.nbytes, 1) if v in producers else INFINITE if v in unsaved else 0
        edges[v] = flow.edge(into, out, cost // 2 if v in halved else cost)
        if v in fixed:
            flow.edge(source, into, INFINITE)
        else:
            pending.extend(producers[v].operands)
    for v, e in edges.items():
        if v not in fixed:
            for operand in set(producers[v].operands):
                flow.edge(flow.heads[edges[operand]], flow.tail(e), INFINITE)
    for v in wanted:
        flow.edge(flow.heads[edges[v]], sink, INFINITE)
    below = flow.sink_side(source, sink)
    cut = {v for v, e in edges.items() if flow.tail(e) not in below and flow.heads[e] in below}
    order = [*params, *producers]
    return [v for v in order if v in cut]


def _not_again(ops: list[Op]) -> set[Value]:
    """The values that the backward part may not compute for itself."""
    depth: dict[Value, int] = {}
    fixed: set[Value] = set()
    for op in ops:
        d = 1 + max((depth.get(v, 0) for v in op.operands), default=0)
        if op.prim.kind not in RECOMPUTABLE or d > MAX_DEPTH:
            fixed.update(op.results)
            d = 0
        depth.update(dict.fromkeys(op.results, d))
    return fixed
