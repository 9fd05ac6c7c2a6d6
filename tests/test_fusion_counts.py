"""How many kernels the public API's workloads become: counts, asserted through ``weft.compile``."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import weft
from weft import nn
from weft.nn import functional as F


def kernel_count(fn: Callable[..., object], *args: weft.Tensor) -> int:
    compiled = weft.compile(fn, fullgraph=True)
    compiled(*args)
    return len(compiled.kernels())


def chain_of_ten(x: weft.Tensor) -> weft.Tensor:
    y = x.exp() + 1.0
    y = (y * 2.0).sqrt().tanh()
    y = (y - 0.5).abs()
    return -(y.sin() * y.cos())


def test_a_chain_of_ten_elementwise_ops_is_one_kernel() -> None:
    assert kernel_count(chain_of_ten, weft.randn(37, 5)) == 1


@pytest.mark.parametrize("shape", [(4, 7), (64, 1000), (2, 3, 5, 16)])
def test_softmax_is_one_kernel(shape: tuple[int, ...]) -> None:
    assert kernel_count(lambda x: F.softmax(x, -1), weft.randn(*shape)) == 1


def test_softmax_over_the_first_axis_is_one_kernel() -> None:
    assert kernel_count(lambda x: F.softmax(x, 0), weft.randn(16, 40)) == 1


def test_layer_norm_is_one_kernel() -> None:
    x, r, w, b = weft.randn(32, 100), weft.randn(32, 100), weft.randn(100), weft.randn(100)
    assert kernel_count(lambda x, r, w, b: F.layer_norm(x + r, (100,), w, b), x, r, w, b) == 1


def test_log_softmax_and_nll_are_one_kernel() -> None:
    x, y = weft.randn(32, 10), weft.randint(0, 10, (32,))
    assert kernel_count(lambda x, y: F.nll_loss(F.log_softmax(x, -1), y, reduction="none"), x, y) == 1
    assert kernel_count(lambda x, y: F.cross_entropy(x, y), x, y) == 1


def test_linear_bias_gelu_is_one_kernel() -> None:
    x, w, b = weft.randn(16, 48), weft.randn(64, 48), weft.randn(64)
    assert kernel_count(lambda x, w, b: F.gelu(F.linear(x, w, b)), x, w, b) == 1


def test_an_adam_step_over_twenty_parameters_is_one_kernel() -> None:
    parameters = [nn.Parameter(weft.randn(3 + i, 2 + i % 4)) for i in range(20)]
    for p in parameters:
        p.grad = weft.randn(*p.shape)
    optimizer = weft.optim.Adam(parameters, lr=1e-2)
    step = weft.compile(lambda: optimizer.step(), fullgraph=True)
    step()
    assert len(step.kernels()) == 1


def test_the_kernels_of_an_mlp_training_step() -> None:
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = weft.optim.Adam(model.parameters(), lr=1e-3)

    def train(x: weft.Tensor, y: weft.Tensor) -> weft.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    step = weft.compile(train, fullgraph=True)
    step(weft.randn(32, 64), weft.randint(0, 10, (32,)))
    assert len(step.kernels()) == MLP_STEP_KERNELS


# Forward: the hidden layer with its ReLU; the logits. The loss. The gradient of the logits with the last bias
# and its update. The gradient of the hidden layer with the ReLU's mask. The first bias and its update. Both
# weight gradients, each with the update of its weight as epilogue.
MLP_STEP_KERNELS = 8
