"""``weft.nn.functional`` against formulas in numpy; shapes, modes and errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import weft as torch
import weft.nn.functional as F

_rs = np.random.RandomState(0)


def t(*shape: int) -> torch.Tensor:
    return torch.from_numpy(_rs.randn(*shape))


def close(a: torch.Tensor, b: Any, tol: float = 1e-9) -> None:
    np.testing.assert_allclose(a.detach().numpy(), b, rtol=tol, atol=tol)


def test_activations() -> None:
    x = t(3, 5)
    a = x.numpy()
    erf = np.vectorize(math.erf)
    close(F.gelu(x), a * 0.5 * (1 + erf(a / math.sqrt(2))))
    close(F.silu(x), a / (1 + np.exp(-a)))
    close(F.softplus(x), np.log1p(np.exp(a)))
    close(F.elu(x, 0.5), np.where(a > 0, a, 0.5 * np.expm1(a)))
    close(F.leaky_relu(x, 0.1), np.where(a > 0, a, 0.1 * a))
    close(F.softmax(x, 1), np.exp(a) / np.exp(a).sum(1, keepdims=True))
    close(F.log_softmax(x, 0), a - np.log(np.exp(a).sum(0, keepdims=True)))


def test_sigmoid_and_its_gradient_at_the_ends() -> None:
    x = torch.tensor([-1000.0, -100.0, 0.0, 100.0, 1000.0], requires_grad=True)
    y = x.sigmoid()
    y.sum().backward()
    assert y.tolist() == [0, pytest.approx(3.7835e-44, abs=2e-45), 0.5, 1, 1]
    assert x.grad.tolist() == pytest.approx([0, 0, 0.25, 0, 0], abs=1e-40)


def test_in_place_activation() -> None:
    x = torch.tensor([-1.0, 2.0])
    assert F.relu(x, inplace=True) is x and x.tolist() == [0, 2]


def test_losses() -> None:
    x, labels = t(4, 3), torch.tensor([0, 2, 1, 1])
    a = x.numpy()
    logp = a - np.log(np.exp(a).sum(1, keepdims=True))
    each = -logp[np.arange(4), labels.numpy()]
    close(F.cross_entropy(x, labels), each.mean())
    close(F.cross_entropy(x, labels, reduction="none"), each)
    w = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    wl = w.numpy()[labels.numpy()]
    close(F.cross_entropy(x, labels, w), (each * wl).sum() / wl.sum())
    close(F.cross_entropy(x, labels, ignore_index=1), each[:2].mean())
    close(F.cross_entropy(x, labels, label_smoothing=0.3), (0.7 * each - 0.3 * logp.mean(1)).mean())
    y = t(4, 3)
    close(F.mse_loss(x, y), ((a - y.numpy()) ** 2).mean())
    p = torch.sigmoid(y)
    q = 1 / (1 + np.exp(-a))
    close(
        F.binary_cross_entropy_with_logits(x, p),
        -(p.numpy() * np.log(q) + (1 - p.numpy()) * np.log(1 - q)).mean(),
    )


def test_loss_errors() -> None:
    x = t(4, 3)
    with pytest.raises(IndexError, match="Target 5 is out of bounds"):
        F.cross_entropy(x, torch.tensor([0, 5, 1, 1]))
    with pytest.raises(ValueError, match=r"Expected input batch_size \(4\) to match target batch_size \(2\)"):
        F.cross_entropy(x, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="not a valid value for reduction"):
        F.mse_loss(x, x, reduction="mode")


def test_layer_norm_and_batch_norm() -> None:
    x = t(4, 3, 5)
    a = x.numpy()
    mean, var = a.mean(-1, keepdims=True), a.var(-1, keepdims=True)
    close(F.layer_norm(x, (5,)), (a - mean) / np.sqrt(var + 1e-5))
    running_mean, running_var = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    y = F.batch_norm(x, running_mean, running_var, training=True, momentum=0.1)
    mean, var = a.mean((0, 2), keepdims=True), a.var((0, 2), keepdims=True)
    close(y, (a - mean) / np.sqrt(var + 1e-5))
    close(running_mean, 0.1 * mean.ravel())
    close(running_var, 0.9 + 0.1 * a.var((0, 2), ddof=1))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        F.batch_norm(t(1, 3), None, None, training=True)


def test_convolution_by_definition() -> None:
    x, w, b = t(2, 3, 6, 7), t(4, 3, 3, 2), t(4)
    a, k = np.pad(x.numpy(), ((0, 0), (0, 0), (1, 1), (0, 0))), w.numpy()
    want = np.zeros((2, 4, 3, 6))
    for i in range(3):
        for j in range(6):
            patch = a[:, :, 2 * i : 2 * i + 3, j : j + 2]
            want[:, :, i, j] = np.einsum("nchw,ochw->no", patch, k) + b.numpy()
    close(F.conv2d(x, w, b, stride=(2, 1), padding=(1, 0)), want)


def test_transposed_convolution_is_the_gradient_of_convolution() -> None:
    x = t(1, 3, 8, 8).requires_grad_()
    w = t(5, 3, 3, 3)
    y = F.conv2d(x, w, stride=2, padding=1)
    g = t(*y.shape)
    (y * g).sum().backward()
    close(F.conv_transpose2d(g, w, stride=2, padding=1, output_padding=1), x.grad.numpy())


def test_convolution_errors() -> None:
    with pytest.raises(RuntimeError, match="to have 6 channels, but got 4 channels instead"):
        F.conv2d(t(1, 4, 5, 5), t(2, 6, 3, 3))
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        F.conv2d(t(1, 4, 2, 2), t(2, 4, 3, 3))
    with pytest.raises(RuntimeError, match="Expected 3D"):
        F.conv2d(t(4, 5), t(2, 4, 3, 3))


def test_pooling() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert F.max_pool2d(x, 2).tolist() == [[[[5, 7], [13, 15]]]]
    assert F.avg_pool2d(x, 2).tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]
    values, index = F.max_pool2d(x, 2, return_indices=True)
    assert index.tolist() == [[[[5, 7], [13, 15]]]] and values.tolist() == [[[[5, 7], [13, 15]]]]
    assert F.adaptive_avg_pool2d(x, 1).item() == 7.5
    assert F.adaptive_avg_pool2d(x, (3, 4)).shape == (1, 1, 3, 4)


def test_attention_is_softmax_of_scores() -> None:
    q, k, v = t(2, 4, 3), t(2, 5, 3), t(2, 5, 6)
    s = q.numpy() @ k.numpy().transpose(0, 2, 1) / math.sqrt(3)
    p = np.exp(s) / np.exp(s).sum(-1, keepdims=True)
    close(F.scaled_dot_product_attention(q, k, v), p @ v.numpy())
    causal = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    close(causal[:, 0], v.numpy()[:, 0])
    with pytest.raises(RuntimeError, match="should not be set when is_causal"):
        F.scaled_dot_product_attention(q, k, v, torch.ones(4, 5), is_causal=True)


def test_embedding() -> None:
    w = t(5, 3).requires_grad_()
    out = F.embedding(torch.tensor([[1, 1], [4, 0]]), w, padding_idx=0)
    assert out.shape == (2, 2, 3)
    out.sum().backward()
    assert w.grad[:, 0].tolist() == [0, 2, 0, 0, 1]
    with pytest.raises(IndexError, match="index out of range in self"):
        F.embedding(torch.tensor([5]), w)


def test_padding_modes() -> None:
    x = torch.arange(4.0)
    assert F.pad(x, (1, 2)).tolist() == [0, 0, 1, 2, 3, 0, 0]
    assert F.pad(x[None], (2, 1), mode="reflect").tolist() == [[2, 1, 0, 1, 2, 3, 2]]
    assert F.pad(x[None], (1, 1), mode="replicate").tolist() == [[0, 0, 1, 2, 3, 3]]
    assert F.pad(x[None], (1, 1), mode="circular").tolist() == [[3, 0, 1, 2, 3, 0]]
    assert F.pad(x, (-1, -1)).tolist() == [1, 2]


def test_one_hot_and_errors() -> None:
    assert F.one_hot(torch.tensor([1, 0])).tolist() == [[0, 1], [1, 0]]
    with pytest.raises(RuntimeError, match="must be smaller than num_classes"):
        F.one_hot(torch.tensor([3]), 2)


def test_fold_is_the_transpose_of_unfold() -> None:
    x = t(1, 2, 5, 6).requires_grad_()
    y = F.unfold(x, (2, 3), stride=(1, 2), padding=1)
    g = t(*y.shape)
    (y * g).sum().backward()
    close(F.fold(g, (5, 6), (2, 3), stride=(1, 2), padding=1), x.grad.numpy())


@pytest.mark.parametrize("name", ["gelu", "silu", "mish", "softplus", "elu", "celu", "sigmoid"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_activations_of_half_precision_are_rounded_once(name, dtype):
    fn = getattr(F, name)
    x = torch.linspace(-6, 6, 333).to(dtype).requires_grad_()
    want = fn(x.detach().to(torch.float32)).to(dtype)
    for run in (fn, torch.compile(lambda x: fn(x))):
        out = run(x)
        assert out.dtype is dtype
        assert torch.equal(out.detach(), want)
        (grad,) = torch.autograd.grad(out.sum(), x)
        assert grad.dtype is dtype and bool(torch.isfinite(grad).all())
