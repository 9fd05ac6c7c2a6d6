"""Errors of capture."""

from __future__ import annotations


class CaptureError(RuntimeError):
    """A function compiled with ``fullgraph=True`` did what one graph cannot do; the message names the user's
    line."""


class GuardError(RuntimeError):
    """A compiled function was called in a way that its options forbid."""
