"""Registers of whole warps, for the instructions that all threads of a warp execute as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from weft.runtime.emulate.masks import WARP, Mask, full
from weft.runtime.emulate.memory import Fault
from weft.runtime.emulate.steps import assign

Array = Any
Change = Callable[[Array], Array]


def whole_warps(R: Any, m: Mask | None) -> Array | None:
    """The warps that execute an aligned instruction, None for all. Fault where a warp is divided."""
    if m is None:
        return None
    bits = m.bits.reshape(-1, WARP)
    some, every = bits.any(axis=1), bits.all(axis=1)
    if (some != every).any():
        warp = int(np.argmax(some != every))
        lane = warp * WARP + int(np.argmax(bits[warp]))
        raise Fault("an instruction of whole warps that not all threads of the warp execute", lane)
    return np.flatnonzero(every)


def words_of(R: Any, warps: Array | None, slots: list[int]) -> Array:
    """Registers of warps: (registers, threads)."""
    rows = [full(R, R[slot]) for slot in slots]
    if warps is not None:
        rows = [row.reshape(-1, WARP)[warps].reshape(-1) for row in rows]
    return np.stack(rows)


def put_warps(R: Any, m: Mask | None, warps: Array | None, slot: int, values: Array) -> None:
    """Set a register in whole warps."""
    if warps is None:
        R[slot] = np.ascontiguousarray(values).reshape(-1)
        return
    everyone = np.zeros((R.chunk.warps, WARP), values.dtype)
    everyone[warps] = values.reshape(-1, WARP)
    assign(R, m, slot, everyone.reshape(-1))


class Fragments:
    """Matrices lately made of registers, which many products share: values never change in place."""

    _KEPT = 24

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], tuple[Any, Array]] = {}

    def get(self, R: Any, warps: Array | None, slots: list[int], layout: str, make: Change) -> Array:
        if warps is not None:
            return make(words_of(R, warps, slots))
        sources = [R[slot] for slot in slots]
        key = (*map(id, sources), layout)
        found = self._kept.get(key)
        if found is None:
            if len(self._kept) >= self._KEPT:
                self._kept.pop(next(iter(self._kept)))
            # the sources are kept so that their ids stay theirs
            found = self._kept[key] = (sources, make(words_of(R, warps, slots)))
        return found[1]
