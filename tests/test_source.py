"""Rules of the house that a machine can check: file length, docstrings that run."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("frontend", "ir", "passes", "codegen", "runtime")


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    parts = ["weft", *(parts[1:] if parts[0] == "frontend" else parts)]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = sorted(module_name(p) for folder in FOLDERS for p in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str) -> None:
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


@pytest.mark.parametrize("name", ["README.md", "docs/architecture.md"])
def test_the_examples_of_a_document_run(name: str) -> None:
    result = doctest.testfile(
        str(ROOT / name),
        module_relative=False,
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE,
    )
    assert result.attempted > 0 and result.failed == 0


def test_no_file_is_over_800_lines() -> None:
    long = {}
    for folder in (*FOLDERS, "tests", "benchmarks", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            lines = path.read_text().count("\n")
            if lines > 800:
                long[path.relative_to(ROOT).as_posix()] = lines
    assert not long
