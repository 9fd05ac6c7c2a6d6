"""Which values that several passes over a row need are kept in an array, and which are computed again."""

from __future__ import annotations

from typing import Any

from weft.codegen.lower import KeptRow, Lowering
from weft.codegen.shape import Shape
from weft.ir.graph import Op, Value
from weft.ir.nest import NestPlan
from weft.ir.prims.base import Kind
from weft.ir.scalarcost import cost_of

WORTH = 8.0  # cost (in simple vector operations per element) above which a value is kept
FAR = 64  # rows from which a strip of columns is not sure to stay in the first cache where it lies

Pass = tuple[int, tuple[int, ...]]
Sinks = dict[Pass, list[Any]]


def choose_tiles(low: Lowering, plan: NestPlan, sinks: Sinks, nest: Any, shape: Shape) -> None:
    """Set ``nest.tiles``: value -> (where it is kept, the pass that fills it)."""
    passes = [k for k in sorted(sinks, key=lambda k: (k[0], len(k[1]))) if k[1]]
    nest.tiles = {}
    if len(passes) >= 2 and not plan.flat:
        tiling = _Tiling(low, plan, sinks, passes, nest, shape)
        tiling.keep_dear()
        if shape.keep_read and plan.kind == "lanes" and plan.size(plan.q) > FAR:
            tiling.keep_read()


class _Tiling:
    def __init__(
        self, low: Lowering, plan: NestPlan, sinks: Sinks, passes: list[Pass], nest: Any, shape: Shape
    ) -> None:
        self.shape = shape
        self.low, self.plan, self.sinks, self.passes, self.nest = low, plan, sinks, passes, nest
        self.producers = {r: op for op in plan.ops for r in op.results}
        self.tiles: dict[Value, tuple[KeptRow, Pass]] = nest.tiles

    def keep_dear(self) -> None:
        """Keep what costs more to compute than to read again."""
        needed = {k: self._reached(k) for k in self.passes}
        for i, first in enumerate(self.passes):
            for v in needed[first]:
                later = [k for k in self.passes[i + 1 :] if v in needed[k] and k[1] == first[1]]
                if v not in self.producers or v in self.tiles or not later or not self._fits(v, first):
                    continue
                ends = self._ends_in(v, needed[first], needed[later[0]])
                if ends and chain_cost(v, self.producers) >= WORTH:
                    self._keep(v, first, None)

    def keep_read(self) -> None:
        """Keep what is read down columns: the lines of a strip crowd into few sets of the caches.

        What is read for the last time where a value computed from it is kept gives up its place.
        """
        places = {at: (v, kept.name) for v, (kept, at) in self.tiles.items()} if self._elementwise() else {}
        needed = {k: self._reached(k) for k in self.passes}
        for i, first in enumerate(self.passes):
            for v in needed[first]:
                later = [k for k in self.passes[i + 1 :] if v in needed[k] and k[1] == first[1]]
                if v in self.producers or v in self.tiles or not later or not self._fits(v, first):
                    continue
                if all(u.prim.kind in (Kind.MAP, Kind.REDUCE) for u in self.plan.ops if v in u.operands):
                    heir, name = places.pop(later[-1], (None, None))
                    same = heir is not None and heir.type.dtype is v.type.dtype
                    self._keep(v, first, name if same else None)

    def _keep(self, v: Value, first: Pass, name: str | None) -> None:
        walked = self._walked(v)
        name = name or self.low.tile(v, 0, self.plan.size(walked))
        strides = [self.plan.size(walked[walked.index(c) + 1 :]) if c in walked else 0 for c in self._of(v)]
        self.tiles[v] = (KeptRow(name, tuple(strides), self.nest.index(v)), first)

    def _of(self, v: Value) -> tuple[int, ...]:
        return self.plan.classes[v]

    def _walked(self, v: Value) -> list[int]:
        return [c for c in self.plan.q if c in self._of(v)]

    def _fits(self, v: Value, first: Pass) -> bool:
        most = self.shape.tile_bytes if self.plan.kind == "rows" else self.shape.column_bytes
        walked = self._walked(v)
        return tuple(walked) == first[1] and self.plan.size(walked) * v.type.dtype.itemsize <= most

    def _ends_in(self, v: Value, first: set[Value], later: set[Value]) -> bool:
        """True where some reader of v in a later pass is not itself at hand in the first."""
        users = [r for r in later if r in self.producers and v in self.producers[r].operands]
        return not users or any(u not in first for u in users)

    def _elementwise(self) -> bool:
        """True where every value is read at its own place of the row only."""
        reductions = (*self.plan.row, *self.plan.final)
        return all(
            op in reductions or op.prim.name == "broadcast" or op.prim.kind in (Kind.MAP, Kind.SOURCE)
            for op in self.plan.ops
        )

    def _reached(self, key: Pass) -> set[Value]:
        """Values per element that a pass needs: back through maps with the axes of the loop to what they read
        from outside, or to what an earlier pass keeps.
        """
        seen: set[Value] = set()
        stack = [v for s in self.sinks[key] for v in ([s] if isinstance(s, Value) else s.operands)]
        while stack:
            v = stack.pop()
            op = self.producers.get(v)
            if v in seen or not set(key[1]) & set(self.plan.classes.get(v, ())):
                continue
            if op is not None and op.prim.kind is not Kind.MAP:
                continue
            seen.add(v)
            if op is not None and not (v in self.tiles and self.tiles[v][1] < key):
                stack += op.operands
        return seen


def chain_cost(v: Value, producers: dict[Value, Op]) -> float:
    """Cost of computing v again from memory."""
    total, seen, stack = 0.0, set(), [v]
    while stack:
        u = stack.pop()
        op = producers.get(u)
        if u in seen or op is None or op.prim.kind is not Kind.MAP:
            continue
        seen.add(u)
        total += cost_of(op)
        stack += op.operands
    return total
