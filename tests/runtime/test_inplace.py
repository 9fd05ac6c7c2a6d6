"""Donated results of contractions are written over the parameters that they replace."""

from __future__ import annotations

import numpy as np
import pytest
from weft.ir import prims as P
from weft.ir.prims.base import trace
from weft.ir.types import TensorType, f32
from weft.runtime import compile_graph

DOT = {"contract": ((0,), (0,)), "batch": ((), ())}
rng = np.random.default_rng(0)


def update(p, m, a, b):
    """A gradient a' b, added to a moment, and the parameter after a step: two results over two operands."""
    moment = m - P.dot_general_p.bind(a, b, **DOT)
    return p - moment, moment


@pytest.mark.parametrize("rows", [1, 5, 33, 200])
@pytest.mark.parametrize("cols", [3, 16, 40, 64, 130])
@pytest.mark.parametrize("depth", [9, 3000])
def test_every_element_is_updated_once(rows, cols, depth):
    w, x, y = TensorType((rows, cols), f32), TensorType((depth, rows), f32), TensorType((depth, cols), f32)
    g = trace(update, w, w, x, y)
    arrays = [rng.standard_normal(p.type.shape).astype(np.float32) for p in g.params]
    moment = arrays[1] - arrays[2].T.astype(np.float64) @ arrays[3]
    want = arrays[0] - moment, moment
    exe = compile_graph(g, donate={0: 0, 1: 1})
    got = exe.runner(*arrays)
    for k in range(2):
        assert got[k] is arrays[k]
        np.testing.assert_allclose(got[k], want[k], atol=2e-5 * np.abs(want[k]).max())
    if cols % 64 == 0:  # panels do not overlap
        assert exe.plan.copies == []


def test_an_operand_of_the_contraction_is_not_overwritten():
    t = TensorType((40, 64), f32)
    square = TensorType((64, 64), f32)
    g = trace(lambda p, w: P.dot_general_p.bind(p, w, contract=((1,), (0,)), batch=((), ())) + p, t, square)
    exe = compile_graph(g, donate={0: 0})
    p, w = (rng.standard_normal(v.type.shape).astype(np.float32) for v in g.params)
    want = p.astype(np.float64) @ w + p
    (got,) = exe.runner(p, w)
    assert got is p and len(exe.plan.copies) == 1
    np.testing.assert_allclose(got, want, atol=1e-3)


def test_an_operand_that_is_read_elsewhere_is_not_overwritten():
    t = TensorType((64, 64), f32)

    def fn(p, a, b):
        return P.dot_general_p.bind(a, b, **DOT) + p + P.permute_p.bind(p, perm=(1, 0))

    exe = compile_graph(trace(fn, t, t, t), donate={0: 0})
    p, a, b = (rng.standard_normal((64, 64)).astype(np.float32) for _ in range(3))
    want = a.T.astype(np.float64) @ b + p + p.T
    (got,) = exe.runner(p, a, b)
    np.testing.assert_allclose(got, want, atol=1e-3)
