"""Sorting, running reductions and windows against the numpy evaluation."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from weft.codegen.kernel import Unsupported
from weft.codegen.standalone import compile_function
from weft.codegen.target import host_target, named_target
from weft.ir import prims as P
from weft.ir.types import TensorType, bool_, c64, dtype_of_numpy, f32

TARGETS = [host_target(), named_target("haswell")]
TARGET_IDS = ["host", "haswell"]
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


def check(fn, *arrays, form, target=None):
    kernel = compile_function(
        fn, *[TensorType(a.shape, dtype_of_numpy(a.dtype)) for a in arrays], form=form, target=target
    )
    with np.errstate(all="ignore"):
        want = fn(*arrays)
    for got, w in zip(kernel(*arrays), want if isinstance(want, tuple) else [want], strict=True):
        assert got.dtype == w.dtype and got.shape == w.shape
        np.testing.assert_array_equal(comparable(got), comparable(w))


@pytest.mark.parametrize("target", TARGETS, ids=TARGET_IDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sort(dtype, target):
    for n, descending in ((1, False), (7, True), (40, False), (41, True), (300, False), (300, True)):
        sort = lambda x, d=descending: P.sort_p.bind(x, axis=1, descending=d)  # noqa: E731
        check(sort, values(dtype, 2, n, 3), form="sort", target=target)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_topk(dtype):
    for n, largest in ((5, False), (10, True), (100, True), (100, False)):
        top = lambda x, w=largest: P.topk_p.bind(x, k=4, axis=1, largest=w)  # noqa: E731
        check(top, values(dtype, 3, n), form="sort")


@pytest.mark.parametrize("target", TARGETS, ids=TARGET_IDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_selection(dtype, target):
    """Few of a long line: in the order of a stable sort, whatever the order of the line."""
    x = values(dtype, 3, 500)
    lines = {"as they come": x, "rising": np.sort(x, axis=1), "falling": np.sort(x, axis=1)[:, ::-1].copy()}
    for line in lines.values():
        for k, largest in ((1, True), (7, False), (7, True), (60, True)):
            top = lambda x, k=k, w=largest: P.topk_p.bind(x, k=k, axis=1, largest=w)  # noqa: E731
            check(top, line, form="sort", target=target)
    top = lambda x: P.topk_p.bind(x, k=5, axis=0, largest=True)  # noqa: E731
    check(top, values(dtype, 90, 3), form="sort", target=target)


def test_one_result_of_a_sort():
    """A kernel whose values, or whose positions, nobody reads."""
    x = values(np.float32, 4, 300)
    for i in range(2):
        check(lambda x, i=i: P.sort_p.bind(x, axis=1)[i], x, form="sort")
        check(lambda x, i=i: P.topk_p.bind(x, k=4, axis=1, largest=True)[i], x, form="sort")


def test_sort_of_a_long_line_is_stable():
    x = rng.integers(0, 50, 100_000).astype(np.int32)
    check(lambda x: P.sort_p.bind(x, axis=0), x, form="sort")


@pytest.mark.parametrize("target", TARGETS, ids=TARGET_IDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cumulative(dtype, target):
    prims = [P.cummax_p, P.cummin_p]
    if dtype != np.bool_:
        prims += [P.cumsum_p, P.cumprod_p]
    for prim in prims:
        for axis, reverse in ((0, False), (1, True), (2, False), (2, True)):
            scan = lambda x, p=prim, a=axis, r=reverse: p.bind(x, axis=a, reverse=r)  # noqa: E731
            check(scan, values(dtype, 5, 9, 21), form="cumulative", target=target)


WINDOWS = {
    "pool": ((1, 1, 2, 2), (1, 1, 2, 2), ((0, 0),) * 4, (1,) * 4, (2, 3, 40, 40)),
    "overlapping": ((1, 1, 3, 3), (1,) * 4, ((0, 0), (0, 0), (1, 1), (1, 1)), (1,) * 4, (2, 3, 20, 40)),
    "small rows": ((1, 1, 3, 3), (1, 1, 2, 2), ((0, 0), (0, 0), (1, 1), (1, 1)), (1, 1, 2, 1), (2, 3, 9, 9)),
    "large, cropped": (
        (2, 1, 5, 3),
        (1, 1, 2, 2),
        ((1, 0), (0, 0), (-1, 1), (2, 1)),
        (1, 1, 2, 1),
        (2, 3, 12, 11),
    ),
}


@pytest.mark.parametrize("target", TARGETS, ids=TARGET_IDS)
@pytest.mark.parametrize("case", WINDOWS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int64, np.uint8, np.bool_], ids=str)
def test_windows(dtype, case, target):
    window, stride, padding, dilation, shape = WINDOWS[case]
    how = {"window": window, "stride": stride, "padding": padding, "dilation": dilation}
    x = values(dtype, *shape)
    check(lambda x: P.window_argmax_p.bind(x, **how), x, form="window", target=target)
    for op in ("max", "min", "sum"):
        if op != "sum" or dtype != np.bool_:
            check(lambda x, op=op: P.reduce_window_p.bind(x, op=op, **how), x, form="window", target=target)


SCATTERED = WINDOWS | {
    "3 of 2 apart": ((1, 1, 3, 3), (1, 1, 2, 2), ((0, 0), (0, 0), (1, 1), (1, 1)), (1,) * 4, (2, 3, 31, 57)),
    "channels last": ((1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)), (1,) * 4, (2, 9, 25, 70)),
    "a line": ((1, 4), (1, 3), ((0, 0), (1, 2)), (1, 2), (3, 600)),
    "far apart": ((1, 9), (1, 7), ((0, 0), (0, 3)), (1, 1), (3, 201)),
    "whole lines": ((1, 1, 60), (1, 1, 60), ((0, 0),) * 3, (1,) * 3, (2, 5, 60)),
    "volumes": ((1, 2, 3, 2), (1, 2, 1, 2), ((0, 0), (1, 0), (1, 1), (0, 1)), (1,) * 4, (2, 9, 12, 21)),
    "large": ((1, 7, 7), (1, 2, 3), ((0, 0), (3, 3), (3, 3)), (1, 1, 1), (2, 30, 40)),
    "no windows": ((1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), (3, 20)),
}


@pytest.mark.parametrize("target", TARGETS, ids=TARGET_IDS)
@pytest.mark.parametrize("case", SCATTERED)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16], ids=str)
def test_what_windows_scatter(dtype, case, target):
    """Whole numbers of few values: sums are exact, and maxima are met more than once."""
    window, stride, padding, dilation, shape = SCATTERED[case]
    how = {"window": window, "stride": stride, "padding": padding, "dilation": dilation}
    x = rng.integers(-3, 4, shape).astype(dtype)
    x.reshape(-1)[:: 37] = np.nan
    ct = rng.integers(-9, 9, P.reduce_window_p.bind(x, op="max", **how).shape).astype(dtype)
    check(lambda ct, x: P.window_scatter_p.bind(ct, x, **how), ct, x, form="window", target=target)
    check(lambda x: P.reduce_window_p.bind(x, op="max", **how), x, form="window", target=target)


def test_argmax_of_the_lowest_values_is_no_padding():
    x = np.full((1, 4), -np.inf, np.float32)
    how = {"window": (1, 3), "stride": (1, 1), "padding": ((0, 0), (1, 1)), "dilation": (1, 1)}
    check(lambda x: P.window_argmax_p.bind(x, **how), x, form="window")


def test_what_is_not_compiled_says_why():
    with pytest.raises(Unsupported, match="complex"):
        compile_function(lambda x: P.cumsum_p.bind(x, axis=0), TensorType((4,), c64), form="cumulative")
    with pytest.raises(Unsupported, match="empty"):
        compile_function(lambda x: P.sort_p.bind(x, axis=0), TensorType((0,), f32), form="sort")
    with pytest.raises(Unsupported, match="2 operations"):
        both = lambda x: P.cummax_p.bind(P.cummin_p.bind(x, axis=0), axis=0)  # noqa: E731
        compile_function(both, TensorType((4,), bool_), form="cumulative")
