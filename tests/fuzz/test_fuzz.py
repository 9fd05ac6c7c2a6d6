"""Random programs: compiled, they give what they give eagerly; WEFT_FUZZ=500 runs that many."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from check import check

N = int(os.environ.get("WEFT_FUZZ", "0")) or 40
CHUNK = max(8, N // 40)


@pytest.fixture(autouse=True)
def verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_VERIFY", "1")
    monkeypatch.setenv("WEFT_CACHE", "0")


@pytest.mark.parametrize("seeds", [range(k, min(k + CHUNK, N)) for k in range(0, N, CHUNK)], ids=str)
def test_compiled_equals_eager(seeds: range) -> None:
    for seed in seeds:
        check(seed, length=6 + seed % 14)


@pytest.mark.parity
@pytest.mark.parametrize("seeds", [range(1000, 1012), range(1012, 1024)], ids=str)
def test_eager_equals_torch(seeds: range) -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    import torch as library  # type: ignore[import-not-found]

    peer: Any = library
    for seed in seeds:
        check(seed, length=6 + seed % 14, parity=peer)
