"""The reverse walk, joint graphs, and gradients against finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from weft.ir import prims as P
from weft.ir.graph import Graph
from weft.ir.interp import run
from weft.ir.prims.base import Kind, full_like, trace, type_of
from weft.ir.types import TensorType, bool_, f64, i64
from weft.ir.verify import verify
from weft.passes.autodiff import (
    OpRecord,
    backprop,
    forward_backward,
    gradient_graph,
    joint_graph,
    records_of,
)

from tests.passes.functions import CASES, mlp_graph, typed


def arguments(graph: Graph, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=p.type.shape) if p.type.dtype is f64 else rng.integers(0, 2, p.type.shape)
            for p in graph.params]  # fmt: skip


def finite_differences(graph: Graph, args: list[np.ndarray], i: int, eps: float = 1e-6) -> np.ndarray:
    out = np.zeros_like(args[i])
    for at in np.ndindex(*args[i].shape):
        pair = []
        for step in (eps, -eps):
            moved = [a.copy() for a in args]
            moved[i][at] += step
            pair.append(float(run(graph, moved)[0]))
        out[at] = (pair[0] - pair[1]) / (2 * eps)
    return out


def check_gradients(graph: Graph, wrt: list[int]) -> None:
    args = arguments(graph)
    grad = verify(gradient_graph(graph, wrt, [0]))
    found = run(grad, [*args, np.float64(1.0).reshape(())])
    for i, g in zip(wrt, found, strict=True):
        np.testing.assert_allclose(g, finite_differences(graph, args, i), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_gradients_against_finite_differences(name: str) -> None:
    fn, types = CASES[name]
    check_gradients(trace(fn, *types), list(range(len(types))))


def test_gradients_of_a_training_loss() -> None:
    check_gradients(mlp_graph(), [0, 1, 2, 3])


def test_second_derivatives() -> None:
    """The gradient graph is a graph like any other: d(sum of its squares) against finite differences."""
    fn, types = CASES["shared"]
    first = gradient_graph(trace(fn, *types), [0], [0])

    def squared(x: Any, y: Any) -> Any:
        one = P.full_p.bind(shape=(), dtype=f64, value=1.0)
        g = inline(first, [x, y, one])[0]
        return P.sum_p.bind(g * g, axes=(0, 1))

    check_gradients(trace(squared, *types), [0, 1])


def inline(graph: Graph, args: list[Any]) -> list[Any]:
    env = dict(zip(graph.params, args, strict=True))
    for op in graph.ops:
        out = op.prim.bind(*(env[v] for v in op.operands), regions=op.regions, **op.attrs)
        env.update(zip(op.results, out if isinstance(out, tuple) else (out,), strict=True))
    return [env[v] for v in graph.results]


def branch(fn: Any, n: int = 2) -> Graph:
    return trace(fn, *typed(*[(3,)] * n))


def test_gradients_through_control_flow() -> None:
    then, otherwise = branch(lambda x, y: P.sin_p.bind(x) * y), branch(lambda x, y: x * x)

    def f(pred: Any, x: Any, y: Any) -> Any:
        out = P.cond_p.bind(pred, x, y, regions=(then, otherwise))
        return P.sum_p.bind(out * out, axes=(0,))

    graph = trace(f, TensorType((), bool_), *typed((3,), (3,)))
    x, y = np.array([0.3, 1.0, -2.0]), np.array([1.0, 2.0, 3.0])
    grad = gradient_graph(graph, [1, 2], [0])
    for pred in (True, False):
        dx, dy = run(grad, [np.array(pred), x, y, np.array(1.0)])
        if pred:
            np.testing.assert_allclose(dx, 2 * np.sin(x) * y * y * np.cos(x))
            np.testing.assert_allclose(dy, 2 * np.sin(x) ** 2 * y)
        else:
            np.testing.assert_allclose(dx, 4 * x**3)
            np.testing.assert_array_equal(dy, 0)


def test_gradients_through_scan() -> None:
    step = trace(lambda c, x: (P.tanh_p.bind(c * x), c * x), *typed((), ()))

    def f(c: Any, xs: Any) -> Any:
        last, ys = P.scan_p.bind(c, xs, regions=(step,), n_carry=1, length=4)
        return last * P.sum_p.bind(ys * ys, axes=(0,))

    check_gradients(trace(f, *typed((), (4,))), [0, 1])


def test_eager_values_flow_through_the_same_walk() -> None:
    """The tape of an eager frontend: arrays as values, numbers as keys."""
    x, w = np.array([1.0, 2.0]), np.array([3.0, 5.0])
    y = x * w
    records = [
        OpRecord(P.mul_p, (x, w), (y,), {}, (), (0, 1), (2,)),
        OpRecord(P.mul_p, (y, x), (y * x,), {}, (), (2, 0), (3,)),
    ]
    out = backprop(records, {3: np.ones(2)}, {0, 1})
    np.testing.assert_array_equal(out[0], 2 * x * w)
    np.testing.assert_array_equal(out[1], x * x)


def test_only_what_is_needed_is_computed() -> None:
    calls: list[str] = []

    def record(name: str, operand: int, result: int) -> OpRecord:
        def vjp(ct: Any, out: Any, x: Any) -> tuple[Any]:
            calls.append(name)
            return (ct,)

        rules = {"name": name, "nondifferentiable": False, "kind": Kind.MAP, "vjp": staticmethod(vjp)}
        prim = type("Probe", (), rules)
        return OpRecord(prim, (0.0,), (0.0,), {}, (), (operand,), (result,))  # type: ignore[arg-type]

    records = [record("wanted", 0, 1), record("other input", 10, 11), record("unused", 1, 2)]
    out = backprop(records, {1: 1.0, 11: 1.0}, {0})
    assert calls == ["wanted"] and out == {0: 1.0}


def test_hooks_see_complete_cotangents_and_may_replace_them() -> None:
    x = np.array(3.0)
    y = x * x
    records = [
        OpRecord(P.mul_p, (x, x), (y,), {}, (), ("x", "x"), ("y",)),
        OpRecord(P.add_p, (y, y), (y + y,), {}, (), ("y", "y"), ("z",)),
    ]
    seen = []

    def hook(key: Any, ct: Any) -> Any:
        seen.append((key, float(ct)))
        return ct * 10 if key == "y" else None

    out = backprop(records, {"z": np.array(1.0)}, {"x", "y"}, hook)
    assert seen == [("z", 1.0), ("y", 2.0), ("x", 120.0)]
    assert (float(out["x"]), float(out["y"])) == (120.0, 20.0)


def test_an_operation_without_a_gradient_is_named() -> None:
    graph = trace(lambda x: P.cumprod_p.bind(x, axis=0), *typed((3,)))
    record = records_of(graph)[0]
    rules = {"name": "mystery", "nondifferentiable": False, "vjp": None, "kind": Kind.MAP}
    plain = type("NoGradient", (), rules)
    record.prim, record.loc = plain, "user.py:7"  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match=r"derivative for mystery is not implemented \(at user.py:7\)"):
        backprop([record], {graph.results[0]: 1.0}, {graph.params[0]})


def test_a_parameter_without_influence_gets_zeros() -> None:
    graph = trace(lambda x, y: P.sum_p.bind(x, axes=(0,)), *typed((3,), (2,)))
    dx, dy = run(gradient_graph(graph, [0, 1], [0]), [np.ones(3), np.ones(2), np.array(2.0)])
    np.testing.assert_array_equal(dx, [2, 2, 2])
    np.testing.assert_array_equal(dy, [0, 0])


def test_integers_stop_the_walk() -> None:
    def f(x: Any, i: Any) -> Any:
        return P.sum_p.bind(P.gather_p.bind(x, i, axes=(0,)), axes=(0,))

    graph = trace(f, *typed((4,)), TensorType((3, 1), i64))
    (dx,) = run(gradient_graph(graph, [0], [0]), [np.ones(4), np.array([[1], [1], [3]]), np.array(1.0)])
    np.testing.assert_array_equal(dx, [0, 2, 0, 1])


def test_gradient_operations_carry_the_line_of_their_operation() -> None:
    graph = mlp_graph()
    ops = [type(op)(op.prim, op.operands, op.attrs, op.results, op.regions, f"net.py:{i}")
           for i, op in enumerate(graph.ops)]  # fmt: skip
    joint = joint_graph(Graph(graph.params, ops, graph.results), [0, 1, 2, 3], [0])
    assert all(op.loc is not None and op.loc.startswith("net.py:") for op in joint.ops)


def saved_bytes(forward: Graph, n_saved: int) -> int:
    """Bytes that live from forward to backward because of it: parameters are alive anyway."""
    saved = forward.results[len(forward.results) - n_saved :]
    return sum(v.type.nbytes for v in saved if v not in forward.params)


@pytest.mark.parametrize("name", CASES)
def test_split_gradients_equal_joint_ones(name: str) -> None:
    fn, types = CASES[name]
    graph = trace(fn, *types)
    wrt = list(range(len(types)))
    args, ct = arguments(graph), np.array(0.7)
    split = forward_backward(graph, wrt, [0])
    out = run(verify(split.forward), args)
    assert len(out) == 1 + split.n_saved
    np.testing.assert_array_equal(out[0], run(graph, args)[0])
    grads = run(verify(split.backward), [*out[1:], ct])
    for a, b in zip(run(joint_graph(graph, wrt, [0]), [*args, ct])[1:], grads, strict=True):
        np.testing.assert_array_equal(a, b)


def only_kinds(graph: Graph) -> set[Kind]:
    return {op.prim.kind for op in graph.ops}


def test_a_map_chain_saves_its_input_alone() -> None:
    def f(x: Any) -> Any:
        return P.exp_p.bind(P.tanh_p.bind(x * x) + P.sin_p.bind(x))

    graph = trace(f, *typed((64,)))
    split = forward_backward(graph, [0], [0])
    assert split.n_saved == 1 and split.forward.results[1] is graph.params[0]
    assert only_kinds(split.backward) <= {Kind.MAP, Kind.SOURCE}


def test_contractions_are_not_computed_again() -> None:
    fn, types = CASES["linear_gelu"]
    split = forward_backward(trace(fn, *types), [0, 1, 2], [0])
    # the pre-activation is saved (4 * 5 * 8 bytes); the GELU is computed again from it
    assert saved_bytes(split.forward, split.n_saved) <= 2 * 4 * 5 * 8
    again = [op for op in split.backward.ops if op.prim.kind is Kind.CONTRACT]
    assert len(again) == 2  # the gradients of x and of w


def test_random_bits_are_not_drawn_again() -> None:
    def dropout(x: Any, state: Any) -> Any:
        bits = P.random_bits_p.bind(state, shape=(64, 32))
        keep = P.lt_p.bind(bits, full_like(bits, 1 << 31))
        return P.where_p.bind(keep, x + x, full_like(x, 0.0))

    graph = trace(dropout, TensorType((64, 32), f64), TensorType((2,), i64))
    split = forward_backward(graph, [0], [0])
    assert Kind.RANDOM not in only_kinds(split.backward)
    assert saved_bytes(split.forward, split.n_saved) == 64 * 32  # the mask, one byte each


def test_reductions_are_saved_small() -> None:
    fn, types = CASES["layer_norm"]
    graph = trace(fn, *types)
    split = forward_backward(graph, [0, 1, 2], [0])
    rows = types[0].shape[0]
    assert saved_bytes(split.forward, split.n_saved) <= 4 * rows * 8
    assert type_of(graph.params[0]).nbytes > 4 * rows * 8 // 2


def test_a_value_that_is_a_result_anyway_may_be_saved() -> None:
    graph = trace(lambda x, w: P.exp_p.bind(P.dot_general_p.bind(x, w, contract=((1,), (0,)))),
                  *typed((8, 8), (8, 8)))  # fmt: skip
    split = forward_backward(graph, [0, 1], [0])
    saved = split.forward.results[1:]
    assert graph.results[0] in saved
    assert saved_bytes(split.forward, split.n_saved) == 8 * 8 * 8
