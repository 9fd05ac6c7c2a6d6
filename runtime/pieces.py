"""The module of a graph in pieces, each of which is compiled while the next ones are written.

Emission is Python, code generation is LLVM's: they run side by side, and so do pieces on several CPUs. Where
a piece ends depends on the sizes of the texts alone, so that the same graph always gives the same objects.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from weft.codegen.entry import module_text
from weft.codegen.target import Target
from weft.runtime import jit, shared, workers

PIECE = 64 << 10  # characters of text, some 40 ms of LLVM; an object more costs it one or two
_HEAD = re.compile(r"^define [^\n]*@([\w.]+)\([^\n]*\{$", re.MULTILINE)
_SYMBOL = re.compile(r"@([\w.]+)")


class Pieces:
    """Collects the functions of kernels, and has each piece compiled as soon as it is full."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.tasks: list[workers.Task[bytes]] = []
        self._parts: list[str] = []
        self._declares: set[str] = set()
        self._size = 0
        self._before: dict[str, str] = {}  # declarations of the functions of earlier pieces

    def add(self, text: str, declares: Iterable[str]) -> None:
        """The functions of one kernel and the module-level lines they need."""
        self._parts.append(text)
        self._declares.update(declares)
        self._size += len(text)
        if self._size >= PIECE:
            self._close()

    def _close(self) -> None:
        text = self._text([])
        self.tasks.append(workers.begin(jit.compile_object, text, self.target))
        self._before |= {m[1]: shared.declaration(m[0]) for m in _HEAD.finditer("\n".join(self._parts))}
        self._parts, self._declares, self._size = [], set(), 0

    def _text(self, entries: Sequence[str]) -> str:
        """The module of what is collected. Later pieces may call its functions, so none is internal."""
        parts = [p.replace("define internal ", "define dso_local ") for p in self._parts]
        functions, rest = shared.split(self._declares)
        for text in shared.modules(functions, rest, self.target).values():
            shared.begin(text, self.target)
        used = {m for p in (*parts, *entries) for m in _SYMBOL.findall(p)}
        calls = [shared.declaration(f) for f in functions.values()]
        earlier = [line for name, line in self._before.items() if name in used]
        return module_text(self.target, [*parts, *entries], [*rest, *calls, *earlier])

    def finish(self, entries: Sequence[str]) -> tuple[bytes, tuple[bytes, ...]]:
        """The object of the entries with what is left, and those of the pieces before it."""
        last = jit.compile_object(self._text(entries), self.target)
        return last, tuple(t.result() for t in self.tasks)
