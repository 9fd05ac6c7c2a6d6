"""cvt against exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from ptx_samples import apply
from test_floating import _round, _same, _values

BF16 = np.dtype(ml_dtypes.bfloat16)
_FLOATS = {"f16": np.dtype(np.float16), "bf16": BF16, "f32": np.dtype("f4"), "f64": np.dtype("f8")}
_INTEGERS = {f"{'s' if k == 'i' else 'u'}{8 * n}": np.dtype(f"{k}{n}") for k in "iu" for n in (1, 2, 4, 8)}


def _register(kind: str) -> int:
    return max(int(kind[1:]) // 8, 2)


def _corners(dtype: np.dtype) -> np.ndarray:
    info, rng = np.iinfo(dtype), np.random.default_rng(1)
    x = (rng.integers(-(2**63), 2**63 - 1, 64) >> rng.integers(0, 63, 64)).astype(dtype)
    x[:6] = np.array([info.min, info.max, 0, 1, info.max - 1, info.min + 1], dtype)
    x[6:10] = np.array([2**24 + 1, 2**53 + 1, 2**24 + 3, 2**53 + 3], np.int64).astype(dtype)
    return x


@pytest.mark.parametrize("source", _INTEGERS)
def test_between_integers(source):
    x = _corners(_INTEGERS[source])
    for result, dtype in _INTEGERS.items():
        info, mine = np.iinfo(dtype), np.iinfo(x.dtype)
        fits = info.min <= mine.min and mine.max <= info.max
        for saturate in ("",) if fits else ("", ".sat"):
            values = [int(v) for v in x]
            if saturate:
                values = [max(info.min, min(info.max, v)) for v in values]
            wanted = np.array([v & (2 ** (dtype.itemsize * 8) - 1) for v in values], np.uint64)
            wanted = wanted.astype(f"u{dtype.itemsize}").view(dtype)
            got = apply(f"cvt{saturate}.{result}.{source} %d, %a;", [x], dtype)
            np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("source", ["s16", "u32", "s32", "u64", "s64"])
def test_integers_to_floats(source, mode):
    x = _corners(_INTEGERS[source])
    for result in ("f16", "f32", "f64"):
        dtype = _FLOATS[result]
        got = apply(f"cvt.{mode}.{result}.{source} %d, %a;", [x], dtype)
        _same(got, np.array([_round(Fraction(int(v)), dtype, mode) for v in x]).astype(dtype))


_TO_INTEGER = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}


@pytest.mark.parametrize("mode", _TO_INTEGER)
def test_floats_to_integers_clamp(mode):
    for source in ("f16", "f32", "f64"):
        x = _values(source, 3)
        x[20:30] = [0.5, 1.5, 2.5, -0.5, -1.5, 250, -129, 3e4, -3e4, 6e4]
        for result in ("s8", "u8", "u16", "s32", "u32", "s64", "u64"):
            dtype = _INTEGERS[result]
            info, wanted = np.iinfo(dtype), []
            for v in map(float, x):
                if math.isnan(v):
                    invalid = source == "f64" or result in ("s64", "u64")
                    bits = dtype.itemsize * 8
                    wanted.append((info.min if info.min else 1 << bits - 1) if invalid else 0)
                elif math.isinf(v):
                    wanted.append(info.max if v > 0 else info.min)
                else:
                    wanted.append(max(info.min, min(info.max, _TO_INTEGER[mode](v))))
            got = apply(f"cvt.{mode}.{result}.{source} %d, %a;", [x], dtype)
            np.testing.assert_array_equal(got, np.array(wanted, dtype))


def _exact(x: np.ndarray, dtype: np.dtype, mode: str) -> np.ndarray:
    out = []
    for v in map(float, x):
        rounded = math.copysign(_round(Fraction(v), dtype, mode), v) if math.isfinite(v) else v
        out.append(rounded)
    return np.array(out).astype(dtype)


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
def test_narrower_floats(mode):
    x = _values("f64", 1)
    x[20:24] = [1e300, -1e300, 1e-300, 1 + 2.0**-24 + 2.0**-50]
    _same(apply(f"cvt.{mode}.f32.f64 %d, %a;", [x], np.float32), _exact(x, np.dtype("f4"), mode))
    _same(apply(f"cvt.{mode}.f16.f64 %d, %a;", [x], np.float16), _exact(x, np.dtype("f2"), mode))


@pytest.mark.parametrize("mode", ["rn", "rz"])
def test_f32_to_halves(mode):
    x = _values("f32", 2)
    x[20:24] = [65519, 65520, 1e-7, -7e4]
    for result in ("f16", "bf16"):
        dtype = _FLOATS[result]
        wanted = _exact(x, dtype, mode)
        _same(apply(f"cvt.{mode}.{result}.f32 %d, %a;", [x], dtype), wanted)
        pair = apply(f"cvt.{mode}.{result}x2.f32 %d, %a, %b;", [x, x[::-1].copy()], np.uint32)
        _same(pair.view(dtype)[1::2], wanted)
        _same(pair.view(dtype)[::2], wanted[::-1])


def test_wider_floats_are_exact():
    for source in ("f16", "bf16"):
        x = _values(source, 1)
        arch = "sm_90" if source == "bf16" else "sm_80"
        _same(apply(f"cvt.f32.{source} %d, %a;", [x], np.float32, arch), x.astype(np.float32))
    x = _values("f32", 1)
    _same(apply("cvt.f64.f32 %d, %a;", [x], np.float64), x.astype(np.float64))


def test_rounding_to_integral_numbers():
    for kind in ("f16", "f32", "f64"):
        x = _values(kind, 4)
        x[20:26] = [0.5, 1.5, 2.5, -0.5, -1.5, -2.5]
        for mode, fn in (("rni", np.rint), ("rzi", np.trunc), ("rmi", np.floor), ("rpi", np.ceil)):
            _same(apply(f"cvt.{mode}.{kind}.{kind} %d, %a;", [x], x.dtype), fn(x))


def test_saturation_and_flushing():
    x = _values("f32", 5)
    got = apply("cvt.sat.f32.f32 %d, %a;", [x], np.float32)
    _same(got, np.where(np.isnan(x), np.float32(0), np.clip(x, 0, 1) + np.float32(0)))
    tiny = np.finfo(np.float32).tiny
    got = apply("cvt.ftz.f64.f32 %d, %a;", [x], np.float64)
    _same(got, np.where(np.abs(x) < tiny, np.copysign(0.0, x), x.astype(np.float64)))


def test_tf32():
    x = _values("f32", 6)
    got = apply("cvt.rna.tf32.f32 %d, %a;", [x], np.float32)
    finite = np.isfinite(x) & (np.abs(x) < 1e38) & (np.abs(x) > 1e-30)
    steps = 2.0 ** (np.frexp(x.astype(np.float64))[1] - 11)
    wide = np.abs(x.astype(np.float64))
    away = np.copysign(np.floor(wide / steps + 0.5) * steps, x)
    np.testing.assert_array_equal(got[finite], away[finite].astype(np.float32))
    assert (got.view(np.uint32)[finite] & 0x1FFF == 0).all()


def test_eight_bit_floats():
    x = _values("f32", 7)
    for kind, dtype in (("e4m3x2", ml_dtypes.float8_e4m3fn), ("e5m2x2", ml_dtypes.float8_e5m2)):
        largest = np.float32(ml_dtypes.finfo(dtype).max)
        zero = np.zeros_like(x)
        got = apply(f"cvt.rn.satfinite.{kind}.f32 %d, %a, %b;", [zero, x], np.uint16, "sm_89")
        low = got.astype(np.uint8).view(dtype)
        wanted = np.clip(x, -largest, largest).astype(dtype)
        np.testing.assert_array_equal(np.isnan(low.astype(np.float32)), np.isnan(x))
        kept = ~np.isnan(x)
        np.testing.assert_array_equal(low[kept].view(np.uint8), wanted[kept].view(np.uint8))
        back = apply(f"cvt.rn.f16x2.{kind} %d, %a;", [got], np.uint32, "sm_89").view(np.float16)[::2]
        np.testing.assert_array_equal(back[kept], wanted[kept].astype(np.float16))
