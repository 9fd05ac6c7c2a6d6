"""Data movement: every result element is one operand element at an affine index, or a padding value.

``reshape``, ``permute``, ``broadcast`` and ``slice`` evaluate to numpy views where numpy can make one; the
others always give fresh storage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from operator import itemgetter, methodcaller
from typing import Any

import numpy as np
from weft.ir.prims.base import Kind, Primitive, type_of
from weft.ir.prims.rules import (
    apply,
    check_axes,
    check_axis,
    check_rank,
    check_same_dtype,
    inverse_permutation,
    others,
    zeros,
    zeros_like,
)
from weft.ir.types import DTYPES, Dim, TensorType, bool_

__all__ = [
    "broadcast_p",
    "concatenate_p",
    "copy_p",
    "diagonal_p",
    "flip_p",
    "pad_p",
    "permute_p",
    "reshape_p",
    "slice_p",
    "update_slice_p",
]

Ints = tuple[int, ...]


# reshape ----------------------------------------------------------------


def _reshape_infer(x: TensorType, *, shape: Ints) -> TensorType:
    static = not any(isinstance(d, Dim) for d in (*x.shape, *shape))
    if static and (prod(shape) != x.size or any(d < 0 for d in shape)):
        raise ValueError(f"reshape: shape {tuple(shape)} is invalid for an operand of type {x}")
    return x.with_(shape=shape)


reshape_p = Primitive(
    "reshape", Kind.MOVE, infer=_reshape_infer, dtypes=DTYPES, needs="",
    eval=lambda x, *, shape: x.reshape(shape),
    call=lambda attrs, x: methodcaller("reshape", attrs["shape"]),
    vjp=lambda ct, out, x, *, shape: (apply("reshape", ct, shape=type_of(x).shape),),
)  # fmt: skip


# permute ----------------------------------------------------------------


def _permute_infer(x: TensorType, *, perm: Ints) -> TensorType:
    check_rank("permute", "perm", perm, x.ndim)
    check_axes("permute", perm, x.ndim)
    return x.with_(shape=tuple(x.shape[p] for p in perm))


permute_p = Primitive(
    "permute", Kind.MOVE, infer=_permute_infer, dtypes=DTYPES, needs="",
    eval=lambda x, *, perm: x.transpose(perm),
    call=lambda attrs, x: methodcaller("transpose", attrs["perm"]),
    vjp=lambda ct, out, x, *, perm: (apply("permute", ct, perm=inverse_permutation(perm)),),
)  # fmt: skip


# broadcast ----------------------------------------------------------------


def _broadcast_infer(x: TensorType, *, shape: Ints, axes: Ints) -> TensorType:
    check_rank("broadcast", "axes", axes, x.ndim)
    check_axes("broadcast", axes, len(shape), ordered=True)
    for d, a in zip(x.shape, axes, strict=True):
        if d != 1 and d != shape[a]:
            raise ValueError(f"broadcast: {x} does not broadcast to {tuple(shape)} along axes {tuple(axes)}")
    return x.with_(shape=shape)


def _broadcast_eval(x: np.ndarray, *, shape: Ints, axes: Ints) -> np.ndarray:
    strides = [0] * len(shape)
    for d, s, a in zip(x.shape, x.strides, axes, strict=True):
        if d != 1 and d != shape[a]:
            raise ValueError(f"broadcast: shape {x.shape} does not broadcast to {shape} along axes {axes}")
        strides[a] = s if d == shape[a] else 0
    if not x.flags.c_contiguous:
        return np.lib.stride_tricks.as_strided(x, shape, strides, writeable=False)
    out = np.ndarray(shape, x.dtype, x, 0, strides)  # as_strided costs ten times as much
    out.setflags(write=False)
    return out


def _broadcast_vjp(ct: Any, out: Any, x: Any, *, shape: Ints, axes: Ints) -> tuple[Any, ...]:
    xs = type_of(x).shape
    kept = {a for d, a in zip(xs, axes, strict=True) if d == shape[a]}
    if len(kept) < len(shape):
        ct = apply("sum", ct, axes=others(kept, len(shape)))
    return (ct if type_of(ct).shape == xs else apply("reshape", ct, shape=xs),)


broadcast_p = Primitive(
    "broadcast", Kind.MOVE, infer=_broadcast_infer, eval=_broadcast_eval, vjp=_broadcast_vjp,
    dtypes=DTYPES, needs="",
)  # fmt: skip


# slice ----------------------------------------------------------------


def slice_lengths(start: Ints, stop: Ints, step: Ints) -> Ints:
    return tuple(max(0, -(-(b - a) // s)) for a, b, s in zip(start, stop, step, strict=True))


def _slice_infer(x: TensorType, *, start: Ints, stop: Ints, step: Ints) -> TensorType:
    for name, values in (("start", start), ("stop", stop), ("step", step)):
        check_rank("slice", name, values, x.ndim)
    for d, a, b, s in zip(x.shape, start, stop, step, strict=True):
        if s < 1 or not (0 <= a <= d and 0 <= b <= d):
            raise ValueError(f"slice: {start}:{stop}:{step} is out of range for {x}")
    return x.with_(shape=slice_lengths(start, stop, step))


def _slice_eval(x: np.ndarray, *, start: Ints, stop: Ints, step: Ints) -> np.ndarray:
    return x[tuple(map(slice, start, stop, step))]


def _slice_vjp(ct: Any, out: Any, x: Any, *, start: Ints, stop: Ints, step: Ints) -> tuple[Any, ...]:
    shape = type_of(x).shape
    hi = tuple(
        d - a - (n and (n - 1) * s + 1)
        for d, a, s, n in zip(shape, start, step, slice_lengths(start, stop, step), strict=True)
    )
    return (apply("pad", ct, zeros(ct, ()), lo=start, hi=hi, interior=tuple(s - 1 for s in step)),)


slice_p = Primitive(
    "slice", Kind.MOVE, infer=_slice_infer, eval=_slice_eval, vjp=_slice_vjp, dtypes=DTYPES, needs="",
    call=lambda attrs, x: itemgetter(tuple(map(slice, attrs["start"], attrs["stop"], attrs["step"]))),
)  # fmt: skip


# diagonal ----------------------------------------------------------------


def diagonal_slice(rows: int, cols: int, offset: int) -> tuple[int, int, int]:
    """Start, stop and step of a diagonal among the rows * cols elements of a matrix in row-major order.

    >>> diagonal_slice(3, 4, 1)
    (1, 12, 5)
    """
    count = max(min(rows, cols - offset) if offset >= 0 else min(rows + offset, cols), 0)
    start = min(offset if offset >= 0 else -offset * cols, rows * cols)
    return start, start + (count - 1) * (cols + 1) + 1 if count else start, cols + 1


def _diagonal_infer(x: TensorType, *, offset: int) -> TensorType:
    if x.ndim < 2:
        raise ValueError(f"diagonal: expected at least two dimensions, got {x}")
    start, stop, step = diagonal_slice(x.shape[-2], x.shape[-1], offset)
    return x.with_(shape=(*x.shape[:-2], *slice_lengths((start,), (stop,), (step,))))


def _diagonal_eval(x: np.ndarray, *, offset: int) -> np.ndarray:
    out = np.diagonal(x, offset, -2, -1)
    if x.flags.writeable:
        out.flags.writeable = True
    return out


def _diagonal_vjp(ct: Any, out: Any, x: Any, *, offset: int) -> tuple[Any, ...]:
    shape = type_of(x).shape
    rows, cols = shape[-2:]
    start, stop, step = diagonal_slice(rows, cols, offset)
    lead = (0,) * (len(shape) - 2)
    lo, hi, interior = (*lead, start), (*lead, rows * cols - stop), (*lead, step - 1)
    flat = apply("pad", ct, zeros(ct, ()), lo=lo, hi=hi, interior=interior)
    return (apply("reshape", flat, shape=shape),)


diagonal_p = Primitive(
    "diagonal", Kind.MOVE, infer=_diagonal_infer, eval=_diagonal_eval, vjp=_diagonal_vjp, dtypes=DTYPES,
    needs="",
)  # fmt: skip


# pad ----------------------------------------------------------------


def dilated(n: int, step: int) -> int:
    """The extent of ``n`` elements that lie ``step`` apart."""
    return n and (n - 1) * step + 1


def _pad_infer(x: TensorType, value: TensorType, *, lo: Ints, hi: Ints, interior: Ints) -> TensorType:
    for name, values in (("lo", lo), ("hi", hi), ("interior", interior)):
        check_rank("pad", name, values, x.ndim)
    check_same_dtype("pad", x, value)
    if value.shape != ():
        raise ValueError(f"pad: the padding value must be 0-d, got {value}")
    shape = tuple(dilated(d, m + 1) + a + b for d, a, b, m in zip(x.shape, lo, hi, interior, strict=True))
    if any(d < 0 for d in shape) or any(m < 0 for m in interior):
        raise ValueError(f"pad: lo {lo}, hi {hi}, interior {interior} leave {shape} of {x}")
    return x.with_(shape=shape)


def pad_array(x: np.ndarray, value: Any, lo: Ints, hi: Ints, interior: Ints) -> np.ndarray:
    """``x`` spread ``interior`` apart, then padded (cropped where negative) at both ends. Fresh storage."""
    shape = tuple(
        dilated(d, m + 1) + a + b for d, a, b, m in zip(x.shape, lo, hi, interior, strict=True)
    )
    if any(d < 0 for d in shape):
        raise ValueError(f"pad: lo {lo}, hi {hi}, interior {interior} leave {shape} of shape {x.shape}")
    out = np.full(shape, value, x.dtype)
    dst, src = [], []
    for d, n, a, m in zip(shape, x.shape, lo, interior, strict=True):
        first = max(0, -(a // (m + 1)) if a < 0 else 0)  # the first element that is not cropped
        last = min(n, max(0, -(-(d - a) // (m + 1))))  # one past the last that still fits
        last = max(last, first)
        begin = a + first * (m + 1)
        dst.append(slice(begin, begin + dilated(last - first, m + 1), m + 1))
        src.append(slice(first, last))
    out[tuple(dst)] = x[tuple(src)]
    return out


def _pad_vjp(
    ct: Any, out: Any, x: Any, value: Any, *, lo: Ints, hi: Ints, interior: Ints
) -> tuple[Any, ...]:
    t = type_of(x)
    zero, flat = zeros(ct, ()), (0,) * t.ndim
    crop = apply("pad", ct, zero, lo=tuple(-a for a in lo), hi=tuple(-b for b in hi), interior=flat)
    if any(interior):
        crop = apply("slice", crop, start=flat, stop=type_of(crop).shape, step=tuple(m + 1 for m in interior))
    inside = apply("full", shape=t.shape, dtype=bool_, value=False, device=t.device)
    true = apply("full", shape=(), dtype=bool_, value=True, device=t.device)
    padding = apply("pad", inside, true, lo=lo, hi=hi, interior=interior)
    outside = apply("where", padding, ct, zeros_like(ct))
    return crop, apply("sum", outside, axes=tuple(range(t.ndim)))


pad_p = Primitive(
    "pad", Kind.MOVE, infer=_pad_infer, vjp=_pad_vjp, dtypes=DTYPES, needs="",
    eval=lambda x, value, *, lo, hi, interior: pad_array(x, value, lo, hi, interior),
)  # fmt: skip


# flip, concatenate, update_slice, copy ----------------------------------------------------------------


def _flip_infer(x: TensorType, *, axes: Ints) -> TensorType:
    check_axes("flip", axes, x.ndim)
    return x


flip_p = Primitive(
    "flip", Kind.MOVE, infer=_flip_infer, dtypes=DTYPES, needs="",
    eval=lambda x, *, axes: np.flip(x, axes).copy(order="C"),
    vjp=lambda ct, out, x, *, axes: (apply("flip", ct, axes=axes),),
)  # fmt: skip


def _concatenate_infer(*xs: TensorType, axis: int) -> TensorType:
    if not xs:
        raise ValueError("concatenate: needs at least one operand")
    check_same_dtype("concatenate", *xs)
    check_axis("concatenate", axis, xs[0].ndim)
    first = xs[0].shape
    for t in xs:
        if t.ndim != len(first) or any(i != axis and a != b for i, (a, b) in enumerate(zip(t.shape, first))):  # noqa: B905
            raise ValueError(f"concatenate: {t} and {xs[0]} differ outside axis {axis}")
    return xs[0].with_(shape=(*first[:axis], sum(t.shape[axis] for t in xs), *first[axis + 1 :]))


def _concatenate_vjp(ct: Any, out: Any, *xs: Any, axis: int) -> tuple[Any, ...]:
    shape, at, cts = type_of(ct).shape, 0, []
    ones = (1,) * len(shape)
    for x in xs:
        n = type_of(x).shape[axis]
        start = tuple(at if i == axis else 0 for i in range(len(shape)))
        stop = tuple(at + n if i == axis else d for i, d in enumerate(shape))
        cts.append(apply("slice", ct, start=start, stop=stop, step=ones))
        at += n
    return tuple(cts)


def _concatenate_call(attrs: Any, *types: TensorType) -> Callable[..., Any]:
    axis, concatenate = attrs["axis"], np.concatenate
    return lambda *xs: concatenate(xs, axis)


concatenate_p = Primitive(
    "concatenate", Kind.MOVE, infer=_concatenate_infer, vjp=_concatenate_vjp, dtypes=DTYPES, needs="",
    eval=lambda *xs, axis: np.concatenate(xs, axis), call=_concatenate_call,
)  # fmt: skip


def _region(start: Ints, step: Ints, lengths: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(a, a + dilated(n, s), s) for a, s, n in zip(start, step, lengths, strict=True))


def _update_slice_infer(x: TensorType, upd: TensorType, *, start: Ints, step: Ints) -> TensorType:
    check_same_dtype("update_slice", x, upd)
    for name, values in (("start", start), ("step", step), ("update shape", upd.shape)):
        check_rank("update_slice", name, values, x.ndim)
    for d, n, a, s in zip(x.shape, upd.shape, start, step, strict=True):
        if s < 1 or a < 0 or a + dilated(n, s) > d:
            raise ValueError(f"update_slice: {upd} at {start} step {step} does not fit in {x}")
    return x


def _update_slice_eval(x: np.ndarray, upd: np.ndarray, *, start: Ints, step: Ints) -> np.ndarray:
    out = x.copy(order="C")
    out[_region(start, step, upd.shape)] = upd
    return out


def _update_slice_vjp(ct: Any, out: Any, x: Any, upd: Any, *, start: Ints, step: Ints) -> tuple[Any, ...]:
    shape = type_of(upd).shape
    stop = tuple(a + dilated(n, s) for a, s, n in zip(start, step, shape, strict=True))
    hole = apply("update_slice", ct, zeros(ct, shape), start=start, step=step)
    return hole, apply("slice", ct, start=start, stop=stop, step=step)


update_slice_p = Primitive(
    "update_slice", Kind.MOVE, infer=_update_slice_infer, eval=_update_slice_eval, vjp=_update_slice_vjp,
    dtypes=DTYPES, needs="",
)  # fmt: skip


copy_p = Primitive(
    "copy", Kind.MOVE, infer=lambda x: x, dtypes=DTYPES, needs="",
    eval=lambda x: x.copy(order="C"), call=lambda attrs, x: methodcaller("copy", "C"),
    vjp=lambda ct, out, x: (ct,),
)  # fmt: skip
