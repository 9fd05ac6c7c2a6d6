"""``weft.linalg``: norms and products. (Decompositions are not here.)"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from weft.dtypes import as_dtype
from weft.ops.common import convert
from weft.ops.linalg import cross as _cross
from weft.ops.linalg import matmul, matrix_power
from weft.ops.reduce import amax, amin, sqrt
from weft.ops.reduce import norm as _vector_norm
from weft.ops.reduce import sum as _sum
from weft.ops.shape import diagonal
from weft.tensor import Tensor


def vector_norm(
    x: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    """The ``ord``-norm of the elements, along ``dim`` or of all."""
    return _vector_norm(x, ord, dim, keepdim, dtype)


def matrix_norm(
    A: Tensor, ord: Any = "fro", dim: Sequence[int] = (-2, -1), keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    """Norms of matrices: "fro", inf, -inf, 1, -1. ValueError for those that need singular values."""
    x = convert(A, as_dtype(dtype)) if dtype is not None else A
    if ord == "fro":
        return sqrt(_sum(x.abs() * x.abs(), tuple(dim), keepdim))
    if ord not in (1, -1, math.inf, -math.inf):
        raise ValueError(
            f"linalg.matrix_norm: order {ord} needs singular values, which weft does not compute"
        )
    rows, cols = (d % A.ndim for d in dim)
    summed, best = (rows, cols) if abs(ord) == 1 else (cols, rows)
    pick = amax if ord > 0 else amin
    out = pick(_sum(x.abs(), summed, True), best, True)
    return out if keepdim else out.squeeze((rows, cols))


def norm(A: Tensor, ord: Any = None, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """The vector norm, or for two dimensions (or a matrix with ``ord``) the matrix norm."""
    if isinstance(dim, (tuple, list)) and len(dim) == 2 and ord is not None:
        return matrix_norm(A, ord, dim, keepdim, dtype=dtype)
    if dim is None and ord is not None and A.ndim == 2:
        return matrix_norm(A, ord, (-2, -1), keepdim, dtype=dtype)
    return _vector_norm(A, 2 if ord is None else ord, dim, keepdim, dtype)


def cross(input: Tensor, other: Tensor, *, dim: int = -1) -> Tensor:
    """The cross product of vectors of three along ``dim``."""
    return _cross(input, other, dim)


def vecdot(x: Tensor, y: Tensor, *, dim: int = -1) -> Tensor:
    """The inner products along ``dim``."""
    return (x.conj() * y).sum(dim)


def multi_dot(tensors: Sequence[Tensor]) -> Tensor:
    """The product of several matrices, from the left."""
    out = tensors[0]
    for m in tensors[1:]:
        out = matmul(out, m)
    return out


__all__ = [
    "cross",
    "diagonal",
    "matmul",
    "matrix_norm",
    "matrix_power",
    "multi_dot",
    "norm",
    "vecdot",
    "vector_norm",
]
