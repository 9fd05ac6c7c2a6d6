"""Layers against formulas in numpy, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import weft
from weft import nn
from weft.nn import init


def close(a: weft.Tensor, b: np.ndarray, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(a.detach().numpy(), b, rtol=tolerance, atol=tolerance)


def randn(*shape: int) -> tuple[weft.Tensor, np.ndarray]:
    x = weft.randn(*shape)
    return x, x.numpy().astype(np.float64)


@pytest.fixture(autouse=True)
def seed() -> None:
    weft.manual_seed(0)


def test_linear_and_bilinear() -> None:
    m, (x, xn) = nn.Linear(3, 5), randn(2, 4, 3)
    close(m(x), xn @ m.weight.detach().numpy().T + m.bias.detach().numpy())
    assert m.weight.abs().max().item() <= 3**-0.5
    b, (y, yn) = nn.Bilinear(3, 2, 4), randn(6, 2)
    x, xn = randn(6, 3)
    wanted = np.einsum("ni,oij,nj->no", xn, b.weight.detach().numpy(), yn) + b.bias.detach().numpy()
    close(b(x, y), wanted)
    assert nn.Identity(3, foo=1)(x) is x


def test_conv2d_against_a_loop() -> None:
    m, (x, xn) = (
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2),
        randn(2, 4, 7, 8),
    )
    w, b = m.weight.detach().numpy(), m.bias.detach().numpy()
    padded = np.pad(xn, ((0, 0), (0, 0), (1, 1), (0, 0)))
    out = np.zeros((2, 6, 4, 6))
    for o in range(6):
        first = 0 if o < 3 else 2
        for i in range(4):
            for j in range(6):
                window = padded[:, first : first + 2, 2 * i : 2 * i + 3, j : j + 3 : 2]
                out[:, o, i, j] = (window * w[o]).sum((1, 2, 3)) + b[o]
    close(m(x), out)
    assert m(x[0]).shape == (6, 4, 6)


def test_padding_of_convolutions() -> None:
    x, xn = randn(1, 1, 5)
    for mode, how in (("reflect", "reflect"), ("replicate", "edge"), ("circular", "wrap")):
        m = nn.Conv1d(1, 1, 3, padding=2, padding_mode=mode)
        plain = nn.Conv1d(1, 1, 3)
        plain.load_state_dict(m.state_dict())
        wanted = plain(weft.from_numpy(np.pad(xn, ((0, 0), (0, 0), (2, 2)), mode=how)).float())
        close(m(x), wanted.detach().numpy())
    assert nn.Conv1d(1, 2, 4, padding="same")(x).shape == (1, 2, 5)
    with pytest.raises(ValueError, match="not supported for strided"):
        nn.Conv2d(1, 1, 3, stride=2, padding="same")
    with pytest.raises(ValueError, match="divisible by groups"):
        nn.Conv2d(3, 4, 3, groups=2)
    with pytest.raises(ValueError, match="padding_mode must be one of"):
        nn.Conv2d(3, 3, 3, padding_mode="mirror")


def test_transposed_convolution_is_the_gradient_of_convolution() -> None:
    t = nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1, output_padding=1, bias=False)
    y, _ = randn(1, 3, 4, 4)
    x = weft.zeros(1, 2, 8, 8, requires_grad=True)
    weft.nn.functional.conv2d(x, t.weight.detach(), stride=2, padding=1).backward(y)
    close(t(y), x.grad.numpy())
    assert nn.ConvTranspose2d(3, 2, 3, stride=2)(y, output_size=(10, 10)).shape == (1, 2, 10, 10)
    with pytest.raises(ValueError, match="requested an output size"):
        nn.ConvTranspose2d(3, 2, 3, stride=2)(y, output_size=(20, 20))


def test_batch_norm_learns_and_uses_running_statistics() -> None:
    m, (x, xn) = nn.BatchNorm2d(3), randn(4, 3, 5, 6)
    mean, var = xn.mean((0, 2, 3)), xn.var((0, 2, 3))
    spread = (1, 3, 1, 1)
    close(m(x), (xn - mean.reshape(spread)) / np.sqrt(var.reshape(spread) + 1e-5))
    n = 4 * 5 * 6
    close(m.running_mean, 0.1 * mean)
    close(m.running_var, 0.9 + 0.1 * var * n / (n - 1))
    assert m.num_batches_tracked.item() == 1
    kept = m.running_mean
    m(x)
    assert m.running_mean is kept
    m.eval()
    rm, rv = m.running_mean.numpy().copy(), m.running_var.numpy().copy()
    close(m(x), (xn - rm.reshape(spread)) / np.sqrt(rv.reshape(spread) + 1e-5))
    close(m.running_mean, rm)
    with pytest.raises(ValueError, match=r"expected 4D input \(got 2D input\)"):
        m(weft.zeros(2, 3))


def test_batch_norm_without_statistics_or_with_a_cumulative_average() -> None:
    x, xn = randn(6, 3)
    m = nn.BatchNorm1d(3, affine=False, track_running_stats=False).eval()
    assert list(m.state_dict()) == [] and m.running_mean is None
    close(m(x), (xn - xn.mean(0)) / np.sqrt(xn.var(0) + 1e-5))
    average = nn.BatchNorm1d(3, momentum=None)
    for _ in range(3):
        average(x)
    close(average.running_mean, xn.mean(0))


def test_layer_group_and_rms_norm() -> None:
    x, xn = randn(2, 6, 4)
    m = nn.LayerNorm((6, 4))
    init.normal_(m.weight)
    mean, var = xn.mean((1, 2), keepdims=True), xn.var((1, 2), keepdims=True)
    close(m(x), (xn - mean) / np.sqrt(var + 1e-5) * m.weight.detach().numpy())
    assert list(nn.LayerNorm(4, bias=False).state_dict()) == ["weight"]
    g = xn.reshape(2, 3, 8)
    wanted = ((g - g.mean(2, keepdims=True)) / np.sqrt(g.var(2, keepdims=True) + 1e-5)).reshape(xn.shape)
    close(nn.GroupNorm(3, 6)(x), wanted)
    close(nn.RMSNorm(4, eps=1e-6)(x), xn / np.sqrt((xn**2).mean(-1, keepdims=True) + 1e-6))
    with pytest.raises(ValueError, match="must be divisible by num_groups"):
        nn.GroupNorm(4, 6)


def test_embedding() -> None:
    m = nn.Embedding(5, 3, padding_idx=-1)
    assert m.padding_idx == 4 and m.weight[4].abs().sum().item() == 0
    index = weft.tensor([[1, 4], [1, 0]])
    out = m(index)
    close(out, m.weight.detach().numpy()[index.numpy()])
    out.sum().backward()
    assert m.weight.grad.sum(1).tolist() == [3.0, 6.0, 0.0, 0.0, 0.0]
    table = weft.randn(4, 2)
    fixed = nn.Embedding.from_pretrained(table)
    assert not fixed.weight.requires_grad and weft.equal(fixed(weft.tensor([2]))[0], table[2])
    with pytest.raises(IndexError):
        m(weft.tensor([7]))


def test_dropout_scales_what_it_keeps_and_follows_the_mode() -> None:
    m, x = nn.Dropout(0.25), weft.ones(4000)
    y = m(x).numpy()
    assert set(np.unique(y)) == {0.0, np.float32(4 / 3)} and 0.2 < (y == 0).mean() < 0.3
    weft.manual_seed(5)
    first = m(x)
    weft.manual_seed(5)
    assert weft.equal(first, m(x))
    assert m.eval()(x) is x or weft.equal(m(x), x)
    with pytest.raises(ValueError, match="between 0 and 1"):
        nn.Dropout(1.5)


def test_pooling() -> None:
    x, xn = randn(1, 2, 6, 6)
    blocks = xn.reshape(1, 2, 3, 2, 3, 2)
    close(nn.MaxPool2d(2)(x), blocks.max((3, 5)))
    close(nn.AvgPool2d(2)(x), blocks.mean((3, 5)))
    close(nn.AdaptiveAvgPool2d(3)(x), blocks.mean((3, 5)))
    close(nn.AdaptiveAvgPool2d((1, 1))(x), xn.mean((2, 3), keepdims=True))
    values, where = nn.MaxPool2d(2, return_indices=True)(x)
    flat = xn.reshape(1, 2, 36)
    close(values, np.take_along_axis(flat, where.numpy().reshape(1, 2, 9), 2).reshape(1, 2, 3, 3))
    assert nn.MaxPool2d(3, stride=1, padding=1)(x).shape == (1, 2, 6, 6)


def test_shapes() -> None:
    x = weft.zeros(2, 3, 4, 5)
    assert nn.Flatten()(x).shape == (2, 60) and nn.Flatten(0, 1)(x).shape == (6, 4, 5)
    assert nn.Unflatten(1, (3, 1))(x).shape == (2, 3, 1, 4, 5)


ACTIVATIONS = {
    nn.ReLU(): lambda x: np.maximum(x, 0),
    nn.Tanh(): np.tanh,
    nn.Sigmoid(): lambda x: 1 / (1 + np.exp(-x)),
    nn.SiLU(): lambda x: x / (1 + np.exp(-x)),
    nn.GELU("tanh"): lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    nn.LeakyReLU(0.2): lambda x: np.where(x > 0, x, 0.2 * x),
    nn.ELU(1.5): lambda x: np.where(x > 0, x, 1.5 * np.expm1(x)),
    nn.Softplus(2.0): lambda x: np.log1p(np.exp(2 * x)) / 2,
    nn.Softmax(-1): lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True),
    nn.LogSoftmax(-1): lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True)),
    nn.Hardtanh(): lambda x: np.clip(x, -1, 1),
    nn.ReLU6(): lambda x: np.clip(x, 0, 6),
    nn.Softsign(): lambda x: x / (1 + np.abs(x)),
    nn.LogSigmoid(): lambda x: -np.log1p(np.exp(-x)),
    nn.Hardswish(): lambda x: x * np.clip(x + 3, 0, 6) / 6,
    nn.Mish(): lambda x: x * np.tanh(np.log1p(np.exp(x))),
    nn.PReLU(): lambda x: np.where(x > 0, x, 0.25 * x),
}


@pytest.mark.parametrize("m", ACTIVATIONS, ids=lambda m: type(m).__name__)
def test_activations(m: nn.Module) -> None:
    x, xn = randn(4, 7)
    close(m(x), ACTIVATIONS[m](xn))


def test_gelu_and_in_place_relu() -> None:
    x, xn = randn(50)
    erf = np.vectorize(__import__("math").erf)
    close(nn.GELU()(x), 0.5 * xn * (1 + erf(xn / np.sqrt(2))))
    out = nn.ReLU(inplace=True)(x)
    assert out is x and (x >= 0).all().item()


def test_losses() -> None:
    (x, xn), (y, yn) = randn(4, 5), randn(4, 5)
    close(nn.MSELoss()(x, y), ((xn - yn) ** 2).mean())
    close(nn.MSELoss(reduction="sum")(x, y), ((xn - yn) ** 2).sum())
    close(nn.L1Loss(reduction="none")(x, y), np.abs(xn - yn))
    log_p = xn - np.log(np.exp(xn).sum(1, keepdims=True))
    target, rows = weft.tensor([1, 0, 4, 2]), np.arange(4)
    picked = -log_p[rows, target.numpy()]
    close(nn.CrossEntropyLoss()(x, target), picked.mean())
    close(nn.NLLLoss()(weft.log_softmax(x, 1) if hasattr(weft, "log_softmax") else x.log_softmax(1), target),
          picked.mean())  # fmt: skip
    weight = weft.tensor([1.0, 2.0, 0.5, 1.0, 3.0])
    w = weight.numpy()[target.numpy()]
    close(nn.CrossEntropyLoss(weight)(x, target), (picked * w).sum() / w.sum())
    skipped = weft.tensor([1, -100, 4, -100])
    close(nn.CrossEntropyLoss()(x, skipped), picked[[0, 2]].mean())
    smooth = 0.9 * picked + 0.1 * -log_p.mean(1)
    close(nn.CrossEntropyLoss(label_smoothing=0.1)(x, target), smooth.mean())
    p = 1 / (1 + np.exp(-yn))
    bce = -(p * np.log(1 / (1 + np.exp(-xn))) + (1 - p) * np.log(1 - 1 / (1 + np.exp(-xn))))
    close(nn.BCEWithLogitsLoss()(x, weft.from_numpy(p).float()), bce.mean())
    close(nn.BCELoss()(x.sigmoid(), weft.from_numpy(p).float()), bce.mean(), 1e-4)
    d = np.abs(xn - yn)
    close(nn.SmoothL1Loss()(x, y), np.where(d < 1, 0.5 * d**2, d - 0.5).mean())
    close(nn.HuberLoss(delta=2.0)(x, y), np.where(d < 2, 0.5 * d**2, 2 * (d - 1)).mean())
    assert list(nn.CrossEntropyLoss(weight).state_dict()) == ["weight"]


def test_attention_of_both_kinds_agree() -> None:
    m = nn.MultiheadAttention(8, 2, batch_first=True)
    x = weft.randn(3, 5, 8)
    mask = weft.ones(5, 5).triu(1).bool()
    out, weights = m(x, x, x, attn_mask=mask)
    fast, none = m(x, x, x, attn_mask=mask, need_weights=False, is_causal=True)
    assert none is None and weft.allclose(out, fast, atol=1e-6)
    assert weights.shape == (3, 5, 5) and weft.allclose(weights.sum(-1), weft.ones(3, 5))
    assert weights[:, 0, 1:].abs().sum().item() == 0
    swapped, _ = nn.MultiheadAttention(8, 2)(x, x, x)
    assert swapped.shape == (3, 5, 8)
    alone, w = m(x[0], x[0], x[0], average_attn_weights=False)
    assert alone.shape == (5, 8) and w.shape == (2, 5, 5)
    padding = weft.tensor([[False] * 4 + [True]] * 3)
    _, w = m(x, x, x, key_padding_mask=padding)
    assert w[..., 4].abs().sum().item() == 0


def test_initialisation() -> None:
    w = weft.empty(400, 300)
    for fn, std in (
        (init.xavier_uniform_, (2 / 700) ** 0.5),
        (init.xavier_normal_, (2 / 700) ** 0.5),
        (lambda t: init.kaiming_normal_(t, nonlinearity="relu"), (2 / 300) ** 0.5),
        (lambda t: init.kaiming_uniform_(t, mode="fan_out", nonlinearity="relu"), (2 / 400) ** 0.5),
        (lambda t: init.normal_(t, 1.0, 0.5), 0.5),
    ):
        assert fn(w) is w
        assert abs(w.numpy().std() / std - 1) < 0.02
    t = init.trunc_normal_(w, std=2.0, a=-1.0, b=3.0).numpy()
    assert t.min() >= -1.0 and t.max() <= 3.0
    q = init.orthogonal_(weft.empty(5, 8)).numpy()
    np.testing.assert_allclose(q @ q.T, np.eye(5), atol=1e-5)
    assert init.eye_(weft.empty(2, 3)).tolist() == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    assert init.calculate_gain("leaky_relu", 1.0) == 1.0
    p = nn.Parameter(weft.zeros(2))
    assert init.constant_(p, 3.0) is p and p.is_leaf and p.tolist() == [3.0, 3.0]
    with pytest.raises(ValueError, match="fewer than 2 dimensions"):
        init.xavier_uniform_(weft.empty(3))
    with pytest.raises(ValueError, match="Unsupported nonlinearity"):
        init.calculate_gain("nope")


def test_gradient_clipping_and_vectors() -> None:
    ps = [nn.Parameter(weft.ones(3)), nn.Parameter(weft.ones(2, 2))]
    ps[0].grad, ps[1].grad = weft.full((3,), 3.0), weft.full((2, 2), -4.0)
    norm = (3 * 9 + 4 * 16) ** 0.5
    assert abs(nn.utils.clip_grad_norm_(ps, 1.0).item() - norm) < 1e-4
    close(ps[0].grad, np.full(3, 3 / norm))
    nn.utils.clip_grad_value_(ps, 0.1)
    close(ps[1].grad, np.full((2, 2), -0.1))
    vector = nn.utils.parameters_to_vector(ps)
    assert vector.shape == (7,)
    nn.utils.vector_to_parameters(weft.arange(7.0), ps)
    assert ps[1].tolist() == [[3.0, 4.0], [5.0, 6.0]] and ps[1].requires_grad
    ps[0].grad = weft.full((3,), float("inf"))
    with pytest.raises(RuntimeError, match="non-finite"):
        nn.utils.clip_grad_norm_(ps, 1.0, error_if_nonfinite=True)
