"""When two nests are the same code on different buffers: a key that forgets names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weft.ir.loops import (
    Accumulate,
    Affine,
    Buffer,
    Check,
    Compute,
    Index,
    Load,
    Loop,
    Nest,
    Number,
    Store,
    Tile,
)


class _Names:
    """Numbers names in order of appearance; buffers are told by their types."""

    def __init__(self, buffers: dict[str, Buffer]) -> None:
        self.buffers = buffers
        self.numbers: dict[str, int] = {}

    def __call__(self, name: str | None) -> Any:
        if name is None:
            return None
        return self.numbers.setdefault(name, len(self.numbers))

    def buffer(self, name: str) -> Any:
        b = self.buffers.get(name)
        return self(name), (b.dtype.name, b.role, b.size) if b is not None else None

    def index(self, i: Index) -> Any:
        return tuple(sorted((self(n), c) for n, c in i.terms)), i.const

    def axes(self, axes: Sequence[tuple[str, int]]) -> Any:
        return tuple((self(v), e) for v, e in axes)

    def body(self, body: Sequence[Any]) -> Any:
        return tuple(self.statement(s) for s in body)

    def statement(self, s: Any) -> Any:
        if isinstance(s, Number):
            return "number", self(s.name), s.dtype.name, type(s.value).__name__, repr(s.value)
        if isinstance(s, Affine):
            return "index", self(s.name), self.index(s.index)
        if isinstance(s, Load):
            return "load", self(s.name), self.buffer(s.buffer), self.index(s.index), self(s.mask)
        if isinstance(s, Compute):
            attrs = tuple(sorted((k, repr(v)) for k, v in s.attrs.items()))
            return "compute", self(s.name), s.prim, tuple(map(self, s.args)), attrs, s.dtype.name
        if isinstance(s, Check):
            return "check", self(s.name), self(s.source), s.size, self(s.mask)
        if isinstance(s, Store):
            return "store", self.buffer(s.buffer), self.index(s.index), self(s.source), self(s.mask)
        if isinstance(s, Accumulate):
            return "accumulate", self.buffer(s.buffer), self.index(s.index), s.op, self(s.source)
        if isinstance(s, Tile):
            return "tile", self(s.name), s.dtype.name, s.size
        return self.loop(s)

    def loop(self, s: Loop) -> Any:
        limit = (self.index(s.limit[0]), s.limit[1]) if s.limit else None
        axes, body = self.axes(s.axes), self.body(s.body)
        folds = tuple((self(f.name), f.op, self(f.source), f.dtype.name, self(f.index)) for f in s.folds)
        return "loop", axes, s.kind, limit, body, folds


def nest_key(nest: Nest, buffers: dict[str, Buffer]) -> tuple[Any, list[str]]:
    """The key of a nest, and its buffers in order of appearance: equal keys mean equal code."""
    names = _Names(buffers)
    axes = names.axes(nest.axes)
    partials = tuple((names.buffer(p.buffer), p.size, p.op, p.dtype.name) for p in nest.partials)
    key = axes, nest.kind, nest.chunk, partials, names.body(nest.body)
    return key, [n for n in names.numbers if n in buffers]
