"""How the operands of eager kernels lie in memory, and the dense arrays behind them.

A kernel takes dense arrays. Broadcast and permuted views go in as the dense array behind the view, and the
graph repeats the moves. A view that leaves gaps goes in as the window of its base that holds it, of which the
graph takes a slice, where the base is known to reach far enough; otherwise it is copied first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import numpy as np
from weft.ir.graph import Value
from weft.ir.prims.base import PRIMITIVES
from weft.ir.prims.rules import inverse_permutation
from weft.ir.types import CPU, Device, TensorType, dtype_of_numpy
from weft.runtime import buffers

WINDOW_BYTES = 1 << 15  # of a view, from which a copy costs more than finding its window

_ndarray = np.ndarray
Ints = tuple[int, ...]


class Window(NamedTuple):
    """A dense array that holds a view: its shape, and where in it the view begins."""

    shape: Ints
    starts: Ints


def window_of(a: np.ndarray) -> Window | None:
    """The window of a view on the array behind it; None for dense ones and where a copy is better."""
    base = a.base
    if a.nbytes < WINDOW_BYTES or a.flags.c_contiguous or type(base) is not _ndarray:
        return None
    if base.dtype is not a.dtype or not base.flags.c_contiguous:
        return None
    return _window(a.shape, a.strides, a.itemsize, _offset(a, base), base.nbytes)


def _offset(a: np.ndarray, base: np.ndarray) -> int:
    return a.__array_interface__["data"][0] - base.__array_interface__["data"][0]


def _ordered(shape: Ints, strides: Ints) -> list[int]:
    """The dimensions that move in memory, outermost first."""
    return sorted([i for i, n in enumerate(shape) if n > 1 and strides[i]], key=lambda i: -strides[i])


@lru_cache(4096)
def _window(shape: Ints, strides: Ints, itemsize: int, offset: int, nbytes: int) -> Window | None:
    order = _ordered(shape, strides)
    if not order or strides[order[-1]] != itemsize or offset < 0:
        return None
    outer = strides[order[0]]
    dense, starts, rest = [shape[order[0]]], [0], offset % outer
    for above, i in pairwise(order):
        start, rest = divmod(rest, strides[i])
        extent, left = divmod(strides[above], strides[i])
        if left or start + shape[i] > extent:
            return None
        dense.append(extent)
        starts.append(start)
    if rest or tuple(dense) == tuple(shape[i] for i in order):
        return None
    if offset - offset % outer + prod(dense) * itemsize > nbytes:
        return None
    return Window(tuple(dense), tuple(starts))


class Layout:
    """How an operand goes into a graph: ``prepare`` makes the dense array (None: as it is), and the moves
    that lead from it to the operand. ``pack`` copies what is not dense. ``window``: where it lies, if it may
    go in as what is around it."""

    __slots__ = ("axes", "dense", "device", "dtype", "perm", "prepare", "region", "shape")

    def __init__(
        self,
        a: Any,
        device: Device = CPU,
        pack: Callable[[Any], Any] | None = None,
        window: Window | None = None,
    ) -> None:
        self.shape, self.dtype, self.device = a.shape, dtype_of_numpy(a.dtype), device
        self.axes: Ints | None = None
        self.perm: Ints | None = None
        self.region: tuple[Ints, Ints] | None = None  # begin and end in the window
        self.dense: Ints = a.shape
        self.prepare: Callable[[Any], Any] | None = None
        if not a.flags.c_contiguous:
            self._strided(a, pack or packed, window)

    def _strided(self, a: Any, pack: Callable[[Any], Any], window: Window | None) -> None:
        order = _ordered(a.shape, a.strides)
        if window is None:
            expected = a.itemsize
            for i in reversed(order):
                if a.strides[i] != expected:
                    self.prepare = pack
                    return
                expected *= a.shape[i]
        kept = sorted(order)
        index = tuple(slice(None) if i in kept else 0 for i in range(a.ndim))
        rank = {axis: k for k, axis in enumerate(kept)}
        perm = tuple(rank[i] for i in order)
        extents = tuple(a.shape[i] for i in order)
        self.axes, self.dense = tuple(kept), extents
        if perm != tuple(range(len(perm))):
            self.perm = inverse_permutation(perm)
        if window is not None:
            self.dense = window.shape
            ends = tuple(s + n for s, n in zip(window.starts, extents, strict=True))
            self.region = window.starts, ends
            self.prepare = _windowed(window, a.strides, index, perm)
        elif self.perm is None:
            self.prepare = lambda x: x[index]
        else:
            self.prepare = lambda x: x[index].transpose(perm)

    @property
    def type(self) -> TensorType:
        return TensorType(self.dense, self.dtype, self.device)

    def value(self, dense: Value) -> Any:
        """The operand from the dense value."""
        x: Any = dense
        if self.region is not None:
            start, stop = self.region
            x = PRIMITIVES["slice"].bind(x, start=start, stop=stop, step=(1,) * len(start))
        if self.perm is not None:
            x = PRIMITIVES["permute"].bind(x, perm=self.perm)
        if self.axes is not None:
            x = PRIMITIVES["broadcast"].bind(x, shape=self.shape, axes=self.axes)
        return x


def _windowed(
    window: Window, strides: Ints, index: tuple[Any, ...], perm: Ints
) -> Callable[[np.ndarray], np.ndarray]:
    """Makes the window of a view; of another array of that shape (a copy was kept) one with gaps."""
    shape, size, outer = window.shape, prod(window.shape), max(strides)

    def prepare(x: np.ndarray) -> np.ndarray:
        base = x.base
        if x.strides == strides and type(base) is _ndarray and base.flags.c_contiguous:
            offset = _offset(x, base)
            start = (offset - offset % outer) // x.itemsize
            return base.reshape(-1)[start : start + size].reshape(shape)
        moved = x[index].transpose(perm)
        out = np.zeros(shape, x.dtype)
        out[tuple(slice(s, s + n) for s, n in zip(window.starts, moved.shape, strict=True))] = moved
        return out

    return prepare


def packed(a: np.ndarray) -> np.ndarray:
    """A contiguous copy, in memory of the caching allocator."""
    out = buffers.maker(a.shape, a.dtype, a.nbytes)()
    np.copyto(out, a)
    return out


def prepared(runner: Callable[..., Any], layouts: Sequence[Layout]) -> Callable[..., Any]:
    """``runner`` on operands as they come."""
    prepare = [(i, x.prepare) for i, x in enumerate(layouts) if x.prepare is not None]
    if not prepare:
        return runner

    def run(*arrays: np.ndarray) -> Any:
        dense = list(arrays)
        for i, fn in prepare:
            dense[i] = fn(dense[i])
        return runner(*dense)

    return run
