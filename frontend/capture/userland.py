"""Which code is the user's: source lines for messages, and the kind of a code object."""

from __future__ import annotations

import functools
import linecache
import os
import sys
from importlib.util import find_spec
from types import CodeType, FrameType

import numpy as np

_PACKAGES = ("weft", "weft.ir", "weft.passes", "weft.codegen", "weft.runtime")
_FOREIGN = ("numpy", "llvmlite", "ml_dtypes", "scipy", "_pytest", "pytest", "pluggy")


@functools.cache
def own_folders() -> tuple[str, ...]:
    """The folders of weft's own packages, as they stand in ``co_filename``. Imports none of them."""
    specs = [find_spec(name) for name in _PACKAGES]
    return tuple(os.path.join(p, "") for s in specs if s for p in s.submodule_search_locations or ())


_kinds: dict[str, str] = {}
_STDLIB = os.path.join(os.path.dirname(os.__file__), "")
_SITE = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))  # of any environment
_NUMPY = os.path.join(os.path.dirname(np.__file__), "")


def kind_of_file(name: str) -> str:
    """``"weft"``, ``"library"`` (standard library, numpy, test runner) or ``"user"``."""
    if name.startswith(own_folders()):
        return "weft"
    if name.startswith("<") and not name.startswith(("<stdin", "<doctest", "<ipython", "<string")):
        return "library"
    for site in _SITE:
        if site in name:
            top = name.rpartition(site)[2].split(os.sep, 1)[0]
            return "library" if top in _FOREIGN else "user"
    if name.startswith((_STDLIB, _NUMPY)):
        return "library"
    return "user"


def kind_of(code: CodeType) -> str:
    """The kind of a code object, remembered by its file."""
    name = code.co_filename
    found = _kinds.get(name)
    if found is None:
        found = _kinds[name] = kind_of_file(name)
    return found


def user_frame(frame: FrameType | None = None) -> FrameType | None:
    """The innermost frame outside weft and the libraries under it."""
    frame = frame if frame is not None else sys._getframe(1)
    while frame is not None and kind_of(frame.f_code) != "user":
        frame = frame.f_back
    return frame


def user_loc() -> str | None:
    """``file:line`` of the innermost user frame."""
    f = user_frame(sys._getframe(1))
    return None if f is None else f"{f.f_code.co_filename}:{f.f_lineno}"


def quote(loc: str | None) -> str:
    """The location with its source text: ``train.py:12: loss.item()``."""
    if not loc:
        return "an unknown line"
    name, _, line = loc.rpartition(":")
    text = linecache.getline(name, int(line)).strip()
    return f"{loc}: {text}" if text else loc
