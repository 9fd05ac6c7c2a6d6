"""Reductions of few long rows on the emulated GPU: over all multiprocessors, not a block for each row."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from device_kernels import rng
from weft.codegen.gpu.target import gpu_target
from weft.ir import prims as P
from weft.ir.types import TensorType, dtype_of_numpy
from weft.runtime.cuda.standalone import DeviceStandalone, compile_function

TARGET = gpu_target("sm_80")
_MOST = 48000  # bytes that a block asks for


def compiled(fn: Any, x: np.ndarray) -> DeviceStandalone:
    return compile_function(fn, TensorType(x.shape, dtype_of_numpy(x.dtype)), form="loop", target=TARGET)


def busy(kernel: DeviceStandalone) -> None:
    """No block of a launch reads much while multiprocessors have none."""
    for s in kernel.statistics:
        assert s.grid[0] >= TARGET.multiprocessors or s.global_read < _MOST * s.grid[0]


def values(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    if np.dtype(dtype) == np.bool_:
        return rng.random(shape) < 1e-4
    return (rng.standard_normal(shape) * 20).astype(dtype)


@pytest.mark.parametrize(("shape", "axis", "dtype"), [
    ((1, 65536), 1, np.float32), ((3, 40000), 1, np.int32), ((2, 65537), 1, np.float64),
    ((65537, 2), 0, np.int8), ((2, 65540), 1, ml_dtypes.bfloat16), ((1, 66000), 1, np.bool_),
])  # fmt: skip
def test_places_of_extremes(shape: tuple[int, ...], axis: int, dtype: Any) -> None:
    """Many ties; the first counts, also where NaN or the worst possible value is all that there is."""
    for name in ("argmax", "argmin"):
        prim = getattr(P, f"{name}_p")
        x = values(shape, dtype)
        kernel = compiled(lambda x, p=prim: p.bind(x, axis=axis), x)
        arrays = [x, np.full_like(x, prim.evaluate([np.zeros(1, x.dtype)], {"axis": 0}, ())[0])]
        if np.dtype(dtype).kind != "i" and np.dtype(dtype) != np.bool_:
            arrays.append(np.full_like(x, -np.inf if name == "argmax" else np.inf))
            with_nan = x.copy()
            with_nan[(..., shape[1] // 2)] = np.nan
            with_nan[(..., shape[1] // 3)] = np.nan
            arrays.append(with_nan)
        for a in arrays:
            want = prim.evaluate([a], {"axis": axis}, ())
            np.testing.assert_array_equal(kernel(a)[0], want[0])
        busy(kernel)
        moved = sum(s.global_read for s in kernel.statistics)
        assert moved < 1.1 * x.nbytes + (1 << 16)  # read once


def softmax(x: Any) -> Any:
    shape = x.type.shape
    top = P.broadcast_p.bind(P.reduce_max_p.bind(x, axes=(1,)), axes=(0,), shape=shape)
    e = P.exp_p.bind(P.sub_p.bind(x, top))
    total = P.sum_p.bind(e, axes=(1,))
    return P.div_p.bind(e, P.broadcast_p.bind(total, axes=(0,), shape=shape)), P.log_p.bind(total)


def variance(x: Any) -> Any:
    shape = x.type.shape
    n = P.full_p.bind(shape=shape[:1], dtype=x.type.dtype, value=shape[1])
    mean = P.div_p.bind(P.sum_p.bind(x, axes=(1,)), n)
    d = P.sub_p.bind(x, P.broadcast_p.bind(mean, axes=(0,), shape=shape))
    return P.div_p.bind(P.sum_p.bind(P.mul_p.bind(d, d), axes=(1,)), n), mean


def test_what_follows_a_reduction_of_a_row() -> None:
    x = rng.standard_normal((4, 40000)).astype(np.float32)
    wide = x.astype(np.float64)
    kernel = compiled(softmax, x)
    weights, logs = kernel(x)
    e = np.exp(wide - wide.max(1, keepdims=True))
    np.testing.assert_allclose(weights, e / e.sum(1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(logs, np.log(e.sum(1)), rtol=1e-6)
    busy(kernel)
    kernel = compiled(variance, x)
    var, mean = kernel(x)
    np.testing.assert_allclose(var, wide.var(1), rtol=1e-5)
    np.testing.assert_allclose(mean, wide.mean(1), atol=1e-6)
    busy(kernel)


@pytest.mark.parametrize("name", ["sum", "prod", "reduce_max", "reduce_min", "any", "all"])
def test_one_reduction(name: str) -> None:
    prim = getattr(P, f"{name}_p")
    x = values((2, 70000), np.bool_ if name in ("any", "all") else np.float32)
    x = 1 + x / 1e4 if name == "prod" else x
    kernel = compiled(lambda x: prim.bind(x, axes=(1,)), x.astype(np.float32) if x.dtype != np.bool_ else x)
    got = kernel(x.astype(np.float32) if x.dtype != np.bool_ else x)[0]
    want = prim.evaluate([x.astype(np.float64) if x.dtype != np.bool_ else x], {"axes": (1,)}, ())
    np.testing.assert_allclose(got.astype(np.float64), want[0].astype(np.float64), rtol=2e-4)
    busy(kernel)


@pytest.mark.parametrize("name", ["cumsum", "cummax"])
def test_running_reductions_are_cut(name: str) -> None:
    prim, x = getattr(P, f"{name}_p"), rng.standard_normal((1, 300000)).astype(np.float32)
    type_ = TensorType(x.shape, dtype_of_numpy(x.dtype))
    kernel = compile_function(lambda x: prim.bind(x, axis=1), type_, form="cumulative", target=TARGET)
    got = kernel(x)[0]
    want = np.cumsum(x, 1, np.float64) if name == "cumsum" else np.maximum.accumulate(x, 1)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)
    busy(kernel)
