"""Hooks on tensors, retained gradients, and the handles that remove hooks."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any

from weft.autograd.tape import edge_of
from weft.tensor import Tensor

_ids = itertools.count()


class RemovableHandle:
    """What registering a hook returns; ``remove()`` takes the hook away. A context manager too."""

    def __init__(self, hooks: dict[int, Any]) -> None:
        self.id = next(_ids)
        self._hooks = weakref.ref(hooks) if isinstance(hooks, _Hooks) else (lambda: hooks)

    def remove(self) -> None:
        hooks = self._hooks()
        if hooks is not None:
            hooks.pop(self.id, None)

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.remove()


class _Hooks(dict):
    __slots__ = ("__weakref__",)


def _add(hooks: dict[int, Any], hook: Callable[..., Any]) -> RemovableHandle:
    handle = RemovableHandle(hooks)
    hooks[handle.id] = hook
    return handle


def register_hook(input: Tensor, hook: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """Call ``hook(grad)`` when the gradient of this tensor is complete; what it returns replaces the
    gradient.
    """
    edge = edge_of(input)
    if edge is None:
        raise RuntimeError("cannot register a hook on a tensor that doesn't require gradient")
    if input._edge is None:
        if input._hooks is None:
            input._hooks = _Hooks()
        return _add(input._hooks, hook)
    node, i = edge
    if node.hooks is None:
        node.hooks = {}
    return _add(node.hooks.setdefault(i, _Hooks()), hook)


def register_post_accumulate_grad_hook(input: Tensor, hook: Callable[[Tensor], None]) -> RemovableHandle:
    """Call ``hook(tensor)`` after the gradient of this leaf was accumulated in ``.grad``."""
    if not input.requires_grad:
        raise RuntimeError("cannot register a hook on a tensor that doesn't require gradient")
    if input.grad_fn is not None:
        raise RuntimeError("post accumulate grad hooks cannot be registered on non-leaf tensors")
    if input._post_hooks is None:
        input._post_hooks = _Hooks()
    return _add(input._post_hooks, hook)


def retain_grad(input: Tensor) -> None:
    """Keep the gradient of this non-leaf in ``.grad``."""
    edge = edge_of(input)
    if edge is None:
        raise RuntimeError("can't retain_grad on Tensor that has requires_grad=False")
    if input._edge is None:
        return
    node, i = edge
    if node.retained is None:
        node.retained = {}
    node.retained[i] = weakref.ref(input)
    input._retains = True


def retains_grad(input: Tensor) -> bool:
    return input._retains
