"""Checks that the tests of primitives share."""

import numpy as np
import pytest
from weft.ir.interp import run
from weft.ir.prims.base import trace, type_of
from weft.ir.text import parse_graph, print_graph
from weft.ir.verify import verify
from weft.passes.autodiff import gradient_graph


def _traced(prim, arrays, attrs, regions=()):
    graph = trace(lambda *xs: prim.bind(*xs, regions=regions, **attrs), *map(type_of, arrays))
    return verify(graph)


def _numeric(graph, arrays, wrt, outputs, cts, step=1e-6):
    """Central differences of the inner product of the results with the cotangents."""

    def value(changed):
        out = run(graph, changed)
        return sum(np.sum(out[o] * ct) for o, ct in zip(outputs, cts, strict=True))

    grads = []
    for i in wrt:
        grad = np.zeros(arrays[i].shape)
        for j in np.ndindex(arrays[i].shape):
            up, down = ([a.copy() for a in arrays] for _ in range(2))
            up[i][j] += step
            down[i][j] -= step
            grad[j] = (value(up) - value(down)) / (2 * step)
        grads.append(grad)
    return grads


def _check_graph(graph, arrays, order, rng, tol):
    wrt = [i for i, p in enumerate(graph.params) if p.type.dtype.is_floating_point]
    outputs = [i for i, r in enumerate(graph.results) if r.type.dtype.is_floating_point]
    gradient = verify(gradient_graph(graph, wrt, outputs))
    cts = [np.asarray(rng.standard_normal(graph.results[o].type.shape)) for o in outputs]
    got = run(gradient, [*arrays, *cts])
    for g, want in zip(got, _numeric(graph, arrays, wrt, outputs, cts), strict=True):
        np.testing.assert_allclose(g, want, rtol=tol, atol=tol)
    if order > 1:
        _check_graph(gradient, [*arrays, *cts], order - 1, rng, tol * 10)


@pytest.fixture
def check_gradient():
    """check(prim, arrays, attrs, regions=(), order=2): gradients of f64 operands against finite differences,
    of the gradient too (order 2), in graphs that verify.
    """

    def check(prim, arrays, attrs, regions=(), order=2, tol=1e-5):
        graph = _traced(prim, arrays, attrs, regions)
        _check_graph(graph, list(arrays), order, np.random.default_rng(7), tol)

    return check


@pytest.fixture
def check_value():
    """check(prim, arrays, attrs, *expected): eager and interpreted values, the inferred types, and the round
    trip of the text.
    """

    def check(prim, arrays, attrs, *expected, regions=(), rtol=1e-7):
        out = prim.bind(*arrays, regions=regions, **attrs)
        out = out if isinstance(out, tuple) else (out,)
        graph = _traced(prim, arrays, attrs, regions)
        text = print_graph(graph)
        assert print_graph(parse_graph(text)) == text
        for value, again, want in zip(out, run(graph, arrays), expected, strict=True):
            assert value.dtype == want.dtype and value.shape == want.shape
            assert again.dtype == want.dtype
            _assert_same(value, want, rtol)
            _assert_same(again, want, rtol)

    return check


def _assert_same(value, want, rtol):
    if want.dtype.kind in "biu":
        np.testing.assert_array_equal(value, want)
    else:
        exact = np.complex128 if want.dtype.kind == "c" else np.float64
        np.testing.assert_allclose(value.astype(exact), want.astype(exact), rtol=rtol, atol=rtol)


@pytest.fixture
def rng():
    return np.random.default_rng(0)
