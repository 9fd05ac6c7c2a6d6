"""The index by which a capture finds tensors that share memory."""

from __future__ import annotations

import random

import numpy as np
import weft
from weft.capture.memory import Memory
from weft.capture.recorder import overlap


def test_every_pair_that_overlaps_is_found() -> None:
    rng = random.Random(0)
    base = np.zeros((40, 40), np.float32)
    tensors, memory = [], Memory()
    for _ in range(120):
        i, j, n, m = (rng.randrange(0, 30) for _ in range(4))
        part = base[i : i + n : rng.choice([1, 2, -1]), j : j + m : rng.choice([1, 3])]
        t = weft.from_numpy(part) if rng.random() < 0.7 and min(part.strides) >= 0 else weft.zeros(n)
        near = {id(u) for u in memory.near(t)}
        assert {id(u) for u in tensors if overlap(t, u)} <= near
        memory.add(t)
        tensors.append(t)


def test_neighbours_in_one_array_are_told_apart() -> None:
    base = weft.zeros(8, 4)
    memory = Memory()
    for row in base:
        memory.add(row)
    assert [[u is row for u in memory.near(row)] for row in (base[2], base[7])] == [[False], [False]]
    assert len(memory.near(base)) == 8
    memory.add(base)
    assert len(memory.near(base[3])) == 9


def test_tensors_without_elements_lie_nowhere() -> None:
    memory = Memory()
    memory.add(weft.zeros(0, 3))
    assert memory.near(weft.zeros(0, 3)) == []
