"""Results that only repeat elements are returned as they are made: spread over the memory of few."""

from __future__ import annotations

import numpy as np
import weft


def test_the_gradient_of_a_sum_is_not_written_out() -> None:
    @weft.compile
    def gradient(x: weft.Tensor, ct: weft.Tensor) -> weft.Tensor:
        return weft.autograd.grad(x.sum(0), [x], ct)[0]

    ct = weft.randn(32)
    out = gradient(weft.randn(64, 32, requires_grad=True), ct)
    assert out.stride() == (0, 1)
    np.testing.assert_array_equal(out.numpy(), np.broadcast_to(ct.numpy(), (64, 32)))
    assert sum(k.bytes_moved for k in gradient.kernels()) <= 2 * 32 * 4  # a copy of the cotangent


def test_such_a_result_can_be_written_to() -> None:
    spread = weft.compile(lambda x: x.sum(0).expand(3, 4))
    x = weft.ones(2, 4)
    out = spread(x)
    out.add_(1)
    assert out.tolist() == [[3.0] * 4] * 3
    assert spread(x).tolist() == [[2.0] * 4] * 3


def test_a_kept_gradient_has_memory_of_its_own() -> None:
    x = weft.randn(5, 4, requires_grad=True)

    @weft.compile
    def step() -> None:
        x.sum().backward()

    step()
    assert x.grad is not None and x.grad.stride() == (4, 1)
    x.grad[0] = 7
    assert x.grad[1].tolist() == [1.0] * 4


def test_gradients_flow_through_a_spread_result() -> None:
    x = weft.randn(4, requires_grad=True)
    spread = weft.compile(lambda x: (x * 2).expand(3, 4))
    (spread(x) * weft.arange(12.0).reshape(3, 4)).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [24.0, 30.0, 36.0, 42.0]
