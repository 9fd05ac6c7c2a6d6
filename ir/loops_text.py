"""The text form of kernel IR: prints and parses, and the round trip is the identity.

One statement a line; two spaces of indentation for each level. Attribute values are those of the graph's
text form.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from weft.ir.loops import (
    Accumulate,
    Affine,
    Buffer,
    Check,
    Compute,
    Fold,
    Index,
    Kernel,
    Load,
    Loop,
    Nest,
    Number,
    Partial,
    Store,
    Tile,
)
from weft.ir.types import DType, dtype_named


def print_kernel(kernel: Kernel) -> str:
    """The kernel as text."""
    lines = [f"kernel {kernel.name} {{"]
    lines += [f"  {b.role} {b.name}: {b.dtype.name}[{b.size}]" for b in kernel.buffers]
    for phase in kernel.phases:
        lines.append("  phase {")
        for nest in phase:
            lines += _print_nest(nest, "    ")
        lines.append("  }")
    return "\n".join([*lines, "}"]) + "\n"


def _axes(axes: list[tuple[str, int]]) -> str:
    return ", ".join(f"{v} < {e}" for v, e in axes)


def _print_nest(nest: Nest, pad: str) -> list[str]:
    lines = [f"{pad}{nest.kind} [{_axes(nest.axes)}] chunk {nest.chunk} {{"]
    lines += [f"{pad}  partial {p.buffer} {p.op} {p.dtype.name}[{p.size}]" for p in nest.partials]
    lines += _print_body(nest.body, pad + "  ")
    return [*lines, pad + "}"]


def _print_body(body: list[Any], pad: str) -> list[str]:
    lines: list[str] = []
    for s in body:
        if isinstance(s, Loop):
            lines += _print_loop(s, pad)
        else:
            lines.append(pad + _print_statement(s))
    return lines


def _print_loop(loop: Loop, pad: str) -> list[str]:
    limit = f" limit {loop.limit[0]} < {loop.limit[1]}" if loop.limit else ""
    lines = [f"{pad}{loop.kind} [{_axes(loop.axes)}]{limit} {{", *_print_body(loop.body, pad + "  ")]
    for f in loop.folds:
        at = f" at {f.index}" if f.index else ""
        lines.append(f"{pad}  {f.name} = fold {f.op} {f.source}: {f.dtype.name}{at}")
    return [*lines, pad + "}"]


def _print_statement(s: Any) -> str:
    mask = f" if {s.mask}" if getattr(s, "mask", None) else ""
    if isinstance(s, Number):
        return f"{s.name} = number {_print_value(s.value)}: {s.dtype.name}"
    if isinstance(s, Affine):
        return f"{s.name} = index {s.index}"
    if isinstance(s, Load):
        return f"{s.name} = load {s.buffer}[{s.index}]{mask}"
    if isinstance(s, Compute):
        attrs = "".join(f" {k}={_print_value(v)}" for k, v in s.attrs.items())
        return f"{s.name} = {s.prim}({', '.join(s.args)}){attrs}: {s.dtype.name}"
    if isinstance(s, Check):
        bound = "!= 0" if s.size is None else f"< {s.size}"
        return f"{s.name} = check {s.source} {bound}{mask}"
    if isinstance(s, Store):
        return f"store {s.buffer}[{s.index}] = {s.source}{mask}"
    if isinstance(s, Accumulate):
        return f"accumulate {s.op} {s.buffer}[{s.index}] = {s.source}"
    return f"tile {s.name}: {s.dtype.name}[{s.size}]"


def _print_value(v: Any) -> str:
    if isinstance(v, DType):
        return f"dtype:{v.name}"
    if isinstance(v, bool) or v is None:
        return str(v)
    if isinstance(v, float):
        return v.hex() if math.isfinite(v) else f"float:{v}"
    return repr(v) if not isinstance(v, complex) else f"complex:{v.real!r},{v.imag!r}"


def _parse_value(text: str) -> Any:
    head, _, rest = text.partition(":")
    if head == "dtype":
        return dtype_named(rest)
    if head == "float":
        return float(rest)
    if head == "complex":
        return complex(*map(float, rest.split(",")))
    if text in ("True", "False", "None"):
        return {"True": True, "False": False, "None": None}[text]
    if "0x" in text:
        return float.fromhex(text)
    return text[1:-1] if text[:1] == "'" else int(text)


# parsing ---------------------------------------------------------------------------------------------


class _Lines:
    """Lines of the text, one ahead."""

    def __init__(self, text: str) -> None:
        self._it: Iterator[str] = iter([line.strip() for line in text.splitlines() if line.strip()])
        self.line = next(self._it)

    def take(self) -> str:
        line = self.line
        self.line = next(self._it, "")
        return line


def parse_kernel(text: str) -> Kernel:
    """The kernel that :func:`print_kernel` printed. ValueError for other text."""
    lines = _Lines(text)
    word, name, _ = lines.take().split(" ")
    if word != "kernel":
        raise ValueError("kernel IR starts with 'kernel NAME {'")
    buffers = []
    while lines.line.partition(" ")[0] in ("in", "out", "scratch"):
        role, _, rest = lines.take().partition(" ")
        bname, _, t = rest.partition(": ")
        buffers.append(Buffer(bname, *_sized(t), role))
    phases = []
    while lines.line == "phase {":
        lines.take()
        nests = []
        while lines.line != "}":
            nests.append(_parse_nest(lines))
        lines.take()
        phases.append(nests)
    return Kernel(name, buffers, phases)


def _sized(text: str) -> tuple[DType, int]:
    dtype, _, size = text.rstrip("]").partition("[")
    return dtype_named(dtype), int(size)


def _parse_axes(text: str) -> list[tuple[str, int]]:
    out = []
    for part in filter(None, text.split(", ")):
        var, _, extent = part.partition(" < ")
        out.append((var, int(extent)))
    return out


def _head(line: str) -> tuple[str, list[tuple[str, int]], str]:
    """``kind [axes] rest {``"""
    kind, _, rest = line.partition(" [")
    axes, _, tail = rest.partition("]")
    return kind, _parse_axes(axes), tail.removesuffix("{").strip()


def _parse_nest(lines: _Lines) -> Nest:
    kind, axes, tail = _head(lines.take())
    nest = Nest(axes, kind, int(tail.removeprefix("chunk ")))
    while lines.line.startswith("partial "):
        _, buffer, op, t = lines.take().split(" ")
        dtype, size = _sized(t)
        nest.partials.append(Partial(buffer, size, op, dtype))
    nest.body, _ = _parse_body(lines)
    return nest


def _parse_body(lines: _Lines) -> tuple[list[Any], list[Fold]]:
    body: list[Any] = []
    folds: list[Fold] = []
    while lines.line != "}":
        if lines.line.endswith("{"):
            body.append(_parse_loop(lines))
            continue
        s = _parse_statement(lines.take())
        (folds if isinstance(s, Fold) else body).append(s)
    lines.take()
    return body, folds


def _parse_loop(lines: _Lines) -> Loop:
    kind, axes, tail = _head(lines.take())
    loop = Loop(axes, kind)
    if tail:
        base, _, bound = tail.removeprefix("limit ").partition(" < ")
        loop.limit = (parse_index(base), int(bound))
    loop.body, loop.folds = _parse_body(lines)
    return loop


def parse_index(text: str) -> Index:
    """An index as printed, e.g. ``c + 8*r + 3``."""
    out = Index()
    for part in text.split(" + "):
        c, star, name = part.rpartition("*")
        if star:
            out = out + Index.var(name) * int(c)
        elif part.lstrip("-").isdigit():
            out = out + int(part)
        else:
            out = out + Index.var(part)
    return out


def _parse_statement(line: str) -> Any:
    word = line.partition(" ")[0]
    if word == "store":
        target, _, rest = line.removeprefix("store ").partition(" = ")
        source, _, mask = rest.partition(" if ")
        return Store(*_place(target), source, mask or None)
    if word == "accumulate":
        op, _, rest = line.removeprefix("accumulate ").partition(" ")
        target, _, source = rest.partition(" = ")
        buffer, index = _place(target)
        return Accumulate(buffer, index, op, source)
    if word == "tile":
        name, _, t = line.removeprefix("tile ").partition(": ")
        return Tile(name, *_sized(t))
    name, _, rest = line.partition(" = ")
    return _parse_definition(name, rest)


def _place(text: str) -> tuple[str, Index]:
    buffer, _, index = text.removesuffix("]").partition("[")
    return buffer, parse_index(index)


def _parse_definition(name: str, text: str) -> Any:
    word, _, rest = text.partition(" ")
    if word == "number":
        value, _, dtype = rest.rpartition(": ")
        return Number(name, dtype_named(dtype), _parse_value(value))
    if word == "index":
        return Affine(name, parse_index(rest))
    if word == "load":
        place, _, mask = rest.partition(" if ")
        return Load(name, *_place(place), mask or None)
    if word == "check":
        bound, _, mask = rest.partition(" if ")
        source, relation, size = bound.split(" ")
        return Check(name, source, int(size) if relation == "<" else None, mask or None)
    if word == "fold":
        head, _, at = rest.partition(" at ")
        op, _, typed = head.partition(" ")
        source, _, dtype = typed.partition(": ")
        return Fold(name, op, source, dtype_named(dtype), at or None)
    return _parse_compute(name, text)


def _parse_compute(name: str, text: str) -> Compute:
    prim, _, rest = text.partition("(")
    args, _, tail = rest.partition(")")
    attrs_text, _, dtype = tail.rpartition(": ")
    attrs = {}
    for part in attrs_text.split():
        k, _, v = part.partition("=")
        attrs[k] = _parse_value(v)
    return Compute(name, prim, tuple(filter(None, args.split(", "))), attrs, dtype_named(dtype))
