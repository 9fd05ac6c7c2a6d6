"""Nests of lanes with transposed operands: square tiles that are turned in shared memory.

A load that strides along the lanes but is contiguous along another axis is read along that axis, a warp to a
line, and kept in a tile whose rows are one word longer than a warp, so that neither side meets a bank twice
(Ruetsch and Micikevicius, "Optimizing Matrix Transpose in CUDA", 2009).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from weft.codegen.emit import Reg
from weft.codegen.gpu.device import narrow_divmod
from weft.codegen.gpu.target import WARP
from weft.codegen.loop_body import Frame
from weft.ir import types as T
from weft.ir.loops import Load, Loop, Nest
from weft.ir.record import record

if TYPE_CHECKING:
    from weft.codegen.gpu.body import DeviceBody

SIDE = WARP  # of a tile
HIGH = 8  # threads of a block across the lanes
STRIDED = 8  # elements between lanes from which a load counts as strided
LEAST = 16  # shortest axes for which tiles pay


@record(frozen=True)
class Turned:
    """The other axis (its place among the nest's) and the loads that are contiguous along it."""

    axis: int
    loads: tuple[Load, ...]


def turned(nest: Nest) -> Turned | None:
    """The transposed operands of a nest, if it has any."""
    if nest.kind != "lanes" or len(nest.axes) < 2 or any(isinstance(s, Loop) for s in nest.body):
        return None
    (lane, extent), axes = nest.axes[-1], {v for v, _ in nest.axes}
    for k, (var, n) in enumerate(nest.axes[:-1]):
        loads = tuple(
            s
            for s in nest.body
            if isinstance(s, Load)
            and s.mask is None
            and abs(s.index.coefficient(lane)) >= STRIDED
            and s.index.coefficient(var) == 1
            and axes.issuperset(s.index.names())
        )
        if loads and min(n, extent) >= LEAST:
            return Turned(k, loads)
    return None


def tiles(nest: Nest, t: Turned) -> int:
    """Blocks of a nest with transposed operands."""
    extent, other = nest.axes[-1][1], nest.axes[t.axis][1]
    return nest.points // (extent * other) * -(-extent // SIDE) * -(-other // SIDE)


def emit_turned(e: DeviceBody, nest: Nest, t: Turned, own: Reg, tid: Reg) -> None:
    """The code of the tile number ``own``."""
    fn, b = e.fn, e.b
    (lane, extent), (var, other) = nest.axes[-1], nest.axes[t.axis]
    rest = [axis for i, axis in enumerate(nest.axes[:-1]) if i != t.axis]
    bound = tiles(nest, t)
    left, across = narrow_divmod(b, own, -(-extent // SIDE), bound)
    left, down = narrow_divmod(b, left, -(-other // SIDE), bound)
    for name, n in reversed(rest):
        left, here = narrow_divmod(b, left, n, bound)
        e.env[name] = [here]
    y, x = narrow_divmod(b, tid, WARP, SIDE * HIGH)
    first, top = e.times(across, SIDE), e.times(down, SIDE)
    arrays = [_array(e, s) for s in t.loads]
    for r in range(0, SIDE, HIGH):
        row = e.add(y, e.i64(r))
        e.env[lane], e.env[var] = [e.add(first, row)], [e.add(top, x)]
        with _inside(e, (e.env[lane][0], extent), (e.env[var][0], other)):
            known = dict(e.env)
            for s, array in zip(t.loads, arrays, strict=True):
                (at,) = e.index_regs(s.index)
                e.put(array, e.add(e.times(row, SIDE + 1), x).text, e.load_one(s.buffer, at, None))
            e.env = known
    fn.barrier()
    for r in range(0, SIDE, HIGH):
        row = e.add(y, e.i64(r))
        e.env[var] = [e.add(top, row)]
        at = e.add(first, x)
        with _inside(e, (at, extent), (e.env[var][0], other)):
            known = dict(e.env)
            e.frame = Frame(lane, 0, [at])
            for s, array in zip(t.loads, arrays, strict=True):
                place = e.add(e.times(x, SIDE + 1), row).text
                e.env[s.name] = [e.get(array, place, e.types[s.buffer])]
            e.run([s for s in nest.body if not any(s is load for load in t.loads)])
            e.frame = Frame()
            e.env = known


def _array(e: DeviceBody, s: Load) -> tuple[str, str, int]:
    return e.shared_array(Reg("", e.types[s.buffer], 0, 0), SIDE * (SIDE + 1))


def _inside(e: DeviceBody, *bounds: tuple[Reg, int]) -> AbstractContextManager[None]:
    """Where each index is below its bound."""
    inside: Reg | None = None
    for at, bound in bounds:
        if bound % SIDE:
            here = e.b.compare("lt", at, e.b.const(bound, T.i64))
            inside = here if inside is None else e.b.binary("and", inside, here)
    return e.only(None if inside is None else inside.text)
