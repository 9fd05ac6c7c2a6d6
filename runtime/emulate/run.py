"""Running a chunk: groups of threads that stand at the same block of code, the earliest first."""

from __future__ import annotations

from typing import Any

import numpy as np
from weft.runtime.emulate.barriers import Barriers
from weft.runtime.emulate.chunk import Chunk, Launch
from weft.runtime.emulate.faults import EmulationError
from weft.runtime.emulate.masks import WARP, Mask, Registers, full, narrow
from weft.runtime.emulate.memory import Fault
from weft.runtime.emulate.program import Block
from weft.runtime.emulate.ptx_ast import Instruction
from weft.runtime.emulate.special import special_value

Array = Any
Where = list[tuple[int, Mask | None]]
# after so many blocks of code those behind a loop get a turn: they may be what it waits for
_PATIENCE = 2000


class Runner:
    def __init__(self, launch: Launch, first: int, blocks: int, budget: int) -> None:
        self.launch, self.program = launch, launch.program
        self.chunk = Chunk(launch, first, blocks)
        self.R = Registers(self.program.initial)
        self.R.chunk = self.chunk
        self.budget = budget
        self.barriers = Barriers(self.chunk, self.R)
        self.pending: dict[int, Mask | None] = {}
        self._fill()

    def _fill(self) -> None:
        for key, slot in self.program.specials.items():
            self.R[slot] = special_value(self.chunk, key)
        for slot, at, kind in self.program.params:
            self.R[slot] = _parameter(self.launch.params, at, kind)

    def run(self) -> int:
        """Run to the end; the number of blocks of code executed. EmulationError for a fault."""
        self.pending[0] = self.chunk.start
        rank, executed = self.program.rank, 0
        while self.pending:
            if len(self.pending) == 1:
                number, mask = self.pending.popitem()
            else:
                number = self._choose(rank, executed)
                mask = self.pending.pop(number)
            executed += 1
            if executed > self.budget:
                end = self.program.blocks[number].end
                raise self._error(end, None, "no end after the allowed steps: a loop?")
            self.block(number, mask)
        if self.barriers.waiting:
            raise self._stuck()
        return executed

    def _choose(self, rank: list[int], executed: int) -> int:
        if executed % _PATIENCE == 0:
            self._run_ahead(min(self.pending, key=rank.__getitem__))
        return min(self.pending, key=rank.__getitem__)

    def _run_ahead(self, first: int) -> None:
        """Let the warps that have left the first group go on for a while: it may spin until they do."""
        mask = self.pending[first]
        bits = self.chunk.live if mask is None else mask.bits
        others = np.repeat(~bits.reshape(-1, WARP).any(axis=1), WARP)
        aside, ahead = self._divide(self.pending, others)
        self.pending = ahead
        for _ in range(_PATIENCE // 4):
            if not self.pending:
                break
            at = min(self.pending, key=self.program.rank.__getitem__)
            self.block(at, self.pending.pop(at))
        for at, group in aside.items():
            self._join(at, group)

    def _divide(self, groups: dict[int, Mask | None], bits: Array) -> tuple[dict[int, Any], dict[int, Any]]:
        """Groups without and with the threads of ``bits``."""
        without: dict[int, Mask | None] = {}
        within: dict[int, Mask | None] = {}
        for number, mask in groups.items():
            here = self.chunk.live if mask is None else mask.bits
            for found, part in ((without, here & ~bits), (within, here & bits)):
                if part.any():
                    found[number] = self._mask(part)
        return without, within

    # one block of code

    def block(self, number: int, mask: Mask | None) -> None:
        block, R = self.program.blocks[number], self.R
        count = self.chunk.lanes if mask is None else mask.count
        self.launch.statistics.instructions += count * (len(block.steps) + (block.end is not None))
        at = 0
        try:
            for at, step in enumerate(block.steps):  # noqa: B007
                step(R, mask)
        except Fault as fault:
            raise self._error(block.instructions[at], fault.lane, fault.text) from None
        except EmulationError:
            raise
        except Exception as error:
            raise self._error(block.instructions[at], None, f"cannot execute ({error!r})") from error
        kind = block.kind
        if kind == "next" or kind == "jump":
            self._join(block.targets[0], mask)
        elif kind == "branch":
            self._branch(block, mask)
        else:
            try:
                self._end(block, mask)
            except Fault as fault:
                raise self._error(block.end, fault.lane, fault.text) from None

    def _join(self, number: int, mask: Mask | None) -> None:
        if number not in self.pending:
            self.pending[number] = mask
            return
        other = self.pending[number]
        if mask is None or other is None:
            self.pending[number] = None
        else:
            self.pending[number] = self._mask(mask.bits | other.bits)

    def _mask(self, bits: Array) -> Mask | None:
        count = int(np.count_nonzero(bits))
        return None if count == self.chunk.lanes else Mask(bits, count)

    def _split(self, mask: Mask | None, slot: int, negated: bool) -> tuple[Any, Any]:
        """Who of a group goes where a predicate holds, and who elsewhere; False for nobody."""
        taken = narrow(self.R, mask, self.R[slot], negated)
        if taken is mask or taken is False:
            return taken, mask if taken is False else False
        others = ~taken.bits if mask is None else mask.bits & ~taken.bits  # type: ignore
        return taken, Mask(others)

    def _branch(self, block: Block, mask: Mask | None) -> None:
        taken, others = self._split(mask, block.on, block.negated)
        if taken is not False:
            self._join(block.targets[0], taken)
        if others is not False:
            self._join(block.targets[1], others)

    def _end(self, block: Block, mask: Mask | None) -> None:
        if block.kind == "switch":
            self._switch(block, mask)
            return
        if block.end is not None and block.end.guard is not None:
            mask, others = self._split(mask, block.on, block.negated)
            if others is not False:
                self._join(block.targets[0], others)
            if mask is False:  # type: ignore
                return
        if block.kind == "barrier":
            for target, bits in self.barriers.arrive(block.barrier, mask, block.targets[0]):
                self._join(target, self._mask(bits))
        elif block.kind == "trap":
            raise Fault("trap", int(self.chunk.lane_of(mask)[0]))
        else:
            self._leave(mask)

    def _switch(self, block: Block, mask: Mask | None) -> None:
        choice = full(self.R, self.R[block.on])
        bits = self.chunk.live if mask is None else mask.bits
        outside = bits & (choice >= len(block.targets))
        if outside.any():
            raise Fault("brx.idx beyond its table", int(np.argmax(outside)))
        for value in np.unique(choice[bits]):
            self._join(block.targets[int(value)], self._mask(bits & (choice == value)))

    def _leave(self, mask: Mask | None) -> None:
        bits = self.chunk.live if mask is None else mask.bits
        self.chunk.live = self.chunk.live & ~bits
        for target, more in self.barriers.left():
            self._join(target, self._mask(more))

    # errors

    def _error(self, ins: Instruction | None, lane: int | None, text: str) -> EmulationError:
        line = ins.line if ins is not None else 0
        thread = self.chunk.thread(lane) if lane is not None else None
        what = f"{text} ({ins.text})" if ins is not None else text
        return EmulationError(self.program.name, line, thread, what)

    def _stuck(self) -> EmulationError:
        for number, barrier in self.barriers.open.items():
            for target, bits in barrier.waiting.items():
                block = next(b for b in self.program.blocks if b.kind == "barrier" and b.targets[0] == target)
                text = f"threads wait at barrier {number} for others that never come"
                return self._error(block.end, int(np.argmax(bits)), text)
        raise AssertionError("no thread waits")


def _parameter(params: bytes, at: int, kind: str) -> Array:
    from weft.runtime.emulate.convert import widen_to
    from weft.runtime.emulate.program import view_of
    from weft.runtime.emulate.ptx_ast import SIZES

    name, _, register = kind.partition("/")
    value = np.frombuffer(params[at : at + SIZES[name]], view_of(name))
    return widen_to(value, int(register))
