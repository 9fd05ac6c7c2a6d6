"""Bitwise operations on integers; on bool they are the logical ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from weft.ir.prims.base import Primitive
from weft.ir.prims.mapping import elementwise
from weft.ir.types import BITS, INTS

bit_not_p = elementwise(
    "bit_not", domain=BITS, eval=np.invert, scalar=lambda b, x: b.unary("not", x)
)


def _bitwise(name: str, fn: Callable[..., Any], op: str) -> Primitive:
    return elementwise(name, domain=BITS, eval=fn, scalar=lambda b, x, y: b.binary(op, x, y))


bit_and_p = _bitwise("bit_and", np.bitwise_and, "and")
bit_or_p = _bitwise("bit_or", np.bitwise_or, "or")
bit_xor_p = _bitwise("bit_xor", np.bitwise_xor, "xor")


def _width(dtype: np.dtype[Any]) -> int:
    return 8 * dtype.itemsize


def _shift_eval(fn: Callable[..., Any], overflow: Callable[[np.ndarray], np.ndarray]) -> Callable[..., Any]:
    """A shift by less than the width; any other count gives what shifting everything out gives."""

    def evaluate(x: np.ndarray, n: np.ndarray) -> np.ndarray:
        width = _width(x.dtype)
        inside = (n >= 0) & (n < width)
        count = np.where(inside, n, np.zeros_like(n))
        return np.where(inside, fn(x, count), overflow(x))

    return evaluate


def _all_sign(x: np.ndarray) -> np.ndarray:
    return np.where(x < 0, np.full_like(x, -1), np.zeros_like(x)) if x.dtype.kind == "i" else np.zeros_like(x)


def _shift_scalar(op: str) -> Callable[..., Any]:
    def scalar(b: Any, x: Any, n: Any) -> Any:
        dt = b.dtype(x)
        zero, last = b.const(0, dt), b.const(dt.bits - 1, dt)
        inside = b.compare("le", n, last)
        if dt.is_signed:
            inside = b.binary("and", inside, b.compare("ge", n, zero))
        if op == "shr" and dt.is_signed:
            return b.binary("shr", x, b.select(inside, n, last))
        return b.select(inside, b.binary(op, x, b.select(inside, n, zero)), zero)

    return scalar


shl_p = elementwise(
    "shl", domain=INTS, eval=_shift_eval(np.left_shift, np.zeros_like), scalar=_shift_scalar("shl")
)
shr_p = elementwise(
    "shr", domain=INTS, eval=_shift_eval(np.right_shift, _all_sign), scalar=_shift_scalar("shr")
)
