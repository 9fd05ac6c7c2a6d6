"""Comparing tensors, and proving that a compiled function does what the eager one does.

``assert_close`` as ``torch.testing``'s; ``assert_equivalent`` runs a function eagerly, compiled and through
the reference interpreter; ``assert_same_story`` compares whole scenarios. The pytest plugin is
:mod:`weft.testing.plugin`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weft.testing.compare import assert_close
    from weft.testing.equivalence import assert_equivalent
    from weft.testing.scenario import assert_same_story

__all__ = ["assert_close", "assert_equivalent", "assert_same_story"]

_HOMES = {
    "assert_close": "weft.testing.compare",
    "assert_equivalent": "weft.testing.equivalence",
    "assert_same_story": "weft.testing.scenario",
}


def __getattr__(name: str) -> Any:
    """Imported on use: pytest loads this package as a plugin at every start."""
    if name not in _HOMES:
        raise AttributeError(f"module 'weft.testing' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
