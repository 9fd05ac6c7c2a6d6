"""The index rules of movement and indexed reads: each rewrites the index and asks for the operand."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from weft.codegen.kernel import Unsupported
from weft.codegen.lower import RULES, ZERO, IndexTuple, Lowering, strides_of
from weft.ir import types as T
from weft.ir.graph import Op
from weft.ir.loops import Check, Index


def _broadcast(low: Lowering, op: Op, index: IndexTuple, guard: str | None) -> str:
    return low.value(op.operands[0], tuple(index[a] for a in op.attrs["axes"]), guard)


def _permute(low: Lowering, op: Op, index: IndexTuple, guard: str | None) -> str:
    out = [ZERO] * len(index)
    for i, p in enumerate(op.attrs["perm"]):
        out[p] = index[i]
    return low.value(op.operands[0], tuple(out), guard)


def _slice(low: Lowering, op: Op, index: IndexTuple, guard: str | None) -> str:
    start, step = op.attrs["start"], op.attrs["step"]
    return low.value(
        op.operands[0], tuple(i * s + b for i, b, s in zip(index, start, step, strict=True)), guard
    )


def _flip(low: Lowering, op: Op, index: IndexTuple, guard: str | None) -> str:
    shape, axes = op.result.type.shape, op.attrs["axes"]
    return low.value(
        op.operands[0],
        tuple(Index.of(shape[d] - 1) - i if d in axes else i for d, i in enumerate(index)),
        guard,
    )


def _copy(low: Lowering, op: Op, index: IndexTuple, guard: str | None) -> str:
    return low.value(op.operands[0], index, guard)


def within(low: Lowering, index: Index, lo: int | None, hi: int | None) -> str | None:
    """The condition lo <= index < hi (None: no bound) as a bool value, or None where there is none."""
    parts = []
    if lo is not None:
        parts.append(low.compute("ge", (low.affine(index), low.number(lo, T.i64)), T.bool_))
    if hi is not None:
        parts.append(low.compute("lt", (low.affine(index), low.number(hi, T.i64)), T.bool_))
    return both(low, parts)


def both(low: Lowering, conditions: Sequence[str | None]) -> str | None:
    """The conjunction of conditions."""
    out = None
    for c in conditions:
        if c is not None and c != out:
            out = c if out is None else low.compute("bit_and", (out, c), T.bool_)
    return out


def _pad(low: Lowering, op: Op, index: IndexTuple, guard: str | None) -> str:
    x, fill = op.operands
    lo, hi, interior = op.attrs["lo"], op.attrs["hi"], op.attrs["interior"]
    conditions: list[str | None] = []
    inner = []
    for i, a, b, gap, n in zip(index, lo, hi, interior, x.type.shape, strict=True):
        at = i - a
        extent = n + gap * max(n - 1, 0)
        conditions.append(within(low, at, 0 if a > 0 else None, extent if b > 0 else None))
        if gap and n > 1:
            at, rest = low_divmod(low, at, gap + 1)
            conditions.append(low.compute("eq", (low.affine(rest), low.number(0, T.i64)), T.bool_))
        inner.append(at)
    inside = both(low, conditions)
    if inside is None:
        return low.value(x, tuple(inner), guard)
    taken = low.value(x, tuple(inner), both(low, [guard, inside]))
    other = low.value(fill, (), guard)
    return low.compute("where", (inside, taken, other), x.type.dtype)


def _concatenate(low: Lowering, op: Op, index: IndexTuple, guard: str | None) -> str:
    axis = op.attrs["axis"]
    ends, total = [], 0
    for x in op.operands:
        total += x.type.shape[axis]
        ends.append(total)
    out: str | None = None
    starts = [0, *ends]
    for x, begin, end in reversed(list(zip(op.operands, starts, ends, strict=False))):
        if begin == end:
            continue
        inside = within(low, index[axis], begin or None, end if end < total else None)
        at = tuple(i - begin if d == axis else i for d, i in enumerate(index))
        here = low.value(x, at, both(low, [guard, inside]))
        first = within(low, index[axis], None, end if end < total else None)
        both_sides = out is not None and first is not None
        out = low.compute("where", (first, here, out), x.type.dtype) if both_sides else here  # type: ignore
    if out is None:
        raise Unsupported("an empty concatenation")
    return out


def _update_slice(low: Lowering, op: Op, index: IndexTuple, guard: str | None) -> str:
    x, new = op.operands
    conditions: list[str | None] = []
    inner = []
    steps = zip(index, op.attrs["start"], op.attrs["step"], new.type.shape, x.type.shape, strict=True)
    for i, begin, step, n, size in steps:
        at = i - begin
        last = begin + (n - 1) * step
        conditions.append(within(low, i, begin or None, last + 1 if last + 1 < size else None))
        if step > 1 and n > 1:
            at, rest = low_divmod(low, at, step)
            conditions.append(low.compute("eq", (low.affine(rest), low.number(0, T.i64)), T.bool_))
        inner.append(at)
    inside = both(low, conditions)
    if new.type.size == 0:
        return low.value(x, index, guard)
    if inside is None:
        return low.value(new, tuple(inner), guard)
    taken = low.value(new, tuple(inner), both(low, [guard, inside]))
    return low.compute("where", (inside, taken, low.value(x, index, guard)), x.type.dtype)


def low_divmod(low: Lowering, index: Index, k: int) -> tuple[Index, Index]:
    """Quotient and remainder of an index by a positive constant; exact for non-negative indices.

    A sum of multiples of k and a rest known to lie in 0..k-1 splits without code.
    """
    high = Index(tuple((n, c // k) for n, c in index.terms if c % k == 0), index.const // k)
    rest = Index(tuple((n, c) for n, c in index.terms if c % k), index.const % k)
    known = all(n in low.ranges and c > 0 for n, c in rest.terms)
    if known and rest.const + sum(c * (low.ranges[n] - 1) for n, c in rest.terms) < k:
        return high, rest
    if len(rest.terms) == 1 and not rest.const and abs(rest.terms[0][1]) == 1:
        low.divided.setdefault(rest.terms[0][0], set()).add(k)
    i, by = low.affine(index), low.number(k, T.i64)
    args = tuple(low.convert(a, T.u32) for a in (i, by)) if _small(low, index) else (i, by)
    dtype = T.u32 if _small(low, index) else T.i64
    q, r = (low.convert(low.compute(p, args, dtype), T.i64) for p in ("div", "rem"))
    return Index.var(q), Index.var(r)


def _small(low: Lowering, index: Index) -> bool:
    """True where the index surely fits 31 bits and is not negative."""
    if index.const < 0 or any(n not in low.ranges or c < 0 for n, c in index.terms):
        return False
    return index.const + sum(c * (low.ranges[n] - 1) for n, c in index.terms) < 1 << 31


def _reshape(low: Lowering, op: Op, index: IndexTuple, guard: str | None) -> str:
    (x,) = op.operands
    return low.value(x, reshape_index(low, index, op.result.type.shape, x.type.shape), guard)


def reshape_index(
    low: Lowering, index: IndexTuple, shape: Sequence[int], target: Sequence[int]
) -> IndexTuple:
    """The index into ``target`` of the element that has ``index`` in ``shape`` (same number of elements)."""
    out: list[Index] = []
    for dims, targets in reshape_groups(shape, target):
        flat = ZERO
        for i, s in zip((index[d] for d in dims), strides_of([shape[d] for d in dims]), strict=True):
            flat = flat + i * s
        parts = []
        inner = [target[t] for t in targets]
        for size, _ in pairwise(reversed([1, *inner])):
            if size == 1:
                parts.append(ZERO)
                continue
            flat, rest = low_divmod(low, flat, size)
            parts.append(rest)
        if parts:
            # the outermost part needs no remainder: what is left of the quotient is in range
            outer = next((k for k in range(len(parts) - 1, -1, -1) if inner[len(parts) - 1 - k] != 1), None)
            if outer is not None:
                parts[outer] = _outermost(low, index, shape, dims, inner, len(inner) - 1 - outer)
        out.extend(reversed(parts))
    return tuple(out)


def _outermost(
    low: Lowering, index: IndexTuple, shape: Sequence[int], dims: Sequence[int], inner: list[int], k: int
) -> Index:
    flat = ZERO
    for i, s in zip((index[d] for d in dims), strides_of([shape[d] for d in dims]), strict=True):
        flat = flat + i * s
    below = prod(inner[k + 1 :])
    return low_divmod(low, flat, below)[0] if below > 1 else flat


def reshape_groups(shape: Sequence[int], target: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Runs of dims of both shapes with equal products, as short as possible (no extents of 0)."""
    groups, i, j = [], 0, 0
    while i < len(shape) or j < len(target):
        a, b = [i] if i < len(shape) else [], [j] if j < len(target) else []
        n, m = (shape[i] if a else 1), (target[j] if b else 1)
        i, j = i + len(a), j + len(b)
        while n != m:
            if n < m:
                a.append(i)
                n, i = n * shape[i], i + 1
            else:
                b.append(j)
                m, j = m * target[j], j + 1
        groups.append((a, b))
    return groups


# indexed reads --------------------------------------------------------------------------------------------


def _checked(low: Lowering, name: str, size: int, guard: str | None) -> Index:
    name = low.convert(name, T.i64)
    key = ("check", name, size, guard)
    found = low.find(key)
    if found is None:
        depth = low.depth_of([name, guard] if guard else [name])
        found = low.put(key, Check(low.fresh("g"), name, size, guard), depth, T.i64)
    return Index.var(found)


def _gather(low: Lowering, op: Op, index: IndexTuple, guard: str | None) -> str:
    x, where = op.operands
    axes = op.attrs["axes"]
    lead = where.type.ndim - 1
    point = {
        a: _checked(low, low.value(where, (*index[:lead], Index.of(j)), guard), x.type.shape[a], guard)
        for j, a in enumerate(axes)
    }
    rest = iter(index[lead:])
    return low.value(x, tuple(point[d] if d in point else next(rest) for d in range(x.type.ndim)), guard)


def _take_along(low: Lowering, op: Op, index: IndexTuple, guard: str | None) -> str:
    x, where = op.operands
    axis = op.attrs["axis"]
    at = _checked(low, low.value(where, index, guard), x.type.shape[axis], guard)
    return low.value(x, tuple(at if d == axis else i for d, i in enumerate(index)), guard)


RULES.update({
    "broadcast": _broadcast, "permute": _permute, "slice": _slice, "flip": _flip, "copy": _copy, "pad": _pad,
    "concatenate": _concatenate, "update_slice": _update_slice, "reshape": _reshape,
    "gather": _gather, "take_along": _take_along,
})  # fmt: skip
