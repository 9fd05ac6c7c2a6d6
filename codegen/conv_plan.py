"""Which tiles and units of work compute a convolution: the cheapest of a few by estimate.

Each way of computing a convolution has its problem, its plans and what they cost, in the slots of
:mod:`weft.codegen.costs`; which way is taken is decided by the same costs (``conv_kernel``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from weft.codegen.costs import (
    BROADCAST,
    CALL,
    NEAR_LINE,
    PACK_NEAR,
    PHASE,
    STORE,
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

_POINTERS = 8  # rows of a tile that keep an address register each
_LISTED = 3.0  # slots to find and store the address of a pixel
_WRITTEN_OUT = 27  # taps up to which that is written out
_TAP = 4.0  # slots to begin with a tap, beside one a row
_SUMS_BYTES = 24 << 10  # of the sums of one unit: in the first-level cache beside what is read
_BAND_BYTES = 16 << 10  # of copied lines: half of that cache
_PIECE = 256  # taps or k that are summed before the sums go back to memory, about
_ACROSS = 8.0  # slots to add up the lanes of a vector
_TURNED = 2.5  # by how much results, and copies, are dearer that have to be transposed
_MOST_PARTS = 16
_THREADS = 4  # that come to read the same weights
_MOST_TILES = 128  # of a unit: their sums wait on the stack


@record(frozen=True)
class Way:
    """``plans(problem, target)`` are worth an estimate; ``cost(problem, plan, target)`` is one, in slots."""

    plans: Callable[[Any, Target], Iterator[Any]]
    cost: Callable[[Any, Any, Target], float]


def cuts(most: int) -> list[int]:
    """Powers of two up to ``most``, and that."""
    return [*(1 << i for i in range((most - 1).bit_length())), most]


def tiles_of(target: Target, rows: int, vectors: int, most: int, block: int = 0) -> Iterator[tuple[int, int]]:
    """Rows and vectors of tiles whose sums the registers hold, at most ``most`` rows of them.

    With ``block`` only whole blocks of so many vectors, and none that reaches past the last.
    """
    for wide in range(1, min(widest(target), vectors) + 1):
        if block and (vectors % wide or wide % block):
            continue
        high = max(1, min((target.registers - 1 - wide) // wide, most, rows))
        yield from ((h, wide) for h in sorted({high, even(rows, high)}))


# whole pixels by packed weights


@record(frozen=True)
class DirectProblem:
    """``classes``: pixels and taps of each class of positions; ``outputs``, ``depth`` channels of a group.

    ``block``: channels of frozen weights that lie side by side, 0 where weights are packed. ``copied``: bytes
    of the input that are copied first. ``turned``: results go out channels-last.
    """

    samples: int
    groups: int
    outputs: int
    depth: int
    classes: tuple[tuple[int, int], ...]
    lanes: int
    size: int
    block: int = 0
    depthwise: bool = False
    copied: int = 0
    turned: bool = True


@record(frozen=True)
class DirectPlan:
    """Tiles of ``rows`` pixels by ``vectors``; ``tiles`` by ``blocks`` of channels are a unit, which reads
    weights of about ``k`` products at a time."""

    rows: int
    vectors: int
    tiles: int
    blocks: int
    k: int

    def __str__(self) -> str:
        return f"direct {self.rows}x{self.vectors}, {self.tiles} tiles x {self.blocks} blocks, k {self.k}"


@record(frozen=True)
class DirectCut:
    """How the units of one class are cut: taps and channels at a time, tiles and blocks of a unit."""

    taps: int
    depth: int
    tiles: int
    blocks: int
    units: int


def direct_cut(p: DirectProblem, plan: DirectPlan, pixels: int, taps: int) -> DirectCut:
    """The cut of a class of so many pixels and taps."""
    taps, depth = max(taps, 1), p.depth
    if taps * depth > 1.5 * plan.k:
        depth = even(depth, plan.k) if depth > 1.5 * plan.k else depth
        taps = max(1, min(taps, plan.k // depth))
    tiles = -(-pixels // plan.rows)
    per_unit = even(tiles, plan.tiles)
    columns = p.groups * -(-p.outputs // (plan.vectors * p.lanes))
    blocks = min(plan.blocks, columns)
    units = p.samples * -(-columns // blocks) * -(-tiles // per_unit)
    return DirectCut(taps, depth, per_unit, blocks, units)


def direct_plans(p: DirectProblem, target: Target) -> Iterator[DirectPlan]:
    """Every plan that is worth an estimate."""
    most = max(pixels for pixels, _ in p.classes)
    vectors = -(-p.outputs // p.lanes)
    for rows, wide in tiles_of(target, most, vectors, _POINTERS, p.block // p.lanes):
        row_bytes = wide * p.lanes * p.size
        columns = p.groups * -(-vectors // wide)
        k = max(1, target.l2_bytes // 4 // row_bytes)  # whose weights stay in the second-level cache
        tiles = min(-(-most // rows), max(1, _SUMS_BYTES // (rows * row_bytes)))
        for t in cuts(tiles):
            yield from (DirectPlan(rows, wide, t, b, k) for b in sorted({1, min(4, columns), columns}))
        yield from (DirectPlan(rows, wide, tiles, b, k) for b in cuts(columns) if b not in (1, 4, columns))


def direct_cost(p: DirectProblem, plan: DirectPlan, target: Target) -> float:
    """Slots for all of it."""
    row_bytes = plan.vectors * p.lanes * p.size
    total, units = packed(p.copied, target) * _TURNED if p.copied else 0.0, 0
    weights = p.groups * -(-p.outputs // (plan.vectors * p.lanes)) * row_bytes * p.depth
    taps = max(t for _, t in p.classes)
    if not p.block:
        total += packed(weights * sum(t for _, t in p.classes), target)
    for pixels, taps in p.classes:
        c = direct_cut(p, plan, pixels, taps)
        total += _class_cost(p, plan, pixels, taps, c, target)
        units += c.units
    phases = bool(p.copied or not p.block) + (len(p.classes) > 1 and not p.turned)
    return total * sharing(units) + phases * PHASE


def _class_cost(
    p: DirectProblem, plan: DirectPlan, pixels: int, taps: int, c: DirectCut, target: Target
) -> float:
    """Slots for one class of positions."""
    row_bytes, slots = plan.vectors * p.lanes * p.size, plan.rows * plan.vectors
    columns = p.groups * -(-p.outputs // (plan.vectors * p.lanes))
    tiles = p.samples * -(-pixels // plan.rows)
    k, panel = taps * p.depth, taps * p.depth * row_bytes
    step = tile_slots(plan.rows, plan.vectors, target)
    if p.depthwise:  # each product reads a vector of its own
        step = max(step, slots + plan.vectors)
    elif panel > target.l1_bytes // 2:
        step = max(step, row_bytes / target.line_bytes * NEAR_LINE)
    chunks = -(-taps // c.taps) * -(-p.depth // c.depth)
    each = k * step + taps * (_TAP + plan.rows) + chunks * (CALL + 2 * slots * (chunks > 1))
    here = c.tiles * plan.rows  # pixels of a unit: results that are turned go by whole vectors of them
    stored = STORE if p.turned else STORE * _TURNED * -(-here // p.lanes) * p.lanes / here
    total = tiles * columns * (each + slots * stored)
    listed = c.units * c.tiles * plan.rows * taps * _LISTED * (1 if taps <= _WRITTEN_OUT else 2)
    # units that follow each other find their weights in the cache, where the same thread runs them
    parts = -(-tiles // p.samples // c.tiles)
    loads = p.samples * columns * (min(parts, _THREADS) if panel <= target.l2_bytes // 2 else parts)
    far = columns * panel > target.l2_bytes // 2
    read = loads * streamed(k, row_bytes, step, target) if far else 0.0
    if not p.block:  # what has just been packed is fetched from the caches of other threads
        read += lines(columns * min(parts, _THREADS) * panel, target)
    return total + listed + read + c.units * UNIT


# sums over the taps of an image


@record(frozen=True)
class TapsProblem:
    """``rows`` sums by ``along`` channels in each group, over ``images`` of ``lines`` of ``taps``.

    ``copied``: bytes of the operands that are copied first, by vectors of a tile's row of channels.
    """

    groups: int
    rows: int
    along: int
    images: int
    lines: int
    taps: int
    lanes: int
    size: int
    copied: int = 0


@record(frozen=True)
class TapsPlan:
    """Tiles of ``rows`` by ``vectors``, ``tiles`` rows of tiles a unit; sums are cut into ``parts``."""

    rows: int
    vectors: int
    tiles: int
    parts: int

    def __str__(self) -> str:
        return f"taps {self.rows}x{self.vectors}, {self.tiles} tiles, {self.parts} parts"


def taps_pieces(p: TapsProblem) -> tuple[int, int]:
    """Taps of a line, and lines, that are summed at a time."""
    piece = min(p.taps, 2 * _PIECE)
    return piece, max(1, min(p.images * p.lines, _PIECE // piece))


def taps_plans(p: TapsProblem, target: Target) -> Iterator[TapsPlan]:
    """Every plan that is worth an estimate."""
    steps = -(-p.images * p.lines // taps_pieces(p)[1])
    for rows, wide in tiles_of(target, p.rows, -(-p.along // p.lanes), _POINTERS):
        tiles = -(-p.rows // rows)
        for per_unit in cuts(tiles):
            for parts in cuts(min(_MOST_PARTS, steps)):
                yield TapsPlan(rows, wide, per_unit, parts)


def taps_cost(p: TapsProblem, plan: TapsPlan, target: Target) -> float:
    """Slots for all of it."""
    row_bytes, slots = plan.vectors * p.lanes * p.size, plan.rows * plan.vectors
    blocks, tiles = -(-p.along // (plan.vectors * p.lanes)), -(-p.rows // plan.rows)
    piece, some = taps_pieces(p)
    count, calls = p.images * p.lines * p.taps, -(-p.images * p.lines // some) * -(-p.taps // piece)
    step = tile_slots(plan.rows, plan.vectors, target)
    each = count * step + p.images * p.lines * (_TAP + plan.rows) + calls * (CALL + 2 * slots)
    units = p.groups * -(-tiles // plan.tiles) * plan.parts
    total = p.groups * blocks * tiles * each
    # a unit walks all of B once for each of its chunks: those of its tiles that follow find it in the cache
    if count * blocks * row_bytes > target.l2_bytes // 2:
        walks = p.groups * -(-tiles // plan.tiles) * blocks
        total += walks * streamed(count, row_bytes, step, target)
    sums = p.groups * tiles * blocks * slots * p.lanes * p.size
    if plan.tiles * blocks * slots * p.lanes * p.size > target.l1_bytes:
        total += (calls - 1) * sums / target.line_bytes * NEAR_LINE * 2
    far = plan.parts * sums > target.l2_bytes
    moved = 2 * lines(plan.parts * sums, target) if far else plan.parts * sums / target.line_bytes * NEAR_LINE
    combine = moved + sums / (p.lanes * p.size) * STORE
    prepared = packed(p.copied, target) + PHASE if p.copied else 0.0
    return total * sharing(units) + units * UNIT + combine + PHASE + prepared


# packed patches


@record(frozen=True)
class PatchProblem:
    """``groups`` products of [m, k] weights by [k, cols] patches; ``chunks`` of k are packed at a time.

    ``copied``: bytes of input and weights that are copied first; ``split``: sums go to memory in any case.
    """

    groups: int
    m: int
    k: int
    cols: int
    chunks: int
    run: int
    lanes: int
    size: int
    copied: int = 0
    split: bool = False


@record(frozen=True)
class PatchPlan:
    """Tiles of ``rows`` by ``vectors``, ``tiles`` below each other a unit; k is cut into ``parts``."""

    rows: int
    vectors: int
    tiles: int
    parts: int

    def __str__(self) -> str:
        return f"patches {self.rows}x{self.vectors}, {self.tiles} tiles, {self.parts} parts"


def patch_plans(p: PatchProblem, target: Target) -> Iterator[PatchPlan]:
    """Every plan that is worth an estimate."""
    wide = min(widest(target), -(-p.cols // p.lanes))
    for vectors in sorted({1, wide, max(1, wide // 2)}):
        rows = rows_for(target, vectors, p.m)
        tiles = min(-(-p.m // rows), _MOST_TILES)
        for tall in cuts(tiles):
            for parts in cuts(max(1, min(8, p.chunks // 2))):
                yield PatchPlan(rows, vectors, tall, parts)


def patch_cost(p: PatchProblem, plan: PatchPlan, target: Target) -> float:
    """Slots for all of it."""
    slots, cols = plan.rows * plan.vectors, plan.vectors * p.lanes
    tiles, panels = -(-p.m // plan.rows), -(-p.cols // cols)
    strips = -(-tiles // plan.tiles)
    units = p.groups * panels * strips * plan.parts
    step = tile_slots(plan.rows, plan.vectors, target)
    uneven = (1 + -(-p.chunks // plan.parts) * plan.parts / p.chunks) / 2
    each = uneven * p.k * step + p.chunks * (CALL + 2 * slots * (p.chunks > 1)) + slots * STORE
    short = max(1.0, 2.0 * p.lanes / max(p.run, 1))  # panels are copied in pieces of a line of output
    packing = strips * p.k * cols * p.size * PACK_NEAR * slow(target) * short
    total = p.groups * panels * (tiles * each + packing) * sharing(units) + units * UNIT
    parts = plan.parts if plan.parts > 1 or p.split else 0
    if parts:
        total += PHASE + lines(2 * parts * p.groups * p.m * p.cols * p.size, target)
    return total + (packed(p.copied, target) + PHASE if p.copied else 0.0)


# channels by themselves, along their lines


@record(frozen=True)
class PlaneProblem:
    """``planes`` of lines by columns of positions, each over rows and columns of taps.

    ``reach(n)`` lines are met by n lines of positions: ``(n - 1) * move + span``; ``line_bytes`` of each are
    copied. ``depth`` planes are summed to one result, ``over_taps`` into a sum for each tap. ``copied``:
    bytes of operands that are turned first.
    """

    planes: int
    depth: int
    lines: int
    cols: int
    tap_rows: int
    tap_cols: int
    move: int
    span: int
    line_bytes: int
    over_taps: bool
    lanes: int
    size: int
    copied: int = 0


@record(frozen=True)
class PlanePlan:
    """``band`` lines are copied at a time, ``block`` lines of the result summed at once.

    ``apart``: a unit is one band, else all of an image.
    """

    band: int
    block: int
    apart: bool

    def __str__(self) -> str:
        return f"planes, bands of {self.band}, {self.block} lines at once{', apart' if self.apart else ''}"


def plane_plans(p: PlaneProblem, target: Target) -> Iterator[PlanePlan]:
    """Every plan that is worth an estimate."""
    most = max(1, (_BAND_BYTES // p.line_bytes - p.span) // p.move + 1)
    for band in sorted({even(p.lines, most), even(p.lines, max(1, most // 2))}):
        for block in (1, 2, 4):
            if block <= band:
                yield PlanePlan(band, block, False)
                if not p.over_taps and band < p.lines:
                    yield PlanePlan(band, block, True)


def plane_cost(p: PlaneProblem, plan: PlanePlan, target: Target) -> float:
    """Slots for all of it."""
    bands = -(-p.lines // plan.band)
    vectors = -(-p.cols // p.lanes)
    taps = p.tap_rows * p.tap_cols
    met = ((plan.block - 1) * p.move + p.span) * p.tap_cols  # vectors loaded for a block of lines
    chains = taps if p.over_taps else plan.block
    # products wait for each other where there are few sums; each vector that is met is loaded, unaligned
    each = max(plan.block * taps, met * 1.5, plan.block * taps * target.latency_slots / chains)
    held = p.over_taps or taps + plan.block + 2 <= target.registers
    each += plan.block * (0.0 if held else taps * BROADCAST) + 4
    each += 0.0 if p.over_taps else plan.block * STORE
    blocks = -(-plan.band // plan.block)
    copied = ((plan.band - 1) * p.move + p.span) * p.line_bytes
    band = vectors * blocks * each + copied * PACK_NEAR * slow(target)
    met = copied + plan.band * p.cols * p.size
    if p.over_taps and 2 * met > target.l1_bytes:  # lines of the other operand drive out those copied
        band += met / target.line_bytes * NEAR_LINE
    units = p.planes * (bands if plan.apart else 1)
    total = p.planes * p.depth * bands * band + units * (CALL + (taps * _ACROSS if p.over_taps else 0.0))
    return total * sharing(units) + (packed(p.copied, target) + PHASE if p.copied else 0.0)


DIRECT = Way(direct_plans, direct_cost)
TAPS = Way(taps_plans, taps_cost)
PATCH = Way(patch_plans, patch_cost)
PLANE = Way(plane_plans, plane_cost)
