"""Which threads of a chunk run: None where all of them do."""

from __future__ import annotations

from typing import Any

import numpy as np

WARP = 32
Bits = np.ndarray[Any, np.dtype[np.bool_]]
Index = np.ndarray[Any, np.dtype[np.int64]]


class Mask:
    """Some of the threads of a chunk, at least one: as bits, and as ascending numbers."""

    __slots__ = ("_index", "bits", "count")

    def __init__(self, bits: Bits, count: int | None = None) -> None:
        self.bits = bits
        self.count = int(np.count_nonzero(bits)) if count is None else count
        self._index: Index | None = None

    @property
    def index(self) -> Index:
        if self._index is None:
            self._index = np.flatnonzero(self.bits)
        return self._index


class Registers(list[Any]):
    """Register values, each an array of one element for all threads or one per thread, and the chunk.

    Values are never changed in place: two registers may share one.
    """

    __slots__ = ("chunk",)
    chunk: Any


def narrow(R: Registers, mask: Mask | None, condition: Bits, negated: bool) -> Mask | bool | None:
    """The threads of ``mask`` where the condition holds: a mask, or False for none."""
    if condition.shape[0] == 1:
        return mask if bool(condition[0]) != negated else False
    bits = ~condition if negated else condition
    if mask is not None:
        bits = bits & mask.bits
    count = int(np.count_nonzero(bits))
    if count == 0:
        return False
    if count == (R.chunk.lanes if mask is None else mask.count):
        return mask
    return Mask(bits, count)


def full(R: Registers, value: Any) -> Any:
    """A register's value with one element per thread."""
    lanes = R.chunk.lanes
    return value if value.shape[0] == lanes else np.broadcast_to(value, (lanes,))


def active(R: Registers, mask: Mask | None, value: Any) -> Any:
    """A register's values in the threads of ``mask``, in their order."""
    if mask is None:
        return full(R, value)
    return value[mask.index] if value.shape[0] == R.chunk.lanes else np.broadcast_to(value, (mask.count,))


def scatter(R: Registers, mask: Mask | None, slot: int, values: Any) -> None:
    """Set a register in the threads of ``mask`` to values in their order."""
    if mask is None:
        R[slot] = values
        return
    new = np.empty(R.chunk.lanes, values.dtype)
    new[:] = R[slot]
    new[mask.index] = values
    R[slot] = new
