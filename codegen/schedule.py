"""From a fused graph to kernel IR: a nest per connected group, a phase that combines partial results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from weft.codegen import lower_moves as _rules  # noqa: F401  (fills the rules of the lowering)
from weft.codegen.components import Group, connected, merge_alike
from weft.codegen.lower import ZERO, IndexTuple, KeptRow, Lowering, Scope, fold_dtype, linear
from weft.codegen.reshape_nest import block_transposed, coalesce, jam_rows, split_last
from weft.codegen.shape import CPU, Shape
from weft.codegen.tiling import choose_tiles
from weft.ir.graph import Graph, Op, Value
from weft.ir.loops import (
    FOLD_OF,
    Accumulate,
    Buffer,
    Fold,
    Index,
    Kernel,
    Loop,
    Nest,
    Partial,
    Store,
)
from weft.ir.nest import Refused, analyse, one_by_one, reduced_axes

COLUMNS_CHUNK = 64  # least columns in one unit where each lane walks down a column


class Scheduler:
    """Builds the :class:`Kernel` of a region."""

    def __init__(self, region: Graph, name: str, shape: Shape | None = None) -> None:
        self.region, self.name, self.shape = region, name, shape or CPU
        self.producers = region.producers()
        self.buffers = [Buffer(f"x{i}", p.type.dtype, p.type.size, "in") for i, p in enumerate(region.params)]
        self.named: dict[Value, str] = {p: f"x{i}" for i, p in enumerate(region.params)}
        self.stores: dict[Value, list[str]] = {}
        for i, r in enumerate(region.results):
            self.buffers.append(Buffer(f"y{i}", r.type.dtype, r.type.size, "out"))
            self.stores.setdefault(r, []).append(f"y{i}")
        self.counter = [0]
        self.first: list[Nest] = []
        self.second: list[Nest] = []

    def build(self) -> Kernel:
        for group in self._groups():
            self._nest(group)
        phases = [self.first, self.second] if self.second else [self.first]
        return Kernel(self.name, self.buffers, phases)

    def _groups(self) -> list[Group]:
        """Connected parts, each with its plan; without one, each result by itself."""
        parts = connected(self.region.ops, list(self.stores))
        groups: list[Group] = []
        for ops, own in parts:
            made = {r for op in own for r in op.results}
            outputs = [v for v in self.stores if v in made]
            if outputs:
                try:
                    groups.append(Group(analyse(ops, outputs), outputs))
                except Refused:
                    groups += [Group(one_by_one(ops, v), [v]) for v in outputs]
        return merge_alike(groups)

    # -- one nest

    def _nest(self, group: Group) -> None:
        builder = _NestBuilder(self, group, {})
        nest = builder.run()
        splits = builder.wanted_splits()
        if splits:  # again, with loops fine enough for the reshapes inside
            builder = _NestBuilder(self, group, splits)
            nest = builder.run()
        builder.finish(nest)


class _NestBuilder:
    """The nest of one group."""

    def __init__(self, scheduler: Scheduler, group: Group, splits: dict[int, set[int]]) -> None:
        self.s, self.plan, self.outputs = scheduler, group.plan, group.outputs
        self.low = Lowering(scheduler.producers, scheduler.named, scheduler.counter)
        self.splits = splits
        self.parts = {c: self._split(c, "p") for c in self.plan.p} | {
            c: self._split(c, "q") for c in self.plan.q
        }
        self.position = {c: _position(parts) for c, parts in self.parts.items()}
        self.partials: dict[Value, tuple[str, int]] = {}
        self.scratch: list[Buffer] = []

    def _split(self, c: int, stem: str) -> list[tuple[str, int]]:
        """The loops of a class, outermost first: several where a reshape needs it in pieces."""
        parts, left = [], self.plan.extent[c]
        for k in sorted(self.splits.get(c, ())):
            inner = prod(e for _, e in parts)
            if k % inner == 0 and k // inner > 1 and left % (k // inner) == 0:
                parts.insert(0, (self.low.fresh(stem), k // inner))
                left //= k // inner
        return [(self.low.fresh(stem), left), *parts]

    def index(self, v: Value) -> IndexTuple:
        return self.index_of(self.plan.classes[v])

    def index_of(self, classes: Sequence[int]) -> IndexTuple:
        return tuple(ZERO if c < 0 else self.position[c] for c in classes)

    def axes(self, classes: Sequence[int]) -> list[tuple[str, int]]:
        return [part for c in classes for part in self.parts[c]]

    def wanted_splits(self) -> dict[int, set[int]]:
        """The divisions of loop variables that the lowering had to compute, by class."""
        out: dict[int, set[int]] = {}
        for c, parts in self.parts.items():
            for name, extent in parts:
                found = {k for k in self.low.divided.get(name, ()) if extent % k == 0 and k < extent}
                if found and len(parts) == 1:
                    out[c] = found
        return out

    def run(self) -> Nest:
        """Build the nest."""
        plan = self.plan
        nest = Nest(self.axes(plan.p), plan.kind if plan.p else "rows", 1)
        scope = self.low.open(nest.axes)
        self._partials(nest)
        sinks = self._sinks()
        choose_tiles(self.low, plan, sinks, self, self.s.shape)
        for key in sorted(sinks, key=lambda k: (k[0], len(k[1]))):
            self._pass(key, sinks[key], scope)
        nest.body = scope.body
        coalesce(nest, self.low)
        if plan.flat:
            split_last(nest, self.low)
        if self.s.shape.blocked:
            block_transposed(nest, self.low)
            jam_rows(nest, self.low)
        self._chunk(nest)
        return nest

    def finish(self, nest: Nest) -> None:
        """Make the nest part of the kernel, with what follows from its partial results."""
        self.s.first.append(nest)
        self.s.buffers += self.scratch
        self._combine(nest)

    def _chunk(self, nest: Nest) -> None:
        shape = self.s.shape
        if nest.kind == "lanes":
            down = max((prod(e for _, e in s.axes) for s in nest.body if _walks(s)), default=1)
            long = shape.lanes_chunk
            most = max(COLUMNS_CHUNK, shape.unit_elements // down // 64 * 64) if down > 1 else long
            nest.chunk = min(most, long, -(-nest.axes[-1][1] // 64) * 64)
        elif nest.partials:
            within = max((_iterations(s) for s in nest.body if isinstance(s, Loop)), default=1)
            room = shape.partial_room // max(p.size for p in nest.partials)
            most = min(room, max(1, shape.abreast // within))
            units = max(shape.partial_units, min(-(-nest.points // shape.partial_rows), most))
            nest.chunk = max(-(-nest.points // units), shape.unit_elements // within, 1)

    # -- what the nest must do, by pass

    def _depth(self) -> dict[Value, int]:
        """For each value how many passes over the row come before it is known."""
        depth: dict[Value, int] = {}
        row = set(self.plan.row)
        for op in self.plan.ops:
            d = max((depth.get(x, 0) for x in op.operands), default=0) + (op in row)
            depth.update(dict.fromkeys(op.results, d))
        return depth

    def _sinks(self) -> dict[tuple[int, tuple[int, ...]], list[Any]]:
        """(pass, loop classes) -> reductions and stores to do there; loop classes () is the row level."""
        depth, plan = self._depth(), self.plan
        sinks: dict[tuple[int, tuple[int, ...]], list[Any]] = {}

        def walked(classes: Sequence[int]) -> tuple[int, ...]:
            return tuple(c for c in plan.q if c in classes)

        for op in (*plan.row, *plan.final):
            folded = {plan.operand[op][a] for a in reduced_axes(op)}
            across = op in plan.final
            loop = walked(plan.operand[op]) if across else walked(tuple(folded))
            sinks.setdefault((depth.get(op.operands[0], 0), loop), []).append(op)
        last = max(depth.values(), default=0) + 1
        for v in self.outputs:
            if v not in plan.post:
                loop = walked(plan.classes[v])
                sinks.setdefault((depth[v] if loop else last, loop), []).append(v)
        return sinks

    def _pass(self, key: tuple[int, tuple[int, ...]], sinks: list[Any], scope: Scope) -> None:
        """One walk over the row (or none, for classes ()): fold and store what is known then."""
        classes = key[1]
        folds = [s for s in sinks if isinstance(s, Op) and self._folds(s, classes)]

        def effects() -> None:
            for s in sinks:
                if isinstance(s, Value):
                    self._store(s)
                elif s not in folds:
                    self._accumulate(s, self.index_of(self.plan.operand[s]))
            self._fill_tiles(key)

        if not classes:
            effects()
            return
        kind = "vector" if self.plan.kind == "rows" else "serial"
        loop = Loop(self.axes(classes), kind)
        names = self.low.fold_loop(
            loop, 0, [(op, self.index_of(self.plan.operand[op]), None) for op in folds], effects
        )
        for op, name in zip(folds, names, strict=True):
            if op in self.plan.final:
                self._add_partial(op, name)
            else:
                scope.memo[(op.result, self.index(op.result), None)] = name

    def _folds(self, op: Op, classes: tuple[int, ...]) -> bool:
        """True where the loop folds, False where each iteration has a partial result of its own."""
        return bool(classes) and not (
            op in self.plan.final and set(self.plan.classes[op.result]) & set(classes)
        )

    def _fill_tiles(self, key: Any) -> None:
        filled = [(v, kept) for v, (kept, at) in self.tiles.items() if at == key]
        for v, kept in filled:
            source = self.low.value(v, self.index(v))
            self.low.scopes[-1].body.append(Store(kept.name, kept.where(self.index(v)), source))
        # readers of later passes take the tile; this pass keeps its registers
        self.low.tiles.update(filled)

    def _store(self, v: Value) -> None:
        index = self.index(v)
        name = self.low.value(v, index)
        for buffer in self.s.stores[v]:
            self.low.scopes[-1].body.append(Store(buffer, linear(index, v.type.shape), name))

    tiles: dict[Value, tuple[KeptRow, Any]]

    # -- results across rows

    def _partials(self, nest: Nest) -> None:
        for op in self.plan.final:
            dtype = fold_dtype(FOLD_OF[op.prim.name], op.operands[0].type.dtype)
            size = op.result.type.size
            name = self.low.fresh("s")
            self.scratch.append(Buffer(name, dtype, 0, "scratch"))
            self.partials[op.result] = (name, size)
            nest.partials.append(Partial(name, size, FOLD_OF[op.prim.name], dtype))
        if nest.partials:
            self.low.level["u"] = 0

    def _accumulate(self, op: Op, index: IndexTuple) -> None:
        self._add_partial(op, self.low.value(op.operands[0], index))

    def _add_partial(self, op: Op, name: str) -> None:
        buffer, size = self.partials[op.result]
        kind = FOLD_OF[op.prim.name]
        source = self.low.convert(name, fold_dtype(kind, op.operands[0].type.dtype))
        where = Index.var("u") * size + linear(self.index(op.result), op.result.type.shape)
        self.low.scopes[-1].body.append(Accumulate(buffer, where, kind, source))

    def _combine(self, nest: Nest) -> None:
        """The second phase: fold the units' partial results and compute what follows from them."""
        if not nest.partials:
            return
        units = nest.units
        for b in self.s.buffers:
            for p in nest.partials:
                if b.name == p.buffer:
                    b.size = units * p.size
        shapes: dict[tuple[int, ...], list[Value]] = {}
        for v in self.outputs:
            if v in self.plan.post:
                shapes.setdefault(v.type.shape, []).append(v)
        for shape, values in shapes.items():
            self._combine_shape(nest, units, shape, values)

    def _combine_shape(self, nest: Nest, units: int, shape: tuple[int, ...], values: list[Value]) -> None:
        low = Lowering(self.s.producers, self.s.named, self.s.counter)
        axes = [(low.fresh("p"), d) for d in shape]
        walked = [(v, d) for v, d in axes if d > 1]
        last = Nest(walked, "lanes" if walked else "rows", 1)
        scope = low.open(walked)
        for op in self.plan.final:
            low.replaced[op.result] = _combiner(low, op, *self.partials[op.result], units, bool(walked))
        index = tuple(Index.var(v) if d > 1 else ZERO for v, d in axes)
        for v in values:
            name = low.value(v, index)
            for buffer in self.s.stores[v]:
                scope.body.append(Store(buffer, linear(index, shape), name))
        last.body = scope.body
        coalesce(last, low)
        self._chunk(last)
        self.s.second.append(last)


def _iterations(loop: Loop) -> int:
    inner = max((_iterations(s) for s in loop.body if isinstance(s, Loop)), default=1)
    return prod(e for _, e in loop.axes) * inner


def _walks(s: Any) -> bool:
    return isinstance(s, Loop) and s.kind == "serial" and bool(s.folds)


def _position(parts: Sequence[tuple[str, int]]) -> Index:
    """The position along a class from the variables of its loops."""
    out = ZERO
    for name, extent in parts:
        out = out * extent + Index.var(name)
    return out


def _combiner(
    low: Lowering, op: Op, buffer: str, size: int, units: int, lanes: bool
) -> Callable[[IndexTuple], str]:
    """How a reduced value is read in the second phase: a fold over the units."""
    kind = FOLD_OF[op.prim.name]
    dtype = fold_dtype(kind, op.operands[0].type.dtype)

    def read(index: IndexTuple) -> str:
        at = linear(index, op.result.type.shape)
        depth = low.depth_of(at.names())
        k = low.fresh("k")
        loop = Loop([(k, units)], "serial" if lanes else "vector")
        outer, low.scopes = low.scopes, low.scopes[: depth + 1]
        inner = low.open(loop.axes)
        part = low.load(buffer, dtype, Index.var(k) * size + at)
        loop.folds.append(Fold(low.fresh("f"), kind, part, dtype))
        loop.body = inner.body
        low.scopes = outer
        low.scopes[depth].body.append(loop)
        name = loop.folds[0].name
        low.level[name], low.dtypes[name] = depth, dtype
        return low.convert(name, op.result.type.dtype)

    return read


def schedule(region: Graph, name: str, shape: Shape | None = None) -> Kernel:
    """The kernel IR of a fused graph of form ``loop``. Raises Unsupported."""
    return Scheduler(region, name, shape).build()
