"""How many kernels fusion makes of known computations, and the reasons it gives for what stays apart."""

from __future__ import annotations

import pytest
from weft.ir import prims as P
from weft.ir.prims.base import trace, type_of
from weft.ir.types import TensorType, f32, i64
from weft.passes.fuse import refusals
from weft.passes.pipeline import lower


def F(*shape: int) -> TensorType:
    return TensorType(shape, f32)


def spread(x, shape, axes):
    return P.broadcast_p.bind(x, shape=shape, axes=axes)


def kernels(fn, *types):
    return [op for op in lower(trace(fn, *types)).graph.ops if op.prim.name == "kernel"]


def forms(fn, *types):
    return [op.attrs["form"] for op in kernels(fn, *types)]


def kept(x, axis):
    return tuple(i for i in range(type_of(x).ndim) if i != axis)


def mean(x, axis):
    return P.sum_p.bind(x, axes=(axis,)) * (1.0 / type_of(x).shape[axis])


def softmax(x, axis=1):
    shape = type_of(x).shape
    e = P.exp_p.bind(x - spread(P.reduce_max_p.bind(x, axes=(axis,)), shape, kept(x, axis)))
    return e / spread(P.sum_p.bind(e, axes=(axis,)), shape, kept(x, axis))


def log_softmax(x):
    shape = type_of(x).shape
    c = x - spread(P.reduce_max_p.bind(x, axes=(1,)), shape, (0,))
    return c - spread(P.log_p.bind(P.sum_p.bind(P.exp_p.bind(c), axes=(1,))), shape, (0,))


def layer_norm(x, w, b):
    shape = type_of(x).shape
    c = x - spread(mean(x, 1), shape, (0,))
    s = P.rsqrt_p.bind(mean(c * c, 1) + 1e-5)
    return c * spread(s, shape, (0,)) * spread(w, shape, (1,)) + spread(b, shape, (1,))


def nll(log_p, target):
    n, _ = type_of(log_p).shape
    picked = P.take_along_p.bind(log_p, P.reshape_p.bind(target, shape=(n, 1)), axis=1)
    return -mean(P.reshape_p.bind(picked, shape=(n,)), 0)


def nll_one_hot(log_p, target):
    shape = type_of(log_p).shape
    hot = P.eq_p.bind(P.iota_p.bind(shape=shape, dtype=i64, axis=1), spread(target, shape, (0,)))
    return -mean(P.sum_p.bind(P.where_p.bind(hot, log_p, log_p * 0.0), axes=(1,)), 0)


def gelu(x):
    return x * 0.5 * (P.erf_p.bind(x * 0.7071067811865476) + 1.0)


def linear(x, w, b):
    y = P.dot_general_p.bind(x, w, contract=((1,), (1,)), batch=((), ()))
    return y + spread(b, type_of(y).shape, (1,))


def adam(step, lr, *state):
    """p, grad, m, v for each parameter; the bias corrections are scalar arithmetic."""
    out = [step + 1.0]
    c1 = 1.0 - P.exp_p.bind(out[0] * -0.10536)
    c2 = P.sqrt_p.bind(1.0 - P.exp_p.bind(out[0] * -0.0010005))
    for p, g, m, v in zip(state[::4], state[1::4], state[2::4], state[3::4], strict=True):
        shape = type_of(p).shape
        m = m * 0.9 + g * 0.1
        v = v * 0.999 + g * g * 0.001
        unit = m / (P.sqrt_p.bind(v) / spread(c2, shape, ()) + 1e-8)
        out += [p - spread(lr, shape, ()) * unit / spread(c1, shape, ()), m, v]
    return out


ADAM_SHAPES = [(64, 784), (64,), (32, 64), (32,), (10, 32), (10,), (3, 3, 8, 16), (16,), (1,), (7, 9)] * 2


def test_a_chain_of_ten_maps_is_one_kernel():
    def chain(x):
        for _ in range(5):
            x = P.tanh_p.bind(x * x)
        return x

    (kernel,) = kernels(chain, F(33, 7))
    assert [op.prim.name for op in kernel.regions[0].ops] == ["mul", "tanh"] * 5


@pytest.mark.parametrize("shape", [(64, 1000), (5, 10), (1, 3), (200, 1)])
@pytest.mark.parametrize("axis", [0, 1])
def test_softmax_is_one_kernel(shape, axis):
    assert forms(lambda x: softmax(x, axis), F(*shape)) == ["loop"]


def test_layer_norm_is_one_kernel():
    assert forms(layer_norm, F(64, 129), F(129), F(129)) == ["loop"]


def test_layer_norm_after_a_residual_sum_that_is_also_wanted_is_one_kernel():
    def block(x, r, w, b):
        return x + r, layer_norm(x + r, w, b)

    assert forms(block, F(64, 128), F(64, 128), F(128), F(128)) == ["loop"]


@pytest.mark.parametrize("loss", [nll, nll_one_hot])
@pytest.mark.parametrize("classes", [10, 1000])
def test_log_softmax_and_nll_are_one_kernel(loss, classes):
    t = TensorType((64,), i64)
    assert forms(lambda x, y: loss(log_softmax(x), y), F(64, classes), t) == ["loop"]
    both = forms(lambda x, y: (log_softmax(x), loss(log_softmax(x), y)), F(64, classes), t)
    assert both == ["loop"]


def test_linear_bias_gelu_is_one_kernel():
    assert forms(lambda x, w, b: gelu(linear(x, w, b)), F(64, 128), F(256, 128), F(256)) == ["contract"]


def test_linear_bias_and_residual_is_one_kernel():
    assert forms(lambda x, w, b, r: linear(x, w, b) + r, F(64, 128), F(256, 128), F(256), F(64, 256)) == [
        "contract"
    ]


def test_an_adam_step_over_20_parameters_is_one_kernel():
    types = [F(*s) for s in ADAM_SHAPES for _ in range(4)]
    assert len(ADAM_SHAPES) == 20
    assert forms(adam, F(), F(), *types) == ["loop"]


def test_pairwise_distances_are_never_stored():
    def pairwise(x, y):
        shape = (150, 140, 3)
        d = spread(x, shape, (0, 2)) - spread(y, shape, (1, 2))
        return P.sum_p.bind(P.exp_p.bind(-P.sum_p.bind(d * d, axes=(2,))), axes=(1,))

    (kernel,) = kernels(pairwise, F(150, 3), F(140, 3))
    assert [r.type.shape for r in kernel.results] == [(150,)]


def test_bias_gradients_and_input_gradients_share_a_kernel():
    def backward(ct, x):
        g = ct * P.convert_p.bind(P.gt_p.bind(x, x * 0.0), dtype=f32)
        return g, P.sum_p.bind(g, axes=(0,))

    assert forms(backward, F(64, 128), F(64, 128)) == ["loop"]


def test_normalising_a_large_array_by_its_sum_takes_two_kernels_and_says_why():
    def normalise(x):
        return x / spread(P.sum_p.bind(x, axes=(0,)), type_of(x).shape, ())

    assert forms(normalise, F(1 << 20)) == ["loop", "loop"]
    assert any("before its first element is used" in reason for _, _, reason in refusals)


def test_a_reshape_of_a_whole_value_stays_a_view():
    g = lower(trace(lambda x: P.reshape_p.bind(P.exp_p.bind(x), shape=(6,)), F(2, 3))).graph
    assert [op.prim.name for op in g.ops] == ["kernel", "reshape"]


def test_dear_work_is_not_repeated_under_a_broadcast():
    def f(x, w):
        return x * spread(P.lgamma_p.bind(w), type_of(x).shape, (1,))

    assert forms(f, F(300, 100), F(100)) == ["loop", "loop"]
    assert any("repeat" in reason for _, _, reason in refusals)
