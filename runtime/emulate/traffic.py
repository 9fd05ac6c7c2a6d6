"""Sectors and bank conflicts of the accesses of warps."""

from __future__ import annotations

from typing import Any

import numpy as np
from weft.runtime.emulate.faults import LineTraffic
from weft.runtime.emulate.masks import Mask

Array = Any
_SECTOR = 5  # bits of an address within 32 bytes
_WARP = 32


class Patterns:
    """Remembers the last pattern of an instruction: loops mostly repeat one, moved by a common distance."""

    def __init__(self) -> None:
        self._pattern: Array | None = None
        self._mask: Array | None = None
        self._phase = -1
        self._counts: tuple[int, int, int] = (0, 0, 0)

    def _same(self, flat: Array, mask: Mask | None, granule: int) -> bool:
        phase = int(flat[0]) & (granule - 1)
        pattern = flat - flat[0]
        bits = None if mask is None else mask.bits
        old = self._pattern
        same = (
            old is not None
            and phase == self._phase
            and old.size == pattern.size
            and (bits is self._mask or (bits is not None and np.array_equal(bits, self._mask)))  # type: ignore
            and bool((old == pattern).all())
        )
        self._pattern, self._mask, self._phase = pattern, bits, phase
        return same

    def count_sectors(self, line: LineTraffic, flat: Array, mask: Mask | None, width: int) -> None:
        if not self._same(flat, mask, 1 << _SECTOR):
            self._counts = _sectors(flat, mask, width)
        requests, sectors, ideal = self._counts
        line.requests += requests
        line.bytes += flat.size * width
        line.sectors += sectors
        line.ideal += ideal

    def bank_conflicts(self, flat: Array, mask: Mask | None, width: int) -> int:
        if not self._same(flat, mask, 4):
            self._counts = (_conflicts(flat, mask, width), 0, 0)
        return self._counts[0]


def _warps(flat: Array, mask: Mask | None) -> Array:
    return np.arange(flat.size) // _WARP if mask is None else mask.index // _WARP


def _distinct(keys: Array) -> Array:
    steps = np.diff(keys)
    if (steps < 0).any():
        return np.unique(keys)
    return keys[np.concatenate(([True], steps != 0))]


def _sectors(flat: Array, mask: Mask | None, width: int) -> tuple[int, int, int]:
    """Requests of warps, sectors that they touch, and the fewest that could hold as many distinct bytes."""
    warps = _warps(flat, mask)
    sectors = _distinct((warps << 40) | (flat >> _SECTOR)).size
    cells = _distinct((warps << 40) | flat) >> 40
    per_warp = np.bincount(cells) * width
    ideal = int(((per_warp + 31) >> _SECTOR).sum())
    return int(np.count_nonzero(per_warp)), int(sectors), ideal


def _conflicts(flat: Array, mask: Mask | None, width: int) -> int:
    """Wavefronts of shared memory beyond one for each 128 bytes' worth of a warp."""
    warps = _warps(flat, mask)
    lanes = np.arange(flat.size) % _WARP if mask is None else mask.index % _WARP
    phases = max(width // 4, 1)
    group = warps * phases + lanes * phases // _WARP
    word = flat >> 2
    if phases > 1:
        word = (word[:, None] + np.arange(phases)).reshape(-1)
        group = np.repeat(group, phases)
    keys = _distinct((group << 40) | word)
    banks = ((keys >> 40) << 5) | (keys & 31)
    used = np.bincount(banks)
    used = np.concatenate((used, np.zeros(-used.size % 32, used.dtype))).reshape(-1, 32).max(axis=1)
    return int(np.maximum(used - 1, 0).sum())
