"""state_dict and load_state_dict, with the error texts of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from weft.capture.state import bump_epoch
from weft.tensor import Tensor

if TYPE_CHECKING:
    from weft.nn.module import Module

EXTRA = "_extra_state"


class IncompatibleKeys(NamedTuple):
    """What ``load_state_dict`` returns: keys the module has and the dict has not, and the reverse."""

    missing_keys: list[str]
    unexpected_keys: list[str]

    def __repr__(self) -> str:
        if not self.missing_keys and not self.unexpected_keys:
            return "<All keys matched successfully>"
        return f"_IncompatibleKeys(missing_keys={self.missing_keys}, unexpected_keys={self.unexpected_keys})"


def _has_extra(module: Module, method: str) -> bool:
    from weft.nn.module import Module

    return getattr(type(module), method) is not getattr(Module, method)


def save_state_dict(module: Module, out: dict[str, Any], prefix: str, keep_vars: bool) -> dict[str, Any]:
    module._save_to_state_dict(out, prefix, keep_vars)
    if _has_extra(module, "get_extra_state"):
        out[prefix + EXTRA] = module.get_extra_state()
    for name, child in module._modules.items():
        if child is not None:
            child.state_dict(destination=out, prefix=f"{prefix}{name}.", keep_vars=keep_vars)
    return out


class _Loading:
    """One call of ``load_state_dict``: collects what is wrong before anything is raised."""

    def __init__(self, state: Mapping[str, Any], assign: bool) -> None:
        self.state, self.assign = state, assign
        self.missing: list[str] = []
        self.unexpected: list[str] = []
        self.errors: list[str] = []

    def load(self, module: Module, prefix: str) -> None:
        known = self._load_members(module, prefix)
        if _has_extra(module, "set_extra_state"):
            known.add(EXTRA)
            if prefix + EXTRA in self.state:
                module.set_extra_state(self.state[prefix + EXTRA])
            else:
                self.missing.append(prefix + EXTRA)
        for key in self.state:
            if key.startswith(prefix):
                head = key[len(prefix) :].split(".", 1)
                below = module._modules.get(head[0]) if len(head) > 1 else None
                if below is None and ".".join(head) not in known:
                    self.unexpected.append(key)
        for name, child in module._modules.items():
            if child is not None:
                self.load(child, f"{prefix}{name}.")

    def _load_members(self, module: Module, prefix: str) -> set[str]:
        excluded = module.__dict__["_non_persistent_buffers_set"]
        known = set()
        for members in (module._parameters, module._buffers):
            for name, member in list(members.items()):
                if member is None or (members is module._buffers and name in excluded):
                    continue
                known.add(name)
                if prefix + name not in self.state:
                    self.missing.append(prefix + name)
                else:
                    self._load_one(members, name, member, prefix + name)
        return known

    def _load_one(self, members: Any, name: str, member: Tensor, key: str) -> None:
        value = self.state[key]
        if not isinstance(value, Tensor):
            self.errors.append(
                f'While copying the parameter named "{key}", expected weft.Tensor or Tensor-like object from '
                f"checkpoint but received {type(value)}"
            )
        elif tuple(value.shape) != tuple(member.shape):
            self.errors.append(
                f"size mismatch for {key}: copying a param with shape {value.shape} from checkpoint, "
                f"the shape in current model is {member.shape}."
            )
        elif self.assign:
            members[name] = _assigned(member, value)
        else:
            _copy(member, value)


def _assigned(member: Tensor, value: Tensor) -> Tensor:
    from weft.nn.parameter import Parameter

    if isinstance(member, Parameter) and not isinstance(value, Parameter):
        return Parameter(value.detach(), member.requires_grad)
    return value


def _copy(member: Tensor, value: Tensor) -> None:
    from weft.autograd.grad_mode import no_grad

    with no_grad():
        member.copy_(value)


def _quoted(keys: list[str]) -> str:
    return ", ".join(f'"{k}"' for k in keys)


def load_state_dict(module: Module, state: Mapping[str, Any], strict: bool, assign: bool) -> IncompatibleKeys:
    if not isinstance(state, Mapping):
        raise TypeError(f"Expected state_dict to be dict-like, got {type(state)}.")
    loading = _Loading(state, assign)
    loading.load(module, "")
    bump_epoch()
    errors = loading.errors
    if strict:
        if loading.unexpected:
            errors.insert(0, f"Unexpected key(s) in state_dict: {_quoted(loading.unexpected)}. ")
        if loading.missing:
            errors.insert(0, f"Missing key(s) in state_dict: {_quoted(loading.missing)}. ")
    if errors:
        raise RuntimeError(
            f"Error(s) in loading state_dict for {type(module).__name__}:\n\t" + "\n\t".join(errors)
        )
    return IncompatibleKeys(loading.missing, loading.unexpected)
