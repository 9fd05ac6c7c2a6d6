"""Attention of few queries to many keys: the keys in parts, each a block's, put together by a second launch.

A part leaves its sums, and of every row its largest score and its total. The sums of all parts, relative to
the largest score of all, are added in a fixed order.

Source: "Flash-Decoding", 2023.
"""

from __future__ import annotations

from collections.abc import Callable

from weft.codegen.blocks import Ix
from weft.codegen.emit import Reg
from weft.codegen.gpu.attention_engine import AnyEngine
from weft.codegen.gpu.attention_scores import Scores
from weft.codegen.gpu.contract_code import BlockCode
from weft.codegen.gpu.contract_region import load_aligned, store_aligned
from weft.codegen.gpu.target import GpuTarget

_TILES = 4  # of keys in a part at least
_MOST = 32  # parts, which one thread adds up
_PER_SM = 2  # blocks that a multiprocessor is taken to run at once
_THREADS = 128
Exponential = Callable[[BlockCode, Reg], Reg]


def parts_of(blocks: int, tiles: int, target: GpuTarget) -> int:
    """Into how many parts the keys are cut: where the blocks leave half the machine idle, as fill it."""
    most = min(target.multiprocessors * _PER_SM // blocks, tiles // _TILES, _MOST)
    if most < 2:
        return 1
    per_part = -(-tiles // most)
    return -(-tiles // per_part)


class Parts:
    """Where the parts of an attention lie in scratch memory, in elements of the accumulator."""

    def __init__(self, scores: Scores, count: int, tiles: int) -> None:
        self.scores, self.count, self.tiles = scores, count, -(-tiles // count)
        self.rows = scores.batch * scores.heads * scores.length
        size = scores.acc.itemsize
        self.sums_at, self.tops_at, self.totals_at = (
            scores.kernel.reserve(count * self.rows * n * size) // size if count > 1 else 0
            for n in (scores.out_width, 1, 1)
        )

    @property
    def base(self) -> str:
        return self.scores.kernel.scratch

    def row(self, fn: BlockCode, part: Ix, line: Ix) -> Ix:
        """The number of a row of a part."""
        return fn.add(fn.mul(part, self.rows), line)

    def store(
        self, fn: BlockCode, engine: AnyEngine, line: Callable[[Ix], Ix], row0: Ix, column: Ix,
        numbers: tuple[list[str], list[Reg], list[str]],
    ) -> None:  # fmt: skip
        """What a block leaves: of its rows the largest scores, totals and sums; ``line`` numbers rows."""
        s = self.scores
        tops, totals, sums = numbers
        ones = [s.builder(fn).const(1.0, s.acc)] * len(tops)

        def at(row: Ix) -> Ix:
            return fn.add(self.sums_at, fn.mul(line(row), s.out_width))

        s.store_sums(fn, engine, self.base, s.acc, s.out_width, at, row0, s.length, column, sums, ones)
        first = s.first_thread(fn, engine, column)
        for r, offset in enumerate(engine.thread_rows):
            row = fn.add(row0, fn.index(offset))
            with fn.only(fn.both(first, fn.below(row, s.length))):
                for value, start in ((tops[r], self.tops_at), (totals[r].text, self.totals_at)):
                    store_aligned(fn, value, self.base, fn.add(start, line(row)), s.acc, 0)

    def combine(
        self, exponential: Exponential, finish: Callable[[BlockCode, Ix, Ix, str, str, str], None]
    ) -> None:
        """Emit the second launch: ``finish(fn, row, column, largest score, total, sum)`` for each element."""
        s = self.scores
        fn = s.kernel.start("combine", _THREADS)
        c = fn.add(fn.mul(fn.block_index("x"), _THREADS), fn.index(fn.thread))
        count = self.rows * s.out_width
        with fn.only(fn.below(c, count)):
            line, col = fn.div(c, s.out_width), fn.mod(c, s.out_width)
            b = s.builder(fn)
            tops = [self._load(fn, self.tops_at, self.row(fn, p, line)) for p in range(self.count)]
            top = tops[0]
            for x in tops[1:]:
                top = b.binary("fmax", top, x)
            none = b.compare("eq", top, b.const(float("-inf"), s.acc))
            base = b.select(none, b.const(0.0, s.acc), top)
            total = out = b.const(0.0, s.acc)
            for p in range(self.count):
                row = self.row(fn, p, line)
                factor = exponential(fn, b.binary("sub", tops[p], base))
                total = b.fma(self._load(fn, self.totals_at, row), factor, total)
                here = fn.add(fn.mul(row, s.out_width), col)
                out = b.fma(self._load(fn, self.sums_at, here), factor, out)
            finish(fn, line, col, top.text, total.text, out.text)
        s.kernel.keep(fn, -(-count // _THREADS))

    def _load(self, fn: BlockCode, start: int, index: Ix) -> Reg:
        s = self.scores
        return s.builder(fn).reg(load_aligned(fn, self.base, fn.add(start, index), s.acc, 0), s.acc)
