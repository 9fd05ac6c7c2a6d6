"""Gather, scatter, sorting, running reductions and windows on the emulated device against numpy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from weft.codegen.gpu import sort_kernel
from weft.codegen.gpu.kernel import emit_device_kernel
from weft.codegen.gpu.radix import RadixSort
from weft.codegen.gpu.target import gpu_target
from weft.codegen.standalone import kernel_op
from weft.ir import prims as P
from weft.ir.prims.base import trace
from weft.ir.types import TensorType, dtype_of_numpy, f32, i64
from weft.runtime.cuda.standalone import DeviceStandalone, compile_function

SM80 = gpu_target("sm_80")
FLOATS = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
DTYPES = [*FLOATS, np.int64, np.int32, np.int8, np.uint8, np.uint64, np.bool_]
rng = np.random.default_rng(3)


def values(dtype, *shape):
    """Values with ties, NaN, infinities and both zeros where the dtype has them."""
    with np.errstate(invalid="ignore"):
        x = (rng.standard_normal(shape) * 4).astype(dtype)
    if dtype in FLOATS:
        flat = x.reshape(-1)
        flat[1::5], flat[2::11], flat[::7], flat[3::13] = -0.0, np.inf, 0.0, np.nan
    return x


def comparable(x):
    return x.astype(np.float32) if x.dtype == ml_dtypes.bfloat16 else x


def check(fn, *arrays, form, tolerance=0.0) -> DeviceStandalone:
    types = [TensorType(a.shape, dtype_of_numpy(a.dtype)) for a in arrays]
    kernel = compile_function(fn, *types, form=form, target=SM80)
    with np.errstate(all="ignore"):
        want = fn(*arrays)
    for got, w in zip(kernel(*arrays), want if isinstance(want, tuple) else [want], strict=True):
        assert got.dtype == w.dtype and got.shape == w.shape
        if tolerance:
            np.testing.assert_allclose(comparable(got), comparable(w), rtol=tolerance, atol=tolerance)
        else:
            np.testing.assert_array_equal(comparable(got), comparable(w))
    return kernel


# sorting -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sort(dtype):
    for n, descending in ((1, False), (7, True), (40, False)):
        x = values(dtype, 2, n, 3)
        check(lambda x, d=descending: P.sort_p.bind(x, axis=1, descending=d), x, form="sort")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sort_of_a_long_line_is_stable(dtype):
    kernel = check(lambda x: P.sort_p.bind(x, axis=0, descending=False), values(dtype, 2500), form="sort")
    assert len(kernel.code.launches) == 3  # two chunks, a step between them, the rest within each


def test_the_first_of_a_long_line_are_those_of_its_chunks():
    kernel = check(
        lambda x: P.topk_p.bind(x, k=9, axis=1, largest=True), values(np.float32, 2, 3000), form="sort"
    )
    assert len(kernel.code.launches) == 2


@pytest.mark.parametrize("descending", [False, True])
def test_sort_by_digits(monkeypatch, descending):
    monkeypatch.setattr(sort_kernel, "sorting", RadixSort)
    kernel = check(
        lambda x: P.sort_p.bind(x, axis=1, descending=descending), values(np.float32, 2, 2100), form="sort"
    )
    assert len(kernel.code.launches) == 12  # four digits: count, scan, send


def test_digits_are_taken_where_they_are_fewer_launches():
    op = kernel_op(
        trace(lambda x: P.sort_p.bind(x, axis=0, descending=False), TensorType((1 << 20,), f32)), "sort"
    )
    assert len(emit_device_kernel(op, SM80, "k").launches) == 12
    types = [TensorType(s, d) for s, d in (((90,), f32), ((5000, 1), i64), ((5000,), f32))]
    kernel = compile_function(
        lambda x, i, u: P.scatter_p.bind(x, i, u, axes=(0,), mode="add"), *types, form="scatter", target=SM80
    )
    assert len(kernel.code.launches) == 2 + 3
    x, i, u = values(np.int64, 90) * 1.0, rng.integers(0, 90, (5000, 1)), rng.standard_normal(5000)
    arrays = x.astype(np.float32), i, u.astype(np.float32)
    (want,) = P.scatter_p.evaluate(arrays, {"axes": (0,), "mode": "add"})
    np.testing.assert_array_equal(kernel(*arrays)[0], want)


@pytest.mark.parametrize("dtype", [np.float16, np.int32], ids=str)
def test_topk(dtype):
    for n, largest in ((5, False), (100, True)):
        check(lambda x, w=largest: P.topk_p.bind(x, k=4, axis=1, largest=w), values(dtype, 3, n), form="sort")


# running reductions -------------------------------------------------------------------------------

RUNNING = {"cumsum": P.cumsum_p, "cumprod": P.cumprod_p, "cummax": P.cummax_p, "cummin": P.cummin_p}


@pytest.mark.parametrize("name", RUNNING)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64], ids=str)
def test_running_reductions(name, dtype):
    for shape, axis, reverse in (((3, 9, 5), 1, False), ((2, 1500), 1, True), ((200, 3), 0, False)):
        x = rng.integers(-2, 3, shape).astype(dtype) if name != "cumprod" else rng.choice([-1, 1], shape)
        check(
            lambda x, a=axis, r=reverse: RUNNING[name].bind(x, axis=a, reverse=r), x.astype(dtype),
            form="cumulative",
        )  # fmt: skip


def test_a_long_line_is_cut():
    x = rng.standard_normal(30000).astype(np.float32)
    types = [TensorType(x.shape, dtype_of_numpy(x.dtype))]
    run = lambda x: P.cumsum_p.bind(x, axis=0, reverse=False)  # noqa: E731
    kernel = compile_function(run, *types, form="cumulative", target=SM80)
    # numpy's running sum in float32 has itself an error that grows with the length
    np.testing.assert_allclose(kernel(x)[0], np.cumsum(x.astype(np.float64)), rtol=1e-5, atol=1e-4)
    assert len(kernel.code.launches) == 3


# windows ------------------------------------------------------------------------------------------

NONE = (0, 0)
PADDED = {"window": (1, 3, 2), "stride": (1, 2, 1), "dilation": (1, 1, 2), "padding": (NONE, (1, 2), (0, 1))}
WIDE = {"window": (1, 5, 4), "stride": (1, 1, 2), "dilation": (1, 1, 1), "padding": (NONE, NONE, NONE)}


@pytest.mark.parametrize("attrs", [PADDED, WIDE], ids=["padded", "wide"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64], ids=str)
def test_windows(dtype, attrs):
    x = rng.integers(-9, 9, (2, 11, 8)).astype(dtype)
    for op in ("max", "min", "sum"):
        check(lambda x, op=op: P.reduce_window_p.bind(x, op=op, **attrs), x, form="window")
    check(lambda x: P.window_argmax_p.bind(x, **attrs), x, form="window")
    if x.dtype.kind == "f":
        ct = rng.integers(-9, 9, P.window_argmax_p.bind(x, **attrs).shape).astype(dtype)
        check(lambda ct, x: P.window_scatter_p.bind(ct, x, **attrs), ct, x, form="window")


# gather and scatter -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.bool_, np.float64], ids=str)
def test_gather(dtype):
    table = values(dtype, 20, 33)
    check(lambda t, i: P.gather_p.bind(t, i, axes=(0,)), table, rng.integers(0, 20, (9, 1)), form="gather")
    check(lambda t, i: P.gather_p.bind(t, i, axes=(1,)), table, rng.integers(0, 33, (9, 1)), form="gather")
    check(lambda t, i: P.take_along_p.bind(t, i, axis=1), table, rng.integers(0, 33, (20, 5)), form="gather")


def test_a_gather_of_rows_moves_sixteen_bytes_at_once():
    table, index = TensorType((20, 64), f32), TensorType((9, 1), i64)
    kernel = compile_function(
        lambda t, i: P.gather_p.bind(t, i, axes=(0,)), table, index, form="gather", target=SM80
    )
    assert "st.global.v2.b64" in kernel.ptx or "st.global.v4.b32" in kernel.ptx


@pytest.mark.parametrize("mode", ["set", "add", "max", "min", "mul"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32, np.float64], ids=str)
def test_scatter_in_program_order(mode, dtype):
    """Many updates of few rows: the results are those of one update after the other, to the bit."""
    x, index = values(dtype, 7, 12), rng.integers(0, 7, (40, 1))
    prim, attrs = (P.scatter_p, {}) if mode in ("set", "add") else (P.scatter_reduce_p, {})
    check(
        lambda x, i, u: prim.bind(x, i, u, axes=(0,), mode=mode, **attrs), x, index, values(dtype, 40, 12),
        form="scatter",
    )  # fmt: skip


def test_scatter_along():
    for shape, axis in (((4, 30), 1), ((60, 2), 0)):
        x, u = values(np.float32, *shape), values(np.float32, *shape)
        index = rng.integers(0, shape[axis], shape)
        check(
            lambda x, i, u, a=axis: P.scatter_along_p.bind(x, i, u, axis=a, mode="add"), x, index, u,
            form="scatter",
        )  # fmt: skip


def test_updates_out_of_range_are_left_out_and_told():
    types = [TensorType((5, 4), f32), TensorType((3, 1), i64), TensorType((3, 4), f32)]
    kernel = compile_function(
        lambda x, i, u: P.scatter_p.bind(x, i, u, axes=(0,), mode="add"), *types, form="scatter", target=SM80
    )
    x, u = values(np.int64, 5, 4).astype(np.float32), np.ones((3, 4), np.float32)
    (got,) = kernel(x, np.array([[1], [7], [1]]), u)
    assert kernel.status == 1
    x[1] += 2
    np.testing.assert_array_equal(got, x)
