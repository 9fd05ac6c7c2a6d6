"""Who may import whom: every import of every module, function-local ones too, against the allowed arrows."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STDLIB = set(sys.stdlib_module_names)

# folder -> (third-party packages, other folders it may import from)
ALLOWED: dict[str, tuple[set[str], set[str]]] = {
    "ir": ({"numpy", "ml_dtypes"}, {"ir"}),
    "passes": ({"numpy", "ml_dtypes"}, {"ir", "passes"}),
    "codegen": ({"numpy", "ml_dtypes", "llvmlite"}, {"ir", "codegen"}),
    "runtime": ({"numpy", "ml_dtypes", "llvmlite", "pycuda"}, {"ir", "passes", "codegen", "runtime"}),
    "frontend": ({"numpy", "ml_dtypes"}, {"ir", "passes.autodiff", "runtime", "frontend"}),
}
# optional packages that one folder of the frontend may reach for, on use
OPTIONAL = {"frontend/testing": {"pytest"}}
FOLDERS = ("ir", "passes", "codegen", "runtime")


def imported_modules(tree: ast.AST) -> list[tuple[int, str]]:
    """Every module a file imports as (line, dotted name); ``from a import b`` counts as both ``a.b``."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def violation(folder: str, where: str, module: str) -> bool:
    packages, arrows = ALLOWED[folder]
    top, *rest = module.split(".")
    if top != "weft":
        extra = next((p for prefix, p in OPTIONAL.items() if where.startswith(prefix)), set())
        return top not in STDLIB and top not in packages | extra
    target = rest[0] if rest and rest[0] in FOLDERS else "frontend"
    if target in arrows:
        return False
    inside = ".".join(rest)
    return not any(inside == a or inside.startswith(a + ".") for a in arrows)


@pytest.mark.parametrize("folder", list(ALLOWED))
def test_imports_follow_the_arrows(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    bad = []
    for path in files:
        where = path.relative_to(ROOT).as_posix()
        for line, module in imported_modules(ast.parse(path.read_text())):
            if violation(folder, where, module):
                bad.append(f"{where}:{line} imports {module}")
    assert not bad, "\n".join(bad)


def test_every_package_is_shipped() -> None:
    import tomllib

    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = set(config["tool"]["setuptools"]["packages"])
    present = set()
    for folder in ALLOWED:
        for init in (ROOT / folder).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT).parts
            present.add(".".join(("weft", *(parts if folder != "frontend" else parts[1:]))))
    assert present == listed


def test_a_planted_arrow_is_found() -> None:
    tree = ast.parse("def f():\n    from weft.codegen import emit\n    import torch\n")
    assert [violation("passes", "passes/x.py", m) for _, m in imported_modules(tree)] == [True, True]
    assert not violation("frontend", "frontend/x.py", "weft.passes.autodiff.backprop")
    assert violation("frontend", "frontend/x.py", "weft.passes.fuse.fuse")
