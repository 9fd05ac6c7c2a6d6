"""Gather and scatter kernels against the numpy evaluation."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from weft.codegen.kernel import Unsupported
from weft.codegen.standalone import compile_function
from weft.codegen.target import host_target, named_target
from weft.ir import prims as P
from weft.ir.prims.base import trace
from weft.ir.types import TensorType, c64, dtype_of_numpy, f32, i64
from weft.passes.pipeline import lower

TARGETS = [host_target(), named_target("haswell")]
TARGET_IDS = ["host", "haswell"]
DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int64, np.int8, np.bool_]
rng = np.random.default_rng(2)


def values(dtype, *shape):
    x = rng.standard_normal(shape) * 3
    return x > 0 if dtype == np.bool_ else x.astype(dtype)


def indices(high, *shape, dtype=np.int64):
    return rng.integers(0, high, shape).astype(dtype)


def run(fn, *arrays, form, target=None):
    kernel = compile_function(
        fn, *[TensorType(a.shape, dtype_of_numpy(a.dtype)) for a in arrays], form=form, target=target
    )
    return kernel, kernel(*arrays)[0]


def check(fn, *arrays, form, target=None):
    kernel, got = run(fn, *arrays, form=form, target=target)
    want = fn(*arrays)
    assert kernel.status == 0
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


def gather(axes):
    return lambda x, i: P.gather_p.bind(x, i, axes=axes)


def scatter(mode, **where):
    reduce = mode not in ("set", "add")
    if "axes" in where:
        prim = P.scatter_reduce_p if reduce else P.scatter_p
    else:
        prim = P.scatter_reduce_along_p if reduce else P.scatter_along_p
    return lambda x, i, u: prim.bind(x, i, u, mode=mode, **where)


@pytest.mark.parametrize("target", TARGETS, ids=TARGET_IDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gather(dtype, target):
    check(gather((0,)), values(dtype, 50, 33), indices(50, 7, 9, 1), form="gather", target=target)
    check(
        gather((1,)),
        values(dtype, 5, 50, 33),
        indices(50, 7, 1, dtype=np.int32),
        form="gather",
        target=target,
    )
    check(gather((0, 2)), values(dtype, 5, 6, 7), indices(5, 4, 2), form="gather", target=target)
    check(gather((0, 1)), values(dtype, 5, 6), indices(5, 4, 2), form="gather", target=target)
    along = lambda x, i: P.take_along_p.bind(x, i, axis=1)  # noqa: E731
    check(along, values(dtype, 5, 9, 7), indices(9, 5, 4, 6), form="gather", target=target)


@pytest.mark.parametrize("target", TARGETS, ids=TARGET_IDS)
@pytest.mark.parametrize("mode", ["set", "add", "max", "min", "mul"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scatter(dtype, mode, target):
    u = lambda *shape: values(dtype, *shape)  # noqa: E731
    check(scatter(mode, axes=(0,)), u(50, 33), indices(50, 40, 1), u(40, 33), form="scatter", target=target)
    check(scatter(mode, axes=(0, 2)), u(5, 6, 7), indices(5, 40, 2), u(40, 6), form="scatter", target=target)
    check(scatter(mode, axis=1), u(9, 9, 9), indices(9, 5, 8, 6), u(5, 8, 6), form="scatter", target=target)


def test_scatter_along_every_axis():
    for axis in range(3):
        check(scatter("add", axis=axis), values(np.float32, 9, 9, 9), indices(9, 5, 8, 6),
              values(np.float32, 5, 8, 6), form="scatter")  # fmt: skip


def test_many_updates_of_one_row_are_added_in_order():
    x, idx, upd = values(np.float32, 40, 33), indices(40, 900, 1), values(np.float32, 900, 33)
    fn = scatter("add", axes=(0,))
    kernel, first = run(fn, x, idx, upd, form="scatter")
    assert kernel.code.phases[-1].units > 1
    np.testing.assert_array_equal(first, fn(x, idx, upd))
    for chunks in (1, 3, 16):
        np.testing.assert_array_equal(kernel(x, idx, upd, chunks=chunks)[0], first)


def test_nan_wins_in_extremes():
    x, idx = np.array([1.0, np.nan, 3.0], np.float32), np.array([[0], [1], [2]])
    upd = np.array([np.nan, 5.0, 9.0], np.float32)
    for mode in ("max", "min"):
        check(scatter(mode, axes=(0,)), x, idx, upd, form="scatter")


@pytest.mark.parametrize("bad", [5, -1, 1 << 40])
def test_out_of_range_sets_the_status(bad):
    x, idx = values(np.float32, 5, 3), np.array([[1], [bad]])
    kernel, got = run(gather((0,)), x, idx, form="gather")
    assert kernel.status == 1
    np.testing.assert_array_equal(got[0], x[1])
    kernel, got = run(scatter("add", axes=(0,)), x, idx, values(np.float32, 2, 3), form="scatter")
    assert kernel.status == 1
    np.testing.assert_array_equal(got[[0, 2, 3, 4]], x[[0, 2, 3, 4]])
    along = np.array([[0, 0, 0], [bad, 0, 0]])
    kernel, _ = run(scatter("set", axis=0), x, along, values(np.float32, 2, 3), form="scatter")
    assert kernel.status == 1
    kernel, _ = run(lambda x, i: P.take_along_p.bind(x, i, axis=0), x, along, form="gather")
    assert kernel.status == 1


def test_what_is_not_compiled_says_why():
    with pytest.raises(Unsupported, match="complex"):
        compile_function(gather((0,)), TensorType((5, 3), c64), TensorType((2, 1), i64), form="gather")
    with pytest.raises(Unsupported, match="empty"):
        compile_function(gather((0,)), TensorType((5, 3), f32), TensorType((0, 1), i64), form="gather")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.int64, np.uint8, np.bool_], ids=str)
@pytest.mark.parametrize("number", [0, 1])
def test_scatter_into_a_number(dtype, number):
    """The kernel fills its result itself; no array of the number is made or read."""
    index, updates = np.array([[3], [30], [3], [7]]), np.ones((4, 5), dtype)

    def f(i, u):
        x = P.full_p.bind(shape=(33, 5), dtype=dtype_of_numpy(np.dtype(dtype)), value=number)
        return P.scatter_p.bind(x, i, u, axes=(0,), mode="set" if dtype == np.bool_ else "add")

    types = [TensorType(a.shape, dtype_of_numpy(a.dtype)) for a in (index, updates)]
    kernel = compile_function(f, *types, form="scatter")
    want = np.full((33, 5), number, dtype)
    if dtype == np.bool_:
        want[index[:, 0]] = True
    else:
        np.add.at(want, index[:, 0], updates)
    (got,) = kernel(index, updates)
    assert kernel.status == 0
    np.testing.assert_array_equal(got, want)


def test_the_gradient_of_an_embedding_is_one_kernel():
    graph = trace(
        lambda i, g: P.scatter_p.bind(
            P.full_p.bind(shape=(500, 8), dtype=f32, value=0.0), i, g, axes=(0,), mode="add"
        ),
        TensorType((40, 1), i64),
        TensorType((40, 8), f32),
    )
    assert [op.attrs["form"] for op in lower(graph).graph.ops if op.prim.name == "kernel"] == ["scatter"]
