"""Threads that share the work of one row (or of one strip of columns), and fold what each of them has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weft.codegen.emit import Reg, memory_form
from weft.codegen.gpu.target import WARP
from weft.codegen.llvm import reg_type
from weft.codegen.loop_folds import State, merge, start
from weft.ir.loops import Fold

if TYPE_CHECKING:
    from weft.codegen.gpu.body import DeviceBody


class Team:
    """``size`` threads, each with its ``rank`` (an i64). ``leader`` is the i1 of the one that writes what all
    of them know. A team of one thread has nothing to share.
    """

    def __init__(self, size: int, rank: Reg, leader: str | None) -> None:
        self.size, self.rank, self.leader = size, rank, leader

    def fold(self, e: DeviceBody, fold: Fold, states: list[State]) -> list[State]:
        """The fold of the states of all threads, known to each; one for each column that they share."""
        raise NotImplementedError

    def barrier(self, e: DeviceBody) -> None:
        """Wait for the team: what one has written the others may read."""


class Row(Team):
    """Threads side by side that hold parts of one row: a part of a warp, a warp, or the whole block."""

    def __init__(self, size: int, rank: Reg, leader: str | None, members: str, repeats: bool) -> None:
        super().__init__(size, rank, leader)
        self.members, self.repeats = members, repeats

    def fold(self, e: DeviceBody, fold: Fold, states: list[State]) -> list[State]:
        state = states[0]
        for other in states[1:]:
            state = merge(e.b, fold, state, other)
        state = self._butterfly(e, fold, state, min(self.size, WARP))
        if self.size > WARP:
            state = self._over_warps(e, fold, state)
        return [state]

    def _butterfly(self, e: DeviceBody, fold: Fold, state: State, width: int) -> State:
        distance = width // 2
        while distance:
            other = [e.fn.exchanged(e.b, r, distance, self.members) for r in state]
            state = merge(e.b, fold, state, other)
            distance //= 2
        return state

    def _over_warps(self, e: DeviceBody, fold: Fold, state: State) -> State:
        """Through shared memory: every warp folds what all of them wrote."""
        fn, warps = e.fn, self.size // WARP
        arrays = [e.shared_array(r, warps) for r in state]
        lane = fn.op(f"and i64 {self.rank.text}, {WARP - 1}")
        warp = fn.op(f"lshr i64 {self.rank.text}, 5")
        with fn.when(fn.op(f"icmp eq i64 {lane}, 0")):
            for r, array in zip(state, arrays, strict=True):
                e.put(array, warp, r)
        fn.barrier()
        mine = fn.op(f"and i64 {lane}, {warps - 1}")
        got = [e.get(array, mine, r.dtype) for r, array in zip(state, arrays, strict=True)]
        if self.repeats:  # nobody writes the next row's before all have read
            fn.barrier()
        return self._butterfly(e, fold, got, warps)

    def barrier(self, e: DeviceBody) -> None:
        if self.size > WARP:
            e.fn.barrier()
        elif self.size > 1:
            e.fn.warp_barrier(self.members)


class Columns(Team):
    """Threads below each other that walk down the same columns, each every ``size``-th row."""

    def __init__(self, size: int, rank: Reg, leader: str | None, across: int, column: Reg) -> None:
        super().__init__(size, rank, leader)
        self.across, self.column = across, column

    def fold(self, e: DeviceBody, fold: Fold, states: list[State]) -> list[State]:
        """Every thread adds up, in order, what all of them wrote for its columns."""
        fn, lanes = e.fn, len(states)
        stride = self.across * lanes
        arrays = [e.shared_array(r, self.size * stride) for r in states[0]]
        first = e.times(self.column, lanes)
        own = e.add(e.times(self.rank, stride), first)
        for k, state in enumerate(states):
            for r, array in zip(state, arrays, strict=True):
                e.put(array, e.add(own, e.i64(k)).text, r)
        fn.barrier()
        out: list[State] = []
        for k, like in enumerate(states):
            total = start(e, fold, 0)
            for y in range(self.size):
                at = e.add(first, e.i64(y * stride + k)).text
                got = [e.get(array, at, r.dtype) for r, array in zip(like, arrays, strict=True)]
                total = merge(e.b, fold, total, got)
            out.append(total)
        return out

    def barrier(self, e: DeviceBody) -> None:
        e.fn.barrier()


def memory_of(x: Reg) -> tuple[str, int]:
    """The LLVM type in which memory holds a value of registers, and its bytes."""
    form = memory_form(x.dtype)
    wide = {"float": 4, "double": 8, "i1": 1}
    t = reg_type(x.dtype) if x.dtype.bits == 16 and x.dtype.is_floating_point else reg_type(form)
    return t, wide.get(t, form.itemsize)
