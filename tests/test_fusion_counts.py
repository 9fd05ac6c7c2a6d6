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
# and its update. The gradient of the hidden layer with the ReLU's mask, with the first bias and its update.
# Both weight gradients, each with the update of its weight as epilogue.
MLP_STEP_KERNELS = 7


# --- reductions of products ----------------------------------------------------------------------

M, N, K = 96, 200, 24


def statistics(h: weft.Tensor) -> tuple[weft.Tensor, weft.Tensor]:
    return h.sum(1), (h * h).sum(1)


def squared_distances(x: weft.Tensor, y: weft.Tensor) -> weft.Tensor:
    return (x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * (x @ y.T)


REDUCED: dict[str, tuple[Callable[..., object], int]] = {
    "row sums": (lambda x, w, b, y: (x @ w.T).sum(1), 1),
    "a mean": (lambda x, w, b, y: (x @ w.T).mean(1), 1),
    "largest logit": (lambda x, w, b, y: F.linear(x, w, b).amax(-1), 1),
    "smallest of a batch": (lambda x, w, b, y: F.linear(x[None] + y[:3, None, :1], w, b).amin(-1), 2),
    "any": (lambda x, w, b, y: (F.linear(x, w, b) > 9).any(1), 1),
    "column sums": (lambda x, w, b, y: F.relu(F.linear(x, w, b)).sum(0), 1),
    "sum and sum of squares": (lambda x, w, b, y: statistics(F.linear(x, w, b) + y), 1),
    "loss": (lambda x, w, b, y: F.mse_loss(F.linear(x, w, b), y), 1),
    "gaussian kernel": (lambda x, w, b, y: (-squared_distances(x, w)).exp().sum(1), 2),
    "norm of a layer": (lambda x, w, b, y: weft.linalg.vector_norm(F.linear(x, w, b), dim=1), 1),
}


@pytest.mark.parametrize("name", REDUCED)
def test_a_product_that_is_only_reduced_is_never_stored(name: str) -> None:
    fn, kernels = REDUCED[name]
    args = weft.randn(M, K), weft.randn(N, K), weft.randn(N), weft.randn(M, N)
    compiled = weft.compile(fn, fullgraph=True)
    got, want = compiled(*args), fn(*args)
    for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in (got, want)), strict=True):
        weft.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)
    assert len(compiled.kernels()) == kernels
    (entry,) = compiled.entries
    stored = [v.type.shape for k in entry.executable.kernels for v in k.region.results]
    assert all(shape[-2:] != (M, N) for shape in stored)
    assert entry.executable.plan.arena_bytes < 4 * M * N


def test_a_bias_gradient_comes_from_the_tiles_of_the_product_before_it() -> None:
    """The gradient of a hidden layer with the mask of its activation is stored for two more products, and
    summed over the batch on the way."""

    def gradients(dy: weft.Tensor, w: weft.Tensor, h: weft.Tensor) -> tuple[weft.Tensor, weft.Tensor]:
        d = weft.where(h > 0, dy @ w, 0.0)
        return d, d.sum(0)

    assert kernel_count(gradients, weft.randn(M, K), weft.randn(K, N), weft.randn(M, N)) == 1


def test_what_walks_the_rows_again_reduces_them() -> None:
    """Softmax of logits, and a norm of what a residual was added to: the statistics stay in the second
    kernel, which has the row in its cache, and the report says so."""

    def fn(x: weft.Tensor, w: weft.Tensor, b: weft.Tensor) -> weft.Tensor:
        return F.softmax(F.linear(x, w, b), -1)

    args = weft.randn(M, K), weft.randn(N, K), weft.randn(N)
    assert kernel_count(fn, *args) == 2
    report = str(weft.explain(fn)(*args))
    assert "the kernel that walks the rows again reduces them on the way" in report


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_reduced_products_do_not_depend_on_the_threads(threads: int) -> None:
    x, w = (weft.arange(n * 7.0) % 23 / 23 - 0.4 for n in (300, 130))
    x, w = x.reshape(300, 7), w.reshape(130, 7)
    fn = weft.compile(lambda x, w: ((x @ w.T).sum(1), (x @ w.T).exp().sum(0), (x @ w.T).square().sum()))
    before = weft.get_num_threads()
    try:
        weft.set_num_threads(1)
        want = [r.numpy().tobytes() for r in fn(x, w)]
        weft.set_num_threads(threads)
        assert [r.numpy().tobytes() for r in fn(x, w)] == want
    finally:
        weft.set_num_threads(before)
