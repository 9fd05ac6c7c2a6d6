"""Convolutions on the emulated GPU, against the numpy evaluation."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from device_kernels import check, normal
from weft.codegen.gpu import conv_weights
from weft.ir import prims as P
from weft.ir.prims.base import trace, type_of
from weft.ir.types import TensorType, f32


def conv(
    rank: int = 2, stride: int = 1, padding: int = 1, lhs: int = 1, rhs: int = 1, groups: int = 1
) -> Any:
    how = {
        "stride": (stride,) * rank, "padding": ((padding, padding),) * rank,
        "lhs_dilation": (lhs,) * rank, "rhs_dilation": (rhs,) * rank, "groups": groups,
    }  # fmt: skip
    return lambda x, w: P.conv_p.bind(x, w, **how)


CASES = {
    "plain": ((2, 3, 7, 9), (5, 3, 3, 3), {}),
    "strided": ((2, 8, 9, 9), (6, 8, 3, 3), {"stride": 2}),
    "dilated kernel": ((1, 4, 8, 8), (5, 4, 3, 3), {"padding": 2, "rhs": 2}),
    "dilated input": ((1, 4, 5, 6), (3, 4, 3, 3), {"padding": 2, "lhs": 2}),
    "dilated both, strided": ((1, 4, 7, 6), (3, 4, 3, 3), {"padding": 3, "lhs": 3, "stride": 2, "rhs": 2}),
    "single tap": ((2, 8, 4, 4), (6, 8, 1, 1), {"padding": 0}),
    "single tap, strided": ((2, 8, 5, 4), (6, 8, 1, 1), {"padding": 0, "stride": 2}),
    "groups": ((2, 8, 5, 6), (32, 4, 3, 3), {"groups": 2}),
    "depthwise": ((2, 8, 5, 6), (8, 1, 3, 3), {"groups": 8}),
    "depthwise with many taps": ((1, 4, 9, 9), (8, 1, 9, 9), {"groups": 4, "padding": 4}),
    "one dimension": ((2, 4, 17), (5, 4, 3), {"rank": 1}),
    "three dimensions": ((1, 4, 4, 5, 6), (5, 4, 3, 3, 3), {"rank": 3}),
    "taps outside": ((1, 32, 6, 6), (5, 32, 3, 3), {}),
    "cropped": ((1, 4, 9, 9), (5, 4, 3, 3), {"padding": -1}),
}


@pytest.mark.parametrize("case", CASES)
def test_geometries(case: str) -> None:
    x, w, how = CASES[case]
    check(conv(**how), normal(*x), normal(*w), form="conv")


@pytest.mark.parametrize("dtype", [np.float64, np.int32], ids=str)
def test_dtypes(dtype: Any) -> None:
    x, w = (normal(2, 4, 6, 7) * 20).astype(dtype), (normal(6, 4, 3, 3) * 20).astype(dtype)
    check(conv(), x, w, form="conv", tol=1e-13 if dtype is np.float64 else 0.0)


@pytest.mark.parametrize("groups", [1, 8])
def test_channels_last_is_read_and_written_in_place(groups: int) -> None:
    def fn(x: Any, w: Any) -> Any:
        y = conv(groups=groups)(P.permute_p.bind(x, perm=(0, 3, 1, 2)), w)
        return P.permute_p.bind(y, perm=(0, 2, 3, 1))

    kernel = check(fn, normal(2, 6, 5, 8), normal(16, 8 // groups, 3, 3), form="conv")
    if groups == 1:
        assert "a: vectors of 4 along k" in kernel.code.loops


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (2, 2)])
def test_gradients(stride: int, groups: int) -> None:
    """The convolutions that the gradient rule makes, with the moves that fusion leaves before them."""
    x, w = normal(2, 4, 7, 6), normal(6, 4 // groups, 3, 3)
    types = [TensorType(a.shape, f32) for a in (x, w)]
    forward = conv(stride=stride, groups=groups)
    ct = normal(*trace(forward, *types).results[0].type.shape)
    vjp = P.conv_p.vjp
    assert vjp is not None
    (op,) = trace(forward, *types).ops
    for number in (0, 1):

        def fn(x: Any, w: Any, ct: Any, number: int = number) -> Any:
            return vjp(ct, None, x, w, **op.attrs)[number]

        one = trace(fn, *types, TensorType(ct.shape, f32))
        keep = [o for o in one.ops if o.prim.name == "conv" and o.result in _needed(one)]
        assert len(keep) == 1
        check(fn, x, w, ct, form="conv", graph=_pruned)


def _needed(graph: Any) -> set[Any]:
    needed = set(graph.results)
    for op in reversed(graph.ops):
        if needed & set(op.results):
            needed |= set(op.operands)
    return needed


def _pruned(graph: Any) -> Any:
    needed = _needed(graph)
    return type(graph)(graph.params, [o for o in graph.ops if set(o.results) & needed], graph.results)


def test_epilogue_and_prologue() -> None:
    def fn(x: Any, w: Any, b: Any) -> Any:
        y = conv()(P.convert_p.bind(x, dtype=f32), w)
        y = P.add_p.bind(y, P.broadcast_p.bind(b, shape=type_of(y).shape, axes=(1,)))
        return [y, P.maximum_p.bind(y, P.neg_p.bind(y))]

    check(fn, normal(2, 6, 5, 8, dtype=np.float16), normal(12, 6, 3, 3), normal(12), form="conv")


@pytest.mark.parametrize("groups", [1, 2])
def test_weights_are_copied_into_vectors_where_it_pays(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv_weights, "LEAST_PRODUCTS", 0)

    def last(x: Any, w: Any) -> Any:
        y = conv(groups=groups)(P.permute_p.bind(x, perm=(0, 3, 1, 2)), P.neg_p.bind(w))
        return P.permute_p.bind(y, perm=(0, 2, 3, 1))

    half: Any = ml_dtypes.bfloat16
    x, w = normal(2, 6, 5, 32, dtype=half), normal(16, 32 // groups, 3, 3, dtype=half)
    kernel = check(last, x, w, form="conv", tol=1.6e-2)
    assert [c.symbol for c in kernel.code.launches] == ["k0_weights", "k0_tiles"]
    assert kernel.code.loops.count("vectors of 8 along k, asynchronous") == 2
    check(conv(groups=groups), normal(1, 32, 5, 6), normal(16, 32 // groups, 3, 3), form="conv")
