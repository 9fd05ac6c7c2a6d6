"""The gradient of pooling by small windows: each element takes what the windows over it hold.

A unit owns some *blocks* of elements, ``stride`` in each pooled dimension, in which one window begins. First
it finds, for all windows that meet them, the tap that has the maximum, and keeps that beside the window's
number; windows that meet blocks of two units are computed by both. Then each block adds up the numbers of the
windows over it that chose its elements, and stores every element once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod

from weft.codegen.blocks import Ix, iota
from weft.codegen.emit import Reg
from weft.codegen.lanes import load_lanes, store_lanes
from weft.codegen.llvm import reg_type
from weft.codegen.window_scatter_kernel import Scatter
from weft.codegen.windows import WRITTEN_OUT, Axis, spread
from weft.ir.access import row_major
from weft.ir.types import i32

_KEPT_BYTES = 64 << 10  # of choices and numbers: a fraction of a second-level cache


def over(axis: Axis) -> int:
    """Windows that begin in earlier blocks and reach a block."""
    return axis.reach // axis.stride


def first_block(axis: Axis) -> int:
    """The block of element 0."""
    return axis.lo // axis.stride


def blocks_of(axis: Axis) -> int:
    """Blocks from that to the last element's."""
    return (axis.size - 1 + axis.lo) // axis.stride - first_block(axis) + 1


class Gather(Scatter):
    @classmethod
    def suits(cls, axes: Sequence[Axis], lanes: int) -> bool:
        """True where all taps of a window and all elements of a block can be written out."""
        line = axes[-1]
        met = over(line) >= first_block(line) and line.out <= first_block(line) + blocks_of(line)
        few = max(prod(a.taps for a in axes), prod(a.stride for a in axes)) <= WRITTEN_OUT
        return lanes > 0 and met and few

    def _bands(self) -> None:
        """Blocks of a unit, and columns of it where lines are not pooled themselves."""
        line, each = self.line, 4 + self.acc.itemsize
        vectors = -(-blocks_of(line) // self.lanes)
        self.cols = (vectors + 1) * self.lanes + over(line)
        self.chunk = 0
        self.extents = [blocks_of(axis) + over(axis) for axis in self.axes[1:-1]]
        band, middle = self.axes[0], prod(self.extents) * each
        least = (over(band) + 2) * middle
        if line.plain and least * self.cols > _KEPT_BYTES:
            self.cols = self.chunk = max(1, _KEPT_BYTES // (least * self.lanes)) * self.lanes
        room = _KEPT_BYTES // (middle * self.cols) - over(band)
        self.band = min(blocks_of(band), max(1, room))
        self.bands = -(-blocks_of(band) // self.band)
        self.chunks = -(-line.out // self.chunk) if self.chunk else 1
        self.kept = (self.band + over(band)) * prod(self.extents) * self.cols
        self.nbytes = self.kept * self.acc.itemsize

    def _run(self, band: Ix) -> None:
        fn = self.fn
        self.numbers, self.choices = self.buffer, fn.alloca(self.kept * 4)
        self.begin = fn.add(fn.mul(band, self.band), first_block(self.axes[0]))  # first block of the unit
        self._windows()
        self._elements()

    # windows

    def _windows(self) -> None:
        fn, band = self.fn, self.axes[0]
        low = fn.max(fn.sub(self.begin, over(band)), 0)
        with fn.range(low, fn.min(fn.add(self.begin, self.band), band.out)) as o, self._between() as middle:
            self._line_of_windows([o.i, *middle])

    @contextmanager
    def _between(self) -> Iterator[list[Ix]]:
        """Windows in the dimensions between, which meet an element."""
        lows = [max(0, first_block(a) - over(a)) for a in self.axes[1:-1]]
        ends = [min(a.out, first_block(a) + blocks_of(a)) for a in self.axes[1:-1]]
        sizes = [e - b for b, e in zip(lows, ends, strict=True)]
        with self.fn.range(0, prod(sizes), runs=True) as turn:
            at = self.fn.split(turn.i, sizes)
            yield [self.fn.add(i, low) for i, low in zip(at, lows, strict=True)]

    def _add(self, where: Sequence[Ix], first: Ix, ct: Reg) -> None:
        """Keep what windows from number ``first`` on of a line choose, and hold."""
        fn, lanes = self.fn, self.lanes
        chosen = self._chosen(where, first)
        at = self._kept_at(where, fn.sub(first, self.column), [0] * len(self.axes), self.begin)
        store_lanes(fn, chosen.text, fn.at(self.choices, at, "i32"), i32, lanes)
        store_lanes(fn, ct.text, fn.at(self.numbers, at, reg_type(self.acc)), self.acc, lanes)

    def _kept_at(self, where: Sequence[Ix], column: Ix, back: Sequence[int], begin: Ix) -> Ix:
        """The index in the kept arrays of the windows so many blocks before those at ``where``."""
        fn, band, line = self.fn, self.axes[0], self.line
        at = fn.sub(fn.add(where[0], over(band) - back[0]), begin)
        for axis, size, w, q in zip(self.axes[1:-1], self.extents, where[1:], back[1:-1], strict=True):
            at = fn.add(fn.mul(at, size), fn.add(w, over(axis) - first_block(axis) - q))
        return fn.add(fn.mul(at, self.cols), fn.add(column, over(line) - first_block(line) - back[-1]))

    # elements

    def _elements(self) -> None:
        """All elements of the unit's blocks."""
        fn, band, line, lanes = self.fn, self.axes[0], self.line, self.lanes
        end = fn.min(fn.add(self.begin, self.band), first_block(band) + blocks_of(band))
        sizes = [blocks_of(a) for a in self.axes[1:-1]]
        count = fn.min(self.chunk, fn.sub(line.out, self.column)) if self.chunk else blocks_of(line)
        with fn.range(self.begin, end) as u, fn.range(0, prod(sizes), runs=True) as m:
            at = zip(fn.split(m.i, sizes), self.axes[1:-1], strict=True)
            where = [u.i, *(fn.add(i, first_block(a)) for i, a in at)]
            with fn.range(0, count, lanes) as v:
                held = self._held(where, fn.add(v.i, first_block(line)))
                for residues in itertools.product(*(range(a.stride) for a in self.axes[:-1])):
                    self._store(where, residues, fn.add(v.i, first_block(line)), held)

    def _held(self, where: Sequence[Ix], column: Ix) -> dict[tuple[int, ...], tuple[Reg, Reg]]:
        """Choices and numbers of the windows over blocks, by how many blocks before they begin."""
        fn, b, lanes, out = self.fn, self.b, self.lanes, {}
        for back in itertools.product(*(range(over(a) + 1) for a in self.axes)):
            at = self._kept_at(where, column, back, self.begin)
            choice = load_lanes(fn, fn.at(self.choices, at, "i32"), i32, lanes)
            number = load_lanes(fn, fn.at(self.numbers, at, reg_type(self.acc)), self.acc, lanes)
            out[back] = b.reg(choice, i32, lanes), b.reg(number, self.acc, lanes)
        return out

    def _store(self, where: Sequence[Ix], residues: Sequence[int], column: Ix,
               held: dict[tuple[int, ...], tuple[Reg, Reg]]) -> None:  # fmt: skip
        """Add up and store one line of elements of blocks, if it exists."""
        fn, line = self.fn, self.line
        elements, test = [], "true"
        for axis, u, r in zip(self.axes[:-1], where, residues, strict=True):
            at = fn.sub(fn.add(fn.mul(u, axis.stride), r), axis.lo)
            elements.append(at)
            if first_block(axis) * axis.stride < axis.lo or (axis.size + axis.lo) % axis.stride:
                test = fn.op(f"and i1 {test}, {fn.op(f'icmp ult i64 {at}, {axis.size}')}")
        members = [self._member((*residues, r), held) for r in range(line.stride)]
        number = fn.dot(elements, row_major([a.size for a in self.axes[:-1]]))
        with fn.when(test):
            self._store_blocks(number, column, members)

    def _member(self, residues: Sequence[int], held: dict[tuple[int, ...], tuple[Reg, Reg]]) -> Reg:
        """The sum of what windows hold that chose the elements of these residues, in their order."""
        b, total = self.b, None
        strides = row_major([a.taps for a in self.axes])
        found = [[t for t in reversed(range(a.taps)) if t * a.step % a.stride == r]
                 for a, r in zip(self.axes, residues, strict=True)]  # fmt: skip
        for taps in itertools.product(*found):  # later taps are those of earlier windows
            back = tuple(t * a.step // a.stride for t, a in zip(taps, self.axes, strict=True))
            choice, number = held[back]
            tap = self.b.const(sum(t * s for t, s in zip(taps, strides, strict=True)), i32)
            got = b.select(b.compare("eq", choice, tap), number, b.const(0, self.acc))
            total = got if total is None else b.binary("add", total, got)
        return total or b.const(0, self.acc)

    def _store_blocks(self, number: Ix, column: Ix, members: Sequence[Reg]) -> None:
        """Store the elements of neighbouring blocks of line ``number``."""
        fn, b, line, lanes, size = self.fn, self.b, self.line, self.lanes, self.dtype.itemsize
        texts = [b.text(m, lanes) for m in members]
        parts = spread(fn, reg_type(self.acc, lanes), lanes, texts)
        start = fn.sub(fn.mul(column, line.stride), line.lo)
        limit = fn.sub(line.size, self.column) if self.chunk else line.size
        for k, part in enumerate(parts):
            at = fn.add(start, k * lanes)
            to = fn.at(self.result, fn.mul(fn.add(fn.add(fn.mul(number, line.size), self.column), at), size))
            y = b.convert(b.reg(part, self.acc, lanes), self.dtype)
            store_lanes(fn, y.text, to, self.dtype, lanes, self._within(at, limit))

    def _within(self, at: Ix, limit: Ix) -> str | None:
        """Which lanes of elements from number ``at`` on lie in the line."""
        fn, line, lanes = self.fn, self.line, self.lanes
        if line.lo % line.stride == 0 and line.lo >= 0 and line.size % (lanes * line.stride) == 0:
            return None
        v = f"<{lanes} x i32>"
        short, most = (fn.op(f"trunc i64 {fn.add(x, 0)} to i32") if not isinstance(x, int) else str(x)
                       for x in (at, limit))  # fmt: skip
        number = fn.op(f"add {v} {fn.splat('i32', short, lanes)}, {iota('i32', lanes)}")
        return fn.op(f"icmp ult {v} {number}, {fn.splat('i32', most, lanes)}")
