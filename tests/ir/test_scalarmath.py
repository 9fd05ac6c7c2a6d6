"""Accuracy of the composed functions: every float16 input, a dense sample of float32, special values, f64.

The f32 reference is numpy's (or the standard library's) f64 function; the f64 reference is numpy's long
double, where it is wider than f64, and is otherwise only as good as the platform's own f64 functions.
"""

from __future__ import annotations

import math
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from weft.ir.prims.base import PRIMITIVES
from weft.ir.scalarcost import CostCounter
from weft.ir.scalarmath import FUNCTIONS
from weft.ir.scalarnumpy import NumpyBuilder
from weft.ir.types import DType, f32, f64

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from references import (
    all_halves,
    bit_patterns,
    describe,
    digamma,
    each,
    erfinv,
    limit,
    reference,
    ulp_errors,
)

BUILDER = NumpyBuilder()
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
UNARY = [n for n in FUNCTIONS if n not in ("pow", "atan2", "fmod")]
STEP = (
    1 << 12
) - 1  # an odd distance between bit patterns: all exponents, many mantissas, a million of them


@cache
def sample() -> np.ndarray:
    """Bit patterns spread evenly over all of float32, and the ordinary numbers between -20 and 20."""
    return np.concatenate(
        [bit_patterns(0, 1 << 32, STEP), np.linspace(-20, 20, (1 << 17) + 1, dtype=np.float32)]
    )


def errors(name: str, *xs: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        got = getattr(BUILDER, name)(*xs)
        exact = reference(name)(*(x.astype(np.float64) for x in xs))
    assert got.dtype == np.float32
    return ulp_errors(got, exact)


@pytest.mark.parametrize("name", UNARY)
def test_every_half_is_accurate(name: str) -> None:
    error = errors(name, all_halves())
    assert error.max() <= limit(name), describe(name, all_halves(), error)


@pytest.mark.parametrize("name", UNARY)
def test_dense_sample_is_accurate(name: str) -> None:
    x = sample()
    if name in ("erfinv", "lgamma", "digamma", "erfc"):
        x = x[::8]  # slow to check
    error = errors(name, x)
    histogram = np.bincount(np.minimum(np.ceil(error * 2), 20).astype(np.int64), minlength=21)
    assert error.max() <= limit(name), describe(name, x, error)
    # nine tenths of the results are within one ULP
    assert histogram[:3].sum() >= 0.9 * x.size, histogram
    assert histogram[int(2 * limit(name)) + 1 :].sum() == 0


def test_pow_and_atan2_samples() -> None:
    rng = np.random.default_rng(7)
    n = 1 << 17
    base = np.abs(sample()[:: sample().size // n][:n])
    exponent = (rng.normal(size=n) * np.exp(rng.uniform(-3, 4, n))).astype(np.float32)
    near_one = (1 + rng.normal(scale=1e-3, size=n)).astype(np.float32)
    usual = np.exp(rng.normal(size=n)).astype(np.float32)
    for x in (base, near_one, usual):
        assert errors("pow", x, exponent).max() <= 1.0
    assert errors("pow", -usual, np.rint(exponent)).max() <= 1.0
    for y in (usual, exponent, near_one, base):
        assert errors("atan2", exponent, y).max() <= 2.0


def test_pow_where_the_exponent_multiplies_the_error_of_the_logarithm() -> None:
    rng = np.random.default_rng(9)
    n = 1 << 16
    for x in (rng.normal(1, 0.03, n), rng.uniform(0.5, 2, n), np.exp2(rng.uniform(-126, 126, n))):
        base = x.astype(np.float32)
        power = (rng.uniform(-150, 130, n) / np.log2(base)).astype(np.float32)
        assert errors("pow", base, power).max() <= 1.0


class _Narrow(CostCounter):
    """Fails where a rule of f32 computes in f64, unless few elements ask for it."""

    def convert(self, x: Any, dtype: DType) -> Any:
        assert dtype is not f64
        return dtype


@pytest.mark.parametrize("name", [*FUNCTIONS, "polygamma"])
def test_functions_of_f32_are_computed_in_f32(name: str) -> None:
    """GPUs have one unit for f64 to every 64 for f32."""
    counter = _Narrow()
    out = counter.polygamma(1, f32) if name == "polygamma" else None
    if out is None:
        out = getattr(counter, name)(*[f32] * (2 if name in ("pow", "atan2", "fmod") else 1))
    assert out is f32 and counter.total > 0


SPECIALS = [0.0, 1.0, 2.0, 0.5, 3.0, math.inf, 1e-45, 1e-38, 3e38, 1.5, 16777216.0, 16777217.0, 7.0, 0.1]


def special_pairs(dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    values = np.array(SPECIALS + [-v for v in SPECIALS] + [math.nan]).astype(dtype)
    x, y = np.meshgrid(values, values)
    return x.ravel(), y.ravel()


def c_pow(x: float, y: float) -> float:
    try:
        return math.pow(x, y)
    except (OverflowError, ValueError):
        odd = y == math.floor(y) and y % 2 == 1
        if x == 0 or (odd or y == math.floor(y)) or x > 0:
            return math.copysign(math.inf, x) if odd else math.inf
        return math.nan


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["pow", "atan2", "fmod"])
def test_special_pairs(name: str, dtype: Any) -> None:
    x, y = special_pairs(dtype)
    with np.errstate(all="ignore"):
        got = getattr(BUILDER, name)(x, y)
        if name == "pow":
            exact = np.array([c_pow(float(a), float(b)) for a, b in zip(x, y, strict=True)]).astype(dtype)
        else:
            exact = np.fmod(x, y) if name == "fmod" else np.arctan2(x, y)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(exact))
    tolerance = 0 if name == "fmod" else 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(got, exact, rtol=tolerance, atol=np.finfo(dtype).smallest_subnormal)
    valued = ~np.isnan(exact)
    np.testing.assert_array_equal(np.signbit(got[valued]), np.signbit(exact[valued]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fmod_is_exact(dtype: Any) -> None:
    rng = np.random.default_rng(3)
    unsigned = np.uint32 if dtype is np.float32 else np.uint64
    x = rng.integers(0, np.iinfo(unsigned).max, 20000, dtype=unsigned).view(dtype)
    y = np.roll(x, 1)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(BUILDER.fmod(x, y), np.fmod(x, y))


def doubles() -> np.ndarray:
    rng = np.random.default_rng(11)
    bits = rng.integers(0, 2**63, 4000, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    parts = [
        bits.view(np.float64),
        rng.normal(0, 3, 4000),
        rng.uniform(-1, 1, 4000),
        rng.uniform(0, 40, 2000),
        1 + rng.normal(0, 1e-3, 2000),
        rng.uniform(-750, 750, 2000),
        np.exp(rng.uniform(-40, 40, 2000)),
        np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 5e-324, 1e308]),
    ]
    return np.concatenate(parts)


LONG = [n for n in UNARY if n not in ("erf", "erfc", "erfinv", "lgamma", "digamma")]


@pytest.mark.parametrize("name", LONG)
def test_doubles_are_accurate(name: str) -> None:
    x = doubles()
    if name in ("sin", "cos", "tan"):
        x = x[~(np.abs(x) > 1e18)]  # the long double functions of x87 reduce by a pi of 66 bits
    with np.errstate(all="ignore"):
        got, exact = getattr(BUILDER, name)(x), reference(name)(x.astype(np.longdouble))
        rounded = exact.astype(np.float64)
        size = np.maximum(np.abs(rounded), 2.0**-1022)
        error = np.abs(got - exact) / 2.0 ** (np.floor(np.log2(size)) - 52)
    special = ~np.isfinite(rounded)
    np.testing.assert_array_equal(got[special], rounded[special])
    assert error[~special].max() <= 3.5, (x[~special][error[~special].argmax()], error[~special].max())


def test_huge_double_arguments() -> None:
    # sine and cosine to 17 digits, computed with 1300 bits
    for x, s, c in [
        (1e22, -0.8522008497671888, 0.5232147853951389),
        (1e300, -0.8178819121159085, -0.5753861119575491),
        (1.7976931348623157e308, 0.004961954789184062, -0.9999876894265599),
        (8.2443719274740372e98, None, None),
    ]:
        sin, cos = float(BUILDER.sin(np.array(x))), float(BUILDER.cos(np.array(x)))
        assert sin * sin + cos * cos == pytest.approx(1.0, abs=1e-15)
        if s is not None:
            assert sin == pytest.approx(s, rel=5e-16)
            assert cos == pytest.approx(c, rel=5e-16)


def test_special_functions_of_doubles() -> None:
    x = doubles()
    x = x[np.abs(x) < 1e15]
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(BUILDER.erf(x), each(math.erf)(x), rtol=1e-15)
        np.testing.assert_allclose(BUILDER.erfc(x), each(math.erfc)(x), rtol=2e-15, atol=1e-320)
        np.testing.assert_allclose(BUILDER.lgamma(x), reference("lgamma")(x), rtol=1e-15, atol=4e-15)
        np.testing.assert_allclose(BUILDER.digamma(x), digamma(x), rtol=4e-14, atol=4e-14)
        inside = x[np.abs(x) <= 1]
        np.testing.assert_allclose(BUILDER.erfinv(inside), erfinv(inside), rtol=2e-15)


def test_polygamma() -> None:
    # psi_n(1) = (-1)^(n+1) n! zeta(n+1), psi_1(1/2) = pi^2/2, and the recurrence psi_n(x+1) = psi_n(x) + ...
    zeta3, apery = 1.2020569031595942, np.array(1.0)
    assert float(BUILDER.polygamma(1, apery)) == pytest.approx(math.pi**2 / 6, rel=1e-15)
    assert float(BUILDER.polygamma(2, apery)) == pytest.approx(-2 * zeta3, rel=1e-15)
    assert float(BUILDER.polygamma(1, np.array(0.5))) == pytest.approx(math.pi**2 / 2, rel=1e-15)
    x = np.linspace(-6.3, 20, 257)
    for n in (1, 2, 3, 4):
        step = -((-1.0) ** (n + 1)) * math.factorial(n) / x ** (n + 1)
        left, right = BUILDER.polygamma(n, x + 1.0), BUILDER.polygamma(n, x) + step
        # next to the poles the recurrence cancels
        assert np.all(np.abs(left - right) <= 1e-13 * (np.abs(left) + np.abs(step)))
    assert BUILDER.polygamma(1, np.array(-2.0)) == np.inf
    assert np.isnan(BUILDER.polygamma(2, np.array(0.0)))


@pytest.mark.parametrize("n", range(1, 7))
def test_polygamma_of_floats(n: int) -> None:
    x = np.concatenate([all_halves(), np.linspace(-4, 30, 20001, dtype=np.float32)])
    with np.errstate(all="ignore"):
        error = ulp_errors(BUILDER.polygamma(n, x), BUILDER.polygamma(n, x.astype(np.float64)))
    assert error.max() <= 8.0, describe("polygamma", x, error)


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.int64])
def test_integer_power(dtype: Any) -> None:
    x, n = np.meshgrid(np.array([0, 1, 2, 3, 7, 100], dtype), np.array([0, 1, 2, 3, 5, 13, 40], dtype))
    if np.dtype(dtype).kind == "i":
        x, n = np.concatenate([x, -x, x, -x]), np.concatenate([n, n, -n, -n])
    bits = 8 * np.dtype(dtype).itemsize

    def exact(a: int, k: int) -> int:
        if k < 0:
            return a ** (k % 2) if a in (1, -1) else 0
        return pow(a, k, 1 << bits)

    want = np.array([exact(int(a), int(k)) for a, k in zip(x.ravel(), n.ravel(), strict=True)], object)
    want = np.array([v & ((1 << bits) - 1) for v in want], f"u{bits // 8}").view(dtype).reshape(x.shape)
    np.testing.assert_array_equal(BUILDER.int_pow(x, n), want)
    np.testing.assert_array_equal(PRIMITIVES["pow"].eval(x, n), want)


def test_every_unary_primitive_has_its_function() -> None:
    assert all(n in PRIMITIVES for n in UNARY)


def test_eager_functions_are_accurate() -> None:
    """Those that we give to numpy; numpy's own f32 functions may be off by up to 4 ULP."""
    x = all_halves()
    for name in ("erf", "erfc", "erfinv", "lgamma", "digamma", "rsqrt"):
        with np.errstate(all="ignore"):
            error = ulp_errors(np.asarray(PRIMITIVES[name].bind(x)), reference(name)(x.astype(np.float64)))
        assert error.max() <= 2.0, describe(name, x, error)
