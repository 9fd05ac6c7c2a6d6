"""Closures for instructions that compute each thread's result from its own operands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from weft.runtime.emulate.program import UNSIGNED, Decoder, Step, view_of
from weft.runtime.emulate.ptx_ast import SIZES, Operand

_where = np.where


def elementwise(
    d: Decoder, fn: Callable[..., Any], result: str, dst: Operand, *sources: tuple[Operand, str]
) -> Step:
    """``dst = fn(*sources)``: ``fn`` takes arrays of the sources' types, and gives one of ``result``."""
    target = d.dest(dst, result)
    slots = [d.slot(operand, kind) for operand, kind in sources]
    kinds = {kind for _, kind in sources}
    views = [_view(kind) for _, kind in sources]
    back = UNSIGNED[SIZES[result]] if result != "pred" and _view(result) is not None else None
    if len(kinds) == 1:
        same = {1: _one, 2: _two, 3: _three}.get(len(slots))
        if same is not None:
            return same(fn, target, slots, views[0], back)
    return _many(fn, target, slots, views, back)


def _view(kind: str) -> Any:
    """The type to view a register as, None where it is stored so."""
    if kind == "pred":
        return None
    view = view_of(kind)
    return None if view == UNSIGNED[SIZES[kind]] else view


def _one(fn: Callable[..., Any], dst: int, slots: list[int], view: Any, back: Any) -> Step:
    (a,) = slots

    def run(R: Any, m: Any) -> None:
        v = fn(R[a] if view is None else R[a].view(view))
        if back is not None:
            v = v.view(back)
        R[dst] = v if m is None else _where(m.bits, v, R[dst])

    return run


def _two(fn: Callable[..., Any], dst: int, slots: list[int], view: Any, back: Any) -> Step:
    a, b = slots

    def run(R: Any, m: Any) -> None:
        v = fn(R[a], R[b]) if view is None else fn(R[a].view(view), R[b].view(view))
        if back is not None:
            v = v.view(back)
        R[dst] = v if m is None else _where(m.bits, v, R[dst])

    return run


def _three(fn: Callable[..., Any], dst: int, slots: list[int], view: Any, back: Any) -> Step:
    a, b, c = slots

    def run(R: Any, m: Any) -> None:
        if view is None:
            v = fn(R[a], R[b], R[c])
        else:
            v = fn(R[a].view(view), R[b].view(view), R[c].view(view))
        if back is not None:
            v = v.view(back)
        R[dst] = v if m is None else _where(m.bits, v, R[dst])

    return run


def _many(fn: Callable[..., Any], dst: int, slots: list[int], views: list[Any], back: Any) -> Step:
    def run(R: Any, m: Any) -> None:
        v = fn(*[R[a] if view is None else R[a].view(view) for a, view in zip(slots, views, strict=True)])
        if back is not None:
            v = v.view(back)
        R[dst] = v if m is None else _where(m.bits, v, R[dst])

    return run


def assign(R: Any, m: Any, dst: int, value: Any) -> None:
    """Set a register to a value given for all threads."""
    R[dst] = value if m is None else _where(m.bits, value, R[dst])


def no_effect(R: Any, m: Any) -> None:
    """The step of an instruction that changes nothing that the emulator models."""
