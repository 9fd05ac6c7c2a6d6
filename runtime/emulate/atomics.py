"""atom and red: read, change, write, one thread after the other in the order of their numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from weft.runtime.emulate import half
from weft.runtime.emulate.access import Site, space_of
from weft.runtime.emulate.floating import maximum, minimum
from weft.runtime.emulate.masks import Mask, active, scatter
from weft.runtime.emulate.program import Decoder, Step, Unknown, instruction, unsigned_of, view_of
from weft.runtime.emulate.ptx_ast import SIZES, Instruction, Sym, Vector

Array = Any
Change = Callable[..., Array]


def _increment(old: Array, limit: Array) -> Array:
    return np.where(old >= limit, old.dtype.type(0), old + old.dtype.type(1))


def _decrement(old: Array, limit: Array) -> Array:
    return np.where((old == 0) | (old > limit), limit, old - old.dtype.type(1))


_CHANGES: dict[str, Change] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "exch": lambda old, new: new,
    "cas": lambda old, expected, new: np.where(old == expected, new, old),
    "inc": _increment,
    "dec": _decrement,
}
# the result for one address does not depend on the order of these, and ufuncs have them as reductions
_FOLDS = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or,
          "xor": np.bitwise_xor}  # fmt: skip


def _change_of(operation: str, kind: str) -> Change:
    """The operation on arrays of unsigned bits."""
    if kind in half.KINDS:
        return _half_change(operation, kind)
    view, unsigned = view_of(kind), unsigned_of(kind)
    change = _CHANGES[operation]
    if view.kind == "f":
        change = {"min": minimum, "max": maximum}.get(operation, change)
    if view == unsigned:
        return change
    return lambda *values: change(*[v.view(view) for v in values]).view(unsigned)


def _half_change(operation: str, kind: str) -> Change:
    fn = {"add": np.add, "min": minimum, "max": maximum}[operation]
    single = kind.removesuffix("x2")

    def one(a: Array, b: Array) -> Array:
        wide = [x.view(half.KINDS[kind]).astype(np.float32) for x in (a, b)]
        return half.narrow(fn(*wide), single)

    def pair(a: Array, b: Array) -> Array:
        low = one(a.astype(np.uint16), b.astype(np.uint16))
        high = one((a >> np.uint32(16)).astype(np.uint16), (b >> np.uint32(16)).astype(np.uint16))
        return half.join(low, high)

    return pair if kind.endswith("x2") else one


class _Atomic:
    def __init__(self, d: Decoder, ins: Instruction) -> None:
        operands = list(ins.operands)
        returns = ins.base == "atom"
        first = operands.pop(0) if returns else None
        address, *sources = operands
        self.kind = ins.mods[-1] if ins.mods[-1] in SIZES else ins.mods[-2]
        self.operation = next(m for m in ins.mods if m in _CHANGES)
        size = SIZES[self.kind]
        self.count = len(sources[0].items) if isinstance(sources[0], Vector) else 1
        self.site = Site(d, ins, address, space_of(ins), size, self.count)
        self.change = _change_of(self.operation, self.kind)
        self.slots = [[d.slot(o, self.kind) for o in d.vector(s)] for s in sources]
        self.targets = [self._target(d, o) for o in d.vector(first)] if first is not None else []
        ordering = [m for m in ins.mods if m in ("release", "acq_rel", "acquire")]
        self.releases = any(m in ("release", "acq_rel") for m in ordering)

    def _target(self, d: Decoder, operand: Any) -> int | None:
        ignored = isinstance(operand, Sym) and operand.name == "_"
        return None if ignored else d.dest(operand, self.kind)

    def run(self, R: Any, m: Mask | None) -> None:
        chunk = R.chunk
        chunk.acquire(m)
        if self.releases:
            chunk.release(m)
        for space, flat, mask in self.site.parts(R, m):
            chunk.statistics.atomics += flat.size
            at = flat // self.site.size
            self.site.read(R, space, flat, mask, "atomic")
            data = space.rows(self.site.size, 1)
            for i in range(self.count):
                sources = [active(R, mask, R[s[i]]) for s in self.slots]
                old = self.apply(data, at + i, sources)
                target = self.targets[i] if self.targets else None
                if target is not None:
                    scatter(R, mask, target, old)

    def apply(self, data: Array, at: Array, sources: list[Array]) -> Array:
        """Change the elements ``at``, in order; what each found."""
        order = np.argsort(at, kind="stable")
        place = at[order]
        first = np.concatenate(([True], place[1:] != place[:-1]))
        if first.all():
            old = data[at]
            data[at] = self.change(old, *sources)
            return old
        if not self.targets and self._folds(data):
            self._fold(data, place, np.flatnonzero(first), sources[0][order])
            return data[:0]
        # rounds: the k-th access of every address at once
        group = np.cumsum(first) - 1
        turn = np.arange(at.size) - np.flatnonzero(first)[group]
        old = np.empty_like(data[at])
        for k in range(int(turn.max()) + 1):
            lanes = order[turn == k]
            found = data[at[lanes]]
            old[lanes] = found
            data[at[lanes]] = self.change(found, *[s[lanes] for s in sources])
        return old

    def _folds(self, data: Array) -> bool:
        return self.operation in _FOLDS and self.kind not in half.KINDS and view_of(self.kind).kind != "f"

    def _fold(self, data: Array, place: Array, starts: Array, values: Array) -> None:
        view = view_of(self.kind)
        fold = _FOLDS[self.operation]
        total = fold.reduceat(values.view(view), starts, dtype=view)
        where = place[starts]
        data[where] = fold(data[where].view(view), total).view(data.dtype)


@instruction("atom", "red")
def _atomic(d: Decoder, ins: Instruction) -> Step:
    if ins.base == "red" and "async" in ins.mods:
        raise Unknown("red.async")
    return _Atomic(d, ins).run
