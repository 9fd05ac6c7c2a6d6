"""Parts and conjugates of complex numbers; what promotion gives."""

from __future__ import annotations

import math
from typing import Any

from weft.dispatch import apply
from weft.dtypes import as_dtype
from weft.ir import prims as P
from weft.ops.common import convert, to_inexact
from weft.ops.math import atan2, isnan, where
from weft.prepared import prepared
from weft.promotion import CATEGORY, promote
from weft.tensor import Tensor
from weft.views import view


def real(input: Tensor) -> Tensor:
    """The real part, a view."""
    return view(input, P.real_p) if input.dtype.is_complex else input


def imag(input: Tensor) -> Tensor:
    """The imaginary part, a view. RuntimeError for real tensors."""
    if not input.dtype.is_complex:
        raise RuntimeError("imag is not implemented for tensors with non-complex dtypes.")
    return view(input, P.imag_p)


def conj(input: Tensor) -> Tensor:
    return apply(P.conj_p, input) if input.dtype.is_complex else input


def conj_physical(input: Tensor) -> Tensor:
    return apply(P.conj_p, input) if input.dtype.is_complex else input.clone()


@prepared
def angle(input: Tensor) -> Tensor:
    """The argument of complex numbers; 0 or pi for real ones."""
    if input.dtype.is_complex:
        return atan2(input.imag, input.real)
    x = convert(input, to_inexact(input.dtype))
    return where(isnan(x), x, where(x < 0, math.pi, 0.0).to(x.dtype))


def result_type(tensor1: Any, tensor2: Any) -> Any:
    """The dtype of an operation on two tensors or numbers."""
    return promote(tensor1, tensor2)


def can_cast(from_: Any, to: Any) -> bool:
    """Whether promotion rules let one dtype be stored as another."""
    a, b = as_dtype(from_), as_dtype(to)
    return CATEGORY[a] <= CATEGORY[b]
