"""Contractions on the emulated GPU, against the numpy evaluation."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from device_kernels import DeviceKernel, check, normal, rng
from weft.codegen.gpu.contract import emit
from weft.codegen.gpu.contract_plan import Plan
from weft.codegen.kernel import Unsupported
from weft.ir import prims as P
from weft.ir.prims.base import type_of
from weft.ir.types import dtype_of_numpy, f32

SMALL = Plan("fma", 16, 32, 16, (1, 1), (4, 4))


def matmul(transpose_a: bool = False, transpose_b: bool = False) -> Any:
    contract = ((0 if transpose_a else 1,), (1 if transpose_b else 0,))
    return lambda a, b: P.dot_general_p.bind(a, b, contract=contract, batch=((), ()))


def operands(m: int, k: int, n: int, ta: bool, tb: bool, dtype: Any = np.float32) -> list[np.ndarray]:
    return [
        normal(*((k, m) if ta else (m, k)), dtype=dtype),
        normal(*((n, k) if tb else (k, n)), dtype=dtype),
    ]


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (13, 17, 1), (33, 70, 65), (64, 64, 64)], ids=str)
def test_transpositions(shape: tuple[int, int, int]) -> None:
    for ta, tb in itertools.product((False, True), repeat=2):
        check(matmul(ta, tb), *operands(*shape, ta, tb), form="contract")


TILES = [
    Plan("fma", 128, 128, 8, (2, 4), (8, 8)),
    Plan("fma", 32, 64, 16, (2, 2), (4, 4)),
    Plan("fma", 128, 16, 16, (1, 4), (4, 4)),
    SMALL,
]


@pytest.mark.parametrize("plan", TILES, ids=str)
def test_tiles(plan: Plan) -> None:
    check(matmul(False, True), *operands(37, 50, 66, False, True), form="contract", emit=emit, plan=plan)


@pytest.mark.parametrize("dtype", [np.float64, np.int8, np.uint16, np.int32, np.int64, np.uint64], ids=str)
def test_dtypes(dtype: Any) -> None:
    a, b = normal(5, 33) * 50, normal(9, 33) * 50
    tol = 1e-13 if dtype is np.float64 else 0.0
    check(matmul(False, True), a.astype(np.int64).astype(dtype), b.astype(np.int64).astype(dtype),
          form="contract", tol=tol)  # fmt: skip


BATCHED = {
    "attention scores": (((3,), (3,)), ((0, 1), (0, 1)), (2, 3, 20, 16), (2, 3, 25, 16)),
    "attention values": (((3,), (2,)), ((0, 1), (0, 1)), (2, 3, 20, 25), (2, 3, 25, 16)),
    "heads inside": (((3,), (3,)), ((0, 2), (0, 2)), (2, 20, 3, 16), (2, 25, 3, 16)),
    "weight gradient": (((0, 1), (0, 1)), ((), ()), (4, 30, 40), (4, 30, 50)),
    "rows not adjacent": (((0, 2), (0, 2)), ((), ()), (4, 40, 30), (4, 50, 30)),
    "contracted axes out of order": (((2, 0), (0, 2)), ((), ()), (30, 40, 8), (8, 50, 30)),
    "several columns": (((2,), (0,)), ((), ()), (4, 30, 40), (40, 5, 7)),
    "free axes around": (((1,), (1,)), ((), ()), (40, 30, 4), (5, 30, 7)),
    "outer product": (((), ()), ((), ()), (20,), (40,)),
    "inner product": (((0,), (0,)), ((), ()), (300,), (300,)),
}


@pytest.mark.parametrize("case", BATCHED)
def test_batches_and_many_axes(case: str) -> None:
    contract, batch, a, b = BATCHED[case]
    check(lambda x, y: P.dot_general_p.bind(x, y, contract=contract, batch=batch), normal(*a), normal(*b),
          form="contract")  # fmt: skip


def test_long_k_is_cut_and_added_in_order() -> None:
    a, b = normal(6, 3000), normal(3000, 20)
    kernel = check(matmul(), a, b, form="contract")
    assert [x.symbol for x in kernel.code.launches] == ["k0_tiles", "k0_combine"]
    np.testing.assert_array_equal(kernel(a, b)[0], kernel(a, b)[0])


def linear(x: Any, w: Any, bias: Any, residual: Any) -> Any:
    y = P.dot_general_p.bind(x, P.permute_p.bind(w, perm=(1, 0)), contract=((1,), (0,)), batch=((), ()))
    y = P.add_p.bind(y, P.broadcast_p.bind(bias, shape=type_of(y).shape, axes=(1,)))
    return [y, P.add_p.bind(P.maximum_p.bind(y, P.neg_p.bind(y)), residual)]


@pytest.mark.parametrize("shape", [(5, 40, 20), (33, 33, 9), (1, 200, 1), (9, 50, 1), (4, 600, 8)], ids=str)
def test_epilogue_with_two_results(shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    check(linear, normal(m, k), normal(n, k), normal(n), normal(m, n), form="contract")


def test_epilogue_over_rows_and_batches() -> None:
    def fn(a: Any, b: Any, scale: Any, bias: Any) -> Any:
        y = P.dot_general_p.bind(a, b, contract=((3,), (3,)), batch=((0, 1), (0, 1)))
        shape = type_of(y).shape
        y = P.mul_p.bind(y, P.broadcast_p.bind(scale, shape=shape, axes=(1,)))
        y = P.add_p.bind(y, P.broadcast_p.bind(bias, shape=shape, axes=(0, 2)))
        return P.convert_p.bind(y, dtype=dtype_of_numpy(np.dtype(np.float64)))

    check(fn, normal(2, 3, 20, 16), normal(2, 3, 25, 16), normal(3), normal(2, 20), form="contract")


@pytest.mark.parametrize("columns", [50, 1])
def test_single_values_beside_the_product(columns: int) -> None:
    def fn(a: Any, b: Any, weight: Any, rate: Any, step: Any) -> Any:
        grad = matmul(True, False)(a, b)
        half = P.convert_p.bind(P.div_p.bind(rate, P.sqrt_p.bind(step)), dtype=f32)
        wide = P.broadcast_p.bind(half, shape=type_of(grad).shape, axes=())
        return [P.sub_p.bind(weight, P.mul_p.bind(wide, grad)), wide]

    a, b = operands(40, 30, columns, True, False)
    kernel = check(fn, a, b, normal(40, columns), np.array(0.1), np.array(3.0), form="contract")
    assert (2, 0) in kernel.code.inplace


def test_epilogue_with_random_bits_counts_and_functions() -> None:
    def fn(a: Any, b: Any, state: Any) -> Any:
        y = matmul()(a, b)
        bits = P.random_bits_p.bind(state, shape=type_of(y).shape)
        count = P.iota_p.bind(shape=type_of(y).shape, dtype=f32, axis=1)
        return [P.add_p.bind(P.tanh_p.bind(y), count), P.convert_p.bind(bits, dtype=f32)]

    check(
        fn, normal(20, 30), normal(30, 50), np.array([7, 3], np.int64), form="contract", emit=emit, plan=SMALL
    )


def test_prologues_are_computed_while_copying() -> None:
    def maps(x: Any, w: Any) -> Any:
        return matmul(False, True)(P.maximum_p.bind(x, P.neg_p.bind(x)), P.sqrt_p.bind(P.mul_p.bind(w, w)))

    def moves(x: Any, w: Any) -> Any:
        x = P.reshape_p.bind(P.permute_p.bind(P.neg_p.bind(x), perm=(0, 2, 1)), shape=(60, 5))
        return matmul()(x, w)

    def edges(x: Any, w: Any) -> Any:
        fill = P.full_p.bind(shape=(), dtype=f32, value=0.5)
        x = P.pad_p.bind(x, fill, lo=(1, 2), hi=(0, 1), interior=(0, 1))
        w = P.flip_p.bind(P.slice_p.bind(w, start=(1, 0), stop=(20, 40), step=(2, 1)), axes=(0,))
        return matmul(False, True)(x, w)

    def casts(x: Any, w: Any) -> Any:
        return matmul()(P.convert_p.bind(x, dtype=f32), P.convert_p.bind(w, dtype=f32))

    check(maps, normal(30, 40), normal(20, 40), form="contract")
    check(moves, normal(6, 5, 10), normal(5, 40), form="contract")
    check(edges, normal(6, 19), normal(20, 40), form="contract")
    check(
        casts,
        normal(30, 40, dtype=np.float16),
        rng.integers(-9, 9, (40, 20)).astype(np.int8),
        form="contract",
    )


def test_views_are_read_in_place() -> None:
    def fn(x: Any, w: Any) -> Any:
        x = P.slice_p.bind(x, start=(0, 8), stop=(32, 40), step=(1, 1))
        return matmul()(x, P.permute_p.bind(w, perm=(1, 0)))

    kernel = check(fn, normal(32, 64), normal(200, 32), form="contract")
    assert "a: vectors of 4 along k" in kernel.code.loops


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_special_values_stay_in_their_row_and_column(value: float) -> None:
    a, b = np.ones((20, 30), np.float32), np.ones((30, 40), np.float32)
    a[3, 5] = value
    (got,) = DeviceKernel(matmul(), [a, b], "contract")(a, b)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(got, a @ b)


def test_what_is_not_compiled_says_why() -> None:
    with pytest.raises(Unsupported, match="nothing is contracted"):
        DeviceKernel(matmul(), [np.zeros((2, 0), np.float32), np.zeros((0, 2), np.float32)], "contract")


DOUBLES = [Plan("mma.m8n8k4.f64", 64, 64, 16, (2, 2)), Plan("mma.m8n8k4.f64", 16, 64, 16, (1, 4), splits=2)]


@pytest.mark.parametrize("plan", [None, *DOUBLES], ids=str)
def test_f64_on_tensor_cores(plan: Plan | None) -> None:
    """In full double precision, without bank conflicts, from either layout of the operands."""
    how = {} if plan is None else {"emit": emit, "plan": plan}
    for turned in (False, True):
        arrays = operands(70, 37, 90, turned, turned, np.float64)
        kernel = check(matmul(turned, turned), *arrays, form="contract", tol=1e-15, **how)
        assert "mma.sync.aligned.m8n8k4.row.col.f64" in kernel.ptx
        assert all(launch.bank_conflicts == 0 for launch in kernel.launches)


@pytest.mark.parametrize("arch", ["sm_75", "sm_86", "sm_89", "sm_120"])
def test_f64_where_tensor_cores_gain_nothing(arch: str) -> None:
    arrays = operands(20, 17, 30, False, True, np.float64)
    kernel = check(matmul(False, True), *arrays, form="contract", tol=1e-15, arch=arch)
    assert "mma.sync" not in kernel.ptx and "fma.rn.f64" in kernel.ptx
