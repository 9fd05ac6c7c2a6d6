"""Which values that several passes over a row need are kept in an array, and which are computed again."""

from __future__ import annotations

from typing import Any

from weft.codegen.lower import Lowering
from weft.ir.graph import Op, Value
from weft.ir.nest import NestPlan
from weft.ir.prims.base import Kind
from weft.ir.scalarcost import cost_of

TILE_BYTES = 256 << 10
WORTH = 8.0  # cost (in simple vector operations per element) above which a value is kept


def choose_tiles(low: Lowering, plan: NestPlan, sinks: dict[Any, list[Any]], nest: Any) -> None:
    """Set ``nest.tiles``: value -> (array, strides, pass that fills it)."""
    nest.tiles, nest.pending = {}, []
    passes = [k for k in sorted(sinks, key=lambda k: (k[0], len(k[1]))) if k[1]]
    if plan.kind != "rows" or len(passes) < 2:
        return
    producers = {r: op for op in plan.ops for r in op.results}
    needed = {k: _reached(k, sinks, producers, plan) for k in passes}
    for i, first in enumerate(passes):
        for v in needed[first]:
            later = [k for k in passes[i + 1 :] if v in needed[k] and k[1] == first[1]]
            if (
                v in nest.tiles
                or not later
                or not _outermost(v, needed[later[0]], needed[first], producers, plan)
            ):
                continue
            walked = [c for c in plan.q if c in plan.classes[v]]
            size = plan.size(walked)
            if tuple(walked) != first[1] or size * v.type.dtype.itemsize > TILE_BYTES:
                continue
            if chain_cost(v, producers, plan) >= WORTH:
                strides = tuple(
                    plan.size(walked[walked.index(c) + 1 :]) if c in walked else 0 for c in plan.classes[v]
                )
                nest.tiles[v] = (low.tile(v, 0, size), strides, first)


def _sources(key: Any, sinks: dict[Any, list[Any]]) -> list[Value]:
    out = []
    for s in sinks[key]:
        out += [s] if isinstance(s, Value) else s.operands
    return out


def _reached(key: Any, sinks: dict[Any, list[Any]], producers: dict[Value, Op], plan: NestPlan) -> set[Value]:
    """Values computed per element in a pass: back through maps with the axes of the loop."""
    seen: set[Value] = set()
    stack = _sources(key, sinks)
    while stack:
        v = stack.pop()
        op = producers.get(v)
        if v in seen or op is None or op.prim.kind is not Kind.MAP or not set(key[1]) & set(plan.classes[v]):
            continue
        seen.add(v)
        stack += op.operands
    return seen


def _outermost(
    v: Value, later: set[Value], first: set[Value], producers: dict[Value, Op], plan: NestPlan
) -> bool:
    """True where some reader of v in the later pass is not itself available from the first."""
    users = [r for r in later if v in producers[r].operands]
    return not users or any(u not in first for u in users)


def chain_cost(v: Value, producers: dict[Value, Op], plan: NestPlan) -> float:
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
