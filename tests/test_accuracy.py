"""Accuracy of compiled functions: every float16 input in f32, f16 and bf16, and a dense sample of float32."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from references import UNARY, all_halves, bit_patterns, describe, limit, reference, ulp_errors
from weft.ir import prims  # noqa: F401
from weft.ir.prims.base import PRIMITIVES, trace, type_of
from weft.ir.scalarnumpy import NumpyBuilder
from weft.runtime import compile_graph

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
DENSE = (1 << 12) - 1  # distance of bit patterns


def compiled(name: str, *xs: np.ndarray) -> np.ndarray:
    return compile_graph(trace(lambda *vs: PRIMITIVES[name].bind(*vs), *map(type_of, xs), name=name)).call(
        xs
    )[0]


@cache
def inputs() -> np.ndarray:
    ordinary = np.linspace(-20, 20, (1 << 17) + 1, dtype=np.float32)
    return np.concatenate([all_halves(), bit_patterns(0, 1 << 32, DENSE), ordinary])


@cache
def exact(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and the f64 function of them; fewer inputs where the reference is slow."""
    x = (
        inputs()
        if name not in ("erfinv", "digamma", "lgamma")
        else np.concatenate([all_halves(), inputs()[::16]])
    )
    with np.errstate(all="ignore"):
        return x, reference(name)(x.astype(np.float64))


@pytest.mark.parametrize("name", UNARY)
def test_float32(name: str) -> None:
    x, want = exact(name)
    error = ulp_errors(compiled(name, x), want)
    assert error.max() <= limit(name), describe(name, x, error)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("name", UNARY)
def test_half_precision(name: str, dtype: Any) -> None:
    """Every input; at most one step from the rounded f64 value, and in one of 100 cases only."""
    x = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    with np.errstate(all="ignore"):
        want = reference(name)(x.astype(np.float64)).astype(np.float32).astype(dtype)
    got = compiled(name, x)
    assert got.dtype == dtype
    steps = np.abs(_ordered(got) - _ordered(want))
    steps[np.isnan(got) & np.isnan(want)] = 0
    assert steps.max() <= 1, (name, x[steps.argmax()], got[steps.argmax()], want[steps.argmax()])
    assert np.count_nonzero(steps) <= steps.size // 100


def _ordered(x: np.ndarray) -> np.ndarray:
    bits = x.view(np.int16).astype(np.int64)
    return np.where(bits < 0, -32768 - bits, bits)


@pytest.mark.parametrize("name", [n for n in UNARY if n != "sqrt"])
def test_compiled_equals_the_numpy_builder(name: str) -> None:
    """The same composition gives the same bits on vectors, in remainders of vectors and in numpy."""
    x = inputs()[::97][:20011]
    with np.errstate(all="ignore"):
        want = getattr(NumpyBuilder(), name)(x)
    got = compiled(name, x)
    same = (got.view(np.int32) == want.view(np.int32)) | (np.isnan(got) & np.isnan(want))
    assert same.all(), (name, x[~same][:4], got[~same][:4], want[~same][:4])


def test_powers() -> None:
    rng = np.random.default_rng(3)
    n = 1 << 18
    y = (rng.normal(size=n) * np.exp(rng.uniform(-3, 4, n))).astype(np.float32)
    for x in (
        np.exp(rng.normal(size=n)).astype(np.float32),
        np.abs(bit_patterns(0, 1 << 32, (1 << 14) - 1))[:n],
    ):
        with np.errstate(all="ignore"):
            error = ulp_errors(compiled("pow", x, y), np.power(x.astype(np.float64), y.astype(np.float64)))
        assert error.max() <= limit("pow"), describe("pow", x, error)
