"""How attention is cut into tiles, blocks of rows and keys, and units: the cheapest of a few by estimate.

Costs are those of :mod:`weft.codegen.costs`, in slots, for the forward kernel and for that of the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

from weft.codegen.costs import (
    CALL,
    NEAR_LINE,
    PHASE,
    UNIT,
    even,
    lines,
    packed,
    sharing,
    slow,
    streamed,
    tile_slots,
)
from weft.codegen.microkernel import rows_for, widest
from weft.codegen.target import Target
from weft.ir.record import record

GROUPED = 48  # rows of a key head up to which its query heads share a unit, and keys are cut into parts
FEW_ROWS = 8  # rows up to which keys and values may be read in place
_KEYS = (64, 128, 256, 512)  # keys of a block, about
_STRIPS = (2, 4, 8, 12, 16)  # strips of tile rows of a unit
_STREAMED = 128  # keys of a block that are read in place: keys and values are two streams that take turns
_PART = 128  # least keys of a part
_MOST_PARTS = 8  # arrays of dq, at most
_EXP = 9.0  # slots to turn a vector of scores into weights
_ROW = 60.0  # slots to begin with a row of a block: its largest score, the rescaling
_MASKED = 6.0  # slots to mask a vector of scores
_SUM = 8.0  # slots to add up the lanes of a vector
_FELT = 0.3  # of the time that the second-level cache takes, behind arithmetic


@record(frozen=True)
class AttentionProblem:
    """``units`` heads of ``rows`` by ``keys``, of ``width`` and ``out`` (whole vectors) columns.

    ``kv`` key heads are copied where they are not read in place, by ``copied`` columns; ``readable`` tells
    whether they can be. ``groups`` of query heads share a key head.
    """

    units: int
    rows: int
    keys: int
    width: int
    out: int
    kv: int
    groups: int
    lanes: int
    size: int
    causal: bool
    masked: bool
    readable: bool
    copied: int


@record(frozen=True)
class AttentionPlan:
    """Tiles of ``rows`` by ``vectors``, ``strips`` of them a block, ``keys`` a block; ``parts`` of the keys.

    ``in_place``: keys are read where they lie, by inner products.
    """

    rows: int
    vectors: int
    strips: int
    keys: int
    parts: int
    in_place: bool

    def __str__(self) -> str:
        blocks = f"{self.strips * self.rows} rows, {self.keys} keys"
        where = ", in place" if self.in_place else ""
        return f"{self.rows}x{self.vectors}, {blocks}, {self.parts} parts{where}"


def _blocks(p: AttentionProblem, target: Target) -> Iterator[tuple[int, int, int, int]]:
    """Rows and vectors of tiles, strips of a block, keys of a block."""
    for vectors in sorted({widest(target), min(widest(target), p.out // p.lanes)}):
        rows, cols = rows_for(target, vectors, p.rows), vectors * p.lanes
        strips = -(-p.rows // rows)
        for n in sorted({even(strips, s) for s in _STRIPS}):
            for k in sorted({min(max(k // cols, 1), -(-p.keys // cols)) * cols for k in _KEYS}):
                yield rows, vectors, n, k


def forward_plans(p: AttentionProblem, target: Target) -> Iterator[AttentionPlan]:
    """Every plan that is worth an estimate; with few rows keys may be cut into parts, or read in place."""
    few = p.readable and p.rows <= FEW_ROWS
    for rows, vectors, strips, keys in _blocks(p, target):
        cuts = {1}
        if p.rows <= GROUPED:
            cuts |= {n for n in (2, 4, 8, 16, 24) if n * _PART <= p.keys}
        for parts in sorted(cuts):
            for in_place in (False, True) if few and keys <= _STREAMED else (False,):
                yield AttentionPlan(rows, vectors, strips, keys, parts, in_place)


def backward_plans(p: AttentionProblem, target: Target) -> Iterator[AttentionPlan]:
    """Every plan that is worth an estimate; blocks of keys are dealt out to parts."""
    in_place = p.readable and p.rows <= FEW_ROWS
    for rows, vectors, strips, keys in _blocks(p, target):
        blocks = -(-p.keys // keys)
        for parts in sorted({min(n, blocks) for n in (1, 2, 4, _MOST_PARTS)}):
            yield AttentionPlan(rows, vectors, strips, keys, parts, in_place)


def forward_cost(p: AttentionProblem, plan: AttentionPlan, target: Target) -> float:
    """Slots of the forward kernel."""
    block, seen = plan.strips * plan.rows, _seen(p, plan)
    blocks = -(-p.rows // block)
    steps = max(1.0, seen / plan.keys)  # blocks of keys that a row of units meets
    each = _scores(p, plan, p.width, seen, target) + _product(p, plan, p.out, seen, steps, target)
    each += plan.rows * (steps * _ROW + seen / p.lanes * (_EXP + _MASKED * p.masked))
    total = plan.strips * each + _spilled(p, plan, seen, 4, target)
    total += block * (p.width + p.out) / p.lanes * 4 + UNIT
    total += _keys_read(p, plan, (p.width + p.out), seen, target)
    units = p.units * blocks * plan.parts
    combine = 0.0
    if plan.parts > 1:
        combine = PHASE + p.units * p.rows * plan.parts * (_ROW + p.out / p.lanes * NEAR_LINE)
    return p.units * blocks * total * sharing(units) + _copies(p, plan, target) + combine


def backward_cost(p: AttentionProblem, plan: AttentionPlan, target: Target) -> float:
    """Slots of the kernel of the gradient: five products, and the sums of dq by part."""
    block, seen = plan.strips * plan.rows, _seen(p, plan)
    blocks = -(-p.rows // block)
    steps = max(1.0, seen / plan.keys)
    each = _scores(p, plan, p.width, seen, target) + _scores(p, plan, p.out, seen, target)
    each += _product(p, plan, p.width, seen, steps, target)
    each += plan.rows * (steps * _ROW / 2 + seen / p.lanes * (_EXP + 4 + _MASKED * p.masked))
    each *= plan.strips
    # dk and dv, strip of keys by strip of keys, over the rows of the block
    tiles = seen / plan.rows
    for width in (p.width, p.out):
        vectors = -(-width // p.lanes)
        wide, calls = min(vectors, plan.vectors), -(-vectors // plan.vectors)
        step = tile_slots(plan.rows, wide, target)
        each += tiles * calls * (block * step + CALL + 3 * plan.rows * wide)
    each += _spilled(p, plan, seen, 8, target)
    each += steps * (block * (p.width + p.out) / p.lanes * 8 + UNIT)
    kept = plan.keys * 2 * (p.width + p.out) * p.size + 2 * block * plan.keys * p.size
    if kept > target.l2_bytes // 2:  # dk, dv and their operands leave the cache between blocks of rows
        each += lines(steps * plan.keys * 2 * (p.width + p.out) * p.size, target)
    units = p.kv * plan.parts
    # the array of dq of a part is cleared, added to by each block of keys, and read at the end
    dq = p.groups * p.rows * p.width * p.size
    passes = 2 * plan.parts + (2 * steps * blocks if dq > target.l2_bytes // 2 else 0)
    far = plan.parts * p.kv * dq > target.l2_bytes
    moved = p.kv * passes * (lines(dq, target) if far else dq / target.line_bytes * NEAR_LINE)
    return p.units * blocks * each * sharing(units) + _copies(p, plan, target) + moved + PHASE


def _seen(p: AttentionProblem, plan: AttentionPlan) -> float:
    """Keys that a row meets on average; above the diagonal some of a tile are met in vain."""
    if not p.causal:
        return float(p.keys)
    return min(float(p.keys), p.keys / 2 + plan.vectors * p.lanes / 2)


def _scores(p: AttentionProblem, plan: AttentionPlan, depth: int, seen: float, target: Target) -> float:
    """Slots of the scores of one strip."""
    slots = plan.rows * plan.vectors
    if plan.in_place:
        vectors = plan.rows * depth / p.lanes
        return seen * (max(vectors, (plan.rows / 4 + 1) * depth / p.lanes) + plan.rows * _SUM)
    panels = seen / (plan.vectors * p.lanes)
    step = tile_slots(plan.rows, plan.vectors, target)
    return panels * (depth * step + CALL + 2 * slots)


def _product(
    p: AttentionProblem, plan: AttentionPlan, width: int, seen: float, steps: float, target: Target
) -> float:
    """Slots of the weights of one strip times rows of values."""
    vectors = -(-width // p.lanes)
    whole, rest = divmod(vectors, plan.vectors)
    total = 0.0
    for count, wide in ((whole, plan.vectors), (1 if rest else 0, rest)):
        if count:
            step = tile_slots(plan.rows, wide, target)
            total += count * (seen * step + steps * (CALL + 4 * plan.rows * wide))
    return total


def _spilled(p: AttentionProblem, plan: AttentionPlan, seen: float, times: int, target: Target) -> float:
    """Slots for scores of a block that pass through the second-level cache so many times."""
    block = plan.strips * plan.rows
    held = block * (min(plan.keys, seen) + p.out) * p.size
    if held <= target.l1_bytes // 2:
        return 0.0
    return _FELT * times * block * seen * p.size / target.line_bytes * NEAR_LINE * slow(target)


def _keys_read(p: AttentionProblem, plan: AttentionPlan, width: int, seen: float, target: Target) -> float:
    """Slots that a unit waits for keys and values from beyond the second-level cache."""
    if p.keys * width * p.size <= target.l2_bytes // 2:
        return 0.0
    step = plan.strips * tile_slots(plan.rows, plan.vectors, target)
    cols = plan.vectors * p.lanes
    return streamed(int(seen * width / cols), cols * p.size, step, target)


def _copies(p: AttentionProblem, plan: AttentionPlan, target: Target) -> float:
    """Slots to copy keys, and values that are not read where they lie."""
    columns = p.copied if not plan.in_place else 0
    return packed(p.kv * p.keys * columns * p.size, target) + PHASE if columns else 0.0


Cost = Callable[[AttentionProblem, AttentionPlan, Target], float]
Plans = Callable[[AttentionProblem, Target], Iterator[AttentionPlan]]


@cache
def choose(p: AttentionProblem, target: Target, gradient: bool) -> AttentionPlan:
    """The plan of least estimated cost."""
    plans, cost = ways(gradient)
    return min(plans(p, target), key=lambda plan: cost(p, plan, target))


def ways(gradient: bool) -> tuple[Plans, Cost]:
    """The plans of the forward kernel or of the gradient's, and what they cost."""
    return (backward_plans, backward_cost) if gradient else (forward_plans, forward_cost)
