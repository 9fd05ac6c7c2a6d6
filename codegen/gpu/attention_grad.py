"""The gradient of attention on a GPU: weights computed again from the logarithms of their sums.

Two launches: one holds queries, walks over keys and gives dq; the other holds keys, walks over the queries of
all its heads and gives dk and dv. Nothing is added up in memory, so that results are always the same. In the
second the scores are transposed: what is a row of a tile there is a key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from weft.codegen.attention_tiles import LOG2E, lies
from weft.codegen.blocks import Ix
from weft.codegen.emit import Reg
from weft.codegen.gpu.attention_engine import AnyEngine, Stream, choose
from weft.codegen.gpu.attention_scores import Block, Load, Scores
from weft.codegen.gpu.contract_code import BlockCode
from weft.codegen.gpu.contract_region import load_aligned
from weft.codegen.gpu.kernel import DeviceCode
from weft.codegen.gpu.target import GpuTarget
from weft.codegen.llvm import reg_type
from weft.ir.graph import Op
from weft.ir.types import bool_


def emit(op: Op, target: GpuTarget, prefix: str) -> DeviceCode:
    """The code of a kernel of ``attention_grad``."""
    return Backward(op, target, prefix).emit()


Corner = tuple[Ix, Ix, int]  # of a tile: its first query, its first key and how many keys it has


@dataclass(frozen=True)
class Cell:
    """A thread's score number ``number``, in its row number ``row``, of a query and a key."""

    number: int
    row: int
    query: Ix
    key: Ix


@dataclass
class Side:
    """One of the two launches: its tiles of rows, the streams past them, and which products add up to what.

    ``sums`` are pairs of a result's number and the stream whose rows are added up, with ds or with weights.
    """

    name: str
    engine: AnyEngine
    block: Block
    rows: tuple[Stream, Stream]
    streams: tuple[Stream, Stream]
    sums: tuple[tuple[int, Stream], ...]


class Backward(Scores):
    def __init__(self, op: Op, target: GpuTarget, prefix: str) -> None:
        super().__init__(op, target, prefix, "attention_grad", 6)
        self.lse, self.delta = (lies(self.graph, v) for v in self.main.operands[4:6])

    def _side(self, make: Callable[[AnyEngine], Side], sums: tuple[int, ...]) -> Side:
        return make(choose(self.dtype, self.target, lambda e: make(e).block.needs, self.widths, sums))

    def _queries(self, engine: AnyEngine) -> Side:
        """Queries as rows, keys and values streaming past."""
        q, k, v, ct = self.main.operands[:4]
        rows = tuple(engine.stream(self.graph, x, engine.rows, ("rows",)) for x in (q, ct))
        keys = engine.stream(self.graph, k, engine.cols, ("score", "sum"))
        values = engine.stream(self.graph, v, engine.cols, ("score",))
        block = Block(engine, list(rows), [keys, values])
        return Side("queries", engine, block, (rows[0], rows[1]), (keys, values), ((0, keys),))

    def _keys(self, engine: AnyEngine) -> Side:
        """Keys and values as rows, queries and cotangents streaming past."""
        q, k, v, ct = self.main.operands[:4]
        rows = tuple(engine.stream(self.graph, x, engine.rows, ("rows",)) for x in (k, v))
        queries, cts = (engine.stream(self.graph, x, engine.cols, ("score", "sum")) for x in (q, ct))
        block = Block(engine, list(rows), [queries, cts])
        sums = ((1, queries), (2, cts))
        return Side("keys", engine, block, (rows[0], rows[1]), (queries, cts), sums)

    def emit(self) -> DeviceCode:
        wanted = [r in self.graph.results for r in self.main.results]
        lines = []
        if wanted[0]:
            lines.append(self._emit_queries(self._side(self._queries, (self.width,))))
        if wanted[1] or wanted[2]:
            lines.append(self._emit_keys(self._side(self._keys, self.widths)))
        cells = self.batch * self.heads * self.length * self.keys * (0.5 if self.causal else 1.0)
        title = (
            f"gradient of attention {self.batch} x {self.heads} ({self.kv}) heads, {self.length} queries of "
            f"{self.width}, {self.keys} keys, {self.dtype.name}"
        )
        return self.kernel.code("\n".join([title, *lines]), int(5 * cells * sum(self.widths)))

    def _describe(self, side: Side) -> str:
        e = side.engine
        how = type(e).__name__.removesuffix("Engine").lower()
        return f"  {side.name}: {how}, {e.rows} by {e.cols}, {e.threads} threads, {side.block.slots} slots"

    # -- queries as rows

    def _emit_queries(self, side: Side) -> str:
        engine, rows = side.engine, side.engine.rows
        fn = self.kernel.start("queries", engine.threads)
        blocks = -(-self.length // rows)
        column, number = self._slice(fn, engine, (self.width,))
        head, i = fn.div(number, blocks), fn.mod(number, blocks)
        n, h, kv = self.batch_of(fn, head)
        row0 = fn.known(fn.mul(i, rows), rows)
        engine.begin(fn)
        self.seed(fn)
        pointers = self.kernel.pointers()
        query_head = fn.add(fn.mul(n, self.heads), h)

        def copier(col0: Ix) -> Load:
            def copy(s: Stream, slot: Ix, start: Ix, use: str | None) -> None:
                batch, first = (query_head, row0) if s in side.rows else (kv, col0)
                s.load(fn, pointers, batch, first, slot, start, use)

            return copy

        side.block.fetch_rows(fn, side.rows, copier(0))
        lines = [self._row_numbers(fn, (n, h), fn.add(row0, fn.index(r))) for r in engine.thread_rows]

        def load(tile: Ix, slot: Ix) -> None:
            side.block.fetch_tile(slot, column, copier(fn.mul(tile, engine.cols)))

        def body(tile: Ix, slot: Ix, values: list[str]) -> list[str]:
            col0 = fn.mul(tile, engine.cols)
            cells = self._cells(fn, engine, row0, col0, False)
            corner = (row0, col0, engine.cols)
            products = self._products(fn, side, slot, copier(col0))
            _, ds = self._gradients(fn, side, (n, h), corner, cells, products, lambda c: lines[c.row])
            return engine.add(fn, [x.text for x in ds], side.streams[0], slot, values)

        end: Ix = -(-self.keys // engine.cols)
        if self.causal:
            end = fn.min(end, fn.div(fn.add(row0, rows + engine.cols - 1), engine.cols))
        count = self._count(fn, engine, self.width)
        sums = side.block.walk(fn, 0, end, engine.zeros(count), load, body)
        self._store(fn, side, 0, (n, h), row0, column, sums, self.heads, self.length, self.scale)
        count = self.batch * self.heads * blocks * engine.slices(self.width)
        self.kernel.keep(fn, count, side.block.bytes)
        return self._describe(side)

    # -- keys as rows

    def _emit_keys(self, side: Side) -> str:
        engine, rows = side.engine, side.engine.rows
        fn = self.kernel.start("keys", engine.threads)
        blocks = -(-self.keys // rows)
        column, number = self._slice(fn, engine, self.widths)
        head, i = fn.div(number, blocks), fn.mod(number, blocks)
        n, kv = fn.div(head, self.kv), fn.mod(head, self.kv)
        row0 = fn.known(fn.mul(i, rows), rows)
        engine.begin(fn)
        self.seed(fn)
        pointers = self.kernel.pointers()

        def copier(which: Ix, col0: Ix) -> Load:
            def copy(s: Stream, slot: Ix, start: Ix, use: str | None) -> None:
                batch, first = (head, row0) if s in side.rows else (which, col0)
                s.load(fn, pointers, batch, first, slot, start, use)

            return copy

        side.block.fetch_rows(fn, side.rows, copier(0, 0))
        counts = [self._count(fn, engine, s.width) for _, s in side.sums]
        t = reg_type(self.acc)
        end = -(-self.length // engine.cols)
        begin = fn.min(end, fn.div(row0, engine.cols)) if self.causal else 0
        with fn.range(0, self.groups, 1, engine.zeros(sum(counts))) as g:
            h = fn.add(fn.mul(kv, self.groups), g.i)
            which = fn.add(fn.mul(n, self.heads), h)

            def load(tile: Ix, slot: Ix) -> None:
                side.block.fetch_tile(slot, column, copier(which, fn.mul(tile, engine.cols)))

            def body(tile: Ix, slot: Ix, values: list[str]) -> list[str]:
                col0 = fn.mul(tile, engine.cols)
                cells = self._cells(fn, engine, row0, col0, True)
                products = self._products(fn, side, slot, copier(which, col0))
                weights, ds = self._gradients(
                    fn,
                    side,
                    (n, h),
                    (col0, row0, rows),
                    cells,
                    products,
                    lambda c: self._row_numbers(fn, (n, h), c.query),
                )
                dk = engine.add(fn, [x.text for x in ds], side.streams[0], slot, values[: counts[0]])
                dv = engine.add(fn, [x.text for x in weights], side.streams[1], slot, values[counts[0] :])
                return [*dk, *dv]

            g.next = side.block.walk(fn, begin, end, [(t, x) for x in g.vars], load, body)
        dk, dv = g.out[: counts[0]], g.out[counts[0] :]
        self._store(fn, side, 1, (n, kv), row0, column, dk, self.kv, self.keys, self.scale)
        self._store(fn, side, 2, (n, kv), row0, column, dv, self.kv, self.keys, 1.0)
        count = self.batch * self.kv * blocks * engine.slices(*self.widths)
        self.kernel.keep(fn, count, side.block.bytes)
        return self._describe(side)

    # -- one tile

    def _slice(self, fn: BlockCode, engine: AnyEngine, widths: tuple[int, ...]) -> tuple[Ix, Ix]:
        """The first column that a block has sums for, and its number among those of the same columns."""
        number, slices = fn.block_index("x"), engine.slices(*widths)
        return fn.mul(fn.mod(number, slices), engine.extent(max(widths))), fn.div(number, slices)

    def _products(self, fn: BlockCode, side: Side, slot: Ix, load: Load) -> tuple[list[str], list[str]]:
        """Rows by what streams past: the scores, and their gradients before the softmax."""
        first, second = (
            side.block.scores(fn, a, b, slot, load)
            for a, b in zip(side.rows, side.streams, strict=True)
        )  # fmt: skip
        return first, second

    def _count(self, fn: BlockCode, engine: AnyEngine, width: int) -> int:
        return max(r.first + r.count for r in engine.sums(fn, width))

    def _row_numbers(self, fn: BlockCode, where: tuple[Ix, Ix], query: Ix) -> tuple[Reg, Reg]:
        """The logarithm of a query's sum in units of log2 e (inf where it sees no key), its delta."""
        b = self.builder(fn)
        ok = fn.below(query, self.length)
        got = []
        for line in (self.lse, self.delta):
            index = fn.dot((*where, fn.select(ok, query, 0)), line.strides, line.offset)
            got.append(b.reg(load_aligned(fn, self.pointer(line.param), index, self.acc, 0), self.acc))
        lse = b.binary("mul", got[0], b.const(LOG2E, self.acc))
        none = b.compare("eq", lse, b.const(float("-inf"), self.acc))
        inf = b.const(float("inf"), self.acc)
        lse = b.select(none, inf, lse)
        if ok is not None:
            here = b.reg(ok, bool_)
            lse, got[1] = b.select(here, lse, inf), b.select(here, got[1], b.const(0.0, self.acc))
        return lse, got[1]

    def _cells(self, fn: BlockCode, engine: AnyEngine, row0: Ix, col0: Ix, turned: bool) -> list[Cell]:
        """This thread's cells of a tile; ``turned``: rows are keys."""
        rows = [fn.add(row0, fn.index(r)) for r in engine.thread_rows]
        cols: dict[tuple[Ix, int], Ix] = {}
        out = []
        for run in engine.cells(fn):
            key = (run.col, 0)
            if key not in cols:
                cols[key] = fn.add(col0, fn.index(run.col))
            for e in range(run.count):
                col = fn.add(cols[key], e)
                query, other = (col, rows[run.row]) if turned else (rows[run.row], col)
                out.append(Cell(run.first + e, run.row, query, other))
        return out

    def _gradients(
        self, fn: BlockCode, side: Side, where: tuple[Ix, Ix], corner: Corner, cells: list[Cell],
        products: tuple[list[str], list[str]], numbers: Callable[[Cell], tuple[Reg, Reg]],
    ) -> tuple[list[Reg], list[Reg]]:  # fmt: skip
        """The weights (dropped) and the gradient of the scores of a tile from ``corner`` on."""
        engine, b = side.engine, self.builder(fn)
        weights = [b.const(0.0, self.acc)] * len(products[0])
        ds = list(weights)
        factor = b.const(self.scale * LOG2E, self.acc)
        scores = [b.binary("mul", b.reg(x, self.acc), factor).text for x in products[0]]

        def mask() -> list[str]:
            return self._masked(fn, engine, where, cells, scores)

        scores = fn.replaced(self.hiding(fn, *corner), scores, reg_type(self.acc), mask)
        known: dict[Ix, tuple[Reg, Reg]] = {}
        for c in cells:
            if c.query not in known:
                known[c.query] = numbers(c)
            lse, delta = known[c.query]
            p = self.exponential(fn, b.binary("sub", b.reg(scores[c.number], self.acc), lse))
            slope, kept = b.reg(products[1][c.number], self.acc), p
            if self.state is not None:
                drop = self.kept(fn, where, (c.query, c.key))
                slope, kept = b.binary("mul", slope, drop), b.binary("mul", p, drop)
            weights[c.number] = kept
            ds[c.number] = b.binary("mul", p, b.binary("sub", slope, delta))
        return weights, ds

    def _masked(
        self, fn: BlockCode, engine: AnyEngine, where: tuple[Ix, Ix], cells: list[Cell], scores: list[str]
    ) -> list[str]:
        b, out = self.builder(fn), list(scores)
        ragged = self.keys % engine.cols != 0 or self.keys % engine.rows != 0
        queries = self.length % engine.rows != 0 or self.length % engine.cols != 0
        for c in cells:
            ok = fn.below(c.key, self.keys) if ragged else None
            if self.mask is not None and queries:
                ok = fn.both(ok, fn.below(c.query, self.length))
            x = b.reg(scores[c.number], self.acc)
            out[c.number] = self.masked(fn, x, where, (c.query, c.key), ok).text
        return out

    def _store(
        self, fn: BlockCode, side: Side, number: int, where: tuple[Ix, Ix], row0: Ix, column: Ix,
        sums: list[str], heads: int, rows: int, factor: float,
    ) -> None:  # fmt: skip
        v, (n, h) = self.main.results[number], where
        width = v.type.shape[3]

        def at(row: Ix) -> Ix:
            if self.main.attrs["heads_inside"][number]:
                return fn.mul(fn.add(fn.mul(fn.add(fn.mul(n, rows), row), heads), h), width)
            return fn.mul(fn.add(fn.mul(fn.add(fn.mul(n, heads), h), rows), row), width)

        scale = self.builder(fn).const(factor, self.acc)
        factors = [scale] * len(side.engine.thread_rows)
        self.store_rows(fn, side.engine, v, at, row0, rows, column, sums, factors)
