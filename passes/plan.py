"""The memory plan: where every value of a lowered graph lives.

Expects a lowered graph (kernels, host and control operations, free views). Leaves the graph as it is and
says, for each value, a :class:`Place`: a parameter's buffer, a result's buffer, a constant, or an offset in
one arena that serves all temporaries of a call. Offsets are multiples of 64 (of what the device wants, on a
GPU) and reused best-fit as values die; an elementwise kernel may write over an operand that dies with it; a
donated result is written straight into the parameter's buffer where nothing reads the old value later, and
through a temporary otherwise.
Results that are parameters, constants or one another are copied at the end, so that results never share
memory.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from weft.ir.graph import Graph, Op, Value
from weft.ir.prims.base import Kind
from weft.ir.record import field, record

ALIGN = 64


class Place(NamedTuple):
    """``kind`` is param, result, const or arena; ``index`` the position, or the byte offset in the arena."""

    kind: str
    index: int

    def __str__(self) -> str:
        return f"{self.kind}+{self.index}" if self.kind == "arena" else f"{self.kind} {self.index}"


class Copy(NamedTuple):
    """``nbytes`` bytes moved from one place to another after the last operation."""

    source: Place
    target: Place
    nbytes: int


@record
class Plan:
    """The plan of one graph. ``scratch`` gives the arena offset of an operation's scratch memory by its
    index; ``copies`` run in order at the end; ``donated`` maps a result to the parameter it is written
    into.
    """

    graph: Graph
    places: dict[Value, Place] = field(default_factory=dict)
    scratch: dict[int, int] = field(default_factory=dict)
    copies: list[Copy] = field(default_factory=list)
    donated: dict[int, int] = field(default_factory=dict)
    inplace: dict[Value, Value] = field(default_factory=dict)
    lives: dict[Value, tuple[int, int]] = field(default_factory=dict)
    arena_bytes: int = 0
    temporary_bytes: int = 0

    def __str__(self) -> str:
        return "\n".join(_text(self))


def is_free_view(op: Op) -> bool:
    """An operation whose result is the operand's memory under another shape (all values are contiguous)."""
    return op.prim.kind is Kind.MOVE and op.prim.name == "reshape"


def is_constant(op: Op) -> bool:
    """An operation whose result is literal data."""
    return op.prim.kind is Kind.SOURCE and op.prim.name == "constant"


def plan_memory(
    graph: Graph,
    donate: Mapping[int, int] | None = None,
    scratch: Mapping[int, int] | None = None,
    inplace: Mapping[int, Collection[tuple[int, int]]] | None = None,
    align: int = ALIGN,
) -> Plan:
    """Place every value. ``donate`` maps results to parameters whose buffers they take; by operation index,
    ``scratch`` gives bytes of scratch memory and ``inplace`` the pairs (operand, result) that may share
    memory. Offsets in the arena are multiples of ``align``. ValueError for a donation whose types differ or
    that is made twice.
    """
    return _Planner(graph, dict(donate or {}), scratch or {}, inplace or {}, align).run()


class _Planner:
    """Liveness, then one walk in program order that allocates and frees."""

    def __init__(
        self,
        graph: Graph,
        donate: dict[int, int],
        scratch: Mapping[int, int],
        inplace: Mapping[int, Collection[tuple[int, int]]],
        align: int,
    ) -> None:
        self.graph, self.donate, self.scratch, self.inplace = graph, donate, scratch, inplace
        self.plan = Plan(graph, donated=donate)
        self.arena = _Arena(align)
        self.root: dict[Value, Value] = {p: p for p in graph.params}
        self.born: dict[Value, int] = dict.fromkeys(graph.params, -1)
        self.last: dict[Value, int] = {}
        self.fixed: dict[Value, Place] = {p: Place("param", i) for i, p in enumerate(graph.params)}
        self.moved: set[Value] = set()  # values whose memory an in-place result has taken over
        self.late: list[int] = []  # results that a copy at the end must bring home

    def run(self) -> Plan:
        _check_donation(self.graph, self.donate)
        self._liveness()
        self._place_results()
        self._walk()
        for v, root in self.root.items():
            self.plan.places[v] = self.fixed[root]
        self._final_copies()
        self.plan.arena_bytes = self.arena.size
        return self.plan

    def _liveness(self) -> None:
        constants = 0
        for i, op in enumerate(self.graph.ops):
            for v in op.operands:
                self.last[self.root[v]] = i
            if is_free_view(op):
                self.root[op.result] = self.root[op.operands[0]]
                continue
            for r in op.results:
                self.root[r], self.born[r] = r, i
            if is_constant(op):
                self.fixed[op.result] = Place("const", constants)
                constants += 1

    def _place_results(self) -> None:
        """Give results their own buffers; what is left over is copied at the end, and so lives until then."""
        end = len(self.graph.ops)
        for i, r in enumerate(self.graph.results):
            root = self.root[r]
            if i not in self.donate and root not in self.fixed:
                self.fixed[root] = Place("result", i)
            elif self.fixed.get(root) != Place("param", self.donate.get(i, -1)):
                self.late.append(i)
        for i in self.late:
            self.last[self.root[self.graph.results[i]]] = end
        self.late = [i for i in self.late if i not in self.donate or not self._donate_straight(i)]

    def _donate_straight(self, i: int) -> bool:
        """Compute result ``i`` in its parameter's buffer if nothing reads the old value later."""
        j = self.donate[i]
        root, param = self.root[self.graph.results[i]], self.graph.params[j]
        if root in self.fixed:
            return False
        born, last = self.born[root], self.last.get(param, -1)
        if last > born or (last == born and not self._may_overwrite(born, param, root)):
            return False
        self.fixed[root] = Place("param", j)
        if last == born:
            self.plan.inplace[root] = param
        return True

    def _may_overwrite(self, i: int, operand: Value, result: Value) -> bool:
        """Whether operation ``i`` may write ``result`` over ``operand``, wherever it reads it."""
        op = self.graph.ops[i]
        pairs, at = self.inplace.get(i, ()), op.results.index(result)
        if operand.type.nbytes != result.type.nbytes:
            return False
        return all((k, at) in pairs for k, v in enumerate(op.operands) if self.root[v] is operand)

    def _walk(self) -> None:
        deaths: dict[int, list[Value]] = {}
        for v, t in self.last.items():
            deaths.setdefault(t, []).append(v)
        for i, op in enumerate(self.graph.ops):
            if not is_free_view(op):
                self._allocate_results(i, op)
            extra = self.scratch.get(i, 0)
            if extra:
                self.plan.scratch[i] = self.arena.take(extra)
                self.arena.release(self.plan.scratch[i], extra)
            dying = deaths.get(i, []) + [r for r in op.results if self.root[r] is r and r not in self.last]
            for v in dying:
                place = self.fixed[v]
                if place.kind == "arena" and v not in self.moved:
                    self.arena.release(place.index, v.type.nbytes)

    def _allocate_results(self, i: int, op: Op) -> None:
        for r in op.results:
            if r in self.fixed:
                continue
            self.plan.lives[r] = (i, max(i, self.last.get(r, i)))
            self.plan.temporary_bytes += r.type.nbytes
            victim = self._victim(i, op, r)
            if victim is None:
                self.fixed[r] = Place("arena", self.arena.take(r.type.nbytes))
            else:
                self.fixed[r] = self.fixed[victim]
                self.plan.inplace[r] = victim
                self.moved.add(victim)

    def _victim(self, i: int, op: Op, result: Value) -> Value | None:
        """An operand that dies here and whose memory ``result`` may take."""
        for v in op.operands:
            root = self.root[v]
            place = self.fixed.get(root)
            if place is None or place.kind != "arena" or self.last[root] != i or root in self.moved:
                continue
            if self._may_overwrite(i, root, result):
                return root
        return None

    def _final_copies(self) -> None:
        """Results that are still elsewhere. A parameter that a donation overwrites is saved to the arena."""
        places, results = self.plan.places, self.graph.results
        overwritten = {Place("param", self.donate[i]) for i in self.late if i in self.donate}
        first, last = [], []
        for i in self.late:
            value = results[i]
            source, nbytes = places[value], value.type.nbytes
            if i not in self.donate:
                first.append(Copy(source, Place("result", i), nbytes))
                continue
            if source in overwritten:
                saved = Place("arena", self.arena.take(nbytes))
                first.append(Copy(source, saved, nbytes))
                source = saved
            last.append(Copy(source, Place("param", self.donate[i]), nbytes))
        self.plan.copies = [c for c in first + last if c.nbytes]


def _check_donation(graph: Graph, donate: Mapping[int, int]) -> None:
    if len(set(donate.values())) != len(donate):
        raise ValueError("donate: two results are written into one param")
    for i, j in donate.items():
        if not (0 <= i < len(graph.results) and 0 <= j < len(graph.params)):
            raise ValueError(f"donate: no result {i} or no param {j}")
        if graph.results[i].type != graph.params[j].type:
            raise ValueError(
                f"donate: result {i} is {graph.results[i].type}, param {j} is {graph.params[j].type}"
            )


class _Arena:
    """Offsets with best-fit reuse: sorted free ranges, neighbours merged."""

    def __init__(self, align: int) -> None:
        self.align = align
        self.size = 0
        self.free: list[tuple[int, int]] = []  # (offset, bytes)

    def take(self, nbytes: int) -> int:
        nbytes = self._round(nbytes)
        fits = [f for f in self.free if f[1] >= nbytes]
        if fits:
            offset, room = min(fits, key=lambda f: f[1])
            self.free.remove((offset, room))
            if room > nbytes:
                insort(self.free, (offset + nbytes, room - nbytes))
            return offset
        if self.free and sum(self.free[-1]) == self.size:  # grow the last free range
            offset, _ = self.free.pop()
        else:
            offset = self.size
        self.size = offset + nbytes
        return offset

    def release(self, offset: int, nbytes: int) -> None:
        insort(self.free, (offset, self._round(nbytes)))
        merged: list[tuple[int, int]] = []
        for start, room in self.free:
            if merged and sum(merged[-1]) == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + room)
            else:
                merged.append((start, room))
        self.free = merged

    def _round(self, nbytes: int) -> int:
        return max(self.align, -(-nbytes // self.align) * self.align)


def _names(graph: Graph) -> dict[Value, str]:
    values: Sequence[Value] = [*graph.params, *(r for op in graph.ops for r in op.results)]
    return {v: v.name or f"%{i}" for i, v in enumerate(values)}


def _text(plan: Plan) -> list[str]:
    names = _names(plan.graph)
    out = [f"arena {plan.arena_bytes} bytes, temporaries {plan.temporary_bytes} bytes"]
    for op in plan.graph.ops:
        for r in op.results:
            line = f"  {names[r]}: {r.type} at {plan.places[r]}"
            if r in plan.lives:
                line += " live {}-{}".format(*plan.lives[r])
            if r in plan.inplace:
                line += f" over {names[plan.inplace[r]]}"
            out.append(line)
    out += [f"  scratch of op {i} at arena+{at}" for i, at in plan.scratch.items()]
    out += [f"  copy {c.source} -> {c.target} ({c.nbytes} bytes)" for c in plan.copies]
    return out
