"""Reductions and running reductions."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

from weft.casting import exact, exact_on_gpu
from weft.dispatch import apply
from weft.dtypes import as_dtype, type_name
from weft.ir import prims as P
from weft.ir import types as T
from weft.ops.common import convert, shape_of, to_inexact, wrap_dim, wrap_dims
from weft.ops.math import abs as abs_
from weft.ops.math import exp, isfinite, isnan, log, needs_gradient, sqrt, where
from weft.prepared import prepared
from weft.tensor import Tensor


class _Pair(NamedTuple):
    values: Tensor
    indices: Tensor


@lru_cache
def pair_type(name: str) -> Any:
    """``torch.return_types.<name>``: a named tuple (values, indices) that prints as torch's."""

    def show(self: Any) -> str:
        return f"weft.return_types.{name}(\nvalues={self[0]!r},\nindices={self[1]!r})"

    return type(name, (_Pair,), {"__slots__": (), "__repr__": show, "__module__": "weft.return_types"})


def keep_dims(out: Tensor, shape: tuple[int, ...], dims: tuple[int, ...], keepdim: bool) -> Tensor:
    """The reduced dimensions back, with extent 1."""
    if not keepdim or not shape:
        return out
    return apply(P.reshape_p, out, shape=tuple(1 if i in dims else n for i, n in enumerate(shape)))


def _fold(prim: Any, x: Tensor, dim: Any, keepdim: bool) -> Tensor:
    shape = shape_of(x)
    dims = wrap_dims(dim, len(shape))
    return keep_dims(apply(prim, x, axes=dims), shape, dims, keepdim)


@exact_on_gpu
@prepared
def sum(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """The sum of all elements, or along dimensions. Integers and bools are summed in int64.

    >>> import weft
    >>> weft.sum(weft.ones(2, 3), dim=0)
    tensor([2., 2., 2.])
    """
    if dtype is not None:
        input = convert(input, as_dtype(dtype))
    elif not input.dtype.is_inexact:
        input = convert(input, T.i64)
    return _fold(P.sum_p, input, dim, keepdim)


@prepared
def nansum(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    return sum(where(isnan(input), 0, input) if input.dtype.is_inexact else input, dim, keepdim, dtype=dtype)


@exact
@prepared
def prod(input: Tensor, dim: int | None = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """The product of all elements, or along one dimension."""
    d = as_dtype(dtype) if dtype is not None else (input.dtype if input.dtype.is_inexact else T.i64)
    return _fold(P.prod_p, convert(input, d), dim, keepdim)


def _count(shape: tuple[int, ...], dims: tuple[int, ...]) -> int:
    return math.prod(shape[i] for i in dims) if shape else 1


@prepared
def mean(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """The mean. RuntimeError for integers unless a float ``dtype`` is given."""
    x = convert(input, as_dtype(dtype)) if dtype is not None else input
    d = x.dtype
    if not d.is_inexact:
        raise RuntimeError(
            "mean(): could not infer output dtype. Input dtype must be either a floating point or complex "
            f"dtype. Got: {type_name(d)}"
        )
    shape = shape_of(x)
    n = _count(shape, wrap_dims(dim, len(shape)))
    if d is T.f16 or d is T.bf16:  # a total of halves overflows where their mean does not
        return convert(_fold(P.sum_p, convert(x, T.f32), dim, keepdim) / n, d)
    return _fold(P.sum_p, x, dim, keepdim) / n


@prepared
def nanmean(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    if not input.dtype.is_inexact:
        raise RuntimeError(
            "nanmean(): expected input to have floating point or complex dtype but got "
            f"{type_name(input.dtype)}"
        )
    return nansum(input, dim, keepdim, dtype=dtype) / sum(~isnan(input), dim, keepdim).to(
        dtype or input.dtype
    )


def _correction(unbiased: Any, correction: Any) -> Any:
    if correction is not None:
        return correction
    return 1 if unbiased is None or unbiased else 0


def _var_args(dim: Any, unbiased: Any) -> tuple[Any, Any]:
    return (None, dim) if isinstance(dim, bool) else (dim, unbiased)


def _moments(x: Tensor, dim: Any, correction: Any, keepdim: bool) -> tuple[Tensor, Tensor]:
    """Variance and mean in two passes."""
    if not x.dtype.is_inexact:
        raise RuntimeError("std and var only support floating point and complex dtypes")
    shape = shape_of(x)
    dims = wrap_dims(dim, len(shape))
    n = _count(shape, dims)
    m = _fold(P.sum_p, x, dims or None, True) / n
    centred = x - m
    square = centred * centred if not x.dtype.is_complex else abs_(centred) * abs_(centred)
    total = _fold(P.sum_p, square, dims or None, keepdim)
    divisor = n - correction
    v = total / (divisor if divisor > 0 else 0.0)
    return v, m if keepdim or not shape else apply(P.reshape_p, m, shape=shape_of(v))


@prepared
def var(
    input: Tensor, dim: Any = None, unbiased: Any = None, keepdim: bool = False, *, correction: Any = None
) -> Tensor:
    """The variance, divided by n - ``correction`` (1)."""
    dim, unbiased = _var_args(dim, unbiased)
    return _moments(input, dim, _correction(unbiased, correction), keepdim)[0]


@prepared
def std(
    input: Tensor, dim: Any = None, unbiased: Any = None, keepdim: bool = False, *, correction: Any = None
) -> Tensor:
    """The standard deviation, the square root of :func:`var`."""
    return sqrt(var(input, dim, unbiased, keepdim, correction=correction))


@prepared
def var_mean(
    input: Tensor, dim: Any = None, unbiased: Any = None, keepdim: bool = False, *, correction: Any = None
) -> tuple[Tensor, Tensor]:
    """Variance and mean."""
    dim, unbiased = _var_args(dim, unbiased)
    return _moments(input, dim, _correction(unbiased, correction), keepdim)


@prepared
def std_mean(
    input: Tensor, dim: Any = None, unbiased: Any = None, keepdim: bool = False, *, correction: Any = None
) -> tuple[Tensor, Tensor]:
    v, m = var_mean(input, dim, unbiased, keepdim, correction=correction)
    return sqrt(v), m


@exact_on_gpu
@prepared
def norm(input: Tensor, p: Any = "fro", dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Tensor:
    """The p-norm of the elements (all, or along dimensions): 2 by default; inf, -inf, 0 and any number."""
    x = convert(input, as_dtype(dtype)) if dtype is not None else input
    if not x.dtype.is_inexact:
        raise RuntimeError(
            "linalg.vector_norm: Expected a floating point or complex tensor as input. Got "
            f"{type_name(x.dtype)}"
        )
    if p in ("fro", 2, 2.0, None):
        if x.dtype.is_complex:
            x = abs_(x)
        return sqrt(sum(x * x, dim, keepdim))
    a = abs_(x)
    if p == math.inf:
        return amax(a, dim, keepdim)
    if p == -math.inf:
        return amin(a, dim, keepdim)
    if p == 0:
        return sum((a != 0).to(a.dtype), dim, keepdim)
    if p == 1:
        return sum(a, dim, keepdim)
    return sum(a**p, dim, keepdim) ** (1.0 / p)


@exact_on_gpu
@prepared
def logsumexp(input: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    """log(sum(exp(x))) along dimensions, without overflow."""
    x = convert(input, to_inexact(input.dtype))
    shape = shape_of(x)
    dims = wrap_dims(dim, len(shape))
    if not shape or 0 in shape:
        return log(sum(exp(x), dim, keepdim))
    m = _fold(P.reduce_max_p, x.detach(), dims, True)
    m = where(isfinite(m), m, 0.0)
    out = log(_fold(P.sum_p, exp(x - m), dims, True)) + m
    return (
        out
        if keepdim
        else apply(P.reshape_p, out, shape=tuple(n for i, n in enumerate(shape) if i not in dims))
    )


@prepared
def logcumsumexp(input: Tensor, dim: int) -> Tensor:
    m = cummax(input.detach(), dim)[0]
    m = where(isfinite(m), m, 0.0)
    last = amax(m, dim, True) if input.ndim else m
    return log(cumsum(exp(input - last), dim)) + last


# -- extremes -----------------------------------------------------------------------------------------------


def _check_nonempty(x: Tensor, name: str, dims: tuple[int, ...]) -> None:
    shape = shape_of(x)
    for d in dims:
        if shape and shape[d] == 0:
            raise IndexError(f"{name}(): Expected reduction dim {d} to have non-zero size.")


@prepared
def amax(input: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    """The largest element; the gradient is shared among ties."""
    _check_nonempty(input, "amax", wrap_dims(dim, input.ndim))
    return _fold(P.reduce_max_p, input, dim, keepdim)


@prepared
def amin(input: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    """The smallest element; the gradient is shared among ties."""
    _check_nonempty(input, "amin", wrap_dims(dim, input.ndim))
    return _fold(P.reduce_min_p, input, dim, keepdim)


@prepared
def aminmax(input: Tensor, *, dim: Any = None, keepdim: bool = False) -> Any:
    return _MinMax(amin(input, dim, keepdim), amax(input, dim, keepdim))


class _MinMax(NamedTuple):
    min: Tensor
    max: Tensor


def _extreme(input: Tensor, dim: Any, keepdim: bool, name: str) -> Any:
    prim = P.reduce_max_p if name == "max" else P.reduce_min_p
    if dim is None:
        if input.numel() == 0:
            raise RuntimeError(
                f"{name}(): Expected reduction dim to be specified for input.numel() == 0. Specify the "
                "reduction dim with the 'dim' argument."
            )
        return _fold(prim, input, None, False)
    if isinstance(dim, Tensor):
        from weft.ops.math import maximum, minimum

        return (maximum if name == "max" else minimum)(input, dim)
    d = wrap_dim(dim, input.ndim)
    _check_nonempty(input, name, (d,))
    if input.ndim == 0:
        return pair_type(name)(input.clone(), (input != input).to(T.i64) * 0)
    index = apply(P.argmax_p if name == "max" else P.argmin_p, input.detach(), axis=d)
    if not needs_gradient(input):
        values = _fold(prim, input, d, keepdim)
        return pair_type(name)(values, keep_dims(index, shape_of(input), (d,), keepdim))
    kept = keep_dims(index, shape_of(input), (d,), True)
    values = apply(P.take_along_p, input, kept, axis=d)
    if keepdim:
        return pair_type(name)(values, kept)
    return pair_type(name)(apply(P.reshape_p, values, shape=shape_of(index)), index)


@prepared
def max(input: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    """The largest element; with ``dim`` a pair (values, indices); with a tensor the elementwise maximum."""
    return _extreme(input, dim, keepdim, "max")


@prepared
def min(input: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    """The smallest element; with ``dim`` a pair (values, indices); with a tensor the elementwise minimum."""
    return _extreme(input, dim, keepdim, "min")


def _arg(input: Tensor, dim: Any, keepdim: bool, name: str, prim: Any) -> Tensor:
    x = input.detach()
    if x.dtype is T.bool_:
        raise RuntimeError(f"\"{name}_cpu\" not implemented for 'Bool'")
    if dim is None:
        if x.numel() == 0:
            raise IndexError(
                f"{name}(): Expected reduction dim to be specified for input.numel() == 0. Specify the "
                "reduction dim with the 'dim' argument."
            )
        out = apply(prim, apply(P.reshape_p, x, shape=(x.numel(),)), axis=0)
        return apply(P.reshape_p, out, shape=(1,) * x.ndim) if keepdim else out
    d = wrap_dim(dim, x.ndim)
    _check_nonempty(x, name, (d,))
    if x.ndim == 0:
        return apply(P.full_p, shape=(), dtype=T.i64, value=0, device=x.device).clone()
    return keep_dims(apply(prim, x, axis=d), shape_of(x), (d,), keepdim)


@prepared
def argmax(input: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    """The index of the first largest element (of the flattened tensor without ``dim``)."""
    return _arg(input, dim, keepdim, "argmax", P.argmax_p)


@prepared
def argmin(input: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    """The index of the first smallest element (of the flattened tensor without ``dim``)."""
    return _arg(input, dim, keepdim, "argmin", P.argmin_p)


def _truths(input: Tensor, prim: Any, dim: Any, keepdim: bool) -> Tensor:
    out = _fold(prim, convert(input.detach(), T.bool_), dim, keepdim)
    return convert(out, T.u8) if input.dtype is T.u8 else out


@prepared
def any(input: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    """Whether any element is not zero."""
    return _truths(input, P.any_p, dim, keepdim)


@prepared
def all(input: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    """Whether all elements are not zero."""
    return _truths(input, P.all_p, dim, keepdim)


@prepared
def count_nonzero(input: Tensor, dim: Any = None) -> Tensor:
    return sum(input != 0, dim)


# -- running ------------------------------------------------------------------------------------------------


def _scan(prim: Any, input: Tensor, dim: int, dtype: Any) -> Tensor:
    d = as_dtype(dtype) if dtype is not None else (input.dtype if input.dtype.is_inexact else T.i64)
    x = convert(input, d)
    axis = wrap_dim(dim, x.ndim)
    if x.ndim == 0:
        return x.clone()
    return apply(prim, x, axis=axis, reverse=False)


@exact_on_gpu
@prepared
def cumsum(input: Tensor, dim: int, *, dtype: Any = None) -> Tensor:
    """The running sum along a dimension."""
    return _scan(P.cumsum_p, input, dim, dtype)


@exact_on_gpu
@prepared
def cumprod(input: Tensor, dim: int, *, dtype: Any = None) -> Tensor:
    """The running product along a dimension."""
    return _scan(P.cumprod_p, input, dim, dtype)


def _running_extreme(input: Tensor, dim: int, name: str, prim: Any) -> Any:
    d = wrap_dim(dim, input.ndim)
    if input.ndim == 0:
        return pair_type(name)(input.clone(), (input != input).to(T.i64) * 0)
    x = input.detach()
    best = apply(prim, x, axis=d, reverse=False)
    here = apply(P.iota_p, shape=shape_of(x), dtype=T.i64, axis=d, device=x.device)
    hit = (x == best) | isnan(x) if x.dtype.is_inexact else x == best
    index = apply(P.cummax_p, where(hit, here, 0), axis=d, reverse=False)
    return pair_type(name)(apply(P.take_along_p, input, index, axis=d), index)


@prepared
def cummax(input: Tensor, dim: int) -> Any:
    """The running maximum and where it was last reached."""
    return _running_extreme(input, dim, "cummax", P.cummax_p)


@prepared
def cummin(input: Tensor, dim: int) -> Any:
    """The running minimum and where it was last reached."""
    return _running_extreme(input, dim, "cummin", P.cummin_p)


@prepared
def diff(input: Tensor, n: int = 1, dim: int = -1) -> Tensor:
    from weft.ops.shape import narrow

    out = input
    for _ in range(n):
        d = wrap_dim(dim, out.ndim)
        k = shape_of(out)[d]
        a, b = narrow(out, d, 1, k - 1), narrow(out, d, 0, k - 1)
        out = a ^ b if out.dtype is T.bool_ else a - b
    return out


@exact_on_gpu
def dist(input: Tensor, other: Tensor, p: float = 2) -> Tensor:
    return norm(input - other, p)
