"""Strips of columns that are walked several times: the next strip is read while this one is computed.

The first walk down a strip waits for memory, the second, where it is long, for arithmetic. No cache could
hold lines of the next strip where they lie: the distance from row to row puts them into a few of its sets. So
the first walk over the next strip, which copies it to an array, runs in the second walk over this one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from weft.codegen.emit import Reg
from weft.codegen.llvm import reg_type
from weft.codegen.loop_body import BodyEmitter, Frame
from weft.codegen.loop_folds import State, publish
from weft.codegen.loop_serial import fold_all, starts, together
from weft.codegen.loop_transpose import turned_loads
from weft.ir import types as T
from weft.ir.loops import Compute, Load, Loop, Number, Store, Tile
from weft.ir.record import record
from weft.ir.scalarcost import cost_by_name

if TYPE_CHECKING:
    from weft.codegen.loop_memory import Regs


WORTH = 8.0  # simple operations per element of a walk that memory can be read in


@record(frozen=True, eq=False)
class Strip:
    """A body along lanes: ``head`` is its first walk, ``second`` the next, ``kept`` what the head writes."""

    tiles: list[Tile]
    head: Loop
    rest: list[Any]
    second: Loop
    kept: list[str]


def strip_of(e: BodyEmitter, body: list[Any], lane: str) -> Strip | None:
    """The parts of a body whose first walk may run ahead; None for any other."""
    tiles = [s for s in body if isinstance(s, Tile)]
    others = [s for s in body if not isinstance(s, Tile)]
    walks = [s for s in others if isinstance(s, Loop)]
    if not tiles or len(walks) < 2 or others[0] is not walks[0]:
        return None
    head, second = walks[:2]
    names = {t.name for t in tiles}
    simple = all(isinstance(s, (Load, Compute, Number, Store)) for s in head.body)
    stores = [s.buffer for s in head.body if isinstance(s, Store)]
    loads = [s for s in head.body if isinstance(s, Load)]
    far = any(id(s) in e.ahead for s in loads)
    if not simple or not far or not stores or not set(stores) <= names:
        return None
    positions = any(f.index is not None for f in (*head.folds, *second.folds))
    if positions or any(s.buffer in names for s in loads):
        return None
    if sum(cost_by_name(s.prim) for s in second.body if isinstance(s, Compute)) < WORTH:
        return None
    alike = [w.kind == "serial" and w.limit is None and len(w.axes) == 1 for w in (head, second)]
    same = head.axes[0][1] == second.axes[0][1]
    if not all(alike) or not same or turned_loads(head, lane) or turned_loads(second, lane):
        return None
    return Strip(tiles, head, others[1:], second, list(dict.fromkeys(stores)))


def emit_ahead(
    e: BodyEmitter, strip: Strip, frame_at: Callable[[Reg], Frame], begin: str, end: str, group: int
) -> None:
    """The strips from ``begin`` to ``end``, each of ``group`` columns. From one to the next are carried the
    folds of the first walk over it, and which of two arrays holds it."""
    fn = e.fn
    some = fn.op(f"icmp slt i64 {begin}, {end}")
    with fn.when(some):
        outer, e.frame = e.frame, frame_at(Reg(begin, T.i64, 0, fn.depth))
        e.run(list(strip.tiles))
        first = {name: e.pointers[name] for name in strip.kept}
        other = {name: fn.alloca(e.reserved[name]) for name in strip.kept}
        e.run([strip.head])
        known = [list(e.env[f.name]) for f in strip.head.folds]
        flat = [r for regs in known for r in regs]
        carried = [(reg_type(r.dtype, r.lanes), r.text) for r in flat]
        carried += [("ptr", p[name]) for name in strip.kept for p in (first, other)]
        last = fn.op(f"sub i64 {end}, {group}")
        with fn.loop(begin, last, group, carried, runs=False) as scope:
            at = Reg(scope.var, T.i64, 0, fn.depth)
            following = Reg(fn.op(f"add i64 {at.text}, {group}"), T.i64, 0, fn.depth)
            texts = [p.name for p in scope.phis]
            after = _strip(e, strip, (frame_at(at), frame_at(following)), known, texts)
            for phi, text in zip(scope.phis, after, strict=True):
                scope.update(phi.name, text)
        _strip(e, strip, (frame_at(Reg(last, T.i64, 0, fn.depth)), None), known, scope.results)
        for name in strip.kept:
            e.pointers[name] = first[name]
            e.depths.pop(name)
        e.frame = outer


def _strip(
    e: BodyEmitter,
    strip: Strip,
    frames: tuple[Frame, Frame | None],
    like: list[Regs],
    carried: list[str],
) -> list[str]:
    """A strip, and the first walk over the next if there is one; returns what is carried on."""
    fn, (now, then) = e.fn, frames
    texts = iter(carried)
    for f, regs in zip(strip.head.folds, like, strict=True):
        e.env[f.name] = [Reg(next(texts), r.dtype, r.lanes, fn.depth) for r in regs]
    here: dict[str, str] = {}
    there: dict[str, str] = {}
    for name in strip.kept:
        here[name], there[name] = next(texts), next(texts)
        e.depths[name] = fn.depth
    e.frame = now
    e.pointers.update(here)
    states: list[list[State]] = []
    for s in strip.rest:
        if s is strip.second and then is not None:
            states = _both(e, strip, now, then, here, there)
        else:
            e.run([s])
    ends = [state[-1].text for per in states for state in per]
    return [*ends, *(p[name] for name in strip.kept for p in (there, here))]


def _both(
    e: BodyEmitter, strip: Strip, now: Frame, then: Frame, here: dict[str, str], there: dict[str, str]
) -> list[list[State]]:
    """The second walk over a strip with the first one over the next; returns the folds of the latter."""
    head, second = strip.head, strip.second
    n = len(second.folds)
    initial = starts(e, second)
    e.frame = then
    initial += starts(e, head)
    e.frame = now

    def inside(states: list[list[State]]) -> list[list[State]]:
        e.run(second.body)
        out = fold_all(e, second, states[:n])
        e.env[head.axes[0][0]] = e.env[second.axes[0][0]]
        e.frame = then
        e.pointers.update(there)
        e.run(head.body)
        out += fold_all(e, head, states[n:])
        e.frame = now
        e.pointers.update(here)
        return out

    out = together(e, second.axes, [*second.folds, *head.folds], initial, inside)
    for fold, per in zip(second.folds, out[:n], strict=True):
        publish(e, fold, per)
    return out[n:]
