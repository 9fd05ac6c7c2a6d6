"""How a nest is laid over the threads of a GPU: elements of a thread, threads of a row, blocks."""

from __future__ import annotations

from math import gcd, prod

from weft.codegen.gpu.target import WARP, GpuTarget
from weft.codegen.gpu.turned import HIGH, SIDE, tiles, turned
from weft.ir.loops import Accumulate, Buffer, Compute, Load, Loop, Nest, Store, statements
from weft.ir.record import record
from weft.ir.scalarcost import cost_by_name

ACCESS = 16  # bytes of the widest access of a thread
MOST_LANES = 8  # most elements side by side in one thread
HEAVY = 200.0  # simple operations of an element from which a thread holds one element only
THREADS = 256  # of a block, where nothing asks for something else
ROW_THREADS = 128  # the same where a warp or less has a row of its own
HELD = 16  # elements of a row that a thread should hold
LONGEST = 8  # accesses of a thread to a row from which more than a warp takes the row
BUSY = 512  # threads that each multiprocessor should have at least
COLUMN_STEPS = 8  # least steps of each thread down a column
LOW = 32  # most threads that share a column


@record(frozen=True)
class Mapping:
    """``lanes``: elements of a thread side by side; ``team``: threads that share a row or a column (1: none);
    ``across``: threads side by side over columns; ``threads`` of a block; ``blocks``.
    """

    lanes: int
    team: int
    threads: int
    blocks: int
    across: int = 1


def map_nest(nest: Nest, buffers: dict[str, Buffer], target: GpuTarget, threads: int | None) -> Mapping:
    """The mapping of a nest; ``threads`` where the block is given, as for several nests in one launch."""
    if nest.kind == "rows" or not nest.axes:
        return _rows(nest, buffers, target, threads)
    return _lanes(nest, buffers, target, threads)


def team_loops(nest: Nest) -> list[Loop]:
    """The loops of a nest of rows that the threads of a row share."""
    return [s for s in nest.body if isinstance(s, Loop) and s.kind == "vector"]


def _below(n: int, k: int) -> int:
    """The smallest power of two that is at least n / k."""
    return 1 << max(0, (-(-n // k) - 1).bit_length())


def _widest(nest: Nest, buffers: dict[str, Buffer], variables: set[str]) -> int:
    """Elements whose narrowest contiguous access fills 16 bytes."""
    sizes = [
        buffers[s.buffer].dtype.itemsize
        for s in statements(nest.body)
        if isinstance(s, (Load, Store, Accumulate))
        and s.buffer in buffers
        and any(s.index.coefficient(v) == 1 for v in variables)
    ]
    cost = sum(cost_by_name(s.prim) for s in statements(nest.body) if isinstance(s, Compute))
    if not sizes or cost >= HEAVY:
        return 1
    return min(MOST_LANES, ACCESS // min(sizes))


def _rows(nest: Nest, buffers: dict[str, Buffer], target: GpuTarget, threads: int | None) -> Mapping:
    loops = team_loops(nest)
    if not loops:
        block = threads or THREADS
        return Mapping(1, 1, block, -(-nest.units // block))
    lasts = [s.axes[-1][1] for s in loops] + [s.limit[1] for s in loops if s.limit is not None]
    lanes = gcd(_widest(nest, buffers, {s.axes[-1][0] for s in loops}), *lasts)
    pieces = max(prod(n for _, n in s.axes) for s in loops) // lanes
    team = _below(pieces, max(1, HELD // lanes))
    few = nest.units * WARP < target.multiprocessors * BUSY
    if pieces <= WARP * LONGEST and not few:
        team = min(team, WARP)
    if team <= WARP:
        block = threads or ROW_THREADS
        return Mapping(lanes, team, block, -(-nest.units // (block // team)))
    block = threads or min(max(2 * WARP, team), target.block_threads)
    return Mapping(lanes, block, block, nest.units)


def _lanes(nest: Nest, buffers: dict[str, Buffer], target: GpuTarget, threads: int | None) -> Mapping:
    across = turned(nest)
    if across is not None:
        return Mapping(1, 1, SIDE * HIGH, tiles(nest, across))
    var, extent = nest.axes[-1]
    outer = nest.points // extent if extent else 0
    widest = _widest(nest, buffers, {var})
    down = column_steps(nest)
    block = threads or THREADS
    if down >= 2 * COLUMN_STEPS:
        return _columns(extent, outer, gcd(widest, extent), down, target, block)
    lanes = widest if outer == 1 else gcd(widest, extent)
    return Mapping(lanes, 1, block, -(-outer * -(-extent // lanes) // block))


def column_steps(nest: Nest) -> int:
    """Steps of the longest walk down the columns of a nest of lanes that threads can share."""
    return max(
        (
            prod(n for _, n in s.axes)
            for s in nest.body
            if isinstance(s, Loop) and s.kind == "serial" and s.limit is None
        ),
        default=1,
    )


def _columns(extent: int, outer: int, lanes: int, down: int, target: GpuTarget, block: int) -> Mapping:
    """Several threads share a column where there are few columns."""
    wanted = target.multiprocessors * BUSY
    while lanes > 1 and outer * (extent // lanes) * LOW < wanted:
        lanes //= 2
    columns = outer * (extent // lanes)
    team = 1
    while team < min(LOW, block) and columns * team < wanted and down >= 2 * team * COLUMN_STEPS:
        team *= 2
    across = block // team
    return Mapping(lanes, team, block, -(-columns // across), across)
