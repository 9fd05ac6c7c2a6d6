"""The meaning of kernel IR, in numpy: every statement runs at once for all points of the loops around it.

A value is an array with one dimension per open loop variable, outermost first (1 where it does not depend on
it).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from weft.ir.loops import (
    IDENTITIES,
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
    Store,
    Tile,
)
from weft.ir.prims.base import PRIMITIVES, Kind
from weft.ir.types import DType, bf16, f16

_UFUNCS = {
    "sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum,
    "any": np.logical_or, "all": np.logical_and,
}  # fmt: skip


def run_kernel(kernel: Kernel, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Run a kernel on its operands; returns flat results. Raises IndexError for an index out of range, and
    RuntimeError for an integer division by zero.
    """
    memory: dict[str, np.ndarray] = {}
    operands = iter(arrays)
    for b in kernel.buffers:
        memory[b.name] = np.ravel(next(operands)) if b.role == "in" else _fresh(b)
    with np.errstate(all="ignore"):
        for phase in kernel.phases:
            for nest in phase:
                _Run(memory).nest(nest)
    return [memory[b.name] for b in kernel.buffers if b.role == "out"]


def _fresh(b: Buffer) -> np.ndarray:
    return np.zeros(b.size, b.dtype.np)


class _Run:
    """State while one nest runs: open axes, values, tiles, and where iterations exist at all."""

    def __init__(self, memory: dict[str, np.ndarray]) -> None:
        self.memory = dict(memory)
        self.env: dict[str, np.ndarray] = {}
        self.extents: list[int] = []
        self.rows: dict[str, np.ndarray] = {}  # tile -> number of the row of each point
        self.valid: np.ndarray = np.array(True)

    # -- axes

    def open(self, axes: list[tuple[str, int]]) -> None:
        for name, extent in axes:
            self.extents.append(extent)
            shape = [1] * (len(self.extents) - 1) + [extent]
            self.env[name] = np.arange(extent).reshape(shape)

    def fit(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(x.shape + (1,) * (len(self.extents) - x.ndim))

    def get(self, name: str) -> np.ndarray:
        return self.fit(self.env[name])

    def full(self, x: np.ndarray) -> np.ndarray:
        return np.broadcast_to(self.fit(x), self.extents)

    def index(self, index: Index) -> np.ndarray:
        out = np.array(index.const, np.int64)
        for name, c in index.terms:
            out = self.fit(out) + self.get(name).astype(np.int64) * c
        return self.fit(out)

    def where(self, mask: str | None) -> np.ndarray:
        """Where a statement with this mask takes effect."""
        valid = self.fit(self.valid)
        return valid if mask is None else valid & self.get(mask)

    # -- statements

    def nest(self, nest: Nest) -> None:
        self.open(nest.axes)
        point = np.arange(nest.points).reshape(self.extents)
        self.env["u"] = point // nest.chunk
        for p in nest.partials:
            self.memory[p.buffer][:] = IDENTITIES[p.op](p.dtype)
        self.body(nest.body)

    def body(self, body: list[Any]) -> None:
        for s in body:
            RUN[type(s)](self, s)

    def number(self, s: Number) -> None:
        self.env[s.name] = np.asarray(s.value).astype(s.dtype.np)

    def affine(self, s: Affine) -> None:
        self.env[s.name] = self.index(s.index)

    def load(self, s: Load) -> None:
        buffer, at = self.memory[s.buffer], self.index(s.index)
        ok = self.where(s.mask)
        at, ok = np.broadcast_arrays(at, ok)
        at = np.where(ok, at, 0)
        got = buffer[self.fit(self.rows[s.buffer]), at] if s.buffer in self.rows else buffer[at]
        self.env[s.name] = np.where(ok, got, np.zeros((), got.dtype))

    def compute(self, s: Compute) -> None:
        prim = PRIMITIVES[s.prim]
        args = np.broadcast_arrays(*(self.get(a) for a in s.args))
        if prim.kind is Kind.RANDOM:
            from weft.ir.scalarnumpy import NumpyBuilder

            out = prim.scalar(NumpyBuilder(), *args) if prim.scalar else None
        else:
            (out,) = prim.evaluate(args, s.attrs)
        self.env[s.name] = np.asarray(out)

    def check(self, s: Check) -> None:
        at = self.get(s.source)
        if s.size is None:
            if ((at == 0) & self.where(s.mask)).any():
                raise RuntimeError("ZeroDivisionError")
            self.env[s.name] = np.where(at == 0, np.ones_like(at), at)
            return
        bad = ((at < 0) | (at >= s.size)) & self.where(s.mask)
        if bad.any():
            raise IndexError(f"an index is out of range for {s.size} elements")
        self.env[s.name] = np.clip(at, 0, s.size - 1)

    def store(self, s: Store) -> None:
        ok = self.full(self.where(s.mask))
        at, x = self.full(self.index(s.index))[ok], self.full(self.get(s.source))[ok]
        if s.buffer in self.rows:
            self.memory[s.buffer][self.full(self.rows[s.buffer])[ok], at] = x
        else:
            self.memory[s.buffer][at] = x

    def accumulate(self, s: Accumulate) -> None:
        ok = self.full(self.where(None))
        at, x = self.full(self.index(s.index))[ok], self.full(self.get(s.source))[ok]
        _UFUNCS[s.op].at(self.memory[s.buffer], at, x)

    def tile(self, s: Tile) -> None:
        n = prod(self.extents)
        self.rows[s.name] = np.arange(n).reshape(self.extents)
        self.memory[s.name] = np.zeros((n, s.size), s.dtype.np)

    def loop(self, s: Loop) -> None:
        depth, valid = len(self.extents), self.valid
        self.open(s.axes)
        if s.limit is not None:
            base, bound = s.limit
            self.valid = self.fit(valid) & (self.index(base) + self.get(s.axes[-1][0]) < bound)
        self.body(s.body)
        results = {f.name: self.fold(f, depth) for f in s.folds}
        del self.extents[depth:]
        self.valid = valid
        self.env.update(results)

    def fold(self, f: Fold, depth: int) -> np.ndarray:
        """The fold of a value over the axes from ``depth`` on."""
        x = np.where(self.fit(self.valid), self.get(f.source), _identity(f.op, f.dtype))
        x = self.full(x.astype(f.dtype.np)).reshape(*self.extents[:depth], -1)
        if f.index is None:
            return _UFUNCS[f.op].reduce(x, axis=-1)
        wide = x.astype(np.float32) if f.dtype in (f16, bf16) else x
        best = (np.argmax if f.op == "argmax" else np.argmin)(wide, axis=-1)
        at = self.full(self.get(f.index)).reshape(x.shape)
        return np.take_along_axis(at, best[..., None], axis=-1)[..., 0]


def _identity(op: str, dtype: DType) -> np.ndarray:
    return np.asarray(IDENTITIES[op](dtype)).astype(dtype.np)


RUN: dict[type, Any] = {
    Number: _Run.number, Affine: _Run.affine, Load: _Run.load, Compute: _Run.compute, Check: _Run.check,
    Store: _Run.store, Accumulate: _Run.accumulate, Tile: _Run.tile, Loop: _Run.loop,
}  # fmt: skip
