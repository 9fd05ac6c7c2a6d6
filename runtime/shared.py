"""Functions that many kernels call (the inner loops of contractions ...): compiled once, linked once.

Code generation hands them over among the module-level lines of a kernel, as ``define internal`` texts whose
names say all that is in them. They are taken out of a graph's module and compiled as modules of their own, so
that the second graph that uses one (or the first, after a warm start) does not compile it again.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Mapping

from weft.codegen.target import Target
from weft.runtime import cache as disk
from weft.runtime import jit, workers

_NAME = re.compile(r"define [^@]*@([\w.]+)\(")
_USES = re.compile(r"@([\w.]+)")
_addresses: dict[str, int] = {}
_begun: dict[str, workers.Task[bytes]] = {}
_lock = threading.RLock()


def _renew_lock() -> None:
    """In the child of a fork: the thread that may have held the lock is gone."""
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)


def split(lines: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """(shared functions by name, the other module-level lines)."""
    shared: dict[str, str] = {}
    rest = []
    for line in lines:
        found = _NAME.match(line)
        if found:
            shared[found[1]] = line
        else:
            rest.append(line)
    return shared, rest


def declaration(text: str) -> str:
    """The ``declare`` line of a defined function."""
    head = re.sub(r"\s#\d+|%[\w.]+", "", text[: text.index("{")])
    return re.sub(r"^define( internal)?", "declare", head).strip()


def modules(shared: Mapping[str, str], rest: Iterable[str], target: Target) -> dict[str, str]:
    """A module for each shared function, with the declarations and the constants it needs."""
    named = (line for line in rest if line.startswith(("declare", "@")))
    declares = {m[1]: line for line in named if (m := _USES.search(line))}
    declares |= {name: declaration(text) for name, text in shared.items()}
    out = {}
    for name, text in shared.items():
        used = sorted(set(_USES.findall(text)) - {name})
        lines = [declares[u] for u in used if u in declares]
        body = text.replace("define internal ", "define ", 1)
        out[name] = "\n".join([f'target triple = "{target.triple}"', body, *lines, target.attributes, ""])
    return out


def begin(text: str, target: Target) -> None:
    """Begin to compile a module that :func:`addresses` will be asked for."""
    if text not in _addresses and text not in _begun:
        _begun[text] = workers.begin(disk.object_for, text, target)


def addresses(needed: Mapping[str, str], target: Target) -> dict[str, int]:
    """The addresses of shared functions, given as modules by name; new ones are compiled or loaded."""
    with _lock:
        return {name: _address(name, needed, target) for name in needed}


def _address(name: str, needed: Mapping[str, str], target: Target) -> int:
    text = needed[name]
    found = _addresses.get(text)
    if found is None:
        others = (set(_USES.findall(text)) & needed.keys()) - {name}
        imports = {other: _address(other, needed, target) for other in others}
        begun = _begun.pop(text, None)
        image = disk.object_for(text, target) if begun is None else begun.result()
        found = _addresses[text] = jit.link(image, (name,), imports)[name]
    return found
