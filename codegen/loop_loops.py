"""Loops of the kernel IR to LLVM: vector loops, with accumulators and a tail."""

from __future__ import annotations

from typing import Any

from weft.codegen.emit import Reg
from weft.codegen.llvm import reg_type
from weft.codegen.loop_ahead import emit_ahead, strip_of
from weft.codegen.loop_body import BodyEmitter, Frame, varying
from weft.codegen.loop_folds import State, across, merge, publish, start, step
from weft.codegen.loop_serial import (
    BLOCK,
    added,
    by_blocks,
    end_of,
    flatten,
    fresh,
    held_in,
    nested,
    serial,
    sums,
    unflatten,
    unrolled,
)
from weft.codegen.loop_transpose import has_turned
from weft.codegen.stages import Stages, straight
from weft.ir import types as T
from weft.ir.loops import Accumulate, Affine, Compute, Fold, Load, Loop, Number, Store, Tile, statements
from weft.ir.scalarcost import cost_by_name

LONG_BODY = 60.0  # simple operations in a body that may be cut in stages
MANY = 64  # vectors in a loop that is worth it


def emit_loop(e: BodyEmitter, loop: Loop) -> None:
    """Emit an inner loop; its folds are in ``e.env`` afterwards."""
    if loop.kind == "vector" and e.frame.var is None:
        _VectorLoop(e, loop).emit()
    elif loop.kind == "unroll":
        unrolled(e, loop)
    else:
        serial(e, loop)


def unroll_of(body: list[Any], lane: str) -> int:
    """How many vectors a loop works on at once: few where the body is long."""
    if has_turned(body, lane):
        return 1
    cost = sum(cost_by_name(s.prim) for s in statements(body) if isinstance(s, Compute))
    columns = any(isinstance(s, Loop) and s.kind == "serial" for s in body)  # wide pieces of far rows
    if any(isinstance(s, Loop) for s in body):
        cost *= 2
    return 4 if cost <= 24 or columns else 2


def long_body(body: list[Any]) -> bool:
    """True for arithmetic alone, and much of it, whose operands are not written."""
    if any(not isinstance(s, (Number, Affine, Load, Compute, Store)) for s in body):
        return False
    written = {s.buffer for s in body if isinstance(s, Store)}
    if any(isinstance(s, Load) and s.buffer in written for s in body):
        return False
    return sum(cost_by_name(s.prim) for s in body if isinstance(s, Compute)) >= LONG_BODY


class _VectorLoop:
    """A loop whose last axis goes into lanes: main part, then a tail."""

    def __init__(self, e: BodyEmitter, loop: Loop) -> None:
        self.e, self.loop = e, loop
        self.var, self.extent = loop.axes[-1]
        self.w = e.lanes
        self.unroll = max(1, min(unroll_of(loop.body, self.var), self.extent // self.w))
        kept = sum(s.size * s.dtype.itemsize for s in loop.body if isinstance(s, Tile)) * self.w
        while self.unroll > 1 and kept * self.unroll > e.target.l2_bytes // 2:
            self.unroll //= 2  # strips of columns are walked again: they have to stay in the second cache
        self.differs = varying(loop.body, self.var)
        self.stages: Stages | None = None

    def cut(self) -> None:
        """Go through the loop in stages, a vector at a time, where the body is long and its parts wait for
        each other.
        """
        e, body = self.e, self.loop.body
        if not long_body(body) or self.extent < MANY * self.w or e.target.registers < 32:
            return
        with e.fn.apart() as lines:
            at = Reg(e.fn.name("at"), T.i64, 0, e.fn.depth)
            self._group(at, 1, [])
        if straight(lines):
            stages = Stages(lines, at.text, self.w)
            if stages.count > 1:
                self.unroll, self.stages = 1, stages

    def emit(self) -> None:
        e = self.e
        if not self.loop.folds and len(self.loop.axes) == 1 and self.loop.limit is None:
            self.cut()
        states = [[start(e, f, self.w) for _ in range(self.unroll)] for f in self.loop.folds]
        if not e.target.masked:
            for f, per in zip(self.loop.folds, states, strict=True):
                per.append(start(e, f, 0))
        inside = self._added if len(self.loop.axes) > 1 and sums(self.loop) else self._range
        states = nested(e, self.loop.axes[:-1], states, self.loop.folds, inside)
        for fold, per in zip(self.loop.folds, states, strict=True):
            self._finish(fold, per)

    def _finish(self, fold: Fold, per: list[State]) -> None:
        e = self.e
        scalar = [s for s in per if not s[0].lanes]
        vectors = [s for s in per if s[0].lanes]
        while len(vectors) > 1:
            pairs = [merge(e.b, fold, x, y) for x, y in zip(vectors[::2], vectors[1::2], strict=False)]
            vectors = pairs + ([vectors[-1]] if len(vectors) % 2 else [])
        out = across(e, fold, vectors[0])
        for s in scalar:
            out = merge(e.b, fold, out, s)
        publish(e, fold, [out])

    def _added(self, states: list[list[State]]) -> list[list[State]]:
        """The last axis from the identities, added to what came before."""
        e, folds = self.e, self.loop.folds
        return added(e, folds, states, self._range(fresh(e, folds, states)))

    def _range(self, states: list[list[State]]) -> list[list[State]]:
        if self.loop.limit is not None:
            return self._dynamic(states)
        group = self.unroll * self.w
        main = self.extent // group * group
        if main > 2 * BLOCK * group and sums(self.loop):
            states = by_blocks(self.e, self.loop.folds, main, group, states, self._main)
        elif main:
            states = self._main("0", str(main), states, main == group)
        if main < self.extent:
            states = self._rest(main, states)
        return states

    def _main(
        self, begin: str, end: str, states: list[list[State]], once: bool = False, runs: bool = True
    ) -> list[list[State]]:
        """Whole groups of vectors between two positions."""
        e, group = self.e, self.unroll * self.w
        if self.stages is not None:
            e.fn.declares |= {f"declare i64 @llvm.s{m}.i64(i64, i64)" for m in ("min", "max")}
            self.stages.emit(e.fn, begin, end)
            return states
        if once:
            return self._group(e.i64(int(begin)), self.unroll, states)
        strip = None if states or runs else strip_of(e, self.loop.body, self.var)
        if strip is not None:
            emit_ahead(e, strip, lambda at: self._frame(at, self.unroll), begin, end, group)
            return states
        flat = flatten(states)
        carried = [(reg_type(r.dtype, r.lanes), r.text) for r in flat]
        with e.fn.loop(begin, end, group, carried, runs=runs) as scope:
            at = Reg(scope.var, T.i64, 0, e.fn.depth)
            out = self._group(at, self.unroll, unflatten(held_in(e, flat, scope.phis), states))
            for phi, r in zip(scope.phis, flatten(out), strict=True):
                scope.update(phi.name, r.text)
        return unflatten(
            [Reg(t, r.dtype, r.lanes, e.fn.depth) for t, r in zip(scope.results, flat, strict=True)], states
        )

    def _group(
        self, at: Reg, instances: int, states: list[list[State]], masks: Any = None, first: int = 0
    ) -> list[list[State]]:
        """The body on ``instances`` vectors from ``at`` on, folded into the states from number ``first``."""
        return self._in_frame(self._frame(at, instances, masks), states, first)

    def _frame(self, at: Reg, instances: int, masks: Any = None) -> Frame:
        bases = [self.e.add(at, self.e.i64(k * self.w)) for k in range(instances)]
        return Frame(self.var, self.w, bases, masks or [None])

    def _in_frame(self, frame: Frame, states: list[list[State]], first: int) -> list[list[State]]:
        e = self.e
        outer, e.frame = e.frame, frame
        e.run(self.loop.body)
        out = []
        for fold, per in zip(self.loop.folds, states, strict=True):
            new = list(per)
            for k in range(frame.instances):
                slot = (first + k) if frame.lanes else len(per) - 1
                mask = frame.masks[min(k, len(frame.masks) - 1)]
                new[slot] = step(e, fold, new[slot], k, mask)
            out.append(new)
        e.frame = outer
        return out

    def _rest(self, begin: int, states: list[list[State]]) -> list[list[State]]:
        """What static whole groups leave: single vectors, then a masked vector or single elements."""
        e = self.e
        left = self.extent - begin
        full, tail = divmod(left, self.w)
        if e.target.masked:
            masks: list[Reg | None] = [None] * full
            if tail:
                masks.append(self._tail_mask(tail))
            return self._group(e.i64(begin), len(masks), states, masks)
        if full:
            states = self._group(e.i64(begin), full, states)
        return self._singles(str(begin + full * self.w), str(self.extent), states) if tail else states

    def _tail_mask(self, tail: int) -> Reg:
        """The first ``tail`` lanes. LLVM stores too many bytes for a truncated value under a constant mask
        of one lane, so that mask is hidden from it.
        """
        if tail == 1:
            hidden = self.e.fn.op('call i64 asm "", "=r,0"(i64 1)', 0)
            return run_mask(self.e, self.e.i64(0), hidden)
        bits = ", ".join(f"i1 {'true' if i < tail else 'false'}" for i in range(self.w))
        return Reg(f"<{bits}>", T.bool_, self.w, 0)

    def _singles(
        self, begin: str, end: str, states: list[list[State]], runs: bool = True
    ) -> list[list[State]]:
        """One element at a time; folds go into the scalar state."""
        e = self.e
        flat = flatten(states)
        carried = [(reg_type(r.dtype, r.lanes), r.text) for r in flat]
        with e.fn.loop(begin, end, 1, carried, runs=runs) as scope:
            at = Reg(scope.var, T.i64, 0, e.fn.depth)
            held = unflatten(held_in(e, flat, scope.phis), states)
            out = self._in_frame(Frame(self.var, 0, [at]), held, 0)
            for phi, r in zip(scope.phis, flatten(out), strict=True):
                scope.update(phi.name, r.text)
        return unflatten(
            [Reg(t, r.dtype, r.lanes, e.fn.depth) for t, r in zip(scope.results, flat, strict=True)], states
        )

    def _dynamic(self, states: list[list[State]]) -> list[list[State]]:
        """The last axis ends at min(extent, limit - base)."""
        return self.between("0", end_of(self.e, self.loop).text, states)

    def between(self, begin: str, end: str, states: list[list[State]]) -> list[list[State]]:
        """Positions begin..end known at run time: whole groups, then a masked or single-element rest."""
        e, group = self.e, self.unroll * self.w
        n = e.fn.op(f"sub i64 {end}, {begin}")
        rest = e.fn.op(f"srem i64 {n}, {group}")  # the group need not be a power of two
        whole = e.fn.op(f"sub i64 {n}, {rest}")
        middle = e.fn.op(f"add i64 {begin}, {whole}")
        states = self._main(begin, middle, states, runs=False)
        if not e.target.masked:
            return self._singles(middle, end, states, runs=False)
        flat = flatten(states)
        carried = [(reg_type(r.dtype, r.lanes), r.text) for r in flat]
        with e.fn.loop(middle, end, self.w, carried, runs=False) as scope:
            at = Reg(scope.var, T.i64, 0, e.fn.depth)
            mask = run_mask(e, at, end)
            out = self._group(at, 1, unflatten(held_in(e, flat, scope.phis), states), [mask])
            for phi, r in zip(scope.phis, flatten(out), strict=True):
                scope.update(phi.name, r.text)
        return unflatten(
            [Reg(t, r.dtype, r.lanes, e.fn.depth) for t, r in zip(scope.results, flat, strict=True)], states
        )


def run_mask(e: BodyEmitter, at: Reg, end: str) -> Reg:
    """Lanes whose position at + lane lies before ``end``."""
    w = e.lanes
    left = e.fn.op(f"sub i64 {end}, {at.text}")
    small = e.fn.op(f"trunc i64 {left} to i32")
    n = e.b.splat(Reg(small, T.i32, 0, e.fn.depth), w)
    steps = ", ".join(f"i32 {i}" for i in range(w))
    mask = e.fn.op(f"icmp slt <{w} x i32> <{steps}>, {n.text}")
    return Reg(mask, T.bool_, w, e.fn.depth)


def lanes_range(
    e: BodyEmitter, body: list[Any], var: str, extent: int, begin: str, end: str, exact: bool
) -> None:
    """Run a body over positions begin..end of a vectorised axis. ``exact``: a whole number of groups."""
    loop = Loop([(var, extent)], "vector", body)
    v = _VectorLoop(e, loop)
    v.cut()
    if exact and extent % (v.unroll * v.w) == 0:
        v._main(begin, end, [], runs=False)
    else:
        v.between(begin, end, [])


def fits_groups(e: BodyEmitter, body: list[Any], var: str, extent: int) -> bool:
    """Whether the whole axis is no more code than a part of it known at run time: groups, and a vector."""
    v = _VectorLoop(e, Loop([(var, extent)], "vector", body))
    return extent % (v.unroll * v.w) <= (v.w if e.target.masked else 0)


def has_partials(body: list[Any]) -> bool:
    return any(isinstance(s, Accumulate) for s in statements(body))
