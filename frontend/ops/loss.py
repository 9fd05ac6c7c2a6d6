"""Losses of ``weft.nn.functional``."""

from __future__ import annotations

import math
from typing import Any

from weft.casting import exact, exact_on_cpu, refused_on_gpu
from weft.composite import composite, composite_of_results
from weft.dispatch import apply, at_hand
from weft.ir import prims as P
from weft.ir import types as T
from weft.ops import math as M
from weft.ops.activation import log_softmax as _log_softmax
from weft.ops.common import convert, shape_of
from weft.ops.math import where
from weft.ops.neural import cosine_similarity, logsigmoid, pairwise_distance
from weft.tensor import Tensor


def _reduced(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return loss.mean()
    if reduction == "sum":
        return loss.sum()
    if reduction == "none":
        return loss
    raise ValueError(f"{reduction} is not a valid value for reduction")


def _reduction(reduction: str, size_average: Any, reduce: Any) -> str:
    """The names of reductions that older scripts spell as two flags."""
    if size_average is None and reduce is None:
        return reduction
    if reduce is False:
        return "none"
    return "sum" if size_average is False else "mean"


@exact
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """The cross entropy of logits [N, C, ...] (or [C]) with labels [N, ...] or probabilities [N, C, ...].

    Labels that equal ``ignore_index`` count for nothing; ``weight`` [C] weights the classes.
    """
    reduction = _reduction(reduction, size_average, reduce)
    if not 0.0 <= label_smoothing <= 1.0:
        raise RuntimeError(f"label_smoothing must be between 0.0 and 1.0. Got: {label_smoothing}")
    axis = 1 if input.ndim > 1 else 0
    if not target.dtype.is_floating_point:
        _check_labels(input, target, axis)
        _check_range(target, shape_of(input)[axis], ignore_index)
    return _cross_entropy(input, target, weight, axis, ignore_index, reduction, label_smoothing)


@composite_of_results
def _cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    axis: int,
    ignore_index: int,
    reduction: str,
    smoothing: float,
) -> Tensor:
    logp = _log_softmax(input, axis)
    if target.dtype.is_floating_point:
        return _soft_cross_entropy(logp, target, weight, axis, reduction, smoothing)
    return _label_loss(logp, target, weight, axis, ignore_index, reduction, smoothing)


def _class_weights(weight: Tensor, logp: Tensor, axis: int) -> Tensor:
    return weight.reshape([-1 if i == axis else 1 for i in range(logp.ndim)])


def _soft_cross_entropy(
    logp: Tensor, target: Tensor, weight: Tensor | None, axis: int, reduction: str, smoothing: float
) -> Tensor:
    if shape_of(target) != shape_of(logp):
        raise RuntimeError(
            f"Expected input shape {list(logp.shape)} and target shape {list(target.shape)} to be equal for "
            "class probabilities"
        )
    classes = shape_of(logp)[axis]
    t = target * (1 - smoothing) + smoothing / classes if smoothing else target
    terms = logp * t if weight is None else logp * t * _class_weights(weight, logp, axis)
    loss = -terms.sum(axis)
    if reduction == "mean":
        return loss.sum() / max(loss.numel(), 1)
    return _reduced(loss, reduction)


def _check_labels(logp: Tensor, target: Tensor, axis: int) -> None:
    s = shape_of(logp)
    want = s[:axis] + s[axis + 1 :]
    if shape_of(target) == want:
        return
    if s and target.ndim and s[0] != shape_of(target)[0]:
        raise ValueError(
            f"Expected input batch_size ({s[0]}) to match target batch_size ({shape_of(target)[0]})."
        )
    raise RuntimeError(f"Expected target size {list(want)}, got {list(target.shape)}")


@composite
def _label_loss(
    logp: Tensor,
    target: Tensor,
    weight: Tensor | None,
    axis: int,
    ignore_index: int,
    reduction: str,
    smoothing: float,
) -> Tensor:
    labels = convert(target, T.i64)
    ignored = labels == ignore_index
    safe = where(ignored, 0, labels)
    index = safe.unsqueeze(axis)
    picked = apply(P.take_along_p, logp, index, axis=axis).squeeze(axis)
    w = (
        None
        if weight is None
        else apply(P.gather_p, weight, apply(P.reshape_p, safe, shape=(*shape_of(safe), 1)), axes=(0,))
    )
    loss = -(picked if w is None else picked * w)
    if smoothing:
        each = logp if weight is None else logp * _class_weights(weight, logp, axis)
        smooth = -each.sum(axis) / shape_of(logp)[axis]
        loss = loss * (1 - smoothing) + smooth * smoothing
    loss = where(ignored, 0.0, loss)
    if reduction != "mean":
        return _reduced(loss, reduction)
    counted = convert(~ignored, logp.dtype)
    return loss.sum() / (counted if w is None else counted * w).sum()


def _check_range(target: Tensor, classes: int, ignore_index: int) -> None:
    """Labels out of range are an error where their values are at hand."""
    a = at_hand(target)
    if a is None:
        return
    bad = ((a < 0) | (a >= classes)) & (a != ignore_index)
    if bad.any():
        raise IndexError(f"Target {a[bad].flat[0]} is out of bounds.")


def _check_probabilities(name: str, x: Tensor) -> None:
    """Numbers outside [0, 1], and NaN, are an error where they are at hand."""
    a = at_hand(x)
    if a is not None and a.size and not (a.min() >= 0 and a.max() <= 1):
        raise RuntimeError(f"all elements of {name} should be between 0 and 1")


@exact
def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
) -> Tensor:
    """-log p of the labels, given log probabilities [N, C, ...]."""
    reduction = _reduction(reduction, size_average, reduce)
    axis = 1 if input.ndim > 1 else 0
    _check_labels(input, target, axis)
    _check_range(target, shape_of(input)[axis], ignore_index)
    return _label_loss(input, target, weight, axis, ignore_index, reduction, 0.0)


def _elementwise_loss(loss: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    if weight is None:
        return _reduced(loss, reduction)
    weighted = loss * weight
    return (
        weighted.sum() / weight.expand_as(loss).sum()
        if reduction == "mean"
        else _reduced(weighted, reduction)
    )


@exact
@composite
def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """(input - target)²."""
    d = input - target
    return _elementwise_loss(d * d, weight, _reduction(reduction, size_average, reduce))


@exact
@composite
def l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """|input - target|."""
    return _elementwise_loss((input - target).abs(), weight, _reduction(reduction, size_average, reduce))


@exact
@composite
def smooth_l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    beta: float = 1.0,
) -> Tensor:
    """Quadratic within ``beta``, linear outside."""
    if beta < 0:
        raise ValueError("smooth_l1_loss does not support negative values for beta.")
    if beta == 0:
        return l1_loss(input, target, size_average, reduce, reduction)
    a = (input - target).abs()
    loss = where(a < beta, a * a * (0.5 / beta), a - 0.5 * beta)
    return _reduced(loss, _reduction(reduction, size_average, reduce))


@exact
@composite
def huber_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0, weight: Tensor | None = None
) -> Tensor:
    """Quadratic within ``delta``, linear outside, with slope ``delta``."""
    a = (input - target).abs()
    return _elementwise_loss(where(a < delta, 0.5 * a * a, delta * (a - 0.5 * delta)), weight, reduction)


@exact_on_cpu
@refused_on_gpu(
    "torch.nn.functional.binary_cross_entropy and torch.nn.BCELoss are unsafe to autocast.\n"
    "Many models use a sigmoid layer right before the binary cross entropy layer.\nIn this case, combine the "
    "two layers using torch.nn.functional.binary_cross_entropy_with_logits\nor torch.nn.BCEWithLogitsLoss."
)
def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
) -> Tensor:
    """-(t log p + (1 - t) log(1 - p)), logarithms not below -100. RuntimeError for numbers outside [0, 1],
    where they are at hand.
    """
    if shape_of(input) != shape_of(target):
        raise ValueError(
            f"Using a target size ({target.shape}) that is different to the input size ({input.shape}) is "
            "deprecated. Please ensure they have the same size."
        )
    _check_probabilities("input", input)
    _check_probabilities("target", target)
    return _binary_cross_entropy(input, target, weight, _reduction(reduction, size_average, reduce))


@composite
def _binary_cross_entropy(input: Tensor, target: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    loss = -(target * input.log().clamp_min(-100.0) + (1.0 - target) * (1.0 - input).log().clamp_min(-100.0))
    return _reduced(loss if weight is None else loss * weight, reduction)


@exact
@composite
def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """Binary cross entropy of sigmoid(input), without overflow."""
    if shape_of(input) != shape_of(target):
        raise ValueError(f"Target size ({target.shape}) must be the same as input size ({input.shape})")
    if pos_weight is None:
        loss = (1.0 - target) * input - logsigmoid(input)
    else:
        loss = (1.0 - target) * input - ((pos_weight - 1.0) * target + 1.0) * logsigmoid(input)
    return _reduced(loss if weight is None else loss * weight, _reduction(reduction, size_average, reduce))


@exact
@composite
def kl_div(
    input: Tensor,
    target: Tensor,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> Tensor:
    """target (log target - input), input being log probabilities."""
    loss = target.exp() * (target - input) if log_target else M.xlogy(target, target) - target * input
    if reduction == "batchmean":
        return loss.sum() / shape_of(input)[0]
    return _reduced(loss, _reduction(reduction, size_average, reduce))


@exact
@composite
def poisson_nll_loss(
    input: Tensor,
    target: Tensor,
    log_input: bool = True,
    full: bool = False,
    size_average: Any = None,
    eps: float = 1e-8,
    reduce: Any = None,
    reduction: str = "mean",
) -> Tensor:
    """The negative log likelihood of Poisson counts."""
    loss = input.exp() - target * input if log_input else input - target * (input + eps).log()
    if full:
        stirling = target * target.log() - target + 0.5 * (2 * math.pi * target).log()
        loss = loss + where(target > 1, stirling, 0.0)
    return _reduced(loss, _reduction(reduction, size_average, reduce))


def gaussian_nll_loss(
    input: Tensor, target: Tensor, var: Any, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
) -> Tensor:
    """The negative log likelihood of normal values of the variance given."""
    v = (var if isinstance(var, Tensor) else input.new_full((), var)).clamp(min=eps)
    loss = 0.5 * (v.log() + (input - target) ** 2 / v)
    return _reduced(loss + 0.5 * math.log(2 * math.pi) if full else loss, reduction)


@exact
@composite
def hinge_embedding_loss(
    input: Tensor,
    target: Tensor,
    margin: float = 1.0,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
) -> Tensor:
    loss = where(target == 1, input, 0.0) + where(target == -1, (margin - input).clamp_min(0.0), 0.0)
    return _reduced(loss, _reduction(reduction, size_average, reduce))


@exact
@composite
def soft_margin_loss(
    input: Tensor, target: Tensor, size_average: Any = None, reduce: Any = None, reduction: str = "mean"
) -> Tensor:
    return _reduced((-target * input).exp().log1p(), _reduction(reduction, size_average, reduce))


@exact
@composite
def margin_ranking_loss(
    input1: Tensor,
    input2: Tensor,
    target: Tensor,
    margin: float = 0,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
) -> Tensor:
    loss = (-target * (input1 - input2) + margin).clamp_min(0.0)
    return _reduced(loss, _reduction(reduction, size_average, reduce))


@exact
@composite
def triplet_margin_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float = 1.0,
    p: float = 2,
    eps: float = 1e-6,
    swap: bool = False,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
) -> Tensor:
    near, far = pairwise_distance(anchor, positive, p, eps), pairwise_distance(anchor, negative, p, eps)
    if swap:
        far = M.minimum(far, pairwise_distance(positive, negative, p, eps))
    return _reduced((margin + near - far).clamp_min(0.0), _reduction(reduction, size_average, reduce))


@exact
@composite
def cosine_embedding_loss(
    input1: Tensor,
    input2: Tensor,
    target: Tensor,
    margin: float = 0,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
) -> Tensor:
    c = cosine_similarity(input1, input2, -1)
    loss = where(target == 1, 1.0 - c, (c - margin).clamp_min(0.0))
    return _reduced(loss, _reduction(reduction, size_average, reduce))
