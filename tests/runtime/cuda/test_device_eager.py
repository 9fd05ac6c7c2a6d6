"""Single operations on device arrays."""

from __future__ import annotations

import numpy as np
import pytest
from device_graphs import GPU
from weft.ir import prims as P
from weft.ir.prims.base import interpreting
from weft.ir.types import CPU, Device, f32, i64
from weft.runtime import stats
from weft.runtime.cuda.array import DeviceArray, from_host
from weft.runtime.cuda.eager import DEVICE, run, transfer, vjp

pytestmark = pytest.mark.gpu
X = np.linspace(-2, 2, 24, dtype=np.float32).reshape(2, 3, 4)


def test_an_operation_is_compiled_once():
    x = from_host(X)
    run(P.exp_p, [x], {})
    stats.reset()
    y = run(P.exp_p, [x], {})
    seen = stats.snapshot()
    assert (seen["eager_kernels"], seen["device_launches"], seen["device_synchronisations"]) == (0, 1, 0)
    np.testing.assert_allclose(y.copy_to_host(), np.exp(X), rtol=1e-6)


def test_moves_that_only_change_strides_run_nothing():
    x = from_host(X)
    stats.reset()
    repeated = np.broadcast_to(X, (5, 2, 3, 4))
    outs = [
        (run(P.permute_p, [x], {"perm": (2, 0, 1)}), X.transpose(2, 0, 1)),
        (run(P.reshape_p, [x], {"shape": (6, 4)}), X.reshape(6, 4)),
        (run(P.slice_p, [x], {"start": (0, 1, 0), "stop": (2, 3, 4), "step": (1, 1, 3)}), X[:, 1:3, ::3]),
        (run(P.broadcast_p, [x], {"shape": (5, 2, 3, 4), "axes": (1, 2, 3)}), repeated),
        (run(P.diagonal_p, [x], {"offset": 1}), np.diagonal(X, 1, -2, -1)),
    ]
    assert stats.snapshot()["device_launches"] == 0
    for got, want in outs:
        assert got.owner is x.owner
        np.testing.assert_array_equal(got.copy_to_host(), want)


def test_operands_that_are_views():
    x = from_host(X)
    for view, want in [
        (x.transpose((2, 1, 0)), X.transpose(2, 1, 0)),
        (x[0].broadcast((2, 3, 4), (1, 2)), np.broadcast_to(X[0], (2, 3, 4))),
        (x[:, :, ::2], X[:, :, ::2]),
        (x[:, 1], X[:, 1]),
    ]:
        np.testing.assert_array_equal(run(P.add_p, [view, view], {}).copy_to_host(), want + want)


def test_operands_broadcast_and_numbers_go_along():
    x = from_host(X)
    got = run(P.mul_p, [x, np.float32(2)], {})
    np.testing.assert_array_equal(got.copy_to_host(), 2 * X)
    got = run(P.add_p, [x, from_host(X[0, 0])], {})
    np.testing.assert_array_equal(got.copy_to_host(), X + X[0, 0])


def test_sources_and_several_results():
    ones = run(P.full_p, [], {"shape": (3,), "dtype": f32, "value": 1.0, "device": GPU})
    np.testing.assert_array_equal(ones.copy_to_host(), np.ones(3))
    data = np.arange(5.0)
    got = run(P.constant_p, [], {"value": data, "device": GPU})
    np.testing.assert_array_equal(got.copy_to_host(), data)
    values, places = run(P.sort_p, [from_host(X[0])], {"axis": 1, "descending": True})
    np.testing.assert_array_equal(values.copy_to_host(), -np.sort(-X[0], 1))
    assert places.dtype == i64.np


def test_rules_of_gradients_run_on_the_device():
    x = from_host(X)
    with interpreting(DEVICE):
        y = P.tanh_p.bind(x)
        (grad,) = P.tanh_p.vjp(from_host(np.ones_like(X)), y, x)  # type: ignore[misc]
    assert isinstance(grad, DeviceArray)
    np.testing.assert_allclose(grad.copy_to_host(), 1 - np.tanh(X) ** 2, rtol=1e-5, atol=1e-6)
    with interpreting(DEVICE):
        assert isinstance(P.add_p.bind(X, X), np.ndarray)


def test_a_gradient_is_one_graph():
    x, y = from_host(X), run(P.tanh_p, [from_host(X)], {})
    ct = from_host(np.ones_like(X))
    vjp(P.tanh_p, {}, ct, y, (x,), (0,))
    stats.reset()
    (grad,) = vjp(P.tanh_p, {}, ct, y, (x,), (0,))
    assert stats.snapshot()["device_launches"] == 1 and stats.snapshot()["eager_kernels"] == 0
    np.testing.assert_allclose(grad.copy_to_host(), 1 - np.tanh(X) ** 2, rtol=1e-5, atol=1e-6)
    a, b = from_host(X[0]), from_host(X[1])
    attrs = {"contract": ((1,), (1,)), "batch": ((), ())}
    ct = from_host(np.ones((3, 3), np.float32))
    left, right = vjp(P.dot_general_p, attrs, ct, None, (a, b), (1,))
    assert left is None
    np.testing.assert_allclose(right.copy_to_host(), np.ones((3, 3)).T @ X[0], rtol=1e-5)


def test_transfers():
    x = transfer(X, Device("cuda", 1))
    assert x.device == Device("cuda", 1)
    back = transfer(transfer(x, GPU), CPU)
    assert isinstance(back, np.ndarray)
    np.testing.assert_array_equal(back, X)


def test_devices_do_not_mix():
    with pytest.raises(RuntimeError, match="found at least two, cuda:0 and cuda:1"):
        run(P.add_p, [from_host(X, 0), from_host(X, 1)], {})
