"""Whether tensors are equal, or nearly so."""

from __future__ import annotations

import numpy as np
from weft.dispatch import at_hand
from weft.ir import types as T
from weft.ops.common import convert, shape_of
from weft.ops.math import abs, isfinite, isnan
from weft.prepared import prepared
from weft.quick import SMALL
from weft.tensor import Tensor


@prepared
def isclose(
    input: Tensor, other: Tensor, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> Tensor:
    """|input - other| <= atol + rtol * |other|, elementwise."""
    if input.dtype is not other.dtype:
        raise RuntimeError(f"{input.dtype} did not match {other.dtype}")
    close = input == other
    if equal_nan and input.dtype.is_inexact:
        close = close | (isnan(input) & isnan(other))
    if not input.dtype.is_inexact:
        a, b = convert(input, T.f64), convert(other, T.f64)
        return close | (abs(a - b) <= atol + rtol * abs(b))
    return close | (isfinite(other) & isfinite(input) & (abs(input - other) <= atol + abs(rtol * other)))


def allclose(
    input: Tensor, other: Tensor, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> bool:
    """Whether :func:`isclose` holds everywhere."""
    return bool(isclose(input, other, rtol, atol, equal_nan).all())


def equal(input: Tensor, other: Tensor) -> bool:
    """Whether shapes and all elements are equal."""
    if shape_of(input) != shape_of(other):
        return False
    a, b = at_hand(input), at_hand(other)
    if a is not None and b is not None and a.size < SMALL and a.dtype is b.dtype and a.dtype.kind != "V":
        return bool(np.logical_and.reduce(a == b, None))
    return bool((input == other).all())
