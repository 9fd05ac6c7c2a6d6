"""Races: accesses of the same bytes by two threads, one of them a write, that nothing orders.

For each word the last writer and the readers since are kept, as a token: the thread and how many barriers
its block and its warp had passed. Two accesses of threads of a block are ordered by a barrier of the block
between them, of threads of a warp also by a barrier of the warp. Accesses of different blocks are ordered
where the first's block made them visible by a fence, and the second's has executed an atomic operation since
the launch began; a coarse rule, which knows the usual protocols and finds what has none.

    token: thread (30 bits) | others read: warps, lanes (2 bits) | block barriers (16) | warp barriers (16)

Atomic operations (and strong stores) do not race with each other, but with plain accesses; they are kept by
themselves, as readers are.

Accesses narrower than a word are kept by the byte, in planes made when the first comes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any
_U = np.uint64
THREAD = 34
WARP = THREAD + 5
_WARPS = _U(1 << 33)
_LANES = _U(1 << 32)
_FLAGS = _WARPS | _LANES
_BLOCK_EPOCH = _U(0xFFFF0000)
_WARP_EPOCH = _U(0xFFFF)
MAX_THREADS = 1 << 30


class Order:
    """What orders accesses of different blocks of a launch, and which tokens belong to it.

    ``private``: of memory that each block has for itself.
    """

    def __init__(self, first_thread: int, block_threads: int, blocks: int, private: bool = False) -> None:
        self.private = private
        self.first = first_thread
        self.base = _U(first_thread << THREAD)
        self.block_threads = block_threads
        # by block: barriers passed at the last fence, plus one; whether an atomic was executed
        self.released = np.zeros(blocks, np.int64)
        self.acquired = np.zeros(blocks, np.bool_)

    def block_of(self, token: Array) -> Array:
        thread = (token >> _U(THREAD)).astype(np.int64) - self.first
        return thread // self.block_threads


class _Plane:
    def __init__(self, units: int) -> None:
        self.writes = np.zeros(units, _U)
        self.reads = np.zeros(units, _U)
        self._atomics: Array | None = None

    @property
    def atomics(self) -> Array:
        if self._atomics is None:
            self._atomics = np.zeros_like(self.reads)
        return self._atomics

    def against(self, kind: str) -> list[Array]:
        """The records that an access of a kind may race with."""
        atomics = [] if self._atomics is None or kind == "atomic" else [self._atomics]
        return [self.writes, *([] if kind == "read" else [self.reads]), *atomics]


class RaceShadow:
    def __init__(self, size: int) -> None:
        self.size = size
        self.words = _Plane(size // 4)
        self._bytes: _Plane | None = None

    @property
    def bytes(self) -> _Plane:
        if self._bytes is None:
            self._bytes = _Plane(self.size)
        return self._bytes

    def clear(self) -> None:
        self.words = _Plane(self.size // 4)
        self._bytes = None

    def _planes(self, flat: Array, width: int) -> tuple[_Plane, Array, int, list[tuple[_Plane, Array, int]]]:
        """The plane of an access, its first unit and how many; and what else covers the same bytes."""
        if width < 4:
            return self.bytes, flat, width, [(self.words, flat >> 2, 1)]
        others = [] if self._bytes is None else [(self._bytes, flat, width)]
        return self.words, flat >> 2, width // 4, others

    def read(self, flat: Array, width: int, token: Array, order: Order, strong: bool = False) -> Array | None:
        """Record reads; where they race with a write: bits by access, None for nowhere.

        ``strong`` ones are not recorded and race with plain writes only.
        """
        plane, at, count, others = self._planes(flat, width)
        found = None
        for p, first, n in (*others, (plane, at, count)):
            records = [p.writes] if strong else p.against("read")
            found = _either(found, _check(records, first, n, token, order))
        if not strong:
            _record(plane.reads, at, count, token, order)
        return found

    def write(self, flat: Array, width: int, token: Array, order: Order) -> tuple[Array | None, Array | None]:
        """Record writes. Which race with an access before, and which with others of this instruction."""
        plane, at, count, others = self._planes(flat, width)
        found = None
        for p, first, n in (*others, (plane, at, count)):
            found = _either(found, _check(p.against("write"), first, n, token, order))
        units, tokens = _units(at, count, token)
        plane.writes[units] = tokens
        return found, _per_access(plane.writes[units] != tokens)

    def atomic(self, flat: Array, width: int, token: Array, order: Order) -> Array | None:
        """Record atomic operations; where they race with plain accesses."""
        plane, at, count, others = self._planes(flat, width)
        found = None
        for p, first, n in (*others, (plane, at, count)):
            found = _either(found, _check(p.against("atomic"), first, n, token, order))
        _record(plane.atomics, at, count, token, order)
        return found


def _either(a: Array | None, b: Array | None) -> Array | None:
    if a is None or b is None:
        return b if a is None else a
    return a | b


def _units(at: Array, count: int, token: Array) -> tuple[Array, Array]:
    """The units of each access, and the tokens to go with them."""
    if count == 1:
        return at, token
    return at[:, None] + np.arange(count), token[:, None]


def _per_access(conflict: Array | None) -> Array | None:
    if conflict is None or not conflict.any():
        return None
    return conflict.any(axis=1) if conflict.ndim > 1 else conflict


def _check(records: list[Array], at: Array, count: int, token: Array, order: Order) -> Array | None:
    units, token = _units(at, count, token)
    found = None
    for record in records:
        found = _either(found, _conflict(record[units], token, order))
    return _per_access(found)


def _record(records: Array, at: Array, count: int, token: Array, order: Order) -> None:
    """Note who accessed, besides those that did before and still matter."""
    units, token = _units(at, count, token)
    new = _joined(records[units], token, order)
    records[units] = new
    back = records[units]
    lost = (back ^ new) >> _U(THREAD)
    if lost.any():
        _add_readers(records, units, lost, back, new)


def _add_readers(records: Array, units: Array, lost: Array, back: Array, new: Array) -> None:
    """Several threads of one instruction read the same unit: the last is recorded, the others as flags."""
    for flag, which in ((_LANES, (lost != 0) & (lost >> _U(5) == 0)), (_WARPS, lost >> _U(5) != 0)):
        if which.any():
            where = units[which]
            records[where] = records[where] | flag
    earlier = new & _FLAGS
    if ((earlier & ~back) != 0).any():
        records[units] |= earlier


def _joined(old: Array, token: Array, order: Order) -> Array:
    """The token of a reader, with flags for those that read before it and still matter."""
    token = np.broadcast_to(token, old.shape)
    x = old ^ token
    recent = (old >= order.base) & ((x & _BLOCK_EPOCH) == 0) & (x != 0)
    matters = np.flatnonzero(recent)
    if matters.size == 0:
        return token
    old, x = old.reshape(-1)[matters], x.reshape(-1)[matters]
    same_warp, same_thread = (x >> _U(WARP)) == 0, (x >> _U(THREAD)) == 0
    warps = ~same_warp | ((old & _WARPS) != 0)
    lanes = same_warp & ((x & _WARP_EPOCH) == 0) & (~same_thread | ((old & _LANES) != 0))
    joined = token.copy().reshape(-1)
    joined[matters] |= np.where(warps, _WARPS, _U(0)) | np.where(lanes, _LANES, _U(0))
    return joined.reshape(token.shape)


def _conflict(record: Array, token: Array, order: Order) -> Array | None:
    """Where an access with ``token`` is not ordered after the recorded one."""
    live = record >= order.base
    if not live.any():
        return None
    x = record ^ token
    live &= (x >> _U(THREAD) != 0) | (record & _FLAGS != 0)
    if order.private:
        live &= x & _BLOCK_EPOCH == 0  # a barrier of the block orders everything
    doubtful = np.flatnonzero(live)
    if doubtful.size == 0:
        return None
    token = np.broadcast_to(token, record.shape).reshape(-1)[doubtful]
    conflict = np.zeros(record.size, np.bool_)
    conflict[doubtful] = _unordered(record.reshape(-1)[doubtful], token, order)
    return conflict.reshape(record.shape)


def _unordered(record: Array, token: Array, order: Order) -> Array:
    x = record ^ token
    other, same_warp = (x >> _U(THREAD)) != 0, (x >> _U(WARP)) == 0
    block_now, warp_now = (x & _BLOCK_EPOCH) == 0, (x & _WARP_EPOCH) == 0
    lanes, warps = (record & _LANES) != 0, (record & _WARPS) != 0
    inside = (same_warp & warp_now & (other | lanes)) | (block_now & (~same_warp | warps))
    if order.private:
        return inside
    theirs, mine = order.block_of(record), order.block_of(token)
    epoch = ((record & _BLOCK_EPOCH) >> _U(16)).astype(np.int64)
    ordered = (order.released[theirs] > epoch) & order.acquired[mine]
    return np.where(theirs == mine, inside, ~ordered)
