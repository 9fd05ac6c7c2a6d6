"""Fewer bytes between kernels: what the reader can compute cheaply is not written."""

from __future__ import annotations

from collections.abc import Sequence

from weft.ir.graph import Graph, Op, Value
from weft.ir.prims.base import Kind
from weft.passes.cse import cse
from weft.passes.dce import dce

CHEAP = frozenset(
    (
        "add",
        "sub",
        "mul",
        "neg",
        "abs",
        "maximum",
        "minimum",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "where",
        "convert",
    )
)
READERS = ("loop", "contract", "conv")
MAX_OPS = 6  # operations that a reader computes again for one value


def trim(graph: Graph) -> Graph:
    """Drop kernel outputs that their readers can compute again from less.

    Expects a fused graph. An output goes where it is a short chain of cheap maps of values that are in memory
    anyway (operands and other outputs of the kernel), where all its readers are kernels that use it element
    by element, and where that moves no more bytes. Leaves the same kernels in the same order, with smaller
    signatures.
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
            order = {r: i for i, r in enumerate(makers)}
            later_first = sorted(_pairs(kernel, makers), key=lambda pair: -order[pair[0]])
            for inner, outer in later_first:
                self._consider(kernel, makers, inner, outer)
        if not any(k.changed for k in self.kernels.values()):
            return self.graph
        ops = [self.kernels[op].finish() if op in self.kernels else op for op in self.graph.ops]
        return Graph(self.graph.params, ops, self.graph.results, self.graph.name)

    def _consider(self, kernel: _Kernel, makers: dict[Value, Op], inner: Value, outer: Value) -> None:
        """Drop one output if that is possible and pays."""
        readers = self.readers.get(outer, [])
        if outer in self.wanted or not readers or any(op not in self.kernels for op in readers):
            return
        around = dict(zip(kernel.params, kernel.operands, strict=True))
        around.update(zip(kernel.region_results, kernel.results, strict=True))
        del around[inner]
        recipe = _recipe(makers, around, inner)
        if recipe is None:
            return
        chain, leaves = recipe
        users = [self.kernels[op] for op in readers]
        if not all(u.reads_by_element(u.param_of(outer)) for u in users):
            return
        saved = outer.type.nbytes * (1 + len(users))
        new = sum(v.type.nbytes for u in users for v in leaves if v not in u.operands)
        if new > saved:  # at a tie a read is cheaper than a write
            return
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


def _recipe(
    makers: dict[Value, Op], around: dict[Value, Value], target: Value
) -> tuple[list[Op], list[Value]] | None:
    """The operations that compute ``target`` from values around the kernel, in order, and those values."""
    chain: dict[Op, None] = {}
    leaves: dict[Value, None] = {}

    def need(v: Value) -> bool:
        if v in around:
            leaves[around[v]] = None
            return True
        op = makers[v]
        cheap = op.prim.kind is Kind.MAP and op.prim.name in CHEAP
        if not cheap and op.prim.name not in ("full", "broadcast"):
            return False
        if len(chain) > MAX_OPS or not all(need(x) for x in op.operands):
            return False
        chain[op] = None
        return True

    return (list(chain), list(leaves)) if need(target) and makers[target].prim.name in CHEAP else None


def _replaced(op: Op, old: Value, new: Value) -> Op:
    """``op`` reading ``new`` where it read ``old``."""
    if old not in op.operands:
        return op
    operands = [new if v is old else v for v in op.operands]
    return Op(op.prim, operands, op.attrs, op.results, op.regions, op.loc)
