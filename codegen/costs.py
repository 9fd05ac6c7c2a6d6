"""What the estimates of all contractions have in common: tiles, packing, lines of the caches, units of work.

Contractions, convolutions and attention list what they could do and take what costs the least. Costs are
counted in *slots*, the time of one vector fma at full rate (:attr:`Target.slot_ns`), for all threads
together. The numbers were fitted to what ``benchmarks/choices.py`` measures; it prints where they lead to a
choice that is not the best.
"""

from __future__ import annotations

from functools import cache

from weft.codegen.target import SHARERS, Target

BROADCAST = 0.75  # a scalar load that fills a vector
CALL = 30.0  # slots to enter and leave a kernel
STORE = 4.0  # slots to take one vector through the epilogue
PACK = 1500.0  # slots to pack anything at all
PHASE = 6000.0  # slots to begin another parallel phase
PACK_NEAR, PACK_FAR = 0.12, 0.37  # slots per packed byte, within the second-level cache and beyond it
NEAR_LINE = 2.5  # slots per line from the second-level cache
FAR_LINE, SHORT_PIECE = 4.0, 10.0  # slots per line beyond that cache: in long streams, in short pieces
UNIT = 200.0  # slots to begin a unit of work
_WAITED = 0.15  # of a unit, at the end of a phase
_HIDDEN = 0.25  # of a wait for memory that is felt behind arithmetic


def slow(target: Target) -> float:
    """How many slots pass while memory does what it does in one slot of 512-bit vectors."""
    return 512 / target.vector_bits


def tile_slots(rows: int, vectors: int, target: Target) -> float:
    """Slots of one k of a tile: products, broadcasts beside a row of vectors, or the latency of its sums."""
    return max(rows * vectors, rows * BROADCAST + vectors, target.latency_slots)


def lines(nbytes: float, target: Target) -> float:
    """Slots to bring so many bytes from beyond the second-level cache."""
    return nbytes / target.line_bytes * FAR_LINE * slow(target)


def streamed(depth: int, row_bytes: int, step: float, target: Target) -> float:
    """Slots that ``depth`` steps of a tile take longer where each meets a row from beyond that cache."""
    wait = lines(row_bytes, target)
    return depth * max(wait - step, _HIDDEN * wait)


def packed(nbytes: float, target: Target) -> float:
    """Slots to pack so many bytes."""
    near = nbytes <= target.l2_bytes // 2
    return nbytes * (PACK_NEAR if near else PACK_FAR) * slow(target) + PACK


@cache
def sharing(units: int) -> float:
    """By how much the longest share of equal units exceeds an equal one, over several numbers of threads.

    Threads are not all as fast: some of the last unit of each is waited for.
    """
    return sum(share * (-(-units // n) + _WAITED) * n / units for n, share in SHARERS)


def even(total: int, most: int) -> int:
    """Parts of about the same size, none above ``most``."""
    return -(-total // -(-total // max(1, min(most, total))))
