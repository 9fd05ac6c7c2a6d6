"""The connected parts of a fused graph, each with its plan: what becomes a nest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weft.ir.graph import Op, Value
from weft.ir.nest import NestPlan, Refused, analyse
from weft.ir.prims.base import Kind
from weft.ir.record import record

SHARED = 1024  # elements of an operand for which two nests are worth merging


@record(slots=True)
class Group:
    """A connected part of the kernel: its plan and the results it must store."""

    plan: NestPlan
    outputs: list[Value]


def connected(ops: Sequence[Op], outputs: Sequence[Value]) -> list[tuple[list[Op], set[Op]]]:
    """Connected components through values computed inside: all operations in program order, and those it
    owns.

    Light operations (constants, scalar arithmetic and index changes that start from operands) count for each
    of their users alone, so that sharing one joins nothing.
    """
    producers = {r: op for op in ops for r in op.results}
    light: set[Op] = set()
    for op in ops:
        if _is_light(op) and all(x not in producers or producers[x] in light for x in op.operands):
            light.add(op)
    wanted = {producers[v] for v in outputs if v in producers}
    group: dict[Op, int] = {}
    parent: list[int] = []

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for op in ops:
        if op in light and op not in wanted:
            continue
        group[op] = len(parent)
        parent.append(group[op])
        for x in op.operands:
            made = producers.get(x)
            if made is not None and made not in light:
                a, b = find(group[made]), find(group[op])
                parent[max(a, b)] = min(a, b)
    parts: dict[int, set[Op]] = {}
    for op in group:
        parts.setdefault(find(group[op]), set()).add(op)
    return [(_with_light(part, producers, ops), part) for part in parts.values()]


def _is_light(op: Op) -> bool:
    kind = op.prim.kind
    if kind is Kind.MAP:
        return op.result.type.size == 1
    return kind is Kind.SOURCE or (kind is Kind.MOVE and len(op.operands) == 1)


def _with_light(part: set[Op], producers: dict[Value, Op], ops: Sequence[Op]) -> list[Op]:
    """A part and all that it reads, in program order."""
    found = set(part)
    stack = [x for op in part for x in op.operands]
    while stack:
        made = producers.get(stack.pop())
        if made is not None and made not in found:
            found.add(made)
            stack += made.operands
    return [op for op in ops if op in found]


def merge_alike(groups: list[Group]) -> list[Group]:
    """Groups that walk equal extents and read a common operand share one nest, so that it is read once."""
    out: list[Group] = []
    for g in groups:
        for k, other in enumerate(out):
            merged = _merge_two(other, g)
            if merged is not None:
                out[k] = merged
                break
        else:
            out.append(g)
    return out


def _merge_two(a: Group, b: Group) -> Group | None:
    if not (_large_reads(a) & _large_reads(b)) or _walk(a) != _walk(b):
        return None
    ops = list(dict.fromkeys([*a.plan.ops, *b.plan.ops]))
    try:
        plan = analyse(ops, [*a.outputs, *b.outputs])
    except Refused:
        return None
    merged = Group(plan, [*a.outputs, *b.outputs])
    return merged if _walk(merged) == _walk(a) else None


def _walk(g: Group) -> tuple[Any, ...]:
    """What a nest walks: its kind and the extents of rows and of what is inside them."""
    plan = g.plan
    return plan.kind, plan.flat, [plan.extent[c] for c in plan.p], [plan.extent[c] for c in plan.q]


def _large_reads(g: Group) -> set[Value]:
    made = {r for op in g.plan.ops for r in op.results}
    return {x for op in g.plan.ops for x in op.operands if x not in made and x.type.size >= SHARED}
