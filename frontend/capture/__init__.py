"""Capture: functions whose tensor operations become graphs. ``compile``, ``lazy``, ``explain``.

The names are imported on use: the tensor and the modules need only :mod:`weft.capture.state`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weft.capture.compiled import Compiled, compile, disable, is_compiling, reset
    from weft.capture.errors import CaptureError
    from weft.capture.module import OptimizedModule
    from weft.capture.regions import lazy
    from weft.capture.report import explain

__all__ = [
    "CaptureError",
    "Compiled",
    "OptimizedModule",
    "compile",
    "disable",
    "explain",
    "is_compiling",
    "lazy",
    "reset",
]

_HOMES = {
    "CaptureError": "errors",
    "Compiled": "compiled",
    "OptimizedModule": "module",
    "compile": "compiled",
    "disable": "compiled",
    "explain": "report",
    "is_compiling": "compiled",
    "lazy": "regions",
    "reset": "compiled",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'weft.capture' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"weft.capture.{_HOMES[name]}"), name)
