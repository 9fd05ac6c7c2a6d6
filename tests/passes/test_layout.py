"""Which values lie channels-last, what is converted, and that nothing else changes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import weft
from weft.ir import prims as P
from weft.ir.graph import Graph
from weft.ir.interp import run
from weft.ir.prims.base import trace
from weft.ir.types import TensorType, f32
from weft.nn import functional as F
from weft.passes.layout import choose_layouts
from weft.passes.pipeline import lower

rng = np.random.default_rng(5)


def conv(x, w, stride=1, pad=1):
    n = w.type.ndim - 2 if hasattr(w, "type") else w.ndim - 2
    how = {"stride": (stride,) * n, "padding": ((pad, pad),) * n, "lhs_dilation": (1,) * n}
    return P.conv_p.bind(x, w, rhs_dilation=(1,) * n, **how)


def shape(x):
    return x.type.shape if hasattr(x, "type") else x.shape


def channel(v, like):
    return P.broadcast_p.bind(v, shape=tuple(shape(like)), axes=(1,))


def relu(x):
    return P.maximum_p.bind(x, x * 0.0)


def pool(x):
    how = {"window": (1, 1, 2, 2), "stride": (1, 1, 2, 2), "dilation": (1, 1, 1, 1)}
    return P.reduce_window_p.bind(x, op="max", padding=((0, 0), (0, 0), (1, 0), (0, 1)), **how)


def residual(x, v, w1, w2):
    y = relu(conv(x, w1) + channel(v, x))
    z = pool(relu(conv(y, w2) + y))
    return P.sum_p.bind(z, axes=(2, 3)), P.sum_p.bind(z, axes=(0, 2, 3))


def join(x, w1, w2):
    y = relu(conv(x, w1))
    both = P.concatenate_p.bind(y, relu(y * y), axis=1)
    zero = P.sum_p.bind(y, axes=(0, 1, 2, 3)) * 0.0
    wide = P.pad_p.bind(both, zero, lo=(0, 0, 1, 0), hi=(0, 0, 2, 3), interior=(0, 0, 0, 0))
    part = P.slice_p.bind(wide, start=(0, 0, 1, 0), stop=tuple(shape(wide)),
                          step=(1, 1, 2, 1))  # fmt: skip
    return conv(part, w2, stride=2)


def both(x, a, b):
    y = relu(conv(x, a))
    return conv(relu(conv(y, b)), a), P.permute_p.bind(y, perm=(3, 2, 1, 0))


CASES = {
    "residual": (residual, [(2, 16, 6, 7), (16,), (16, 16, 3, 3), (16, 16, 3, 3)]),
    "join": (join, [(1, 12, 5, 5), (16, 12, 3, 3), (16, 32, 3, 3)]),
    "one dimension": (lambda x, a, b: conv(relu(conv(x, a)), b), [(2, 16, 9), (16, 16, 3), (32, 16, 3)]),
    "3d": (lambda x, a, b: conv(relu(conv(x, a)), b), [(1, 8, 3, 4, 5), (16, 8, 3, 3, 3), (16, 16, 3, 3, 3)]),
    "read in both": (both, [(1, 16, 4, 4), (16, 16, 3, 3), (16, 16, 3, 3)]),
}  # fmt: skip


def counts(graph: Graph) -> Counter[str]:
    return Counter(op.prim.name for op in graph.ops)


@pytest.mark.parametrize("name", CASES)
def test_layouts_keep_the_meaning(name: str) -> None:
    fn, shapes = CASES[name]
    graph = trace(fn, *[TensorType(s, f32) for s in shapes])
    arrays = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    chosen = choose_layouts(graph)
    assert [v.type for v in chosen.results] == [v.type for v in graph.results]
    for got, want in zip(run(chosen, arrays), run(graph, arrays), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4, rtol=1e-4)


def test_nothing_is_converted_between_convolutions() -> None:
    fn, shapes = CASES["residual"]
    chosen = choose_layouts(trace(fn, *[TensorType(s, f32) for s in shapes]))
    # each convolution reads a view and stores channels-last; the last sums show no layout
    assert counts(chosen)["permute"] == 3 and counts(chosen)["copy"] == 0
    assert chosen.ops[0].prim.name == "conv"
    forms = [op.attrs["form"] for op in lower(chosen).graph.ops if op.prim.name == "kernel"]
    assert forms.count("conv") == 2 and "window" in forms


def test_one_convolution_alone_keeps_the_users_layout() -> None:
    types = [TensorType((1, 16, 8, 8), f32), TensorType((16, 16, 3, 3), f32)]
    graph = trace(lambda x, w: relu(conv(x, w)), *types)
    assert choose_layouts(graph) is graph


def test_a_residual_network_has_no_kernel_that_only_converts() -> None:
    class Block(weft.nn.Module):
        def __init__(self, c: int, out: int, stride: int) -> None:
            super().__init__()
            self.a = weft.nn.Conv2d(c, out, 3, stride, 1, bias=False)
            self.b = weft.nn.Conv2d(out, out, 3, 1, 1, bias=False)
            self.n, self.m = weft.nn.BatchNorm2d(out), weft.nn.BatchNorm2d(out)
            self.down = weft.nn.Conv2d(c, out, 1, stride, bias=False) if stride > 1 else weft.nn.Identity()

        def forward(self, x):
            return F.relu(self.m(self.b(F.relu(self.n(self.a(x))))) + self.down(x))

    stem = [weft.nn.Conv2d(3, 16, 7, 2, 3, bias=False), weft.nn.BatchNorm2d(16), weft.nn.ReLU()]
    body = [weft.nn.MaxPool2d(3, 2, 1), Block(16, 16, 1), Block(16, 32, 2)]
    head = [weft.nn.AdaptiveAvgPool2d(1), weft.nn.Flatten(), weft.nn.Linear(32, 5)]
    net = weft.nn.Sequential(*stem, *body, *head).eval()
    fn, x = weft.compile(net), weft.randn(1, 3, 32, 32)
    with weft.no_grad():
        np.testing.assert_allclose(fn(x).numpy(), net(x).numpy(), atol=1e-5, rtol=1e-4)
    kernels = fn.kernels()
    assert Counter(k.form for k in kernels) == {"conv": 6, "window": 1, "loop": 2, "contract": 1}
    convs = [k.loops for k in kernels if k.form == "conv"]
    assert sum("y: channels-last" in text for text in convs) == 6
    assert sum("x: in place" in text for text in convs) == 5  # all but the first
