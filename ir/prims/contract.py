"""Contractions: dot_general and conv, closed under differentiation. f16 and bf16 accumulate in f32."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from weft.ir.prims.base import Kind, Primitive, type_of
from weft.ir.prims.move import dilated, pad_array
from weft.ir.prims.rules import (
    apply,
    check_axes,
    check_dtype,
    check_rank,
    check_same_dtype,
    conjugate,
    inverse_permutation,
    others,
    wide,
    zeros_like,
)
from weft.ir.types import NUMERIC, TensorType

__all__ = ["conv_p", "dot_general_p"]

Ints = tuple[int, ...]
Pair = tuple[Ints, Ints]

# dot_general ----------------------------------------------------------------


def free_axes(ndim: int, contract: Ints, batch: Ints) -> Ints:
    """The axes of an operand that are neither contracted nor batched."""
    return others((*contract, *batch), ndim)


def _dot_infer(a: TensorType, b: TensorType, *, contract: Pair, batch: Pair = ((), ())) -> TensorType:
    check_same_dtype("dot_general", a, b)
    check_dtype("dot_general", a, NUMERIC)
    for t, c, s in ((a, contract[0], batch[0]), (b, contract[1], batch[1])):
        check_axes("dot_general", (*c, *s), t.ndim)
    for what, (left, right) in (("contracted", contract), ("batch", batch)):
        if [a.shape[i] for i in left] != [b.shape[j] for j in right]:
            raise ValueError(f"dot_general: {what} dimensions {left} of {a} and {right} of {b} differ")
    shape = [a.shape[i] for i in (*batch[0], *free_axes(a.ndim, contract[0], batch[0]))]
    shape += [b.shape[j] for j in free_axes(b.ndim, contract[1], batch[1])]
    return a.with_(shape=tuple(shape))


@lru_cache(maxsize=4096)
def _dot_perms(a: int, b: int, contract: Pair, batch: Pair) -> tuple[Ints | None, Ints | None, bool]:
    """How to permute operands of ``a`` and ``b`` axes for matmul (None: not at all); whether that is all."""
    a_free, b_free = free_axes(a, contract[0], batch[0]), free_axes(b, contract[1], batch[1])
    a_perm, b_perm = (*batch[0], *a_free, *contract[0]), (*batch[1], *contract[1], *b_free)
    plain = len(a_free) == len(b_free) == len(contract[0]) == 1
    return a_perm if a_perm != tuple(range(a)) else None, b_perm if b_perm != tuple(range(b)) else None, plain


def _dot_eval(a: np.ndarray, b: np.ndarray, *, contract: Pair, batch: Pair = ((), ())) -> np.ndarray:
    dtype = a.dtype
    a_perm, b_perm, plain = _dot_perms(a.ndim, b.ndim, contract, batch)
    a, b = wide(a), wide(b)
    a = a if a_perm is None else a.transpose(a_perm)
    b = b if b_perm is None else b.transpose(b_perm)
    if plain:
        return np.matmul(a, b).astype(dtype, copy=False)
    n_batch, n_contract = len(batch[0]), len(contract[0])
    rows, cols = a.shape[n_batch : a.ndim - n_contract], b.shape[n_batch + n_contract :]
    lead, k = a.shape[:n_batch], prod(a.shape[a.ndim - n_contract :])
    out = np.matmul(a.reshape(*lead, prod(rows), k), b.reshape(*lead, k, prod(cols)))
    return out.reshape((*lead, *rows, *cols)).astype(dtype, copy=False)


_MATMUL = (np.dtype(np.float32), np.dtype(np.float64))


def _dot_call(attrs: Any, a: TensorType, b: TensorType) -> Any:
    """Products that are one of numpy's: of two matrices, a matrix and a vector, two vectors; batches of
    matrices."""
    contract, batch = attrs["contract"], attrs["batch"]
    if a.dtype.np not in _MATMUL or len(contract[0]) != 1:
        return None
    n = len(batch[0])
    if batch[0] != tuple(range(n)) or batch[1] != batch[0] or max(a.ndim, b.ndim) > n + 2:
        return None
    if n and (a.ndim != n + 2 or b.ndim != n + 2):
        return None
    across = a.ndim == n + 2 and contract[0][0] == n
    turned = b.ndim == n + 2 and contract[1][0] == n + 1
    product = np.matmul if n else np.dot
    if not across and not turned:
        return product
    last = (*range(n), n + 1, n)
    if across and turned:
        return lambda x, y: product(x.transpose(last), y.transpose(last))
    if across:
        return lambda x, y: product(x.transpose(last), y)
    return lambda x, y: product(x, y.transpose(last))


def _dot_operand_vjp(ct: Any, x: Any, y: Any, contract: Pair, batch: Pair, *, left: bool) -> Any:
    """The cotangent of ``x``, which stood left or right of ``y``; ``contract`` and ``batch`` go x, y."""
    x_ndim, y_ndim, n_batch = type_of(x).ndim, type_of(y).ndim, len(batch[0])
    x_free, y_free = free_axes(x_ndim, contract[0], batch[0]), free_axes(y_ndim, contract[1], batch[1])
    first = n_batch + (len(x_free) if left else 0)
    ct_y = tuple(range(first, first + len(y_free)))
    dims = {"contract": (ct_y, y_free), "batch": (tuple(range(n_batch)), batch[1])}
    out = apply("dot_general", ct, conjugate(y), **dims)
    # the contracted axes come out in the order of y's axes
    by_y = [x_axis for _, x_axis in sorted(zip(contract[1], contract[0], strict=True))]
    perm = inverse_permutation((*batch[0], *x_free, *by_y))
    return out if perm == tuple(range(x_ndim)) else apply("permute", out, perm=perm)


def _dot_vjp(ct: Any, out: Any, a: Any, b: Any, *, contract: Pair, batch: Pair) -> tuple[Any, ...]:
    return (
        _dot_operand_vjp(ct, a, b, contract, batch, left=True),
        _dot_operand_vjp(ct, b, a, (contract[1], contract[0]), (batch[1], batch[0]), left=False),
    )


dot_general_p = Primitive(
    "dot_general", Kind.CONTRACT, infer=_dot_infer, eval=_dot_eval, vjp=_dot_vjp, needs="01",
    defaults={"batch": ((), ())}, dtypes=NUMERIC, call=_dot_call,
)  # fmt: skip


# conv ----------------------------------------------------------------

_CONV_CHUNK = 1 << 24  # elements of unrolled windows held at once
_SMALL_OUTPUT = 64  # below this many positions, samples share one matrix product


def conv_lengths(
    size: Ints, kernel: Ints, stride: Ints, padding: tuple[Ints, ...], lhs_dilation: Ints, rhs_dilation: Ints
) -> Ints:
    """Spatial result sizes; 0 where the kernel does not fit."""
    out = []
    dims = zip(size, kernel, stride, padding, lhs_dilation, rhs_dilation, strict=True)
    for n, k, s, (lo, hi), ld, rd in dims:
        room = dilated(n, ld) + lo + hi - dilated(k, rd)
        out.append(room // s + 1 if room >= 0 else 0)
    return tuple(out)


def _conv_infer(
    x: TensorType, w: TensorType, *, stride: Ints, padding: tuple[Ints, ...],
    lhs_dilation: Ints, rhs_dilation: Ints, groups: int = 1,
) -> TensorType:  # fmt: skip
    check_same_dtype("conv", x, w)
    check_dtype("conv", x, NUMERIC)
    rank = x.ndim - 2
    if not 1 <= rank <= 3 or w.ndim != x.ndim:
        raise ValueError(f"conv: needs x[N,C,*S] and w[O,C/groups,*K] with 1 to 3 dims in S, got {x} and {w}")
    for name, values in (("stride", stride), ("padding", padding), ("lhs_dilation", lhs_dilation),
                         ("rhs_dilation", rhs_dilation)):  # fmt: skip
        check_rank("conv", name, values, rank)
    if min(*stride, *lhs_dilation, *rhs_dilation, groups) < 1:
        raise ValueError("conv: stride, dilations and groups must be positive")
    if w.shape[0] % groups or x.shape[1] != w.shape[1] * groups:
        raise ValueError(f"conv: {x} and {w} do not fit {groups} groups")
    size = conv_lengths(x.shape[2:], w.shape[2:], stride, padding, lhs_dilation, rhs_dilation)
    return x.with_(shape=(x.shape[0], w.shape[0], *size))


def _spread(x: np.ndarray, padding: tuple[Ints, ...], dilation: Ints) -> np.ndarray:
    """``x`` with its spatial axes dilated and padded; ``x`` itself where there is nothing to do."""
    if not any(map(any, padding)) and all(d == 1 for d in dilation):
        return x
    lo, hi = zip(*padding, strict=True)
    return pad_array(x, 0, (0, 0, *lo), (0, 0, *hi), (0, 0, *(d - 1 for d in dilation)))


def _conv_eval(
    x: np.ndarray, w: np.ndarray, *, stride: Ints, padding: tuple[Ints, ...],
    lhs_dilation: Ints, rhs_dilation: Ints, groups: int = 1,
) -> np.ndarray:  # fmt: skip
    dtype, (n, c), (o, cg), kernel = x.dtype, x.shape[:2], w.shape[:2], w.shape[2:]
    if c != cg * groups or o % groups:
        raise ValueError(f"conv: operands of shapes {x.shape} and {w.shape} do not fit {groups} groups")
    size = conv_lengths(x.shape[2:], kernel, stride, padding, lhs_dilation, rhs_dilation)
    out = np.zeros((n, o, *size), wide(w).dtype)
    if out.size and w.size:
        x, w = _spread(wide(x), padding, lhs_dilation), wide(w)
        steps = x.strides[2:]
        # windows[n, c, *kernel, *position], without a copy
        strides = (*x.strides[:2], *(t * d for t, d in zip(steps, rhs_dilation, strict=True)),
                   *(t * s for t, s in zip(steps, stride, strict=True)))  # fmt: skip
        windows = np.lib.stride_tricks.as_strided(x, (n, c, *kernel, *size), strides, writeable=False)
        matrix = w.reshape(groups, o // groups, cg * prod(kernel))
        chunk = max(1, _CONV_CHUNK // max(1, c * prod(kernel) * prod(size)))
        for i in range(0, n, chunk):
            out[i : i + chunk] = _unrolled_product(matrix, windows[i : i + chunk], size)
    return out.astype(dtype, copy=False)


def _unrolled_product(matrix: np.ndarray, windows: np.ndarray, size: Ints) -> np.ndarray:
    """matrix[g, O/g, k] times the unrolled windows of some samples -> [n, O, *size]."""
    n, (groups, o, k), m = windows.shape[0], matrix.shape, prod(size)
    if m >= _SMALL_OUTPUT or n == 1:
        product = np.matmul(matrix, windows.reshape(n, groups, k, m))
        return product.reshape(n, groups * o, *size)
    columns = np.moveaxis(windows, 0, -1 - len(size)).reshape(groups, k, n * m)
    product = np.matmul(matrix, columns).reshape(groups * o, n, *size)
    return np.moveaxis(product, 1, 0)


def _swap_channels(w: Any, groups: int) -> Any:
    """w[O, C/g, *K] -> [C, O/g, *K] within each group."""
    o, cg, *kernel = type_of(w).shape
    split = apply("reshape", w, shape=(groups, o // groups, cg, *kernel))
    perm = (0, 2, 1, *range(3, 3 + len(kernel)))
    return apply("reshape", apply("permute", split, perm=perm), shape=(groups * cg, o // groups, *kernel))


def _conv_x_vjp(
    ct: Any, x: Any, w: Any, stride: Ints, padding: tuple[Ints, ...], ld: Ints, rd: Ints, groups: int
) -> Any:
    rank = len(stride)
    turned = apply("flip", _swap_channels(w, groups), axes=tuple(range(2, 2 + rank)))
    pads = []
    for i, (lo, _) in enumerate(padding):
        kernel = dilated(type_of(w).shape[2 + i], rd[i])
        before = kernel - 1 - lo
        grown = dilated(type_of(ct).shape[2 + i], stride[i])
        after = dilated(type_of(x).shape[2 + i], ld[i]) + kernel - 1 - grown - before
        pads.append((before, after))
    return apply("conv", ct, conjugate(turned), stride=ld, padding=tuple(pads), lhs_dilation=stride,
                 rhs_dilation=rd, groups=groups)  # fmt: skip


def _conv_w_vjp(
    ct: Any, x: Any, w: Any, stride: Ints, padding: tuple[Ints, ...], ld: Ints, rd: Ints, groups: int
) -> Any:
    """A convolution whose channels are the samples: x[C/g, g*N, *S] with ct[O, N, *out] in g groups."""
    n, c, *size = type_of(x).shape
    space = tuple(range(3, 3 + len(size)))
    x = apply("reshape", x, shape=(n, groups, c // groups, *size))
    x = apply("reshape", apply("permute", x, perm=(2, 1, 0, *space)), shape=(c // groups, groups * n, *size))
    pads = []
    for i, (lo, _) in enumerate(padding):
        kernel = dilated(type_of(w).shape[2 + i], rd[i])
        grown = dilated(type_of(ct).shape[2 + i], stride[i])
        pads.append((lo, grown + kernel - 1 - dilated(size[i], ld[i]) - lo))
    swap = (1, 0, *range(2, 2 + len(size)))
    out = apply("conv", conjugate(x), apply("permute", ct, perm=swap), stride=rd, padding=tuple(pads),
                lhs_dilation=ld, rhs_dilation=stride, groups=groups)  # fmt: skip
    return apply("permute", out, perm=swap)


def _conv_vjp(
    ct: Any, out: Any, x: Any, w: Any, *, stride: Ints, padding: tuple[Ints, ...],
    lhs_dilation: Ints, rhs_dilation: Ints, groups: int,
) -> tuple[Any, ...]:  # fmt: skip
    how = (stride, padding, lhs_dilation, rhs_dilation, groups)
    if 0 in type_of(w).shape[2:] or 0 in type_of(ct).shape:
        return zeros_like(x), zeros_like(w)
    return _conv_x_vjp(ct, x, w, *how), _conv_w_vjp(ct, x, w, *how)


conv_p = Primitive(
    "conv", Kind.CONTRACT, infer=_conv_infer, eval=_conv_eval, vjp=_conv_vjp, needs="01",
    defaults={"groups": 1}, dtypes=NUMERIC,
)  # fmt: skip
