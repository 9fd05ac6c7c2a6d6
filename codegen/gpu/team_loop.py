"""Loops that the threads of a team share: each takes every so many-th piece; what they fold is combined."""

from __future__ import annotations

from math import prod

from weft.codegen.emit import Reg
from weft.codegen.gpu.body import DeviceBody
from weft.codegen.gpu.device import narrow_divmod
from weft.codegen.gpu.team import Columns
from weft.codegen.llvm import reg_type
from weft.codegen.loop_body import Frame
from weft.codegen.loop_folds import State, merge, publish, start, step
from weft.codegen.loop_serial import end_of, flatten, held_in, unflatten
from weft.ir import types as T
from weft.ir.loops import Fold, Loop, Store, statements

States = list[list[State]]  # by fold and instance


def is_shared(e: DeviceBody, loop: Loop) -> bool:
    """True for the loops that the team of a nest walks together."""
    if e.team is None or e.inside:
        return False
    if isinstance(e.team, Columns):
        return loop.kind == "serial" and loop.limit is None and e.team.size > 1
    return loop.kind == "vector"


def team_loop(e: DeviceBody, loop: Loop) -> None:
    """Emit a shared loop; its folds are in ``e.env`` afterwards, the same in every thread of the team."""
    _TeamLoop(e, loop).emit()


class _TeamLoop:
    def __init__(self, e: DeviceBody, loop: Loop) -> None:
        assert e.team is not None
        self.e, self.loop, self.team = e, loop, e.team
        self.down = isinstance(e.team, Columns)  # the elements of a thread lie across the loop
        self.lanes = 1 if self.down else e.lanes
        self.points = prod(n for _, n in loop.axes)
        self.pieces = self.points // self.lanes
        self.steps = -(-self.pieces // self.team.size)
        self.written_out = self.steps * e.lanes <= e.words

    def emit(self) -> None:
        e = self.e
        e.inside += 1
        outer = e.frame
        instances = e.frame.instances if self.down else self.lanes
        states = [[start(e, f, 0) for _ in range(instances)] for f in self.loop.folds]
        end = end_of(e, self.loop) if self.loop.limit is not None else None
        fills = any(isinstance(s, Store) and s.buffer in e.shared_tiles for s in statements(self.loop.body))
        if fills and e.rows is not None:
            self.team.barrier(e)  # all have read what the row before left
        states = self._all(states, end) if self.written_out else self._looped(states, end)
        e.frame = outer
        e.inside -= 1
        if fills:
            self.team.barrier(e)
        for fold, per in zip(self.loop.folds, states, strict=True):
            if fold.name in e.late:
                e.late[fold.name] = (fold, per)
            else:
                publish(e, fold, self.team.fold(e, fold, per) if self.team.size > 1 else self._own(per, fold))

    def _own(self, per: list[State], fold: Fold) -> list[State]:
        """The states of a thread that shares with nobody."""
        if self.down:
            return per
        total = per[0]
        for other in per[1:]:
            total = merge(self.e.b, fold, total, other)
        return [total]

    def _all(self, states: States, end: Reg | None) -> States:
        """Every step written out."""
        e, size = self.e, self.team.size
        for it in range(self.steps):
            piece = e.add(self.team.rank, e.i64(it * size))
            inside = None
            if (it + 1) * size > self.pieces:
                inside = e.b.compare("lt", piece, e.i64(self.pieces))
            e.point = (tuple(self.loop.axes), it)
            states = self._step(piece, inside, end, states)
            e.point = None
        return states

    def _looped(self, states: States, end: Reg | None) -> States:
        e = self.e
        flat = flatten(states)
        carried = [(reg_type(r.dtype, r.lanes), r.text) for r in flat]
        with e.fn.loop(self.team.rank.text, str(self.pieces), self.team.size, carried) as scope:
            piece = Reg(scope.var, T.i64, 0, e.fn.depth)
            held = unflatten(held_in(e, flat, scope.phis), states)
            out = self._step(piece, None, end, held)
            for phi, r in zip(scope.phis, flatten(out), strict=False):
                scope.update(phi.name, r.text)
        ends = [Reg(t, r.dtype, r.lanes, e.fn.depth) for t, r in zip(scope.results, flat, strict=True)]
        return unflatten(ends, states)

    def _step(self, piece: Reg, inside: Reg | None, end: Reg | None, states: States) -> States:
        """The body at one piece, folded into the states."""
        e = self.e
        at = self._decode(piece)
        if end is not None:
            before = e.b.compare("lt", at, end)
            inside = before if inside is None else e.b.binary("and", inside, before)
        if self.down:
            old = e.frame
            mask = _both(e, old.masks[0], inside)
            e.frame = Frame(old.var, 0, old.bases, [mask])
        else:
            var = self.loop.axes[-1][0]
            e.frame = Frame(var, 0, [e.add(at, e.i64(k)) for k in range(self.lanes)], [inside])
        e.run(self.loop.body)
        out = [
            [step(e, fold, state, k, inside) for k, state in enumerate(per)]
            for fold, per in zip(self.loop.folds, states, strict=True)
        ]
        if self.down:
            e.frame = old
        return out

    def _decode(self, piece: Reg) -> Reg:
        """Set the variables of the axes; returns the position along the last."""
        e, axes = self.e, self.loop.axes
        rest, bound = piece, self.pieces + self.team.size
        at = piece
        sizes = [n for _, n in axes]
        sizes[-1] //= self.lanes
        for i in range(len(axes) - 1, 0, -1):
            rest, here = narrow_divmod(e.b, rest, sizes[i], bound)
            bound = -(-bound // sizes[i])
            if i == len(axes) - 1:
                at = here
            else:
                e.env[axes[i][0]] = [here]
        if len(axes) > 1:
            e.env[axes[0][0]] = [rest]
        at = e.times(at if len(axes) > 1 else rest, self.lanes)
        if self.down:
            e.env[axes[-1][0]] = [at]
        return at


def _both(e: DeviceBody, x: Reg | None, y: Reg | None) -> Reg | None:
    if x is None or y is None:
        return x or y
    return e.b.binary("and", x, y)
