"""Contraction kernels against the numpy evaluation and float64."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest
from weft.codegen.kernel import Unsupported
from weft.codegen.standalone import Standalone, compile_function
from weft.codegen.target import host_target, named_target
from weft.ir import prims as P
from weft.ir.prims.base import type_of
from weft.ir.types import TensorType, c64, dtype_of_numpy, f32

TARGETS = [host_target(), named_target("haswell")]
TARGET_IDS = ["host", "haswell"]
SHAPES = [
    (1, 1, 1), (1, 784, 128), (1, 64, 10), (3, 5, 7), (7, 100, 100), (13, 17, 1), (64, 64, 10),
    (64, 784, 128), (12, 40, 36), (33, 700, 65), (100, 1030, 36), (128, 300, 200),
]  # fmt: skip
rng = np.random.default_rng(0)


def normal(*shape, dtype=np.float32):
    return rng.standard_normal(shape).astype(dtype)


def types(arrays):
    return [TensorType(a.shape, dtype_of_numpy(a.dtype)) for a in arrays]


def double(x):
    return np.asarray(x).astype(np.float64)


def check(fn, *arrays, target=None, tol=2e-5) -> Standalone:
    """Compile ``fn`` as one contraction kernel and compare with its evaluation."""
    kernel = compile_function(fn, *types(arrays), form="contract", target=target)
    want = fn(*arrays)
    for got, w in zip(kernel(*arrays), want if isinstance(want, (list, tuple)) else [want], strict=True):
        assert got.dtype == w.dtype and got.shape == w.shape
        scale = np.abs(double(w)).max() or 1.0
        np.testing.assert_allclose(double(got) / scale, double(w) / scale, atol=tol, rtol=0)
    return kernel


def matmul(transpose_a=False, transpose_b=False):
    contract = ((0 if transpose_a else 1,), (1 if transpose_b else 0,))
    return lambda a, b: P.dot_general_p.bind(a, b, contract=contract, batch=((), ()))


def operands(m, k, n, ta, tb, dtype=np.float32):
    return normal(*((k, m) if ta else (m, k)), dtype=dtype), normal(*((n, k) if tb else (k, n)), dtype=dtype)


def dot(contract, batch=((), ())):
    return lambda a, b: P.dot_general_p.bind(a, b, contract=contract, batch=batch)


@pytest.mark.parametrize("target", TARGETS, ids=TARGET_IDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_transpositions(shape, target):
    for ta, tb in itertools.product((False, True), repeat=2):
        check(matmul(ta, tb), *operands(*shape, ta, tb), target=target)


def test_sums_are_as_good_as_float64():
    a, b = operands(70, 500, 80, False, True)
    (got,) = compile_function(matmul(False, True), *types([a, b]), form="contract")(a, b)
    exact = double(a) @ double(b).T
    assert np.abs(got - exact).max() < 500 * 2.0**-24 * np.abs(exact).max()


@pytest.mark.parametrize("target", TARGETS, ids=TARGET_IDS)
@pytest.mark.parametrize(
    ("dtype", "tol"), [(np.float64, 1e-13), (np.float16, 2e-3), (ml_dtypes.bfloat16, 1.6e-2)], ids=str
)
def test_float_dtypes(dtype, tol, target):
    for m, k, n in ((1, 40, 20), (20, 130, 70), (5, 33, 9)):
        for ta, tb in ((False, False), (True, True), (False, True)):
            check(matmul(ta, tb), *operands(m, k, n, ta, tb, dtype), target=target, tol=tol)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint64], ids=str)
def test_integers_wrap(dtype):
    high = min(np.iinfo(dtype).max, 1 << 40)
    for m, tb in ((1, False), (1, True), (20, True)):
        a = rng.integers(0, high, (m, 50)).astype(dtype)
        b = rng.integers(0, high, (30, 50) if tb else (50, 30)).astype(dtype)
        check(matmul(False, tb), a, b, tol=0)


BATCHED = {
    "attention scores": (((3,), (3,)), ((0, 1), (0, 1)), (2, 3, 20, 16), (2, 3, 25, 16)),
    "attention values": (((3,), (2,)), ((0, 1), (0, 1)), (2, 3, 20, 25), (2, 3, 25, 16)),
    "heads inside": (((3,), (3,)), ((0, 2), (0, 2)), (2, 20, 3, 16), (2, 25, 3, 16)),
    "weight gradient": (((0, 1), (0, 1)), ((), ()), (8, 30, 40), (8, 30, 50)),
    "rows not adjacent": (((0, 2), (0, 2)), ((), ()), (8, 40, 30), (8, 50, 30)),
    "contracted axes out of order": (((2, 0), (0, 2)), ((), ()), (30, 40, 8), (8, 50, 30)),
    "several columns": (((2,), (0,)), ((), ()), (4, 30, 40), (40, 5, 7)),
    "free axes around": (((1,), (1,)), ((), ()), (40, 30, 4), (5, 30, 7)),
    "outer product": (((), ()), ((), ()), (20,), (40,)),
    "inner product": (((0,), (0,)), ((), ()), (300,), (300,)),
}


@pytest.mark.parametrize("target", TARGETS, ids=TARGET_IDS)
@pytest.mark.parametrize("case", BATCHED)
def test_batches_and_many_axes(case, target):
    contract, batch, a, b = BATCHED[case]
    check(dot(contract, batch), normal(*a), normal(*b), target=target)


def test_long_k_is_cut_and_added_in_order():
    a, b = normal(6, 60000), normal(60000, 20)
    kernel = check(matmul(), a, b)
    assert len(kernel.code.phases) >= 2, kernel.code.loops
    first, second = kernel(a, b, chunks=1), kernel(a, b, chunks=5)
    np.testing.assert_array_equal(first[0], second[0])


def test_blocks_of_k_keep_their_sums():
    check(matmul(True, False), *operands(70, 3000, 150, True, False))
    check(matmul(False, True), *operands(130, 2100, 300, False, True))


def linear(x, w, bias, residual):
    y = P.dot_general_p.bind(x, P.permute_p.bind(w, perm=(1, 0)), contract=((1,), (0,)), batch=((), ()))
    y = P.add_p.bind(y, P.broadcast_p.bind(bias, shape=type_of(y).shape, axes=(1,)))
    return [y, P.add_p.bind(P.maximum_p.bind(y, P.neg_p.bind(y)), residual)]


@pytest.mark.parametrize("target", TARGETS, ids=TARGET_IDS)
@pytest.mark.parametrize("shape", [(5, 40, 20), (64, 130, 70), (33, 33, 9), (1, 200, 1), (9, 50, 1)], ids=str)
def test_epilogue_with_two_results(shape, target):
    m, k, n = shape
    check(linear, normal(m, k), normal(n, k), normal(n), normal(m, n), target=target)


def test_epilogue_over_rows_and_batches():
    def fn(a, b, scale, bias):
        y = P.dot_general_p.bind(a, b, contract=((3,), (3,)), batch=((0, 1), (0, 1)))
        shape = type_of(y).shape
        y = P.mul_p.bind(y, P.broadcast_p.bind(scale, shape=shape, axes=(1,)))
        y = P.add_p.bind(y, P.broadcast_p.bind(bias, shape=shape, axes=(0, 2)))
        return P.convert_p.bind(y, dtype=dtype_of_numpy(np.dtype(np.float64)))

    check(fn, normal(2, 3, 20, 16), normal(2, 3, 25, 16), normal(3), normal(2, 20))


@pytest.mark.parametrize("target", TARGETS, ids=TARGET_IDS)
def test_single_values_are_computed_once(target):
    """An optimizer's update after a gradient: what is made of single values alone has a phase of its own."""

    def fn(a, b, weight, rate, step):
        grad = matmul(True, False)(a, b)
        shape = type_of(grad).shape
        half = P.convert_p.bind(P.div_p.bind(rate, P.sqrt_p.bind(step)), dtype=f32)
        wide = P.broadcast_p.bind(half, shape=shape, axes=())
        return [P.sub_p.bind(weight, P.mul_p.bind(wide, grad)), wide]

    a, b = operands(40, 30, 50, True, False)
    rate, step = np.array(0.1), np.array(3.0)
    kernel = check(fn, a, b, normal(40, 50), rate, step, target=target)
    assert kernel.code.phases[0].symbol.endswith("uniform") and kernel.code.phases[0].units == 1
    kernel = check(fn, normal(30, 40), normal(30, 1), normal(40, 1), rate, step, target=target)
    assert kernel.code.phases[0].symbol.endswith("uniform")


def test_epilogue_with_random_bits_and_counts():
    def fn(a, b, state):
        y = matmul()(a, b)
        bits = P.random_bits_p.bind(state, shape=type_of(y).shape)
        count = P.iota_p.bind(shape=type_of(y).shape, dtype=f32, axis=1)
        return [P.add_p.bind(y, count), P.convert_p.bind(bits, dtype=f32)]

    check(fn, normal(20, 30), normal(30, 50), np.array([7, 3], np.int64))


def test_prologues_are_computed_while_packing():
    def maps(x, w):
        return matmul(False, True)(P.maximum_p.bind(x, P.neg_p.bind(x)), P.sqrt_p.bind(P.mul_p.bind(w, w)))

    def moves(x, w):
        x = P.reshape_p.bind(P.permute_p.bind(P.neg_p.bind(x), perm=(0, 2, 1)), shape=(60, 5))
        return matmul()(x, w)

    def edges(x, w):
        zero = P.full_p.bind(shape=(), dtype=f32, value=0.5)
        x = P.pad_p.bind(x, zero, lo=(1, 2), hi=(0, 1), interior=(0, 1))
        w = P.flip_p.bind(P.slice_p.bind(w, start=(1, 0), stop=(20, 40), step=(2, 1)), axes=(0,))
        return matmul(False, True)(x, w)

    def casts(x, w):
        return matmul()(P.convert_p.bind(x, dtype=f32), P.convert_p.bind(w, dtype=f32))

    check(maps, normal(30, 40), normal(20, 40))
    check(moves, normal(6, 5, 10), normal(5, 40))
    check(edges, normal(6, 19), normal(20, 40))
    check(casts, normal(30, 40, dtype=np.float16), rng.integers(-9, 9, (40, 20)).astype(np.int8))


def test_views_are_read_in_place():
    def fn(x, w):
        x = P.slice_p.bind(x, start=(0, 8), stop=(32, 40), step=(1, 1))
        return matmul()(x, P.permute_p.bind(w, perm=(1, 0)))

    kernel = check(fn, normal(32, 64), normal(200, 32))
    assert "a: in place" in kernel.code.loops


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_special_values_stay_in_their_row_and_column(value):
    a, b = np.ones((20, 30), np.float32), np.ones((30, 40), np.float32)
    a[3, 5] = value
    kernel = compile_function(matmul(), *types([a, b]), form="contract")
    (got,) = kernel(a, b)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(got, a @ b)


def test_an_unwritten_part_of_a_panel_is_cleared():
    """Ten columns in a panel of sixteen: what pads them must not slow the multiplication with denormals."""
    a, b = operands(64, 128, 10, False, True)
    kernel = compile_function(matmul(False, True), *types([a, b]), form="contract")
    kernel.scratch[:] = 255
    (got,) = kernel(a, b)
    np.testing.assert_allclose(got, a @ b.T, rtol=1e-4, atol=1e-4)
    packed = kernel.scratch[: 128 * 16 * 4].view(np.float32)
    assert np.isfinite(packed).all() or kernel.target.lanes(32) != 16


def test_what_is_not_compiled_says_why():
    with pytest.raises(Unsupported, match="complex"):
        compile_function(matmul(), TensorType((2, 2), c64), TensorType((2, 2), c64), form="contract")
    with pytest.raises(Unsupported, match="nothing is contracted"):
        compile_function(matmul(), TensorType((2, 0), f32), TensorType((0, 2), f32), form="contract")
    with pytest.raises(Unsupported, match="0 contractions"):
        compile_function(lambda x: P.neg_p.bind(x), TensorType((2, 2), f32), form="contract")


def test_kernels_of_one_module_share_their_inner_loops():
    one = compile_function(matmul(), *types(operands(60, 64, 64, False, False)), form="contract")
    two = compile_function(matmul(), *types(operands(120, 32, 128, False, False)), form="contract")
    shared = [d for d in one.code.declares & two.code.declares if "weft_outer" in d]
    assert len(shared) == 1
