"""The table of primitives in docs/ir.md, made from the registry.

``python -m weft.ir.catalogue docs/ir.md`` writes it between the two marks of that file.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import weft.ir.prims  # noqa: F401 - fills the registry
from weft.ir import types as T
from weft.ir.prims.base import PRIMITIVES, Kind, Primitive
from weft.ir.text import print_attr

__all__ = ["table", "update"]

BEGIN, END = "<!-- primitives: begin -->", "<!-- primitives: end -->"
_DOMAINS: dict[str, Sequence[T.DType]] = {
    "all": T.DTYPES,
    "numeric": T.NUMERIC,
    "real": T.REALS,
    "real, bool": (*T.REALS, T.bool_),
    "float": T.FLOATS,
    "float, complex": (*T.FLOATS, *T.COMPLEXES),
    "int": T.INTS,
    "int, bool": T.BITS,
    "all but bool": T.DTYPES[1:],
    "signed": (*T.SIGNED_INTS, *T.FLOATS, *T.COMPLEXES),
    "complex": T.COMPLEXES,
}


def table() -> str:
    """One Markdown table of every registered primitive, by kind and then in the order of definition.

    >>> table().splitlines()[0]
    '| primitive | kind | operands | attributes | dtypes | gradient |'
    """
    lines = ["| primitive | kind | operands | attributes | dtypes | gradient |", "|---|---|---|---|---|---|"]
    own = [p for p in PRIMITIVES.values() if p.infer.__module__.startswith("weft.")]
    for kind in Kind:
        lines += [_row(p) for p in own if p.kind is kind]
    return "\n".join(lines)


def _row(p: Primitive) -> str:
    cells = (f"`{p.name}`", p.kind.value, _operands(p), _attrs(p), _domain(p.dtypes), _gradient(p))
    return f"| {' | '.join(cells)} |"


def _parameters(p: Primitive) -> list[inspect.Parameter]:
    return list(inspect.signature(p.infer).parameters.values())


def _operands(p: Primitive) -> str:
    if "arity" in p.tags:
        return ", ".join("xyz"[: p.tags["arity"]])
    names = []
    for q in _parameters(p):
        if q.kind is q.VAR_POSITIONAL:
            names.append(f"{q.name}…")
        elif q.kind is not q.KEYWORD_ONLY and q.kind is not q.VAR_KEYWORD:
            names.append(q.name)
    return ", ".join(names)


def _attrs(p: Primitive) -> str:
    out = []
    for q in _parameters(p):
        if q.kind is q.VAR_KEYWORD:
            out.append("…")
        elif q.kind is q.KEYWORD_ONLY and q.name != "regions":
            out.append(f"`{q.name}{_default(p, q.name)}`")
    return ", ".join(out)


def _default(p: Primitive, name: str) -> str:
    return f"={print_attr(p.defaults[name])}" if name in p.defaults else ""


def _domain(dtypes: Sequence[T.DType]) -> str:
    for name, members in _DOMAINS.items():
        if set(dtypes) == set(members):
            return name
    return ", ".join(d.name for d in dtypes)


def _gradient(p: Primitive) -> str:
    return "none" if p.nondifferentiable else f"reads {_needs(p.needs)}"


def _needs(spec: str) -> str:
    if spec == "*":
        return "all"
    parts = [f"operand {c}" for c in spec if c.isdigit()] + ["results"] * ("o" in spec)
    return ", ".join(parts) or "types only"


def update(path: str | Path) -> bool:
    """Put the table between the marks of the file; True if that changed it. ValueError without the marks."""
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{path} lacks the marks {BEGIN} and {END}")
    head, rest = text.split(BEGIN, 1)
    tail = rest.split(END, 1)[1]
    new = f"{head}{BEGIN}\n{table()}\n{END}{tail}"
    path.write_text(new, encoding="utf-8")
    return new != text


def main(argv: Sequence[Any]) -> int:
    for path in argv:
        print(f"{path}: {'updated' if update(path) else 'unchanged'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
