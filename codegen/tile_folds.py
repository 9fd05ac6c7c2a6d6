"""Reductions in the epilogue of a contraction: what tiles leave behind, and how it becomes a result.

Every unit of work has places of its own for the partial results of the rows, columns or tiles that it
computes, starts them at the identity, and adds to them tile by tile. A last phase folds the partial results
of all units in the order of their numbers and runs what follows the reductions, so that nothing depends on
which thread computed what. Within a tile every sum starts from zero, which bounds its error as blocks do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from weft.codegen.blocks import Code, Ix
from weft.codegen.emit import Reg, VectorBuilder
from weft.codegen.kernel import Phase, Unsupported
from weft.codegen.lanes import load_lanes, store_lanes, tail_mask
from weft.codegen.llvm import mem_type, reg_type
from weft.codegen.loop_body import combine
from weft.codegen.loop_folds import across
from weft.codegen.phases import Writer, aligned
from weft.codegen.places import Coord, Place, Region
from weft.codegen.uniforms import Uniforms
from weft.ir import contraction
from weft.ir.graph import Graph, Op, Value
from weft.ir.loops import FOLD_OF, IDENTITIES, Fold
from weft.ir.prims.base import Kind
from weft.ir.record import record
from weft.ir.types import DType, bf16, bool_, f16, f32

if TYPE_CHECKING:
    from weft.codegen.epilogue import Output

FOLDS = ", ptr %folds"  # parameter of an epilogue: where the unit keeps the partial results of each reduction
_VECTORS = 8  # of results, that one unit of the last phase finishes
_ADD_NS = 1.0  # one vector of partial results


@record(frozen=True)
class Units:
    """How the units of a grid divide the result: their number down and across."""

    down: int
    across: int


class Span(NamedTuple):
    """What one unit covers: its number down and across, and its first and last rows and columns."""

    number: tuple[Ix, Ix]
    rows: tuple[Ix, Ix]
    cols: tuple[Ix, Ix]


class _Emitter(NamedTuple):
    """What folding over lanes needs."""

    b: VectorBuilder
    fn: Code


@record(frozen=True, eq=False)
class TileFold:
    """A reduction over ``over`` of the kernel's "batch", "rows" and "cols".

    Its partial results are ``slots`` arrays of ``kept`` places of ``width`` elements, from byte ``at`` of the
    scratch memory on; ``firsts`` are the first slots of each grid, in each of which ``batch`` slots lie apart
    for the matrices of a batch that is folded too (0: it is not).
    """

    op: Op
    name: str
    dtype: DType
    over: frozenset[str]
    kept: int
    width: int
    slots: int
    firsts: tuple[int, ...]
    batch: int
    at: int

    @property
    def whole(self) -> bool:
        """True where a tile gives one value."""
        return {"rows", "cols"} <= self.over

    @property
    def by_row(self) -> bool:
        return "rows" not in self.over

    @property
    def nbytes(self) -> int:
        return self.slots * self.kept * self.width * self.dtype.itemsize

    def fold(self) -> Fold:
        return Fold("", self.name, "", self.dtype)

    def identity(self, b: VectorBuilder, lanes: int) -> str:
        return b.text(b.const(IDENTITIES[self.name](self.dtype), self.dtype), lanes)


class Folds:
    """The reductions of a kernel whose result has ``m`` rows and ``n`` columns, computed by ``grids``."""

    def __init__(
        self, graph: Graph, dot: Op, output: Output, grids: Sequence[Units], lanes: int, at: int
    ) -> None:
        self.graph, self.output, self.grids, self.lanes = graph, output, grids, lanes
        self.folded = contraction.folded_values(graph.ops)
        self.list: list[TileFold] = []
        for op in graph.ops:
            if op.prim.kind is Kind.REDUCE:
                self.list.append(self._laid_out(op, dot, at))
                at += aligned(self.list[-1].nbytes)
        self.end = at

    def __bool__(self) -> bool:
        return bool(self.list)

    @property
    def m(self) -> int:
        return prod(self.output.cols if self.output.swapped else self.output.rows)

    @property
    def n(self) -> int:
        return prod(self.output.rows if self.output.swapped else self.output.cols)

    def _laid_out(self, op: Op, dot: Op, at: int) -> TileFold:
        over = contraction.folded(dot, op) or frozenset()
        if not over - {"batch"}:
            raise Unsupported(f"{op.prim.name} folds neither all rows nor all columns")
        if self.output.swapped:  # the kernel's columns are the result's rows
            over = frozenset("cols" if name == "rows" else name for name in over)
        dtype = f32 if op.result.type.dtype in (f16, bf16) else op.result.type.dtype
        down, across_ = "rows" in over, "cols" in over
        counts = [(g.down if down else 1) * (g.across if across_ else 1) for g in self.grids]
        firsts = [sum(counts[:i]) if across_ else 0 for i in range(len(counts))]
        each = sum(counts) if across_ else max(counts)
        batches = prod(self.output.batch)
        kept = (1 if "batch" in over else batches) * (1 if down else self.m) * (1 if across_ else self.n)
        return TileFold(
            op, FOLD_OF[op.prim.name], dtype, over, kept, self.lanes if down and across_ else 1,
            each * (batches if "batch" in over else 1), tuple(firsts), each if "batch" in over else 0, at,
        )  # fmt: skip

    # -- a unit of work

    def begin(self, fn: Code, scratch: str, grid: int, batch: Ix, span: Span) -> str:
        """Start the partial results of a unit; returns where it keeps the addresses of their arrays."""
        if not self.list:
            return ""
        table = fn.alloca(8 * len(self.list))
        for i, f in enumerate(self.list):
            address = self.array(fn, scratch, f, grid, batch, span.number)
            fn.store("ptr", address, fn.at(table, 8 * i), 8)
            self._clear(fn, f, grid, address, span)
        return table

    def array(self, fn: Code, scratch: str, f: TileFold, grid: int, batch: Ix, number: tuple[Ix, Ix]) -> str:
        """The address of a unit's array, at the first row or column of its matrix."""
        (down, across_), slot = number, f.firsts[grid]
        slot = fn.add(fn.mul(batch, f.batch), slot)
        if "cols" in f.over:
            slot = fn.add(slot, fn.mul(across_, self.grids[grid].down if f.whole else 1))
        if "rows" in f.over:
            slot = fn.add(slot, down)
        index = fn.mul(slot, f.kept)
        if "batch" not in f.over:
            index = fn.add(index, fn.mul(batch, f.kept // prod(self.output.batch)))
        return fn.at(scratch, fn.add(f.at, fn.mul(index, f.width * f.dtype.itemsize)))

    def _clear(self, fn: Code, f: TileFold, grid: int, address: str, span: Span) -> None:
        """The identity where the unit folds; the last unit down also fills slots that other grids have."""
        one = (0, 1)
        begin, end = one if f.whole else span.rows if f.by_row else span.cols
        self._fill(fn, f, address, begin, end)
        if "rows" not in f.over or "cols" in f.over:
            return
        most = max(g.down for g in self.grids)
        missing = most - self.grids[grid].down
        if missing:
            is_last = fn.op(f"icmp eq i64 {span.number[0]}, {self.grids[grid].down - 1}")
            with fn.when(is_last), fn.range(1, missing + 1) as s:
                self._fill(fn, f, fn.at(address, fn.mul(s.i, f.kept * f.dtype.itemsize)), begin, end)

    def _fill(self, fn: Code, f: TileFold, address: str, begin: Ix, end: Ix) -> None:
        lanes, b = self.lanes, VectorBuilder(fn, self.lanes)
        value = f.identity(b, lanes)
        if f.width > 1:
            store_lanes(fn, value, address, f.dtype, lanes)
            return
        with fn.range(begin, end, lanes) as v:
            mask = tail_mask(fn, fn.sub(end, v.i), lanes)
            store_lanes(fn, value, fn.at(address, v.i, mem_type(f.dtype)), f.dtype, lanes, mask)

    # -- the last phase

    def phases(self, writer: Writer, uniforms: Uniforms) -> list[Phase]:
        """Fold the partial results and store what is computed from them."""
        shapes = list(dict.fromkeys(v.type.shape for v in self.graph.results if v in self.folded))
        if not shapes:
            return []
        parts, work = [], 0
        for i, shape in enumerate(shapes):
            parts.append(self._finish(writer, uniforms, i, shape))
            work += sum(f.slots for f in self.list if f.op.result.type.shape == shape)
        return [writer.phase("fold", parts, _ADD_NS * _VECTORS * work / len(parts))]

    def _finish(self, w: Writer, uniforms: Uniforms, number: int, shape: tuple[int, ...]) -> tuple[str, int]:
        """The function that finishes some elements of the values of one shape, and how many units it has."""
        fn = w.start(f"{w.prefix}_fold{number}")
        folds = [f for f in self.list if f.op.result.type.shape == shape]
        single = any(f.whole for f in folds)  # then one element at a time
        size, block = prod(shape), _VECTORS * (1 if single else self.lanes)
        first = fn.mul("%u", block)
        last = fn.min(fn.add(first, block), size)
        scratch = w.scratch_of(fn)
        for f in folds:
            self._fold_slots(fn, scratch, f, first, last)
        pointers = {v: fn.arg(i) for i, v in enumerate(self.graph.params)}
        uniform, lanes = uniforms.load(fn), 1 if single else self.lanes
        with fn.range(first, last, lanes) as v:
            mask = None if size % lanes == 0 else tail_mask(fn, fn.sub(last, v.i), lanes)
            region = _Finished(fn, self.graph, lanes, pointers, mask, uniform)
            region.arrays = {f.op: (f, fn.at(scratch, f.at)) for f in folds}
            place = Place(shape, linear=lambda i=v.i: Coord(i, 0 if single else 1))
            stored = [(j, x) for j, x in enumerate(self.graph.results) if x in self.folded]
            stored = [(j, x) for j, x in stored if x.type.shape == shape]
            found = [region.wide(region.value(x, place)) for _, x in stored]
            for (j, x), got in zip(stored, found, strict=True):
                at = fn.at(fn.arg(len(self.graph.params) + j), v.i, mem_type(x.type.dtype))
                store_lanes(fn, got, at, x.type.dtype, lanes, mask)
        w.keep(fn)
        return fn.symbol, -(-size // block)

    def _fold_slots(self, fn: Code, scratch: str, f: TileFold, first: Ix, last: Ix) -> None:
        """Fold elements ``first`` .. ``last`` of all arrays into the first array."""
        if f.slots == f.width == 1:
            return
        lanes, b = self.lanes, VectorBuilder(fn, self.lanes)
        size, base = f.dtype.itemsize, fn.at(scratch, f.at)
        with fn.range(first, last, 1 if f.width > 1 else lanes) as v:
            tail = f.width == 1 and f.kept % lanes != 0
            mask = tail_mask(fn, fn.sub(last, v.i), lanes) if tail else None
            start = fn.at(base, fn.mul(v.i, f.width * size))
            t = reg_type(f.dtype, lanes)
            with fn.range(0, f.slots, 1, [(t, f.identity(b, lanes))]) as s:
                at = fn.at(start, fn.mul(s.i, f.kept * f.width * size))
                x = b.reg(load_lanes(fn, at, f.dtype, lanes, mask), f.dtype, lanes)
                s.next[0] = combine(b, f.name, x, b.reg(s.vars[0], f.dtype, lanes)).text
            if f.width == 1:
                store_lanes(fn, s.out[0], start, f.dtype, lanes, mask)
            else:
                (one,) = across(_Emitter(b, fn), f.fold(), [b.reg(s.out[0], f.dtype, lanes)])
                store_lanes(fn, one.text, start, f.dtype, 0)

    def overwritable(self) -> frozenset[tuple[int, int]]:
        """Pairs (operand, result) that may share memory: an operand that only maps read, element by element
        of the reduced shape. When results are written all tiles are done."""
        graph = self.graph
        moved = {
            x for op in graph.ops for x in op.operands
            if op.prim.kind is not Kind.MAP or op.result.type.shape != x.type.shape
        }  # fmt: skip
        return frozenset(
            (i, j)
            for i, x in enumerate(graph.params)
            for j, y in enumerate(graph.results)
            if y in self.folded
            and x not in moved
            and x.type.shape == y.type.shape
            and x.type.dtype.itemsize == y.type.dtype.itemsize
        )

    def describe(self) -> list[str]:
        """A line for each reduction."""
        return [
            f"  {f.op.prim.name} over {', '.join(sorted(f.over))}: {f.slots} partial results "
            f"of {f.kept} {f.dtype.name}"
            for f in self.list
        ]


class _Finished(Region):
    """The region of the last phase: reductions are read from memory."""

    arrays: Mapping[Op, tuple[TileFold, str]]

    def _make(self, v: Value, place: Place) -> Reg:
        op = self.producers.get(v)
        if op is None or op not in self.arrays:
            return super()._make(v, place)
        (f, base), at = self.arrays[op], self.linear(place)
        lanes = self.lanes if at.step else 0
        address = self.fn.at(base, self.fn.mul(at.base, f.width * f.dtype.itemsize))
        text = load_lanes(self.fn, address, f.dtype, lanes, self.mask if lanes else None)
        return self.builder.convert(self.builder.reg(text, f.dtype, lanes), v.type.dtype)


class Tally:
    """The folds of one call of an epilogue, which sees a tile row by row, each from left to right."""

    def __init__(self, fn: Code, folds: Folds | None, lanes: int, cols: Ix, most_cols: int) -> None:
        self.fn, self.lanes, self.cols = fn, lanes, cols
        self.b = VectorBuilder(fn, lanes)
        every = list(enumerate(folds.list)) if folds is not None else []
        self.across = [(i, f) for i, f in every if "cols" in f.over]  # folded along a row in registers
        self.whole = [(i, f) for i, f in self.across if f.whole]
        self.down = [(i, f) for i, f in every if "cols" not in f.over]
        self.bases = {i: fn.load("ptr", fn.at("%folds", 8 * i), 8) for i, _ in every}
        self.strips: dict[int, str] = {}
        width = -(-most_cols // lanes) * lanes
        for i, f in self.down:
            self.strips[i] = fn.alloca(aligned(width * max(f.dtype.itemsize, 1)))
            with fn.range(0, cols, lanes) as v:
                at = fn.at(self.strips[i], v.i, mem_type(f.dtype))
                store_lanes(fn, f.identity(self.b, lanes), at, f.dtype, lanes)

    def _start(self, folds: list[tuple[int, TileFold]]) -> list[tuple[str, str]]:
        return [(reg_type(f.dtype, self.lanes), f.identity(self.b, self.lanes)) for _, f in folds]

    def tile_start(self) -> list[tuple[str, str]]:
        """What is carried from row to row."""
        return self._start(self.whole)

    def row_start(self) -> list[tuple[str, str]]:
        """What is carried along a row."""
        return self._start(self.across)

    def _step(self, f: TileFold, x: str, old: str) -> str:
        lanes = self.lanes
        return combine(self.b, f.name, self.b.reg(x, f.dtype, lanes), self.b.reg(old, f.dtype, lanes)).text

    def take(self, region: Region, place: Place, col: Ix, carried: list[str]) -> list[str]:
        """Fold the values at ``place``, the first of which is in column ``col`` of the tile."""
        out = []
        for (_, f), old in zip(self.across, carried, strict=True):
            out.append(self._step(f, self._value(f, region, place), old))
        for i, f in self.down:
            at = self.fn.at(self.strips[i], col, mem_type(f.dtype))
            old = load_lanes(self.fn, at, f.dtype, self.lanes)
            new = self._step(f, self._value(f, region, place), old)
            store_lanes(self.fn, new, at, f.dtype, self.lanes)
        return out

    def _value(self, f: TileFold, region: Region, place: Place) -> str:
        b = region.builder
        x = b.convert(region.value(f.op.operands[0], place), f.dtype)
        if region.mask is None:
            return region.wide(x)
        mask = b.reg(region.mask, bool_, self.lanes)
        other = b.reg(f.identity(b, self.lanes), f.dtype, self.lanes)
        return b.select(mask, b.reg(region.wide(x), f.dtype, self.lanes), other).text

    def end_row(self, row: Ix, folded: list[str], carried: list[str]) -> list[str]:
        """Add what a row gave to its place, or to that of the tile."""
        out, fn, lanes = [], self.fn, self.lanes
        for (i, f), x in zip(self.across, folded, strict=True):
            if f.whole:
                out.append(self._step(f, x, carried[len(out)]))
                continue
            (one,) = across(_Emitter(self.b, fn), f.fold(), [self.b.reg(x, f.dtype, lanes)])
            at = fn.at(self.bases[i], row, mem_type(f.dtype))
            old = self.b.reg(load_lanes(fn, at, f.dtype, 0), f.dtype)
            store_lanes(fn, combine(self.b, f.name, one, old).text, at, f.dtype, 0)
        return out

    def end(self, col: Ix, carried: list[str], masked: bool) -> None:
        """Add what the tile gave to the places of its columns, and to its own."""
        fn, lanes = self.fn, self.lanes
        for (i, f), x in zip(self.whole, carried, strict=True):
            old = load_lanes(fn, self.bases[i], f.dtype, lanes)
            store_lanes(fn, self._step(f, x, old), self.bases[i], f.dtype, lanes)
        for i, f in self.down:
            with fn.range(0, self.cols, lanes, runs=True) as v:
                mask = tail_mask(fn, fn.sub(self.cols, v.i), lanes) if masked else None
                new = load_lanes(fn, fn.at(self.strips[i], v.i, mem_type(f.dtype)), f.dtype, lanes)
                at = fn.at(self.bases[i], fn.add(col, v.i), mem_type(f.dtype))
                old = load_lanes(fn, at, f.dtype, lanes, mask)
                store_lanes(fn, self._step(f, new, old), at, f.dtype, lanes, mask)
