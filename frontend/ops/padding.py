"""``functional.pad``: constant, reflected, replicated and circular borders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from weft.creation import constant
from weft.dispatch import apply
from weft.ir import prims as P
from weft.ops.common import shape_of
from weft.ops.index import index_select
from weft.ops.shape import constant_pad
from weft.prepared import prepared
from weft.tensor import Tensor


@prepared
def pad(input: Tensor, pad: Sequence[int], mode: str = "constant", value: Any = None) -> Tensor:
    """``input`` with borders: ``pad`` lists (before, after) from the last dimension backwards.

    Modes: "constant" (negative amounts crop), "reflect", "replicate", "circular".
    """
    pad = [int(p) for p in pad]
    if len(pad) % 2:
        raise RuntimeError("Padding length must be divisible by 2")
    if len(pad) // 2 > input.ndim:
        raise RuntimeError(
            "Padding length should be less than or equal to two times the input dimension but got padding "
            f"length {len(pad)} and input of dimension {input.ndim}"
        )
    if mode == "constant":
        lo, hi = [0] * input.ndim, [0] * input.ndim
        for i in range(len(pad) // 2):
            lo[-1 - i], hi[-1 - i] = pad[2 * i], pad[2 * i + 1]
        _check_extent(input, lo, hi)
        return constant_pad(input, lo, hi, 0 if value is None else value)
    if mode not in _INDEX:
        raise NotImplementedError(f"Unrecognised padding mode {mode}")
    out = input
    for i in range(len(pad) // 2):
        before, after = pad[2 * i], pad[2 * i + 1]
        d = input.ndim - 1 - i
        if before or after:
            out = index_select(out, d, constant(_INDEX[mode](shape_of(out)[d], before, after), out.device))
    return out.clone() if out is input else out


def _check_extent(x: Tensor, lo: Sequence[int], hi: Sequence[int]) -> None:
    for d, (n, a, b) in enumerate(zip(shape_of(x), lo, hi, strict=True)):
        if n + a + b < 0:
            raise RuntimeError(
                f"The input size {n}, plus negative padding {a} and {b} resulted in a negative output size, "
                f"which is invalid. Check dimension {d} of your input."
            )


def _reflect(n: int, before: int, after: int) -> np.ndarray:
    if before >= n or after >= n:
        raise RuntimeError(
            "Argument #4: Padding size should be less than the corresponding input dimension, but got: "
            f"padding ({before}, {after}) at dimension of size {n}"
        )
    i = np.abs(np.arange(-before, n + after))
    return np.where(i >= n, 2 * (n - 1) - i, i)


def _replicate(n: int, before: int, after: int) -> np.ndarray:
    return np.clip(np.arange(-before, n + after), 0, n - 1)


def _circular(n: int, before: int, after: int) -> np.ndarray:
    if before > n or after > n:
        raise RuntimeError("Padding value causes wrapping around more than once.")
    return np.arange(-before, n + after) % n


_INDEX = {"reflect": _reflect, "replicate": _replicate, "circular": _circular}


def crop(x: Tensor, start: Sequence[int], stop: Sequence[int]) -> Tensor:
    """The part of ``x`` between two corners."""
    return apply(P.slice_p, x, start=tuple(start), stop=tuple(stop), step=(1,) * x.ndim)
