"""Philox4x32-10: the known answers of Random123, and equal bits from eval and the scalar rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from weft.ir.prims.base import type_of
from weft.ir.prims.random import philox, random_bits_p
from weft.ir.scalarnumpy import NumpyBuilder
from weft.ir.types import TensorType, i32, i64, u32, u64

# (counter, key, words): kat_vectors of Random123 (Salmon et al., 2011)
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(w, 16) for w in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter: str, key: str, expected: str) -> None:
    k0, k1 = words(key)
    out = philox([np.array([w], np.uint64) for w in words(counter)], (k0, k1))
    assert [int(w[0]) for w in out] == words(expected)


def bits(seed: int, offset: int, shape: Any) -> np.ndarray:
    return random_bits_p.bind(np.array([seed, offset]), shape=shape)


def test_the_first_known_answer_through_the_primitive() -> None:
    assert [f"{int(w):08x}" for w in bits(0, 0, (4,))] == KNOWN[0][2].split()


@pytest.mark.parametrize(
    ("seed", "offset"), [(0, 0), (12345678901, 2**32 - 2), (-7, 99), (2**63 - 1, 2**40)]
)
def test_scalar_rule_gives_the_same_bits(seed: int, offset: int) -> None:
    b = NumpyBuilder()
    assert random_bits_p.scalar is not None
    index = np.arange(37, dtype=np.uint64)
    got = random_bits_p.scalar(b, b.const(seed, u64), b.const(offset, u64), index)
    assert got.dtype == np.uint32
    np.testing.assert_array_equal(got, bits(seed, offset, (37,)))


def test_streams_continue_where_the_offset_says() -> None:
    whole = bits(5, 10, (100,))
    np.testing.assert_array_equal(bits(5, 13, (4,)), whole[12:16])
    np.testing.assert_array_equal(bits(5, 10, (4, 25)).ravel(), whole)
    assert (bits(6, 10, (100,)) != whole).mean() > 0.99


def test_chunks_join() -> None:
    from weft.ir.prims import random

    n = 4 * random._CHUNK + 6
    np.testing.assert_array_equal(bits(1, 0, (n,))[-6:], bits(1, random._CHUNK, (6,)))


def test_bits_are_even() -> None:
    ones = np.unpackbits(bits(3, 0, (1 << 14,)).view(np.uint8)).mean()
    assert abs(ones - 0.5) < 0.003


def test_type_rule() -> None:
    state = type_of(np.zeros(2, np.int64))
    assert random_bits_p.infer(state, shape=(2, 3)) == TensorType((2, 3), u32)
    for bad in (TensorType((2,), i32), TensorType((3,), i64)):
        with pytest.raises(TypeError, match="state must be"):
            random_bits_p.infer(bad, shape=(1,))
