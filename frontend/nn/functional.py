"""Functions of ``weft.nn.functional``: activations, losses, normalisation, attention, dropout.

Each is a composition of tensor operations, written once: capture fuses it. Convolution and pooling are in
:mod:`weft.ops.window`, padding in :mod:`weft.ops.padding`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from weft.autograd.grad_mode import no_grad
from weft.dispatch import apply
from weft.ir import prims as P
from weft.ir import types as T
from weft.ops import math as M
from weft.ops import reduce as R
from weft.ops.activation import log_softmax as _log_softmax
from weft.ops.activation import softmax as _softmax
from weft.ops.common import convert, shape_of
from weft.ops.index import one_hot
from weft.ops.inplace import inplace as _inplace
from weft.ops.linalg import matmul
from weft.ops.math import where
from weft.ops.padding import pad
from weft.ops.shape import unfold as _unfold
from weft.ops.window import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
    fold,
    interpolate,
    lp_pool1d,
    lp_pool2d,
    max_pool1d,
    max_pool2d,
    max_pool3d,
    pixel_shuffle,
    pixel_unshuffle,
    unfold,
)
from weft.random import uniform
from weft.tensor import Tensor

upsample = interpolate

# -- activations --------------------------------------------------------------------------------------------


def _maybe_inplace(fn: Any, input: Tensor, inplace: bool, *args: Any) -> Tensor:
    return _inplace(fn)(input, *args) if inplace else fn(input, *args)


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """max(x, 0)."""
    return _maybe_inplace(M.relu, input, inplace)


def relu_(input: Tensor) -> Tensor:
    return relu(input, True)


def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """min(max(x, 0), 6)."""
    return hardtanh(input, 0.0, 6.0, inplace)


def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    """x limited to [min_val, max_val]."""
    if min_val > max_val:
        raise ValueError("min_val cannot be greater than max_val")
    return _maybe_inplace(M.clamp, input, inplace, min_val, max_val)


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """x times the normal distribution function of x, or its tanh approximation. Source: Hendrycks & Gimpel
    2016.
    """
    if approximate == "none":
        return input * 0.5 * (1.0 + (input * math.sqrt(0.5)).erf())
    if approximate != "tanh":
        raise RuntimeError("approximate argument must be either none or tanh.")
    inner = math.sqrt(2 / math.pi) * (input + 0.044715 * (input * input * input))
    return 0.5 * input * (1.0 + inner.tanh())


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """x * sigmoid(x)."""
    return _maybe_inplace(lambda x: x * M.sigmoid(x), input, inplace)


def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """x * tanh(softplus(x))."""
    return _maybe_inplace(lambda x: x * softplus(x).tanh(), input, inplace)


def softplus(input: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    """log(1 + exp(beta x)) / beta; x itself where beta x is above the threshold."""
    scaled = input if beta == 1 else input * beta
    large = scaled > threshold
    soft = where(large, 0.0, scaled).exp().log1p()
    return where(large, input, soft if beta == 1 else soft / beta)


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """x where positive, else alpha (exp(x) - 1)."""
    return _maybe_inplace(lambda x: _elu(x, alpha, 1.0), input, inplace)


def _elu(x: Tensor, alpha: float, scale: float) -> Tensor:
    positive = x > 0
    low = where(positive, 0.0, x).expm1() * (alpha * scale)
    return where(positive, x if scale == 1.0 else x * scale, low)


def selu(input: Tensor, inplace: bool = False) -> Tensor:
    """The scaled ELU of Klambauer et al. 2017."""
    return _maybe_inplace(lambda x: _elu(x, 1.6732632423543772, 1.0507009873554805), input, inplace)


def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """x where positive, else alpha (exp(x / alpha) - 1)."""
    return _maybe_inplace(
        lambda x: where(x > 0, x, (where(x > 0, 0.0, x) / alpha).expm1() * alpha), input, inplace
    )


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """x where positive, else negative_slope * x."""
    return _maybe_inplace(lambda x: where(x > 0, x, x * negative_slope), input, inplace)


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """As leaky_relu, with a slope of each channel (dimension 1)."""
    if weight.numel() > 1 and input.ndim > 1:
        weight = weight.reshape([-1 if i == 1 else 1 for i in range(input.ndim)])
    return where(input > 0, input, input * weight)


def threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
    """x where above the threshold, else ``value``."""
    return _maybe_inplace(lambda x: where(x > threshold, x, value), input, inplace)


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """x / 6 + 1/2 limited to [0, 1]."""
    return _maybe_inplace(lambda x: M.clamp(x + 3.0, 0.0, 6.0) / 6.0, input, inplace)


def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """x * hardsigmoid(x)."""
    return _maybe_inplace(lambda x: x * M.clamp(x + 3.0, 0.0, 6.0) / 6.0, input, inplace)


def hardshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    return where(input.abs() > lambd, input, 0.0)


def softshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    return where(input > lambd, input - lambd, where(input < -lambd, input + lambd, 0.0))


def tanhshrink(input: Tensor) -> Tensor:
    return input - input.tanh()


def softsign(input: Tensor) -> Tensor:
    return input / (1.0 + input.abs())


def logsigmoid(input: Tensor) -> Tensor:
    """log(sigmoid(x)), without overflow."""
    return M.clamp(input, max=0.0) - (-input.abs()).exp().log1p()


def sigmoid(input: Tensor) -> Tensor:
    return M.sigmoid(input)


def tanh(input: Tensor) -> Tensor:
    return input.tanh()


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """a * sigmoid(b) of the two halves a and b along ``dim``."""
    if input.shape[dim] % 2:
        raise RuntimeError(f"Halving dimension must be even, but dimension {dim} is size {input.shape[dim]}")
    a, b = input.chunk(2, dim)
    return a * M.sigmoid(b)


def softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
    """exp(x) / sum(exp(x)) along ``dim``."""
    return _softmax(input, _implicit_dim(input, dim), dtype)


def log_softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
    """log(softmax(x)) along ``dim``."""
    return _log_softmax(input, _implicit_dim(input, dim), dtype)


def softmin(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
    return softmax(-input, dim, dtype=dtype)


def _implicit_dim(x: Tensor, dim: int | None) -> int:
    return dim if dim is not None else (0 if x.ndim in (0, 1, 3) else 1)


def gumbel_softmax(
    logits: Tensor, tau: float = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1
) -> Tensor:
    """A sample of the Gumbel-softmax distribution; ``hard`` gives one-hot values with the soft gradient."""
    with no_grad():
        noise = -(-(1.0 - uniform(shape_of(logits), logits.dtype, None)).log()).log()
    soft = softmax((logits + noise) / tau, dim)
    if not hard:
        return soft
    index = soft.argmax(dim, keepdim=True)
    sharp = (logits.detach() * 0).scatter(dim, index, 1.0)
    return sharp - soft.detach() + soft


def normalize(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Any = None) -> Tensor:
    """x divided by its p-norm along ``dim`` (at least eps)."""
    return input / R.norm(input, p, dim, True).clamp_min(eps)


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """The cosine of the angle between vectors along ``dim``."""
    dot = (x1 * x2).sum(dim)
    a, b = (x1 * x1).sum(dim).sqrt().clamp_min(eps), (x2 * x2).sum(dim).sqrt().clamp_min(eps)
    return dot / (a * b)


def pairwise_distance(
    x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Tensor:
    return R.norm(x1 - x2 + eps, p, -1, keepdim)


# -- linear, embedding --------------------------------------------------------------------------------------


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W' + b. input [..., in], weight [out, in] (or [in]), bias [out]."""
    if weight.ndim == 1:
        out = matmul(input, weight)
        return out if bias is None else out + bias
    k, n = input.ndim, shape_of(weight)
    if shape_of(input)[-1] != n[1]:
        rows = math.prod(shape_of(input)[:-1])
        raise RuntimeError(
            f"mat1 and mat2 shapes cannot be multiplied ({rows}x{shape_of(input)[-1]} and {n[1]}x{n[0]})"
        )
    if input.dtype is not weight.dtype:
        names = {"float32": "float", "float64": "double", "int64": "long"}
        a, b = (names.get(t.dtype.long_name, t.dtype.long_name) for t in (input, weight))
        raise RuntimeError(
            f"mat1 and mat2 must have the same dtype, but got {a.capitalize()} and {b.capitalize()}"
        )
    out = apply(P.dot_general_p, input, weight, contract=((k - 1,), (1,)), batch=((), ()))
    return out if bias is None else out + bias


def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x1' W x2 + b for each output. weight [out, in1, in2]."""
    from weft.ops.linalg import einsum

    out = einsum("...i,oij,...j->...o", input1, weight, input2)
    return out if bias is None else out + bias


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Rows of ``weight`` at the indices ``input``; the row ``padding_idx`` gets no gradient."""
    if not input.dtype.is_integer:
        raise RuntimeError(
            "Expected tensor for argument #1 'indices' to have one of the following scalar types: Long, "
            f"Int; but got weft.{input.dtype.long_name} instead (while checking arguments for embedding)"
        )
    if max_norm is not None:
        _renormalise(input, weight, max_norm, norm_type)
    idx = convert(input, T.i64)
    out = apply(P.gather_p, weight, apply(P.reshape_p, idx, shape=(*shape_of(idx), 1)), axes=(0,))
    if padding_idx is not None and weight.requires_grad:
        pad_row = padding_idx if padding_idx >= 0 else padding_idx + shape_of(weight)[0]
        out = where((idx == pad_row).unsqueeze(-1), out.detach(), out)
    return out


def _renormalise(index: Tensor, weight: Tensor, max_norm: float, p: float) -> None:
    with no_grad():
        n = R.norm(weight, p, 1, True)
        used = one_hot(index.reshape(-1), shape_of(weight)[0]).sum(0).reshape(-1, 1) > 0
        weight.copy_(where(used & (n > max_norm), weight * (max_norm / (n + 1e-7)), weight))


# -- dropout ------------------------------------------------------------------------------------------------


def _dropped(input: Tensor, p: float, shape: tuple[int, ...]) -> Tensor:
    if p >= 1:
        return input * 0.0
    with no_grad():
        wide = T.f32 if input.dtype.itemsize < 8 else T.f64
        keep = uniform(shape, T.f32, None) >= p
        scale = convert(convert(keep, wide) * (1.0 / (1.0 - p)), input.dtype)
    return input * scale


def _check_p(p: float) -> None:
    if p < 0.0 or p > 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Elements zeroed with probability p, the others scaled by 1 / (1 - p)."""
    _check_p(p)
    if not training or p == 0.0:
        return input
    return _maybe_inplace(lambda x: _dropped(x, p, shape_of(x)), input, inplace)


def _channel_dropout(input: Tensor, p: float, training: bool, inplace: bool) -> Tensor:
    _check_p(p)
    if not training or p == 0.0:
        return input
    return _maybe_inplace(lambda x: _dropped(x, p, shape_of(x)[:2] + (1,) * (x.ndim - 2)), input, inplace)


def dropout1d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Whole channels zeroed."""
    if input.ndim == 2:
        return _channel_dropout(input.unsqueeze(0), p, training, inplace).squeeze(0)
    return _channel_dropout(input, p, training, inplace)


def dropout2d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Whole channels zeroed."""
    return _channel_dropout(input, p, training, inplace)


dropout3d = feature_dropout = dropout2d


def alpha_dropout(input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Tensor:
    """Dropout that keeps mean and variance of SELU activations. Source: Klambauer et al. 2017."""
    _check_p(p)
    if not training or p == 0.0:
        return input
    low = -1.7580993408473766
    a = (1.0 - p + low * low * p * (1.0 - p)) ** -0.5 if p < 1 else 0.0
    with no_grad():
        keep = uniform(shape_of(input), T.f32, None) >= p
    return _maybe_inplace(lambda x: where(keep, x, low) * a - low * p * a, input, inplace)


# -- normalisation ------------------------------------------------------------------------------------------


def _standardised(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    """(x - mean) / sqrt(var + eps) over ``axes``; half precision is computed in float32."""
    n = math.prod(shape_of(x)[a] for a in axes)
    wide = convert(x, T.f32) if x.dtype in (T.f16, T.bf16) else x
    mean = R.sum(wide, axes, True) / n
    centred = wide - mean
    var = R.sum(centred * centred, axes, True) / n
    return centred * (var + eps).rsqrt()


def _scaled(y: Tensor, weight: Tensor | None, bias: Tensor | None, dtype: Any) -> Tensor:
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    return convert(y, dtype)


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Standardised over the trailing ``normalized_shape``, then scaled and shifted."""
    shape = tuple(normalized_shape)
    _check_trailing("layer_norm", input, shape)
    axes = tuple(range(input.ndim - len(shape), input.ndim))
    return _scaled(_standardised(input, axes, eps), weight, bias, input.dtype)


def _check_trailing(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    if shape_of(x)[x.ndim - len(shape) :] != shape:
        raise RuntimeError(
            f"Given normalized_shape={list(shape)}, expected input with shape "
            f"[*, {', '.join(map(str, shape))}], but got input of size{list(x.shape)}"
        )


def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """x / sqrt(mean(x²) + eps) over the trailing ``normalized_shape``, then scaled. Source: Zhang & Sennrich
    2019.
    """
    from weft.dtypes import finfo

    shape = tuple(normalized_shape)
    _check_trailing("rms_norm", input, shape)
    axes = tuple(range(input.ndim - len(shape), input.ndim))
    x = convert(input, T.f32) if input.dtype in (T.f16, T.bf16) else input
    e = finfo(input.dtype).eps if eps is None else eps
    y = x * (R.mean(x * x, axes, True) + e).rsqrt()
    return _scaled(y, weight, None, input.dtype)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Standardised over groups of channels (dimension 1), then scaled and shifted by channel."""
    s = shape_of(input)
    if s[1] % num_groups:
        raise RuntimeError(
            f"Expected number of channels in input to be divisible by num_groups, but got input of shape "
            f"{list(s)} and num_groups={num_groups}"
        )
    grouped = input.reshape(s[0], num_groups, -1)
    y = _standardised(grouped, (2,), eps).reshape(s)
    return _scaled(y, _per_channel(weight, input.ndim), _per_channel(bias, input.ndim), input.dtype)


def _per_channel(x: Tensor | None, ndim: int) -> Tensor | None:
    return None if x is None else x.reshape([-1 if i == 1 else 1 for i in range(max(ndim, 2))])


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Standardised over the positions of each channel of each sample."""
    if not use_input_stats:
        return batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    y = _standardised(input, tuple(range(2, input.ndim)), eps)
    return _scaled(y, _per_channel(weight, input.ndim), _per_channel(bias, input.ndim), input.dtype)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Standardised by channel over the batch (training; running statistics are updated) or by running
    statistics.

    Source: Ioffe & Szegedy 2015. ValueError for one value per channel in training.
    """
    n = input.ndim
    if not training:
        if running_mean is None or running_var is None:
            raise RuntimeError("Expected running_mean and running_var to be defined in evaluation mode")
        mean, var = _per_channel(running_mean, n), _per_channel(running_var, n)
        assert mean is not None and var is not None
        y = (input - mean) * (var + eps).rsqrt()
        return _scaled(y, _per_channel(weight, n), _per_channel(bias, n), input.dtype)
    axes = tuple(i for i in range(n) if i != 1)
    count = math.prod(shape_of(input)[a] for a in axes)
    if count <= 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {input.shape}"
        )
    x = convert(input, T.f32) if input.dtype in (T.f16, T.bf16) else input
    mean = R.sum(x, axes, True) / count
    centred = x - mean
    var = R.sum(centred * centred, axes, True) / count
    _update_running(running_mean, mean, momentum, 1.0)
    _update_running(running_var, var, momentum, count / (count - 1))
    y = centred * (var + eps).rsqrt()
    return _scaled(y, _per_channel(weight, n), _per_channel(bias, n), input.dtype)


def _update_running(running: Tensor | None, value: Tensor, momentum: float, factor: float) -> None:
    if running is None:
        return
    with no_grad():
        new = convert(value.detach().reshape(-1), running.dtype)
        running.copy_(running * (1.0 - momentum) + new * (momentum * factor))


def local_response_norm(
    input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """x / (k + alpha mean(x²))^beta over ``size`` neighbouring channels."""
    moved = (input * input).movedim(1, -1)
    padded = pad(moved, (size // 2, (size - 1) // 2))
    mean = _unfold(padded, padded.ndim - 1, size, 1).mean(-1).movedim(-1, 1)
    return input / (mean * alpha + k) ** beta


# -- attention ----------------------------------------------------------------------------------------------


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(Q K' * scale + mask) V. query [..., L, E], key [..., S, E], value [..., S, V].

    ``attn_mask``: bool (True takes part) or a number to add. RuntimeError for a mask together with
    ``is_causal``.
    """
    if attn_mask is not None and is_causal:
        raise RuntimeError(
            "_scaled_dot_product_attention: Explicit attn_mask should not be set when is_causal=True"
        )
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = matmul(query * factor, key.transpose(-2, -1))
    if is_causal:
        attn_mask = _causal(query.shape[-2], key.shape[-2])
    if attn_mask is not None:
        scores = where(attn_mask, scores, -math.inf) if attn_mask.dtype is T.bool_ else scores + attn_mask
    weights = _softmax(scores, -1)
    if attn_mask is not None and attn_mask.dtype is T.bool_ and not is_causal:
        weights = where(attn_mask.any(-1, keepdim=True), weights, 0.0)
    if dropout_p > 0.0:
        weights = dropout(weights, dropout_p)
    return matmul(weights, value)


def _causal(rows: int, cols: int) -> Tensor:
    """True on and below the diagonal."""
    i = apply(P.iota_p, shape=(rows, cols), dtype=T.i64, axis=0)
    j = apply(P.iota_p, shape=(rows, cols), dtype=T.i64, axis=1)
    return j <= i


# -- losses -------------------------------------------------------------------------------------------------


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
    logp = _log_softmax(input, axis)
    if target.dtype.is_floating_point:
        return _soft_cross_entropy(logp, target, weight, axis, reduction, label_smoothing)
    return _label_loss(logp, target, weight, axis, ignore_index, reduction, label_smoothing)


def _class_weights(weight: Tensor, logp: Tensor, axis: int) -> Tensor:
    return weight.reshape([-1 if i == axis else 1 for i in range(logp.ndim)])


def _soft_cross_entropy(
    logp: Tensor, target: Tensor, weight: Tensor | None, axis: int, reduction: str, smoothing: float
) -> Tensor:
    if shape_of(target) != shape_of(logp):
        raise RuntimeError(
            f"Expected input shape {list(logp.shape)} and target shape {list(target.shape)} to be equal "
            "for class probabilities"
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


def _label_loss(
    logp: Tensor,
    target: Tensor,
    weight: Tensor | None,
    axis: int,
    ignore_index: int,
    reduction: str,
    smoothing: float,
) -> Tensor:
    _check_labels(logp, target, axis)
    _check_range(target, shape_of(logp)[axis], ignore_index)
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
    from weft.dispatch import recording

    if recording():
        return
    a = target._data
    bad = ((a < 0) | (a >= classes)) & (a != ignore_index)
    if bad.any():
        raise IndexError(f"Target {a[bad].flat[0]} is out of bounds.")


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
    return _label_loss(input, target, weight, 1 if input.ndim > 1 else 0, ignore_index, reduction, 0.0)


def _elementwise_loss(loss: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    if weight is None:
        return _reduced(loss, reduction)
    weighted = loss * weight
    return (
        weighted.sum() / weight.expand_as(loss).sum()
        if reduction == "mean"
        else _reduced(weighted, reduction)
    )


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


def huber_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0, weight: Tensor | None = None
) -> Tensor:
    """Quadratic within ``delta``, linear outside, with slope ``delta``."""
    a = (input - target).abs()
    return _elementwise_loss(where(a < delta, 0.5 * a * a, delta * (a - 0.5 * delta)), weight, reduction)


def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
) -> Tensor:
    """-(t log p + (1 - t) log(1 - p)), logarithms not below -100."""
    if shape_of(input) != shape_of(target):
        raise ValueError(
            f"Using a target size ({target.shape}) that is different to the input size ({input.shape}) is "
            "deprecated. Please ensure they have the same size."
        )
    loss = -(target * input.log().clamp_min(-100.0) + (1.0 - target) * (1.0 - input).log().clamp_min(-100.0))
    return _reduced(loss if weight is None else loss * weight, _reduction(reduction, size_average, reduce))


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


def soft_margin_loss(
    input: Tensor, target: Tensor, size_average: Any = None, reduce: Any = None, reduction: str = "mean"
) -> Tensor:
    return _reduced((-target * input).exp().log1p(), _reduction(reduction, size_average, reduce))


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


__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "alpha_dropout",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "batch_norm",
    "bilinear",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "celu",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "cosine_embedding_loss",
    "cosine_similarity",
    "cross_entropy",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "elu",
    "embedding",
    "feature_dropout",
    "fold",
    "gaussian_nll_loss",
    "gelu",
    "glu",
    "group_norm",
    "gumbel_softmax",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "hinge_embedding_loss",
    "huber_loss",
    "instance_norm",
    "interpolate",
    "kl_div",
    "l1_loss",
    "layer_norm",
    "leaky_relu",
    "linear",
    "local_response_norm",
    "log_softmax",
    "logsigmoid",
    "lp_pool1d",
    "lp_pool2d",
    "margin_ranking_loss",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "mish",
    "mse_loss",
    "nll_loss",
    "normalize",
    "one_hot",
    "pad",
    "pairwise_distance",
    "pixel_shuffle",
    "pixel_unshuffle",
    "poisson_nll_loss",
    "prelu",
    "relu",
    "relu6",
    "relu_",
    "rms_norm",
    "scaled_dot_product_attention",
    "selu",
    "sigmoid",
    "silu",
    "smooth_l1_loss",
    "soft_margin_loss",
    "softmax",
    "softmin",
    "softplus",
    "softshrink",
    "softsign",
    "tanh",
    "tanhshrink",
    "threshold",
    "triplet_margin_loss",
    "unfold",
    "upsample",
]
