"""Capture without a decorator: ``with weft.lazy():``, and the way a function runs that is not one graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from weft.capture.recorder import Recorder
from weft.capture.segments import SEGMENTS
from weft.capture.state import recorder
from weft.capture.trace import settled
from weft.ir.prims.base import interpreting


@contextmanager
def lazy() -> Iterator[Recorder]:
    """Capture the tensor operations of the block; run them, fused, when a value is asked for or the block
    ends.

    Inside another capture the block is part of that capture. After the block every tensor made in it has its
    value.

    >>> import weft
    >>> with weft.lazy():
    ...     y = (weft.ones(3) * 2 + 1).sqrt().sum()
    >>> round(y.item(), 4)
    5.1962
    """
    outer = recorder()
    if outer is not None:
        yield outer
        return
    rec = Recorder(SEGMENTS.run, name="lazy")
    try:
        with interpreting(rec):
            yield rec
    finally:
        rec.flush()
        rec.log.closed = True


def run_lazily(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], name: str
) -> tuple[Any, Recorder]:
    """Call ``fn`` with its tensor operations captured in segments; the result and the recorder."""
    rec = Recorder(SEGMENTS.run, name=name, locate=False)
    try:
        with interpreting(rec):
            out = fn(*args, **kwargs)
    finally:
        rec.flush()
        rec.log.closed = True
    return settled(out), rec
