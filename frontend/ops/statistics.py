"""Statistics and numerical integration over tensors."""

from __future__ import annotations

from typing import Any

from weft.casting import exact_on_cpu
from weft.ops.common import check_tensor, shape_of, wrap_dim
from weft.ops.linalg import matmul
from weft.ops.math import floor, lerp, sqrt
from weft.ops.reduce import sum as _sum
from weft.ops.sort import sort
from weft.tensor import Tensor


def _ranks(q: Any, input: Tensor) -> Tensor:
    from weft.creation import tensor

    levels = q if isinstance(q, Tensor) else tensor(q, dtype=input.dtype, device=input.device)
    if levels.dtype is not input.dtype:
        raise RuntimeError("quantile() q tensor must be same dtype as the input tensor")
    return levels


def _at_rank(values: Tensor, rank: Tensor, interpolation: str) -> Tensor:
    """Sorted ``values`` [..., n] at fractional ranks [..., k]."""
    low = floor(rank)
    lower, upper = low.long(), rank.ceil().long()
    if interpolation == "lower":
        return values.gather(-1, lower)
    if interpolation == "higher":
        return values.gather(-1, upper)
    if interpolation == "nearest":
        return values.gather(-1, rank.round().long())
    weight = (rank - low) if interpolation == "linear" else (rank - low) * 0 + 0.5
    return lerp(values.gather(-1, lower), values.gather(-1, upper), weight)


def _quantile(input: Tensor, q: Any, dim: Any, keepdim: bool, interpolation: str, skip_nan: bool) -> Tensor:
    check_tensor(input, "quantile")
    if interpolation not in ("linear", "lower", "higher", "midpoint", "nearest"):
        raise RuntimeError(
            "quantile() interpolation must be one of linear, lower, higher, midpoint or nearest, but got "
            f"{interpolation}"
        )
    if input.dtype.itemsize < 4 or not input.dtype.is_floating_point:
        raise RuntimeError("quantile() input tensor must be either float or double dtype")
    levels = _ranks(q, input)
    d = 0 if dim is None else wrap_dim(dim, input.ndim)
    x = input.reshape(-1) if dim is None else input.movedim(d, -1)
    values = sort(x, -1)[0]
    nan = x.isnan()
    count = (~nan).sum(-1, keepdim=True) if skip_nan else nan.sum(-1, keepdim=True) * 0 + shape_of(x)[-1]
    flat = levels.reshape(-1)
    rank = (count - 1).clamp(min=0).to(input.dtype) * flat
    out = _at_rank(values, rank, interpolation)
    if not skip_nan:
        out = out.masked_fill(nan.any(-1, keepdim=True), float("nan"))
    out = out.movedim(-1, 0)
    if keepdim:
        out = out.reshape(flat.numel(), *(1,) * input.ndim) if dim is None else out.unsqueeze(d + 1)
    return out if levels.ndim else out.squeeze(0)


@exact_on_cpu
def quantile(
    input: Tensor, q: Any, dim: Any = None, keepdim: bool = False, *, interpolation: str = "linear"
) -> Tensor:
    """The values below which fractions ``q`` of the elements lie; NaN where an element is.

    >>> import weft
    >>> quantile(weft.tensor([3.0, 1.0, 2.0]), 0.5)
    tensor(2.)
    """
    return _quantile(input, q, dim, keepdim, interpolation, skip_nan=False)


@exact_on_cpu
def nanquantile(
    input: Tensor, q: Any, dim: Any = None, keepdim: bool = False, *, interpolation: str = "linear"
) -> Tensor:
    """As :func:`quantile`, of the elements that are not NaN."""
    return _quantile(input, q, dim, keepdim, interpolation, skip_nan=True)


def cov(input: Tensor, *, correction: int = 1, fweights: Any = None, aweights: Any = None) -> Tensor:
    """The covariance matrix of variables (rows) over observations (columns), optionally weighted."""
    if input.ndim > 2:
        raise RuntimeError(f"cov(): expected input to have two or fewer dimensions but got {input.ndim}")
    x = input.reshape(1, -1) if input.ndim < 2 else input
    x = x if x.dtype.is_inexact else x.float()
    w = None
    for part in (fweights, aweights):
        if part is not None:
            w = part if w is None else w * part
    if w is None:
        total: Any = shape_of(x)[1]
        centred = x - x.mean(1, keepdim=True)
        divisor: Any = max(total - correction, 0)
        weighted = centred
    else:
        w = w.to(x.dtype)
        total = w.sum()
        centred = x - (x * w).sum(1, keepdim=True) / total
        shrink = total if aweights is None else (w * aweights).sum() / total * 1.0
        divisor = total - correction if aweights is None else total - correction * shrink
        weighted = centred * w
    out = matmul(weighted, centred.t().conj()) / divisor
    return out.reshape(()) if input.ndim < 2 else out


def corrcoef(input: Tensor) -> Tensor:
    """The correlation coefficients of variables (rows)."""
    c = cov(input)
    if c.ndim == 0:
        return c / c
    d = sqrt(c.diagonal())
    return (c / d.unsqueeze(-1) / d.unsqueeze(0)).clamp(-1, 1)


def trapezoid(y: Tensor, x: Tensor | None = None, *, dx: Any = 1, dim: int = -1) -> Tensor:
    """The integral by the trapezoidal rule along ``dim``, at points ``x`` or ``dx`` apart."""
    d = wrap_dim(dim, y.ndim)
    n = shape_of(y)[d]
    heights = (y.narrow(d, 0, n - 1) + y.narrow(d, 1, n - 1)) / 2
    if x is None:
        return _sum(heights, d) * dx
    at: Any = x.reshape([-1 if i == d else 1 for i in range(y.ndim)]) if x.ndim == 1 and y.ndim > 1 else x
    axis = d if at.ndim == y.ndim else -1
    k = shape_of(at)[axis]
    return _sum(heights * (at.narrow(axis, 1, k - 1) - at.narrow(axis, 0, k - 1)), d)


trapz = trapezoid
