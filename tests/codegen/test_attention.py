"""Attention kernels, forward and backward, against the numpy evaluation in f64."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from weft.codegen.attention_grad_kernel import Backward
from weft.codegen.attention_kernel import Forward
from weft.codegen.attention_plan import ways
from weft.codegen.kernel import Unsupported
from weft.codegen.standalone import Standalone, compile_function, kernel_op
from weft.codegen.target import emitting_for, host_target, named_target
from weft.ir import prims as P
from weft.ir.graph import Graph
from weft.ir.prims.base import trace
from weft.ir.types import TensorType, dtype_of_numpy, f32

TARGETS = [host_target(), named_target("haswell")]
TARGET_IDS = ["host", "haswell"]
rng = np.random.default_rng(7)

# batch, heads, key heads, queries, keys, width, width of values
SIZES = (
    (1, 1, 1, 6, 64, 16, 64),
    (1, 2, 2, 100, 100, 16, 16),
    (2, 2, 1, 7, 77, 5, 3),
    (1, 4, 2, 1, 600, 32, 32),
    (1, 2, 2, 130, 300, 64, 64),
    (2, 1, 1, 33, 1, 8, 20),
    (1, 4, 1, 3, 1000, 24, 17),
    (1, 1, 1, 16, 64, 130, 200),
)
MASKS = ("none", "bool", "number", "broadcast", "infinite")


def mask_of(kind: str, b: int, h: int, length: int, keys: int, dtype: Any) -> list[np.ndarray]:
    if kind == "bool":
        m = rng.random((b, h, length, keys)) < 0.6
        m[0, 0, 0] = False
        return [m]
    if kind == "number":
        return [rng.standard_normal((b, h, length, keys)).astype(dtype)]
    if kind == "broadcast":
        return [rng.standard_normal((1, h, 1, keys)).astype(dtype)]
    if kind == "infinite":
        m = np.where(rng.random((1, 1, length, keys)) < 0.4, -np.inf, 0).astype(dtype)
        m[0, 0, length // 2] = -np.inf
        return [m]
    return []


def operands(sizes: tuple[int, ...], mask: str, dropout: float, dtype: Any) -> list[np.ndarray]:
    b, h, kv, length, keys, width, out = sizes
    shapes = ((b, h, length, width), (b, kv, keys, width), (b, kv, keys, out))
    arrays = [rng.standard_normal(s).astype(dtype) for s in shapes]
    return [*arrays, *mask_of(mask, b, h, length, keys, dtype), *([np.array([3, 4])] if dropout else [])]


def exact(arrays: list[np.ndarray]) -> list[np.ndarray]:
    return [a if a.dtype in (np.bool_, np.int64) else a.astype(np.float64) for a in arrays]


def compiled(prim: Any, arrays: list[np.ndarray], target: Any, **how: Any) -> list[np.ndarray]:
    types = [TensorType(a.shape, dtype_of_numpy(a.dtype)) for a in arrays]
    return compile_function(lambda *xs: prim.bind(*xs, **how), *types, form="attention", target=target)(
        *arrays
    )


def bound(dtype: Any, terms: int) -> float:
    """Error of a weighted mean: that of scores (products of ``terms`` numbers) and of the exponentials."""
    eps = 2.0**-53 if dtype is np.float64 else 2.0**-24
    rounding = {np.float16: 2.0**-11, ml_dtypes.bfloat16: 2.0**-8}.get(dtype, 0.0)
    return (16 + 2 * terms**0.5) * eps + 2 * rounding


def check_forward(
    sizes: tuple[int, ...], mask: str = "none", *, dtype: Any = np.float32, target: Any = None,
    dropout: float = 0.0, **how: Any,
) -> None:  # fmt: skip
    arrays = operands(sizes, mask, dropout, dtype)
    how = {"scale": sizes[5] ** -0.5, "dropout": dropout, **how}
    want = P.attention_p.bind(*exact(arrays), **how)
    for got, w in zip(compiled(P.attention_p, arrays, target, **how), want, strict=True):
        atol = bound(dtype, sizes[5]) * max(1.0, np.abs(np.where(np.isfinite(w), w, 0)).max())
        np.testing.assert_allclose(got.astype(np.float64), w, rtol=0, atol=atol)


def check_backward(
    sizes: tuple[int, ...], mask: str = "none", *, dtype: Any = np.float32, target: Any = None,
    dropout: float = 0.0, causal: bool = False, inside: tuple[bool, bool, bool] = (False,) * 3,
) -> None:  # fmt: skip
    arrays = operands(sizes, mask, dropout, dtype)
    how: dict[str, Any] = {"scale": sizes[5] ** -0.5, "dropout": dropout, "causal": causal}
    out, lse = P.attention_p.bind(*exact(arrays), **how)
    ct = rng.standard_normal(out.shape).astype(dtype)
    acc = np.float64 if dtype is np.float64 else np.float32
    delta = (ct.astype(np.float64) * out).sum(-1)
    arrays = [*arrays[:3], ct, lse.astype(acc), delta.astype(acc), *arrays[3:]]
    how["heads_inside"] = inside
    want = P.attention_grad_p.bind(*exact(arrays), **how)
    for got, w in zip(compiled(P.attention_grad_p, arrays, target, **how), want, strict=True):
        atol = 4 * bound(dtype, sizes[5] + sizes[6]) * max(1.0, np.abs(w).max())
        np.testing.assert_allclose(got.astype(np.float64), w, rtol=0, atol=atol)


@pytest.mark.parametrize("target", TARGETS, ids=TARGET_IDS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_masks_and_sizes(sizes, target):
    for causal, mask in itertools.product((False, True), MASKS):
        check_forward(sizes, mask, causal=causal, heads_inside=causal, target=target)
        check_backward(sizes, mask, causal=causal, inside=(causal, False, causal), target=target)


@pytest.mark.parametrize("target", TARGETS, ids=TARGET_IDS)
@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16], ids=str)
def test_dtypes(dtype, target):
    for sizes, mask, causal in (
        ((1, 2, 1, 20, 50, 16, 24), "none", True),
        ((1, 4, 1, 2, 700, 16, 24), "number", False),
        ((1, 1, 1, 5, 9, 3, 2), "bool", False),
    ):
        check_forward(sizes, mask, dtype=dtype, causal=causal, target=target)
        check_backward(sizes, mask, dtype=dtype, causal=causal, target=target)


@pytest.mark.parametrize("target", TARGETS, ids=TARGET_IDS)
def test_dropout(target):
    for sizes, causal in (((1, 2, 2, 20, 50, 16, 24), False), ((1, 2, 1, 3, 50, 16, 24), True)):
        check_forward(sizes, dropout=0.3, causal=causal, target=target)
        check_backward(sizes, dropout=0.3, causal=causal, target=target)


def test_many_blocks_of_keys_and_rows():
    check_forward((1, 1, 1, 700, 900, 8, 8), causal=True)
    check_backward((1, 1, 1, 700, 900, 8, 8), causal=True)


def test_results_do_not_depend_on_how_units_are_dealt_out():
    arrays = operands((1, 2, 1, 70, 300, 16, 16), "number", 0.0, np.float32)
    types = [TensorType(a.shape, dtype_of_numpy(a.dtype)) for a in arrays]
    kernel = compile_function(P.attention_p.bind, *types, form="attention")
    first = kernel(*arrays, chunks=1)
    for chunks in (2, 3, 7):
        for a, b in zip(kernel(*arrays, chunks=chunks), first, strict=True):
            np.testing.assert_array_equal(a, b)


def test_large_scores_do_not_overflow():
    """Scores of thousands: the weights are those of the differences to the largest."""
    q, k, v = operands((1, 1, 1, 9, 600, 16, 8), "none", 0.0, np.float32)
    q = (q * 400).astype(np.float32)
    out, lse = compiled(P.attention_p, [q, k, v], None)
    want, want_lse = P.attention_p.bind(*exact([q, k, v]))
    assert np.isfinite(out).all() and np.abs(want_lse).max() > 500
    # an error of eps in a score of size s moves a weight by s eps
    np.testing.assert_allclose(out, want, rtol=0, atol=4 * np.abs(want_lse).max() * 2.0**-23)
    np.testing.assert_allclose(lse, want_lse, rtol=1e-6)


def test_growing_scores_are_rescaled():
    """Each block of keys holds larger scores than the one before it."""
    keys = 2000
    q, v = np.ones((1, 1, 3, 1), np.float32), rng.standard_normal((1, 1, keys, 4)).astype(np.float32)
    k = np.linspace(-90, 90, keys, dtype=np.float32).reshape(1, 1, keys, 1)
    out, lse = compiled(P.attention_p, [q, k, v], None)
    want, want_lse = P.attention_p.bind(*exact([q, k, v]))
    np.testing.assert_allclose(out, want, rtol=0, atol=100 * 2.0**-22)
    np.testing.assert_allclose(lse, want_lse, rtol=1e-6)


def test_a_long_row_loses_nothing():
    """Equal weights of many keys: the mean, with an error that does not grow with their number."""
    keys = 50_000
    q, k = np.zeros((1, 1, 2, 4), np.float32), rng.standard_normal((1, 1, keys, 4)).astype(np.float32)
    v = rng.standard_normal((1, 1, keys, 3)).astype(np.float32)
    out, lse = compiled(P.attention_p, [q, k, v], None)
    np.testing.assert_allclose(out[0, 0, 0], v[0, 0].mean(0, dtype=np.float64), rtol=0, atol=1e-6)
    np.testing.assert_allclose(lse, np.log(keys), rtol=1e-6)


def test_nan_and_infinity_reach_the_rows_that_see_them():
    q, k, v = operands((1, 1, 1, 8, 40, 16, 4), "none", 0.0, np.float32)
    k[0, 0, 5, 2], v[0, 0, 30, 1] = np.nan, np.inf
    q[0, 0, 3] = np.inf
    for causal in (False, True):
        with np.errstate(all="ignore"):
            want, _ = P.attention_p.bind(q, k, v, causal=causal)
        out, _ = compiled(P.attention_p, [q, k, v], None, causal=causal)
        np.testing.assert_array_equal(np.isnan(out), np.isnan(want))


def strided(axes: tuple[int, ...], n: int) -> Any:
    """q, k and v as views of one array [batch, rows, 3, heads, width]."""

    def attend(x: Any) -> Any:
        moved = P.permute_p.bind(x, perm=axes)
        whole = tuple(x.shape) if isinstance(x, np.ndarray) else x.type.shape
        shape = (1, *(whole[i] for i in axes[1:]))
        parts = []
        for i in range(3):
            stop = (i + 1, *shape[1:])
            part = P.slice_p.bind(moved, start=(i, 0, 0, 0, 0), stop=stop, step=(1,) * 5)
            parts.append(P.reshape_p.bind(part, shape=shape[1:]))
        return P.attention_p.bind(*parts, causal=True, scale=n**-0.5)

    return attend


def test_views_are_read_where_they_lie():
    x = rng.standard_normal((2, 37, 3, 2, 20)).astype(np.float32)
    for axes in ((2, 0, 3, 1, 4), (2, 0, 3, 4, 1)):
        fn = strided(axes, 20)
        kernel = compile_function(fn, TensorType(x.shape, dtype_of_numpy(x.dtype)), form="attention")
        want, _ = fn(x.astype(np.float64))
        np.testing.assert_allclose(kernel(x)[0], want, rtol=0, atol=1e-5)


def test_what_is_no_view_is_refused():
    def attend(q, k, v):
        return P.attention_p.bind(P.exp_p.bind(q), k, v)

    t = TensorType((1, 1, 4, 4), dtype_of_numpy(np.dtype(np.float32)))
    with pytest.raises(Unsupported, match="no view"):
        compile_function(attend, t, t, t, form="attention")


# the choice ---------------------------------------------------------------------------------------


def forced(kernel, plan):
    """An emitter of a kernel with a given plan."""

    def emit(op, target, prefix):
        with emitting_for(target):
            return kernel(op, target, prefix, plan).emit()

    return emit


def attention_graph(gradient: bool, q, k) -> Graph:
    how = {"scale": 0.3, "causal": True, "dropout": 0.0}
    types = [TensorType(s, f32) for s in (q, k, k)]
    if not gradient:
        return trace(partial(P.attention_p.bind, **how, nan_rows=False, heads_inside=False), *types)
    rows = TensorType(q[:3], f32)
    grad = partial(P.attention_grad_p.bind, **how, heads_inside=(False,) * 3)
    return trace(grad, *types, types[0], rows, rows)


@pytest.mark.parametrize("kernel", [Forward, Backward])
@pytest.mark.parametrize("shapes", [((1, 2, 70, 24), (1, 2, 300, 24)), ((1, 4, 3, 32), (1, 2, 600, 32))])
def test_plans_compute_the_same(kernel, shapes):
    """Whatever blocks of rows and keys, and however many parts."""
    graph = attention_graph(kernel is Backward, *shapes)
    op = kernel_op(graph, "attention")
    arrays = [rng.standard_normal(p.type.shape).astype(np.float32) for p in op.operands]
    target = host_target()
    made = kernel(op, target, "k")
    plans = list(ways(kernel.gradient)[0](made.the_problem, target))
    assert made.plan in plans and len(set(plans)) >= 6
    want = Standalone(op, target, emit=forced(kernel, made.plan))(*arrays)
    for plan in plans[:: len(plans) // 5]:
        for got, w in zip(Standalone(op, target, emit=forced(kernel, plan))(*arrays), want, strict=True):
            np.testing.assert_allclose(got, w, atol=2e-5 * np.abs(w).max(), rtol=0)


@pytest.mark.parametrize("kernel", [Forward, Backward])
def test_the_cheapest_plan_is_taken(kernel):
    op = kernel_op(attention_graph(kernel is Backward, (2, 4, 128, 32), (2, 4, 128, 32)), "attention")
    made = kernel(op, host_target(), "k")
    plans, cost = ways(kernel.gradient)
    least = min(cost(made.the_problem, p, host_target()) for p in plans(made.the_problem, host_target()))
    assert made.cost_ns == least * host_target().slot_ns > 0
