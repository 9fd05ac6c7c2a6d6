"""Which captured tensors are still held by something outside when a trace has ended."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable
from typing import Any

from weft.autograd.function import FunctionCtx, _FunctionPrimitive
from weft.autograd.tape import Node
from weft.ir.graph import Value
from weft.tensor import Tensor
from weft.views import View

# What histories are made of. Whatever else holds a captured tensor counts as outside.
_INNER = (tuple, list, dict, Node, FunctionCtx, _FunctionPrimitive, Tensor, View)


def escaped(suspects: set[int], roots: Iterable[Any], mark: int) -> bool:
    """Whether one of the tensors with these ids is held by more than ``roots`` (outputs, histories) and what
    these lead to, among nodes made since ``mark``.

    References are counted as a cycle collector does: an object that has more of them than the objects reached
    from the roots account for is held from outside, and so is all it leads to. The caller collects garbage
    first.
    """
    found, inner = _reach(roots, mark)
    held = _references(found)
    outside = [o for o, n in zip(found, held, strict=True) if n > inner[id(o)]]
    kept = {id(o) for o in _reach(outside, mark)[0]}
    return any(i not in inner or i in kept for i in suspects)


def _references(objects: list[Any]) -> list[int]:
    """How many references each has beside that of the list."""
    return [sys.getrefcount(o) - _OWN for o in objects]


_OWN = 0
_OWN = _references([[]])[0]


def _reach(roots: Iterable[Any], mark: int) -> tuple[list[Any], dict[int, int]]:
    """The objects reached from ``roots``, roots included; by id, how many references they have from one
    another (for roots, more than any object has)."""
    found = list({id(r): r for r in roots if _is_inner(r, mark)}.values())
    inner = {id(r): sys.maxsize for r in found}
    for o in found:  # grows
        for x in gc.get_referents(o):
            if not _is_inner(x, mark):
                continue
            if id(x) not in inner:
                inner[id(x)] = 0
                found.append(x)
            inner[id(x)] += 1
    return found, inner


def _is_inner(x: Any, mark: int) -> bool:
    if not isinstance(x, _INNER):
        return False
    if isinstance(x, Node):
        return x.seq >= mark
    return not isinstance(x, Tensor) or type(x._data) is Value
