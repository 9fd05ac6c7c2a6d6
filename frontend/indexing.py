"""``x[key]`` and ``x[key] = value``: ints, slices, None, Ellipsis, masks, integer arrays and mixtures.

A key is resolved in two steps, as numpy and torch do: everything but arrays makes a view; the arrays (masks
turned into integer arrays) then gather from that view, or scatter into it. Array results stand at the place
of the arrays if these are adjacent, else in front.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from weft.creation import as_tensor, constant
from weft.dispatch import apply, at_hand, recording, wrap
from weft.ir import prims as P
from weft.ir import types as T
from weft.ops import shape as S
from weft.ops.common import broadcast_shapes, broadcast_to, convert, is_number, scalar_tensor, shape_of
from weft.ops.math import where
from weft.quickread import item_copy
from weft.quickview import item_view
from weft.quickwrite import assigned
from weft.tensor import Tensor
from weft.views import views, write_

_ARRAYS = (list, np.ndarray, range)


def _is_array(k: Any) -> bool:
    return isinstance(k, (Tensor, tuple, *_ARRAYS))


def _as_items(key: Any) -> list[Any]:
    if isinstance(key, tuple):
        return list(key)
    return [key]


def _index_tensor(k: Any) -> Tensor:
    """An index as an integer or bool tensor; torch's IndexError for other dtypes."""
    if not isinstance(k, Tensor):
        if isinstance(k, np.ndarray):
            k = as_tensor(k)
        elif isinstance(k, (list, tuple)) and not len(k):
            k = constant(np.empty(0, np.int64))
        else:
            from weft.creation import tensor

            k = tensor(list(k) if isinstance(k, range) else k)
    if not (k.dtype.is_integer or k.dtype is T.bool_):
        raise IndexError("tensors used as indices must be long, int, byte or bool tensors")
    return k


def _consumes(k: Any) -> int:
    """How many dimensions of the tensor an item takes."""
    if k is None or k is Ellipsis or isinstance(k, bool):
        return 0
    if isinstance(k, Tensor) and k.dtype is T.bool_:
        return k.ndim
    return 1


def _prepare(x: Tensor, key: Any) -> list[Any]:
    """The items with arrays as tensors and the ellipsis written out."""
    items = [_index_tensor(k) if _is_array(k) else k for k in _as_items(key)]
    taken = sum(_consumes(k) for k in items)
    n = x.ndim
    if taken > n:
        raise IndexError(f"too many indices for tensor of dimension {n}")
    dots = [i for i, k in enumerate(items) if k is Ellipsis]
    if len(dots) > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    fill: list[Any] = [slice(None)] * (n - taken)
    if dots:
        i = dots[0]
        return items[:i] + fill + items[i + 1 :]
    return items + fill


def _slice_bounds(k: slice, n: int) -> tuple[int, int, int]:
    step = 1 if k.step is None else k.step.__index__()
    if step <= 0:
        raise ValueError("step must be greater than zero")
    start, stop, _ = slice(_bound(k.start), _bound(k.stop)).indices(n)
    return start, max(stop, start), step


def _bound(v: Any) -> int | None:
    return None if v is None else v.__index__()


def _basic(x: Tensor, items: list[Any]) -> tuple[Tensor, list[Tensor | None]]:
    """The view that the non-array items make, and for each of its dimensions the array that indexes it."""
    shape = shape_of(x)
    start, stop, step = [0] * len(shape), list(shape), [1] * len(shape)
    final: list[int] = []
    arrays: list[Tensor | None] = []
    dim = 0
    for k in items:
        if k is None or isinstance(k, bool):
            final.append(1)
            arrays.append(None if k is not False else constant(np.empty(0, np.int64), x.device))
        elif isinstance(k, slice):
            start[dim], stop[dim], step[dim] = _slice_bounds(k, shape[dim])
            final.append(len(range(start[dim], stop[dim], step[dim])))
            arrays.append(None)
            dim += 1
        elif isinstance(k, Tensor):
            k = _beside(k, x)
            if k.dtype is T.bool_:
                dim = _mask(k, shape, dim, final, arrays)
            elif k.ndim == 0 and not recording():
                dim = _pick(int(k.item()), shape, dim, start, stop)
            else:
                final.append(shape[dim])
                arrays.append(_wrap_negative(k, shape[dim], dim))
                dim += 1
        elif hasattr(k, "__index__"):
            dim = _pick(k.__index__(), shape, dim, start, stop)
        else:
            error = TypeError if isinstance(k, str) else IndexError
            raise error(
                "only integers, slices (`:`), ellipsis (`...`), None and long or byte Variables are valid "
                f"indices (got {type(k).__name__})"
            )
    return _make_view(x, shape, start, stop, step, final), arrays


def _pick(i: int, shape: tuple[int, ...], dim: int, start: list[int], stop: list[int]) -> int:
    n = shape[dim]
    if not -n <= i < n:
        raise IndexError(f"index {i} is out of bounds for dimension {dim} with size {n}")
    start[dim] = i % n
    stop[dim] = start[dim] + 1
    return dim + 1


def _make_view(x: Tensor, shape: Any, start: Any, stop: Any, step: Any, final: list[int]) -> Tensor:
    """The view of a box with steps, in the final shape (extents of 1 taken out and put in)."""
    steps = _box_steps(shape, start, stop, step, final)
    data: Any = at_hand(x)
    if data is not None:
        for prim, attrs in steps:
            data = prim.eval(data, **attrs)
    return views(x, steps, data)


def _box_steps(shape: Any, start: Any, stop: Any, step: Any, final: Sequence[int]) -> list[Any]:
    steps: list[Any] = []
    if any(start) or any(s != 1 for s in step) or tuple(stop) != tuple(shape):
        steps.append((P.slice_p, {"start": tuple(start), "stop": tuple(stop), "step": tuple(step)}))
        shape = tuple(len(range(a, b, s)) for a, b, s in zip(start, stop, step, strict=True))
    if tuple(final) != tuple(shape) or not steps:
        steps.append((P.reshape_p, {"shape": tuple(final)}))
    return steps


def _steps_of(shape: tuple[int, ...], key: Any) -> tuple[Any, ...]:
    """The steps of a key without arrays, which numpy has found to fit."""
    items = _as_items(key)
    free = len(shape) - sum(k is not None and k is not Ellipsis for k in items)
    at = items.index(Ellipsis) if Ellipsis in items else len(items)
    items[at : at + 1] = [slice(None)] * free
    start, stop, step, final = [0] * len(shape), list(shape), [1] * len(shape), []
    dim = 0
    for k in items:
        if k is None:
            final.append(1)
            continue
        if isinstance(k, slice):
            start[dim], stop[dim], step[dim] = _slice_bounds(k, shape[dim])
            final.append(len(range(start[dim], stop[dim], step[dim])))
        else:
            _pick(k, shape, dim, start, stop)
        dim += 1
    return tuple(_box_steps(shape, start, stop, step, final))


def _beside(k: Tensor, x: Tensor) -> Tensor:
    """An index on the device of what it indexes: one from the CPU may be used anywhere."""
    here = x.device
    if k.device == here or (k.ndim == 0 and k.device.type == "cpu"):
        return k
    if k.device.type != "cpu":
        raise RuntimeError(
            "indices should be either on cpu or on the same device as the indexed tensor "
            f"({here}), but found one on {k.device}"
        )
    return k.to(here)


def _mask(k: Tensor, shape: tuple[int, ...], dim: int, final: list[int], arrays: list[Tensor | None]) -> int:
    """A bool mask as the integer arrays of its true elements."""
    for j, (a, b) in enumerate(zip(shape_of(k), shape[dim : dim + k.ndim], strict=True)):
        if a != b:
            raise IndexError(
                f"The shape of the mask {list(shape_of(k))} at index {j} does not match the shape of the "
                f"indexed tensor {list(shape)} at index {dim + j}"
            )
    where_true = np.nonzero(k._array("indexing with a mask (the size of the result depends on its values)"))
    if k.ndim == 0:
        final.append(1)
        arrays.append(constant(np.zeros(1 if where_true[0].size else 0, np.int64), k.device))
        return dim
    for j, index in enumerate(where_true):
        final.append(shape[dim + j])
        arrays.append(constant(np.ascontiguousarray(index), k.device))
    return dim + k.ndim


def _wrap_negative(k: Tensor, n: int, dim: int) -> Tensor:
    k = convert(k, T.i64)
    a = at_hand(k)
    if a is None:
        return where(k < 0, k + n, k)
    if a.size and (a.min() < -n or a.max() >= n):
        bad = a[(a < -n) | (a >= n)].flat[0]
        raise IndexError(f"index {bad} is out of bounds for dimension {dim} with size {n}")
    return wrap(np.where(a < 0, a + n, a)) if a.size and a.min() < 0 else k


def _point(arrays: Sequence[Tensor | None]) -> tuple[Tensor, tuple[int, ...], int]:
    """The stacked index [..., k], the dimensions it addresses, and where the result stands."""
    axes = tuple(i for i, a in enumerate(arrays) if a is not None)
    parts = [a for a in arrays if a is not None]
    try:
        shape = broadcast_shapes(*(shape_of(a) for a in parts))
    except RuntimeError:
        raise IndexError(
            "shape mismatch: indexing tensors could not be broadcast together with shapes "
            + ", ".join(str(list(shape_of(a))) for a in parts)
        ) from None
    columns = [apply(P.reshape_p, broadcast_to(a, shape), shape=(*shape, 1)) for a in parts]
    index = columns[0] if len(columns) == 1 else apply(P.concatenate_p, *columns, axis=len(shape))
    adjacent = axes == tuple(range(axes[0], axes[0] + len(axes)))
    return index, axes, axes[0] if adjacent else 0


def getitem(x: Tensor, key: Any) -> Tensor:
    """``x[key]``: a view for basic keys, a copy where arrays take part."""
    v = item_view(x, key, _steps_of)
    if v is None:
        v = item_copy(x, key)
    if v is not None:
        return v
    if type(key) is int:
        return _first_dim(x, key)
    v, arrays = _basic(x, _prepare(x, key))
    if all(a is None for a in arrays):
        return v
    index, axes, place = _point(arrays)
    out = apply(P.gather_p, v, index, axes=axes)
    k = index.ndim - 1
    return (
        out
        if place == 0 or k == 0
        else apply(P.permute_p, out, perm=_placing(k, out.ndim, place)).contiguous()
    )


def _first_dim(x: Tensor, i: int) -> Tensor:
    if not x.ndim:
        raise IndexError(
            "invalid index of a 0-dim tensor. Use `tensor.item()` in Python or `tensor.item<T>()` in C++ to "
            "convert a 0-dim tensor to a number"
        )
    n = shape_of(x)[0]
    if not -n <= i < n:
        raise IndexError(f"index {i} is out of bounds for dimension 0 with size {n}")
    return S.select(x, 0, i)


def _placing(k: int, ndim: int, place: int) -> tuple[int, ...]:
    """The permutation that moves the first k dimensions to ``place``."""
    return (*range(k, k + place), *range(k), *range(k + place, ndim))


def _inverse_placing(k: int, ndim: int, place: int) -> tuple[int, ...]:
    return (*range(place, place + k), *range(place), *range(place + k, ndim))


def _value_tensor(value: Any, like: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return convert(value, like.dtype)
    if is_number(value):
        return scalar_tensor(value, like.dtype)
    from weft.creation import tensor

    return convert(tensor(value, device=like.device), like.dtype)


def setitem(x: Tensor, key: Any, value: Any) -> None:
    """``x[key] = value``, the value broadcast to the place."""
    if assigned(x, key, value):
        return
    if _single_mask(x, key) and (is_number(value) or (isinstance(value, Tensor) and value.numel() == 1)):
        _fill_masked(x, _index_tensor(key), value)
        return
    v, arrays = _basic(x, _prepare(x, key))
    val = _value_tensor(value, x)
    if all(a is None for a in arrays):
        write_(v, _fit(val, shape_of(v)), replaces=True)
        return
    _put(v, arrays, val, "set")


def _single_mask(x: Tensor, key: Any) -> bool:
    return isinstance(key, Tensor) and key.dtype is T.bool_ and shape_of(key) == shape_of(x)[: key.ndim]


def _fill_masked(x: Tensor, mask: Tensor, value: Any) -> None:
    """A mask with a single value needs no indices: a selection."""
    m = apply(P.reshape_p, mask, shape=shape_of(mask) + (1,) * (x.ndim - mask.ndim))
    v = _value_tensor(value, x)
    v = apply(P.reshape_p, v, shape=()) if v.ndim else v
    write_(x, where(m, v, x))


def _fit(val: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``val`` broadcast to ``shape``; leading extents of 1 may be dropped, as torch allows in assignment."""
    s = shape_of(val)
    while len(s) > len(shape) and s[0] == 1:
        s = s[1:]
    if s != shape_of(val):
        val = apply(P.reshape_p, val, shape=s)
    for i, (a, b) in enumerate(zip(reversed(s), reversed(shape), strict=False)):
        if a not in (1, b):
            raise RuntimeError(
                f"The expanded size of the tensor ({b}) must match the existing size ({a}) at non-singleton "
                f"dimension {len(shape) - 1 - i}.  Target sizes: {list(shape)}.  Tensor sizes: {list(s)}"
            )
    if len(s) > len(shape):
        raise RuntimeError(
            f"expand(weft.{val.dtype.long_name}{list(s)}, size={list(shape)}): the number of sizes provided "
            f"({len(shape)}) must be greater or equal to the number of dimensions in the tensor ({len(s)})"
        )
    return broadcast_to(val, shape)


def _put(v: Tensor, arrays: Sequence[Tensor | None], val: Tensor, mode: str) -> None:
    index, axes, place = _point(arrays)
    k = index.ndim - 1
    rest = tuple(n for i, n in enumerate(shape_of(v)) if i not in axes)
    shape = rest[:place] + shape_of(index)[:-1] + rest[place:]
    try:
        val = _fit(val, shape)
    except RuntimeError:
        raise RuntimeError(
            f"shape mismatch: value tensor of shape {list(shape_of(val))} cannot be broadcast to indexing "
            f"result of shape {list(shape)}"
        ) from None
    if place and k:
        val = apply(P.permute_p, val, perm=_inverse_placing(k, len(shape), place))
    write_(v, apply(P.scatter_p, v, index, val, axes=axes, mode=mode))


def index_put_(input: Tensor, indices: Sequence[Any], values: Tensor, accumulate: bool = False) -> Tensor:
    """``input[indices] = values``, or ``+=`` with every repeated index counted."""
    v, arrays = _basic(input, _prepare(input, tuple(slice(None) if i is None else i for i in indices)))
    val = _value_tensor(values, input)
    if all(a is None for a in arrays):
        write_(v, v + val if accumulate else _fit(val, shape_of(v)))
    else:
        _put(v, arrays, val, "add" if accumulate else "set")
    return input


def index_put(input: Tensor, indices: Sequence[Any], values: Tensor, accumulate: bool = False) -> Tensor:
    """As :func:`index_put_`, of a copy."""
    return index_put_(input.clone(), indices, values, accumulate)
