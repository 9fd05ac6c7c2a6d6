"""How a connected group of operations becomes one loop nest: which axes are rows, which lie within a row.

Dimensions of all values are put into classes (a map identifies the dimensions of its operands and its
result, a broadcast those it keeps, and so on); a class is one loop. Reductions whose results are spread out
again force their kept classes to be the *row* classes P; the rest, Q, is walked inside a row, as often as
reductions depend on each other. Reductions at the end of the group may also cross rows: their partial
results are combined in a second phase.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

from weft.ir.graph import Op, Value
from weft.ir.prims.base import Kind
from weft.ir.record import field, record

Classes = tuple[int, ...]
SMALL = 16  # reductions over at most this many elements that nothing else walks are done in place
BARRIER = 1 << 15  # elements of a row up to which too few rows for all threads are accepted
ROWS = 4  # rows that are enough for any row length
COLUMNS = 512  # the same where vectors run across them
PIECE, STREAM = 256, 1 << 15  # elements of a run through memory: worth a loop of their own, and streamed well
LARGE = 1 << 23  # elements that no cache holds
TALL = 1 << 10  # elements of a column of which so many stand side by side that they crowd in the caches
PARTIAL_BYTES = 256 << 10  # largest result that every unit accumulates for itself


class Refused(Exception):
    """The group cannot be one nest; the message says why."""


@record(slots=True)
class NestPlan:
    """``kind``: rows (vectors inside a row) or lanes (vectors across rows, along the last class of ``p``).

    ``row``: reductions finished within a row; ``final``: those accumulated across rows; ``post``: values
    computed from them. ``classes``: the class of each dimension (-1 for extent one); ``operand``: the same
    for the operand of each reduction. ``flat``: accumulate point by point over all classes (the schedule
    then splits the last).
    """

    ops: list[Op]
    classes: dict[Value, Classes]
    operand: dict[Op, Classes]
    extent: dict[int, int]
    p: list[int] = field(default_factory=list)
    q: list[int] = field(default_factory=list)
    kind: str = "lanes"
    row: list[Op] = field(default_factory=list)
    final: list[Op] = field(default_factory=list)
    post: set[Value] = field(default_factory=set)
    flat: bool = False

    def size(self, classes: Iterable[int]) -> int:
        return prod(self.extent[c] for c in classes)


class _Classes:
    """Union-find over the dimensions of values computed in the group."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.extents: list[int] = []

    def new(self, extent: int) -> int:
        if extent == 1:
            return -1
        self.parent.append(len(self.parent))
        self.extents.append(extent)
        return len(self.parent) - 1

    def find(self, c: int) -> int:
        while self.parent[c] != c:
            self.parent[c] = self.parent[self.parent[c]]
            c = self.parent[c]
        return c

    def join(self, a: int, b: int) -> None:
        if a < 0 or b < 0:
            return
        a, b = self.find(a), self.find(b)
        if a != b and self.extents[a] == self.extents[b]:
            self.parent[max(a, b)] = min(a, b)


def reduced_axes(op: Op) -> tuple[int, ...]:
    """The axes that a REDUCE op folds."""
    return op.attrs["axes"] if "axes" in op.attrs else (op.attrs["axis"],)


def _kept_dims(op: Op, operand: int) -> Iterable[tuple[int, int]]:
    """Pairs (operand dim, result dim) that run together in a movement or indexed read."""
    shape, out, a = op.operands[operand].type.shape, op.result.type.shape, op.attrs
    name = op.prim.name
    dims = range(len(shape))
    if name == "broadcast":
        return [(d, a["axes"][d]) for d in dims if shape[d] == out[a["axes"][d]]]
    if name == "permute":
        return [(p, i) for i, p in enumerate(a["perm"])]
    if name == "reshape":
        return _reshape_dims(shape, out)
    if name == "flip":
        return [(d, d) for d in dims if d not in a["axes"]]
    if name == "concatenate":
        return [(d, d) for d in dims if d != a["axis"]]
    if name == "gather":
        lead = len(op.operands[1].type.shape) - 1
        if operand == 1:
            return [(d, d) for d in range(lead)]
        return [(d, lead + k) for k, d in enumerate(x for x in dims if x not in a["axes"])]
    # slice, pad, update_slice, copy, take_along: a dim of unchanged extent that is not shifted
    return [(d, d) for d in dims if shape[d] == out[d] and not _shifted(op, operand, d)]


def _shifted(op: Op, operand: int, d: int) -> bool:
    a = op.attrs
    if op.prim.name == "pad":
        return bool(a["lo"][d] or a["hi"][d])
    if op.prim.name == "take_along":
        return operand == 0 and d == a["axis"]
    return False


def _reshape_dims(shape: Sequence[int], out: Sequence[int]) -> list[tuple[int, int]]:
    """Dims that a reshape leaves alone: equal extents with equal products before them."""
    found, i, j, n, m = [], 0, 0, 1, 1
    while i < len(shape) and j < len(out):
        if n == m and shape[i] == out[j] and shape[i] != 1:
            found.append((i, j))
            n, m, i, j = n * shape[i], m * out[j], i + 1, j + 1
        elif shape[i] == 1:
            i += 1
        elif out[j] == 1:
            j += 1
        elif n * shape[i] <= m * out[j]:
            n, i = n * shape[i], i + 1
        else:
            m, j = m * out[j], j + 1
    return found


def analyse(ops: Sequence[Op], outputs: Iterable[Value]) -> NestPlan:
    """The plan of a connected group whose values ``outputs`` are wanted outside. Raises :class:`Refused`."""
    plan = _classify(ops, shared=True)
    if _clash(plan):  # a parameter is read along two different pairs of loops: each reading for itself
        plan = _classify(ops, shared=False)
        if _clash(plan):
            raise Refused("one loop would have to walk two dimensions of a value at once")
    made = {r for op in ops for r in op.results}
    outputs = [v for v in outputs if v in made]
    _split_reductions(plan, outputs)
    _choose_axes(plan, outputs)
    _check_outputs(plan, outputs)
    _check_rows(plan)
    return plan


def _classify(ops: Sequence[Op], shared: bool) -> NestPlan:
    """``shared``: a parameter has one class per dimension, whoever reads it."""
    uf = _Classes()
    of: dict[Value, list[int]] = {}
    operand: dict[Op, list[int]] = {}
    if shared:
        made = {r for op in ops for r in op.results}
        of |= {x: [uf.new(d) for d in x.type.shape] for op in ops for x in op.operands if x not in made}
    for op in ops:
        for r in op.results:
            of[r] = [uf.new(d) for d in r.type.shape]
        kind = op.prim.kind
        if kind is Kind.MAP:
            _join_map(uf, of, op)
        elif kind is Kind.REDUCE:
            _join_reduce(uf, of, operand, op)
        elif kind in (Kind.MOVE, Kind.GATHER):
            for k, x in enumerate(op.operands):
                if x in of and x.type.ndim:
                    for d, r in _kept_dims(op, k):
                        uf.join(of[x][d], of[op.result][r])
    roots = {v: tuple(uf.find(c) if c >= 0 else -1 for c in cs) for v, cs in of.items()}
    folded = {o: tuple(uf.find(c) if c >= 0 else -1 for c in cs) for o, cs in operand.items()}
    return NestPlan(list(ops), roots, folded, dict(enumerate(uf.extents)))


def _join_map(uf: _Classes, of: dict[Value, list[int]], op: Op) -> None:
    for x in op.operands:
        if x in of:
            for a, b in zip(of[x], of[op.result], strict=True):
                uf.join(a, b)


def _join_reduce(uf: _Classes, of: dict[Value, list[int]], operand: dict[Op, list[int]], op: Op) -> None:
    (x,) = op.operands
    mine = of[x] if x in of else [uf.new(d) for d in x.type.shape]
    operand[op] = mine
    axes = reduced_axes(op)
    kept = [c for d, c in enumerate(mine) if d not in axes]
    for a, b in zip(kept, of[op.result], strict=True):
        uf.join(a, b)


def _clash(plan: NestPlan) -> bool:
    for cs in (*plan.classes.values(), *plan.operand.values()):
        real = [c for c in cs if c >= 0]
        if len(set(real)) != len(real):
            return True
    return False


def _folded(plan: NestPlan, op: Op) -> set[int]:
    return {plan.operand[op][a] for a in reduced_axes(op)} - {-1}


def _kept(plan: NestPlan, op: Op) -> set[int]:
    return set(plan.classes[op.result]) - {-1}


def _split_reductions(plan: NestPlan, outputs: Sequence[Value]) -> None:
    """Sort the reductions: in place (small), within rows (something walks on after them), final."""
    reduces = [op for op in plan.ops if op.prim.kind is Kind.REDUCE]
    walked: set[int] = set()
    for v in outputs:
        walked |= set(plan.classes[v])
    expanded = _followed(plan, set())
    big = [
        op
        for op in reduces
        if op in expanded or plan.size(_folded(plan, op)) > SMALL or _folded(plan, op) & walked
    ]
    while True:  # a small reduction over what a big one walks is a big one
        walked |= {c for op in big for c in plan.operand[op]}
        more = [op for op in reduces if op not in big and _folded(plan, op) & walked]
        if not more:
            break
        big += more
    big = [op for op in reduces if op in big]
    inner = _followed(plan, set(big))
    plan.row = [op for op in big if op in inner]
    plan.final = [op for op in big if op not in inner]


def _followed(plan: NestPlan, big: set[Op]) -> set[Op]:
    """The reductions (of ``big``, or all) that more classes or a big reduction follow."""
    users: dict[Value, list[Op]] = {}
    for op in plan.ops:
        for x in op.operands:
            users.setdefault(x, []).append(op)
    goes_on: dict[Value, bool] = {}
    expands: dict[Value, set[int]] = {}
    for op in reversed(plan.ops):
        for r in op.results:
            reach: set[int] = set(plan.classes[r])
            again = False
            for u in users.get(r, ()):
                again |= u in big or any(goes_on[s] for s in u.results)
                for s in u.results:
                    reach |= expands[s]
            goes_on[r], expands[r] = again, reach
    reduces = big or {op for op in plan.ops if op.prim.kind is Kind.REDUCE}
    return {
        op for op in reduces if goes_on[op.result] or expands[op.result] - set(plan.classes[op.result]) - {-1}
    }


def _order(plan: NestPlan, outputs: Sequence[Value]) -> list[int]:
    """All classes that the nest walks, outermost first, in the memory order of the widest value."""
    small = {
        c for op in plan.operand if op not in plan.row and op not in plan.final for c in _folded(plan, op)
    }
    tuples = [plan.classes[v] for v in outputs]
    tuples += [plan.classes[v] for v in _read_whole(plan)]
    tuples += [plan.operand[op] for op in (*plan.row, *plan.final)]
    order: list[int] = []
    for cs in sorted(tuples, key=lambda cs: -plan.size(c for c in cs if c >= 0)):
        order += [c for c in cs if c >= 0 and c not in order]
    return [c for c in order if c not in small]


def _read_whole(plan: NestPlan) -> list[Value]:
    """The values from outside that are read along the nest's own loops, so that their memory order counts."""
    made = {r for op in plan.ops for r in op.results}
    walked = {c for op in (*plan.row, *plan.final) for c in plan.operand[op]}
    return [v for v, cs in plan.classes.items() if v not in made and walked.issuperset(cs)]


def _choose_axes(plan: NestPlan, outputs: Sequence[Value]) -> None:
    order = _order(plan, outputs)
    if plan.row:
        rows: set[int] = set()
        for op in plan.row:
            rows |= _kept(plan, op)
        if any(_folded(plan, op) & rows for op in plan.row):
            raise Refused("two reductions need each other's axis as their rows")
        _rows_and_rest(plan, order, rows)
        enough = ROWS if plan.kind == "rows" else COLUMNS
        if plan.size(plan.q) > BARRIER and plan.size(plan.p) < enough:
            raise Refused("a whole large array must be reduced before its first element is used again")
        if plan.kind == "lanes" and plan.size(order) >= LARGE and plan.size(plan.q) >= TALL:
            raise Refused("columns that no cache holds are read at once, line by line, for each reduction")
        _place_finals(plan)
    elif plan.final:
        _axes_of_finals(plan, order)
    else:
        plan.p, plan.kind = order, "lanes"


def _rows_and_rest(plan: NestPlan, order: list[int], rows: set[int]) -> None:
    plan.p, plan.q = [c for c in order if c in rows], [c for c in order if c not in rows]
    last_inside = bool(plan.q) and (not plan.p or order[-1] in plan.q)
    tiny = plan.size(plan.q) < 8 and plan.size(plan.p) >= 64
    plan.kind = "rows" if last_inside and not tiny else "lanes"


def _place_finals(plan: NestPlan) -> None:
    """With the rows given: final reductions inside a row join ``row``, those across rows stay ``final``."""
    rows, across = set(plan.p), []
    for op in plan.final:
        folded = _folded(plan, op)
        if not folded & rows:
            if not _kept(plan, op) <= rows:
                raise Refused("the results of a reduction lie along rows of their own")
            plan.row.append(op)
            continue
        if op.prim.name.startswith("arg"):
            raise Refused("positions of extremes are not combined across rows")
        inside, kept = folded & set(plan.q), _kept(plan, op) & set(plan.q)
        if inside and kept:
            raise Refused("a reduction over rows and over a part of each row")
        across.append(op)
    plan.final = across
    plan.row.sort(key=plan.ops.index)
    if across:
        plan.kind = "rows"
        if any(plan.size(_kept(plan, op)) * 4 > PARTIAL_BYTES for op in across):
            raise Refused("the result of a reduction over rows is too large to accumulate per unit")
        plan.post = _after(plan, across)


def _after(plan: NestPlan, across: Sequence[Op]) -> set[Value]:
    post = {op.result for op in across}
    for op in plan.ops:
        if any(x in post for x in op.operands):
            post.update(op.results)
    return post


def _axes_of_finals(plan: NestPlan, order: list[int]) -> None:
    """No reduction is used again in rows: choose by contiguity and parallelism."""
    last = order[-1] if order else -1
    ends = [last in _folded(plan, op) for op in plan.final]
    kept: set[int] = set()
    for op in plan.final:
        kept |= _kept(plan, op)
    positions = any(op.prim.name.startswith("arg") for op in plan.final)
    same = all(_kept(plan, op) == kept for op in plan.final)
    n, m = plan.size(kept), plan.size(set(order) - kept)
    if _in_pieces(plan, order, kept) and same and not positions and n * 4 <= PARTIAL_BYTES:
        _rows_and_rest(plan, order, set(order[: 1 + max(order.index(c) for c in kept)]))
        plan.kind = "rows"
    elif (all(ends) and same and (positions or n >= 64 or n * m <= 1 << 15)) or (
        not any(ends) and same and (positions or n >= 1 << 14 or m <= 32 or n * 4 > PARTIAL_BYTES)
    ):
        _rows_and_rest(plan, order, kept)
    elif all(ends) and same and n * 4 <= PARTIAL_BYTES:
        plan.p, plan.q, plan.kind, plan.flat = order, [], "rows", True
    else:
        _rows_and_rest(plan, order, set(order[:-1]))
        plan.kind = "rows"
    _place_finals(plan)


def _in_pieces(plan: NestPlan, order: list[int], kept: set[int]) -> bool:
    """True where a kept axis lies between folded ones, so that what one result adds up lies in pieces all
    over memory: where no cache holds it, memory is better walked in order.
    """
    if not kept or not order or order[0] in kept or plan.size(order) < LARGE:
        return False
    inner = plan.size(order[1 + max(order.index(c) for c in kept) :])
    return PIECE <= inner <= STREAM


def _check_outputs(plan: NestPlan, outputs: Sequence[Value]) -> None:
    rows, walked = set(plan.p), {*plan.p, *plan.q, -1}
    for v in outputs:
        if v in plan.post:
            continue
        if not rows <= set(plan.classes[v]):
            raise Refused("an output does not have all row axes of the group")
        if not set(plan.classes[v]) <= walked:
            raise Refused("an output walks an axis that the nest does not")
    for op in (*plan.row, *plan.final):
        if not rows <= set(plan.operand[op]):
            raise Refused("a reduction does not have all row axes of the group")


def _check_rows(plan: NestPlan) -> None:
    """What a reduction of one row gives is at hand in that row only: nothing may read it in another order."""
    rows, made = set(plan.p), {op.result for op in plan.row}
    for op in plan.ops:
        read = [k for k, x in enumerate(op.operands) if x in made]
        if not read:
            continue
        made.update(op.results)
        if op.prim.kind not in (Kind.MOVE, Kind.GATHER):
            continue
        for k in read:
            kept = dict(_kept_dims(op, k))
            for d, c in enumerate(plan.classes[op.operands[k]]):
                if c in rows and (d not in kept or plan.classes[op.result][kept[d]] != c):
                    raise Refused("the rows of a reduction are read in another order")


def one_by_one(ops: Sequence[Op], output: Value) -> NestPlan:
    """The plan that always works: a loop per dimension of one output, reductions in place."""
    classes = tuple(i if d != 1 else -1 for i, d in enumerate(output.type.shape))
    extent = dict(enumerate(output.type.shape))
    return NestPlan(list(ops), {output: classes}, {}, extent, [c for c in classes if c >= 0])
