"""Memory of a device: a caching allocator ordered by stream, and pinned buffers of the host.

A block that is freed is used again at once by the stream it was taken on, because what that stream runs later
comes after what it runs now. Where other streams have used it too (:meth:`Allocator.record_stream`) it waits
for events on those, and where one of them belongs to a captured graph, for the end of the graph. Sizes,
segments and splitting are those of PyTorch's CUDACachingAllocator: multiples of 512 bytes, small blocks from
segments of 2 MB, larger ones from segments of 20 MB or of their own.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from bisect import bisect_left, insort
from collections import deque
from typing import Any

import numpy as np
from weft.runtime import stats
from weft.runtime.cuda import api
from weft.runtime.cuda.driver import CudaError, Driver

ALIGN = 512  # addresses and sizes of blocks
_SMALL = 1 << 20  # blocks up to this share segments of 2 MB
_SMALL_SEGMENT, _LARGE_SEGMENT = 2 << 20, 20 << 20
_OWN_SEGMENT = 10 << 20  # from here on a block has a segment of its own


class OutOfMemoryError(RuntimeError):
    """The device has no room for an allocation, even with all cached blocks given back."""


class Block:
    """A piece of a segment. ``prev`` and ``next`` are its neighbours in the segment, ``users`` the streams
    besides its own that may still work on it."""

    __slots__ = ("address", "free", "next", "prev", "size", "small", "stream", "users")

    def __init__(self, address: int, size: int, stream: int, small: bool) -> None:
        self.address, self.size, self.stream, self.small = address, size, stream, small
        self.free = False
        self.prev: Block | None = None
        self.next: Block | None = None
        self.users: set[int] | None = None

    def __lt__(self, other: Block) -> bool:
        return (self.size, self.address) < (other.size, other.address)


class Lease:
    """Keeps a block in use for as long as it lives."""

    __slots__ = ("__weakref__", "allocator", "block")

    def __init__(self, allocator: Allocator, block: Block) -> None:
        self.allocator, self.block = allocator, block

    def __del__(self) -> None:
        self.allocator.freed.append(self.block)


def round_size(nbytes: int) -> int:
    """The size of the block that serves a request."""
    return max(ALIGN, -(-nbytes // ALIGN) * ALIGN)


def _segment_size(size: int) -> int:
    if size <= _SMALL:
        return _SMALL_SEGMENT
    return _LARGE_SEGMENT if size < _OWN_SEGMENT else -(-size // _SMALL_SEGMENT) * _SMALL_SEGMENT


class Allocator:
    """The blocks of one device. Any thread may take blocks; giving one back never waits for a lock, because
    it happens wherever Python drops the last reference."""

    def __init__(self, driver: Driver, context: int, name: str) -> None:
        self.driver, self.context, self.name = driver, context, name
        self.freed: deque[Block] = deque()  # given back, not yet in a free list
        self._ready: dict[tuple[int, int], list[Block]] = {}  # whole, by stream and size
        self._free: dict[tuple[int, bool], list[Block]] = {}  # merged with their neighbours, by size
        self._waiting: deque[tuple[Block, list[int]]] = deque()  # blocks and the events that they wait for
        self._kept: list[Block] = []  # given back, used by captured graphs
        self._lock = threading.RLock()
        self.private: set[int] = set()  # streams of captured graphs, whose memory stays as it is
        self._allocated = self._reserved = self._peak = self._peak_reserved = 0

    # -- taking and giving back -------------------------------------------------------------------------
    def take(self, nbytes: int, stream: int) -> Block:
        """A block of at least ``nbytes`` for work on ``stream``; its contents are undefined.
        OutOfMemoryError where the device has no room left."""
        return self.take_block(round_size(nbytes), stream)

    def take_block(self, size: int, stream: int) -> Block:
        """``take`` of a size that is one of a block already."""
        with self._lock:
            if self.freed:
                self._collect()
            if self._waiting:
                self._settle(wait=False)
            ready = self._ready.get((stream, size))
            block = ready.pop() if ready else self._cut(size, stream)
            self._allocated += block.size
            if self._allocated > self._peak:
                self._peak = self._allocated
            return block

    def _cut(self, size: int, stream: int) -> Block:
        """A block where none of this size is ready: those that are ready merge, and one is cut to size."""
        self._merge()
        return self._split(self._find(size, stream) or self._grow(size, stream), size)

    def lease(self, nbytes: int, stream: int) -> Lease:
        """A block that goes back when the lease dies."""
        return Lease(self, self.take(nbytes, stream))

    def record_stream(self, block: Block, stream: int) -> None:
        """Work on ``stream`` uses the block, too: it is not used again before that work is done."""
        if stream != block.stream:
            with self._lock:
                block.users = (block.users or set()) | {stream}

    def _collect(self) -> None:
        """Make what was given back ready for use."""
        while self.freed:
            block = self.freed.popleft()
            if not block.users:
                self._allocated -= block.size
                self._make_ready(block)
            elif self.private.isdisjoint(block.users):
                self._allocated -= block.size
                self._waiting.append((block, self._events(block.users)))
                block.users = None
            else:
                self._kept.append(block)  # each replay uses it

    def end_private(self, stream: int) -> None:
        """The graph that was captured on ``stream`` is gone, and all that it ran is over."""
        with self._lock:
            self.private.discard(stream)
            self.freed.extend(self._kept)
            self._kept.clear()

    def _make_ready(self, block: Block) -> None:
        ready = self._ready.get((block.stream, block.size))
        if ready is None:
            ready = self._ready[block.stream, block.size] = []
        ready.append(block)

    def _merge(self) -> None:
        """Put the blocks that are ready into the free lists."""
        for blocks in self._ready.values():
            while blocks:
                self._release(blocks.pop())

    def _events(self, streams: set[int]) -> list[int]:
        self.driver.activate(self.context)
        events = []
        for stream in streams:
            events.append(self.driver.event_create(timing=False))
            self.driver.call("cuEventRecord", events[-1], stream)
        return events

    def _find(self, size: int, stream: int) -> Block | None:
        free = self._free.get((stream, size <= _SMALL))
        if not free:
            return None
        at = bisect_left(free, (size, 0), key=lambda b: (b.size, b.address))
        return free.pop(at) if at < len(free) else None

    def _settle(self, wait: bool) -> None:
        """Release the blocks whose events are done, with ``wait`` all that have events."""
        still: deque[tuple[Block, list[int]]] = deque()
        self.driver.activate(self.context)
        for block, events in self._waiting:
            if wait:
                for e in events:
                    self.driver.call("cuEventSynchronize", e)
            if wait or all(self.driver.is_ready("cuEventQuery", e) for e in events):
                for e in events:
                    self.driver.call("cuEventDestroy_v2", e)
                self._make_ready(block)
            else:
                still.append((block, events))
        self._waiting = still

    def _release(self, block: Block) -> None:
        """Merge a block with its free neighbours and put it into its free list."""
        free = self._free.setdefault((block.stream, block.small), [])
        for other in (block.prev, block.next):
            if other is not None and other.free:
                free.remove(other)
                block = _merged(*((other, block) if other is block.prev else (block, other)))
        block.free = True
        insort(free, block)

    def _split(self, block: Block, size: int) -> Block:
        """Cut what is not needed off a free block. Large ones are cut only where much is left."""
        block.free = False
        rest = block.size - size
        if rest < (ALIGN if block.small else _SMALL + 1):
            return block
        other = Block(block.address + size, rest, block.stream, block.small)
        other.prev, other.next = block, block.next
        if block.next is not None:
            block.next.prev = other
        block.next, block.size = other, size
        other.free = True
        insort(self._free.setdefault((block.stream, block.small), []), other)
        return block

    def _grow(self, size: int, stream: int) -> Block:
        """A new segment from the driver; where it has none, after giving back all that is cached."""
        wanted = _segment_size(size)
        address = self._segment(wanted)
        if address is None:
            self._empty()
            address = self._segment(wanted)
        if address is None and wanted > size:
            wanted, address = size, self._segment(size)
        if address is None:
            raise self._out_of_memory(size)
        self._reserved += wanted
        self._peak_reserved = max(self._peak_reserved, self._reserved)
        return Block(address, wanted, stream, size <= _SMALL)

    def _segment(self, size: int) -> int | None:
        self.driver.activate(self.context)
        try:
            address = self.driver.malloc(size)
        except CudaError as e:
            if e.code == api.OUT_OF_MEMORY:
                return None
            raise
        stats.count("device_allocations")
        stats.count("device_bytes_allocated", size)
        return address

    def _out_of_memory(self, size: int) -> OutOfMemoryError:
        free, total = self.driver.memory_info()
        idle = self._reserved - self._allocated
        return OutOfMemoryError(
            f"CUDA out of memory. Tried to allocate {_human(size)}. {self.name} has a total capacity of "
            f"{_human(total)} of which {_human(free)} is free. {_human(self._allocated)} is allocated by "
            f"weft, and {_human(idle)} is reserved by weft but unallocated."
        )

    def _empty(self) -> None:
        """Give back to the driver every segment that is one free block."""
        self._settle(wait=True)
        self._merge()
        for free in [f for (stream, _), f in self._free.items() if stream not in self.private]:
            for block in [b for b in free if b.prev is None and b.next is None]:
                free.remove(block)
                self.driver.free(block.address)
                self._reserved -= block.size

    def empty_cache(self) -> None:
        """Give back to the driver what nobody uses."""
        with self._lock:
            self.driver.activate(self.context)
            self._collect()
            self._empty()

    # -- what is in use ---------------------------------------------------------------------------------
    def _counted(self) -> None:
        with self._lock:
            self._collect()

    def allocated(self) -> int:
        """Bytes in blocks that are in use."""
        self._counted()
        return self._allocated

    def reserved(self) -> int:
        """Bytes taken from the driver."""
        self._counted()
        return self._reserved

    def max_allocated(self) -> int:
        """The most bytes that were in use at once."""
        return self._peak

    def max_reserved(self) -> int:
        return self._peak_reserved

    def reset_peak(self) -> None:
        """Let the largest values start from what is in use now."""
        self._counted()
        self._peak, self._peak_reserved = self._allocated, self._reserved


def _merged(first: Block, second: Block) -> Block:
    first.size += second.size
    first.next = second.next
    if second.next is not None:
        second.next.prev = first
    return first


def _human(nbytes: int) -> str:
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= scale:
            return f"{nbytes / scale:.2f} {unit}"
    return f"{nbytes} bytes"


# -- pinned memory of the host ------------------------------------------------------------------------------


class _Pinned:
    """One pinned buffer; goes back to its pool when the last array on it dies."""

    def __init__(self, pool: PinnedPool, address: int, size: int) -> None:
        self.pool, self.address, self.size = pool, address, size

    def __del__(self) -> None:
        self.pool.freed.append((self.size, self.address))


class PinnedPool:
    """Pinned buffers by size, reused; a copy that is under way keeps its buffer by an event."""

    def __init__(self, driver: Driver, context: int) -> None:
        self.driver, self.context = driver, context
        self.freed: deque[tuple[int, int]] = deque()
        self._free: dict[int, list[int]] = {}
        self._sizes: dict[int, int] = {}  # of every buffer, by address
        self._held: deque[tuple[int, Any]] = deque()  # events, and the arrays that live until they are done
        self._lock = threading.RLock()

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """An uninitialised array in pinned memory."""
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if not nbytes:
            return np.empty(shape, dtype)
        size = 1 << max(12, (nbytes - 1).bit_length())
        with self._lock:
            while self.freed:
                done, address = self.freed.popleft()
                self._free.setdefault(done, []).append(address)
            self.settle()
            free = self._free.get(size)
            address = free.pop() if free else self._new(size)
        memory: Any = _lease_type(size).from_address(address)
        memory.pinned = _Pinned(self, address, size)
        return np.ndarray(shape, dtype, memory)

    def _new(self, size: int) -> int:
        self.driver.activate(self.context)
        address = self.driver.host_alloc(size)
        self._sizes[address] = size
        return address

    def contains(self, array: np.ndarray) -> bool:
        """Whether an array lies in a pinned buffer."""
        if not self._sizes:
            return False
        at = array.__array_interface__["data"][0]
        return any(a <= at and at + array.nbytes <= a + n for a, n in list(self._sizes.items()))

    def hold(self, array: np.ndarray, stream: int) -> None:
        """Keep an array until the work that is on ``stream`` now is done."""
        event = self.driver.event_create(timing=False)
        self.driver.call("cuEventRecord", event, stream)
        self._held.append((event, array))

    def settle(self) -> None:
        """Let go of the arrays whose copies are done."""
        self.driver.activate(self.context)
        while self._held and self.driver.is_ready("cuEventQuery", self._held[0][0]):
            event, _ = self._held.popleft()
            self.driver.call("cuEventDestroy_v2", event)

    def empty_cache(self) -> None:
        """Give unused buffers back to the driver."""
        with self._lock, contextlib.suppress(IndexError):
            self.settle()
            while self.freed:
                size, address = self.freed.popleft()
                self._free.setdefault(size, []).append(address)
            for free in self._free.values():
                while free:
                    self._sizes.pop(free[-1], None)
                    self.driver.host_free(free.pop())


_types: dict[int, Any] = {}


def _lease_type(size: int) -> Any:
    """A ctypes array type that takes attributes: a buffer numpy can stand on, which holds its owner."""
    found = _types.get(size)
    if found is None:
        found = _types[size] = type("Pinned", (ctypes.c_char * size,), {})
    return found
