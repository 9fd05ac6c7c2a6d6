"""Which code is the user's: source lines for messages, and the kind of a code object."""

from __future__ import annotations

import linecache
import os
import sys
import sysconfig
from types import CodeType, FrameType

import numpy as np
import weft

_PACKAGES = ("weft", "weft.ir", "weft.passes", "weft.codegen", "weft.runtime")
_FOREIGN = ("numpy", "llvmlite", "ml_dtypes", "scipy", "_pytest", "pytest", "pluggy")


def _folders() -> tuple[str, ...]:
    """The folders of weft's own packages, as they stand in ``co_filename``."""
    found: list[str] = []
    for name in _PACKAGES:
        module = sys.modules.get(name)
        found += [os.path.join(p, "") for p in getattr(module, "__path__", [])]
    return tuple(found)


_own: tuple[str, ...] = ()
_kinds: dict[CodeType, str] = {}
_STDLIB = os.path.join(sysconfig.get_paths()["stdlib"], "")
_SITE = tuple(os.path.join(sysconfig.get_paths()[k], "") for k in ("purelib", "platlib"))
_NUMPY = os.path.join(os.path.dirname(np.__file__), "")


def own_folders() -> tuple[str, ...]:
    """Where weft's own code lives; looked up late, when all of its packages are imported."""
    global _own
    if len(_own) < len(_PACKAGES):
        _own = _folders()
        _kinds.clear()
    return _own


def kind_of_file(name: str) -> str:
    """``"weft"``, ``"library"`` (standard library, numpy, test runner) or ``"user"``."""
    if name.startswith(own_folders()):
        return "weft"
    if name.startswith("<") and not name.startswith(("<stdin", "<doctest", "<ipython", "<string")):
        return "library"
    if name.startswith(_SITE):
        top = name[len(next(s for s in _SITE if name.startswith(s))) :].split(os.sep, 1)[0]
        return "library" if top in _FOREIGN else "user"
    if name.startswith((_STDLIB, _NUMPY)) and "site-packages" not in name[len(_STDLIB) :]:
        return "library"
    return "user"


def kind_of(code: CodeType) -> str:
    """The kind of a code object, remembered."""
    found = _kinds.get(code)
    if found is None:
        found = _kinds[code] = kind_of_file(code.co_filename)
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


_ = weft  # imported for its package path
