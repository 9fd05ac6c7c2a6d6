"""Fewer bytes between kernels: what the reader can compute cheaply is not written."""

from __future__ import annotations

from collections.abc import Sequence

from weft.ir.graph import Graph, Op, Value
from weft.ir.prims.base import Kind
from weft.ir.scalarcost import cost_of
from weft.passes.cse import cse
from weft.passes.dce import dce
from weft.passes.flow import INFINITE, Flow

READERS = ("loop", "contract", "conv")
MAX_OPS = 48  # operations that a reader computes again for one value
OPERATION_BYTES = 0.4  # that memory moves in the time of a simple operation on one element


def trim(graph: Graph) -> Graph:
    """Drop kernel outputs that their readers can compute again from less.

    Expects a fused graph. Outputs that the same kernels read, all of them element by element, are exchanged
    for values from which maps compute them again: operands and other outputs of the kernel, or values that it
    did not store, such as what an activation was applied to. A minimum cut weighs the bytes that move against
    the operations done twice. Leaves the same kernels in the same order, with smaller signatures.
    """
    return _Trimmer(graph).run()


class _Kernel:
    """A kernel operation under change."""

    def __init__(self, op: Op) -> None:
        self.op = op
        region = op.regions[0]
        self.operands, self.params = list(op.operands), list(region.params)
        self.ops, self.region_results, self.results = list(region.ops), list(region.results), list(op.results)
        self.added: list[Op] = []
        self.changed = False

    def finish(self) -> Op:
        if not self.changed:
            return self.op
        old = self.op.regions[0]
        region = dce(cse(Graph(self.params, [*self.added, *self.ops], self.region_results, old.name)))
        read = {v for op in region.ops for v in op.operands} | set(region.results)
        kept = [i for i, p in enumerate(region.params) if p in read]
        region = Graph([region.params[i] for i in kept], region.ops, region.results, region.name)
        operands = [self.operands[i] for i in kept]
        return Op(self.op.prim, operands, self.op.attrs, self.results, [region], self.op.loc)

    def param_of(self, v: Value) -> Value:
        """The region's name for a value around it; a new parameter where it has none yet."""
        if v in self.operands:
            return self.params[self.operands.index(v)]
        p = Value(v.type)
        self.operands.append(v)
        self.params.append(p)
        return p

    def reads_by_element(self, p: Value) -> bool:
        """Whether the region uses a parameter only in maps of its shape or, in a loop, in folds."""
        if p in self.region_results:
            return False
        folds = self.op.attrs["form"] == "loop"
        for op in (*self.added, *self.ops):
            if p in op.operands:
                same = op.prim.kind is Kind.MAP and op.result.type.shape == p.type.shape
                if not same and not (folds and op.prim.kind is Kind.REDUCE):
                    return False
        return True


class _Trimmer:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.kernels: dict[Op, _Kernel] = {
            op: _Kernel(op) for op in graph.ops if op.prim.kind is Kind.KERNEL and op.attrs["form"] in READERS
        }
        self.readers: dict[Value, list[Op]] = {}
        for op in graph.ops:
            for v in dict.fromkeys(op.operands):
                self.readers.setdefault(v, []).append(op)
        self.wanted = set(graph.results)

    def run(self) -> Graph:
        for kernel in self.kernels.values():
            makers = {r: op for op in (*kernel.added, *kernel.ops) for r in op.results}
            groups: dict[tuple[Op, ...], list[tuple[Value, Value]]] = {}
            for inner, outer in _pairs(kernel, makers):
                readers = self._readers_by_element(outer)
                if readers:
                    groups.setdefault(readers, []).append((inner, outer))
            for readers, pairs in groups.items():
                self._exchange(kernel, makers, readers, pairs)
        if not any(k.changed for k in self.kernels.values()):
            return self.graph
        ops = [self.kernels[op].finish() if op in self.kernels else op for op in self.graph.ops]
        return Graph(self.graph.params, ops, self.graph.results, self.graph.name)

    def _readers_by_element(self, outer: Value) -> tuple[Op, ...]:
        """The kernels that read a value; none where something else does, or in another order."""
        readers = tuple(self.readers.get(outer, ()))
        if outer in self.wanted or any(op not in self.kernels for op in readers):
            return ()
        users = [self.kernels[op] for op in readers]
        return readers if all(u.reads_by_element(u.param_of(outer)) for u in users) else ()

    def _exchange(
        self,
        kernel: _Kernel,
        makers: dict[Value, Op],
        readers: tuple[Op, ...],
        pairs: list[tuple[Value, Value]],
    ) -> None:
        """Give the readers the cheapest values from which they can compute those of ``pairs``."""
        users = [self.kernels[op] for op in readers]
        mine = {inner for inner, _ in pairs}
        around = dict(zip(kernel.params, kernel.operands, strict=True))
        results = zip(kernel.region_results, kernel.results, strict=True)
        around.update((v, outer) for v, outer in results if v not in mine)
        kept = _Exchange(makers, around, users).kept([inner for inner, _ in pairs])
        recipes = {v: _recipe(makers, {*around, *kept}, v) for v in mine if v not in kept}
        if not recipes or any(r is None for r in recipes.values()):
            return
        around.update((inner, outer) for inner, outer in pairs if inner in kept)
        for v in kept:
            if v not in around:
                around[v] = Value(v.type)
                kernel.region_results.append(v)
                kernel.results.append(around[v])
                self.readers[around[v]] = []
        for inner, outer in pairs:
            chain = recipes.get(inner)
            if chain is None:
                continue
            for user, op in zip(users, readers, strict=True):
                self._recompute(user, op, chain, around, inner, outer)
            i = kernel.results.index(outer)
            del kernel.results[i], kernel.region_results[i]
        kernel.changed = True

    def _recompute(
        self,
        user: _Kernel,
        reader: Op,
        chain: Sequence[Op],
        around: dict[Value, Value],
        inner: Value,
        outer: Value,
    ) -> None:
        env: dict[Value, Value] = {}
        made: list[Op] = []
        for op in chain:
            for v in op.operands:
                if v not in env:
                    if around[v] not in user.operands:
                        self.readers.setdefault(around[v], []).append(reader)
                    env[v] = user.param_of(around[v])
            results = [Value(r.type, r.name) for r in op.results]
            made.append(Op(op.prim, [env[v] for v in op.operands], op.attrs, results, (), op.loc))
            env.update(zip(op.results, results, strict=True))
        p = user.param_of(outer)
        user.added = [*made, *(_replaced(op, p, env[inner]) for op in user.added)]
        user.ops = [_replaced(op, p, env[inner]) for op in user.ops]
        at = user.operands.index(outer)
        del user.operands[at], user.params[at]
        user.changed = True


def _pairs(kernel: _Kernel, makers: dict[Value, Op]) -> list[tuple[Value, Value]]:
    """The outputs that operations of the region make, as (value inside, value around); each once."""
    seen: set[Value] = set()
    out = []
    for inner, outer in zip(kernel.region_results, kernel.results, strict=True):
        if inner in makers and inner not in seen:
            out.append((inner, outer))
        seen.add(inner)
    return out


class _Exchange:
    """Which values to keep in memory for readers, by a minimum cut: what is kept costs a write and a read for
    each reader, what is computed again costs its operations there."""

    def __init__(self, makers: dict[Value, Op], around: dict[Value, Value], users: list[_Kernel]) -> None:
        self.makers, self.around, self.users = makers, around, users
        self.flow = Flow()
        self.source, self.sink = self.flow.node(), self.flow.node()
        self.edges: dict[Value, int] = {}

    def kept(self, wanted: list[Value]) -> list[Value]:
        """The values that are neither computed again nor in memory anyway, in no special order."""
        flow = self.flow
        for v in wanted:
            self._edge(v, True)
            flow.edge(flow.heads[self.edges[v]], self.sink, INFINITE)
        below = flow.sink_side(self.source, self.sink)
        cut = [v for v, e in self.edges.items() if flow.tail(e) not in below and flow.heads[e] in below]
        return [v for v in cut if v not in self.around]

    def _edge(self, v: Value, here: bool) -> None:
        """The edge of ``v`` and what it depends on. ``here``: it is read at the place where it is made, so
        that the kernel can store it like the results that it replaces."""
        if v in self.edges:
            return
        flow = self.flow
        into, out = flow.node(), flow.node()
        if v in self.around:
            outer = self.around[v]
            cost = v.type.nbytes * sum(outer not in u.operands for u in self.users)
        else:
            cost = v.type.nbytes * (2 + len(self.users)) + 1 if here else INFINITE
        self.edges[v] = flow.edge(into, out, cost)
        op = self.makers.get(v)
        if v in self.around or op is None or not _repeatable(op):
            flow.edge(self.source, into, INFINITE)
            return
        flow.edge(self.source, into, self._work(op))
        for x in dict.fromkeys(op.operands):
            self._edge(x, here and op.prim.kind is Kind.MAP)
            flow.edge(flow.heads[self.edges[x]], into, INFINITE)

    def _work(self, op: Op) -> int:
        if op.prim.kind is not Kind.MAP:
            return 0
        return int(cost_of(op) * op.result.type.size * OPERATION_BYTES * len(self.users))


def _repeatable(op: Op) -> bool:
    return op.prim.kind is Kind.MAP or op.prim.name in ("full", "broadcast")


def _recipe(makers: dict[Value, Op], have: set[Value], target: Value) -> list[Op] | None:
    """The operations that compute ``target`` from the values ``have``, in order; None for too many."""
    chain: dict[Op, None] = {}

    def need(v: Value) -> None:
        op = makers[v]
        for x in op.operands:
            if x not in have and makers[x] not in chain:
                need(x)
        chain[op] = None

    need(target)
    return list(chain) if len(chain) <= MAX_OPS else None


def _replaced(op: Op, old: Value, new: Value) -> Op:
    """``op`` reading ``new`` where it read ``old``."""
    if old not in op.operands:
        return op
    operands = [new if v is old else v for v in op.operands]
    return Op(op.prim, operands, op.attrs, op.results, op.regions, op.loc)
