"""One unit of a direct convolution: some tiles of output positions by some blocks of output channels."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from weft.codegen.blocks import Code, Ix
from weft.codegen.epilogue import kernel_pointers
from weft.codegen.lanes import load_lanes, store_lanes, tail_mask
from weft.codegen.llvm import reg_type
from weft.codegen.microkernel import Tile, multiply_add, share
from weft.codegen.packing import transpose_function
from weft.codegen.phases import aligned

if TYPE_CHECKING:
    from weft.codegen.conv_direct import Direct, PixelClass
    from weft.codegen.conv_plan import DirectCut

_SCATTERED_ROWS = 64
_BLOCK = 64  # bytes of frozen weights that lie side by side
_WRITTEN_OUT = 27  # taps
_STRAIGHT = 144  # products of a tap up to which they are written without a loop


class DirectUnit:
    """The code of a unit: a table of addresses, then for each block of channels all tiles, k by chunks."""

    def __init__(self, d: Direct, fn: Code, c: PixelClass, b: DirectCut, sample: Ix) -> None:
        self.d, self.fn, self.c, self.b, self.sample = d, fn, c, b, sample
        self.tile, self.size = d.tile, d.acc.itemsize
        self.scratch = d.scratch_of(fn)
        self.single = b.taps >= c.taps and b.depth >= d.depth
        # tiles leave at once where their rows are rows of the result
        self.at_once = self.single and d.turn is not None and c.taps > 0
        self.sums = fn.alloca((1 if self.at_once else b.tiles) * d.tile.bytes)
        self.table = fn.alloca(8 * max(1, b.tiles * c.taps * d.tile.rows))
        self.offsets = fn.alloca(8 * max(1, c.taps))

    def emit(self, block: Ix, part: Ix) -> None:
        fn, d, c, b = self.fn, self.d, self.c, self.b
        tiles = -(-c.pixels // self.tile.rows)
        self.first = fn.mul(part, b.tiles)
        count = fn.min(b.tiles, fn.sub(tiles, self.first))
        self.pixel = fn.mul(self.first, self.tile.rows)
        self.pixels = fn.min(fn.mul(count, self.tile.rows), fn.sub(c.pixels, self.pixel))
        if c.taps:
            self._list_taps()
            self._list_pixels(count)
        begin = fn.mul(block, b.blocks)
        with fn.range(begin, fn.min(fn.add(begin, b.blocks), d.g.groups * d.blocks), runs=True) as v:
            self.group, block = fn.div(v.i, d.blocks), fn.mod(v.i, d.blocks)
            if not c.taps:
                self._clear()
            else:
                self._multiply(block, count)
            if not self.at_once:
                self._finish(block)

    # tables

    def _list_taps(self) -> None:
        """Where the weights of each tap begin in a block."""
        fn, d = self.fn, self.d
        a, b, e = self.c.lines
        with fn.range(0, a.taps) as i, fn.range(0, b.taps) as j, fn.range(0, e.taps) as k:
            where = [fn.add(line.tap, fn.mul(t, line.tap_step))
                     for line, t in zip((a, b, e), (i.i, j.i, k.i), strict=True)]  # fmt: skip
            kernel = d.g.kernel
            tap = fn.add(fn.mul(fn.add(fn.mul(where[0], kernel[1]), where[1]), kernel[2]), where[2])
            at = fn.add(fn.mul(fn.add(fn.mul(i.i, b.taps), j.i), e.taps), k.i)
            if d.frozen is not None:
                offset = fn.mul(tap, d.frozen.strides[3] * self.size)
            else:
                offset = fn.mul(tap, d.depth * self.tile.row_bytes)
            fn.store("i64", str(offset), fn.at(self.offsets, at, "i64"), 8)

    def _list_pixels(self, count: Ix) -> None:
        """What each row of each tile reads at each tap; rows past the end read the last pixel."""
        fn, d, c = self.fn, self.d, self.c
        base = d.x_base(fn, self.sample)
        zero = fn.at(self.scratch, d.zero_at)
        rows, taps = self.tile.rows, c.taps
        with fn.range(0, count, runs=True) as t, fn.range(0, rows) as r:
            flat = fn.min(fn.add(self.pixel, fn.add(fn.mul(t.i, rows), r.i)), c.pixels - 1)
            where = fn.split(flat, c.shape)
            table = fn.at(self.table, fn.add(fn.mul(t.i, taps * rows), r.i), "i64")
            self._row(base, zero, where, table)

    def _row(self, base: str, zero: str, where: list[Ix], table: str) -> None:
        fn, strides, size = self.fn, self.d.x_strides[2:], self.size
        lines = self.c.lines

        def reads(dim: int, tap: Ix) -> tuple[Ix, str]:
            line = lines[dim]
            at = fn.add(fn.add(fn.mul(where[dim], line.stride), line.index), fn.mul(tap, line.index_step))
            ok = "" if line.inside else fn.op(f"icmp ult i64 {at}, {line.size}")
            return fn.mul(at, strides[dim] * size), ok

        def store(tap: Ix, parts: list[tuple[Ix, str]]) -> None:
            offset, tests = parts[0][0], [ok for _, ok in parts if ok]
            for more, _ in parts[1:]:
                offset = fn.add(offset, more)
            address = fn.at(base, offset)
            if tests:
                ok = tests[0]
                for test in tests[1:]:
                    ok = fn.op(f"and i1 {ok}, {test}")
                address = fn.op(f"select i1 {ok}, ptr {address}, ptr {zero}")
            fn.store("ptr", address, fn.at(table, fn.mul(tap, self.tile.rows), "i64"), 8)

        counts = [line.taps for line in lines]
        if self.c.taps <= _WRITTEN_OUT:
            known = [[reads(d, t) for t in range(n)] for d, n in enumerate(counts)]
            for tap, parts in enumerate(itertools.product(*known)):
                store(tap, list(parts))
            return
        with fn.range(0, counts[0]) as i, fn.range(0, counts[1]) as j:
            outer = [reads(0, i.i), reads(1, j.i)]
            tap = fn.mul(fn.add(fn.mul(i.i, counts[1]), j.i), counts[2])
            with fn.range(0, counts[2]) as k:
                store(fn.add(tap, k.i), [*outer, reads(2, k.i)])

    # products

    def _clear(self) -> None:
        fn = self.fn
        fn.declare("declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)")
        count = (1 if self.at_once else self.b.tiles) * self.tile.bytes
        fn.do(f"call void @llvm.memset.p0.i64(ptr align 64 {self.sums}, i8 0, i64 {count}, i1 false)")

    def _multiply(self, block: Ix, count: Ix) -> None:
        """All chunks of k of one block of channels."""
        fn, d, c, b, tile = self.fn, self.d, self.c, self.b, self.tile
        weights, step = self._weights(block)
        if not self.single:
            self._clear()
        channel = fn.mul(block, tile.cols) if d.depthwise else fn.mul(self.group, d.depth)
        with fn.range(0, c.taps, b.taps, runs=True) as t0, fn.range(0, d.depth, b.depth, runs=True) as c0:
            taps = fn.min(b.taps, fn.sub(c.taps, t0.i))
            depth = fn.min(b.depth, fn.sub(d.depth, c0.i))
            first = fn.at(weights, fn.mul(c0.i, step))
            with fn.range(0, count, runs=True) as t:
                sums = self.sums if self.at_once else fn.at(self.sums, fn.mul(t.i, tile.bytes))
                at = fn.mul(fn.add(fn.mul(t.i, c.taps), t0.i), tile.rows)
                where = fn.at(self.table, at, "i64")
                self._call(where, t0.i, taps, fn.add(channel, c0.i), first, depth, sums)
                if self.at_once:
                    row = fn.mul(t.i, tile.rows)
                    self._rows(block, sums, row, fn.min(tile.rows, fn.sub(self.pixels, row)))

    def _weights(self, block: Ix) -> tuple[str, int]:
        """Where the weights of a block of channels of the group begin; bytes between input channels."""
        fn, d = self.fn, self.d
        if d.frozen is None:
            where = fn.dot((self.group, block), (d.blocks, 1))
            at = fn.mul(where, d.taps * d.depth * self.tile.row_bytes)
            return fn.at(self.scratch, fn.add(d.w_at, at)), self.tile.row_bytes
        lanes = _BLOCK // self.size
        channel = fn.add(fn.mul(self.group, d.m), fn.mul(block, self.tile.cols))
        index = fn.add(fn.mul(fn.div(channel, lanes), d.frozen.strides[0]), d.frozen.offset)
        pointer = kernel_pointers(fn, d.op)[d.frozen.param]
        return fn.at(pointer, fn.mul(index, self.size)), _BLOCK

    def _call(self, table: str, t0: Ix, taps: Ix, c0: Ix, weights: str, depth: Ix, sums: str) -> None:
        fn, d, size = self.fn, self.d, self.size
        step = d.x_strides[1]
        if d.depthwise:
            name = depthwise_kernel(fn, self.tile)
            offsets, first = fn.at(self.offsets, t0, "i64"), fn.mul(c0, size)
            fn.do(f"call void @{name}(ptr {table}, ptr {offsets}, i64 {taps}, i64 {first}, ptr {weights}, "
                  f"ptr {sums})")  # fmt: skip
            return
        short = isinstance(depth, int) and depth * self.tile.rows * self.tile.vectors <= _STRAIGHT
        name = indirect_kernel(fn, self.tile, unit=step == 1 or d.g.channels == 1,
                               accumulate=not self.single, depth=d.depth if short else 0,
                               blocks=d.frozen is not None)  # fmt: skip
        apart = d.frozen.strides[0] * size if d.frozen is not None else 0
        offsets, first = fn.at(self.offsets, t0, "i64"), fn.mul(c0, step * size)
        fn.do(f"call void @{name}(ptr {table}, ptr {offsets}, i64 {taps}, i64 {first}, i64 {step * size}, "
              f"ptr {weights}, i64 {apart}, i64 {depth}, ptr {sums})")  # fmt: skip

    # results

    def _rows(self, block: Ix, sums: str, row: Ix, count: Ix) -> None:
        """Hand ``count`` rows of sums, from row number ``row`` of the unit on, to a channels-last result."""
        fn, d, c = self.fn, self.d, self.c
        channel = fn.mul(block, self.tile.cols)
        width = fn.min(self.tile.cols, fn.sub(d.m, channel))
        col, first = fn.add(fn.mul(self.group, d.m), channel), fn.add(self.pixel, row)

        def hand(at: str, pixel: Ix, rows: Ix) -> None:
            fn.do(f"call void @{d.epilogue.symbol}(ptr %bufs, ptr {at}, i64 {self.tile.row_bytes}, "
                  f"i64 {self.sample}, i64 {pixel}, i64 {rows}, i64 {col}, i64 {width})")  # fmt: skip

        if c.whole:
            hand(sums, first, count)
            return
        with fn.range(0, count) as r:
            hand(fn.at(sums, fn.mul(r.i, self.tile.row_bytes)), self._output(fn.add(first, r.i)), 1)

    def _output(self, pixel: Ix) -> Ix:
        """The flat output position of a pixel of the class."""
        fn, out = self.fn, self.d.g.out
        where = fn.split(pixel, self.c.shape)
        at = [fn.add(line.first, fn.mul(q, line.gap)) for line, q in zip(self.c.lines, where, strict=True)]
        return fn.add(fn.mul(fn.add(fn.mul(at[0], out[1]), at[1]), out[2]), at[2])

    def _finish(self, block: Ix) -> None:
        """Hand over the sums of all tiles of the unit."""
        d = self.d
        if d.turn is not None:
            self._rows(block, self.sums, 0, self.pixels)
        elif d.scattered:
            self._scatter(block)
        else:
            self._turned(block)

    def _turned(self, block: Ix) -> None:
        """Transpose the sums, so that rows are channels and columns positions."""
        fn, d, tile, lanes = self.fn, self.d, self.tile, self.d.lanes
        ld = aligned(self.b.tiles * tile.rows * self.size) + 64  # not a multiple of large powers of two
        turned = fn.alloca(tile.cols * ld + 64)
        name = transpose_function(fn, d.acc, lanes)
        channel = fn.mul(block, tile.cols)
        width = fn.min(tile.cols, fn.sub(d.m, channel))
        with fn.range(0, self.pixels, lanes, runs=True) as p, fn.range(0, tile.cols, lanes) as c:
            src = fn.at(self.sums, fn.add(fn.mul(p.i, tile.row_bytes), fn.mul(c.i, self.size)))
            dst = fn.at(turned, fn.add(fn.mul(c.i, ld), fn.mul(p.i, self.size)))
            cols = fn.min(lanes, fn.sub(self.pixels, p.i))
            fn.do(f"call void @{name}(ptr {src}, i64 {tile.row_bytes}, ptr {dst}, i64 {ld}, i64 {lanes}, "
                  f"i64 {cols}, i64 {lanes})")  # fmt: skip
        row = fn.add(fn.mul(self.group, d.m), channel)
        fn.do(f"call void @{d.epilogue.symbol}(ptr %bufs, ptr {turned}, i64 {ld}, i64 {self.sample}, "
              f"i64 {row}, i64 {width}, i64 {self.pixel}, i64 {self.pixels})")  # fmt: skip

    def _scatter(self, block: Ix) -> None:
        """Store rows of sums where they belong in a channels-last array of all sums."""
        fn, d, tile, lanes, size = self.fn, self.d, self.tile, self.d.lanes, self.size
        channel = fn.mul(block, tile.cols)
        width = fn.min(tile.cols, fn.sub(d.m, channel))
        col = fn.add(fn.mul(self.group, d.m), channel)
        with fn.range(0, self.pixels, runs=True) as r:
            pixel = fn.add(fn.mul(self.sample, d.plane), self._output(fn.add(self.pixel, r.i)))
            at = fn.mul(fn.add(fn.mul(pixel, d.g.outputs), col), size)
            dst = fn.at(self.scratch, fn.add(d.sums_at, at))
            with fn.range(0, width, lanes, runs=True) as v:
                x = load_lanes(fn, fn.at(self.sums, fn.add(fn.mul(r.i, tile.row_bytes), fn.mul(v.i, size))),
                               d.acc, lanes)  # fmt: skip
                mask = tail_mask(fn, fn.sub(width, v.i), lanes) if d.m % lanes else None
                store_lanes(fn, x, fn.at(dst, fn.mul(v.i, size)), d.acc, lanes, mask)


def emit_scattered(d: Direct) -> tuple[str, int]:
    """Transpose some positions of a vector's width of channels from the sums into the epilogue."""
    fn = d.start(f"{d.prefix}_combine_unit")
    lanes, size, height = d.lanes, d.acc.itemsize, _SCATTERED_ROWS
    counts = (d.g.samples, -(-d.g.outputs // lanes), -(-d.plane // height))
    sample, vector, part = fn.split("%u", counts)
    row, first = fn.mul(vector, lanes), fn.mul(part, height)
    rows, count = fn.min(lanes, fn.sub(d.g.outputs, row)), fn.min(height, fn.sub(d.plane, first))
    ld = height * size + 64
    turned = fn.alloca(lanes * ld + 64)
    pixel = fn.add(fn.mul(sample, d.plane), first)
    at = fn.mul(fn.add(fn.mul(pixel, d.g.outputs), row), size)
    sums = fn.at(d.scratch_of(fn), fn.add(d.sums_at, at))
    name, step = transpose_function(fn, d.acc, lanes), d.g.outputs * size
    with fn.range(0, count, lanes, runs=True) as p:
        cols = fn.min(lanes, fn.sub(count, p.i))
        src, dst = fn.at(sums, fn.mul(p.i, step)), fn.at(turned, fn.mul(p.i, size))
        fn.do(f"call void @{name}(ptr {src}, i64 {step}, ptr {dst}, i64 {ld}, i64 {rows}, i64 {cols}, "
              f"i64 {lanes})")  # fmt: skip
    fn.do(f"call void @{d.epilogue.symbol}(ptr %bufs, ptr {turned}, i64 {ld}, i64 {sample}, i64 {row}, "
          f"i64 {rows}, i64 {first}, i64 {count})")  # fmt: skip
    d.keep(fn)
    return fn.symbol, counts[0] * counts[1] * counts[2]


def depthwise_kernel(fn: Code, tile: Tile) -> str:
    """Declare in ``fn`` and name the kernel that multiplies each channel of listed pixels by its own weight.

    Its arguments: the table (for each tap the addresses of the tile's rows), the byte offsets of the taps'
    weights, taps, byte offset of the first channel, weights, sums.
    """
    name = f"weft_depthwise_{tile.dtype.name}_{tile.rows}x{tile.vectors}x{tile.lanes}"
    params = ("ptr noalias %table, ptr noalias %offsets, i64 %taps, i64 %first, ptr noalias %b, "
              "ptr noalias %t")  # fmt: skip
    k = Code(name, params, linkage="internal")
    t, dtype, lanes = reg_type(tile.dtype, tile.lanes), tile.dtype, tile.lanes
    count = tile.rows * tile.vectors
    with k.range(0, "%taps", 1, [(t, "zeroinitializer")] * count, runs=True) as tap:
        line = k.at("%table", k.mul(tap.i, tile.rows), "ptr")
        start = k.at("%b", k.load("i64", k.at("%offsets", tap.i, "i64"), 8))
        ws = [load_lanes(k, k.at(start, v, t), dtype, lanes) for v in range(tile.vectors)]
        for r in range(tile.rows):
            at = k.at(k.load("ptr", k.at(line, r, "ptr"), 8), "%first")
            for v in range(tile.vectors):
                x, i = load_lanes(k, k.at(at, v, t), dtype, lanes), r * tile.vectors + v
                tap.next[i] = multiply_add(k, dtype, lanes, x, ws[v], tap.vars[i])
    for i in range(count):
        k.store(t, tap.out[i], k.at("%t", i, t), dtype.itemsize)
    return share(fn, k)


def indirect_kernel(
    fn: Code, tile: Tile, *, unit: bool, accumulate: bool, depth: int = 0, blocks: bool = False
) -> str:
    """Declare in ``fn`` and name the kernel that broadcasts from listed addresses and reads rows of weights.

    Its arguments: the table (for each tap the addresses of the tile's rows), the byte offsets of the taps'
    weights, taps, byte offset of the first k, bytes between k (one element if ``unit``), weights, bytes
    between their blocks, k, sums. With ``blocks`` weights of neighbouring channels lie by cache lines in
    blocks of their own; else those of the whole tile are neighbours. ``depth`` is k where that is known and
    small: its products are then written out.
    """
    name = (f"weft_indirect_{tile.dtype.name}_{tile.rows}x{tile.vectors}x{tile.lanes}_{depth or 'k'}"
            f"{'_unit' * unit}{'_acc' * accumulate}{'_blocks' * blocks}")  # fmt: skip
    params = ("ptr noalias %table, ptr noalias %offsets, i64 %taps, i64 %first, i64 %step, ptr noalias %b, "
              "i64 %apart, i64 %k, ptr noalias %t")  # fmt: skip
    k = Code(name, params, linkage="internal")
    t, elem, size = reg_type(tile.dtype, tile.lanes), reg_type(tile.dtype), tile.dtype.itemsize
    step, per_block = (_BLOCK, _BLOCK // size) if blocks else (tile.row_bytes, tile.cols)
    starts = [k.add(k.mul("%apart", v * tile.lanes // per_block), v * tile.lanes % per_block * size)
              for v in range(tile.vectors)]  # fmt: skip

    def products(bp: str, at: list[str], sums: list[str]) -> list[str]:
        """The sums after one k: a row of weights times a broadcast element for each row."""
        out = list(sums)
        ws = [load_lanes(k, k.at(bp, at_v), tile.dtype, tile.lanes) for at_v in starts]
        for r in range(tile.rows):
            x = k.splat(elem, k.load(elem, at[r], size), tile.lanes)
            for v in range(tile.vectors):
                i = r * tile.vectors + v
                out[i] = multiply_add(k, tile.dtype, tile.lanes, x, ws[v], out[i])
        return out

    count = tile.rows * tile.vectors
    begin = [(t, load_lanes(k, k.at("%t", i, t), tile.dtype, tile.lanes) if accumulate else "zeroinitializer")
             for i in range(count)]  # fmt: skip
    with k.range(0, "%taps", 1, begin, runs=True) as tap:
        line = k.at("%table", k.mul(tap.i, tile.rows), "ptr")
        rows = [k.at(k.load("ptr", k.at(line, r, "ptr"), 8), "%first") for r in range(tile.rows)]
        start = k.at("%b", k.load("i64", k.at("%offsets", tap.i, "i64"), 8))
        if depth:
            sums = tap.vars
            for i in range(depth):
                at = [k.at(p, i, elem) if unit else k.at(p, k.mul("%step", i)) for p in rows]
                sums = products(k.at(start, i * step), at, sums)
            tap.next[:] = sums
        else:
            carried = [("ptr", start), ("i64", "0"), *((t, v) for v in tap.vars)]
            with k.range(0, "%k", 1, carried, runs=True) as turn:
                bp, offset = turn.vars[:2]
                at = [k.at(p, turn.i, elem) if unit else k.at(p, offset) for p in rows]
                turn.next[2:] = products(bp, at, turn.vars[2:])
                turn.next[0] = k.at(bp, step)
                turn.next[1] = offset if unit else str(k.add(offset, "%step"))
            tap.next[:] = turn.out[2:]
    for i in range(count):
        k.store(t, tap.out[i], k.at("%t", i, t), size)
    return share(fn, k)
