"""``weft.nn.functional`` against installed PyTorch: values, gradients and errors."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from tests.frontend.parity_harness import check

pytest.importorskip("torch")
pytestmark = pytest.mark.parity

_rs = np.random.RandomState(0)
X = _rs.randn(2, 4, 9, 11).astype("f")
X1 = _rs.randn(2, 4, 10).astype("f")
W = _rs.randn(6, 2, 3, 3).astype("f")
BIAS = _rs.randn(6).astype("f")
M = _rs.randn(5, 7).astype("f")
P1, P2 = _rs.rand(5, 7).astype("f"), _rs.rand(5, 7).astype("f")
LABELS = np.array([1, 2, -100, 6, 0])
CLASS = _rs.rand(7).astype("f")


def names(text: str) -> list[str]:
    return text.split()


def f(name: str, *args: Any, tol: float = 1e-4, **kwargs: Any) -> None:
    """``lib.nn.functional.<name>`` of both libraries."""
    check(name, *args, tol=tol, fn=lambda lib, *a, **k: getattr(lib.nn.functional, name)(*a, **k), **kwargs)


ACTIVATIONS = names("""
    relu relu6 gelu silu mish softplus elu selu celu leaky_relu hardsigmoid hardswish hardshrink softshrink
    tanhshrink softsign logsigmoid hardtanh sigmoid tanh
""")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str) -> None:
    f(name, X)


def test_activations_with_arguments() -> None:
    f("gelu", X, approximate="tanh")
    f("softplus", X, beta=2, threshold=1)
    f("elu", X, 0.5)
    f("leaky_relu", X, 0.2)
    f("prelu", X, _rs.rand(4).astype("f"))
    f("threshold", X, 0.1, 20.0)
    f("glu", X, 1)
    f("glu", M)
    for fn in ("softmax", "log_softmax", "softmin"):
        f(fn, X, dim=1)
    f("normalize", M)
    f("cosine_similarity", M, P1)
    f("pairwise_distance", M, P1)


def test_extreme_arguments() -> None:
    big = np.array([-1e4, -200.0, -50, 0, 50, 200, 1e4], "f")
    for name in ("sigmoid", "softplus", "logsigmoid", "silu", "gelu", "mish", "elu", "tanh"):
        f(name, big)


CONV: list[dict[str, Any]] = [
    {}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": (1, 2)},
    {"padding": "same"}, {"padding": "valid"},
]  # fmt: skip


@pytest.mark.parametrize("options", CONV, ids=str)
def test_conv2d(options: dict[str, Any]) -> None:
    f("conv2d", X, W, BIAS, groups=2, tol=1e-3, **options)


def test_other_convolutions() -> None:
    f("conv1d", X1, _rs.randn(3, 4, 3).astype("f"), None, 2, 1, tol=1e-3)
    f("conv3d", _rs.randn(1, 2, 4, 5, 6).astype("f"), _rs.randn(3, 2, 2, 3, 2).astype("f"), tol=1e-3)
    f("conv2d", X[0], W, BIAS, groups=2, tol=1e-3)
    f("conv_transpose2d", X, _rs.randn(4, 3, 3, 3).astype("f"), None, 2, 1, 1, 2, tol=1e-3)
    bias = _rs.randn(2).astype("f")
    f("conv_transpose1d", X1, _rs.randn(4, 2, 3).astype("f"), bias, 3, tol=1e-3)
    f("conv_transpose2d", X, _rs.randn(4, 3, 3, 3).astype("f"), None, 1, 1, 0, 1, 2, tol=1e-3)
    f("conv2d", X, W)
    f("conv2d", X, W, BIAS[:3], groups=2)
    f("conv2d", X[:, :, :2], W, None, groups=2)


POOLS: list[dict[str, Any]] = [
    {"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
    {"kernel_size": (2, 3), "stride": (1, 2)},
]  # fmt: skip


@pytest.mark.parametrize("options", POOLS, ids=str)
def test_pooling(options: dict[str, Any]) -> None:
    f("max_pool2d", X, **options)
    f("max_pool2d", X, return_indices=True, **options)
    f("avg_pool2d", X, **options)
    f("avg_pool2d", X, count_include_pad=False, **options)


def test_more_pooling() -> None:
    f("max_pool2d", X, 3, 1, 0, 2)
    f("avg_pool2d", X, 2, divisor_override=3)
    f("max_pool1d", X1, 3)
    f("avg_pool1d", X1, 3, 2)
    f("max_pool3d", _rs.randn(1, 2, 4, 4, 4).astype("f"), 2)
    for size in (1, (3, 5), (4, None), (9, 11)):
        f("adaptive_avg_pool2d", X, size)
        f("adaptive_max_pool2d", X, size)
    f("adaptive_avg_pool1d", X1, 3)
    f("lp_pool2d", np.abs(X), 2, 3)
    f("max_pool2d", X, 20)


def test_padding_and_resampling() -> None:
    for mode in ("constant", "reflect", "replicate", "circular"):
        f("pad", X, (1, 2, 2, 1), mode=mode)
    f("pad", X, (-1, 2))
    f("pad", X, (1, 1), value=3.0)
    f("pad", X, (9, 9, 9, 9), mode="reflect")
    for mode in ("nearest", "bilinear", "bicubic", "area", "nearest-exact"):
        f("interpolate", X, scale_factor=1.7, mode=mode)
        f("interpolate", X, size=(5, 20), mode=mode)
    f("interpolate", X, size=(5, 20), mode="bilinear", align_corners=True)
    f("interpolate", X1, scale_factor=2, mode="linear")
    f("unfold", X, 3, padding=1, stride=2)
    f("fold", _rs.randn(2, 4 * 9, 30).astype("f"), (9, 11), 3, padding=1, stride=2)
    f("pixel_shuffle", X, 2)
    f("pixel_unshuffle", X[:, :, :8, :10].copy(), 2)


def weighted(name: str, weight: Any, lib: Any, *args: Any, **kwargs: Any) -> Any:
    """A loss with class weights, which have no gradient."""
    w = None if weight is None else lib.from_numpy(weight.copy())
    return getattr(lib.nn.functional, name)(*args, w, **kwargs)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_losses(reduction: str) -> None:
    for smoothing in (0.0, 0.1):
        for weight in (None, CLASS):
            weigh = partial(weighted, "cross_entropy", weight, reduction=reduction, label_smoothing=smoothing)
            check("cross_entropy", M, LABELS, fn=weigh)
            check("cross_entropy", M, P1, fn=weigh)
    check("nll_loss", M, LABELS, fn=partial(weighted, "nll_loss", CLASS, reduction=reduction))
    f("nll_loss", M, LABELS, ignore_index=2, reduction=reduction)
    for name in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy",
                 "poisson_nll_loss",
                 "binary_cross_entropy_with_logits", "kl_div"):  # fmt: skip
        f(name, P1, P2, reduction=reduction)
    f("kl_div", P1, P2, reduction=reduction, log_target=True)
    check("bce", M, P1, fn=partial(weighted, "binary_cross_entropy_with_logits", CLASS, reduction=reduction))
    f("smooth_l1_loss", M, P1, reduction=reduction, beta=0.3)
    f("triplet_margin_loss", M, P1, P2, reduction=reduction)
    f("margin_ranking_loss", M, P1, np.sign(P2 - 0.5), margin=0.1, reduction=reduction)


def test_loss_shapes_and_errors() -> None:
    f("cross_entropy", _rs.randn(2, 3, 4, 5).astype("f"), _rs.randint(0, 3, (2, 4, 5)))
    f("cross_entropy", M[0], np.array(3))
    f("cross_entropy", M, np.array([1, 2, 3]))
    f("cross_entropy", M, np.array([1, 2, 3, 9, 0]))
    f("cross_entropy", M, LABELS, reduction="other")
    f("binary_cross_entropy", P1, P2[0])


def test_normalisation() -> None:
    scale = _rs.rand(11).astype("f")
    channel = _rs.rand(4).astype("f")
    f("layer_norm", X, (11,), scale, scale)
    f("layer_norm", X, (9, 11))
    f("layer_norm", X, (4,))
    f("rms_norm", X, (11,), scale)
    f("group_norm", X, 2, channel, channel)
    f("group_norm", X, 3)
    f("instance_norm", X)
    f("local_response_norm", X, 3)


def test_batch_norm_updates_running_statistics() -> None:
    def run(lib: Any, x: Any, w: Any, training: bool) -> Any:
        mean, var = lib.zeros(4), lib.ones(4)
        y = lib.nn.functional.batch_norm(x, mean, var, w, w, training, 0.3)
        return y, mean, var

    for training in (True, False):
        check("batch_norm", X, _rs.rand(4).astype("f"), training, fn=run, tol=1e-4)
    check("batch_norm", X[:1, :, :1, :1].copy(), _rs.rand(4).astype("f"), True, fn=run)


def test_linear_embedding_attention() -> None:
    f("linear", M, P1, _rs.randn(5).astype("f"))
    f("linear", M[0], P1)
    f("linear", M, P1[:, :3].copy())
    f("embedding", np.array([[0, 3], [2, 2]]), M, padding_idx=2)
    f("embedding", np.array([7]), M)
    f("bilinear", M, P1, _rs.randn(3, 7, 7).astype("f"), tol=1e-3)
    q, k, v = (_rs.randn(2, 3, 5, 4).astype("f") for _ in range(3))
    f("scaled_dot_product_attention", q, k, v)
    f("scaled_dot_product_attention", q, k, v, is_causal=True)
    f("scaled_dot_product_attention", q, k, v, scale=0.7)
    mask = _rs.rand(5, 5) > 0.3
    mask[:, 0] = True
    f("scaled_dot_product_attention", q, k, v, mask)
    f("scaled_dot_product_attention", q, k, v, _rs.randn(5, 5).astype("f"))
    f("one_hot", _rs.randint(0, 4, (2, 3)), 4)


def test_half_precision() -> None:
    h = M.astype("e")
    f("layer_norm", h, (7,), tol=5e-3)
    f("softmax", h, dim=1, tol=5e-3)
    f("gelu", h, tol=5e-3)
