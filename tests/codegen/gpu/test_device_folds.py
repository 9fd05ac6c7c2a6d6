"""Reductions in the epilogue of a contraction, on the emulated GPU."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from device_kernels import DeviceKernel, check, normal
from weft.codegen.gpu.contract import emit
from weft.codegen.gpu.contract_plan import Plan
from weft.ir import prims as P
from weft.ir.prims.base import type_of
from weft.ir.types import f32

SMALL = Plan("fma", 16, 32, 16, (1, 1), (4, 4))
PLANS = [Plan("fma", 32, 64, 16, (2, 2), (4, 4)), Plan("fma", 128, 16, 16, (1, 4), (4, 4)), SMALL,
         Plan("fma", 16, 32, 16, (1, 1), (4, 4), splits=3)]  # fmt: skip


def product(a: Any, b: Any) -> Any:
    """[..., k] by [..., n, k]."""
    n = type_of(b).ndim - 2
    lead, last = tuple(range(n)), type_of(a).ndim - 1
    return P.dot_general_p.bind(a, b, contract=((last,), (n + 1,)), batch=(lead, lead))


def folds(a: Any, b: Any, bias: Any) -> list[Any]:
    """A product with a bias, stored, and its reductions over rows, columns and everything."""
    y = product(a, b)
    y = P.add_p.bind(y, P.broadcast_p.bind(bias, shape=type_of(y).shape, axes=(1,)))
    kinds = (P.sum_p, P.reduce_max_p)
    return [y, *(prim.bind(y, axes=axes) for prim in kinds for axes in ((0,), (1,), (0, 1)))]


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("shape", [(37, 130, 66), (50, 33, 45)], ids=str)
def test_rows_columns_and_everything(shape: tuple[int, int, int], plan: Plan) -> None:
    m, k, n = shape
    check(folds, normal(m, k), normal(n, k), normal(n), form="contract", emit=emit, plan=plan, tol=1e-4)


def test_batches_folded_and_kept() -> None:
    def fn(a: Any, b: Any) -> list[Any]:
        y = product(a, b)
        return [P.sum_p.bind(y, axes=axes) for axes in ((2,), (1,), (1, 2), (0, 2), (0, 1), (0, 1, 2))]

    check(fn, normal(3, 20, 16), normal(3, 25, 16), form="contract", tol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "tol"), [(np.float64, 1e-12), (np.float16, 4e-3), (ml_dtypes.bfloat16, 2e-2)], ids=str
)
def test_dtypes(dtype: Any, tol: float) -> None:
    def fn(a: Any, b: Any) -> list[Any]:
        y = product(a, b)
        return [
            prim.bind(y, axes=axes) for prim in (P.sum_p, P.reduce_min_p) for axes in ((0,), (1,), (0, 1))
        ]

    check(fn, normal(40, 64, dtype=dtype), normal(64, 64, dtype=dtype), form="contract", tol=tol)


def test_truth_values_and_products() -> None:
    def fn(a: Any, b: Any) -> list[Any]:
        y = product(a, b)
        zero = P.broadcast_p.bind(
            P.full_p.bind(shape=(), dtype=f32, value=3.0), shape=type_of(y).shape, axes=()
        )
        high = P.gt_p.bind(y, zero)
        near = P.exp_p.bind(P.div_p.bind(y, P.broadcast_p.bind(
            P.full_p.bind(shape=(), dtype=f32, value=100.0), shape=type_of(y).shape, axes=())))  # fmt: skip
        out = [prim.bind(high, axes=axes) for prim in (P.any_p, P.all_p) for axes in ((0,), (1,), (0, 1))]
        return [*out, P.prod_p.bind(near, axes=(1,))]

    check(fn, normal(40, 20), normal(35, 20), form="contract", tol=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_special_values(value: float) -> None:
    def fn(a: Any, b: Any) -> list[Any]:
        y = product(a, b)
        return [prim.bind(y, axes=axes) for prim in (P.sum_p, P.reduce_max_p) for axes in ((0,), (1,))]

    a, b = np.abs(normal(37, 5)), np.abs(normal(70, 5))
    a[11, 2] = value
    kernel = DeviceKernel(fn, (a, b), "contract")
    for got, want in zip(kernel(a, b), fn(a, b), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)


def mean_of_squares(a: Any, b: Any, y: Any, scale: Any) -> list[Any]:
    d = P.sub_p.bind(product(a, b), y)
    rows = P.sum_p.bind(P.mul_p.bind(d, d), axes=(1,))
    return [P.mul_p.bind(P.sqrt_p.bind(rows), scale), P.sum_p.bind(d, axes=(0, 1))]


def test_what_follows_a_reduction_runs_in_the_last_launch() -> None:
    arrays = normal(150, 20), normal(260, 20), normal(150, 260), normal(150)
    kernel = check(mean_of_squares, *arrays, form="contract", emit=emit, plan=SMALL, tol=1e-4)
    assert len(kernel.code.launches) == 3  # tiles, and one for each shape of results


def test_a_kernel_with_room_for_no_more_takes_smaller_tiles() -> None:
    """Partial results of odd rows do not fit into the places of the tile."""

    def fn(a: Any, b: Any) -> list[Any]:
        y = product(a, b)
        return [P.sum_p.bind(f(y), axes=(1,)) for f in (P.exp_p.bind, P.neg_p.bind, P.abs_p.bind)]

    check(fn, normal(20, 9), normal(33, 9), form="contract", arch="sm_75", tol=1e-4)
