"""From values of a fused graph to statements of the kernel IR, on demand.

``Lowering.value(v, index)`` gives the name that holds ``v`` at an index tuple. Movement operations only change the index;
maps become statements; a reduction becomes a loop. Each statement is put into the outermost open scope in which its
operands are known, and remembered there, so that work is hoisted and shared without a further pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from typing import Any

from weft.codegen.kernel import Unsupported
from weft.ir import types as T
from weft.ir.graph import Op, Value
from weft.ir.loops import FOLD_OF, Affine, Check, Compute, Fold, Index, Load, Loop, Number, Tile
from weft.ir.prims.base import Kind
from weft.ir.types import DType

ZERO = Index.of(0)
IndexTuple = tuple[Index, ...]
UNROLLED = 8  # a small reduction up to this extent is written out


@dataclass(slots=True)
class Scope:
    """An open loop body: its statements and what is known in it."""

    body: list[Any]
    memo: dict[Any, str] = field(default_factory=dict)


def strides_of(shape: Sequence[int]) -> tuple[int, ...]:
    """Row-major strides, in elements."""
    out = [1] * len(shape)
    for i in range(len(shape) - 2, -1, -1):
        out[i] = out[i + 1] * shape[i + 1]
    return tuple(out)


def linear(index: IndexTuple, shape: Sequence[int]) -> Index:
    """The flat index of an index tuple."""
    out = ZERO
    for i, s in zip(index, strides_of(shape), strict=True):
        out = out + i * s
    return out


class Lowering:
    """State of the lowering of one nest. ``buffers`` names the memory of the values that come from outside."""

    def __init__(self, producers: dict[Value, Op], buffers: dict[Value, str], counter: list[int]) -> None:
        self.producers, self.buffers, self._counter = producers, buffers, counter
        self.scopes: list[Scope] = []
        self.level: dict[str, int] = {}  # name -> number of the scope that defines it
        self.dtypes: dict[str, DType] = {}
        self.ranges: dict[str, int] = {}  # loop variable -> extent
        self.divided: dict[str, set[int]] = {}  # loop variable -> constants by which it was divided
        self.tiles: dict[Value, tuple[str, IndexTuple]] = {}
        self.replaced: dict[Value, Any] = {}  # value -> callable(index tuple) -> name

    # -- names and scopes

    def fresh(self, stem: str = "v") -> str:
        self._counter[0] += 1
        return f"{stem}{self._counter[0]}"

    def open(self, axes: Sequence[tuple[str, int]]) -> Scope:
        """Enter the body of a loop over these variables."""
        scope = Scope([])
        for name, extent in axes:
            self.level[name] = len(self.scopes)
            self.dtypes[name] = T.i64
            self.ranges[name] = extent
        self.scopes.append(scope)
        return scope

    def close(self) -> None:
        self.scopes.pop()

    def depth_of(self, names: Any) -> int:
        return max((self.level[n] for n in names), default=0)

    def find(self, key: Any) -> str | None:
        for scope in reversed(self.scopes):
            found = scope.memo.get(key)
            if found is not None:
                return found
        return None

    def put(self, key: Any, statement: Any, depth: int, dtype: DType) -> str:
        """Append a statement to the scope at ``depth`` and remember its name there."""
        scope = self.scopes[depth]
        scope.body.append(statement)
        if key is not None:
            scope.memo[key] = statement.name
        self.level[statement.name] = depth
        self.dtypes[statement.name] = dtype
        return statement.name

    # -- small statements

    def number(self, value: Any, dtype: DType) -> str:
        key = ("number", dtype, type(value), repr(value))
        return self.find(key) or self.put(key, Number(self.fresh("c"), dtype, value), 0, dtype)

    def affine(self, index: Index) -> str:
        if len(index.terms) == 1 and not index.const and index.terms[0][1] == 1:
            name = index.terms[0][0]
            if name not in self.ranges:
                return name
        key = ("affine", index)
        return self.find(key) or self.put(
            key, Affine(self.fresh("i"), index), self.depth_of(index.names()), T.i64)

    def compute(self, prim: str, args: tuple[str, ...], dtype: DType, attrs: Any = None) -> str:
        attrs = attrs or {}
        key = (prim, args, dtype, tuple(sorted((k, repr(x)) for k, x in attrs.items())))
        return self.find(key) or self.put(
            key, Compute(self.fresh(), prim, args, attrs, dtype), self.depth_of(args), dtype)

    def convert(self, name: str, dtype: DType) -> str:
        return name if self.dtypes[name] is dtype else self.compute("convert", (name,), dtype, {"dtype": dtype})

    def load(self, buffer: str, dtype: DType, index: Index, mask: str | None = None, shared: bool = True) -> str:
        key = ("load", buffer, index, mask) if shared else None
        found = self.find(key) if shared else None
        if found is not None:
            return found
        depth = self.depth_of((*index.names(), mask) if mask else index.names())
        return self.put(key, Load(self.fresh(), buffer, index, mask), depth, dtype)

    # -- values

    def value(self, v: Value, index: IndexTuple, guard: str | None = None) -> str:
        """The name of ``v`` at ``index``; under ``guard`` memory is only touched where it holds."""
        index = tuple(ZERO if d == 1 else i for i, d in zip(index, v.type.shape, strict=True))
        key = (v, index, guard)
        found = self.find(key)
        if found is None:
            found = self._value(v, index, guard)
            self.scopes[self.level[found]].memo[key] = found
        return found

    def _value(self, v: Value, index: IndexTuple, guard: str | None) -> str:
        tile = self.tiles.get(v)
        if tile is not None:
            name, strides = tile[0], tile[1]
            return self.load(name, v.type.dtype, self._tile_index(index, strides), guard, shared=False)
        if v in self.replaced:
            return self.replaced[v](index)
        op = self.producers.get(v)
        if op is None:
            return self.load(self.buffers[v], v.type.dtype, linear(index, v.type.shape), guard)
        return self._of_kind(op, index, guard)

    @staticmethod
    def _tile_index(index: IndexTuple, strides: Any) -> Index:
        out = ZERO
        for i, s in zip(index, strides, strict=True):
            if s:
                out = out + i * s
        return out

    def _of_kind(self, op: Op, index: IndexTuple, guard: str | None) -> str:
        kind = op.prim.kind
        if kind is Kind.MAP:
            args = tuple(self.value(o, index, guard) for o in op.operands)
            return self.compute(op.prim.name, args, op.result.type.dtype, dict(op.attrs))
        if kind is Kind.MOVE:
            return MOVES[op.prim.name](self, op, index, guard)
        if kind is Kind.REDUCE:
            return self.reduce(op, index, guard)
        if kind is Kind.SOURCE:
            return self._source(op, index)
        if kind is Kind.RANDOM:
            return self._random(op, index)
        if kind is Kind.GATHER:
            return GATHERS[op.prim.name](self, op, index, guard)
        raise Unsupported(f"{op.prim.name} is not part of loop kernels")

    def _source(self, op: Op, index: IndexTuple) -> str:
        dtype = op.result.type.dtype
        name = op.prim.name
        if name == "iota":
            return self.convert(self.affine(index[op.attrs["axis"]]), dtype)
        if name == "full":
            return self.number(op.attrs["value"], dtype)
        value = op.attrs["value"]
        if value.size != 1:
            raise Unsupported("an array constant inside a loop kernel")
        return self.number(value.item(), dtype)

    def _random(self, op: Op, index: IndexTuple) -> str:
        (state,) = op.operands
        words = [self.value(state, (Index.of(k),)) for k in (0, 1)]
        seed, offset = (self.compute("bitcast", (w,), T.u64, {"dtype": T.u64}) for w in words)
        i = self.affine(linear(index, op.result.type.shape))
        return self.compute("random_bits", (seed, offset, i), T.u32)

    # -- reductions

    def reduce(self, op: Op, index: IndexTuple, guard: str | None) -> str:
        """A reduction at an index: a serial loop in the scope that knows the index."""
        (x,) = op.operands
        axes = reduced_axes(op)
        names = [n for i in index for n in i.names()]
        depth = self.depth_of([*names, guard] if guard else names)
        loop_axes = [(self.fresh("k"), x.type.shape[a]) for a in axes]
        n = prod(e for _, e in loop_axes)
        loop = Loop(loop_axes, "unroll" if n <= UNROLLED else "serial")
        full = merge_index(index, axes, [Index.var(k) for k, _ in loop_axes])
        (name,) = self.fold_loop(loop, depth, [(op, full, guard)])
        return name

    def fold_loop(self, loop: Loop, depth: int, folds: list[tuple[Op, IndexTuple, str | None]],
                  effects: Any = None) -> list[str]:
        """Append ``loop`` to the scope at ``depth``, folding each (reduction, operand index, guard).

        ``effects()`` may add stores to the body. Returns the names of the results, in the dtypes of the graph.
        """
        outer, self.scopes = self.scopes, self.scopes[: depth + 1]
        scope = self.open(loop.axes)
        for op, index, guard in folds:
            loop.folds.append(self._fold(op, index, guard, loop))
        if effects is not None:
            effects()
        loop.body = scope.body
        self.scopes = outer
        self.scopes[depth].body.append(loop)
        return [self._finish_fold(f, op, depth) for f, (op, _, _) in zip(loop.folds, folds, strict=True)]

    def _fold(self, op: Op, index: IndexTuple, guard: str | None, loop: Loop) -> Fold:
        (x,) = op.operands
        kind = FOLD_OF[op.prim.name]
        source = self.convert(self.value(x, index, guard), fold_dtype(kind, x.type.dtype))
        position = None
        if kind.startswith("arg"):
            position = self.affine(index[op.attrs["axis"]])
            if position in self.ranges:
                position = self.put(None, Affine(self.fresh("i"), Index.var(position)), len(self.scopes) - 1, T.i64)
        return Fold(self.fresh("f"), kind, source, fold_dtype(kind, x.type.dtype), position)

    def _finish_fold(self, fold: Fold, op: Op, depth: int) -> str:
        self.level[fold.name] = depth
        arg = fold.op.startswith("arg")
        self.dtypes[fold.name] = T.i64 if arg else fold.dtype
        return self.convert(fold.name, op.result.type.dtype)

    def tile(self, v: Value, depth: int, size: int) -> str:
        """Declare a row-local array for ``v`` in the scope at ``depth``."""
        name = self.fresh("t")
        self.scopes[depth].body.append(Tile(name, v.type.dtype, size))
        self.level[name] = depth
        return name


def reduced_axes(op: Op) -> tuple[int, ...]:
    """The axes that a REDUCE op folds."""
    return op.attrs["axes"] if "axes" in op.attrs else (op.attrs["axis"],)


def fold_dtype(kind: str, dtype: DType) -> DType:
    """The dtype in which a fold accumulates: f32 for sums and products of half precision."""
    return T.f32 if kind in ("sum", "prod") and dtype in (T.f16, T.bf16) else dtype


def merge_index(kept: IndexTuple, axes: Sequence[int], reduced: Sequence[Index]) -> IndexTuple:
    """The operand's index tuple from the result's and the indices of the reduced axes."""
    rest, where = iter(kept), dict(zip(axes, reduced, strict=True))
    return tuple(where[i] if i in where else next(rest) for i in range(len(kept) + len(axes)))


# movement: each rewrites the index and asks for the operand ------------------------------------------------------


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
        op.operands[0], tuple(i * s + b for i, b, s in zip(index, start, step, strict=True)), guard)


def _flip(low: Lowering, op: Op, index: IndexTuple, guard: str | None) -> str:
    shape, axes = op.result.type.shape, op.attrs["axes"]
    return low.value(op.operands[0], tuple(
        Index.of(shape[d] - 1) - i if d in axes else i for d, i in enumerate(index)), guard)


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
        out = here if out is None or first is None else low.compute("where", (first, here, out), x.type.dtype)
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


def reshape_index(low: Lowering, index: IndexTuple, shape: Sequence[int], target: Sequence[int]) -> IndexTuple:
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


def _outermost(low: Lowering, index: IndexTuple, shape: Sequence[int], dims: Sequence[int], inner: list[int],
               k: int) -> Index:
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


# indexed reads ---------------------------------------------------------------------------------------------------


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


MOVES: dict[str, Any] = {
    "broadcast": _broadcast, "permute": _permute, "slice": _slice, "flip": _flip, "copy": _copy, "pad": _pad,
    "concatenate": _concatenate, "update_slice": _update_slice, "reshape": _reshape,
}  # fmt: skip
"""How each movement primitive rewrites an index: the only place that knows them by name."""
GATHERS: dict[str, Any] = {"gather": _gather, "take_along": _take_along}
