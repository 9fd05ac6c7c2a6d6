"""Module: a tree of parameters, buffers and submodules with a ``forward``."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from weft.capture.state import bump_epoch
from weft.nn.hooks import RemovableHandle, run_with_hooks
from weft.nn.parameter import Parameter
from weft.nn.state import load_state_dict, save_state_dict
from weft.tensor import Tensor

Self = TypeVar("Self", bound="Module")

_DICTS = (
    "_parameters",
    "_buffers",
    "_modules",
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
)


class Module:
    """Base class of all neural network modules, as ``torch.nn.Module``.

    Subclasses call ``super().__init__()``, assign parameters and submodules as attributes and define
    ``forward``. Any change of an attribute makes compiled functions check their guards on modules again at
    their next call.

    >>> import weft
    >>> class Scale(Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.factor = weft.nn.Parameter(weft.tensor(2.0))
    ...
    ...     def forward(self, x):
    ...         return x * self.factor
    >>> scale = Scale()
    >>> scale(weft.ones(2)).tolist(), [name for name, _ in scale.named_parameters()]
    ([2.0, 2.0], ['factor'])
    """

    training: bool
    _parameters: dict[str, Parameter | None]
    _buffers: dict[str, Tensor | None]
    _modules: dict[str, Module | None]
    _forward_pre_hooks: dict[int, Any]
    _forward_hooks: dict[int, Any]
    _backward_pre_hooks: dict[int, Any]
    _backward_hooks: dict[int, Any]

    def __init__(self) -> None:
        for name in _DICTS:
            object.__setattr__(self, name, {})
        object.__setattr__(self, "_non_persistent_buffers_set", set())
        object.__setattr__(self, "training", True)

    # -- calling -------------------------------------------------------------------------------------------
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The computation of the module; every subclass has its own."""
        raise NotImplementedError(
            f'Module [{type(self).__name__}] is missing the required "forward" function'
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        d = self.__dict__
        if "_compiled_call" in d:
            return d["_compiled_call"](*args, **kwargs)
        try:
            hooked = (
                d["_forward_hooks"]
                or d["_forward_pre_hooks"]
                or d["_backward_hooks"]
                or d["_backward_pre_hooks"]
            )
        except KeyError:
            raise AttributeError(
                f"{type(self).__name__}.__init__() did not call super().__init__()"
            ) from None
        return run_with_hooks(self, args, kwargs) if hooked else self.forward(*args, **kwargs)

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        """What :meth:`compile` compiles: a call, uncompiled."""
        return run_with_hooks(self, args, kwargs)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile calls of this module from now on; the arguments are those of ``weft.compile``."""
        from weft.capture import compile

        object.__setattr__(self, "_compiled_call", compile(self._call, *args, **kwargs))

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_compiled_call"}

    # -- attributes ----------------------------------------------------------------------------------------
    def __getattr__(self, name: str) -> Any:
        for kind in ("_parameters", "_buffers", "_modules"):
            members = self.__dict__.get(kind)
            if members is not None and name in members:
                return members[name]
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    def __setattr__(self, name: str, value: Any) -> None:
        bump_epoch()
        d = self.__dict__
        kind = _kind_of(value)
        if kind is not None:
            if kind not in d:
                raise AttributeError(f"cannot assign {kind[1:]} before Module.__init__() call")
            _drop(d, name, keep=kind)
            (self.register_parameter if kind == "_parameters" else self.add_module)(name, value)
            return
        for slot, expected in _EXPECTED.items():
            if name in d.get(slot, ()):
                if value is not None and not (slot == "_buffers" and isinstance(value, Tensor)):
                    raise TypeError(f"cannot assign '{_type_name(value)}' as {expected.format(name=name)}")
                d[slot][name] = value
                return
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        bump_epoch()
        for kind in ("_parameters", "_buffers", "_modules"):
            if name in self.__dict__.get(kind, ()):
                del self.__dict__[kind][name]
                self.__dict__["_non_persistent_buffers_set"].discard(name)
                return
        object.__delattr__(self, name)

    def __dir__(self) -> list[str]:
        names = [*object.__dir__(self), *self._parameters, *self._buffers, *self._modules]
        return sorted({n for n in names if not n[:1].isdigit()})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Add a parameter. KeyError for a name that is taken or has a dot, TypeError for what is none."""
        self._check_name("parameter", name, "_parameters")
        if param is not None and not isinstance(param, Parameter):
            raise TypeError(
                f"cannot assign '{_type_name(param)}' object to parameter '{name}' "
                "(weft.nn.Parameter or None required)"
            )
        if param is not None and param.grad_fn is not None:
            raise ValueError(
                f"Cannot assign non-leaf Tensor to parameter '{name}'. Model parameters must be created "
                "explicitly."
            )
        bump_epoch()
        self._parameters[name] = param

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Add a tensor that is state but not learned; ``persistent=False`` keeps it out of the state dict."""
        self._check_name("buffer", name, "_buffers")
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(
                f"cannot assign '{_type_name(tensor)}' object to buffer '{name}' "
                "(weft Tensor or None required)"
            )
        bump_epoch()
        self._buffers[name] = tensor
        excluded = self.__dict__["_non_persistent_buffers_set"]
        (excluded.discard if persistent else excluded.add)(name)

    def add_module(self, name: str, module: Module | None) -> None:
        """Add a submodule."""
        if module is not None and not isinstance(module, Module):
            raise TypeError(f"{_type_name(module)} is not a Module subclass")
        self._check_name("module", name, "_modules")
        bump_epoch()
        self._modules[name] = module

    register_module = add_module

    def _check_name(self, what: str, name: str, kind: str) -> None:
        if kind not in self.__dict__:
            raise AttributeError(f"cannot assign {what} before Module.__init__() call")
        if not isinstance(name, str):
            raise TypeError(f"{what} name should be a string. Got {type(name).__name__}")
        if "." in name:
            raise KeyError(f'{what} name can\'t contain ".", got: {name}')
        if name == "":
            raise KeyError(f'{what} name can\'t be empty string ""')
        if hasattr(self, name) and name not in self.__dict__[kind]:
            raise KeyError(f"attribute '{name}' already exists")

    # -- walking -------------------------------------------------------------------------------------------
    def named_modules(
        self, memo: set[Any] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """This module and all below it, each once, with dotted names."""
        memo = set() if memo is None else memo
        if self in memo:
            return
        if remove_duplicate:
            memo.add(self)
        yield prefix, self
        for name, module in self._modules.items():
            if module is not None:
                below = f"{prefix}.{name}" if prefix else name
                yield from module.named_modules(memo, below, remove_duplicate)

    def modules(self) -> Iterator[Module]:
        for _, module in self.named_modules():
            yield module

    def named_children(self) -> Iterator[tuple[str, Module]]:
        seen: set[Any] = set()
        for name, module in self._modules.items():
            if module is not None and module not in seen:
                seen.add(module)
                yield name, module

    def children(self) -> Iterator[Module]:
        for _, module in self.named_children():
            yield module

    def _named_members(
        self, kind: str, prefix: str, recurse: bool, remove_duplicate: bool
    ) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        pairs: Iterable[tuple[str, Module]] = [(prefix, self)]
        if recurse:
            pairs = self.named_modules(prefix=prefix, remove_duplicate=remove_duplicate)
        for path, module in pairs:
            for name, member in module.__dict__[kind].items():
                if member is None or (remove_duplicate and id(member) in seen):
                    continue
                seen.add(id(member))
                yield (f"{path}.{name}" if path else name), member

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """Name and parameter, each parameter once (tied weights under their first name)."""
        return self._named_members("_parameters", prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        for _, p in self.named_parameters(recurse=recurse):
            yield p

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        return self._named_members("_buffers", prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        for _, b in self.named_buffers(recurse=recurse):
            yield b

    def get_submodule(self, target: str) -> Module:
        """The module at a dotted path; AttributeError if there is none."""
        module: Any = self
        for name in target.split(".") if target else ():
            if not hasattr(module, name):
                raise AttributeError(f"{type(module).__name__} has no attribute `{name}`")
            module = getattr(module, name)
            if not isinstance(module, Module):
                raise AttributeError(f"`{name}` is not an nn.Module")
        return module

    def get_parameter(self, target: str) -> Parameter:
        path, _, name = target.rpartition(".")
        module = self.get_submodule(path)
        found = module._parameters.get(name)
        if found is None:
            raise AttributeError(f"{type(module).__name__} has no attribute `{name}`")
        return found

    def get_buffer(self, target: str) -> Tensor:
        path, _, name = target.rpartition(".")
        module = self.get_submodule(path)
        found = module._buffers.get(name)
        if found is None:
            raise AttributeError(f"{type(module).__name__} has no attribute `{name}`")
        return found

    # -- changing ------------------------------------------------------------------------------------------
    def apply(self: Self, fn: Callable[[Module], Any]) -> Self:
        """Call ``fn`` on every submodule, then on this module."""
        for module in self.children():
            module.apply(fn)
        fn(self)
        return self

    def _apply(self: Self, fn: Callable[[Tensor], Tensor]) -> Self:
        """Replace the data of all parameters, their gradients and the buffers by ``fn`` of it."""
        for module in self.children():
            module._apply(fn)
        for p in self._parameters.values():
            if p is not None:
                grad = p.grad
                p.data = fn(p.data)
                if grad is not None:
                    p.grad = None
                    p.grad = fn(grad.data).requires_grad_(grad.requires_grad)
        for name, b in self._buffers.items():
            if b is not None:
                self._buffers[name] = fn(b)
        bump_epoch()
        return self

    def to(self: Self, *args: Any, **kwargs: Any) -> Self:
        """Move or cast in place: ``to(dtype)``, ``to(device)``, ``to(device, dtype)``, ``to(tensor)``.

        Only floating point and complex parameters and buffers change their dtype.
        """
        from weft.dtypes import as_device
        from weft.ir.types import DType

        dtype, device = kwargs.get("dtype"), kwargs.get("device")
        for a in args:
            if isinstance(a, Tensor):
                dtype, device = a.dtype, a.device
            elif isinstance(a, DType):
                dtype = a
            elif a is not None and not isinstance(a, bool):
                device = a
        if dtype is not None and not dtype.is_inexact:
            raise TypeError(
                f"nn.Module.to only accepts floating point or complex dtypes, but got desired dtype={dtype}"
            )
        place = None if device is None else as_device(device)

        def move(t: Tensor) -> Tensor:
            cast = dtype if dtype is not None and t.dtype.is_inexact else t.dtype
            return t.to(device=t.device if place is None else place, dtype=cast)

        return self._apply(move)

    def _cast(self: Self, dtype: Any) -> Self:
        return self._apply(lambda t: t.to(dtype) if t.is_floating_point() else t)

    def float(self: Self) -> Self:
        from weft.ir.types import f32

        return self._cast(f32)

    def double(self: Self) -> Self:
        from weft.ir.types import f64

        return self._cast(f64)

    def half(self: Self) -> Self:
        from weft.ir.types import f16

        return self._cast(f16)

    def bfloat16(self: Self) -> Self:
        from weft.ir.types import bf16

        return self._cast(bf16)

    def type(self: Self, dst_type: Any) -> Self:
        return self._apply(lambda t: t.to(dst_type))

    def cpu(self: Self) -> Self:
        """Move all parameters and buffers to the CPU, in place."""
        return self.to("cpu")

    def cuda(self: Self, device: Any = None) -> Self:
        """Move all parameters and buffers to a GPU (the current one), in place."""
        return self.to("cuda" if device is None else device)

    def train(self: Self, mode: bool = True) -> Self:
        """Set training mode here and below; compiled functions that read it are guarded on it."""
        if not isinstance(mode, bool):
            raise ValueError("training mode is expected to be boolean")
        self.training = mode
        for module in self.children():
            module.train(mode)
        return self

    def eval(self: Self) -> Self:
        return self.train(False)

    def requires_grad_(self: Self, requires_grad: bool = True) -> Self:
        for p in self.parameters():
            p.requires_grad_(requires_grad)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget (or zero in place) the gradients of all parameters."""
        for p in self.parameters():
            clear_grad(p, set_to_none)

    # -- state ---------------------------------------------------------------------------------------------
    def state_dict(
        self, *, destination: dict[str, Any] | None = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """Parameters and persistent buffers by dotted name (detached unless ``keep_vars``), not copied."""
        out: dict[str, Any] = OrderedDict() if destination is None else destination
        return save_state_dict(self, out, prefix, keep_vars)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Copy (or, with ``assign``, put) the values of a state dict into this module.

        Returns the missing and unexpected keys; with ``strict`` RuntimeError lists them, and shapes that
        differ.
        """
        return load_state_dict(self, state_dict, strict, assign)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Hook for subclasses that save differently."""
        for name, p in self._parameters.items():
            if p is not None:
                destination[prefix + name] = p if keep_vars else p.detach()
        for name, b in self._buffers.items():
            if b is not None and name not in self.__dict__["_non_persistent_buffers_set"]:
                destination[prefix + name] = b if keep_vars else b.detach()

    def get_extra_state(self) -> Any:
        """Extra state for the state dict, of classes that define it (with :meth:`set_extra_state`)."""
        raise RuntimeError("Reached a code path in Module.get_extra_state() that should never be called.")

    def set_extra_state(self, state: Any) -> None:
        raise RuntimeError("Reached a code path in Module.set_extra_state() that should never be called.")

    # -- hooks ---------------------------------------------------------------------------------------------
    def register_forward_pre_hook(
        self, hook: Callable[..., Any], *, prepend: bool = False, with_kwargs: bool = False
    ) -> RemovableHandle:
        """``hook(module, args)`` before forward; what it returns (unless None) replaces the arguments."""
        return RemovableHandle(self._forward_pre_hooks, hook, prepend, with_kwargs=with_kwargs)

    def register_forward_hook(
        self,
        hook: Callable[..., Any],
        *,
        prepend: bool = False,
        with_kwargs: bool = False,
        always_call: bool = False,
    ) -> RemovableHandle:
        """``hook(module, args, output)`` after forward; what it returns (unless None) replaces the output.

        ``always_call`` runs it also when forward raises.
        """
        return RemovableHandle(
            self._forward_hooks, hook, prepend, with_kwargs=with_kwargs, always_call=always_call
        )

    def register_full_backward_hook(self, hook: Callable[..., Any], prepend: bool = False) -> RemovableHandle:
        """``hook(module, grad_input, grad_output)`` when the gradients of the inputs are computed; what it
        returns (unless None) replaces ``grad_input``.
        """
        return RemovableHandle(self._backward_hooks, hook, prepend)

    def register_full_backward_pre_hook(
        self, hook: Callable[..., Any], prepend: bool = False
    ) -> RemovableHandle:
        """``hook(module, grad_output)`` before; what it returns (unless None) replaces ``grad_output``."""
        return RemovableHandle(self._backward_pre_hooks, hook, prepend)

    # -- printing ------------------------------------------------------------------------------------------
    def extra_repr(self) -> str:
        """What stands between the parentheses of this module's line."""
        return ""

    def _get_name(self) -> str:
        return type(self).__name__

    def __repr__(self) -> str:
        extra = self.extra_repr()
        lines = extra.split("\n") if extra else []
        children = [f"({name}): {_indented(repr(m))}" for name, m in self._modules.items()]
        if not children and len(lines) <= 1:
            return f"{self._get_name()}({extra})"
        return f"{self._get_name()}(\n  " + "\n  ".join([*lines, *children]) + "\n)"


_EXPECTED = {
    "_parameters": "parameter '{name}' (weft.nn.Parameter or None expected)",
    "_modules": "child module '{name}' (weft.nn.Module or None expected)",
    "_buffers": "buffer '{name}' (weft.Tensor or None expected)",
}


def _kind_of(value: Any) -> str | None:
    if isinstance(value, Parameter):
        return "_parameters"
    return "_modules" if isinstance(value, Module) else None


def _type_name(value: Any) -> str:
    cls = value.__class__
    return cls.__name__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__name__}"


def _drop(d: dict[str, Any], name: str, keep: str) -> None:
    """Forget ``name`` in every place but ``keep``: an attribute is one thing at a time."""
    d.pop(name, None)
    for kind in ("_parameters", "_buffers", "_modules"):
        if kind != keep:
            d[kind].pop(name, None)
    d["_non_persistent_buffers_set"].discard(name)


def _indented(text: str) -> str:
    first, *rest = text.split("\n")
    return "\n".join([first, *("  " + line for line in rest)])


def clear_grad(p: Tensor, set_to_none: bool) -> None:
    """What ``zero_grad`` does to one tensor."""
    if set_to_none:
        p.grad = None  # without a look at it, so that a captured step does not depend on what it was
        return
    if p.grad is None:
        return
    if p.grad.grad_fn is not None:
        p.grad.detach_()
    else:
        p.grad.requires_grad_(False)
    p.grad.zero_()
