"""Reading and writing by index: gather, scatter, index_select, masks, nonzero."""

from __future__ import annotations

from typing import Any

import numpy as np
from weft.casting import widest
from weft.devices import put
from weft.dispatch import apply, at_hand, wrap
from weft.ir import prims as P
from weft.ir import types as T
from weft.ops.common import (
    as_tensor,
    broadcast_shapes,
    broadcast_to,
    convert,
    shape_of,
    wrap_dim,
)
from weft.ops.math import where
from weft.ops.shape import movedim, reshape, slice_dim
from weft.prepared import prepared
from weft.quickread import along
from weft.tensor import Tensor


def _check_index(index: Tensor, name: str) -> Tensor:
    if not isinstance(index, Tensor):
        raise TypeError(f"{name}(): argument 'index' must be Tensor, not {type(index).__name__}")
    if index.dtype not in (T.i64, T.i32):
        raise RuntimeError(f"{name}(): Expected dtype int32/int64 for index, got {index.dtype}")
    return index


def _positions(index: Tensor, n: int, name: str) -> Tensor:
    """Indices that must lie in [0, n); checked here in eager mode for torch's words."""
    a = at_hand(index)
    if a is not None and a.size and (a.min() < 0 or a.max() >= n):
        bad = a[(a < 0) | (a >= n)].flat[0]
        raise IndexError(f"index {bad} is out of bounds for dimension 0 with size {n}")
    return index


def index_select(input: Tensor, dim: int, index: Tensor) -> Tensor:
    """The parts of ``input`` at ``index`` (a vector) along ``dim``."""
    _check_index(index, "index_select")
    if index.ndim > 1:
        raise IndexError(
            f"index_select(): Index is supposed to be a vector, but got dim: {index.ndim} with type: "
            f"{index.dtype.long_name} and size: {list(index.shape)}"
        )
    if input.ndim == 0:
        return input.clone()
    d = wrap_dim(dim, input.ndim)
    quick = along(input, index, d) if index.ndim else None
    if quick is not None:
        return quick
    idx = _positions(reshape(index, -1), shape_of(input)[d], "index_select")
    out = apply(P.gather_p, input, apply(P.reshape_p, idx, shape=(idx.numel(), 1)), axes=(d,))
    return out if d == 0 else movedim(out, 0, d).contiguous()


def take(input: Tensor, index: Tensor) -> Tensor:
    """The elements of the flattened ``input`` at ``index``."""
    quick = along(input, index, None)
    if quick is not None:
        return quick
    n = input.numel()
    flat = reshape(index, -1)
    flat = where(flat < 0, flat + n, flat)
    return reshape(index_select(reshape(input, -1), 0, flat), *shape_of(index))


def _check_gather(x: Tensor, index: Tensor, d: int, name: str) -> None:
    _check_index(index, name)
    if x.ndim != index.ndim and x.ndim and index.ndim:
        raise RuntimeError("Index tensor must have the same number of dimensions as input tensor")
    for i, (a, b) in enumerate(zip(shape_of(index), shape_of(x), strict=False)):
        if a > b and i != d:
            raise RuntimeError(
                f"Size does not match at dimension {i} expected index {list(index.shape)} to be no larger "
                f"than self {list(x.shape)} apart from dimension {d}"
            )


def _crop(x: Tensor, shape: tuple[int, ...], but: int) -> Tensor:
    """``x`` cut to ``shape`` in every dimension but one, as torch's gather reads it."""
    for i, n in enumerate(shape):
        if i != but and n != shape_of(x)[i]:
            x = slice_dim(x, i, 0, n)
    return x


@prepared
def gather(input: Tensor, dim: int, index: Tensor, *, sparse_grad: bool = False) -> Tensor:
    """out[i][j] = input[index[i][j]][j] for ``dim`` 0, and so on."""
    d = wrap_dim(dim, input.ndim)
    _check_gather(input, index, d, "gather")
    if input.ndim == 0 or index.ndim == 0:
        return reshape(gather(reshape(input, -1), 0, reshape(index, -1)), *shape_of(index))
    _gather_range(index, shape_of(input)[d], d)
    return apply(P.take_along_p, _crop(input, shape_of(index), d), index, axis=d)


def _gather_range(index: Tensor, n: int, d: int) -> None:
    a = at_hand(index)
    if a is None or not a.size:
        return
    if a.min() < 0 or a.max() >= n:
        bad = a[(a < 0) | (a >= n)].flat[0]
        raise RuntimeError(f"index {bad} is out of bounds for dimension {d} with size {n}")


@prepared
def take_along_dim(input: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    """As gather, with indices broadcast against the input."""
    if dim is None:
        return gather(reshape(input, -1), 0, reshape(indices, -1))
    d = wrap_dim(dim, input.ndim)
    a, b = list(shape_of(input)), list(shape_of(indices))
    a[d] = b[d] = 1
    common = list(broadcast_shapes(a, b))
    sx, si = list(common), list(common)
    sx[d], si[d] = shape_of(input)[d], shape_of(indices)[d]
    return gather(broadcast_to(input, tuple(sx)), d, broadcast_to(indices, tuple(si)))


def _scatter(input: Tensor, dim: int, index: Tensor, src: Any, mode: str, name: str) -> Tensor:
    d = wrap_dim(dim, input.ndim)
    _check_index(index, name)
    src = as_tensor(src, input.dtype) if not isinstance(src, Tensor) else src
    if src.dtype is not input.dtype:
        raise RuntimeError(f"{name}(): Expected self.dtype to be equal to src.dtype")
    if src.ndim == 0 and index.ndim:
        src = broadcast_to(src, shape_of(index))
    if input.ndim == 0:
        return reshape(_scatter(reshape(input, 1), 0, reshape(index, -1), reshape(src, -1), mode, name), ())
    for i, (n, m, k) in enumerate(zip(shape_of(index), shape_of(src), shape_of(input), strict=True)):
        if n > m or (i != d and n > k):
            raise RuntimeError(
                f"Expected index {list(index.shape)} to be no larger than self {list(input.shape)} apart "
                f"from dimension {d} and to be no larger size than src {list(src.shape)}"
            )
    _gather_range(index, shape_of(input)[d], d)
    src = _crop(src, shape_of(index), -1)
    part = _crop(input, shape_of(index), d)
    prim = P.scatter_along_p if mode in ("set", "add") else P.scatter_reduce_along_p
    new = apply(prim, part, index, src, axis=d, mode=mode)
    if part is input:
        return new
    return apply(P.update_slice_p, input, new, start=(0,) * input.ndim, step=(1,) * input.ndim)


@prepared
def scatter(
    input: Tensor, dim: int, index: Tensor, src: Any = None, *, value: Any = None, reduce: Any = None
) -> Tensor:
    """A copy of ``input`` with ``src`` (a tensor or number) written at ``index`` along ``dim``."""
    mode = {None: "set", "add": "add", "multiply": "mul"}.get(reduce)
    if mode is None:
        raise RuntimeError("reduce argument must be either add or multiply.")
    return _scatter(input, dim, index, value if src is None else src, mode, "scatter")


@widest
@prepared
def scatter_add(input: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """A copy of ``input`` with ``src`` added at ``index`` along ``dim``."""
    return _scatter(input, dim, index, src, "add", "scatter_add")


@prepared
def scatter_reduce(
    input: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    """As scatter_add with reduce "sum", "prod", "mean", "amax" or "amin"."""
    modes = {"sum": "add", "prod": "mul", "amax": "max", "amin": "min", "mean": "add"}
    if reduce not in modes:
        raise RuntimeError(f"reduce argument must be either sum, prod, mean, amax or amin, got {reduce}")
    base = input
    if not include_self:
        neutral = _neutral(reduce, input)
        base = scatter(input, dim, index, neutral)
    out = _scatter(base, dim, index, src, modes[reduce], "scatter_reduce")
    if reduce != "mean":
        return out
    ones = scatter_add(
        (input == input).to(input.dtype) * (1 if include_self else 0), dim, index, (src == src).to(src.dtype)
    )
    if not include_self:
        ones = where(ones == 0, 1, ones)
    return out / ones if input.dtype.is_inexact else out.div(ones, rounding_mode="floor")


def _neutral(reduce: str, x: Tensor) -> Any:
    if reduce in ("sum", "mean"):
        return 0
    if reduce == "prod":
        return 1
    if x.dtype.is_floating_point:
        return -np.inf if reduce == "amax" else np.inf
    info = np.iinfo(x.dtype.np)
    return int(info.min if reduce == "amax" else info.max)


def _along(input: Tensor, dim: int, index: Tensor, source: Tensor, mode: str, name: str) -> Tensor:
    _check_index(index, name)
    d = wrap_dim(dim, input.ndim)
    if source.dtype is not input.dtype:
        raise RuntimeError(
            f"{name}(): self ({input.dtype}) and source ({source.dtype}) must have the same scalar type"
        )
    idx = _positions(reshape(index, -1), shape_of(input)[d] if input.ndim else 1, name)
    idx = apply(P.reshape_p, idx, shape=(idx.numel(), 1))
    if input.ndim == 0:
        return reshape(_along(reshape(input, 1), 0, index, reshape(source, -1), mode, name), ())
    n = input.ndim
    src = source if d == 0 else apply(P.permute_p, source, perm=(d, *range(d), *range(d + 1, n)))
    shape = (idx.shape[0], *(m for i, m in enumerate(shape_of(input)) if i != d))
    if shape_of(src) != shape:
        raise RuntimeError(
            f"{name}(): Number of indices ({idx.shape[0]}) should be equal to source.size(dim) "
            f"({shape_of(src)[:1]})"
        )
    return apply(P.scatter_p, input, idx, src, axes=(d,), mode=mode)


@prepared
def index_add(input: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: Any = 1) -> Tensor:
    """A copy of ``input`` with the parts of ``source`` added at ``index`` along ``dim``."""
    return _along(input, dim, index, source * alpha if alpha != 1 else source, "add", "index_add")


@prepared
def index_copy(input: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """A copy of ``input`` with the parts of ``source`` written at ``index`` along ``dim``."""
    return _along(input, dim, index, source, "set", "index_copy")


@prepared
def index_fill(input: Tensor, dim: int, index: Tensor, value: Any) -> Tensor:
    """A copy of ``input`` with ``value`` at ``index`` along ``dim``."""
    d = wrap_dim(dim, input.ndim)
    shape = tuple(index.numel() if i == d else n for i, n in enumerate(shape_of(input)))
    return index_copy(input, d, reshape(index, -1), broadcast_to(as_tensor(value, input.dtype), shape))


@prepared
def masked_fill(input: Tensor, mask: Tensor, value: Any) -> Tensor:
    """A copy of ``input`` with ``value`` where ``mask`` holds."""
    if mask.dtype is not T.bool_:
        raise RuntimeError(
            f"masked_fill only supports boolean masks, but got mask with dtype {mask.dtype.long_name}"
        )
    if isinstance(value, Tensor) and value.ndim:
        raise RuntimeError(
            f"masked_fill only supports a 0-dimensional value tensor, but got tensor with {value.ndim} "
            "dimension(s)."
        )
    return where(mask, as_tensor(value, input.dtype), input)


def masked_select(input: Tensor, mask: Tensor) -> Tensor:
    """The elements where ``mask`` holds, as a vector."""
    if shape_of(mask) == shape_of(input):
        return input[mask]
    shape = broadcast_shapes(shape_of(input), shape_of(mask))
    return broadcast_to(input, shape)[broadcast_to(mask, shape)]


def masked_scatter(input: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    """A copy of ``input`` whose elements under ``mask`` are those of ``source`` in order."""
    shape = broadcast_shapes(shape_of(input), shape_of(mask))
    m = broadcast_to(mask, shape)
    position = (reshape(m, -1).to(T.i64).cumsum(0) - 1).clamp(min=0)
    if source.numel() == 0:
        return broadcast_to(input, shape).clone()
    picked = reshape(index_select(reshape(source, -1), 0, position.clamp(max=source.numel() - 1)), *shape)
    return where(m, picked, input)


def nonzero(input: Tensor, *, as_tuple: bool = False) -> Any:
    """The indices of the elements that are not zero, one row each (or one vector per dimension)."""
    values = input._array("nonzero() (the size of the result depends on values)")
    a = values.nonzero() if values.ndim else np.atleast_1d(values).nonzero()
    if as_tuple:
        return tuple(wrap(put(np.ascontiguousarray(i), input.device)) for i in a)
    rows = np.array(a).T.copy() if values.ndim else np.empty((a[0].size, 0), np.int64)
    return wrap(put(rows, input.device))


argwhere = nonzero


@prepared
def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """int64 rows with a one at each class."""
    if tensor.dtype is not T.i64:
        raise RuntimeError("one_hot is only applicable to index tensor of type LongTensor.")
    if num_classes == -1:
        num_classes = int(tensor.max().item()) + 1
    a = at_hand(tensor)
    if a is not None and a.size:
        if a.min() < 0:
            raise RuntimeError("Class values must be non-negative.")
        if a.max() >= num_classes:
            raise RuntimeError("Class values must be smaller than num_classes.")
    shape = (*shape_of(tensor), num_classes)
    classes = apply(P.iota_p, shape=shape, dtype=T.i64, axis=tensor.ndim, device=tensor.device)
    labels = apply(P.broadcast_p, tensor, shape=shape, axes=tuple(range(tensor.ndim)))
    return convert(apply(P.eq_p, labels, classes), T.i64)


def slice_scatter(
    input: Tensor, src: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Tensor:
    """A copy of ``input`` with ``src`` at a slice."""
    d = wrap_dim(dim, input.ndim)
    a, _, _ = slice(start, end).indices(shape_of(input)[d])
    begin = tuple(a if i == d else 0 for i in range(input.ndim))
    steps = tuple(step if i == d else 1 for i in range(input.ndim))
    return apply(P.update_slice_p, input, convert(src, input.dtype), start=begin, step=steps)


def select_scatter(input: Tensor, src: Tensor, dim: int, index: int) -> Tensor:
    """A copy of ``input`` with ``src`` at one index of a dimension."""
    d = wrap_dim(dim, input.ndim)
    i = index % shape_of(input)[d]
    return slice_scatter(input, src.unsqueeze(d), d, i, i + 1)
