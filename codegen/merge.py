"""One function for all kernels that come to the same code.

Kernels that differ in what their values are called, or in shapes that loops do not show, are emitted as the
same text under other names. LLVM's time is proportional to the text it gets, so what is there already is left
out.
"""

from __future__ import annotations

import re

from weft.codegen.kernel import KernelCode
from weft.ir.record import replace

_FUNCTION = re.compile(r"^define [^@\n]*@([\w.]+)\(.*?^\}\n", re.MULTILINE | re.DOTALL)
_SYMBOL = re.compile(r"@[\w.]+")


class Merger:
    """Remembers the functions of the kernels of one module."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}  # text without its own name, and the name it has

    def add(self, code: KernelCode) -> KernelCode:
        """The kernel without the functions that earlier ones brought, and with those in their places."""
        functions = {m[1]: m[0] for m in _FUNCTION.finditer(code.llvm)}
        if not functions:
            return code
        names: dict[str, str] = {}
        for name in functions:
            self._settle(name, functions, names)
        if all(name == kept for name, kept in names.items()):
            return code
        text = _FUNCTION.sub(lambda m: _renamed(m[0], names) if names[m[1]] == m[1] else "", code.llvm)
        phases = tuple(replace(p, symbol=names.get(p.symbol, p.symbol)) for p in code.phases)
        return replace(code, llvm=text, phases=phases)

    def _settle(self, name: str, functions: dict[str, str], names: dict[str, str]) -> str:
        """The name that stands for a function: its own, or that of an earlier one with the same text."""
        found = names.get(name)
        if found is None:
            names[name] = name  # stands for itself while what it calls is settled
            for used in dict.fromkeys(_SYMBOL.findall(functions[name])):
                if used[1:] in functions:
                    self._settle(used[1:], functions, names)
            others = {k: v for k, v in names.items() if k != name}
            text = _renamed(functions[name], others | {name: ""})
            found = names[name] = self._known.setdefault(text, name)
        return found


def _renamed(text: str, names: dict[str, str]) -> str:
    return _SYMBOL.sub(lambda m: "@" + names.get(m[0][1:], m[0][1:]), text)
