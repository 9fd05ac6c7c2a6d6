"""Floating-point instructions against exact arithmetic (fractions) and float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from ptx_samples import apply

BF16 = np.dtype(ml_dtypes.bfloat16)
F16, F32, F64 = np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)
_DTYPES = {"f16": F16, "bf16": BF16, "f32": F32, "f64": F64}
_SPECIAL = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1.5]


def _values(kind: str, seed: int, n: int = 256) -> np.ndarray:
    """Random bits of moderate exponents, subnormal numbers and the special ones."""
    dtype, rng = _DTYPES[kind], np.random.default_rng(seed)
    spread = {"f16": 8, "bf16": 20, "f32": 20, "f64": 20}[kind]
    x = (rng.standard_normal(n) * 2.0 ** rng.integers(-spread, spread, n)).astype(dtype)
    tiny = float(ml_dtypes.finfo(dtype).smallest_subnormal)
    x[8:16] = (rng.integers(1, 100, 8) * tiny).astype(dtype)
    x[16:20] = [ml_dtypes.finfo(dtype).max, ml_dtypes.finfo(dtype).tiny, 3.0, 0.1]
    x[:8] = np.roll(_SPECIAL, seed)
    return x


def _round(exact: Fraction, dtype: np.dtype, mode: str) -> float:
    """An exact number to a dtype, by the definition: between its two neighbours."""
    info = ml_dtypes.finfo(dtype)
    if exact == 0:
        return 0.0
    lowest = math.log2(float(info.smallest_subnormal))
    size = abs(exact)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    if Fraction(2) ** exponent > size:
        exponent -= 1
    step = Fraction(2) ** max(exponent - info.nmant, int(lowest))
    below = size // step
    rest = size - below * step
    up = {
        "rn": rest * 2 > step or (rest * 2 == step and below % 2 == 1),
        "rz": False,
        "rp": exact > 0 and rest > 0,
        "rm": exact < 0 and rest > 0,
    }[mode]
    value = (below + up) * step
    if value > Fraction(float(info.max)):
        outwards = {"rn": True, "rz": False, "rp": exact > 0, "rm": exact < 0}[mode]
        value = math.inf if outwards else Fraction(float(info.max))
    return math.copysign(float(value), exact)


def _bits(x: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(x), 0, x.view(f"u{x.dtype.itemsize}"))


def _same(got: np.ndarray, wanted: np.ndarray) -> None:
    """Equal in every bit, but for the payload of NaN."""
    np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted))
    np.testing.assert_array_equal(_bits(got), _bits(wanted))


def _expected(inputs: list[np.ndarray], fn: Callable[..., Fraction], special, mode: str) -> np.ndarray:
    """``fn`` on fractions where all is finite and the result not zero; ``special`` in float64 elsewhere."""
    dtype, out = inputs[0].dtype, []
    with np.errstate(all="ignore"):
        elsewhere = special(*[x.astype(np.float64) for x in inputs])
    for row, other in zip(zip(*inputs, strict=True), elsewhere, strict=True):
        values = [float(v) for v in row]
        if not all(map(math.isfinite, values)) or math.isinf(other) or math.isnan(other):
            fraction = None
        else:
            fraction = fn(*map(Fraction, values))
        out.append(_round(fraction, dtype, mode) if fraction else other)
    return np.array(out, np.float64).astype(dtype)


_MODES = ("rn", "rz", "rm", "rp")
_OPERATIONS = {
    "add": (2, lambda a, b: a + b),
    "sub": (2, lambda a, b: a - b),
    "mul": (2, lambda a, b: a * b),
    "fma": (3, lambda a, b, c: a * b + c),
}


@pytest.mark.parametrize("kind", ["f32", "f64"])
@pytest.mark.parametrize("mode", _MODES)
def test_arithmetic_rounds_as_asked(kind, mode):
    for name, (count, fn) in _OPERATIONS.items():
        inputs = [_values(kind, seed) for seed in range(count)]
        if kind == "f64":
            inputs = [np.where(np.abs(x) < 1e-200, 1.0, x) for x in inputs]  # products stay normal
        inputs = [np.where(np.abs(x) > 1e37, x.dtype.type(2.5), x) for x in inputs]
        inputs[0][20], inputs[1][20] = 1.5, -1.5
        operands = ", ".join(f"%{c}" for c in "abc"[:count])
        got = apply(f"{name}.{mode}.{kind} %d, {operands};", inputs, _DTYPES[kind])
        wanted = _expected(inputs, fn, fn, mode)
        # exact zeros from opposite numbers are -0 towards minus infinity only
        zero = (wanted == 0) & (got == 0)
        _same(np.where(zero, 0, got), np.where(zero, 0, wanted))
        if name == "add":
            opposite = got[(got == 0) & (inputs[0] == -inputs[1]) & (inputs[0] != 0)]
            assert opposite.size and (np.signbit(opposite) == (mode == "rm")).all()


@pytest.mark.parametrize("mode", _MODES)
@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_quotients_and_roots_round_as_asked(kind, mode):
    a, b = np.abs(_values(kind, 1)) + 1, _values(kind, 2)
    b = np.where(np.isfinite(b) & (np.abs(b) > 1e-3), b, b.dtype.type(7))
    a[:4] = [3, 1, 10, 49]
    got = apply(f"div.{mode}.{kind} %d, %a, %b;", [a, b], a.dtype)
    _same(got, _expected([a, b], lambda x, y: x / y, np.divide, mode))
    got = apply(f"rcp.{mode}.{kind} %d, %b;".replace("%b", "%a"), [b], a.dtype)
    _same(got, _expected([b], lambda x: 1 / x, lambda x: 1 / x, mode))
    got = apply(f"sqrt.{mode}.{kind} %d, %a;", [a], a.dtype)
    wanted = []
    for value in a:
        if not math.isfinite(value):
            wanted.append(float(np.sqrt(value)))
            continue
        # far more bits than the result has, and a sticky one
        scaled = Fraction(float(value)) * 4**160
        root = math.isqrt(int(scaled))
        exact = Fraction(2 * root + (root * root != scaled), 2**161)
        wanted.append(_round(exact, a.dtype, mode))
    _same(got, np.array(wanted, a.dtype))


def test_f32_fma_is_rounded_once():
    # the product is just above halfway between two numbers: rounding it first would go down
    a = np.full(32, 1 + 2.0**-12, np.float32)
    c = np.full(32, 2.0**-60, np.float32)
    b = np.full(32, 1 + 2.0**-12, np.float32)
    got = apply("fma.rn.f32 %d, %a, %b, %c;", [a, b, c], np.float32)
    assert (got == np.float32(1 + 2.0**-11 + 2.0**-23)).all()
    got = apply("fma.rn.f32 %d, %a, %b, %c;", [a, b, -c], np.float32)
    assert (got == np.float32(1 + 2.0**-11)).all()


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_half_arithmetic_is_rounded_once(kind):
    dtype = _DTYPES[kind]
    for name, (count, fn) in _OPERATIONS.items():
        if kind == "bf16" and name != "fma":
            arch = "sm_90"
        else:
            arch = "sm_80"
        inputs = [_values(kind, seed) for seed in range(count)]
        operands = ", ".join(f"%{c}" for c in "abc"[:count])
        suffix = "rn." if name == "fma" or kind == "bf16" else ""
        got = apply(f"{name}.{suffix}{kind} %d, {operands};", inputs, dtype, arch)
        wanted = _expected(inputs, fn, fn, "rn")
        zero = (wanted == 0) & (got == 0)
        _same(np.where(zero, dtype.type(0), got), np.where(zero, dtype.type(0), wanted))


def test_pairs_are_two_halves():
    a, b, c = (_values("f16", seed, 64) for seed in range(3))
    pairs = [x.view(np.uint32) for x in (a, b, c)]
    single = apply("fma.rn.f16 %d, %a, %b, %c;", [a, b, c], np.float16)
    double = apply("fma.rn.f16x2 %d, %a, %b, %c;", pairs, np.uint32)
    _same(double.view(np.float16), single)
    relu = apply("fma.rn.relu.f16x2 %d, %a, %b, %c;", pairs, np.uint32).view(np.float16)
    _same(relu, np.where(np.isnan(single) | (single > 0), single, np.float16(0)))


def _flush(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)


def test_flushing_and_saturation():
    a, b = _values("f32", 1), np.full(256, 2.0**-100, np.float32)
    with np.errstate(all="ignore"):
        product = _flush(_flush(a) * b)
        _same(apply("mul.rn.ftz.f32 %d, %a, %b;", [a, b], np.float32), product)
        _same(apply("add.ftz.f32 %d, %a, %a;", [a], np.float32), _flush(_flush(a) + _flush(a)))
        total = a + np.float32(0.5)
    half = np.full(256, 0.5, np.float32)
    got = apply("add.sat.f32 %d, %a, %b;", [a, half], np.float32)
    _same(got, np.where(np.isnan(total), np.float32(0), np.clip(total, 0, 1)))


@pytest.mark.parametrize("kind", ["f32", "f64", "f16", "bf16"])
def test_minimum_and_maximum(kind):
    dtype = _DTYPES[kind]
    a, b = np.repeat(_SPECIAL, 8).astype(dtype), np.tile(_SPECIAL, 8).astype(dtype)
    wide = [x.astype(np.float64) for x in (a, b)]

    def pick(name: str, propagate: bool) -> np.ndarray:
        out = []
        for x, y in zip(*wide, strict=True):
            if math.isnan(x) or math.isnan(y):
                both = math.isnan(x) and math.isnan(y)
                out.append(math.nan if propagate or both else (y if math.isnan(x) else x))
            else:
                order = sorted((x, y), key=lambda v: (v, math.copysign(1, v)))
                out.append(order[0] if name == "min" else order[1])
        return np.array(out).astype(dtype)

    for name in ("min", "max"):
        _same(apply(f"{name}.{kind} %d, %a, %b;", [a, b], dtype), pick(name, False))
        if kind != "f64":
            _same(apply(f"{name}.NaN.{kind} %d, %a, %b;", [a, b], dtype), pick(name, True))


def test_signs():
    for kind, dtype in _DTYPES.items():
        a = _values(kind, 1)
        _same(apply(f"neg.{kind} %d, %a;", [a], dtype), -a)
        _same(apply(f"abs.{kind} %d, %a;", [a], dtype), np.abs(a))
    a, b = _values("f32", 1), _values("f32", 2)
    _same(apply("copysign.f32 %d, %a, %b;", [a, b], np.float32), np.copysign(b, a))


def test_unordered_comparisons():
    a, b = np.repeat(_SPECIAL, 8).astype(np.float32), np.tile(_SPECIAL, 8).astype(np.float32)
    nan = np.isnan(a) | np.isnan(b)
    ordered = {"eq": a == b, "ne": (a < b) | (a > b), "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}
    for name, wanted in ordered.items():
        for suffix, at_nan in (("", False), ("u", True)):
            body = f"setp.{name}{suffix}.f32 %q1, %a, %b; selp.b32 %d, 1, 0, %q1;"
            got = apply(body, [a, b], np.int32)
            np.testing.assert_array_equal(got, np.where(nan, at_nan, wanted))
    got = apply("setp.num.f32 %q1, %a, %b; selp.b32 %d, 1, 0, %q1;", [a, b], np.int32)
    np.testing.assert_array_equal(got, ~nan)
    got = apply("setp.nan.f32 %q1, %a, %b; selp.b32 %d, 1, 0, %q1;", [a, b], np.int32)
    np.testing.assert_array_equal(got, nan)


def test_testp():
    a = _values("f32", 0)
    tiny = np.finfo(np.float32).tiny
    for name, wanted in {
        "finite": np.isfinite(a),
        "infinite": np.isinf(a),
        "number": ~np.isnan(a),
        "notanumber": np.isnan(a),
        "normal": np.isfinite(a) & (np.abs(a) >= tiny),
        "subnormal": (np.abs(a) < tiny) & (a != 0),
    }.items():
        body = f"testp.{name}.f32 %q1, %a; selp.b32 %d, 1, 0, %q1;"
        np.testing.assert_array_equal(apply(body, [a], np.int32), wanted)


# name: reference, and the error allowed: relative, absolute (PTX ISA; of sin and cos in [-pi, pi])
_APPROXIMATE = {
    "ex2.approx.f32": (np.exp2, 2.0**-22, 0),
    "lg2.approx.f32": (np.log2, 2.0**-22, 2.0**-22),
    "rcp.approx.f32": (lambda x: 1 / x, 2.0**-23, 0),
    "rsqrt.approx.f32": (lambda x: 1 / np.sqrt(x), 2.0**-22, 0),
    "sqrt.approx.f32": (np.sqrt, 2.0**-23, 0),
    "sin.approx.f32": (np.sin, 0, 2.0**-20.5),
    "cos.approx.f32": (np.cos, 0, 2.0**-20.5),
    "tanh.approx.f32": (np.tanh, 2.0**-11, 0),
}


@pytest.mark.parametrize("name", _APPROXIMATE)
def test_approximations_are_within_their_documented_errors(name):
    fn, relative, absolute = _APPROXIMATE[name]
    a = np.random.default_rng(3).uniform(0.01, 3.1, 256).astype(np.float32)
    np.testing.assert_allclose(
        apply(f"{name} %d, %a;", [a], np.float32), fn(a.astype(np.float64)), rtol=relative, atol=absolute
    )


def test_approximations_do_not_always_give_the_nearest_number():
    a = np.random.default_rng(4).uniform(0.5, 2, 256).astype(np.float32)
    for name, fn in (("ex2", np.exp2), ("rcp", lambda x: 1 / x)):
        exact = fn(a.astype(np.float64))
        got = apply(f"{name}.approx.ftz.f32 %d, %a;", [a], np.float32)
        off = np.abs(got - exact) / np.spacing(exact.astype(np.float32))
        assert 64 < (off > 0.5).sum() < 192 and off.max() < 1


def test_approximations_at_special_numbers():
    a = np.resize(np.array([x for x in _SPECIAL if x != 1.5], np.float32), 32)
    with np.errstate(all="ignore"):
        _same(apply("ex2.approx.f32 %d, %a;", [a], np.float32), np.exp2(a))
        _same(apply("lg2.approx.f32 %d, %a;", [a], np.float32), np.log2(a))
        _same(apply("rcp.approx.ftz.f32 %d, %a;", [a], np.float32), 1 / a)
    big = np.full(32, 2.0**127, np.float32)
    assert (apply("div.approx.f32 %d, %a, %b;", [a[2:3].repeat(32), big], np.float32) == 0).all()
    assert (apply("div.full.f32 %d, %a, %b;", [big, big], np.float32) == 1).all()
