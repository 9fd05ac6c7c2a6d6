"""Elementwise primitives: errors, conventions of gradients, and paths for many elements."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from weft.ir import prims as P
from weft.ir.prims.base import Primitive, type_of
from weft.ir.types import CPU, Device, TensorType, bf16, bool_, c64, f16, f32, f64, i32, i64, u8

F3 = TensorType((3,), f32)


@pytest.mark.parametrize(
    ("prim", "types", "error", "words"),
    [
        (P.add_p, (F3, TensorType((4,), f32)), ValueError, "different shapes"),
        (P.add_p, (F3, TensorType((3,), f64)), TypeError, "different dtypes"),
        (P.add_p, (F3, TensorType((3,), f32, Device("cuda", 0))), TypeError, "different devices"),
        (P.exp_p, (TensorType((3,), i32),), TypeError, "exp is not defined for int32"),
        (P.bit_and_p, (F3, F3), TypeError, "bit_and is not defined for float32"),
        (P.shl_p, (TensorType((), bool_),) * 2, TypeError, "shl is not defined for bool"),
        (P.lt_p, (TensorType((3,), c64),) * 2, TypeError, "lt is not defined for complex64"),
        (P.where_p, (F3, F3, F3), TypeError, "condition must be bool"),
        (P.where_p, (TensorType((4,), bool_), F3, F3), ValueError, "does not fit"),
        (P.real_p, (F3,), TypeError, "real is not defined for float32"),
        (P.complex_p, (TensorType((3,), f16),) * 2, TypeError, "complex is not defined for float16"),
    ],
)
def test_type_errors(prim: Primitive, types: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        prim.infer_types(types, {})


def test_attribute_errors() -> None:
    with pytest.raises(ValueError, match="differ in width"):
        P.bitcast_p.infer(F3, dtype=f64)
    with pytest.raises(TypeError, match="bitcast is not defined for bool"):
        P.bitcast_p.infer(F3, dtype=bool_)
    with pytest.raises(ValueError, match="n must be at least 1"):
        P.polygamma_p.infer(F3, n=0)


def test_result_types() -> None:
    assert P.lt_p.infer(F3, F3) == TensorType((3,), bool_, CPU)
    assert P.abs_p.infer(TensorType((2,), c64)) == TensorType((2,), f32)
    assert P.complex_p.infer(F3, F3) == TensorType((3,), c64)
    assert P.convert_p.infer(F3, dtype=u8) == TensorType((3,), u8)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i8", "?", "c8", "c16", ml_dtypes.bfloat16])
def test_where_of_many(dtype: Any) -> None:
    r = np.random.default_rng(0)
    c = r.random((100, 70)) > 0.5
    x, y = r.normal(size=(100, 70)).astype(dtype), r.normal(size=(70, 100)).astype(dtype).T
    constant, rows = np.broadcast_to(x[0, 0], c.shape), np.broadcast_to(y[:1], c.shape)
    for a, b in ((x, y), (x, constant), (constant, y), (x[:, ::-1], rows), (constant, constant)):
        got = P.where_p.bind(c, a, b)
        assert got.dtype == x.dtype
        np.testing.assert_array_equal(got, np.where(c, a, b))
        np.testing.assert_array_equal(P.where_p.bind(c.T, a.T, b.T), np.where(c, a, b).T)


def gradient(prim: Primitive, *xs: float, **attrs: Any) -> list[float]:
    arrays = [np.array(x) for x in xs]
    out = prim.bind(*arrays, **attrs)
    assert prim.vjp is not None
    with np.errstate(all="ignore"):
        return [float(g) for g in prim.vjp(np.array(1.0), out, *arrays, **attrs)]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("prim", "at", "want"),
    [
        (P.abs_p, (0.0,), [0.0]),
        (P.sign_p, (2.0,), [0.0]),
        (P.sqrt_p, (0.0,), [INF]),
        (P.maximum_p, (1.0, 1.0), [0.5, 0.5]),
        (P.minimum_p, (1.0, 2.0), [1.0, 0.0]),
        (P.maximum_p, (NAN, 2.0), [1.0, 1.0]),
        (P.pow_p, (0.0, 0.0), [0.0, 0.0]),
        (P.pow_p, (2.0, 0.5), [0.35355339059327373, 0.9802581434685472]),
        (P.pow_p, (-2.0, 3.0), [12.0, NAN]),
        (P.pow_p, (0.0, 2.0), [0.0, 0.0]),
        (P.copysign_p, (0.0, -1.0), [0.0, 0.0]),
        (P.copysign_p, (0.5, -2.0), [-1.0, 0.0]),
        (P.rem_p, (5.5, -2.0), [1.0, 2.0]),
        (P.floor_p, (1.5,), [0.0]),
    ],
)
def test_gradients_where_torch_has_a_convention(prim: Primitive, at: Any, want: list[float]) -> None:
    np.testing.assert_allclose(gradient(prim, *at), want, rtol=1e-14)


def test_conversions_that_do_not_fit() -> None:
    x = np.array([NAN, INF, -INF, 1e30, -1e30, 300.7, -0.9, -1.0])
    np.testing.assert_array_equal(P.convert_p.bind(x, dtype=u8), [0, 255, 0, 255, 0, 255, 0, 0])
    low, high = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    np.testing.assert_array_equal(P.convert_p.bind(x, dtype=i64), [0, high, low, high, low, 300, 0, -1])
    np.testing.assert_array_equal(P.convert_p.bind(x, dtype=bool_), [True] * 8)


def test_half_results_are_rounded_once() -> None:
    x = np.array([2048.0, 1.0], np.float16)
    assert P.add_p.bind(x, x[::-1])[0] == np.float16(2048)  # a tie, to even
    y = np.array([256.0, 1.0], ml_dtypes.bfloat16)
    assert type_of(P.mul_p.bind(y, y)).dtype is bf16
    assert float(P.add_p.bind(y, y[::-1])[0]) == 256.0
