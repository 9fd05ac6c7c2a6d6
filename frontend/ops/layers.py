"""Linear maps, embedding, dropout and normalisation of ``weft.nn.functional``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from weft.autograd.grad_mode import no_grad
from weft.casting import exact_on_gpu, lower, widest
from weft.composite import composite
from weft.dispatch import apply
from weft.dtypes import type_name
from weft.ir import prims as P
from weft.ir import types as T
from weft.ops import reduce as R
from weft.ops.common import convert, shape_of
from weft.ops.index import one_hot
from weft.ops.linalg import matmul
from weft.ops.math import where
from weft.ops.neural import maybe_inplace
from weft.ops.padding import pad
from weft.ops.shape import unfold as _unfold
from weft.prepared import prepared
from weft.random import default_generator_of, uniform
from weft.tensor import Tensor

# -- linear, embedding --------------------------------------------------------------------------------------


@lower
@composite
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
        a, b = type_name(input.dtype), type_name(weight.dtype)
        raise RuntimeError(f"mat1 and mat2 must have the same dtype, but got {a} and {b}")
    out = apply(P.dot_general_p, input, weight, contract=((k - 1,), (1,)), batch=((), ()))
    return out if bias is None else out + bias


@widest
def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x1' W x2 + b for each output. weight [out, in1, in2]."""
    from weft.ops.linalg import einsum

    out = einsum("...i,oij,...j->...o", input1, weight, input2)
    return out if bias is None else out + bias


@prepared
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
    try:
        out = apply(P.gather_p, weight, apply(P.reshape_p, idx, shape=(*shape_of(idx), 1)), axes=(0,))
    except IndexError:
        raise IndexError("index out of range in self") from None
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
        keep = uniform(shape, T.f32, default_generator_of(input.device)) >= p
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
    return maybe_inplace(lambda x: _dropped(x, p, shape_of(x)), input, inplace)


def _channel_dropout(input: Tensor, p: float, training: bool, inplace: bool) -> Tensor:
    _check_p(p)
    if not training or p == 0.0:
        return input
    return maybe_inplace(lambda x: _dropped(x, p, shape_of(x)[:2] + (1,) * (x.ndim - 2)), input, inplace)


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
        keep = uniform(shape_of(input), T.f32, default_generator_of(input.device)) >= p
    return maybe_inplace(lambda x: where(keep, x, low) * a - low * p * a, input, inplace)


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


@exact_on_gpu
@composite
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
            f"Given normalized_shape={list(shape)}, expected input with shape [*, "
            f"{', '.join(map(str, shape))}], but got input of size{list(x.shape)}"
        )


@composite
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


@exact_on_gpu
@composite
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
            "Expected number of channels in input to be divisible by num_groups, but got input of shape "
            f"{list(s)} and num_groups={num_groups}"
        )
    if 0 in s:
        return _scaled(input, _per_channel(weight, input.ndim), _per_channel(bias, input.ndim), input.dtype)
    # the channels of a group keep a dimension of their own, so that their scale joins the same loops
    shape = (s[0], num_groups, s[1] // num_groups, math.prod(s[2:]))
    scale, shift = (v if v is None else v.reshape(shape[1], shape[2], 1) for v in (weight, bias))
    y = _standardised(input.reshape(shape), (2, 3), eps)
    return _scaled(y, scale, shift, input.dtype).reshape(s)


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
    return _instance_norm(input, weight, bias, eps)


@composite
def _instance_norm(input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
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
        return _normalised(input, running_mean, running_var, weight, bias, eps)
    axes = tuple(i for i in range(n) if i != 1)
    count = math.prod(shape_of(input)[a] for a in axes)
    if count <= 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {input.shape}"
        )
    y, mean, var = _batch_statistics_norm(input, weight, bias, axes, eps)
    _update_running(running_mean, mean, momentum, 1.0)
    _update_running(running_var, var, momentum, count / (count - 1))
    return y


@composite
def _normalised(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Standardised by given statistics of the channels, then scaled and shifted."""
    n = x.ndim
    m, v = mean.reshape([-1 if i == 1 else 1 for i in range(max(n, 2))]), _per_channel(var, n)
    assert v is not None
    y = (x - m) * (v + eps).rsqrt()
    return _scaled(y, _per_channel(weight, n), _per_channel(bias, n), x.dtype)


@composite
def _batch_statistics_norm(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, axes: tuple[int, ...], eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Standardised over ``axes``, scaled and shifted by channel; the mean and the variance."""
    n, count = input.ndim, math.prod(shape_of(input)[a] for a in axes)
    x = convert(input, T.f32) if input.dtype in (T.f16, T.bf16) else input
    mean = R.sum(x, axes, True) / count
    centred = x - mean
    var = R.sum(centred * centred, axes, True) / count
    y = centred * (var + eps).rsqrt()
    return _scaled(y, _per_channel(weight, n), _per_channel(bias, n), input.dtype), mean, var


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
