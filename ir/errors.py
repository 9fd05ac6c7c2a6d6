"""Errors of the compiler itself. Errors of users' programs use Python's and PyTorch's types."""

from __future__ import annotations

from typing import Any


class CompilerError(RuntimeError):
    """A bug in weft: carries the graph that shows it.

    ``graph`` is the offending graph (or None); its text form is a reproducer.
    """

    def __init__(self, message: str, graph: Any = None) -> None:
        super().__init__(message)
        self.graph = graph


class VerificationError(CompilerError):
    """A graph that breaks a rule of the IR."""


# what the status word of a kernel stands for
INDEX_OUT_OF_RANGE, DIVISION_BY_ZERO = 1, 2
