"""Host calls, kernels and control flow."""

import numpy as np
import pytest
from weft.ir import prims as P
from weft.ir.graph import Graph, GraphBuilder, Value
from weft.ir.interp import run
from weft.ir.prims.base import scale, trace
from weft.ir.types import TensorType, bool_, f32, f64, i64
from weft.ir.verify import verify
from weft.passes.autodiff import gradient_graph

V = TensorType((3,), f64)
XS = TensorType((4, 3), f64)
S = TensorType((), f64)
I = TensorType((), i64)


def region(fn, *types, name="body"):
    return trace(fn, *types, name=name)


# cond ----------------------------------------------------------------

THEN = region(lambda x, y: [x * y, P.sin_p.bind(x)], V, V, name="then")
OTHERWISE = region(lambda x, y: [x - y, y], V, V, name="otherwise")


@pytest.mark.parametrize("pred", [True, False])
def test_cond(pred, rng, check_value):
    x, y = rng.standard_normal((2, 3))
    want = (x * y, np.sin(x)) if pred else (x - y, y)
    check_value(P.cond_p, [np.array(pred), x, y], {}, *want, regions=(THEN, OTHERWISE))


@pytest.mark.parametrize("pred", [True, False])
def test_gradient_of_cond(pred, rng, check_gradient):
    arrays = [np.array(pred), *rng.standard_normal((2, 3))]
    check_gradient(P.cond_p, arrays, {}, regions=(THEN, OTHERWISE))


def test_the_results_of_a_region_are_fresh(rng):
    x, y = rng.standard_normal((2, 3))
    twice = region(lambda x, y: [y, y], V, V)
    a, b = P.cond_p.bind(np.array(True), x, y, regions=(twice, twice))
    assert not any(np.shares_memory(*pair) for pair in ((a, y), (b, y), (a, b)))


def test_cond_of_one_result_comes_back_bare(rng):
    x = rng.standard_normal(3)
    one = region(lambda x: x + x, V)
    assert P.cond_p.bind(np.array(True), x, regions=(one, one)).shape == (3,)
    graph = trace(lambda p, v: P.cond_p.bind(p, v, regions=(one, one)), TensorType((), bool_), V)
    (grad,) = run(gradient_graph(graph, [1], [0]), [np.array(False), x, np.ones(3)])
    assert grad.tolist() == [2, 2, 2]


def test_cond_refused():
    wider = region(lambda x, y: [x * y, y, x], V, V)
    pred = TensorType((), bool_)
    cases = [
        ((THEN,), (pred, V, V), "needs 2 regions"),
        ((THEN, wider), (pred, V, V), "returns"),
        ((THEN, OTHERWISE), (pred, V), "takes"),
        ((THEN, OTHERWISE), (TensorType((1,), bool_), V, V), "predicate"),
        ((THEN, OTHERWISE), (TensorType((), i64), V, V), "predicate"),
    ]
    for regions, types, message in cases:
        with pytest.raises(TypeError, match=message):
            trace(lambda *xs, regions=regions: P.cond_p.bind(*xs, regions=regions), *types)


# while_loop ----------------------------------------------------------------


def below(i, n, x):
    return P.lt_p.bind(i, n)


def double(i, n, x):
    one = P.full_p.bind(shape=(), dtype=i64, value=1)
    return [i + one, n, scale(x, 2.0)]


LOOP = (region(below, I, I, V, name="test"), region(double, I, I, V))


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_while_loop(steps, rng, check_value):
    x, n = rng.standard_normal(3), np.array(steps)
    check_value(P.while_loop_p, [np.array(0), n, x], {}, n, n, x * 2.0**steps, regions=LOOP)


def test_a_while_loop_of_no_steps_does_not_alias(rng):
    x = rng.standard_normal(3)
    out = P.while_loop_p.bind(np.array(0), np.array(0), x, regions=LOOP)
    assert not np.shares_memory(out[2], x)


def test_while_loop_has_no_reverse_gradient():
    graph = trace(lambda *xs: P.while_loop_p.bind(*xs, regions=LOOP), I, I, V)
    with pytest.raises(RuntimeError, match="does not work for while_loop"):
        gradient_graph(graph, [2], [2])


def test_while_loop_refused():
    two = region(lambda i, n, x: [below(i, n, x)] * 2, I, I, V)
    number = region(lambda i, n, x: i, I, I, V)
    shorter = region(lambda i, n, x: [i, n], I, I, V)
    for regions, message in (
        ((two, LOOP[1]), "one value"),
        ((number, LOOP[1]), "predicate"),
        ((LOOP[0], shorter), "returns"),
        (LOOP[:1], "regions"),
    ):
        with pytest.raises(TypeError, match=message):
            trace(lambda *xs, regions=regions: P.while_loop_p.bind(*xs, regions=regions), I, I, V)


# scan ----------------------------------------------------------------


def cell(w, h, x):
    new = P.tanh_p.bind(w * h + x)
    return [new, new * x]


CELL = region(cell, V, V, V, name="cell")


def cells(w, h, xs, reverse):
    ys = np.zeros_like(xs)
    for i in reversed(range(len(xs))) if reverse else range(len(xs)):
        h = np.tanh(w * h + xs[i])
        ys[i] = h * xs[i]
    return h, ys


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [0, 1, 4])
def test_scan(length, reverse, rng, check_value):
    w, h, xs = rng.standard_normal(3), rng.standard_normal(3), rng.standard_normal((length, 3))
    attrs = {"n_consts": 1, "n_carry": 1, "length": length, "reverse": reverse}
    check_value(P.scan_p, [w, h, xs], attrs, *cells(w, h, xs, reverse), regions=(CELL,))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [0, 1, 3])
def test_gradient_of_scan(length, reverse, rng, check_gradient):
    arrays = [rng.standard_normal(3), rng.standard_normal(3), rng.standard_normal((length, 3))]
    attrs = {"n_consts": 1, "n_carry": 1, "length": length, "reverse": reverse}
    check_gradient(P.scan_p, arrays, attrs, regions=(CELL,))


def test_gradient_of_scan_without_carry_and_without_slices(rng, check_gradient):
    body = region(lambda c, x: P.sin_p.bind(c * x), V, V)
    attrs = {"n_consts": 1, "n_carry": 0, "length": 2}
    check_gradient(P.scan_p, [rng.standard_normal(3), rng.standard_normal((2, 3))], attrs, regions=(body,))
    body = region(lambda a, b: [b, a * b], V, V)
    check_gradient(P.scan_p, list(rng.standard_normal((2, 3))), {"n_carry": 2, "length": 3}, regions=(body,))


def counting(i, h, x):
    one = P.full_p.bind(shape=(), dtype=i64, value=1)
    return [i + one, P.convert_p.bind(i, dtype=f64) * h + x, i]


def test_integer_carries_and_results_have_no_gradient(rng, check_gradient, check_value):
    body = region(counting, I, S, S)
    arrays = [np.array(1), np.array(0.5), rng.standard_normal(3)]
    h = 0.5
    for i, x in enumerate(arrays[2], 1):
        h = i * h + x
    attrs = {"n_carry": 2, "length": 3}
    check_value(P.scan_p, arrays, attrs, np.array(4), np.array(h), np.array([1, 2, 3]), regions=(body,))
    check_gradient(P.scan_p, arrays, attrs, regions=(body,))


def test_gradient_of_scan_when_only_some_results_are_used(rng):
    graph = trace(lambda *xs: P.scan_p.bind(*xs, n_consts=1, n_carry=1, length=4, regions=(CELL,)),
                  V, V, XS)  # fmt: skip
    arrays = [rng.standard_normal(3), rng.standard_normal(3), rng.standard_normal((4, 3))]
    cts = [rng.standard_normal(3), rng.standard_normal((4, 3))]
    both = run(gradient_graph(graph, [0, 1, 2], [0, 1]), [*arrays, *cts])
    last = run(gradient_graph(graph, [0, 1, 2], [0]), [*arrays, cts[0]])
    ys = run(gradient_graph(graph, [0, 1, 2], [1]), [*arrays, cts[1]])
    for whole, a, b in zip(both, last, ys, strict=True):
        np.testing.assert_allclose(whole, a + b, rtol=1e-12)


def test_a_scan_within_a_cond_within_a_scan(rng, check_gradient):
    inner = region(lambda h, x: [h * x, h + x], S, S)

    def branch(h, xs):
        return P.scan_p.bind(h, xs, n_carry=1, length=2, regions=(inner,))

    then = region(branch, S, TensorType((2,), f64))
    otherwise = region(lambda h, xs: [h, scale(xs, 3.0)], S, TensorType((2,), f64))

    def step(h, xs):
        positive = P.gt_p.bind(h, P.full_p.bind(shape=(), dtype=f64, value=0.0))
        return P.cond_p.bind(positive, h, xs, regions=(then, otherwise))

    outer = region(step, S, TensorType((2,), f64))
    arrays = [np.array(0.7), np.array([[1.3, -0.8], [0.4, 0.9], [2.0, 0.3]])]
    check_gradient(P.scan_p, arrays, {"n_carry": 1, "length": 3}, regions=(outer,))


def test_scan_refused():
    for attrs, message, error in (
        ({"n_carry": 1, "n_consts": 1, "length": 5}, "5 elements", ValueError),
        ({"n_carry": 2, "n_consts": 1, "length": 4}, "takes", TypeError),
        ({"n_carry": 1, "n_consts": 0, "length": 3}, "elements", ValueError),
    ):
        with pytest.raises(error, match=message):
            trace(lambda *xs, attrs=attrs: P.scan_p.bind(*xs, regions=(CELL,), **attrs), V, V, XS)
    drops = region(lambda h, x: P.sum_p.bind(h * x, axes=(0,)), V, V)
    with pytest.raises(TypeError, match="the carry is"):
        trace(lambda *xs: P.scan_p.bind(*xs, n_carry=1, length=4, regions=(drops,)), V, XS)


# kernel ----------------------------------------------------------------


def test_a_kernel_means_its_region(rng, check_value):
    x, y = rng.standard_normal((2, 3))
    body = region(lambda x, y: [x * y, P.sum_p.bind(x, axes=(0,))], V, V)
    attrs = {"form": "loop", "name": "mul_sum"}
    check_value(P.kernel_p, [x, y], attrs, x * y, np.asarray(x.sum()), regions=(body,))


def test_a_kernel_is_not_differentiated():
    body = region(lambda x: x * x, V)
    graph = trace(lambda x: P.kernel_p.bind(x, form="loop", name="square", regions=(body,)), V)
    with pytest.raises(RuntimeError, match="before it is fused"):
        gradient_graph(graph, [0], [0])


def test_a_kernel_takes_what_its_region_takes():
    body = region(lambda x: x * x, V)
    with pytest.raises(TypeError, match="takes"):
        trace(lambda x: P.kernel_p.bind(x, form="loop", name="k", regions=(body,)), TensorType((3,), f32))


# host_call ----------------------------------------------------------------


@pytest.fixture
def eigh():
    name = "tests.eigh"
    P.register_host(
        name,
        infer=lambda x, *, uplo: (x.with_(shape=x.shape[:-1]), x),
        eval=lambda x, *, uplo: tuple(np.linalg.eigh(x, uplo)),
    )
    yield name
    del P.HOST_FUNCTIONS[name]


def test_host_call(eigh, rng, check_value):
    x = rng.standard_normal((3, 3))
    check_value(P.host_call_p, [x], {"fn": eigh, "uplo": "L"}, *np.linalg.eigh(x))


def test_a_host_function_without_a_gradient_says_so(eigh):
    graph = trace(lambda x: P.host_call_p.bind(x, fn=eigh, uplo="L")[0], TensorType((2, 2), f64))
    with pytest.raises(RuntimeError, match=r"derivative for tests\.eigh"):
        gradient_graph(graph, [0], [0])


def test_host_functions_have_gradients(rng, check_gradient):
    P.register_host(
        "tests.cube",
        infer=lambda x: x,
        eval=lambda x: x**3,
        vjp=lambda ct, out, x: (ct * scale(x * x, 3.0),),
    )
    try:
        check_gradient(P.host_call_p, [rng.standard_normal(3)], {"fn": "tests.cube"})
    finally:
        del P.HOST_FUNCTIONS["tests.cube"]


def test_host_function_names(eigh):
    with pytest.raises(ValueError, match="defined twice"):
        P.register_host(eigh, infer=lambda x: x, eval=lambda x: x)
    with pytest.raises(ValueError, match="no host function is registered as 'nope'"):
        P.host_call_p.bind(np.zeros(3), fn="nope")


# regions are closed ----------------------------------------------------------------


def test_gradients_of_control_flow_are_closed_graphs():
    graph = trace(lambda *xs: P.scan_p.bind(*xs, n_consts=1, n_carry=1, length=4, regions=(CELL,)),
                  V, V, XS)  # fmt: skip
    gradient = gradient_graph(gradient_graph(graph, [0, 1, 2], [0, 1]), [0, 1, 2], [0, 1, 2])
    assert verify(gradient) is gradient
    assert {op.prim.name for op in gradient.walk()} >= {"scan", "add", "mul"}


def test_a_region_may_be_built_by_hand():
    b = GraphBuilder("then")
    x = b.param(V)
    assert isinstance(x, Value)
    same: Graph = b.finish([x])
    assert P.cond_p.bind(np.array(True), np.ones(3), regions=(same, same)).tolist() == [1, 1, 1]
