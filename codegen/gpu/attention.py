"""Kernels of form ``attention`` on a GPU: a block of queries, keys and values streaming past, online softmax.

A block holds some query rows; scores, weights and sums stay in registers. Weights are relative to the largest
score of the row so far; the sums are rescaled where it grows. Tiles beyond the diagonal are left out.

Source: Dao, "FlashAttention-2", 2023.
"""

from __future__ import annotations

from typing import Any

from weft.codegen.attention_tiles import LN2, LOG2E
from weft.codegen.blocks import Ix
from weft.codegen.emit import Reg
from weft.codegen.gpu.attention_engine import AnyEngine, Stream, choose
from weft.codegen.gpu.attention_parts import Parts, parts_of
from weft.codegen.gpu.attention_scores import Block, Load, Scores
from weft.codegen.gpu.contract_code import BlockCode
from weft.codegen.gpu.contract_region import store_aligned
from weft.codegen.gpu.kernel import DeviceCode
from weft.codegen.gpu.target import GpuTarget
from weft.codegen.llvm import reg_type
from weft.ir.graph import Op


def emit(op: Op, target: GpuTarget, prefix: str) -> DeviceCode:
    """The code of a kernel of form ``attention``."""
    if any(o.prim.name == "attention_grad" for o in op.regions[0].ops):
        from weft.codegen.gpu.attention_grad import emit as emit_grad

        return emit_grad(op, target, prefix)
    return Forward(op, target, prefix).emit()


def _log2(b: Any, x: Reg) -> Reg:
    return b.log2(x)


class Forward(Scores):
    def __init__(self, op: Op, target: GpuTarget, prefix: str) -> None:
        super().__init__(op, target, prefix, "attention", 3)
        widths = (self.width,), (self.out_width,)
        engine = self.engine = choose(self.dtype, target, lambda e: self._block(e).needs, *widths)
        self.slices = engine.slices(self.out_width)
        self.block = self._block(engine)
        self.q, (self.k, self.v) = self.block.fixed[0], self.block.streams
        self.row_blocks = -(-self.length // engine.rows)
        tiles = -(-self.keys // engine.cols)
        blocks = self.batch * self.heads * self.row_blocks * self.slices
        self.parts = Parts(self, parts_of(blocks, tiles, target), tiles)

    def _block(self, engine: AnyEngine) -> Block:
        q, k, v = self.main.operands[:3]
        fixed = [engine.stream(self.graph, q, engine.rows, ("rows",))]
        streams = [engine.stream(self.graph, x, engine.cols, (use,)) for x, use in ((k, "score"), (v, "sum"))]
        return Block(engine, fixed, streams)

    def emit(self) -> DeviceCode:
        engine, rows = self.engine, self.engine.rows
        fn = self.kernel.start("attention", engine.threads)
        blocks, parts = self.row_blocks, self.parts
        number = fn.block_index("x")
        part, rest = fn.mod(number, parts.count), fn.div(number, parts.count)
        column = fn.mul(fn.mod(rest, self.slices), engine.extent(self.out_width))
        rest = fn.div(rest, self.slices)
        head, i = fn.div(rest, blocks), fn.mod(rest, blocks)
        if self.causal:  # rows that see many keys first
            i = fn.sub(blocks - 1, i)
        n, h, kv = self.batch_of(fn, head)
        row0 = fn.known(fn.mul(i, rows), rows)
        engine.begin(fn)
        self.seed(fn)
        pointers = self.kernel.pointers()
        query_head = fn.add(fn.mul(n, self.heads), h)

        def copier(col0: Ix) -> Load:
            def copy(s: Stream, slot: Ix, start: Ix, use: str | None) -> None:
                batch, first = (query_head, row0) if s is self.q else (kv, col0)
                s.load(fn, pointers, batch, first, slot, start, use)

            return copy

        def load(tile: Ix, slot: Ix) -> None:
            self.block.fetch_tile(slot, column, copier(fn.mul(tile, engine.cols)))

        def body(tile: Ix, slot: Ix, values: list[str]) -> list[str]:
            col0 = fn.mul(tile, engine.cols)
            products = self.block.scores(fn, self.q, self.k, slot, copier(col0))
            return self._tile(fn, (n, h), row0, col0, slot, products, values)

        self.block.fetch_rows(fn, (self.q,), copier(0))

        end: Ix = -(-self.keys // engine.cols)
        if self.causal:
            end = fn.min(end, fn.div(fn.add(row0, rows + engine.cols - 1), engine.cols))
        count, t = len(engine.thread_rows), reg_type(self.acc)
        low = self.builder(fn).const(float("-inf"), self.acc).text
        sums = self._sum_count(fn)
        carried = [(t, low)] * count + [(t, "0.0")] * count + engine.zeros(sums)
        begin = fn.mul(part, parts.tiles)
        end = end if parts.count == 1 else fn.min(end, fn.add(begin, parts.tiles))
        out = self.block.walk(fn, begin, end, carried, load, body)
        self._finish(fn, (n, h), row0, part, column, out)
        count = self.batch * self.heads * blocks * self.slices * parts.count
        self.kernel.keep(fn, count, self.block.bytes)
        if parts.count > 1:
            parts.combine(lambda f, x: self.exponential(f, x), self._element)
        cells = self.batch * self.heads * self.length * self.keys * (0.5 if self.causal else 1.0)
        return self.kernel.code(self._describe(), int(2 * cells * sum(self.widths)))

    def _sum_count(self, fn: BlockCode) -> int:
        return max(r.first + r.count for r in self.engine.sums(fn, self.out_width))

    def _tile(
        self, fn: BlockCode, where: tuple[Ix, Ix], row0: Ix, col0: Ix, slot: Ix, products: list[str],
        values: list[str],
    ) -> list[str]:  # fmt: skip
        engine, b, count = self.engine, self.builder(fn), len(self.engine.thread_rows)
        top, total, sums = values[:count], values[count : 2 * count], values[2 * count :]
        scores = self._scores(fn, where, row0, col0, products)
        runs = engine.cells(fn)
        weights = list(scores)
        for r in range(count):
            mine = [run.first + e for run in runs if run.row == r for e in range(run.count)]
            before = b.reg(top[r], self.acc)
            peak = before
            for n in mine:
                peak = b.binary("fmax", peak, scores[n])
            text = engine.reduce(fn, peak.text, lambda x, y: self._larger(fn, x, y))
            peak = b.reg(text, self.acc)
            none = b.compare("eq", peak, b.const(float("-inf"), self.acc))
            base = b.select(none, b.const(0.0, self.acc), peak)
            alpha = self.exponential(fn, b.binary("sub", before, base))
            part = b.binary("mul", b.reg(total[r], self.acc), alpha)
            for n in mine:
                weights[n] = self.exponential(fn, b.binary("sub", scores[n], base))
                part = b.binary("add", part, weights[n])
            top[r], total[r] = peak.text, part.text
            sums = self._rescaled(fn, r, alpha, sums)
        if self.state is not None:
            weights = self._dropped(fn, where, row0, col0, weights)
        sums = engine.add(fn, [w.text for w in weights], self.v, slot, sums)
        return [*top, *total, *sums]

    def _larger(self, fn: BlockCode, x: str, y: str) -> str:
        b = self.builder(fn)
        return b.binary("fmax", b.reg(x, self.acc), b.reg(y, self.acc)).text

    def _rescaled(self, fn: BlockCode, row: int, alpha: Reg, sums: list[str]) -> list[str]:
        b, out = self.builder(fn), list(sums)
        for run in self.engine.sums(fn, self.out_width):
            if run.row == row:
                for n in range(run.first, run.first + run.count):
                    out[n] = b.binary("mul", b.reg(out[n], self.acc), alpha).text
        return out

    def _cells(self, fn: BlockCode, row0: Ix, col0: Ix) -> list[tuple[int, Ix, Ix]]:
        """Number, query and key of this thread's scores."""
        rows = [fn.add(row0, fn.index(r)) for r in self.engine.thread_rows]
        out = []
        for run in self.engine.cells(fn):
            col = fn.add(col0, fn.index(run.col))
            out += [(run.first + e, rows[run.row], fn.add(col, e)) for e in range(run.count)]
        return out

    def _scores(
        self, fn: BlockCode, where: tuple[Ix, Ix], row0: Ix, col0: Ix, products: list[str]
    ) -> list[Reg]:
        b = self.builder(fn)
        factor = b.const(self.scale * LOG2E, self.acc)
        out = [b.binary("mul", b.reg(x, self.acc), factor) for x in products]
        needed = self.hiding(fn, row0, col0, self.engine.cols)
        texts = [x.text for x in out]

        def mask() -> list[str]:
            return self._masked(fn, where, row0, col0, texts)

        texts = fn.replaced(needed, texts, reg_type(self.acc), mask)
        return [b.reg(x, self.acc) for x in texts]

    def _masked(
        self, fn: BlockCode, where: tuple[Ix, Ix], row0: Ix, col0: Ix, scores: list[str]
    ) -> list[str]:
        b, out = self.builder(fn), list(scores)
        ragged = self.keys % self.engine.cols != 0
        for n, i, j in self._cells(fn, row0, col0):
            ok = fn.below(j, self.keys) if ragged else None
            if self.mask is not None and self.length % self.engine.rows:
                ok = fn.both(ok, fn.below(i, self.length))
            out[n] = self.masked(fn, b.reg(scores[n], self.acc), where, (i, j), ok).text
        return out

    def _dropped(
        self, fn: BlockCode, where: tuple[Ix, Ix], row0: Ix, col0: Ix, weights: list[Reg]
    ) -> list[Reg]:
        b, out = self.builder(fn), list(weights)
        for n, i, j in self._cells(fn, row0, col0):
            out[n] = b.binary("mul", out[n], self.kept(fn, where, (i, j)))
        return out

    def _finish(
        self, fn: BlockCode, where: tuple[Ix, Ix], row0: Ix, part: Ix, column: Ix, values: list[str]
    ) -> None:
        """Divide by the totals; store the result and their logarithms, or leave all that to later."""
        engine, b, count = self.engine, self.builder(fn), len(self.engine.thread_rows)
        totals: list[Reg] = []
        for x in values[count : 2 * count]:
            text = engine.reduce(fn, x, lambda p, q: fn.op(f"fadd {reg_type(self.acc)} {p}, {q}"))
            totals.append(b.reg(text, self.acc))
        if self.parts.count > 1:
            numbers = (values[:count], totals, values[2 * count :])

            def line(row: Ix) -> Ix:
                return self.parts.row(fn, part, self._line(fn, where, row))

            self.parts.store(fn, engine, line, row0, column, numbers)
            return
        out, lse = self.main.results
        factors = [self._factor(fn, x) for x in totals]

        def at(row: Ix) -> Ix:
            return self._start(fn, where, row)

        self.store_rows(fn, engine, out, at, row0, self.length, column, values[2 * count :], factors)
        if lse not in self.graph.results:
            return
        first = self.first_thread(fn, engine, column)
        for r, offset in enumerate(engine.thread_rows):
            row = fn.add(row0, fn.index(offset))
            got = self._logarithm(fn, b.reg(values[r], self.acc), totals[r])
            with fn.only(fn.both(first, fn.below(row, self.length))):
                store_aligned(fn, got.text, self.result(lse), self._line(fn, where, row), self.acc, 0)

    def _element(self, fn: BlockCode, line: Ix, col: Ix, top: str, total: str, out: str) -> None:
        """Store one element, of which the parts were put together, and the logarithm beside the first."""
        b, (result, lse) = self.builder(fn), self.main.results
        sum_, peak = b.reg(total, self.acc), b.reg(top, self.acc)
        head, row = fn.div(line, self.length), fn.mod(line, self.length)
        where = (fn.div(head, self.heads), fn.mod(head, self.heads))
        if result in self.graph.results:
            got = b.convert(b.binary("mul", b.reg(out, self.acc), self._factor(fn, sum_)), self.dtype)
            index = fn.add(self._start(fn, where, row), col)
            store_aligned(fn, got.text, self.result(result), index, self.dtype, 0)
        if lse in self.graph.results:
            got = self._logarithm(fn, peak, sum_)
            with fn.only(fn.op(f"icmp eq i64 {col}, 0") if isinstance(col, str) else None):
                store_aligned(fn, got.text, self.result(lse), line, self.acc, 0)

    def _factor(self, fn: BlockCode, total: Reg) -> Reg:
        """What sums are multiplied with: 1 / total, of a row that sees no key 0 or NaN."""
        b = self.builder(fn)
        empty = b.const(float("nan") if self.main.attrs["nan_rows"] else 0.0, self.acc)
        none = b.compare("eq", total, b.const(0.0, self.acc))
        return b.select(none, empty, b.binary("div", b.const(1.0, self.acc), total))

    def _logarithm(self, fn: BlockCode, top: Reg, total: Reg) -> Reg:
        """The logarithm of a row's sum; -inf where it sees no key."""
        b = self.builder(fn)
        got = b.binary("mul", b.binary("add", top, _log2(b, total)), b.const(LN2, self.acc))
        none = b.compare("eq", total, b.const(0.0, self.acc))
        return b.select(none, b.const(float("-inf"), self.acc), got)

    def _start(self, fn: BlockCode, where: tuple[Ix, Ix], row: Ix) -> Ix:
        """The first element of a row of the result."""
        if self.main.attrs["heads_inside"]:
            n, h = where
            return fn.mul(fn.add(fn.mul(fn.add(fn.mul(n, self.length), row), self.heads), h), self.out_width)
        return fn.mul(self._line(fn, where, row), self.out_width)

    def _line(self, fn: BlockCode, where: tuple[Ix, Ix], row: Ix) -> Ix:
        """The number of a row [B, H, L]."""
        return fn.add(fn.mul(fn.add(fn.mul(where[0], self.heads), where[1]), self.length), row)

    def _describe(self) -> str:
        e = self.engine
        how = type(e).__name__.removesuffix("Engine").lower()
        return "\n".join([
            f"attention {self.batch} x {self.heads} ({self.kv}) heads, {self.length} queries of "
            f"{self.width}, {self.keys} keys, {self.dtype.name}",
            f"  {how}: {e.rows} queries by {e.cols} keys, {e.threads} threads, {self.block.slots} slots, "
            f"{self.slices} slices, {self.parts.count} parts",
        ])  # fmt: skip
