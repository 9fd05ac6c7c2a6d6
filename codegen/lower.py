"""From values of a fused graph to statements of the kernel IR, on demand.

``Lowering.value(v, index)`` gives the name that holds ``v`` at an index tuple. Movement operations only
change the index; maps become statements; a reduction becomes a loop. Each statement is put into the
outermost open scope in which its operands are known, and remembered there, so that work is hoisted and
shared without a further pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
from weft.codegen.kernel import Unsupported
from weft.ir import types as T
from weft.ir.graph import Op, Value
from weft.ir.loops import FOLD_OF, Affine, Check, Compute, Fold, Index, Load, Loop, Number, Tile
from weft.ir.prims.base import Kind
from weft.ir.record import field, record
from weft.ir.types import DType

ZERO = Index.of(0)
IndexTuple = tuple[Index, ...]
UNROLLED = 8  # a small reduction up to this extent is written out
RULES: dict[str, Callable[..., str]] = {}
"""How movement and indexed reads rewrite an index, by primitive: filled by
:mod:`weft.codegen.lower_moves`."""


@record(slots=True)
class Scope:
    """An open loop body: its statements and what is known in it."""

    body: list[Any]
    memo: dict[Any, str] = field(default_factory=dict)


@record(frozen=True, slots=True)
class KeptRow:
    """Where a value of the row is kept: an array, its strides (0 along the rows), and the row's own index."""

    name: str
    strides: tuple[int, ...]
    row: IndexTuple

    def holds(self, index: IndexTuple) -> bool:
        """True for elements of this row: a value may be read in another row too."""
        return all(s or i == r for i, s, r in zip(index, self.strides, self.row, strict=True))

    def where(self, index: IndexTuple) -> Index:
        out = ZERO
        for i, s in zip(index, self.strides, strict=True):
            if s:
                out = out + i * s
        return out


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
    """The lowering of one nest. ``buffers`` names the memory of values from outside."""

    def __init__(self, producers: dict[Value, Op], buffers: dict[Value, str], counter: list[int]) -> None:
        self.producers, self.buffers, self._counter = producers, buffers, counter
        self.scopes: list[Scope] = []
        self.level: dict[str, int] = {}  # name -> number of the scope that defines it
        self.dtypes: dict[str, DType] = {}
        self.ranges: dict[str, int] = {}  # loop variable -> extent
        self.divided: dict[str, set[int]] = {}  # loop variable -> constants by which it was divided
        self.tiles: dict[Value, KeptRow] = {}
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
            key, Affine(self.fresh("i"), index), self.depth_of(index.names()), T.i64
        )

    def compute(self, prim: str, args: tuple[str, ...], dtype: DType, attrs: Any = None) -> str:
        attrs = attrs or {}
        key = (prim, args, dtype, tuple(sorted((k, repr(x)) for k, x in attrs.items())))
        return self.find(key) or self.put(
            key, Compute(self.fresh(), prim, args, attrs, dtype), self.depth_of(args), dtype
        )

    def convert(self, name: str, dtype: DType) -> str:
        return (
            name if self.dtypes[name] is dtype else self.compute("convert", (name,), dtype, {"dtype": dtype})
        )

    def load(
        self, buffer: str, dtype: DType, index: Index, mask: str | None = None, shared: bool = True
    ) -> str:
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
        if tile is not None and tile.holds(index):
            return self.load(tile.name, v.type.dtype, tile.where(index), guard, shared=False)
        if v in self.replaced:
            return self.replaced[v](index)
        op = self.producers.get(v)
        if op is None:
            return self.load(self.buffers[v], v.type.dtype, linear(index, v.type.shape), guard)
        return self._of_kind(op, index, guard)

    def _divisor(self, v: Value, name: str, guard: str | None) -> str:
        """An integer divisor, which sets the status where it is zero."""
        op = self.producers.get(v)
        while op is not None and op.prim.name in ("broadcast", "reshape"):
            op = self.producers.get(op.operands[0])
        number = op is not None and op.prim.name in ("full", "constant")
        if op is not None and number and np.all(op.prim.evaluate((), op.attrs)[0]):
            return name
        key = ("divisor", name, guard)
        depth = self.depth_of([name, guard] if guard else [name])
        return self.find(key) or self.put(
            key, Check(self.fresh("g"), name, None, guard), depth, self.dtypes[name]
        )

    def _of_kind(self, op: Op, index: IndexTuple, guard: str | None) -> str:
        kind = op.prim.kind
        if kind is Kind.MAP:
            args = tuple(self.value(o, index, guard) for o in op.operands)
            if op.prim.name in ("div", "rem") and op.result.type.dtype.is_integer:
                args = args[0], self._divisor(op.operands[1], args[1], guard)
            return self.compute(op.prim.name, args, op.result.type.dtype, dict(op.attrs))
        if kind is Kind.MOVE:
            return RULES[op.prim.name](self, op, index, guard)
        if kind is Kind.REDUCE:
            return self.reduce(op, index, guard)
        if kind is Kind.SOURCE:
            return self._source(op, index)
        if kind is Kind.RANDOM:
            return self._random(op, index)
        if kind is Kind.GATHER:
            return RULES[op.prim.name](self, op, index, guard)
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

    def fold_loop(
        self, loop: Loop, depth: int, folds: list[tuple[Op, IndexTuple, str | None]], effects: Any = None
    ) -> list[str]:
        """Append ``loop`` to the scope at ``depth``, folding each (reduction, operand index, guard).

        ``effects()`` may add stores to the body. Returns the names of the results, in the dtypes of the
        graph.
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
                here = len(self.scopes) - 1
                position = self.put(None, Affine(self.fresh("i"), Index.var(position)), here, T.i64)
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
