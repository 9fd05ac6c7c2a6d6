"""Adding a number for each window to where the window's maximum is: the gradient of pooling.

A unit holds a band of lines of the result in a buffer, with the padding around it, so that nothing is tested
there. It walks over all windows that meet the band, finds the place of each maximum and adds to the buffer;
windows that reach into two bands are computed by both. Windows of one line are computed side by side: what
one tap of them chooses is laid between what other taps choose, and added by whole vectors. Small windows are
better gathered (:mod:`weft.codegen.window_gather_kernel`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod

from weft.codegen.blocks import Ix
from weft.codegen.emit import Reg, VectorBuilder
from weft.codegen.indexing import only_op, operand_pointers
from weft.codegen.kernel import KernelCode, Unsupported
from weft.codegen.lanes import load_lanes, store_lanes, tail_mask
from weft.codegen.llvm import reg_type
from weft.codegen.phases import Writer
from weft.codegen.target import Target
from weft.codegen.windows import Axis, Blocks, Lines, axes_of, beats, extreme, lanes_for, spread
from weft.ir.access import row_major
from weft.ir.graph import Op
from weft.ir.types import bool_, f32, i32

_BUFFER_BYTES = 16 << 10  # of a band: half of a first-level cache
_LARGER_BYTES = 128 << 10  # where that holds too few lines beside those that two bands share
_LINES = 4  # of windows in a band, at least
_MOST_BYTES = 4 << 20  # on the stack
_TAP_OPERATIONS = 8  # to compare one tap, and to add what it gets


class Scatter(Writer):
    """``axes``: one dimension before the first that is pooled, bands of that, those between, and the line."""

    def __init__(self, op: Op, target: Target, prefix: str) -> None:
        super().__init__(op, target, prefix)
        self.main = only_op(self.graph)
        self.dtype = self.main.result.type.dtype
        self.acc = f32 if self.dtype.bits == 16 else self.dtype
        axes = axes_of(self.main)
        pooled = [i for i, axis in enumerate(axes[:-1]) if not axis.plain]
        self.at = pooled[0] if pooled else len(axes) - 1  # the dimension that is cut into bands
        self.heads = prod(axis.out for axis in axes[: self.at])
        whole = Axis(1, 1, 1, 1, 1, 0)
        banded = [axes[self.at], *axes[self.at + 1 :]] if pooled else [whole, axes[-1]]
        self.axes, self.line = banded, banded[-1]
        most = target.lanes(self.acc.bits)
        self.lanes = lanes_for(self.line, most)
        self.full = most
        self._bands()

    def _bands(self) -> None:
        """Lines of a band, and columns of a unit where lines are not pooled themselves."""
        band, line, size = self.axes[0], self.line, self.acc.itemsize
        lanes = max(self.lanes, 1)
        self.before = max(0, line.lo)  # padding in a line of the buffer
        over = line.reach // line.stride  # blocks of a line that a window meets beside its own
        wide = (-(-line.out // lanes) * lanes + over) * line.stride + self.before - line.lo
        self.cols = max(wide, line.size + self.before) + self.full
        self.chunk = 0  # columns of a unit, 0 for all
        self.rest = [self._extent(axis) for axis in self.axes[1:-1]]
        fixed = 2 * band.reach
        least = (fixed + _LINES * band.stride) * prod(self.rest) * size
        if line.plain and self.lanes == self.full and least * self.cols > _BUFFER_BYTES:
            self.cols = self.chunk = max(1, _BUFFER_BYTES // (least * self.lanes)) * self.lanes
        room = _LARGER_BYTES if least * self.cols > _BUFFER_BYTES else _BUFFER_BYTES
        room = room // (self.cols * prod(self.rest) * size) - fixed
        self.band = min(band.size, max(1, room // band.stride) * band.stride)
        self.bands = -(-band.size // self.band)
        self.chunks = -(-line.out // self.chunk) if self.chunk else 1
        self.shape = (self.band + fixed, *self.rest, self.cols)
        self.nbytes = prod(self.shape) * size
        if self.nbytes > _MOST_BYTES:
            raise Unsupported("planes of windows that are too large for the stack")

    def _extent(self, axis: Axis) -> int:
        last = (axis.out - 1) * axis.stride + axis.reach - axis.lo
        return max(axis.size, last + 1) + max(0, axis.lo)

    def emit(self) -> KernelCode:
        fn = self.start(f"{self.prefix}_unit")
        self.fn, self.b = fn, VectorBuilder(fn, self.lanes)
        head, band, chunk = fn.split("%u", (self.heads, self.bands, self.chunks))
        given, x = operand_pointers(fn, self.op)
        size, out = self.dtype.itemsize, prod(axis.out for axis in self.axes)
        inner = prod(axis.size for axis in self.axes) * size
        self.given = fn.at(given, fn.mul(head, out * size))
        self.lines = Lines(fn, self.axes, fn.at(x, fn.mul(head, inner)), self.dtype)
        self.result = fn.at(fn.arg(len(self.op.operands)), fn.mul(head, inner))
        self.buffer = fn.alloca(self.nbytes)
        fn.declare("declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)")
        fn.do(f"call void @llvm.memset.p0.i64(ptr align 64 {self.buffer}, i8 0, i64 {self.nbytes}, i1 false)")
        self.column = fn.mul(chunk, self.chunk)
        self._run(band)
        self.keep(fn)
        units = self.heads * self.bands * self.chunks
        taps = prod(axis.taps for axis in self.axes)
        work = self.heads * out * taps * _TAP_OPERATIONS
        moved = sum(v.type.nbytes for v in (*self.op.operands, *self.op.results))
        cost = max(work / self.target.operations_per_ns(self.acc.bits) * (self.full / max(self.lanes, 1)),
                   moved / self.target.bytes_per_ns(moved))  # fmt: skip
        phase = self.phase("scatter", [(fn.symbol, units)], cost / units)
        return self.code([phase], 0, f"window scatter, {units} units of {self.band} lines, "
                                     f"{self.lanes or 1} windows at once")  # fmt: skip

    def _run(self, band: Ix) -> None:
        """The work of a unit."""
        self.first = self.fn.mul(band, self.band)  # line of the band
        self._windows()
        self._finish()

    # windows

    def _windows(self) -> None:
        """All windows that meet the band."""
        fn, band = self.fn, self.axes[0]
        low = fn.max(fn.sub(fn.add(self.first, band.lo), band.reach), 0)
        begin = fn.div(fn.add(low, band.stride - 1), band.stride)
        end = fn.add(fn.div(fn.max(fn.add(self.first, self.band - 1 + band.lo), 0), band.stride), 1)
        with fn.range(begin, fn.min(end, band.out)) as o, self._between() as middle:
            self._line_of_windows([o.i, *middle])

    def _line_of_windows(self, where: list[Ix]) -> None:
        """The windows of a line, or of the unit's columns of it."""
        fn, line, step = self.fn, self.line, self.lanes or 1
        row = fn.mul(fn.dot(where, row_major([axis.out for axis in self.axes[:-1]])), line.out)
        stop = fn.min(fn.add(self.column, self.chunk), line.out) if self.chunk else line.out
        with fn.range(self.column, stop, step) as v:
            mask = None if line.out % step == 0 else tail_mask(fn, fn.sub(line.out, v.i), self.lanes)
            at = fn.at(self.given, fn.mul(fn.add(row, v.i), self.dtype.itemsize))
            ct = self.b.reg(load_lanes(fn, at, self.dtype, self.lanes, mask), self.dtype, self.lanes)
            self._add(where, v.i, self.b.convert(ct, self.acc))

    @contextmanager
    def _between(self) -> Iterator[list[Ix]]:
        """Positions in the dimensions between the band's and the line."""
        sizes = [axis.out for axis in self.axes[1:-1]]
        with self.fn.range(0, prod(sizes), runs=True) as turn:
            yield self.fn.split(turn.i, sizes)

    def _add(self, where: Sequence[Ix], first: Ix, ct: Reg) -> None:
        """Add what windows from number ``first`` on of a line hold to where their maxima are."""
        if self.lanes:
            self._add_beside(where, first, self._chosen(where, first), ct)
        else:
            self._add_single(where, first, ct)

    def _chosen(self, where: Sequence[Ix], first: Ix) -> Reg:
        """The number of the tap that has each window's maximum, -1 where there is no element."""
        fn, b, line, lanes = self.fn, self.b, self.line, self.lanes
        fill = b.text(b.const(extreme(self.acc, True), self.acc), lanes)
        state = [(reg_type(self.acc, lanes), fill), (f"<{lanes} x i32>", "splat (i32 -1)")]
        strides = row_major([axis.taps for axis in self.axes])

        def step(taps: list[Ix], values: list[str]) -> list[str]:
            address, _, ok = self.lines.at(where, taps)
            blocks = Blocks(fn, line, self.dtype, lanes)
            best, chosen = b.reg(values[0], self.acc, lanes), b.reg(values[1], i32, lanes)
            for tap in range(line.taps):
                x = b.reg(blocks.member(address, first, tap), self.dtype, lanes)
                x, met = b.convert(x, self.acc), self.lines.met(ok, blocks.inside(first, tap), lanes)
                inside = None if met is None else b.reg(met, bool_, lanes)
                better = beats(b, x, best, b.compare("lt", chosen, b.const(0, i32)), inside)
                best = b.select(better, x, best)
                chosen = b.select(better, self._number(fn.dot([*taps, tap], strides)), chosen)
            return [best.text, chosen.text]

        return b.reg(self.lines.walk(state, step)[1], i32, lanes)

    def _number(self, i: Ix) -> Reg:
        if isinstance(i, int):
            return self.b.const(i, i32)
        return self.b.reg(self.fn.op(f"trunc i64 {i} to i32"), i32)

    def _add_beside(self, where: Sequence[Ix], first: Ix, chosen: Reg, ct: Reg) -> None:
        fn, b, line, lanes = self.fn, self.b, self.line, self.lanes
        strides = row_major([axis.taps for axis in self.axes])

        def step(taps: list[Ix], values: list[str]) -> list[str]:
            blocks, groups = Blocks(fn, line, self.dtype, lanes), dict[int, dict[int, Reg]]()
            for tap in range(line.taps):
                number = self._number(fn.dot([*taps, tap], strides))
                got = b.select(b.compare("eq", chosen, number), ct, b.const(0, self.acc))
                begin, r = blocks.place(tap)
                groups.setdefault(begin, {})[r] = got
            for begin, members in groups.items():
                at = fn.mul(fn.sub(first, self.column), line.stride)
                at = fn.add(at, begin + self.before - line.lo)
                self._add_block(self._line_at(where, taps, at), members)
            return values

        self.lines.walk([], step)

    def _add_block(self, at: str, members: dict[int, Reg]) -> None:
        """Add the members of records to a block of the buffer."""
        fn, b, lanes, t = self.fn, self.b, self.lanes, reg_type(self.acc, self.lanes)
        zero = b.const(0, self.acc)
        texts = [b.text(members.get(r, zero), lanes) for r in range(self.line.stride)]
        for k, part in enumerate(spread(fn, t, lanes, texts)):
            place = fn.at(at, k, t)
            before = b.reg(load_lanes(fn, place, self.acc, lanes), self.acc, lanes)
            total = b.binary("add", before, b.reg(part, self.acc, lanes))
            store_lanes(fn, total.text, place, self.acc, lanes)

    def _line_at(self, where: Sequence[Ix], taps: Sequence[Ix], column: Ix) -> str:
        """The address of a column of the line of the buffer that windows at ``where`` meet at ``taps``."""
        fn, band = self.fn, self.axes[0]
        at = fn.sub(fn.add(band.element(fn, where[0], taps[0]), band.reach), self.first)
        for axis, size, position, tap in zip(self.axes[1:-1], self.rest, where[1:], taps[1:], strict=True):
            at = fn.add(fn.mul(at, size), fn.add(axis.element(fn, position, tap), max(0, axis.lo)))
        return fn.at(self.buffer, fn.mul(fn.add(fn.mul(at, self.cols), column), self.acc.itemsize))

    def _add_single(self, where: Sequence[Ix], first: Ix, ct: Reg) -> None:
        """One window: the address of its maximum is carried along."""
        fn, b, line, t = self.fn, self.b, self.line, reg_type(self.acc)
        fill = b.const(extreme(self.acc, True), self.acc)
        counts = [axis.taps for axis in self.axes]
        with fn.range(0, prod(counts), 1, [(t, fill.text), ("ptr", "null")], runs=True) as turn:
            taps = fn.split(turn.i, counts)
            address, _, ok = self.lines.at(where, taps[:-1])
            column = line.element(fn, first, taps[-1])
            if not line.inside:
                test = fn.op(f"icmp ult i64 {column}, {line.size}")
                ok = test if ok is None else fn.op(f"and i1 {ok}, {test}")
                column = fn.min(fn.max(column, 0), line.size - 1)
            got = load_lanes(fn, fn.at(address, fn.mul(column, self.dtype.itemsize)), self.dtype, 0)
            x, best = b.convert(b.reg(got, self.dtype), self.acc), b.reg(turn.vars[0], self.acc)
            none = b.reg(fn.op(f"icmp eq ptr {turn.vars[1]}, null"), bool_)
            better = beats(b, x, best, none, None if ok is None else b.reg(ok, bool_))
            at = self._line_at(where, taps[:-1], fn.add(column, self.before))
            turn.next[0] = b.select(better, x, best).text
            turn.next[1] = fn.op(f"select i1 {better.text}, ptr {at}, ptr {turn.vars[1]}")
        with fn.when(fn.op(f"icmp ne ptr {turn.out[1]}, null")):
            before = fn.load(t, turn.out[1], self.acc.itemsize)
            fn.store(t, fn.op(f"fadd {t} {before}, {ct.text}"), turn.out[1], self.acc.itemsize)

    # results

    def _finish(self) -> None:
        """Store the lines of the band."""
        fn, band, line, full = self.fn, self.axes[0], self.line, self.full
        b, sizes = VectorBuilder(fn, full), [axis.size for axis in self.axes[1:-1]]
        count = fn.min(self.band, fn.sub(band.size, self.first))
        stop = fn.min(self.chunk, fn.sub(line.size, self.column)) if self.chunk else line.size
        with fn.range(0, count) as r, fn.range(0, prod(sizes), runs=True) as m:
            at = fn.add(r.i, band.reach)
            for axis, size, i in zip(self.axes[1:-1], self.rest, fn.split(m.i, sizes), strict=True):
                at = fn.add(fn.mul(at, size), fn.add(i, max(0, axis.lo)))
            number = fn.add(fn.mul(fn.add(self.first, r.i), prod(sizes)), m.i)
            src = fn.at(self.buffer, fn.mul(fn.add(fn.mul(at, self.cols), self.before), self.acc.itemsize))
            to = fn.add(fn.mul(number, line.size), self.column)
            dst = fn.at(self.result, fn.mul(to, self.dtype.itemsize))
            with fn.range(0, stop, full) as v:
                whole = isinstance(stop, int) and stop % full == 0
                mask = None if whole else tail_mask(fn, fn.sub(stop, v.i), full)
                x = load_lanes(fn, fn.at(src, fn.mul(v.i, self.acc.itemsize)), self.acc, full)
                y = b.convert(b.reg(x, self.acc, full), self.dtype)
                store_lanes(fn, y.text, fn.at(dst, fn.mul(v.i, self.dtype.itemsize)), self.dtype, full, mask)
