"""One unit of a convolution: the columns of a panel, packed and multiplied by tiles of the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weft.codegen.blocks import Code, Ix
from weft.codegen.epilogue import emit_partial_store, kernel_pointers
from weft.codegen.lanes import load_lanes, store_lanes, tail_mask
from weft.codegen.llvm import mem_type
from weft.codegen.microkernel import outer_kernel, share
from weft.codegen.packing import transpose
from weft.codegen.phases import aligned
from weft.ir.types import DType

if TYPE_CHECKING:
    from weft.codegen.conv_kernel import Conv


class ConvUnit:
    """One panel of columns by some tiles of one group's weights."""

    def __init__(self, c: Conv, fn: Code, group: Ix, split: Ix, panel: Ix) -> None:
        self.c, self.fn, self.group, self.split = c, fn, group, split
        self.tile = c.grid.tile
        self.pointers = kernel_pointers(fn, c.op)
        self.scratch = c.scratch_of(fn)
        self.blocked = c.chunks > c.splits
        tall = c.grid.per_unit[1]
        self.tiles = fn.alloca((tall if self.blocked else 1) * aligned(self.tile.bytes))
        rows = c.per_chunk * c.inner + (c.lanes if c.turned else 1)  # packing writes past the end
        self.panel = fn.alloca(rows * self.tile.row_bytes)
        self.col = fn.min(fn.mul(panel, self.tile.cols), max(0, c.cols - self.tile.cols))
        self.width = min(c.cols, self.tile.cols)
        self.w_base = self._w_base()

    def _w_base(self) -> str:
        c, fn = self.c, self.fn
        base = fn.at(self.scratch, c.w_at) if c.pack_w else c.w.base(fn, self.pointers, 0)
        self.w_row, self.w_k = (c.w_ld, 1) if c.pack_w else (c.w.row_stride or 0, c.w.k_stride or 0)
        return fn.at(base, fn.mul(fn.mul(self.group, c.m), self.w_row * c.acc.itemsize))

    def emit(self, mb: Ix) -> None:
        c, fn = self.c, self.fn
        tall = c.grid.per_unit[1]
        t0 = fn.mul(mb, tall)
        t1 = fn.min(fn.add(t0, tall), c.grid.tiles)
        count = self._offsets() if c.turned else self._segments()
        size = c.acc.itemsize
        fn.declare("declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)")
        if self.width < self.tile.cols and not c.turned:
            self._clear(self.panel, c.per_chunk * c.inner * self.tile.cols * size)
        if self.blocked:
            self._clear(self.tiles, tall * aligned(self.tile.bytes))
        first = fn.div(fn.mul(self.split, c.chunks), c.splits)
        last = fn.div(fn.mul(fn.add(self.split, 1), c.chunks), c.splits)
        with fn.range(first, last, runs=True) as chunk:
            r0 = fn.mul(chunk.i, c.per_chunk)
            r1 = fn.min(fn.add(r0, c.per_chunk), c.outer)
            k0, depth = self._depth(r0, r1)
            self._pack(r0, r1, count)
            with fn.range(t0, t1, runs=True) as t:
                slot = fn.sub(t.i, t0) if self.blocked else 0
                tile = fn.at(self.tiles, fn.mul(slot, aligned(self.tile.bytes)))
                self._multiply(c.grid.row(fn, t.i), k0, depth, tile)
                if not self.blocked:
                    self._finish(tile, c.grid.row(fn, t.i))
        if self.blocked:
            with fn.range(t0, t1, runs=True) as t:
                tile = fn.at(self.tiles, fn.mul(fn.sub(t.i, t0), aligned(self.tile.bytes)))
                self._finish(tile, c.grid.row(fn, t.i))

    def _clear(self, ptr: str, nbytes: int) -> None:
        self.fn.do(f"call void @llvm.memset.p0.i64(ptr align 64 {ptr}, i8 0, i64 {nbytes}, i1 false)")

    def _depth(self, r0: Ix, r1: Ix) -> tuple[Ix, Ix]:
        """First k of outer rows r0..r1, and how many there are."""
        c, fn = self.c, self.fn
        row = c.g.kernel[2]
        if c.pieces == 1:
            return fn.mul(r0, row), fn.mul(fn.sub(r1, r0), row)
        piece = fn.mul(fn.mod(r0, c.pieces), c.inner)
        start = fn.add(fn.mul(fn.div(r0, c.pieces), row), piece)
        return start, fn.min(fn.sub(row, piece), c.inner)

    # packing

    def _segments(self) -> Ix:
        """List the panel's rows of output positions: where each is read and written, how long it is."""
        c, fn, g = self.c, self.fn, self.c.g
        self.src = fn.alloca(8 * self.tile.cols)
        self.pos = fn.alloca(8 * self.tile.cols)
        self.len = fn.alloca(8 * self.tile.cols)
        st = c.source.strides
        steps = [st[0], *(s * d for s, d in zip(g.stride, st[2:], strict=True))]
        with fn.repeat([("i64", "0"), ("i64", "0")]) as turn:
            at, count = turn.vars
            where = fn.split(fn.add(self.col, at), (g.samples, *g.out))
            length = fn.min(fn.sub(g.out[2], where[3]), fn.sub(self.width, at))
            for base, value in ((self.src, fn.dot(where, steps)), (self.pos, at), (self.len, length)):
                fn.store("i64", str(value), fn.at(base, count, "i64"), 8)
            turn.next = [str(fn.add(at, length)), str(fn.add(count, 1))]
            turn.stop = fn.op(f"icmp sge i64 {turn.next[0]}, {self.width}")
        return turn.out[1]

    def _offsets(self) -> Ix:
        """List where each of the panel's columns begins in the source; padding repeats the last one."""
        c, fn, g = self.c, self.fn, self.c.g
        self.src = fn.alloca(8 * self.tile.cols)
        st = c.source.strides
        steps = [st[0], *(s * d for s, d in zip(g.stride, st[2:], strict=True))]
        with fn.range(0, self.tile.cols) as j:
            where = fn.split(fn.add(self.col, fn.min(j.i, self.width - 1)), (g.samples, *g.out))
            fn.store("i64", str(fn.dot(where, steps)), fn.at(self.src, j.i, "i64"), 8)
        return self.tile.cols // c.lanes

    def _pack(self, r0: Ix, r1: Ix, count: Ix) -> None:
        """Write the panel's columns for outer rows r0..r1, one k (or vector of k) after the other."""
        c, fn, g = self.c, self.fn, self.c.g
        st, size = c.source.strides, c.acc.itemsize
        channel0 = fn.mul(self.group, g.channels // g.groups)
        dims = (g.channels // g.groups, g.kernel[0], g.kernel[1], c.pieces)
        base = fn.at(self.scratch, c.x_at) if c.copy_x else c.x.base(fn, self.pointers, 0)
        with fn.range(r0, r1, runs=True) as r:
            ch, i, j, piece = fn.split(r.i, dims)
            where = [fn.add(channel0, ch), i, j, fn.mul(piece, c.inner)]
            offset = fn.dot(where, [st[1], g.step[0] * st[2], g.step[1] * st[3], g.step[2] * st[4]])
            inner = c.inner
            if c.pieces > 1:
                inner = fn.min(fn.sub(g.kernel[2], where[3]), c.inner)
            row = fn.mul(fn.sub(r.i, r0), c.inner * self.tile.row_bytes)
            with fn.range(0, inner, c.lanes if c.turned else 1, runs=True) as q:
                src = fn.at(base, fn.mul(fn.add(offset, fn.mul(q.i, g.step[2] * st[4])), size))
                dst = fn.at(self.panel, fn.add(row, fn.mul(q.i, self.tile.row_bytes)))
                with fn.range(0, count, runs=True) as s:
                    if c.turned:
                        self._turn_block(s.i, src, dst)
                    else:
                        self._copy_segment(s.i, src, dst)

    def _turn_block(self, s: Ix, src: str, dst: str) -> None:
        """Read vectors along k of the columns of block ``s`` and write them transposed."""
        c, fn = self.c, self.fn
        name = turn_function(fn, c.acc, c.lanes, c.g.step[2])
        offsets = fn.at(self.src, fn.mul(s, c.lanes), "i64")
        to = fn.at(dst, fn.mul(s, c.lanes * c.acc.itemsize))
        fn.do(f"call void @{name}(ptr {src}, ptr {offsets}, ptr {to}, i64 {self.tile.row_bytes})")

    def _copy_segment(self, s: Ix, src: str, dst: str) -> None:
        c, fn = self.c, self.fn
        lanes, size, elem = c.lanes, c.acc.itemsize, mem_type(c.acc)
        stride = c.g.stride[2]
        start, pos = (fn.load("i64", fn.at(p, s, "i64"), 8) for p in (self.src, self.pos))
        src, dst = fn.at(src, start, elem), fn.at(dst, pos, elem)
        short = c.source.slack and c.g.out[2] <= lanes  # one vector does, however much of it counts
        length: Ix = lanes if short else fn.load("i64", fn.at(self.len, s, "i64"), 8)
        # what is stored past the end of a segment is overwritten by the next, or by the next k
        with fn.range(0, length, lanes, runs=True) as v:
            mask = None if c.source.slack else tail_mask(fn, fn.sub(length, v.i), lanes)
            x = _strided(fn, fn.at(src, fn.mul(v.i, stride * size)), c.acc, lanes, stride, mask)
            store_lanes(fn, x, fn.at(dst, v.i, elem), c.acc, lanes)

    # multiplying

    def _multiply(self, row: Ix, k0: Ix, depth: Ix, tile: str) -> None:
        fn, size = self.fn, self.c.acc.itemsize
        index = fn.add(fn.mul(row, self.w_row), fn.mul(k0, self.w_k))
        a = fn.at(self.w_base, fn.mul(index, size))
        step = "k" if self.w_k == 1 else "m" if self.w_row == 1 else "any"
        name = outer_kernel(fn, self.tile, step=step, accumulate=self.blocked)
        fn.do(
            f"call void @{name}(ptr {a}, i64 {self.w_row * size}, i64 {self.w_k * size}, ptr {self.panel}, "
            f"i64 {self.tile.row_bytes}, i64 {depth}, ptr {tile}, i64 0)"
        )

    def _finish(self, tile: str, row: Ix) -> None:
        """Hand the tile over, one sample's columns at a time."""
        c, fn, size = self.c, self.fn, self.c.acc.itemsize
        out_row = fn.add(fn.mul(self.group, c.m), row)
        with fn.repeat([("i64", "0")]) as turn:
            at = turn.vars[0]
            sample, p = fn.split(fn.add(self.col, at), (c.g.samples, c.plane))
            length = fn.min(fn.sub(c.plane, p), fn.sub(self.width, at))
            part = fn.at(tile, fn.mul(at, size))
            if not c.partial:
                fn.do(
                    f"call void @{c.epilogue.symbol}(ptr %bufs, ptr {part}, i64 {self.tile.row_bytes}, "
                    f"i64 {sample}, i64 {out_row}, i64 {self.tile.rows}, i64 {p}, i64 {length})"
                )
            else:
                self._store_partial(part, sample, out_row, p, length)
            turn.next = [str(fn.add(at, length))]
            turn.stop = fn.op(f"icmp sge i64 {turn.next[0]}, {self.width}")

    def _store_partial(self, part: str, sample: Ix, row: Ix, p: Ix, length: Ix) -> None:
        c, fn, size = self.c, self.fn, self.c.acc.itemsize
        index = fn.add(fn.mul(fn.add(fn.mul(sample, c.g.outputs), row), c.plane), p)
        at = fn.add(c.partial_at, fn.add(fn.mul(self.split, c.partial_bytes), fn.mul(index, size)))
        emit_partial_store(fn, part, self.tile, fn.at(self.scratch, at), c.plane, length)


def _strided(fn: Code, src: str, dtype: DType, lanes: int, stride: int, mask: str | None) -> str:
    """Every ``stride``-th element from ``src`` on."""
    t = mem_type(dtype)
    if stride == 1:
        return load_lanes(fn, src, dtype, lanes, mask)
    wide = f"<{lanes * stride} x {t}>"
    x = fn.load(wide, src, dtype.itemsize)
    pick = ", ".join(f"i32 {i * stride}" for i in range(lanes))
    return fn.op(f"shufflevector {wide} {x}, {wide} poison, <{lanes} x i32> <{pick}>")


def turn_function(fn: Code, dtype: DType, lanes: int, stride: int) -> str:
    """Declare in ``fn`` and name the function that transposes vectors gathered from several places.

    Its arguments: source, offsets of ``lanes`` columns (in elements), target, bytes between its rows.
    Elements of a column lie ``stride`` apart; everything it touches must be readable and writable.
    """
    params = "ptr noalias %src, ptr noalias %offsets, ptr noalias %dst, i64 %ld"
    k = Code(f"weft_turn_{dtype.name}_{lanes}_{stride}", params, linkage="internal")
    rows = []
    for j in range(lanes):
        offset = k.load("i64", k.at("%offsets", j, "i64"), 8)
        rows.append(_strided(k, k.at("%src", offset, mem_type(dtype)), dtype, lanes, stride, None))
    for i, x in enumerate(transpose(k, rows, dtype, lanes)):
        store_lanes(k, x, k.at("%dst", k.mul(i, "%ld")), dtype, lanes)
    return share(fn, k)
