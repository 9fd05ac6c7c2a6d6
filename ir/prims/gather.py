"""Indexed reads and writes.

Indices are i64 or i32 and non-negative; out of range raises IndexError. ``gather`` and ``scatter`` address
the dims ``axes`` of x by the last dim of the index (like x[i0, i1, ...]); the ``_along`` pair is torch's
gather and scatter. Where several updates meet in one element, ``set`` keeps the last one; its gradient, as
torch's, is that of distinct indices. The modes max, min and mul are primitives of their own
(``scatter_reduce``, ``scatter_reduce_along``), because their gradients read values that those of set and add
need not keep.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from weft.ir.prims.base import Kind, Primitive, full_like, type_of
from weft.ir.prims.rules import (
    apply,
    as_dtype,
    check_axes,
    check_axis,
    check_index_dtype,
    check_rank,
    check_same_dtype,
    conjugate,
    others,
    zeros,
    zeros_like,
)
from weft.ir.types import DTYPES, TensorType

__all__ = [
    "gather_p",
    "scatter_along_p",
    "scatter_p",
    "scatter_reduce_along_p",
    "scatter_reduce_p",
    "take_along_p",
]

Ints = tuple[int, ...]
WRITES, REDUCTIONS = ("set", "add"), ("max", "min", "mul")
_UFUNCS = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _check_range(prim: str, idx: np.ndarray, size: int, axis: int) -> None:
    if idx.size and not (idx.min() >= 0 and idx.max() < size):
        bad = idx[(idx < 0) | (idx >= size)].flat[0]
        raise IndexError(f"{prim}: index {bad} is out of bounds for dimension {axis} with size {size}")


def _store(out: np.ndarray, where: tuple[Any, ...], upd: np.ndarray, mode: str) -> None:
    if mode == "set":
        out[where] = upd
    else:
        _UFUNCS[mode].at(out, where, upd)


def _store_elements(
    out: np.ndarray, axes: Ints, where: tuple[np.ndarray, ...], upd: np.ndarray, mode: str
) -> None:
    """Write single elements: one flat index is what numpy's ufunc.at is fast with. ``out`` is contiguous."""
    flat = sum(i * (out.strides[a] // out.itemsize) for a, i in zip(axes, where, strict=True))
    flat = np.broadcast_to(flat, upd.shape).reshape(-1)
    _store(out.reshape(-1), (flat,), upd.reshape(-1), mode)


# gather, scatter ----------------------------------------------------------------


def _index_infer(prim: str, x: TensorType, idx: TensorType, axes: Ints) -> tuple[Any, ...]:
    check_index_dtype(prim, idx)
    check_axes(prim, axes, x.ndim)
    if idx.ndim == 0 or idx.shape[-1] != len(axes):
        raise ValueError(f"{prim}: the last dimension of the indices {idx} must be {len(axes)}")
    return (*idx.shape[:-1], *(x.shape[i] for i in others(axes, x.ndim)))


def _point(
    prim: str, x: np.ndarray, idx: np.ndarray, axes: Ints
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """x with ``axes`` moved to the front, and the index arrays into them."""
    for j, a in enumerate(axes):
        _check_range(prim, idx[..., j], x.shape[a], a)
    return x.transpose((*axes, *others(axes, x.ndim))), tuple(idx[..., j] for j in range(len(axes)))


def _gather_eval(x: np.ndarray, idx: np.ndarray, *, axes: Ints) -> np.ndarray:
    front, where = _point("gather", x, idx, axes)
    out = front[where]
    if not where:  # no axes: idx[..., 0] only repeats x
        out = np.broadcast_to(x, (*idx.shape[:-1], *x.shape))
    return np.array(out, order="C", copy=None if out.base is None else True)


def _gather_vjp(ct: Any, out: Any, x: Any, idx: Any, *, axes: Ints) -> tuple[Any, ...]:
    return apply("scatter", zeros(ct, type_of(x).shape), idx, ct, axes=axes, mode="add"), None


def _within(idx: np.ndarray, n: int) -> bool:
    """Whether all indices are in [0, n): as unsigned numbers, negative ones are large."""
    return not idx.size or bool(np.maximum.reduce(idx.view(f"u{idx.itemsize}"), None) < n)


def _gather_call(attrs: Any, x: TensorType, idx: TensorType) -> Any:
    """Reads along the first axis are numpy's ``take``."""
    if attrs["axes"] != (0,):
        return None
    n, last = x.shape[0], idx.shape[:-1]

    def call(x: np.ndarray, idx: np.ndarray) -> np.ndarray:
        if not _within(idx, n):
            _check_range("gather", idx, n, 0)
        return x.take(idx.reshape(last), 0)

    return call


gather_p = Primitive(
    "gather", Kind.GATHER, eval=_gather_eval, vjp=_gather_vjp, needs="1", dtypes=DTYPES, call=_gather_call,
    infer=lambda x, idx, *, axes: x.with_(shape=_index_infer("gather", x, idx, axes)),
)  # fmt: skip


def _check_mode(prim: str, mode: str, modes: tuple[str, ...], x: TensorType) -> None:
    if mode not in modes:
        raise ValueError(f"{prim}: mode must be one of {', '.join(modes)}, got {mode!r}")
    if mode in ("max", "min") and x.dtype.is_complex:
        raise TypeError(f"{prim}: mode {mode!r} needs an ordered dtype, got {x}")


def _scatter_infer(prim: str, modes: tuple[str, ...]) -> Callable[..., TensorType]:
    def infer(x: TensorType, idx: TensorType, upd: TensorType, *, axes: Ints, mode: str) -> TensorType:
        _check_mode(prim, mode, modes, x)
        check_same_dtype(prim, x, upd)
        shape = _index_infer(prim, x, idx, axes)
        if upd.shape != shape:
            raise ValueError(f"{prim}: updates must have shape {shape}, got {upd}")
        return x

    return infer


def _scatter_eval(x: np.ndarray, idx: np.ndarray, upd: np.ndarray, *, axes: Ints, mode: str) -> np.ndarray:
    out = x.copy(order="C")
    front, where = _point("scatter", out, idx, axes)
    if len(where) == x.ndim > 0:
        _store_elements(out, axes, where, upd, mode)
    elif where:
        _store(front, where, upd, mode)
    else:  # no axes: every update covers the whole of x
        _store(out[None], (np.zeros(idx.shape[:-1], np.int64),), upd, mode)
    return out


Read = Callable[[Any], Any]  # values at the indices
Write = Callable[[Any, Any, str], Any]  # updates written at the indices


def _write_vjp(ct: Any, upd: Any, mode: str, read: Read, write: Write) -> tuple[Any, ...]:
    """Cotangents of x, the indices and the updates of an indexed write, given how it reads and writes."""
    if mode == "set":
        return write(ct, zeros(ct, type_of(upd).shape), "set"), None, read(ct)
    return ct, None, read(ct)


def _reduce_vjp(
    ct: Any, out: Any, x: Any, upd: Any, mode: str, read: Read, write: Write
) -> tuple[Any, ...]:
    if mode == "mul":
        return _product_vjp(ct, x, upd, read, write)
    return _extreme_vjp(ct, out, x, upd, read, write)


def _extreme_vjp(ct: Any, out: Any, x: Any, upd: Any, read: Read, write: Write) -> tuple[Any, ...]:
    """Divided evenly among the elements that reach the extreme (as torch.scatter_reduce)."""
    dtype = type_of(x).dtype
    mine = as_dtype(apply("eq", x, out), dtype)
    theirs = as_dtype(apply("eq", upd, read(out)), dtype)
    share = apply("div", ct, write(mine, theirs, "add"))
    return apply("mul", share, mine), None, apply("mul", read(share), theirs)


def _product_vjp(ct: Any, x: Any, upd: Any, read: Read, write: Write) -> tuple[Any, ...]:
    """Each factor gets the product of the others; zeros are counted apart, so that none is divided by."""
    zero = zeros_like(upd)
    one = full_like(upd, 1)
    is_zero = apply("eq", upd, zero)
    factors = apply("where", is_zero, one, upd)
    product = read(write(x, factors, "mul"))  # of x and all updates but zeros
    n_zeros = read(write(zeros_like(x), apply("where", is_zero, one, zero), "add"))
    alone = apply("eq", n_zeros, one)
    none = apply("eq", n_zeros, zero)
    rest = apply(
        "where",
        is_zero,
        apply("where", alone, product, zero),
        apply("where", none, apply("div", product, factors), zero),
    )
    ct_x = apply("mul", ct, conjugate(write(full_like(x, 1), upd, "mul")))
    return ct_x, None, apply("mul", read(ct), conjugate(rest))


def _accessors(read: str, write: str, idx: Any, **where: Any) -> tuple[Read, Write]:
    """How to read and write at ``idx``, by primitives of these names (with ``_reduce`` for some modes)."""

    def write_(x: Any, upd: Any, mode: str) -> Any:
        name = write if mode in WRITES else write.replace("scatter", "scatter_reduce")
        return apply(name, x, idx, upd, mode=mode, **where)

    return lambda x: apply(read, x, idx, **where), write_


def _scatter_vjp(
    ct: Any, out: Any, x: Any, idx: Any, upd: Any, *, axes: Ints, mode: str
) -> tuple[Any, ...]:
    return _write_vjp(ct, upd, mode, *_accessors("gather", "scatter", idx, axes=axes))


def _scatter_reduce_vjp(
    ct: Any, out: Any, x: Any, idx: Any, upd: Any, *, axes: Ints, mode: str
) -> tuple[Any, ...]:
    return _reduce_vjp(ct, out, x, upd, mode, *_accessors("gather", "scatter", idx, axes=axes))


scatter_p = Primitive(
    "scatter", Kind.SCATTER, infer=_scatter_infer("scatter", WRITES), eval=_scatter_eval, vjp=_scatter_vjp,
    needs="1", defaults={"mode": "set"}, dtypes=DTYPES,
)  # fmt: skip
scatter_reduce_p = Primitive(
    "scatter_reduce", Kind.SCATTER, infer=_scatter_infer("scatter_reduce", REDUCTIONS), eval=_scatter_eval,
    vjp=_scatter_reduce_vjp, needs="012o", dtypes=DTYPES,
)  # fmt: skip


# take_along, scatter_along ----------------------------------------------------------------


def _along_infer(prim: str, x: TensorType, idx: TensorType, axis: int) -> None:
    check_index_dtype(prim, idx)
    check_axis(prim, axis, x.ndim)
    check_rank(prim, "index shape", idx.shape, x.ndim)
    if any(i != axis and n > d for i, (n, d) in enumerate(zip(idx.shape, x.shape, strict=True))):
        raise ValueError(f"{prim}: indices {idx} reach outside {x} beside axis {axis}")


def _along_index(prim: str, x: np.ndarray, idx: np.ndarray, axis: int) -> tuple[np.ndarray, ...]:
    _check_range(prim, idx, x.shape[axis], axis)
    last = x.ndim - 1
    return tuple(
        idx if i == axis else np.arange(n).reshape(n, *(1,) * (last - i)) for i, n in enumerate(idx.shape)
    )


def _take_along_infer(x: TensorType, idx: TensorType, *, axis: int) -> TensorType:
    _along_infer("take_along", x, idx, axis)
    return x.with_(shape=idx.shape)


def _take_along_vjp(ct: Any, out: Any, x: Any, idx: Any, *, axis: int) -> tuple[Any, ...]:
    return apply("scatter_along", zeros(ct, type_of(x).shape), idx, ct, axis=axis, mode="add"), None


def _take_along_call(attrs: Any, x: TensorType, idx: TensorType) -> Any:
    """The same with the indices of the other axes made once."""
    axis, last = attrs["axis"], x.ndim - 1
    n = x.shape[axis]
    grids = [np.arange(d).reshape(d, *(1,) * (last - i)) for i, d in enumerate(idx.shape)]
    before, after = tuple(grids[:axis]), tuple(grids[axis + 1 :])

    def call(x: np.ndarray, idx: np.ndarray) -> np.ndarray:
        if not _within(idx, n):
            _check_range("take_along", idx, n, axis)
        return np.ascontiguousarray(x[(*before, idx, *after)])

    return call


take_along_p = Primitive(
    "take_along", Kind.GATHER, infer=_take_along_infer, vjp=_take_along_vjp, needs="1", dtypes=DTYPES,
    eval=lambda x, idx, *, axis: np.ascontiguousarray(x[_along_index("take_along", x, idx, axis)]),
    call=_take_along_call,
)  # fmt: skip


def _scatter_along_infer(prim: str, modes: tuple[str, ...]) -> Callable[..., TensorType]:
    def infer(x: TensorType, idx: TensorType, upd: TensorType, *, axis: int, mode: str) -> TensorType:
        _check_mode(prim, mode, modes, x)
        check_same_dtype(prim, x, upd)
        _along_infer(prim, x, idx, axis)
        if upd.shape != idx.shape:
            raise ValueError(f"{prim}: updates must have the shape of the indices {idx}, got {upd}")
        return x

    return infer


def _scatter_along_eval(
    x: np.ndarray, idx: np.ndarray, upd: np.ndarray, *, axis: int, mode: str
) -> np.ndarray:
    out = x.copy(order="C")
    where = _along_index("scatter_along", x, idx, axis)
    _store_elements(out, tuple(range(x.ndim)), where, upd, mode)
    return out


def _scatter_along_vjp(
    ct: Any, out: Any, x: Any, idx: Any, upd: Any, *, axis: int, mode: str
) -> tuple[Any, ...]:
    return _write_vjp(ct, upd, mode, *_accessors("take_along", "scatter_along", idx, axis=axis))


def _scatter_reduce_along_vjp(
    ct: Any, out: Any, x: Any, idx: Any, upd: Any, *, axis: int, mode: str
) -> tuple[Any, ...]:
    return _reduce_vjp(ct, out, x, upd, mode, *_accessors("take_along", "scatter_along", idx, axis=axis))


scatter_along_p = Primitive(
    "scatter_along", Kind.SCATTER, infer=_scatter_along_infer("scatter_along", WRITES),
    eval=_scatter_along_eval, vjp=_scatter_along_vjp, needs="1", defaults={"mode": "set"}, dtypes=DTYPES,
)  # fmt: skip
scatter_reduce_along_p = Primitive(
    "scatter_reduce_along", Kind.SCATTER, infer=_scatter_along_infer("scatter_reduce_along", REDUCTIONS),
    eval=_scatter_along_eval, vjp=_scatter_reduce_along_vjp, needs="012o", dtypes=DTYPES,
)  # fmt: skip
