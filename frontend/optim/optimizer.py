"""The base of all optimizers: parameter groups, state, state dicts."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from weft.autograd.grad_mode import enable_grad, no_grad
from weft.capture.state import bump_epoch, hidden_scalar, is_capturing, paused
from weft.dispatch import interpreter
from weft.nn.hooks import RemovableHandle
from weft.nn.module import clear_grad
from weft.optim.fused import repeated_update, runs_own_code, step_group
from weft.tensor import Tensor


class _Required:
    def __repr__(self) -> str:
        return "<required parameter>"


required = _Required()


class ParamGroup(dict[str, Any]):
    """The options of one group of parameters; a change makes compiled functions check their guards."""

    def __setitem__(self, key: str, value: Any) -> None:
        bump_epoch()
        super().__setitem__(key, value)


class _Pair:
    """The numbers of an option that is a tuple (``betas``), read afresh at each access."""

    def __init__(self, group: dict[str, Any], name: str) -> None:
        self.group, self.name = group, name

    def __getitem__(self, i: int) -> Any:
        return self.group[self.name][i]


class Optimizer:
    """Base class, as ``torch.optim.Optimizer``: subclasses give ``defaults`` and :meth:`update`.

    Inside a compiled function the whole step is captured: options are read through ``hidden_scalar``, so
    that a changed learning rate never recompiles, and state is made at once, so that it is an input from
    the first call.
    """

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        if isinstance(params, Tensor):
            raise TypeError(
                "params argument given to the optimizer should be an iterable of Tensors or dicts, but got "
                + type(params).__name__
            )
        self.defaults = defaults
        self.state: defaultdict[Any, dict[str, Any]] = defaultdict(dict)
        self.param_groups: list[dict[str, Any]] = []
        self._step_pre_hooks: dict[int, Any] = {}
        self._step_post_hooks: dict[int, Any] = {}
        groups = list(params)
        if not groups:
            raise ValueError("optimizer got an empty parameter list")
        for group in groups if isinstance(groups[0], dict) else [{"params": groups}]:
            self.add_param_group(group)

    # -- parameter groups -----------------------------------------------------------------------------------
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with their own options; what is left out takes the defaults."""
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        params = param_group["params"]
        if isinstance(params, set):
            raise TypeError(
                "optimizer parameters need to be organized in ordered collections, but the ordering of "
                "tensors in sets will change between runs. Please use a list instead."
            )
        params = [params] if isinstance(params, Tensor) else list(params)
        group = ParamGroup({**param_group, "params": params})
        self._check(params)
        for name, default in self.defaults.items():
            if default is required and name not in group:
                raise ValueError(
                    f"parameter group didn't specify a value of required optimization parameter {name}"
                )
            group.setdefault(name, default)
        bump_epoch()
        self.param_groups.append(group)

    def _check(self, params: list[Any]) -> None:
        for p in params:
            if not isinstance(p, Tensor):
                raise TypeError(
                    f"optimizer can only optimize Tensors, but one of the params is {type(p).__name__}"
                )
            if not (self.defaults.get("differentiable") or p.is_leaf or p._retains):
                raise ValueError("can't optimize a non-leaf Tensor")
        ids = [id(p) for p in params]
        taken = {id(p) for group in self.param_groups for p in group["params"]}
        if len(set(ids)) != len(ids):
            raise ValueError("optimizer contains a parameter group with duplicate parameters")
        if not taken.isdisjoint(ids):
            raise ValueError("some parameters appear in more than one parameter group")

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters (or zero them in place)."""
        for group in self.param_groups:
            for p in group["params"]:
                clear_grad(p, set_to_none)

    # -- stepping -------------------------------------------------------------------------------------------
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient; ``closure`` computes the loss again and is returned."""
        for hook in list(self._step_pre_hooks.values()):
            hook.fn(self, (closure,), {})
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        own = is_capturing() and runs_own_code(self)
        with no_grad():
            for group in self.param_groups:
                if own:
                    interpreter().apart(self._step_group, group)
                else:
                    self._step_group(group)
        for hook in list(self._step_post_hooks.values()):
            hook.fn(self, (closure,), {})
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        options = self.options(group)
        items = [(p, p.grad, self.state_of(p, group)) for p in group["params"] if p.grad is not None]
        if step_group(self, group, items):
            return
        update = repeated_update(self, group) or self.update
        for p, grad, state in items:
            update(p, -grad if group.get("maximize") else grad, state, options)

    def options(self, group: dict[str, Any]) -> dict[str, Any]:
        """The options of a group as numbers: in capture, as inputs that each call reads afresh."""
        if not is_capturing():
            return group
        out: dict[str, Any] = {}
        for name, value in group.items():
            if name == "params":
                continue
            if type(value) is tuple:
                pair = _Pair(group, name)
                out[name] = tuple(hidden_scalar(pair, i) for i in range(len(value)))
            else:
                out[name] = hidden_scalar(group, name)
        return out

    def state_of(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """The state of a parameter; made, as ordinary tensors even in capture, when first asked for."""
        state = self.state[p]
        if not state:
            with paused():
                state.update(self.new_state(p, group))
        return state

    def new_state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """The state of a parameter before its first step."""
        return {}

    def update(self, p: Tensor, grad: Tensor, state: dict[str, Any], options: dict[str, Any]) -> None:
        """One step of one parameter, in place."""
        raise RuntimeError(f"{type(self).__name__} defines no update")

    def register_step_pre_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """``hook(optimizer, args, kwargs)`` before each step."""
        return RemovableHandle(self._step_pre_hooks, hook)

    def register_step_post_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        return RemovableHandle(self._step_post_hooks, hook)

    # -- state dicts ----------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """``{"state": {number: ...}, "param_groups": [...]}``: parameters by their number, as in torch."""
        numbers: dict[int, int] = {}
        groups = []
        for group in self.param_groups:
            for p in group["params"]:
                numbers.setdefault(id(p), len(numbers))
            packed = {k: v for k, v in group.items() if k != "params"}
            groups.append({**packed, "params": [numbers[id(p)] for p in group["params"]]})
        state = {numbers[id(k)] if isinstance(k, Tensor) else k: v for k, v in self.state.items()}
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over options and a copy of the state; ValueError where the groups do not fit."""
        saved = [dict(g) for g in state_dict["param_groups"]]
        if len(saved) != len(self.param_groups):
            raise ValueError("loaded state dict has a different number of parameter groups")
        if any(len(a["params"]) != len(b["params"]) for a, b in zip(saved, self.param_groups, strict=True)):
            raise ValueError(
                "loaded state dict contains a parameter group that doesn't match the size of optimizer's "
                "group"
            )
        by_number = {}
        for a, b in zip(saved, self.param_groups, strict=True):
            by_number.update(zip(a["params"], b["params"], strict=True))
        state: defaultdict[Any, dict[str, Any]] = defaultdict(dict)
        for k, v in state_dict["state"].items():
            p = by_number.get(k)
            state[k if p is None else p] = copy.deepcopy(v) if p is None else _loaded(v, p)
        groups = [
            ParamGroup({**a, "params": b["params"]}) for a, b in zip(saved, self.param_groups, strict=True)
        ]
        self.__setstate__({"state": state, "param_groups": groups})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for name in ("_step_pre_hooks", "_step_post_hooks"):
            self.__dict__.setdefault(name, {})
        for group in self.param_groups:
            for name, default in self.defaults.items():
                group.setdefault(name, default)
        bump_epoch()

    def __getstate__(self) -> dict[str, Any]:
        return {"defaults": self.defaults, "state": self.state, "param_groups": self.param_groups}

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for i, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {i}")
            lines += [f"    {k}: {group[k]}" for k in sorted(group) if k != "params"]
        return "\n".join([*lines, ")"])


def _loaded(value: Any, p: Tensor, key: str | None = None) -> Any:
    """A copy of loaded state: floating point tensors but ``step`` in the dtype of the parameter."""
    if isinstance(value, Tensor):
        cast = key != "step" and p.is_floating_point() and value.is_floating_point()
        return value.detach().to(p.dtype).clone() if cast else value.detach().clone()
    if isinstance(value, dict):
        return {k: _loaded(v, p, k) for k, v in value.items()}
    return copy.deepcopy(value)


def check_options(*limits: tuple[str, Any, bool]) -> None:
    """ValueError in torch's words for the first option that is out of range: (name, value, fits)."""
    for name, value, fits in limits:
        if not fits:
            raise ValueError(f"Invalid {name}: {value}")


Params = Iterable[Any] | OrderedDict[str, Any]
