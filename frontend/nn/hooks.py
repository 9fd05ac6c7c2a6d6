"""Hooks of modules: handles, and the call path of a module that has some."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from weft.capture.state import bump_epoch
from weft.tensor import Tensor

if TYPE_CHECKING:
    from weft.nn.module import Module

_ids = itertools.count()


class Hook:
    """A registered callable with its options."""

    __slots__ = ("always_call", "fn", "with_kwargs")

    def __init__(self, fn: Callable[..., Any], with_kwargs: bool, always_call: bool) -> None:
        self.fn, self.with_kwargs, self.always_call = fn, with_kwargs, always_call


class RemovableHandle:
    """What registering a hook returns: ``remove()`` takes it off; also a context manager."""

    def __init__(
        self,
        hooks: dict[int, Any],
        fn: Callable[..., Any],
        prepend: bool = False,
        *,
        with_kwargs: bool = False,
        always_call: bool = False,
    ) -> None:
        self.id = next(_ids)
        self._hooks = hooks
        others = dict(hooks) if prepend else {}
        if prepend:
            hooks.clear()
        hooks[self.id] = Hook(fn, with_kwargs, always_call)
        hooks.update(others)
        bump_epoch()

    def remove(self) -> None:
        self._hooks.pop(self.id, None)
        bump_epoch()

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.remove()


def run_with_hooks(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Forward with all hooks of the module around it."""
    pending = dict(module._forward_hooks)
    try:
        args, kwargs = _before(module, args, kwargs)
        backward = _Backward(module) if module._backward_hooks or module._backward_pre_hooks else None
        if backward is not None:
            args = backward.watch_inputs(args)
        out = module.forward(*args, **kwargs)
        for key, hook in list(pending.items()):
            del pending[key]
            changed = hook.fn(module, args, kwargs, out) if hook.with_kwargs else hook.fn(module, args, out)
            out = out if changed is None else changed
    except Exception:
        for hook in pending.values():
            if hook.always_call:
                hook.fn(module, args, kwargs, None) if hook.with_kwargs else hook.fn(module, args, None)
        raise
    return out if backward is None else backward.watch_outputs(out)


def _before(
    module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    for hook in list(module._forward_pre_hooks.values()):
        if hook.with_kwargs:
            changed = hook.fn(module, args, kwargs)
            if changed is not None:
                if not (isinstance(changed, tuple) and len(changed) == 2):
                    raise RuntimeError(
                        "forward pre-hook must return None or a tuple of (new_args, new_kwargs), "
                        f"but got {changed}."
                    )
                args, kwargs = changed
            continue
        changed = hook.fn(module, args)
        if changed is not None:
            args = changed if isinstance(changed, tuple) else (changed,)
    return args, kwargs


class _Backward:
    """Calls the backward hooks of one forward call: identities around the module see all its gradients."""

    def __init__(self, module: Module) -> None:
        self.module = weakref.ref(module)
        self.grad_output: tuple[Any, ...] = ()
        self.n_inputs = 0
        self.watches_inputs = False

    def watch_inputs(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        self.n_inputs = len(args)
        tensors, put_back = _tensors(args)
        self.watches_inputs = any(t.requires_grad for t in tensors)
        return put_back(_identity(self.on_inputs, tensors)) if self.watches_inputs else args

    def watch_outputs(self, out: Any) -> Any:
        outs = out if isinstance(out, tuple) else (out,)
        tensors, put_back = _tensors(outs)
        if not any(t.requires_grad for t in tensors):
            return out
        changed = put_back(_identity(self.on_outputs, tensors))
        return changed if isinstance(out, tuple) else changed[0]

    def on_outputs(self, grads: tuple[Any, ...]) -> tuple[Any, ...]:
        module = self.module()
        if module is None:
            return grads
        for hook in list(module._backward_pre_hooks.values()):
            changed = hook.fn(module, grads)
            if changed is not None:
                grads = changed if isinstance(changed, tuple) else (changed,)
        self.grad_output = grads
        if not self.watches_inputs:
            self._call(module, (None,) * self.n_inputs)
        return grads

    def on_inputs(self, grads: tuple[Any, ...]) -> tuple[Any, ...]:
        module = self.module()
        return grads if module is None else self._call(module, grads)

    def _call(self, module: Module, grads: tuple[Any, ...]) -> tuple[Any, ...]:
        for hook in list(module._backward_hooks.values()):
            changed = hook.fn(module, grads, self.grad_output)
            if changed is not None:
                grads = changed if isinstance(changed, tuple) else (changed,)
        return grads


def _tensors(values: tuple[Any, ...]) -> tuple[list[Tensor], Callable[[tuple[Tensor, ...]], tuple[Any, ...]]]:
    """The tensors among ``values``, and a function that puts others in their places."""
    places = [i for i, v in enumerate(values) if isinstance(v, Tensor)]

    def put_back(tensors: tuple[Tensor, ...]) -> tuple[Any, ...]:
        out = list(values)
        for i, t in zip(places, tensors, strict=True):
            out[i] = t
        return tuple(out)

    return [values[i] for i in places], put_back


def _identity(on_backward: Callable[..., Any], tensors: list[Tensor]) -> tuple[Tensor, ...]:
    from weft.autograd import Function

    class Identity(Function):
        @staticmethod
        def forward(ctx: Any, *xs: Tensor) -> Any:
            return tuple(x.view_as(x) for x in xs)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return on_backward(grads)

    return Identity.apply(*tensors)
