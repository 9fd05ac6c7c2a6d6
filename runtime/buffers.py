"""The caching allocator: aligned memory for results, arenas and new tensors, recycled when the last array
on it dies.

From a page on, memory begins at a page. A load whose last twelve address bits are those of a store that is
still under way waits for it: where an operand lay a few lines before a result, kernels took twice the time.

Fresh pages cost more than the arithmetic at these sizes (writing 64 MB: 1.8 ms into reused memory, 24 ms into
fresh 4 KB pages), so a block goes back to a free list of its size class instead of to the system.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
from weft.ir.types import DType
from weft.runtime import stats

ALIGN = 64
PAGE = 4096
SMALL = 4096  # below this numpy's own allocator is faster, and alignment does not matter
_HUGE = 2 << 20
_LARGE = 1 << 20  # blocks whose return is worth a look at the limit


@lru_cache(4096)
def size_class(nbytes: int) -> int:
    """The size of the block that serves a request of ``nbytes``."""
    step = max(ALIGN, 1 << max(0, (nbytes - 1).bit_length() - 4)) if nbytes > ALIGN else ALIGN
    return -(-nbytes // step) * step


class Block:
    """Aligned memory of one size class. ``owner`` keeps it mapped, ``lease(address)`` makes an object that
    stands on it, ``free`` is the list it goes back to."""

    __slots__ = ("address", "free", "lease", "owner", "size")

    def __init__(self, size: int, free: list[Block]) -> None:
        self.size, self.free = size, free
        self.owner, self.address = _map(size)
        self.lease = _lease_type(size).from_address


def _map(size: int) -> tuple[Any, int]:
    """Fresh zeroed memory: (object that owns it, aligned address)."""
    if size < _HUGE:
        align = PAGE if size >= PAGE else ALIGN
        raw = ctypes.create_string_buffer(size + align)
        return raw, -(-ctypes.addressof(raw) // align) * align
    # private: shared memory gets no huge pages by default, and a child after fork would write to ours
    region = mmap.mmap(-1, size + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        region.madvise(mmap.MADV_HUGEPAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(region))
    return region, -(-start // _HUGE) * _HUGE


@lru_cache(None)
def _lease_type(size: int) -> Any:
    """A ctypes array type whose instances stand on a block and return it to its list when they die."""
    return type("Lease", (ctypes.c_char * size,), {"__del__": _release})


def _release(lease: Any) -> None:
    block = lease.block
    block.free.append(block)
    if block.size >= _LARGE:
        POOL.trim(block)


class Pool:
    """Free lists of blocks by size. Their append and pop are atomic under the GIL: no lock is needed."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._free: dict[int, list[Block]] = {}

    def free_list(self, size: int) -> list[Block]:
        """The unused blocks of a size class."""
        return self._free.setdefault(size, [])

    def take(self, nbytes: int) -> Block:
        """A block of at least ``nbytes``; its contents are undefined."""
        size = size_class(nbytes)
        free = self.free_list(size)
        try:
            return free.pop()
        except IndexError:
            stats.count("blocks_allocated")
            stats.count("bytes_allocated", size)
            return Block(size, free)

    def give_back(self, block: Block) -> None:
        """Make a block available again."""
        block.free.append(block)
        self.trim(block)

    @property
    def cached(self) -> int:
        """Bytes in unused blocks."""
        return sum(size * len(free) for size, free in list(self._free.items()))

    def trim(self, keep: Block) -> None:
        """Where the unused blocks are over the limit, let go of all but those of the size that is in use."""
        if self.cached > self.limit:
            for size, free in list(self._free.items()):
                if size != keep.size:
                    free.clear()
            del keep.free[max(1, self.limit // keep.size) :]

    def empty_cache(self) -> None:
        """Return all unused blocks to the system."""
        for free in list(self._free.values()):
            free.clear()


def _default_limit() -> int:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        total = 4 << 30
    return min(total // 4, 8 << 30)


holders: list[Callable[[], None]] = []
"""What keeps blocks for later use gives them back in these."""

POOL = Pool(_default_limit())


def lease(nbytes: int) -> tuple[Any, int]:
    """(object that holds the memory, its address); the memory is recycled when the object dies."""
    block = POOL.take(nbytes)
    held = block.lease(block.address)
    held.block = block
    return held, block.address


def maker(shape: tuple[int, ...], dtype: np.dtype[Any], nbytes: int) -> Callable[[], np.ndarray]:
    """A function that makes uninitialised arrays of one shape: what does not change is done here."""
    if nbytes < SMALL:
        return partial(np.empty, shape, dtype)
    pop, array, take = POOL.free_list(size_class(nbytes)).pop, np.ndarray, POOL.take

    def make() -> np.ndarray:
        try:
            block = pop()
        except IndexError:
            block = take(nbytes)
        held = block.lease(block.address)
        held.block = block
        return array(shape, dtype, held)

    return make


def empty(shape: tuple[int, ...], dtype: DType) -> np.ndarray:
    """An uninitialised array; at the begin of a page from 4 KB on, recycled memory where there is some.

    >>> from weft.ir.types import f32
    >>> empty((64, 64), f32).shape
    (64, 64)
    """
    nbytes = dtype.itemsize
    for d in shape:
        nbytes *= d
    if nbytes < SMALL:
        return np.empty(shape, dtype.np)
    memory: Any = lease(nbytes)[0]
    return np.ndarray(shape, dtype.np, memory)


def filled(shape: tuple[int, ...], value: Any, dtype: DType) -> np.ndarray:
    """An array of one value.

    >>> from weft.ir.types import f32
    >>> filled((2,), 1, f32)
    array([1., 1.], dtype=float32)
    """
    out = empty(shape, dtype)
    if type(value) is int and -128 <= value < 128 and dtype.itemsize > 2:
        out.fill(value)  # exact in every dtype, and much the cheaper call
    else:
        np.copyto(out, value, casting="unsafe")
    return out


def aligned(x: np.ndarray, dtype: DType) -> np.ndarray:
    """The array, or a copy of it where it is of some size and lies badly.

    >>> from weft.ir.types import f32
    >>> aligned(np.ones(5000, np.float32), f32).ctypes.data % PAGE
    0
    """
    if x.nbytes < SMALL or x.ctypes.data % PAGE == 0:
        return x
    out = empty(x.shape, dtype)
    out[...] = x
    return out


def empty_cache() -> None:
    """Return all unused blocks of the caching allocator to the system, the arenas of idle calls too."""
    for give_back in holders:
        give_back()
    POOL.empty_cache()
