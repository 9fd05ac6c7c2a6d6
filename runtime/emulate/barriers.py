"""Barriers of blocks: bar.sync, bar.arrive, bar.red, and barrier.* in their aligned and other forms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from weft.runtime.emulate.chunk import Chunk
from weft.runtime.emulate.masks import WARP, Mask, full
from weft.runtime.emulate.memory import Fault
from weft.runtime.emulate.program import Decoder, Unknown
from weft.runtime.emulate.ptx_ast import Imm, Instruction, Not, Operand

Array = Any


@dataclass(frozen=True)
class BarrierOp:
    """``number`` and ``count`` are slots; ``result`` is (operation, slot it sets, predicate, negated)."""

    kind: str
    aligned: bool
    number: int
    count: int | None
    result: tuple[str, int, int, bool] | None


def decode_barrier(d: Decoder, ins: Instruction) -> BarrierOp:
    kind = next((m for m in ins.mods if m in ("sync", "arrive", "red")), "")
    if not kind:
        raise Unknown("this form of barrier")
    aligned = ins.base == "bar" or "aligned" in ins.mods
    operands = list(ins.operands)
    result = _reduction(d, ins, operands) if kind == "red" else None
    number = d.slot(operands[0], "b32") if operands else d.slot(Imm(0), "b32")
    count = d.slot(operands[1], "b32") if len(operands) > 1 else None
    if kind == "arrive" and count is None:
        raise Unknown("an arrival without a count")
    return BarrierOp(kind, aligned, number, count, result)


def _reduction(d: Decoder, ins: Instruction, operands: list[Operand]) -> tuple[str, int, int, bool]:
    operation = next(m for m in ins.mods if m in ("popc", "and", "or"))
    target = d.dest(operands.pop(0), "b32" if operation == "popc" else "pred")
    predicate = operands.pop()
    negated = isinstance(predicate, Not)
    source = d.slot(predicate.of if isinstance(predicate, Not) else predicate, "pred")
    return operation, target, source, negated


class _Barrier:
    """One of the sixteen barriers, in every block of a chunk."""

    def __init__(self, chunk: Chunk) -> None:
        self.arrived = np.zeros(chunk.blocks, np.int64)
        self.expected = np.zeros(chunk.blocks, np.int64)  # 0: all live threads
        self.waiting: dict[int, Array] = {}  # by the block of code where threads go on
        self.votes = np.zeros(chunk.lanes, np.bool_)
        self.voters = np.zeros(chunk.lanes, np.bool_)
        self.results: dict[tuple[str, int], Array] = {}


Released = list[tuple[int, Array]]


class Barriers:
    """Threads that wait. ``arrive`` and ``left`` give those that may go on, by block of code."""

    def __init__(self, chunk: Chunk, registers: Any) -> None:
        self.chunk, self.R = chunk, registers
        self.open: dict[int, _Barrier] = {}

    @property
    def waiting(self) -> bool:
        return any(barrier.waiting for barrier in self.open.values())

    def arrive(self, op: BarrierOp, mask: Mask | None, target: int) -> Released:
        chunk = self.chunk
        bits = chunk.live if mask is None else mask.bits
        if op.aligned and mask is not None:
            self._check_whole_warps(bits)
        chunk.statistics.barriers += 1
        if op.kind == "sync" and op.count is None and not self.open and np.array_equal(bits, chunk.live):
            chunk.passed_block_barrier(slice(None))
            return [(target, bits)]
        number = self.R[op.number]
        numbers = number if number.size == 1 else np.unique(full(self.R, number)[bits])
        released: Released = []
        for number in numbers:
            if number > 15:
                raise Fault(f"barrier {number} does not exist", int(np.argmax(bits)))
            chosen = bits if numbers.size == 1 else bits & (full(self.R, self.R[op.number]) == number)
            released += self._arrive(int(number), op, chosen, target)
        self._close()
        return released

    def _check_whole_warps(self, bits: Array) -> None:
        warps = bits.reshape(-1, WARP)
        missing = warps.any(axis=1) & (warps != self.chunk.live.reshape(-1, WARP)).any(axis=1)
        if missing.any():
            warp = int(np.argmax(missing))
            lane = warp * WARP + int(np.argmax(warps[warp]))
            raise Fault("barrier in divergent code: only some threads of the warp arrive", lane)

    def _arrive(self, number: int, op: BarrierOp, bits: Array, target: int) -> Released:
        chunk = self.chunk
        barrier = self.open.setdefault(number, _Barrier(chunk))
        warps = bits.reshape(chunk.blocks, -1, WARP).any(axis=2).sum(axis=1)
        barrier.arrived += warps * WARP
        if op.count is not None:
            counts = full(self.R, self.R[op.count]).astype(np.int64)
            lanes = np.flatnonzero(bits)
            if (counts[lanes] % WARP).any() or (counts[lanes] <= 0).any():
                raise Fault("a barrier's count of threads must be a positive multiple of 32", int(lanes[0]))
            barrier.expected[lanes // chunk.padded] = counts[lanes]
        if op.result is not None:
            self._vote(barrier, op.result, bits)
        there = barrier.waiting.get(target)
        if op.kind != "arrive":
            barrier.waiting[target] = bits if there is None else there | bits
            return self._completed(barrier)
        return [(target, bits), *self._completed(barrier)]

    def _vote(self, barrier: _Barrier, result: tuple[str, int, int, bool], bits: Array) -> None:
        operation, slot, source, negated = result
        votes = full(self.R, self.R[source])
        barrier.votes = np.where(bits, ~votes if negated else votes, barrier.votes)
        barrier.voters = barrier.voters | bits
        there = barrier.results.get((operation, slot))
        barrier.results[operation, slot] = bits if there is None else there | bits

    def left(self) -> Released:
        """Called when threads have exited: barriers wait for live threads only."""
        released: Released = []
        for barrier in self.open.values():
            released += self._completed(barrier)
        self._close()
        return released

    def _completed(self, barrier: _Barrier) -> Released:
        chunk = self.chunk
        live = chunk.live.reshape(chunk.blocks, -1, WARP).any(axis=2).sum(axis=1) * WARP
        expected = np.where(barrier.expected > 0, barrier.expected, live)
        done = (barrier.arrived > 0) & (barrier.arrived >= expected)
        if not done.any():
            return []
        chunk.passed_block_barrier(done)
        barrier.arrived[done] = 0
        barrier.expected[done] = 0
        lanes = np.repeat(done, chunk.padded)
        self._deliver(barrier, lanes)
        released: Released = []
        for target, bits in list(barrier.waiting.items()):
            go, stay = bits & lanes, bits & ~lanes
            if go.any():
                released.append((target, go))
            if stay.any():
                barrier.waiting[target] = stay
            else:
                del barrier.waiting[target]
        return released

    def _close(self) -> None:
        """Forget barriers at which nobody waits."""
        for number in [n for n, b in self.open.items() if not b.waiting and not b.arrived.any()]:
            del self.open[number]

    def _deliver(self, barrier: _Barrier, lanes: Array) -> None:
        if not barrier.results:
            return
        chunk = self.chunk
        voted = (barrier.votes & barrier.voters).reshape(chunk.blocks, -1).sum(axis=1)
        voters = barrier.voters.reshape(chunk.blocks, -1).sum(axis=1)
        for (operation, slot), bits in list(barrier.results.items()):
            if operation == "popc":
                value = voted.astype(np.uint32)
            else:
                value = (voted == voters) if operation == "and" else voted > 0
            go = bits & lanes
            self.R[slot] = np.where(go, np.repeat(value, chunk.padded), self.R[slot])
            if (bits & ~lanes).any():
                barrier.results[operation, slot] = bits & ~lanes
            else:
                del barrier.results[operation, slot]
        barrier.voters = barrier.voters & ~lanes
