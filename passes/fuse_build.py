"""From groups to a graph with ``kernel`` operations, each with its region."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from weft.ir.graph import Graph, Op, Value
from weft.ir.prims import kernel_p
from weft.passes.fuse_groups import PLAIN, Grouping, Node


def build(grouping: Grouping) -> Graph:
    """The fused graph."""
    kernels = {n: _kernel(grouping, n) for n in grouping.nodes if n.form != PLAIN}
    views = _views(grouping, kernels)
    ops: list[Op] = [*kernels.values(), *views]
    ops += [n.main for n in grouping.nodes if n.form == PLAIN]
    rank = {kernels[n]: n.number for n in kernels}
    rank |= {op: grouping.number[op] for op in ops if op not in rank}
    graph = grouping.graph
    return Graph(graph.params, sort_ops(ops, rank), graph.results, graph.name)


def _kernel(grouping: Grouping, node: Node) -> Op:
    """The kernel operation of a group: its results are the very values that others read."""
    results = grouping.outputs(node.ops)
    ops = in_order_of_use(grouping.with_transparent(node.ops), results)
    made = {r for op in ops for r in op.results}
    reads: dict[Value, None] = {}
    for op in ops:
        reads.update(dict.fromkeys(x for x in op.operands if x not in made))
    region = region_of(ops, list(reads), results)
    loc = next((op.loc for op in reversed(node.ops) if op.loc), None)
    own = set(node.ops)
    attrs = {"form": node.form, "name": kernel_name(node.form, [op for op in ops if op in own])}
    return Op(kernel_p, list(reads), attrs, results, [region], loc)


def in_order_of_use(ops: list[Op], results: list[Value]) -> list[Op]:
    """The operations that ``results`` need, each before its first use and no sooner: kernels that do the same
    are the same text (and so are compiled once), wherever in the program their parts stood."""
    producer = {r: op for op in ops for r in op.results}
    done: dict[Op, None] = {}
    stack = [(producer[r], False) for r in reversed(results) if r in producer]
    while stack:
        op, ready = stack.pop()
        if op in done:
            continue
        if ready:
            done[op] = None
            continue
        stack.append((op, True))
        stack += [(producer[x], False) for x in reversed(op.operands) if x in producer]
    return list(done)


def region_of(ops: list[Op], reads: list[Value], results: list[Value]) -> Graph:
    """A closed graph of copies of ``ops``."""
    params = [Value(v.type, v.name) for v in reads]
    env = dict(zip(reads, params, strict=True))
    copies = []
    for op in ops:
        outs = [Value(r.type, r.name) for r in op.results]
        copies.append(Op(op.prim, [env[x] for x in op.operands], op.attrs, outs, op.regions, op.loc))
        env.update(zip(op.results, outs, strict=True))
    return Graph(params, copies, [env[r] for r in results], "kernel")


def kernel_name(form: str, ops: list[Op]) -> str:
    """A readable name: the form of a heavy kernel, then what it computes, shortened."""
    names = list(dict.fromkeys(op.prim.name for op in ops))
    if len(names) > 4:
        names = [*names[:2], "etc", names[-1]]
    head = [] if form == "loop" or names[0].startswith(form) else [form]
    return "_".join([*head, *(n for n in names if n not in head)])


def _views(grouping: Grouping, kernels: dict[Node, Op]) -> list[Op]:
    """Reshapes of whole values that someone reads: results, kernels and plain operations."""
    needed = set(grouping.graph.results)
    for op in kernels.values():
        needed.update(op.operands)
    for n in grouping.nodes:
        if n.form == PLAIN:
            needed.update(n.main.operands)
    views: dict[Op, None] = {}
    for op in reversed(grouping.graph.ops):
        if op in grouping.transparent and op.result in needed:
            views[op] = None
            needed.update(op.operands)
    return list(views)


def sort_ops(ops: list[Op], rank: dict[Op, int]) -> list[Op]:
    """Topological order, by rank where there is a choice."""
    producer = {r: op for op in ops for r in op.results}
    waits: dict[Op, int] = {}
    wakes: dict[Op, list[Op]] = {}
    for op in ops:
        needs = {producer[x] for x in op.operands if x in producer}
        waits[op] = len(needs)
        for n in needs:
            wakes.setdefault(n, []).append(op)
    order = {op: i for i, op in enumerate(sorted(ops, key=rank.__getitem__))}
    by_order = {i: op for op, i in order.items()}
    ready = [order[op] for op in ops if not waits[op]]
    heapify(ready)
    out = []
    while ready:
        op = by_order[heappop(ready)]
        out.append(op)
        for w in wakes.get(op, ()):
            waits[w] -= 1
            if not waits[w]:
                heappush(ready, order[w])
    return out
