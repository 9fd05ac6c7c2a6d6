"""Operands of eager kernels: the dense array behind a view, the window around one, or a copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from weft.ir.graph import GraphBuilder
from weft.ir.interp import run
from weft.ir.prims.base import GraphInterpreter, interpreting
from weft.runtime import layouts
from weft.runtime.layouts import Layout, packed, window_of

RNG = np.random.default_rng(0)


def dense(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def heads(k: int) -> np.ndarray:
    """Queries, keys or values as a transformer cuts them out of one product."""
    return dense(4, 64, 3 * 6 * 16).reshape(4, 64, 3, 6, 16).transpose(2, 0, 3, 1, 4)[k]


WINDOWS: dict[str, tuple[Callable[[], np.ndarray], tuple[int, ...]]] = {
    "queries": (lambda: heads(0), (0, 0, 0, 0)),
    "keys": (lambda: heads(1), (0, 0, 6, 0)),
    "values": (lambda: heads(2), (0, 0, 12, 0)),
    "columns": (lambda: dense(128, 256)[:, 64:192], (0, 64)),
    "some rows of some columns": (lambda: dense(256, 256)[100:228, 64:192], (0, 64)),
    "columns turned": (lambda: dense(128, 256)[:, 64:192].T, (0, 64)),
    "columns repeated": (lambda: np.broadcast_to(dense(128, 256)[:, None, 64:192], (128, 3, 128)), (0, 64)),
    "a view of a view": (lambda: dense(128, 256)[:, 32:][:, 32:160], (0, 64)),
}
COPIES: dict[str, Callable[[], np.ndarray]] = {
    "every other column": lambda: dense(128, 256)[:, ::2],
    "backwards": lambda: dense(128, 256)[::-1],
    "a window that overlaps itself": lambda: np.lib.stride_tricks.sliding_window_view(dense(256), 128),
    "rows that wrap": lambda: np.lib.stride_tricks.as_strided(dense(64, 256)[0, 200:], (60, 128), (1024, 4)),
    "another dtype": lambda: dense(128, 512).view(np.int32)[:, 64:192],
    "rows that reach into the next": lambda: dense(12384)[50 : 50 + 64 * 192].reshape(64, 192)[:, 20:148],
    "small": lambda: dense(8, 16)[:, 4:8],
}


def read_back(a: np.ndarray, layout: Layout) -> np.ndarray:
    """What the graph makes of the dense array."""
    b = GraphBuilder("read")
    param = b.param(layout.type)
    with interpreting(GraphInterpreter(b)):
        value = layout.value(param)
    given = a if layout.prepare is None else layout.prepare(a)
    return run(b.finish([value]), [given])[0]


@pytest.mark.parametrize("name", WINDOWS)
def test_a_view_goes_in_as_the_window_around_it(name: str) -> None:
    make, starts = WINDOWS[name]
    a = make()
    window = window_of(a)
    assert window is not None and window.starts == starts
    layout = Layout(a, window=window)
    given = layout.prepare(a)  # type: ignore[misc]
    assert given.flags.c_contiguous and np.shares_memory(given, a)
    assert read_back(a, layout).tobytes() == a.tobytes()


@pytest.mark.parametrize("name", COPIES)
def test_what_has_no_window_is_copied(name: str) -> None:
    a = COPIES[name]()
    assert window_of(a) is None
    layout = Layout(a)
    assert layout.prepare is packed
    assert read_back(a, layout).tobytes() == a.tobytes()


DENSE = [lambda: dense(128, 96), lambda: dense(128, 96).T, lambda: dense(4, 64, 96)[1:3]]


@pytest.mark.parametrize("make", DENSE)
def test_dense_arrays_need_no_window(make: Any) -> None:
    a = make()
    assert window_of(a) is None
    assert read_back(a, Layout(a)).tobytes() == a.tobytes()


def test_a_copy_that_was_kept_instead_of_the_view() -> None:
    a = heads(1)
    layout = Layout(a, window=window_of(a))
    kept = np.array(a)
    assert read_back(kept, layout).tobytes() == a.tobytes()


def test_a_window_ends_where_its_base_does() -> None:
    shape, strides, rows = (64, 128), (768, 4), 64 * 768
    assert layouts._window(shape, strides, 4, 0, rows) == ((64, 192), (0, 0))
    assert layouts._window(shape, strides, 4, 0, rows - 160) is None
    assert layouts._window(shape, strides, 4, 768, rows) is None
