"""Counter-based random bits: Philox4x32-10.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from weft.ir.prims.base import Kind, Primitive
from weft.ir.types import TensorType, i64, u32, u64

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF
_ROUNDS = 10
_CHUNK = 1 << 14  # blocks per step of the numpy version: its dozen temporaries stay in cache


def _infer(state: TensorType, *, shape: tuple[Any, ...]) -> TensorType:
    if state.dtype is not i64 or state.shape != (2,):
        raise TypeError(f"random_bits: the state must be i64[2] (seed, offset), got {state}")
    return TensorType(tuple(shape), u32, state.device)


def philox(counter: list[np.ndarray], key: tuple[int, int]) -> list[np.ndarray]:
    """Ten rounds on four arrays of 32-bit words held in u64; returns four such arrays.

    >>> words = philox([np.zeros(1, np.uint64)] * 4, (0, 0))
    >>> " ".join(f"{int(w[0]):08x}" for w in words)
    '6627e8d5 e169c58d bc57ac4c 9b00dbd8'
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    mask, half = np.uint64(_MASK), np.uint64(32)
    for _ in range(_ROUNDS):
        p0, p1 = c0 * np.uint64(_MULTIPLIERS[0]), c2 * np.uint64(_MULTIPLIERS[1])
        c0, c1 = (p1 >> half) ^ c1 ^ np.uint64(k0), p1 & mask
        c2, c3 = (p0 >> half) ^ c3 ^ np.uint64(k1), p0 & mask
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return [c0, c1, c2, c3]


def _eval(state: np.ndarray, *, shape: tuple[int, ...]) -> np.ndarray:
    return bits_between(state, 0, math.prod(shape)).reshape(shape)


def bits_between(state: np.ndarray, first: int, last: int) -> np.ndarray:
    """Words ``first`` to ``last`` (exclusive) of the stream of a state."""
    skipped, blocks = first // 4, -(-last // 4) - first // 4
    seed, offset = int(state[0]) & (2**64 - 1), int(state[1]) & (2**64 - 1)
    key = (seed & _MASK, seed >> 32)
    out = np.empty((blocks, 4), np.uint32)
    for start in range(0, blocks, _CHUNK):
        stop = min(start + _CHUNK, blocks)
        c = np.arange(start, stop, dtype=np.uint64) + np.uint64((offset + skipped) & (2**64 - 1))
        zero = np.zeros_like(c)
        words = philox([c & np.uint64(_MASK), c >> np.uint64(32), zero, zero], key)
        for k, word in enumerate(words):
            out[start:stop, k] = word
    return out.reshape(-1)[first - 4 * skipped : last - 4 * skipped]


def _round(b: Any, c: list[Any], k0: Any, k1: Any) -> list[Any]:
    half, mask = b.const(32, u64), b.const(_MASK, u64)
    p0 = b.binary("mul", c[0], b.const(_MULTIPLIERS[0], u64))
    p1 = b.binary("mul", c[2], b.const(_MULTIPLIERS[1], u64))
    n0 = b.binary("xor", b.binary("xor", b.binary("shr", p1, half), c[1]), k0)
    n2 = b.binary("xor", b.binary("xor", b.binary("shr", p0, half), c[3]), k1)
    return [n0, b.binary("and", p1, mask), n2, b.binary("and", p0, mask)]


def philox_words(b: Any, seed: Any, block: Any) -> list[Any]:
    """The four words of a block, in u64 handles: what :func:`philox` computes, as scalar rules."""
    mask, half = b.const(_MASK, u64), b.const(32, u64)
    zero = b.const(0, u64)
    c = [b.binary("and", block, mask), b.binary("shr", block, half), zero, zero]
    k0, k1 = b.binary("and", seed, mask), b.binary("shr", seed, half)
    for _ in range(_ROUNDS):
        c = _round(b, c, k0, k1)
        k0 = b.binary("and", b.binary("add", k0, b.const(_WEYL[0], u64)), mask)
        k1 = b.binary("and", b.binary("add", k1, b.const(_WEYL[1], u64)), mask)
    return c


def _scalar(b: Any, seed: Any, offset: Any, index: Any, **attrs: Any) -> Any:
    """The u32 at linear ``index``; ``seed`` and ``offset`` are u64, as the words in between."""
    if b.dtype(index) is not u64:
        index = b.convert(index, u64)
    c = philox_words(b, seed, b.binary("add", offset, b.binary("shr", index, b.const(2, u64))))
    zero = b.const(0, u64)
    odd = b.compare("ne", b.binary("and", index, b.const(1, u64)), zero)
    high = b.compare("ne", b.binary("and", index, b.const(2, u64)), zero)
    word = b.select(high, b.select(odd, c[3], c[2]), b.select(odd, c[1], c[0]))
    return b.convert(word, u32)


random_bits_p = Primitive(
    "random_bits",
    Kind.RANDOM,
    infer=_infer,
    eval=_eval,
    scalar=_scalar,
    nondifferentiable=True,
    needs="",
    dtypes=(i64,),
    words=philox_words,
)
