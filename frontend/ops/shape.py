"""Shapes: views, joins, splits, repetition, padding and the like."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
from weft.casting import widest
from weft.creation import shape_of_args
from weft.dispatch import apply, at_hand
from weft.ir import prims as P
from weft.ir import types as T
from weft.ir.types import DType
from weft.ops.common import (
    broadcast_shapes,
    broadcast_to,
    check_tensor,
    convert,
    scalar_tensor,
    shape_of,
    wrap_dim,
)
from weft.prepared import prepared
from weft.promotion import promote
from weft.quickview import view_function
from weft.tensor import Tensor
from weft.views import own, siblings, view, views


def _infer_shape(shape: Sequence[int], x: Tensor) -> tuple[int, ...]:
    """``shape`` with a -1 filled in; torch's RuntimeErrors."""
    n = x.numel()
    out = list(shape)
    if any(d < -1 for d in out):
        raise RuntimeError(f"invalid shape dimension {min(out)}")
    if out.count(-1) > 1:
        raise RuntimeError("only one dimension can be inferred")
    if -1 in out:
        known = prod(d for d in out if d != -1)
        if known == 0:
            raise RuntimeError(
                f"cannot reshape tensor of 0 elements into shape {list(shape)} because the unspecified "
                "dimension size -1 can be any value and is ambiguous"
            )
        if n % known == 0:
            out[out.index(-1)] = n // known
    if prod(out) != n or -1 in out:
        raise RuntimeError(f"shape '{list(shape)}' is invalid for input of size {n}")
    return tuple(out)


@view_function
def reshape(input: Tensor, *shape: Any) -> Tensor:
    """The same elements in another shape: a view where strides allow, else a copy.

    >>> import weft
    >>> weft.arange(6).reshape(2, -1).shape
    weft.Size([2, 3])
    """
    target = _infer_shape(shape_of_args(shape, "shape"), input)
    if target == shape_of(input):
        return view_alias(input)
    return view(input, P.reshape_p, shape=target)


def view_alias(x: Tensor) -> Tensor:
    """The whole of ``x`` as another tensor that is a view of it."""
    return view(x, P.reshape_p, shape=shape_of(x))


@view_function
def view_as_shape(input: Tensor, *size: Any) -> Tensor:
    """A view in another shape (RuntimeError where strides forbid it) or, given a dtype, of other bits."""
    if len(size) == 1 and isinstance(size[0], DType):
        return _view_dtype(input, size[0])
    target = _infer_shape(shape_of_args(size, "size"), input)
    out = view(input, P.reshape_p, shape=target)
    if out._view is None:
        raise RuntimeError(
            "view size is not compatible with input tensor's size and stride (at least one dimension spans "
            "across two contiguous subspaces). Use .reshape(...) instead."
        )
    return out


def _view_dtype(x: Tensor, d: DType) -> Tensor:
    if d is x.dtype:
        return view_alias(x)
    if d.itemsize != x.dtype.itemsize:
        a = x._array("view with a dtype of another size")
        from weft.dispatch import wrap

        out = wrap(a.view(d.np))
        out._vc = x._vc
        return out
    return view(x, P.bitcast_p, dtype=d)


def view_as(input: Tensor, other: Tensor) -> Tensor:
    return view_as_shape(input, *shape_of(other))


def reshape_as(input: Tensor, other: Tensor) -> Tensor:
    return reshape(input, *shape_of(other))


@view_function
def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Dimensions ``start_dim`` to ``end_dim`` as one."""
    s = shape_of(input)
    a, b = wrap_dim(start_dim, len(s)), wrap_dim(end_dim, len(s))
    if a > b:
        raise RuntimeError("flatten() has invalid args: start_dim cannot come after end_dim")
    if not s:
        return reshape(input, 1)
    return input if a == b else reshape(input, *s[:a], prod(s[a : b + 1]), *s[b + 1 :])


@view_function
def unflatten(input: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """One dimension as several."""
    s = shape_of(input)
    d = wrap_dim(dim, len(s))
    sizes = list(sizes)
    if -1 in sizes:
        known = -prod(sizes)
        sizes[sizes.index(-1)] = s[d] // known if known else 0
    if prod(sizes) != s[d]:
        raise RuntimeError(
            f"unflatten: Provided sizes {sizes} don't multiply up to the size of dim {dim} ({s[d]}) in the "
            "input tensor"
        )
    return view_as_shape(input, *s[:d], *sizes, *s[d + 1 :])


def ravel(input: Tensor) -> Tensor:
    return reshape(input, -1)


@view_function
def squeeze(input: Tensor, dim: Any = None) -> Tensor:
    """Without the dimensions of extent 1 (or those of ``dim`` that have it)."""
    s = shape_of(input)
    if dim is None:
        drop = set(range(len(s)))
    else:
        drop = {wrap_dim(d, len(s)) for d in (dim if isinstance(dim, (tuple, list)) else (dim,))}
    return view(input, P.reshape_p, shape=tuple(n for i, n in enumerate(s) if n != 1 or i not in drop))


@view_function
def unsqueeze(input: Tensor, dim: int) -> Tensor:
    """With a new dimension of extent 1 before ``dim``."""
    s = shape_of(input)
    d = wrap_dim(dim, len(s) + 1)
    return view(input, P.reshape_p, shape=(*s[:d], 1, *s[d:]))


@view_function
def permute(input: Tensor, *dims: Any) -> Tensor:
    """Dimensions in another order, a view."""
    order = shape_of_args(dims, "dims")
    n = input.ndim
    if len(order) != n:
        raise RuntimeError(
            "permute(sparse_coo): number of dimensions in the tensor input does not match the length of the "
            f"desired ordering of dimensions i.e. input.dim() = {n} is not equal to len(dims) = {len(order)}"
        )
    perm = tuple(wrap_dim(d, n) for d in order)
    if len(set(perm)) != n:
        raise RuntimeError("permute(): duplicate dims are not allowed.")
    return view(input, P.permute_p, perm=perm)


@view_function
def transpose(input: Tensor, dim0: int, dim1: int) -> Tensor:
    """Two dimensions swapped, a view."""
    n = input.ndim
    a, b = wrap_dim(dim0, n), wrap_dim(dim1, n)
    perm = list(range(n))
    if n:
        perm[a], perm[b] = perm[b], perm[a]
    return view(input, P.permute_p, perm=tuple(perm))


swapaxes = swapdims = transpose


@view_function
def t(input: Tensor) -> Tensor:
    """The transpose of a matrix (vectors and 0-d tensors as they are)."""
    if input.ndim > 2:
        raise RuntimeError(f"t() expects a tensor with <= 2 dimensions, but self is {input.ndim}D")
    return transpose(input, 0, 1) if input.ndim == 2 else view_alias(input)


@view_function
def reversed_dims(input: Tensor) -> Tensor:
    return permute(input, *reversed(range(input.ndim))) if input.ndim else input


@view_function
def matrix_transpose(input: Tensor) -> Tensor:
    """The last two dimensions swapped."""
    if input.ndim < 2:
        raise RuntimeError(
            f"tensor.mT is only supported on matrices or batches of matrices. Got {input.ndim}-D tensor."
        )
    return transpose(input, -2, -1)


@view_function
def movedim(input: Tensor, source: Any, destination: Any) -> Tensor:
    """Dimensions ``source`` moved to ``destination``, the others in order."""
    n = input.ndim
    src = [wrap_dim(d, n) for d in (source if isinstance(source, (tuple, list)) else (source,))]
    dst = [
        wrap_dim(d, n) for d in (destination if isinstance(destination, (tuple, list)) else (destination,))
    ]
    if len(src) != len(dst):
        raise RuntimeError(
            "movedim: Invalid source or destination dims: source and destination must have the same number "
            f"of elements ({len(src)} and {len(dst)})"
        )
    rest = [d for d in range(n) if d not in src]
    perm = [-1] * n
    for s, d in zip(src, dst, strict=True):
        perm[d] = s
    it = iter(rest)
    return view(input, P.permute_p, perm=tuple(p if p >= 0 else next(it) for p in perm))


moveaxis = movedim


@view_function
def expand(input: Tensor, *size: Any) -> Tensor:
    """Dimensions of extent 1 repeated without memory, a view; -1 keeps an extent."""
    target = list(shape_of_args(size, "size"))
    have = shape_of(input)
    extra = len(target) - len(have)
    if extra < 0:
        raise RuntimeError(
            f"expand({input.dtype}{list(have)}, size={target}): the number of sizes provided ({len(target)}) "
            f"must be greater or equal to the number of dimensions in the tensor ({len(have)})"
        )
    for i, n in enumerate(have):
        j = i + extra
        if target[j] == -1:
            target[j] = n
        elif n != 1 and n != target[j]:
            raise RuntimeError(
                f"The expanded size of the tensor ({target[j]}) must match the existing size ({n}) at "
                f"non-singleton dimension {j}.  Target sizes: {target}.  Tensor sizes: {list(have)}"
            )
    if any(d < 0 for d in target):
        raise RuntimeError(
            f"The expanded size of the tensor ({min(target)}) isn't allowed in a leading, non-existing "
            "dimension 0"
        )
    return view(input, P.broadcast_p, shape=tuple(target), axes=tuple(range(extra, len(target))))


def expand_as(input: Tensor, other: Tensor) -> Tensor:
    return expand(input, *shape_of(other))


def broadcast_to_(input: Tensor, size: Sequence[int]) -> Tensor:
    return expand(input, *size)


def broadcast_tensors(*tensors: Any) -> tuple[Tensor, ...]:
    """All expanded to their common shape."""
    ts = tensors[0] if len(tensors) == 1 and isinstance(tensors[0], (tuple, list)) else tensors
    shape = broadcast_shapes(*(shape_of(x) for x in ts))
    return tuple(expand(x, *shape) for x in ts)


# -- pieces -------------------------------------------------------------------------------------------------


def slice_dim(x: Tensor, dim: int, start: int, stop: int, step: int = 1) -> Tensor:
    """A view of ``start:stop:step`` (in range, non-negative) along one dimension."""
    s = shape_of(x)
    n = len(s)
    begin, end, steps = [0] * n, list(s), [1] * n
    begin[dim], end[dim], steps[dim] = start, max(stop, start), step
    return view(x, P.slice_p, start=tuple(begin), stop=tuple(end), step=tuple(steps))


@view_function
def narrow(input: Tensor, dim: int, start: Any, length: int) -> Tensor:
    """``length`` elements along ``dim`` from ``start``, a view."""
    d = wrap_dim(dim, input.ndim)
    if input.ndim == 0:
        raise RuntimeError("narrow() cannot be applied to a 0-dim tensor.")
    n = shape_of(input)[d]
    start = start.__index__()
    begin = start + n if start < 0 else start
    if length < 0:
        raise RuntimeError("narrow(): length must be non-negative.")
    if not 0 <= begin <= n:
        raise IndexError(f"start out of range (expected to be in range of [{-n}, {n}], but got {start})")
    if begin + length > n:
        raise RuntimeError(f"start ({start}) + length ({length}) exceeds dimension size ({n}).")
    return slice_dim(input, d, begin, begin + length)


@view_function
def select(input: Tensor, dim: int, index: Any) -> Tensor:
    """The part at one index of a dimension, a view."""
    s = shape_of(input)
    if not s:
        raise IndexError("select() cannot be applied to a 0-dim tensor.")
    d = wrap_dim(dim, len(s))
    i = index.__index__()
    if not -s[d] <= i < s[d]:
        raise IndexError(f"select(): index {i} out of range for tensor of size {list(s)} at dimension {d}")
    i %= s[d]
    zeros, ones, n = (0,) * d, (1,) * len(s), len(s) - d - 1
    box = {"start": (*zeros, i, *(0,) * n), "stop": (*s[:d], i + 1, *s[d + 1 :]), "step": ones}
    steps = [(P.slice_p, box), (P.reshape_p, {"shape": s[:d] + s[d + 1 :]})]
    a = at_hand(input)
    return views(input, steps, None if a is None else a[(*(slice(None),) * d, i, ...)])


@view_function
def unbind(input: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    """All parts along a dimension."""
    d = wrap_dim(dim, input.ndim)
    if input.ndim == 0:
        raise IndexError("Dimension specified as 0 but tensor has no dimensions")
    return siblings([select(input, d, i) for i in range(shape_of(input)[d])], "UnbindBackward0")


@view_function
def split(input: Tensor, split_size_or_sections: Any, dim: int = 0) -> tuple[Tensor, ...]:
    """Pieces of one size (the last may be smaller), or of the sizes listed."""
    d = wrap_dim(dim, input.ndim)
    n = shape_of(input)[d]
    if isinstance(split_size_or_sections, (tuple, list)):
        sizes = list(split_size_or_sections)
        if sum(sizes) != n or any(x < 0 for x in sizes):
            raise RuntimeError(
                f"split_with_sizes expects split_sizes to sum exactly to {n} (input tensor's size at "
                f"dimension {d}), but got split_sizes={sizes}"
            )
    else:
        k = split_size_or_sections.__index__()
        if k < 0 or (k == 0 and n != 0):
            raise RuntimeError(f"split expects split_size be non-negative, but got split_size={k}")
        sizes = [min(k, n - i) for i in range(0, n, k)] if n else [0]
    return _pieces(input, d, sizes)


def _pieces(x: Tensor, d: int, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    out, start = [], 0
    for n in sizes:
        out.append(slice_dim(x, d, start, start + n))
        start += n
    return siblings(out, "SplitBackward0")


split_with_sizes = split


@view_function
def chunk(input: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """At most ``chunks`` pieces of equal size (the last may be smaller)."""
    if chunks <= 0:
        raise RuntimeError(f"chunk expects `chunks` to be greater than 0, got: {chunks}")
    n = shape_of(input)[wrap_dim(dim, input.ndim)]
    return (
        split(input, max(-(-n // chunks), 1), dim)
        if n
        else _pieces(input, wrap_dim(dim, input.ndim), [0] * chunks)
    )


@view_function
def tensor_split(input: Tensor, indices_or_sections: Any, dim: int = 0) -> tuple[Tensor, ...]:
    """Pieces as even as possible, or between the indices given."""
    d = wrap_dim(dim, input.ndim)
    n = shape_of(input)[d]
    if isinstance(indices_or_sections, Tensor):
        indices_or_sections = indices_or_sections.tolist()
    if isinstance(indices_or_sections, int):
        k = indices_or_sections
        return _pieces(input, d, [n // k + (i < n % k) for i in range(k)])
    cuts = [0, *(min(max(i + n if i < 0 else i, 0), n) for i in indices_or_sections), n]
    return tuple(slice_dim(input, d, a, max(a, b)) for a, b in pairwise(cuts))


@view_function
def diagonal(input: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """The diagonal of two dimensions as the last dimension, a view."""
    s = shape_of(input)
    a, b = wrap_dim(dim1, len(s)), wrap_dim(dim2, len(s))
    if a == b:
        raise RuntimeError(f"diagonal dimensions cannot be identical {dim1}, {dim2}")
    lead = tuple(i for i in range(len(s)) if i not in (a, b))
    steps = [(P.permute_p, {"perm": (*lead, a, b)}), (P.diagonal_p, {"offset": offset})]
    data = None
    d = at_hand(input)
    if d is not None:
        data = np.diagonal(d, offset, a, b)
        if d.flags.writeable:
            data.flags.writeable = True
    return views(input, steps, data)


@prepared
def unfold(input: Tensor, dimension: int, size: int, step: int) -> Tensor:
    """All windows of ``size`` along a dimension, ``step`` apart, as a new last dimension (a copy)."""
    s = shape_of(input)
    d = wrap_dim(dimension, len(s))
    if size > s[d]:
        raise RuntimeError(f"maximum size for tensor at dimension {d} is {s[d]} but size is {size}")
    if step <= 0:
        raise RuntimeError(f"step is {step} but must be > 0")
    count = (s[d] - size) // step + 1
    from weft.creation import arange

    place = input.device
    index = arange(count, device=place).reshape(count, 1) * step + arange(size, device=place)
    moved = apply(P.gather_p, movedim(input, d, 0), index.reshape(count, size, 1), axes=(0,))
    n = len(s)
    return movedim(movedim(moved, 1, n), 0, d)


# -- joins --------------------------------------------------------------------------------------------------


@widest
@prepared
def cat(tensors: Sequence[Tensor], dim: int = 0, **kw: Any) -> Tensor:
    """Tensors one after the other along ``dim``. RuntimeError where other extents differ."""
    ts = list(tensors)
    dim = kw.get("axis", dim)
    if not ts:
        raise ValueError("torch.cat(): expected a non-empty list of Tensors")
    for i, x in enumerate(ts):
        if not isinstance(x, Tensor):
            raise TypeError(f"expected Tensor as element {i} in argument 0, but got {type(x).__name__}")
        if x.ndim == 0:
            raise RuntimeError(f"zero-dimensional tensor (at position {i}) cannot be concatenated")
    d = promote(*ts)
    ts = [x for x in ts if shape_of(x) != (0,)] or ts[:1]
    ndim = ts[0].ndim
    axis = wrap_dim(dim, ndim)
    for i, x in enumerate(ts):
        _check_cat(shape_of(ts[0]), shape_of(x), axis, i)
    return own(apply(P.concatenate_p, *[convert(x, d) for x in ts], axis=axis), *ts)


concat = concatenate = cat


def _check_cat(first: tuple[int, ...], other: tuple[int, ...], axis: int, i: int) -> None:
    if len(first) != len(other):
        raise RuntimeError(f"Tensors must have same number of dimensions: got {len(first)} and {len(other)}")
    for j, (a, b) in enumerate(zip(first, other, strict=True)):
        if a != b and j != axis:
            raise RuntimeError(
                f"Sizes of tensors must match except in dimension {axis}. Expected size {a} but got size {b} "
                f"for tensor number {i} in the list."
            )


@widest
@prepared
def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Tensors of one shape along a new dimension."""
    ts = list(tensors)
    if not ts:
        raise RuntimeError("stack expects a non-empty TensorList")
    for i, x in enumerate(ts):
        check_tensor(x, "stack", f"tensors[{i}]")
        if shape_of(x) != shape_of(ts[0]):
            raise RuntimeError(
                f"stack expects each tensor to be equal size, but got {list(shape_of(ts[0]))} at entry 0 and "
                f"{list(shape_of(x))} at entry {i}"
            )
    d = wrap_dim(dim, ts[0].ndim + 1)
    s = shape_of(ts[0])
    dtype = promote(*ts)
    parts = [apply(P.reshape_p, convert(x, dtype), shape=(*s[:d], 1, *s[d:])) for x in ts]
    return own(apply(P.concatenate_p, *parts, axis=d), *ts)


def _at_least(n: int) -> Any:
    def one(x: Tensor) -> Tensor:
        while x.ndim < n:
            x = unsqueeze(x, 0 if x.ndim < 2 else -1)
        return x

    def fn(*tensors: Any) -> Any:
        ts = tensors[0] if len(tensors) == 1 else tensors
        return one(ts) if isinstance(ts, Tensor) else tuple(one(x) for x in ts)

    fn.__doc__ = f"Tensors with at least {n} dimensions."
    return fn


atleast_1d, atleast_2d, atleast_3d = _at_least(1), _at_least(2), _at_least(3)


@prepared
def hstack(tensors: Sequence[Tensor]) -> Tensor:
    ts = [atleast_1d(x) for x in tensors]
    return cat(ts, 0 if ts[0].ndim == 1 else 1)


@prepared
def vstack(tensors: Sequence[Tensor]) -> Tensor:
    return cat([atleast_2d(x) for x in tensors], 0)


row_stack = vstack


@prepared
def column_stack(tensors: Sequence[Tensor]) -> Tensor:
    return cat([x.reshape(-1, 1) if x.ndim < 2 else x for x in tensors], 1)


@prepared
def dstack(tensors: Sequence[Tensor]) -> Tensor:
    return cat([atleast_3d(x) for x in tensors], 2)


# -- rearranged copies --------------------------------------------------------------------------------------


@prepared
def flip(input: Tensor, *dims: Any) -> Tensor:
    """Reversed along dimensions (a copy)."""
    axes = tuple(sorted(wrap_dim(d, input.ndim) for d in shape_of_args(dims, "dims")))
    if len(set(axes)) != len(axes):
        raise RuntimeError(f"dim {axes[0]} appears multiple times in the list of dims")
    return own(apply(P.flip_p, input, axes=axes if input.ndim else ()), input)


def fliplr(input: Tensor) -> Tensor:
    return flip(input, 1)


def flipud(input: Tensor) -> Tensor:
    return flip(input, 0)


@prepared
def roll(input: Tensor, shifts: Any, dims: Any = None) -> Tensor:
    """Elements moved along dimensions, those that fall off come in at the other end."""
    if dims is None:
        return reshape(roll(reshape(input, -1), shifts, 0), *shape_of(input))
    shifts = shifts if isinstance(shifts, (tuple, list)) else (shifts,)
    dims = dims if isinstance(dims, (tuple, list)) else (dims,)
    if len(shifts) != len(dims):
        raise RuntimeError(f"shifts and dimensions must align. shifts: {len(shifts)}, dims:{len(dims)}")
    out = input
    for k, d in zip(shifts, dims, strict=True):
        d = wrap_dim(d, input.ndim)
        n = shape_of(input)[d]
        cut = (n - k) % n if n else 0
        if cut:
            out = cat([slice_dim(out, d, cut, n), slice_dim(out, d, 0, cut)], d)
    return out.clone() if out is input else out


@prepared
def rot90(input: Tensor, k: int = 1, dims: Sequence[int] = (0, 1)) -> Tensor:
    a, b = dims
    k %= 4
    if k == 0:
        return input.clone()
    if k == 2:
        return flip(input, a, b)
    return transpose(flip(input, b), a, b) if k == 1 else flip(transpose(input, a, b), b)


@prepared
def repeat(input: Tensor, *repeats: Any) -> Tensor:
    """The whole tensor repeated along each dimension (a copy)."""
    reps = shape_of_args(repeats, "repeats")
    s = shape_of(input)
    if len(reps) < len(s):
        raise RuntimeError(
            "Number of dimensions of repeat dims can not be smaller than number of dimensions of tensor"
        )
    s = (1,) * (len(reps) - len(s)) + s
    wide = tuple(d for r, n in zip(reps, s, strict=True) for d in (r, n))
    axes = tuple(range(1, 2 * len(s), 2))
    out = apply(P.broadcast_p, reshape(input, *s), shape=wide, axes=axes)
    out = apply(P.reshape_p, out, shape=tuple(r * n for r, n in zip(reps, s, strict=True)))
    return own(out, input)


@prepared
def tile(input: Tensor, *dims: Any) -> Tensor:
    """As repeat; missing leading counts are 1."""
    reps = shape_of_args(dims, "dims")
    return repeat(input, *(1,) * (input.ndim - len(reps)), *reps)


@prepared
def repeat_interleave(
    input: Tensor, repeats: Any, dim: int | None = None, *, output_size: int | None = None
) -> Tensor:
    """Each element repeated in place: a count for all, or one count per element."""
    x = input if dim is not None else reshape(input, -1)
    d = wrap_dim(0 if dim is None else dim, x.ndim)
    n = shape_of(x)[d]
    counts = repeats.tolist() if isinstance(repeats, Tensor) else repeats
    if isinstance(counts, list) and len(counts) == 1:
        counts = counts[0]
    if isinstance(counts, int):
        s = shape_of(x)
        wide = apply(
            P.broadcast_p,
            x,
            shape=(*s[: d + 1], counts, *s[d + 1 :]),
            axes=tuple(i if i <= d else i + 1 for i in range(len(s))),
        )
        return own(apply(P.reshape_p, wide, shape=(*s[:d], n * counts, *s[d + 1 :])), x)
    if len(counts) != n:
        raise RuntimeError(
            f"repeats must have the same size as input along dim, but got repeats.size(0) = {len(counts)} "
            f"and input.size({d}) = {n}"
        )
    from weft.creation import constant
    from weft.ops.index import index_select

    return index_select(x, d, constant(np.repeat(np.arange(n), counts), x.device))


def constant_pad(x: Tensor, lo: Sequence[int], hi: Sequence[int], value: Any = 0) -> Tensor:
    """``x`` with ``value`` around it; negative amounts crop."""
    v = scalar_tensor(value, x.dtype)
    zeros = (0,) * x.ndim
    return own(apply(P.pad_p, x, v, lo=tuple(lo), hi=tuple(hi), interior=zeros), x)


def _triangle(input: Tensor, diagonal: int, upper: bool) -> Tensor:
    s = shape_of(input)
    if len(s) < 2:
        raise RuntimeError("tril/triu: input tensor must have at least 2 dimensions")
    shape = s[-2:]
    rows, cols = (apply(P.iota_p, shape=shape, dtype=T.i64, axis=i, device=input.device) for i in (0, 1))
    keep = cols - rows >= diagonal if upper else cols - rows <= diagonal
    zero = broadcast_to(scalar_tensor(0, input.dtype), s)
    return apply(P.where_p, broadcast_to(keep, s), input, zero)


@prepared
def tril(input: Tensor, diagonal: int = 0) -> Tensor:
    """The lower triangle of matrices, zeros above ``diagonal``."""
    return _triangle(input, diagonal, upper=False)


@prepared
def triu(input: Tensor, diagonal: int = 0) -> Tensor:
    """The upper triangle of matrices, zeros below ``diagonal``."""
    return _triangle(input, diagonal, upper=True)


def diag(input: Tensor, diagonal: int = 0) -> Tensor:
    """The diagonal of a matrix, or the matrix that has a vector on it."""
    if input.ndim == 1:
        return diag_embed(input, diagonal)
    if input.ndim != 2:
        raise RuntimeError(f"diag(): Supports 1D or 2D tensors. Got {input.ndim}D")
    return globals()["diagonal"](input, diagonal)


@prepared
def diag_embed(input: Tensor, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Tensor:
    """Matrices with the last dimension on a diagonal."""
    s = shape_of(input)
    k = s[-1] + (offset if offset >= 0 else -offset)
    lo, hi = (offset, 0) if offset >= 0 else (0, -offset)
    pad_rows = constant_pad(
        unsqueeze(input, -1) * _eye_like(input, s[-1]), [0] * (len(s) + 1), [0] * (len(s) + 1)
    )
    n = len(s) + 1
    before, after = [0] * n, [0] * n
    before[-1], after[-1] = lo, k - s[-1] - lo
    before[-2], after[-2] = hi, k - s[-1] - hi
    out = constant_pad(pad_rows, before, after)
    a, b = wrap_dim(dim1, n), wrap_dim(dim2, n)
    return out if (a, b) == (n - 2, n - 1) else movedim(out, (-2, -1), (a, b))


def _eye_like(x: Tensor, n: int) -> Tensor:
    from weft.creation import eye

    return eye(n, dtype=x.dtype, device=x.device)


def meshgrid(*tensors: Any, indexing: str = "ij") -> tuple[Tensor, ...]:
    """Coordinate tensors of a grid. ``indexing``: "ij" (matrix) or "xy"."""
    ts = tensors[0] if len(tensors) == 1 and isinstance(tensors[0], (tuple, list)) else tensors
    swap = indexing == "xy" and len(ts) > 1
    order = list(ts)
    if swap:
        order[0], order[1] = order[1], order[0]
    shape = tuple(x.numel() for x in order)
    out = [
        expand(reshape(x, *[-1 if j == i else 1 for j in range(len(order))]), *shape)
        for i, x in enumerate(order)
    ]
    if swap:
        out[0], out[1] = out[1], out[0]
    return tuple(out)


def tril_indices(row: int, col: int, offset: int = 0, *, dtype: Any = T.i64, device: Any = None) -> Tensor:
    from weft.creation import constant

    return constant(np.stack(np.tril_indices(row, offset, col)).astype(dtype.np))


def triu_indices(row: int, col: int, offset: int = 0, *, dtype: Any = T.i64, device: Any = None) -> Tensor:
    from weft.creation import constant

    return constant(np.stack(np.triu_indices(row, offset, col)).astype(dtype.np))


def cartesian_prod(*tensors: Tensor) -> Tensor:
    if len(tensors) == 1:
        return tensors[0]
    return stack([reshape(x, -1) for x in meshgrid(*tensors)], 1)


@prepared
def block_diag(*tensors: Tensor) -> Tensor:
    """A matrix with the tensors along its diagonal."""
    mats = [reshape(x, 1, -1) if x.ndim < 2 else x for x in tensors]
    rows, cols = sum(m.shape[0] for m in mats), sum(m.shape[1] for m in mats)
    r = c = 0
    out = []
    for m in mats:
        out.append(constant_pad(m, (0, c), (0, cols - c - m.shape[1])))
        r, c = r + m.shape[0], c + m.shape[1]
    assert r == rows
    return cat(out, 0)


# -- memory -------------------------------------------------------------------------------------------------


def clone(input: Tensor, *, memory_format: Any = None) -> Tensor:
    """A copy with memory of its own; gradients pass."""
    return apply(P.copy_p, input)


def contiguous(input: Tensor, memory_format: Any = None) -> Tensor:
    """Itself where memory is row-major, else a copy that is."""
    if input.is_contiguous():
        return input
    out = clone(input)
    if type(out._data) is np.ndarray:
        out._data = np.ascontiguousarray(out._data)
    return out


def as_strided(
    input: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> Tensor:
    """Elements of the storage of a contiguous tensor at the strides given (a copy)."""
    from weft.creation import constant
    from weft.ops.index import index_select

    base = input._base if input._base is not None else input
    offset = input.storage_offset() if storage_offset is None else storage_offset
    index = np.full(tuple(size), offset)
    for d, (n, s) in enumerate(zip(size, stride, strict=True)):
        index = index + (np.arange(n) * s).reshape([-1 if j == d else 1 for j in range(len(size))])
    flat = index_select(reshape(base, -1), 0, constant(index.reshape(-1), base.device))
    return reshape(flat, *size)


def view_as_real(input: Tensor) -> Tensor:
    """Complex numbers as pairs of reals in a new last dimension."""
    if not input.dtype.is_complex:
        raise RuntimeError("view_as_real is only supported for complex tensors")
    return stack([apply(P.real_p, input), apply(P.imag_p, input)], -1)


def view_as_complex(input: Tensor) -> Tensor:
    """Pairs of reals in the last dimension as complex numbers."""
    if shape_of(input)[-1:] != (2,):
        raise RuntimeError("Tensor must have a last dimension of size 2")
    return apply(P.complex_p, select(input, -1, 0), select(input, -1, 1))
