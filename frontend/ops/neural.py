"""Activations, softmax variants, similarities: elementwise functions of ``weft.nn.functional``."""

from __future__ import annotations

import math
from typing import Any

from weft.autograd.grad_mode import no_grad
from weft.casting import exact_on_gpu, lower
from weft.composite import composite
from weft.ops import math as M
from weft.ops import reduce as R
from weft.ops.activation import log_softmax as _log_softmax
from weft.ops.activation import softmax as _softmax
from weft.ops.common import in_float32, shape_of
from weft.ops.inplace import inplace as _inplace
from weft.ops.math import where
from weft.random import default_generator_of, uniform
from weft.tensor import Tensor


def maybe_inplace(fn: Any, input: Tensor, inplace: bool, *args: Any) -> Tensor:
    return _inplace(fn)(input, *args) if inplace else fn(input, *args)


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """max(x, 0)."""
    return maybe_inplace(M.relu, input, True) if inplace else M.relu(input)


def relu_(input: Tensor) -> Tensor:
    return relu(input, True)


def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """min(max(x, 0), 6)."""
    return hardtanh(input, 0.0, 6.0, inplace)


def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    """x limited to [min_val, max_val]."""
    if min_val > max_val:
        raise ValueError("min_val cannot be greater than max_val")
    return maybe_inplace(M.clamp, input, inplace, min_val, max_val)


@composite
@in_float32
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
    return maybe_inplace(_silu, input, inplace)


@composite
@in_float32
def _silu(x: Tensor) -> Tensor:
    return x * M.sigmoid(x)


def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """x * tanh(softplus(x))."""
    return maybe_inplace(_mish, input, inplace)


@composite
@in_float32
def _mish(x: Tensor) -> Tensor:
    return x * softplus(x).tanh()


@exact_on_gpu
@composite
@in_float32
def softplus(input: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    """log(1 + exp(beta x)) / beta; x itself where beta x is above the threshold."""
    scaled = input if beta == 1 else input * beta
    large = scaled > threshold
    soft = where(large, 0.0, scaled).exp().log1p()
    return where(large, input, soft if beta == 1 else soft / beta)


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """x where positive, else alpha (exp(x) - 1)."""
    return maybe_inplace(lambda x: _elu(x, alpha, 1.0), input, inplace)


@composite
@in_float32
def _elu(x: Tensor, alpha: float, scale: float) -> Tensor:
    positive = x > 0
    low = where(positive, 0.0, x).expm1() * (alpha * scale)
    return where(positive, x if scale == 1.0 else x * scale, low)


def selu(input: Tensor, inplace: bool = False) -> Tensor:
    """The scaled ELU of Klambauer et al. 2017."""
    return maybe_inplace(lambda x: _elu(x, 1.6732632423543772, 1.0507009873554805), input, inplace)


def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """x where positive, else alpha (exp(x / alpha) - 1)."""
    return maybe_inplace(_celu, input, inplace, alpha)


@composite
@in_float32
def _celu(x: Tensor, alpha: float) -> Tensor:
    return where(x > 0, x, (where(x > 0, 0.0, x) / alpha).expm1() * alpha)


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """x where positive, else negative_slope * x."""
    return maybe_inplace(_leaky_relu, input, inplace, negative_slope)


@composite
def _leaky_relu(x: Tensor, slope: float) -> Tensor:
    return where(x > 0, x, x * slope)


@lower
@composite
def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """As leaky_relu, with a slope of each channel (dimension 1)."""
    if weight.numel() > 1 and input.ndim > 1:
        weight = weight.reshape([-1 if i == 1 else 1 for i in range(input.ndim)])
    return where(input > 0, input, input * weight)


def threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
    """x where above the threshold, else ``value``."""
    return maybe_inplace(_threshold, input, inplace, threshold, value)


@composite
def _threshold(x: Tensor, threshold: float, value: float) -> Tensor:
    return where(x > threshold, x, value)


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """x / 6 + 1/2 limited to [0, 1]."""
    return maybe_inplace(_hardsigmoid, input, inplace)


@composite
def _hardsigmoid(x: Tensor) -> Tensor:
    return M.clamp(x + 3.0, 0.0, 6.0) / 6.0


def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """x * hardsigmoid(x)."""
    return maybe_inplace(_hardswish, input, inplace)


@composite
def _hardswish(x: Tensor) -> Tensor:
    return x * M.clamp(x + 3.0, 0.0, 6.0) / 6.0


@composite
def hardshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    return where(input.abs() > lambd, input, 0.0)


@composite
def softshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    return where(input > lambd, input - lambd, where(input < -lambd, input + lambd, 0.0))


@composite
def tanhshrink(input: Tensor) -> Tensor:
    return input - input.tanh()


@composite
def softsign(input: Tensor) -> Tensor:
    return input / (1.0 + input.abs())


@composite
def logsigmoid(input: Tensor) -> Tensor:
    """log(sigmoid(x)), without overflow."""
    negative = input < 0
    z = where(negative, input, -input).exp()
    return where(negative, input, 0.0) - z.log1p()


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
        g = default_generator_of(logits.device)
        noise = -(-(1.0 - uniform(shape_of(logits), logits.dtype, g)).log()).log()
    soft = softmax((logits + noise) / tau, dim)
    if not hard:
        return soft
    index = soft.argmax(dim, keepdim=True)
    sharp = (logits.detach() * 0).scatter(dim, index, 1.0)
    return sharp - soft.detach() + soft


@composite
def normalize(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Any = None) -> Tensor:
    """x divided by its p-norm along ``dim`` (at least eps)."""
    return input / R.norm(input, p, dim, True).clamp_min(eps)


@exact_on_gpu
@composite
def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """The cosine of the angle between vectors along ``dim``."""
    dot = (x1 * x2).sum(dim)
    a, b = (x1 * x1).sum(dim).sqrt().clamp_min(eps), (x2 * x2).sum(dim).sqrt().clamp_min(eps)
    return dot / (a * b)


@composite
def pairwise_distance(
    x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Tensor:
    return R.norm(x1 - x2 + eps, p, -1, keepdim)
