"""cp.async: copies from global to shared memory whose bytes arrive at the wait, and not before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from weft.runtime.emulate.access import Site
from weft.runtime.emulate.masks import Mask, active
from weft.runtime.emulate.memory import Fault, Space
from weft.runtime.emulate.program import Decoder, Step, Unknown, instruction
from weft.runtime.emulate.ptx_ast import Imm, Instruction, Operand, Reg

Array = Any


@dataclass
class _Batch:
    """Copies of one instruction that are under way: where to, what, of which threads and groups."""

    site: Site
    space: Space
    flat: Array
    values: Array
    lanes: Array
    groups: Array


class Copies:
    """What is under way in a chunk. Groups are numbered by thread, in the order of their commits."""

    def __init__(self, lanes: int) -> None:
        self.committed = np.zeros(lanes, np.int64)
        self.batches: list[_Batch] = []

    def commit(self, lanes: Array) -> None:
        self.committed[lanes] += 1

    def wait(self, R: Any, mask: Mask | None, pending: int | None) -> None:
        """Deliver all but the last ``pending`` groups of the threads; None: also what is in no group."""
        waits = R.chunk.live if mask is None else mask.bits
        left: list[_Batch] = []
        for batch in self.batches:
            due = waits[batch.lanes]
            if pending is not None:
                due = due & (batch.groups < self.committed[batch.lanes] - pending)
            if due.any():
                _deliver(R, batch, due)
            if not due.all():
                left.append(_part(batch, ~due))
        self.batches = left


def _part(batch: _Batch, which: Array) -> _Batch:
    arrays = [x[which] for x in (batch.flat, batch.values, batch.lanes, batch.groups)]
    return _Batch(batch.site, batch.space, *arrays)


def _deliver(R: Any, batch: _Batch, due: Array) -> None:
    arrived = batch if due.all() else _part(batch, due)
    batch.site.check_pending(R, arrived.space, arrived.flat, R.chunk.mask_of(arrived.lanes))
    batch.site.write(R, arrived.space, arrived.flat, R.chunk.mask_of(arrived.lanes), arrived.values)


def _elements(size: int) -> tuple[int, int]:
    return (8, 2) if size == 16 else (size, 1)


class _Copy:
    def __init__(self, d: Decoder, ins: Instruction) -> None:
        target, source, size, *rest = ins.operands
        if not isinstance(size, Imm) or size.value not in ((16,) if "cg" in ins.mods else (4, 8, 16)):
            raise Unknown("a size of cp.async")
        self.bytes = size.value
        self.into = Site(d, ins, target, "shared", *_elements(self.bytes))
        self.out_of = Site(d, ins, source, "global", *_elements(self.bytes))
        self.byte = Site(d, ins, source, "global", 1, 1)
        self.size, self.ignore = self._rest(d, ins, list(rest))

    def _rest(self, d: Decoder, ins: Instruction, rest: list[Operand]) -> tuple[int | None, int | None]:
        """The slots of the number of bytes to read and of the predicate that says to read none."""
        if any(m.endswith("cache_hint") for m in ins.mods) and rest:
            rest.pop()
        if not rest:
            return None, None
        first = rest[0]
        if isinstance(first, Reg) and first.type == "pred":
            return None, d.slot(first, "pred")
        return d.slot(first, "b32"), None

    def run(self, R: Any, m: Mask | None) -> None:
        chunk = R.chunk
        lanes = chunk.lane_of(m)
        space, into, _ = self.into.parts(R, m)[0]
        values = self._read(R, m, lanes)
        self.into.check_write(R, space, into, m, values)
        space.forget(into >> self.into.shift, self.bytes)
        groups = chunk.copies.committed[lanes]
        chunk.copies.batches.append(_Batch(self.into, space, into, values, lanes, groups))

    def _read(self, R: Any, m: Mask | None, lanes: Array) -> Array:
        """The bytes to copy, zeros behind those that are read."""
        if self.size is None and self.ignore is None:
            return self._whole(R, m)
        if self.size is not None:
            sizes = active(R, m, R[self.size]).astype(np.int64)
        else:
            assert self.ignore is not None
            sizes = np.where(active(R, m, R[self.ignore]), 0, self.bytes)
        if (sizes > self.bytes).any():
            raise Fault("cp.async reads more than it copies", int(lanes[np.argmax(sizes > self.bytes)]))
        raw = np.zeros((lanes.size, self.bytes), np.uint8)
        whole = sizes == self.bytes
        if whole.any():
            mask = R.chunk.mask_of(lanes[whole])
            raw[whole] = np.ascontiguousarray(self._whole(R, mask)).view(np.uint8).reshape(-1, self.bytes)
        for k in range(self.bytes):
            some = (sizes > k) & ~whole
            if some.any():
                raw[some, k] = self._byte(R, R.chunk.mask_of(lanes[some]), k)
        element, count = _elements(self.bytes)
        values = raw.view(f"u{element}")
        return values if count > 1 else values.reshape(-1)

    def _whole(self, R: Any, mask: Mask | None) -> Array:
        space, flat, _ = self.out_of.parts(R, mask)[0]
        return self.out_of.read(R, space, flat, mask)

    def _byte(self, R: Any, mask: Mask | None, at: int) -> Array:
        space, flat, _ = self.byte.parts(R, mask)[0]
        return self.byte.read(R, space, flat + at, mask)


@instruction("cp")
def _cp(d: Decoder, ins: Instruction) -> Step:
    if ins.mods[0] != "async" or "bulk" in ins.mods or "mbarrier" in ins.mods:
        raise Unknown("this form of cp")
    if "commit_group" in ins.mods:
        return lambda R, m: R.chunk.copies.commit(R.chunk.lane_of(m))
    if "wait_all" in ins.mods:
        return lambda R, m: R.chunk.copies.wait(R, m, None)
    if "wait_group" in ins.mods:
        number = ins.operands[0]
        if not isinstance(number, Imm):
            raise Unknown("a wait for a number of groups that is no constant")
        return lambda R, m: R.chunk.copies.wait(R, m, number.value)
    return _Copy(d, ins).run
