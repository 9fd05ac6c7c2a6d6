"""Memory of the emulated device, with a state for each byte: allocated or not, written or not."""

from __future__ import annotations

from bisect import bisect_right, insort
from typing import Any

import numpy as np
from weft.runtime.emulate.races import RaceShadow
from weft.runtime.emulate.windows import GLOBAL_BASE

Array = Any
ALLOCATED = 1
WRITTEN = 2
_READY = ALLOCATED | WRITTEN
_GUARD = 256
_ALIGN = 256
# fresh memory: NaN as a float, far out of range as an index
JUNK = 0xFF


class Fault(Exception):
    """An access that faults, by its ``lane`` among the threads of the chunk (None: no thread is to blame)."""

    def __init__(self, text: str, lane: int | None = None) -> None:
        super().__init__(text)
        self.text, self.lane = text, lane


class Space:
    """Bytes, their states, and their races: of global memory, or of shared or local memory of a chunk."""

    def __init__(self, name: str, data: Array, state: Array, race: RaceShadow | None) -> None:
        self.name, self.data, self.state, self.race = name, data, state, race
        self.bytes = data.size
        self._rows: dict[tuple[bool, int, int], Array] = {}

    def rows(self, size: int, count: int) -> Array:
        """The data as elements of ``size`` bytes, for a ``count`` over 1 in rows of so many."""
        return self._view(self.data, False, size, count)

    def _view(self, array: Array, state: bool, size: int, count: int) -> Array:
        found = self._rows.get((state, size, count))
        if found is None:
            found = array.view(f"u{size}")
            if count > 1:
                found = found.reshape(-1, count)
            self._rows[state, size, count] = found
        return found

    def states(self, width: int) -> tuple[Array, Any]:
        """States by accesses of ``width`` bytes, and the value that says "all allocated and written"."""
        size = min(width, 8)
        pattern = np.frombuffer(bytes([_READY]) * size, f"u{size}")[0]
        return self._view(self.state, True, size, width // size), pattern

    def check_written(self, at: Array, width: int) -> Array | None:
        """Where accesses at rows ``at`` find bytes unwritten, None for nowhere. Fault: unallocated."""
        states, ready = self.states(width)
        found = states[at]
        if (found == ready).all():
            return None
        if found.ndim > 1:
            found = np.bitwise_and.reduce(found, axis=1)
        self._check_allocated(found, at, width, ready)
        return found != ready

    def check_allocated(self, at: Array, width: int) -> None:
        states, ready = self.states(width)
        found = states[at]
        if (found == ready).all():
            return
        if found.ndim > 1:
            found = np.bitwise_and.reduce(found, axis=1)
        self._check_allocated(found, at, width, ready)

    def _check_allocated(self, found: Array, at: Array, width: int, ready: Any) -> None:
        allocated = ready // _READY
        bad = (found & allocated) != allocated
        if bad.any():
            lane = int(np.argmax(bad))
            address = self.address(int(at[lane]) * width)
            raise Fault(f"{self.name} address {address:#x} is not allocated", lane)

    def mark_written(self, at: Array, width: int) -> None:
        states, ready = self.states(width)
        states[at] = ready

    def is_written(self, at: Array, width: int) -> Array:
        """Whether any byte of each access was written."""
        states, ready = self.states(width)
        written = states[at] & (ready // _READY * WRITTEN)
        return written.any(axis=1) if written.ndim > 1 else written != 0

    def forget(self, at: Array, width: int) -> None:
        """The bytes count as unwritten again."""
        states, ready = self.states(width)
        states[at] = ready // _READY

    def address(self, flat: int) -> int:
        return flat


class Arena(Space):
    """Global memory and its allocations. Device addresses begin at GLOBAL_BASE and are no host addresses."""

    def __init__(self, size: int) -> None:
        size = -(-size // 4096) * 4096
        super().__init__("global", np.zeros(size, np.uint8), np.zeros(size, np.uint8), RaceShadow(size))
        self.starts: list[int] = []
        self.sizes: dict[int, int] = {}
        self.free_from = _GUARD
        # gaps of freed allocations by their size: what is used again need not touch more of the host's memory
        self.gaps: dict[int, list[int]] = {}

    def address(self, flat: int) -> int:
        return GLOBAL_BASE + flat

    def malloc(self, size: int) -> int:
        """The address of ``size`` fresh bytes (at least one). MemoryError where no gap is large enough."""
        room = -(-max(size, 1) // _ALIGN) * _ALIGN + _GUARD
        at = self._gap(room)
        insort(self.starts, at)
        self.sizes[at] = max(size, 1)
        self.data[at : at + size] = JUNK
        self.state[at : at + max(size, 1)] = ALLOCATED
        return GLOBAL_BASE + at

    def _gap(self, room: int) -> int:
        known = self.gaps.get(room)
        if known:
            return known.pop()
        if self.free_from + room <= self.bytes:
            at = self.free_from
            self.free_from += room
            return at
        self.gaps.clear()  # what follows may take a part of one
        at = _GUARD
        for start in self.starts:
            if start - at >= room:
                return at
            at = start + -(-self.sizes[start] // _ALIGN) * _ALIGN + _GUARD
        if at + room <= self.bytes:
            return at
        raise MemoryError(f"the emulated device has no {room} bytes left")

    def free(self, address: int) -> None:
        """Give back an allocation. ValueError for an address that malloc did not return, or freed before."""
        at = address - GLOBAL_BASE
        size = self.sizes.pop(at, None)
        if size is None:
            raise ValueError(f"{address:#x} is not an allocation of the emulated device")
        self.starts.remove(at)
        self.state[at : at + size] = 0
        self.gaps.setdefault(-(-size // _ALIGN) * _ALIGN + _GUARD, []).append(at)
        if not self.starts:
            self.free_from = _GUARD
            self.gaps.clear()

    def span(self, address: int, size: int) -> slice:
        """The bytes of a copy, within one allocation. ValueError where they are not."""
        at = address - GLOBAL_BASE
        k = bisect_right(self.starts, at) - 1
        if size == 0:
            return slice(0, 0)
        if k < 0 or at + size > self.starts[k] + self.sizes[self.starts[k]]:
            raise ValueError(f"{size} bytes at {address:#x} are not within one allocation")
        return slice(at, at + size)
