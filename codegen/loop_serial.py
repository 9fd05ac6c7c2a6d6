"""Serial and unrolled loops of the kernel IR to LLVM, and the states of folds that loops carry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from weft.codegen.emit import Reg
from weft.codegen.llvm import reg_type
from weft.codegen.loop_body import BodyEmitter, mark
from weft.codegen.loop_folds import State, merge, publish, start, step
from weft.codegen.loop_transpose import can_turn, emit_turned, turned_loads
from weft.ir import types as T
from weft.ir.loops import Fold, Load, Loop

# sums in blocks ------------------------------------------------------------------------------------------
#
# One accumulator after n additions is off by up to n roundings. Blocks of BLOCK additions, each from zero,
# make that BLOCK + n / BLOCK (Higham, "Accuracy and Stability of Numerical Algorithms", 4.2).

BLOCK = 128
Run = Callable[[str, str, list[list[State]]], list[list[State]]]


def sums(loop: Loop) -> bool:
    return any(f.op == "sum" and f.dtype.is_floating_point for f in loop.folds)


def by_blocks(e: BodyEmitter, folds: list[Fold], end: int, step: int, states: list[list[State]], run: Run
              ) -> list[list[State]]:  # fmt: skip
    """``run(begin, end, states)`` over 0..end a block at a time, each block from the identities."""
    flat = flatten(states)
    carried = [(reg_type(r.dtype, r.lanes), r.text) for r in flat]
    size = BLOCK * step
    with e.fn.loop("0", str(end), size, carried, runs=True) as scope:
        stop = e.fn.op(f"add nuw nsw i64 {scope.var}, {size}")
        if end % size:
            stop = e.fn.call("llvm.smin.i64", "i64", f"i64 {stop}, i64 {end}")
        got = run(scope.var, stop, fresh(e, folds, states))
        held = unflatten(held_in(e, flat, scope.phis), states)
        for phi, r in zip(scope.phis, flatten(added(e, folds, held, got)), strict=True):
            scope.update(phi.name, r.text)
    ends = [Reg(t, r.dtype, r.lanes, e.fn.depth) for t, r in zip(scope.results, flat, strict=True)]
    return unflatten(ends, states)


def fresh(e: BodyEmitter, folds: list[Fold], states: list[list[State]]) -> list[list[State]]:
    """The identities in place of these states."""
    return [[start(e, f, s[0].lanes) for s in per] for f, per in zip(folds, states, strict=True)]


def added(
    e: BodyEmitter, folds: list[Fold], before: list[list[State]], after: list[list[State]]
) -> list[list[State]]:
    """Two runs of states, one after the other."""
    return [
        [merge(e.b, f, x, y) for x, y in zip(old, new, strict=True)]
        for f, old, new in zip(folds, before, after, strict=True)
    ]


# serial and unrolled loops ---------------------------------------------------------------------------


def flatten(states: list[list[State]]) -> list[Reg]:
    return [r for fold in states for state in fold for r in state]


def unflatten(regs: list[Reg], like: list[list[State]]) -> list[list[State]]:
    it = iter(regs)
    return [[[next(it) for _ in state] for state in fold] for fold in like]


def starts(e: BodyEmitter, loop: Loop) -> list[list[State]]:
    """Initial states of the folds of a loop that is not vectorised itself: per instance where they differ."""
    f = e.frame
    differ = varying_names(e, loop)
    out = []
    for fold in loop.folds:
        per_instance = fold.name in differ
        out.append(
            [
                start(e, fold, f.lanes if per_instance else 0)
                for _ in range(f.instances if per_instance else 1)
            ]
        )
    return out


def varying_names(e: BodyEmitter, loop: Loop) -> set[str]:
    """Folds of a loop that differ between the lanes or instances of the current frame."""
    if e.frame.var is None:
        return set()
    known = {n for n, regs in e.env.items() if len(regs) > 1 or regs[0].lanes}
    out: set[str] = set()
    for name in (e.frame.var, *known):
        out.add(name)
    return varying_from([loop], out)


def varying_from(body: list[Any], names: set[str]) -> set[str]:
    found = set(names)
    for s in body:
        mark(s, found)
    return found


def fold_all(e: BodyEmitter, loop: Loop, states: list[list[State]]) -> list[list[State]]:
    return [
        [step(e, fold, state, k, None) for k, state in enumerate(per)]
        for fold, per in zip(loop.folds, states, strict=True)
    ]


def unrolled(e: BodyEmitter, loop: Loop) -> None:
    states = starts(e, loop)
    points: list[dict[str, int]] = [{}]
    for var, extent in loop.axes:
        points = [{**p, var: i} for p in points for i in range(extent)]
    first = True
    for p in points:
        for var, i in p.items():
            e.env[var] = [e.i64(i)]
        e.run(loop.body)
        states = _first(e, loop, states) if first else fold_all(e, loop, states)
        first = False
    for fold, per in zip(loop.folds, states, strict=True):
        publish(e, fold, per)


def _first(e: BodyEmitter, loop: Loop, states: list[list[State]]) -> list[list[State]]:
    """The first iteration of an unrolled fold needs no identity (but positions do)."""
    out = []
    for fold, per in zip(loop.folds, states, strict=True):
        if fold.index is None:
            out.append([[e.pick(e.env[fold.source], k)] for k in range(len(per))])
        else:
            out.append([step(e, fold, s, k, None) for k, s in enumerate(per)])
    return out


def serial(e: BodyEmitter, loop: Loop) -> None:
    turned = turned_loads(loop, e.frame.var)
    if can_turn(e, loop, turned):
        _by_blocks(e, loop, turned)
        return
    _one_by_one(e, loop)


def _by_blocks(e: BodyEmitter, loop: Loop, turned: list[Load]) -> None:
    """A loop of transposed blocks; what they leave goes one by one."""
    end = end_of(e, loop)
    done = emit_turned(e, loop, turned, end)
    if done.value is None or done.value != end.value:
        var, known = loop.axes[-1][0], dict(e.env)
        with e.fn.loop(done.text, end.text, 1) as scope:
            e.env[var] = [Reg(scope.var, T.i64, 0, e.fn.depth)]
            e.run(loop.body)
        e.env = known


def _one_by_one(e: BodyEmitter, loop: Loop) -> None:
    states, once = starts(e, loop), lambda s: _body_once(e, loop, s)
    if loop.limit is None and len(loop.axes) == 1:
        out = together(e, loop.axes, loop.folds, states, once)
    else:
        stop = end_of(e, loop).text if loop.limit is not None else None
        out = nested(e, loop.axes, states, loop.folds, once, stop)
    for fold, per in zip(loop.folds, out, strict=True):
        publish(e, fold, per)


def together(
    e: BodyEmitter,
    axes: list[tuple[str, int]],
    folds: list[Fold],
    states: list[list[State]],
    once: Callable[[list[list[State]]], list[list[State]]],
) -> list[list[State]]:
    """A loop over one axis whose body, ``once``, carries the states of all ``folds``; sums in blocks."""
    ((var, extent),) = axes
    if any(f.op == "sum" and f.dtype.is_floating_point for f in folds) and extent > 2 * BLOCK:
        return by_blocks(e, folds, extent, 1, states, lambda a, b, s: _stretch(e, var, a, b, s, once))
    return nested(e, axes, states, folds, once)


def _body_once(e: BodyEmitter, loop: Loop, states: list[list[State]]) -> list[list[State]]:
    e.run(loop.body)
    return fold_all(e, loop, states)


def _stretch(
    e: BodyEmitter,
    var: str,
    begin: str,
    end: str,
    states: list[list[State]],
    once: Callable[[list[list[State]]], list[list[State]]],
) -> list[list[State]]:
    """Iterations begin..end, at least one, of a loop over one axis."""
    flat = flatten(states)
    carried = [(reg_type(r.dtype, r.lanes), r.text) for r in flat]
    with e.fn.loop(begin, end, 1, carried, runs=True) as scope:
        e.env[var] = [Reg(scope.var, T.i64, 0, e.fn.depth)]
        out = once(unflatten(held_in(e, flat, scope.phis), states))
        for phi, r in zip(scope.phis, flatten(out), strict=True):
            scope.update(phi.name, r.text)
    ends = [Reg(t, r.dtype, r.lanes, e.fn.depth) for t, r in zip(scope.results, flat, strict=True)]
    return unflatten(ends, states)


def end_of(e: BodyEmitter, loop: Loop) -> Reg:
    """Where the last axis of a loop ends: its extent; min(extent, bound - base) where it is limited."""
    extent = e.i64(loop.axes[-1][1])
    if loop.limit is None:
        return extent
    base, bound = loop.limit
    (offset,) = e.index_regs(base)
    left = e.b.simple("sub", T.i64, e.i64(bound), offset)
    return e.b.select(e.b.compare("lt", left, extent), left, extent)


def nested(
    e: BodyEmitter,
    axes: list[tuple[str, int]],
    states: list[list[State]],
    folds: list[Fold],
    inside: Callable[[list[list[State]]], list[list[State]]],
    stop: str | None = None,
) -> list[list[State]]:
    """Scalar loops over ``axes`` that carry the states through ``inside``; the last one ends at ``stop``."""
    if not axes:
        return inside(states)
    (var, extent), rest = axes[0], axes[1:]
    if extent == 1:
        e.env[var] = [e.i64(0)]
        return nested(e, rest, states, folds, inside, stop)
    flat = flatten(states)
    carried = [(reg_type(r.dtype, r.lanes), r.text) for r in flat]
    end = str(extent) if rest or stop is None else stop
    with e.fn.loop("0", end, 1, carried, runs=True) as scope:
        e.env[var] = [Reg(scope.var, T.i64, 0, e.fn.depth)]
        held = held_in(e, flat, scope.phis)
        out = nested(e, rest, unflatten(held, states), folds, inside, stop)
        for phi, r in zip(scope.phis, flatten(out), strict=True):
            scope.update(phi.name, r.text)
    ends = [Reg(t, r.dtype, r.lanes, e.fn.depth) for t, r in zip(scope.results, flat, strict=True)]
    return unflatten(ends, states)


def held_in(e: BodyEmitter, flat: list[Reg], phis: Any) -> list[Reg]:
    return [Reg(p.name, r.dtype, r.lanes, e.fn.depth) for p, r in zip(phis, flat, strict=True)]
