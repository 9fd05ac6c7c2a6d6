"""Which loops compute a contraction, with which tiles, from what packed: the cheapest of a few by estimate.

Costs are those of :mod:`weft.codegen.costs`, in slots.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd

from weft.codegen.costs import (
    BROADCAST,
    CALL,
    FAR_LINE,
    NEAR_LINE,
    PACK,
    PACK_FAR,
    PACK_NEAR,
    PHASE,
    SHORT_PIECE,
    STORE,
    slow,
    tile_slots,
)
from weft.codegen.microkernel import rows_for, widest
from weft.codegen.target import Target
from weft.ir.record import record, replace

_PAGE = 4096  # bytes after which addresses fall into the same set of the first-level cache
_WAYS = 6  # lines of one set that a tile may count on, of eight
_WIDEN = 0.2  # slots to widen one vector
_UNUSUAL = 1.03  # for tiles of another width, so that kernels share their loops and compile once
_CHUNK_BYTES = 4096  # of k per block: a panel of B then takes a fraction of the second-level cache
_UNEVEN = 1.02  # of the rows, from which on lower tiles are considered that do not overlap
_FUSED_ROWS = 512  # of A, for which packing a panel of B again is cheap
_FUSED_FAR = 1.4  # by how much that is dearer from beyond the second-level cache
_FEW_UNITS = 12
_OWN_ROWS = 3  # rows so few that twice as wide tiles fit into the registers
_GAIN = 0.97  # of the cost without them, below which panels are worth the memory
_GAIN_NS = 2000.0  # the time that they save at least: a call has to ask whether they are still right
_STREAM_ROWS = 48  # rows up to which the stream kernel is considered


@record(frozen=True)
class Side:
    """How an operand, as a matrix of rows by k, lies in memory.

    ``in_place``: the kernels can read it unpacked; ``along_k``: so can the kernel of inner products;
    ``along_rows``: vectors run across its rows; ``cuttable``: any piece of it can be packed alone. Strides
    are in bytes, 0 where there is no single one; ``copies`` is the number of matrices to pack. ``panel``:
    rows of the panels in which it lies packed already (then k steps by a line of a panel), or 0; such an
    operand may be ``narrow``: widened as it is read.
    """

    in_place: bool
    along_k: bool
    along_rows: bool
    row_bytes: int
    k_bytes: int
    copies: int
    cuttable: bool = True
    panel: int = 0
    narrow: bool = False


@record(frozen=True)
class Problem:
    """``batch`` products of [m, k] by [k, n], of elements of ``size`` bytes in vectors of ``lanes``.

    The columns are ``groups`` of equal width, of which a tile has equal parts.
    """

    batch: int
    m: int
    n: int
    k: int
    size: int
    lanes: int
    a: Side
    b: Side
    groups: int = 1


@record(frozen=True)
class Plan:
    """``kind`` is "outer" (broadcasts of A times rows of B), "inner" (both along k) or "stream" (few rows).

    Tiles of the sums have ``rows`` by ``vectors``; the inner kernel's have ``rows`` by ``cols``. ``fused``
    means that a unit of work packs the panels of B that it reads, instead of a phase before.
    """

    kind: str
    rows: int
    vectors: int
    pack_a: bool = False
    pack_b: bool = False
    cols: int = 0
    fused: bool = False

    def __str__(self) -> str:
        packed = "".join(s for s, on in (("a", self.pack_a), ("b", self.pack_b)) if on) or "none"
        wide = self.cols if self.kind == "inner" else self.vectors
        return f"{self.kind} {self.rows}x{wide} packed {packed}{' by panel' if self.fused else ''}"


def choose(p: Problem, target: Target) -> Plan:
    """The plan of least estimated cost."""
    return min(plans(p, target), key=lambda plan: cost(p, plan, target))


def best_panel(p: Problem, target: Target) -> int:
    """Columns of the panels in which B is multiplied fastest; 0 where they gain too little to keep a copy."""
    wide = widest(target)
    widths = {min(p.n, v * p.lanes) for v in (wide, 2 * wide) if v == wide or p.m <= _OWN_ROWS}
    costs = {}
    for width in sorted(widths):
        side = replace(p.b, in_place=False, along_k=False, along_rows=False, cuttable=False, panel=width)
        if width == p.n:
            if p.b.narrow:  # an ordinary operand, which is packed to be widened
                continue
            side = replace(p.b, in_place=True, along_k=False, along_rows=True, row_bytes=p.size,
                           k_bytes=width * p.size)  # fmt: skip
        q = replace(p, b=side)
        costs[width] = min(cost(q, plan, target) for plan in plans(q, target) if not plan.pack_b)
    if not costs:
        return 0
    width, plan = min(costs, key=costs.__getitem__), choose(p, target)
    nbytes = p.n * p.k * p.size
    once = p.batch * nbytes / target.line_bytes * NEAR_LINE if nbytes > target.l1_bytes else 0.0
    now, then = max(once, cost(p, plan, target)), max(once, costs[width])  # however B lies, it has to be read
    pays = plan.pack_b or then < _GAIN * now
    return width if pays and now - then > _GAIN_NS / target.slot_ns else 0


def chunk_of(p: Problem, plan: Plan) -> int:
    """The k of one block; blocks of about the same size."""
    if plan.kind != "outer" or p.k * p.size <= 1.5 * _CHUNK_BYTES:
        return p.k
    chunks = -(-p.k // max(1, _CHUNK_BYTES // p.size))
    return -(-p.k // (chunks * p.lanes)) * p.lanes


# what can be done


def plans(p: Problem, target: Target) -> Iterator[Plan]:
    """Every plan that is worth an estimate."""
    if p.groups > 1:
        most = max(1, p.n // p.groups // p.lanes)
        yield from _outer(p, target, {p.groups * q for q in (1, 2) if q == 1 or (p.groups < 3 and q <= most)})
        return
    yield from _outer(p, target, _widths(p, target))
    yield from _inner(p, target)
    if p.m <= _STREAM_ROWS and p.n >= p.lanes and p.a.in_place and p.b.in_place and p.b.along_rows:
        wide = min(p.n // p.lanes, 32 if p.m <= 8 else 16)
        yield Plan("stream", p.m, wide)


def _widths(p: Problem, target: Target) -> set[int]:
    """Vectors of the tiles that are considered."""
    wide = min(widest(target), -(-p.n // p.lanes))
    widths = {wide, *(v for v in range(1, wide) if v <= 2 or p.n < 2 * wide * p.lanes)}
    if p.m <= _OWN_ROWS and target.registers >= 32:
        widths.add(min(8, max(1, p.n // p.lanes)))
    return widths


def _outer(p: Problem, target: Target, widths: set[int]) -> Iterator[Plan]:
    wide = max(widths) if p.groups > 1 else min(widest(target), -(-p.n // p.lanes))
    for vectors in sorted(widths):
        most = rows_for(target, vectors, p.m)
        heights = {most, rows_for(target, vectors, p.m, _WAYS)}
        if -(-p.m // most) * most > _UNEVEN * p.m:
            heights |= {h for h in range(most // 2 + 1, most) if p.m % h == 0}
        for rows in sorted(heights):
            for pack_a in (False, True) if p.a.in_place else (True,):
                ready = (p.b.in_place and p.b.along_rows) or in_panels(p, vectors)
                for pack_b in (False, True) if ready else (True,):
                    yield Plan("outer", rows, vectors, pack_a, pack_b)
                if p.b.cuttable and vectors == wide:
                    yield Plan("outer", rows, vectors, pack_a, True, fused=True)


def in_panels(p: Problem, vectors: int) -> bool:
    """True where tiles of so many vectors find their columns of B in one of the panels that it lies in, or
    have those of whole panels.
    """
    columns = vectors // p.groups * p.lanes
    return p.b.panel > 0 and (p.b.panel % columns == 0 or columns % p.b.panel == 0)


def _inner(p: Problem, target: Target) -> Iterator[Plan]:
    """Inner products; a narrow operand is widened as it is read, but only beside one like it."""
    narrow = not (p.a.in_place and p.b.in_place)
    for pack_a in (False, True):
        for pack_b in (False, True):
            readable = (pack_a or p.a.along_k) and (pack_b or p.b.along_k)
            if not readable or (narrow and pack_a != pack_b):
                continue
            for rows, cols in inner_shapes(target, p.m, min(p.n, p.lanes), p.lanes):
                yield Plan("inner", rows, 1, pack_a, pack_b, cols)


def inner_shapes(target: Target, m: int, n: int, lanes: int) -> Iterator[tuple[int, int]]:
    """Rows and columns of sums that the registers hold beside what they are made of; few, to be shared."""
    for rows in (1, 2, 3, 4, 6):
        for cols in (1, 2, 3, 4, 5, 8):
            fits = rows * (cols + 1) + 1 < target.registers
            whole = cols in (4, 8) or n < lanes
            if rows <= m and cols <= n and fits and whole:
                yield rows, cols


# what it costs


def cost(p: Problem, plan: Plan, target: Target) -> float:
    """Slots for all of it."""
    kernel = {"outer": _outer_cost, "inner": _inner_cost, "stream": _stream_cost}[plan.kind]
    usual = plan.kind != "outer" or plan.vectors == widest(target)
    return p.batch * kernel(p, plan, target) * (1.0 if usual else _UNUSUAL) + _packing(p, plan, target)


def _packing(p: Problem, plan: Plan, target: Target) -> float:
    total = extra = 0.0
    near, far = PACK_NEAR * slow(target), PACK_FAR * slow(target)
    for packed, side, rows in ((plan.pack_a, p.a, p.m), (plan.pack_b, p.b, p.n)):
        if packed and plan.fused and side is p.b:
            times = -(-p.m // fused_rows(p.m))
            nbytes = rows * p.k * p.size
            extra = p.batch * nbytes * near * times * (1.0 if nbytes <= target.l2_bytes else _FUSED_FAR)
            panels = p.batch * -(-p.n // (plan.vectors * p.lanes)) * times
            if panels < _FEW_UNITS:  # too few units for several threads
                extra += p.batch * p.m * p.n * p.k / p.lanes * (1 / panels - 1 / _FEW_UNITS)
        elif packed:
            nbytes = side.copies * rows * p.k * p.size
            total += nbytes * (near if nbytes <= target.l2_bytes // 2 else far) + PACK
    return extra + total + (PHASE if total > 10_000 else 0.0)


def fused_rows(m: int) -> int:
    """Rows of A by which a panel is multiplied once it is packed."""
    return m if m <= 2 * _FUSED_ROWS else -(-m // -(-m // _FUSED_ROWS))


def _crowded(side: Side, rows: int, line: int) -> float:
    """Factor by which rows slow each other down that share sets of the first-level cache of such lines."""
    places = max(1, _PAGE // max(line, gcd(side.row_bytes, _PAGE))) if side.row_bytes else rows
    return 1.0 if -(-rows // places) <= _WAYS else 1.6


def _outer_cost(p: Problem, plan: Plan, target: Target) -> float:
    rows, vectors = plan.rows, plan.vectors
    tiles, (panels, rest) = -(-p.m // rows), divmod(-(-p.n // p.lanes), vectors)
    slots = rows * vectors
    crowd = 1.0 if plan.pack_a else _crowded(p.a, rows, target.line_bytes)
    per_k = tile_slots(rows, vectors, target) * crowd
    if not plan.pack_a and p.a.k_bytes >= 1024 and p.k >= 64:  # a line of A for a few elements of it
        per_k += 0.3 if p.k <= _held(p.a.k_bytes, target) else 3.0
    if not plan.pack_b:
        per_k += _in_place(p, vectors, target)
        per_k += vectors * _WIDEN * p.b.narrow
    total = panels * tiles * (p.k * per_k + CALL + slots * STORE)
    if rest:
        high = rows_for(target, rest, p.m, _WAYS if crowd > 1 else 14)
        each = tile_slots(high, rest, target)
        total += -(-p.m // high) * (p.k * each + CALL + high * rest * STORE)
    return total + _first_touch(p, plan, target)


def _in_place(p: Problem, vectors: int, target: Target) -> float:
    """Slots per k and tile because rows of a panel of B lie apart: they leave the caches between tiles."""
    panel = vectors * p.lanes * p.size
    if p.b.panel or p.b.k_bytes <= panel or p.k * panel <= target.l1_bytes // 2:
        return 0.0
    if p.k > _held(p.b.k_bytes, target) and p.m > vectors:
        return panel / target.line_bytes * SHORT_PIECE * 0.7 * slow(target)
    return panel / target.line_bytes * (2.0 if panel < 256 else 0.1)


def _held(step: int, target: Target) -> int:
    """How many lines that lie ``step`` bytes apart the second-level cache holds."""
    period = target.l2_bytes // 8  # of addresses that fall into the same set
    return 8 * period // max(target.line_bytes, gcd(step, period))


def _first_touch(p: Problem, plan: Plan, target: Target) -> float:
    """Slots to bring B from beyond the second-level cache, where it is read for the first time."""
    nbytes = p.n * p.k * p.size
    if nbytes <= target.l2_bytes:
        return 0.0
    short = not plan.pack_b and p.b.along_rows and plan.kind == "outer" and p.k > _held(p.b.k_bytes, target)
    return nbytes / target.line_bytes * (SHORT_PIECE if short else FAR_LINE) * slow(target)


def _inner_cost(p: Problem, plan: Plan, target: Target) -> float:
    rows, cols = plan.rows, plan.cols
    across = -(-min(p.n, p.lanes) // cols) * max(1, p.n // p.lanes) + (p.n > p.lanes and p.n % p.lanes > 0)
    calls = -(-p.m // rows) * across
    steps = -(-p.k // p.lanes)
    crowd = 1.0
    if not plan.pack_a:  # lines are read once, whole
        crowd = min(1.15, _crowded(p.a, rows + cols, target.line_bytes))
    near = (rows + cols) * p.k * p.size <= target.l1_bytes
    per_step = max(rows * cols, (rows + cols) * crowd * (1.0 if near else NEAR_LINE), target.latency_slots)
    sums = rows * (6.0 * cols if cols & (cols - 1) else 3.0 * cols + 8)
    return (
        calls * (steps * per_step + CALL + sums)
        + p.m * p.n / p.lanes * STORE
        + _first_touch(p, plan, target)
    )


def _stream_cost(p: Problem, plan: Plan, target: Target) -> float:
    turns = stream_turns(target, plan.rows)
    vectors = -(-p.n // p.lanes)
    steps = -(-p.k // turns)
    per_vector = max(turns * p.m, turns + p.m, 2.0 * p.m)
    scalars = turns * p.m * BROADCAST * -(-vectors // plan.vectors)
    return (
        steps * (vectors * per_vector * 1.1 + 2 * scalars)
        + vectors * p.m * STORE
        + _first_touch(p, plan, target)
    )


def stream_turns(target: Target, rows: int) -> int:
    """The k that the stream kernel takes at once: what registers hold of A for (at most four) rows."""
    spare = target.registers - 2
    return max(2, min(8, spare // (min(rows, 4) + 1)))
