"""Reductions in the epilogue of a contraction, kernel by kernel."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from weft.codegen.contract_kernel import Contract
from weft.codegen.contract_plan import plans
from weft.codegen.standalone import Standalone, compile_function, kernel_op
from weft.codegen.target import emitting_for, host_target, named_target
from weft.ir import prims as P
from weft.ir.prims.base import trace, type_of
from weft.ir.types import TensorType, dtype_of_numpy

TARGETS = [host_target(), named_target("haswell")]
TARGET_IDS = ["host", "haswell"]
SHAPES = [
    (1, 5, 9), (9, 5, 1), (7, 3, 12), (64, 64, 10), (33, 70, 65), (100, 130, 36), (61, 40, 300),
    (130, 700, 90),
]  # fmt: skip
FOLDS = {
    "sum": (P.sum_p, np.sum), "max": (P.reduce_max_p, np.max), "min": (P.reduce_min_p, np.min),
}  # fmt: skip
rng = np.random.default_rng(0)


def normal(*shape, dtype=np.float32):
    return rng.standard_normal(shape).astype(dtype)


def types(arrays):
    return [TensorType(a.shape, dtype_of_numpy(a.dtype)) for a in arrays]


def double(x):
    return np.asarray(x).astype(np.float64)


def product(a, b):
    """[..., k] by [n, k], or a batch of them."""
    n = type_of(b).ndim - 2
    lead = tuple(range(n))
    last = type_of(a).ndim - 1
    return P.dot_general_p.bind(a, b, contract=((last,), (n + 1,)), batch=(lead, lead))


def fold(prim, x, *axes):
    return prim.bind(x, axes=axes)


def compiled(fn, arrays, target=None) -> Standalone:
    return compile_function(fn, *types(arrays), form="contract", target=target)


@pytest.mark.parametrize("target", TARGETS, ids=TARGET_IDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_columns_and_everything(shape, target):
    m, k, n = shape
    a, b, bias = normal(m, k), normal(n, k), normal(n)
    folded = [axes for axes in ((0,), (1,), (0, 1)) if any((m, n)[x] > 1 for x in axes)]

    def fn(a, b, bias):
        y = product(a, b)
        y = P.add_p.bind(y, P.broadcast_p.bind(bias, shape=type_of(y).shape, axes=(1,)))
        return [y, *(fold(p, y, *axes) for p, _ in FOLDS.values() for axes in folded)]

    kernel = compiled(fn, (a, b, bias), target)
    got = kernel(a, b, bias, chunks=1)
    for x, y in zip(got, kernel(a, b, bias, chunks=7), strict=True):
        np.testing.assert_array_equal(x, y)
    exact = double(a) @ double(b).T + bias
    largest = np.abs(exact).max() + np.sqrt(k)
    bounds = [largest * 2.0**-22 * k] * (1 + 3 * len(folded))
    for i, axes in enumerate(folded):
        bounds[1 + i] *= np.prod([exact.shape[x] for x in axes])
    wanted = [exact, *(f(exact, axis=axes) for _, f in FOLDS.values() for axes in folded)]
    for x, want, bound in zip(got, wanted, bounds, strict=True):
        assert x.shape == np.shape(want)
        np.testing.assert_allclose(double(x), want, rtol=0, atol=bound)


@pytest.mark.parametrize("target", TARGETS, ids=TARGET_IDS)
def test_batches_folded_and_kept(target):
    def fn(a, b):
        y = product(a, b)
        return [fold(P.sum_p, y, *axes) for axes in ((2,), (1,), (1, 2), (0, 2), (0, 1), (0, 1, 2))]

    a, b = normal(6, 50, 33), normal(6, 70, 33)
    got = compiled(fn, (a, b), target)(a, b, chunks=3)
    exact = double(a) @ double(b).transpose(0, 2, 1)
    for x, axes in zip(got, ((2,), (1,), (1, 2), (0, 2), (0, 1), (0, 1, 2)), strict=True):
        np.testing.assert_allclose(
            double(x), exact.sum(axes), rtol=0, atol=2e-6 * np.abs(exact).sum(axes).max()
        )


@pytest.mark.parametrize("target", TARGETS, ids=TARGET_IDS)
@pytest.mark.parametrize(
    ("dtype", "bound"), [(np.float64, 2**-50), (np.float16, 2**-10), (ml_dtypes.bfloat16, 2**-7)], ids=str
)
def test_dtypes(dtype, bound, target):
    """The product is rounded to its dtype, sums run in f32 and round once more."""

    def fn(a, b):
        y = product(a, b)
        return [fold(p, y, *axes) for p in (P.sum_p, P.reduce_max_p) for axes in ((0,), (1,), (0, 1))]

    a, b = normal(45, 30, dtype=dtype), normal(77, 30, dtype=dtype)
    got = compiled(fn, (a, b), target)(a, b)
    exact = double(a) @ double(b).T
    each = [(f, axes) for f in (np.sum, np.max) for axes in (0, 1, (0, 1))]
    for x, (f, axes) in zip(got, each, strict=True):
        assert x.dtype == dtype
        room = bound * (np.abs(exact).sum(axes) if f is np.sum else np.abs(exact).max()) + bound
        assert np.all(np.abs(double(x) - f(exact, axis=axes)) <= room)


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int64], ids=str)
def test_integers_are_exact(dtype):
    def fn(a, b):
        y = product(a, b)
        return [
            fold(p, y, *axes) for p in (P.sum_p, P.reduce_min_p, P.prod_p) for axes in ((0,), (1,), (0, 1))
        ]

    a, b = rng.integers(0, 5, (20, 9)).astype(dtype), rng.integers(0, 5, (70, 9)).astype(dtype)
    for x, want in zip(compiled(fn, (a, b))(a, b), fn(a, b), strict=True):
        np.testing.assert_array_equal(x, want)


@pytest.mark.parametrize("target", TARGETS, ids=TARGET_IDS)
def test_truth_values_and_several_reductions_at_once(target):
    def fn(a, b, level):
        y = product(a, b)
        high = P.gt_p.bind(y, P.broadcast_p.bind(level, shape=type_of(y).shape, axes=(0,)))
        return [
            fold(P.any_p, high, 1), fold(P.all_p, high, 1), fold(P.any_p, high, 0), fold(P.all_p, high, 0, 1),
            fold(P.sum_p, y, 1), fold(P.sum_p, P.mul_p.bind(y, y), 1),
        ]  # fmt: skip

    a, b = normal(50, 8), normal(67, 8)
    level = np.linspace(-20, 20, 50).astype(np.float32)
    got = compiled(fn, (a, b, level), target)(a, b, level)
    exact = double(a) @ double(b).T
    high = exact > level[:, None]
    assert not np.any(np.abs(exact - level[:, None]) < 1e-5)
    for x, want in zip(got, (high.any(1), high.all(1), high.any(0), high.all()), strict=False):
        assert x.dtype == bool
        np.testing.assert_array_equal(x, want)
    np.testing.assert_allclose(got[4], exact.sum(1), atol=1e-4)
    np.testing.assert_allclose(got[5], (exact**2).sum(1), rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_special_values_reach_their_row_and_every_column(value):
    def fn(a, b):
        y = product(a, b)
        return [fold(p, y, *axes) for p in (P.sum_p, P.reduce_max_p, P.reduce_min_p) for axes in ((0,), (1,))]

    a, b = np.abs(normal(61, 5)) + 1, np.abs(normal(90, 5)) + 1
    a[11, 2] = value
    for x, want in zip(compiled(fn, (a, b))(a, b), fn(a, b), strict=True):
        np.testing.assert_allclose(x, want, rtol=1e-5)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.cpu)
@pytest.mark.parametrize("shape", [(50, 700, 75), (9, 90, 200), (60, 150, 7)], ids=str)
def test_every_kind_of_plan(shape, target):
    def fn(a, b):
        y = product(a, b)
        return [y, *(fold(P.sum_p, y, *axes) for axes in ((0,), (1,), (0, 1)))]

    m, k, n = shape
    a, b = normal(m, k), normal(n, k)
    op = kernel_op(trace(fn, *types((a, b))), "contract")
    exact = double(a) @ double(b).T
    found = {}
    for plan in plans(Contract(op, target, "k").problem, target):
        found.setdefault((plan.kind, plan.fused, plan.pack_a, plan.pack_b), plan)

    def emit(op, target, prefix):
        with emitting_for(target):
            return Contract(op, target, prefix, plan).emit()

    for plan in found.values():
        kernel = Standalone(op, target, emit=emit)
        got, again = kernel(a, b, chunks=1), kernel(a, b, chunks=7)
        for x, y, axes in zip(got, again, ((), 0, 1, (0, 1)), strict=True):
            np.testing.assert_array_equal(x, y)
            room = 2e-6 * (np.abs(double(a)) @ np.abs(double(b)).T)
            want = exact.sum(axes) if axes != () else exact
            assert np.all(np.abs(double(x) - want) <= (room.sum(axes) if axes != () else room)), plan


def test_k_in_parts():
    def fn(a, b):
        y = product(a, b)
        return [fold(P.sum_p, y, *axes) for axes in ((0,), (1,), (0, 1))]

    a, b = normal(9, 60000), normal(20, 60000)
    kernel = compiled(fn, (a, b))
    assert [p.symbol for p in kernel.code.phases] == ["k0_main", "k0_combine", "k0_fold"]
    exact = double(a) @ double(b).T
    first, second = kernel(a, b, chunks=1), kernel(a, b, chunks=5)
    for x, y, axes in zip(first, second, (0, 1, (0, 1)), strict=True):
        np.testing.assert_array_equal(x, y)
        np.testing.assert_allclose(double(x), exact.sum(axes), atol=2e-6 * np.abs(exact).sum())


def test_what_follows_may_lie_over_what_it_reads():
    """A bias and its update: the gradient is a column sum, the new bias takes the memory of the old one."""

    def fn(a, b, bias):
        return [P.sub_p.bind(bias, fold(P.sum_p, product(a, b), 0))]

    arrays = normal(40, 12), normal(30, 12), normal(30)
    kernel = compiled(fn, arrays)
    assert kernel.code.inplace == {(2, 0)}
    np.testing.assert_allclose(kernel(*arrays)[0], fn(*arrays)[0], atol=1e-4)


def test_a_single_column_is_a_row():
    def fn(a, v):
        y = P.dot_general_p.bind(a, v, contract=((1,), (0,)), batch=((), ()))
        return [fold(P.sum_p, y, 0), fold(P.reduce_max_p, y, 0)]

    a, v = normal(300, 40), normal(40)
    kernel = compiled(fn, (a, v))
    exact = double(a) @ double(v)
    for x, want in zip(kernel(a, v), (exact.sum(), exact.max()), strict=True):
        np.testing.assert_allclose(x, want, atol=1e-4)


def test_sums_of_many_tiles_are_as_good_as_sums_in_blocks():
    """Ones times large numbers of equal sign: the error grows with the tiles, not with the elements."""

    def fn(a, b):
        y = product(a, b)
        return [fold(P.sum_p, y, *axes) for axes in ((0,), (1,), (0, 1))]

    a, b = np.abs(normal(2000, 2)), np.abs(normal(2100, 2))
    exact = double(a) @ double(b).T
    for x, axes in zip(compiled(fn, (a, b))(a, b), (0, 1, (0, 1)), strict=True):
        want = exact.sum(axes)
        assert np.max(np.abs(double(x) - want) / want) < 60 * 2.0**-24
