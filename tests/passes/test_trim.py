"""Outputs that readers compute again: fewer bytes between the same kernels, the same results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from weft.ir import prims as P
from weft.ir.graph import Graph
from weft.ir.interp import run
from weft.ir.prims.base import Kind, trace
from weft.ir.types import TensorType, f32, f64
from weft.ir.verify import verify
from weft.passes.autodiff import joint_graph
from weft.passes.pipeline import lower
from weft.passes.trim import trim

from tests.passes.functions import CASES, layer_norm, linear, mlp_graph


def fused(graph: Graph) -> Graph:
    return dict(lower(graph).stages)["fuse"]


def bytes_between(graph: Graph) -> int:
    """Bytes that the kernels of a graph read and write."""
    return sum(
        v.type.nbytes for op in graph.ops if op.prim.kind is Kind.KERNEL for v in (*op.operands, *op.results)
    )


def test_a_product_with_a_value_in_memory_is_left_to_the_reader() -> None:
    """The dot gives y; its reader needs y * a and y * b, and can read a and b itself."""

    def f(x: Any, w: Any, a: Any, b: Any) -> Any:
        y = P.dot_general_p.bind(x, w, contract=((1,), (0,)))
        ya, yb = y * a, y * b
        total = P.sum_p.bind(ya, axes=(1,))
        spread = P.broadcast_p.bind(total, shape=(64, 64), axes=(0,))
        return ya * spread + yb, y

    before = fused(trace(f, *[TensorType((64, 64), f64)] * 4))
    after = verify(trim(before))
    kernels = [op for op in after.ops if op.prim.kind is Kind.KERNEL]
    assert [op.attrs["form"] for op in kernels] == ["contract", "loop"]
    assert len(kernels[0].results) == 1
    assert bytes_between(after) < bytes_between(before)


def test_dear_operations_are_not_computed_again() -> None:
    def f(x: Any, w: Any) -> Any:
        y = P.exp_p.bind(P.dot_general_p.bind(x, w, contract=((1,), (0,))))
        total = P.sum_p.bind(y, axes=(1,))
        return y / P.broadcast_p.bind(total, shape=(64, 64), axes=(0,))

    before = fused(trace(f, *[TensorType((64, 64), f64)] * 2))
    assert trim(before) is before


def test_training_steps_move_fewer_bytes() -> None:
    types = CASES["layer_norm"][1]

    def block(x: Any, weight: Any, bias: Any, w: Any, b: Any) -> Any:
        y = linear(layer_norm(x, weight, bias), w, b)
        return P.sum_p.bind(y * y, axes=(0, 1))

    graph = joint_graph(
        trace(block, *types, TensorType((6, 6), f64), TensorType((6,), f64)), [0, 1, 2, 3, 4], [0]
    )
    before = fused(graph)
    after = verify(trim(before))
    assert bytes_between(after) < bytes_between(before)
    rng = np.random.default_rng(0)
    args = [rng.normal(size=p.type.shape) for p in graph.params]
    for a, b in zip(run(graph, args), run(after, args), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_results_are_kept(name: str) -> None:
    fn, types = CASES[name]
    graph = joint_graph(trace(fn, *types), list(range(len(types))), [0])
    before = fused(graph)
    after = verify(trim(before))
    assert bytes_between(after) <= bytes_between(before)
    assert len(after.ops) == len(before.ops)
    rng = np.random.default_rng(0)
    args = [rng.normal(size=p.type.shape) for p in graph.params]
    for a, b in zip(run(before, args), run(after, args), strict=True):
        np.testing.assert_array_equal(b, a)


def test_an_activation_is_derived_from_what_it_was_applied_to() -> None:
    """Of a GELU between two products the forward part stores its argument and its result, and the backward
    part reads the argument: not the error function, the density and the scaled argument."""

    def half(x: Any, value: float) -> Any:
        return P.full_p.bind(shape=x.type.shape, dtype=f32, value=value) * x

    def mlp(x: Any, w: Any, v: Any) -> Any:
        u = P.dot_general_p.bind(x, w, contract=((1,), (1,)))
        one = P.full_p.bind(shape=u.type.shape, dtype=f32, value=1.0)
        y = half(u, 0.5) * (P.erf_p.bind(half(u, 0.7071)) + one)
        return P.sum_p.bind(P.dot_general_p.bind(y, v, contract=((1,), (1,))), axes=(0, 1))

    types = [TensorType(s, f32) for s in ((64, 48), (96, 48), (32, 96))]
    graph = joint_graph(trace(mlp, *types), [0, 1, 2], [0])
    after = verify(lower(graph).graph)
    big = TensorType((64, 96), f32)
    stored = [v for op in after.ops if op.prim.kind is Kind.KERNEL for v in op.results if v.type == big]
    assert len(stored) == 3  # the argument, the result, the gradient of the argument
    rng = np.random.default_rng(0)
    args = [rng.normal(size=p.type.shape).astype(np.float32) for p in graph.params]
    for a, b in zip(run(graph, args), run(after, args), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-4)


def test_results_of_the_graph_are_always_written() -> None:
    graph = joint_graph(mlp_graph(), [0, 1, 2, 3], [0])
    after = trim(fused(graph))
    made = {r for op in after.ops for r in op.results} | set(after.params)
    assert all(r in made for r in after.results)
