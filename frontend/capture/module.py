"""A module under ``weft.compile``."""

from __future__ import annotations

from typing import Any

from weft.capture.compiled import Compiled
from weft.nn.module import Module

_OWN = (
    "graph",
    "stages",
    "kernels",
    "plan",
    "llvm",
    "asm",
    "guards",
    "entries",
    "recompiles",
    "breaks",
    "backward_graph",
    "call_source",
    "reset",
)


class OptimizedModule(Module):
    """A module whose call is compiled. Parameters, attributes and modes are those of the module it wraps
    (``_orig_mod``, which also prefixes the keys of its state dict, as in torch)."""

    def __init__(
        self, module: Module, fullgraph: bool, dynamic: bool | None, options: dict[str, Any]
    ) -> None:
        super().__init__()
        self._modules["_orig_mod"] = module
        compiled = Compiled(module.__call__, fullgraph, dynamic, options)
        compiled.name = type(module).__name__
        object.__setattr__(self, "_compiled", compiled)

    def _weft_follow(self) -> Any:
        return self._modules["_orig_mod"]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._compiled(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._compiled(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        d = self.__dict__
        if name in _OWN:
            return getattr(d["_compiled"], name)
        module = d["_modules"]["_orig_mod"]
        return module if name == "_orig_mod" else getattr(module, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._modules["_orig_mod"], name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._modules["_orig_mod"], name)

    @property
    def training(self) -> bool:  # type: ignore[override]
        return self._modules["_orig_mod"].training  # type: ignore[union-attr]

    @training.setter
    def training(self, value: bool) -> None:
        module = self._modules.get("_orig_mod")
        if module is not None:
            module.training = value

    def __dir__(self) -> list[str]:
        return sorted({*_OWN, *dir(self._modules["_orig_mod"])})

    def __reduce__(self) -> Any:
        c = self._compiled
        return OptimizedModule, (self._modules["_orig_mod"], c.fullgraph, c.dynamic, c.options)
