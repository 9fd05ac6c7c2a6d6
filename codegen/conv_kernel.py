"""Kernels of form ``conv``: an implicit contraction with what fusion put before and after it.

For each group the weights are a matrix of output channels by k (input channel and kernel position), read in
place; its partner holds one column per output position of any sample. No such matrix is ever in memory as a
whole: a unit of work packs the columns of one panel, for some k at a time, from the input (padded and dilated
beforehand where the convolution asks for that), and multiplies them by every tile of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from weft.codegen.blocks import Code, Ix
from weft.codegen.contract_kernel import Grid, contraction_of
from weft.codegen.epilogue import EPILOGUE, Output, emit_epilogue, emit_partial_store, kernel_pointers
from weft.codegen.kernel import KernelCode, Phase, Unsupported
from weft.codegen.lanes import load_lanes, store_lanes, tail_mask
from weft.codegen.llvm import mem_type, reg_type
from weft.codegen.microkernel import Tile, accumulator, outer_kernel, rows_for, widened, widest
from weft.codegen.operands import Matrix, Packer, Packing, element_of, matrix, row_major
from weft.codegen.phases import Partial, Writer, aligned, emit_combine
from weft.codegen.places import Coord, Place, Region
from weft.codegen.target import Target
from weft.ir.graph import Op
from weft.ir.types import f32

Ints = tuple[int, ...]
_GFLOPS = 50.0
_CHUNK = 512  # k packed at a time, about
_UNIT_FLOPS = 1 << 20
_UNITS = 24
_MOST_TILES = 128  # per unit: their sums wait on the stack


def emit(op: Op, target: Target, prefix: str) -> KernelCode:
    """The code of a kernel of form ``conv``."""
    return _Conv(op, target, prefix).emit()


@dataclass(frozen=True)
class Geometry:
    """A convolution in three spatial dimensions (leading ones added).

    ``size`` is the input, ``spread`` the input with dilation and padding, ``out`` the result.
    """

    samples: int
    channels: int
    outputs: int
    groups: int
    size: Ints
    spread: Ints
    kernel: Ints
    out: Ints
    stride: Ints
    lo: Ints
    gap: Ints  # lhs_dilation
    step: Ints  # rhs_dilation

    @property
    def as_is(self) -> bool:
        """True where the input needs neither padding nor dilation."""
        # equal sizes are not enough: padding, dilation and cropping may cancel
        return self.spread == self.size and not any(self.lo) and max(self.gap) == 1


def geometry(conv: Op) -> Geometry:
    """The numbers of a conv op."""
    x, w, a = conv.operands[0].type.shape, conv.operands[1].type.shape, conv.attrs
    lead = 3 - (len(x) - 2)

    def full(values: Ints, fill: int = 1) -> Ints:
        return (fill,) * lead + tuple(values)

    size, kernel, out = full(x[2:]), full(w[2:]), full(conv.result.type.shape[2:])
    padding = ((0, 0),) * lead + tuple(tuple(p) for p in a["padding"])
    gap = full(a["lhs_dilation"])
    spread = tuple((d - 1) * g + 1 + lo + hi for d, g, (lo, hi) in zip(size, gap, padding, strict=True))
    stride, step = full(a["stride"]), full(a["rhs_dilation"])
    return Geometry(x[0], x[1], w[0], a["groups"], size, spread, kernel, out, stride,
                    tuple(lo for lo, _ in padding), gap, step)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """Where patches are read: element strides of sample, channel and the three dimensions, and if one may
    read on.

    ``slack`` means that whole vectors may be read past the end of a row.
    """

    strides: Ints
    slack: bool


class _Conv(Writer):
    def __init__(self, op: Op, target: Target, prefix: str) -> None:
        super().__init__(op, target, prefix)
        self.conv = contraction_of(self.graph)
        self.acc = accumulator(self.conv.result.type.dtype)
        self.lanes = target.lanes(self.acc.bits)
        self.g = geometry(self.conv)
        x, w = self.conv.operands
        self.w: Matrix = matrix(w, self.graph, ((), (0,), tuple(range(1, w.type.ndim))))
        self.x: Matrix = matrix(x, self.graph, ((0,), (1,), tuple(range(2, x.type.ndim))))
        if self.w.depth == 0 or x.type.size == 0:
            raise Unsupported("nothing is contracted")
        self._flatten()
        self._blocking()
        self._layout()

    # -- decisions

    def _flatten(self) -> None:
        """Run the spatial dimensions as one where the kernel is a single point that moves by one."""
        g = self.g
        flat = prod(g.kernel) == 1 and g.as_is and set(g.stride) == {1}
        self.copy_x = not (self.x.plain and g.as_is and self._unit_rows())
        if flat and (self.copy_x or self.x.k_stride == 1):
            n = (1, 1, prod(g.size))
            self.g = replace(g, size=n, spread=n, out=n)

    def _unit_rows(self) -> bool:
        """True where rows can be read in place: memory runs along them, and windows move by one."""
        a = self.x.access
        last = self.conv.operands[0].type.ndim - 1
        return a is not None and (a.strides[last] == 1) and self.g.stride[2] == 1

    def _blocking(self) -> None:
        g, lanes = self.g, self.lanes
        self.m, self.k = g.outputs // g.groups, g.channels // g.groups * prod(g.kernel)
        self.plane = prod(g.out)
        self.cols = g.samples * self.plane
        # k runs over (channel, kernel rows) and, inside, a kernel row, or pieces of a long one
        self.inner = min(g.kernel[2], _CHUNK)
        self.pieces = -(-g.kernel[2] // self.inner)
        self.outer = self.k // g.kernel[2] * self.pieces
        self.per_chunk = 1 if self.pieces > 1 else max(1, min(self.outer, _CHUNK // self.inner))
        self.chunks = -(-self.outer // self.per_chunk)
        vectors = min(widest(self.target), -(-self.cols // lanes))
        rows = rows_for(self.target, vectors, self.m)
        tile = Tile(rows, vectors, lanes, self.acc)
        panels, tiles = -(-self.cols // tile.cols), -(-self.m // rows)
        tall = min(tiles, _MOST_TILES)
        work = 2 * rows * tile.cols * self.k
        while tall > 4 and g.groups * panels * -(-tiles // tall) < _UNITS and tall * work > 2 * _UNIT_FLOPS:
            tall = -(-tall // 2)
        self.grid = Grid(tile, 0, panels, tiles, self.m, (1, tall), False, 0)
        units = g.groups * panels * -(-tiles // tall)
        total = 2 * self.cols * g.outputs * self.k
        self.splits = 1
        if units < 6 and total > 8 * _UNIT_FLOPS and self.chunks >= 4:
            self.splits = min(8, self.chunks // 2)
        self.pack_w = not self.w.in_registers

    def _layout(self) -> None:
        g, size, at = self.g, self.acc.itemsize, 0
        slack = 2 * self.lanes * g.stride[2]
        self.copied = row_major((g.samples, g.channels, *g.spread))
        self.x_at = at
        if self.copy_x:
            at += aligned((g.samples * g.channels * prod(g.spread) + slack) * size)
        self.w_at, self.w_ld = at, self.k + (16 if self.k * size % 2048 == 0 else 0)
        if self.pack_w:
            at += aligned(g.outputs * self.w_ld * size)
        self.partial_at = at
        self.partial_bytes = g.samples * g.outputs * self.plane * size
        if self.splits > 1:
            at += self.splits * self.partial_bytes
        self.scratch = at
        self.source = Source(self.copied, True) if self.copy_x else self._in_place()

    def _in_place(self) -> Source:
        a = self.x.access
        assert a is not None
        spatial = tuple(a.strides[2:])
        if self.g.size[:2] == (1, 1):
            spatial = (0, 0, 1)
        spatial = (0,) * (3 - len(spatial)) + spatial
        return Source((a.strides[0], a.strides[1], *spatial), False)

    # -- code

    def emit(self) -> KernelCode:
        g = self.g
        output = Output((g.samples,), (g.outputs,), tuple(self.conv.result.type.shape[2:]))
        self.epilogue = emit_epilogue(
            self.start(f"{self.prefix}_epilogue", EPILOGUE),
            self.op,
            self.conv,
            output,
            self.acc,
            self.lanes,
            True,
        )
        self.keep(self.epilogue)
        flops = 2 * self.cols * g.outputs * self.k
        phases: list[Phase] = []
        prepare = ([self._spread_x()] if self.copy_x else []) + ([self._pack_w()] if self.pack_w else [])
        if prepare:
            phases.append(self.phase("prepare", prepare, 100.0 + 0.5 * g.spread[2]))
        part = self._main()
        phases.append(self.phase("main", [part], flops / part[1] / _GFLOPS))
        if self.splits > 1:
            phases.append(self.phase("combine", [self._combine()], self.plane * self.splits * 0.2))
        return self.code(phases, self.scratch, self._describe(), flops)

    def _describe(self) -> str:
        g, t = self.g, self.grid.tile
        return "\n".join([
            f"conv {g.groups} groups x [{self.m}, {self.k}] x [{self.k}, {self.cols}] {self.acc.name}",
            f"  x: {'spread to ' + str(g.spread) if self.copy_x else 'in place'}, packed by panel",
            f"  w: {'packed' if self.pack_w else 'in place'}",
            f"  grid: {self.grid.panels} panels x {self.grid.tiles} tiles of {t.rows} x {t.cols}, "
            f"{self.grid.per_unit[1]} tiles per unit",
            f"  k: {self.chunks} blocks of {self.per_chunk} x {self.inner}, {self.splits} parts",
        ])  # fmt: skip

    # preparation

    def _spread_x(self) -> tuple[str, int]:
        """Copy rows of the input, dilated and padded with zeros, as the accumulator's dtype."""
        fn = self.start(f"{self.prefix}_spread")
        g, size = self.g, self.acc.itemsize
        pointers = kernel_pointers(fn, self.op)
        n, c, p0, p1 = fn.split("%u", (g.samples, g.channels, *g.spread[:2]))
        dst = fn.at(self.scratch_of(fn), fn.add(self.x_at, fn.mul("%u", g.spread[2] * size)))
        s0, ok0 = self._source_index(fn, p0, 0)
        s1, ok1 = self._source_index(fn, p1, 1)
        row_ok = fn.op(f"and i1 {ok0}, {ok1}")

        def write(at: Ix, count: int) -> None:
            region = Region(fn, self.graph, self.lanes, pointers)
            mask, col = self._source_lanes(fn, region, at, row_ok)
            region.mask = mask
            x = self._input(region, pointers, n, c, (s0, s1), col)
            t = reg_type(self.acc, self.lanes)
            x = fn.op(f"select <{self.lanes} x i1> {mask}, {t} {x}, {t} zeroinitializer")
            whole = None if count == self.lanes else tail_mask(fn, count, self.lanes)
            store_lanes(fn, x, fn.at(dst, fn.mul(at, size)), self.acc, self.lanes, whole)

        whole = g.spread[2] // self.lanes * self.lanes
        if whole:
            with fn.range(0, whole, self.lanes) as v:
                write(v.i, self.lanes)
        if whole < g.spread[2]:
            write(whole, g.spread[2] - whole)
        self.keep(fn)
        return fn.symbol, g.samples * g.channels * g.spread[0] * g.spread[1]

    def _source_index(self, fn: Code, p: Ix, dim: int) -> tuple[Ix, str]:
        """The input index of position ``p`` of the spread input, clamped, and whether there is one."""
        g = self.g
        at = fn.sub(p, g.lo[dim])
        extent = (g.size[dim] - 1) * g.gap[dim] + 1
        ok = fn.op(f"icmp ult i64 {at}, {extent}")
        safe = fn.op(f"select i1 {ok}, i64 {at}, i64 0")
        if g.gap[dim] == 1:
            return safe, ok
        whole = fn.op(f"icmp eq i64 {fn.mod(safe, g.gap[dim])}, 0")
        return fn.div(safe, g.gap[dim]), fn.op(f"and i1 {ok}, {whole}")

    def _source_lanes(self, fn: Code, region: Region, at: Ix, row_ok: str) -> tuple[str, Coord]:
        g, lanes = self.g, self.lanes
        col = Coord(fn.sub(at, g.lo[2]), 1)
        flags = f"<{lanes} x i1>"
        mask = fn.op(
            f"and {flags} {region.inside(col, (g.size[2] - 1) * g.gap[2] + 1)}, "
            f"{fn.splat('i1', row_ok, lanes)}"
        )
        if g.gap[2] > 1:
            safe = fn.op(
                f"select {flags} {mask}, <{lanes} x i64> {region.vector(col)}, <{lanes} x i64> "
                "zeroinitializer"
            )
            col, rest = region.divmod(Coord(vec=safe), g.gap[2], g.spread[2] + abs(g.lo[2]))
            whole = fn.op(f"icmp eq <{lanes} x i64> {rest.vec}, zeroinitializer")
            mask = fn.op(f"and {flags} {mask}, {whole}")
        return mask, col

    def _input(self, region: Region, pointers: object, n: Ix, c: Ix, rows: tuple[Ix, Ix], col: Coord) -> str:
        """The input at a source position, as a vector of the accumulator dtype."""
        v, g = self.conv.operands[0], self.g
        shape = v.type.shape
        if g.size[:2] == (1, 1) and len(shape) > 3:  # flattened
            spatial: list[Coord] = region.split(col, shape[2:])
        else:
            spatial = [Coord(rows[0]), Coord(rows[1]), col][3 - (len(shape) - 2) :]
        coords = [Coord(n), Coord(c), *spatial]
        got = region.value(v, Place(shape, lambda: coords))
        dtype = v.type.dtype
        wide = region.wide(got)
        return (
            wide
            if dtype.is_floating_point and self.acc is f32
            else widened(region.fn, wide, dtype, self.lanes)
        )

    def _pack_w(self) -> tuple[str, int]:
        fn = self.start(f"{self.prefix}_pack_w")
        pointers = kernel_pointers(fn, self.op)
        dst = fn.at(self.scratch_of(fn), self.w_at)
        rows, height = self.g.outputs, 8
        packer = Packer(
            fn, lambda mask: Region(fn, self.graph, self.lanes, pointers, mask),
            lambda r, row, col: element_of(r, self.w, pointers, 0, row, col),
            Packing(rows, self.k, self.w_ld, False, self.w.run(2)), self.acc, dst, self.lanes,
        )  # fmt: skip
        packer.rows(fn.mul("%u", height), fn.min(fn.mul(fn.add("%u", 1), height), rows))
        self.keep(fn)
        return fn.symbol, -(-rows // height)

    # the tiles

    def _main(self) -> tuple[str, int]:
        fn = self.start(f"{self.prefix}_unit")
        blocks = self.grid.blocks[1]
        units = (self.g.groups, self.splits, self.grid.panels, blocks)
        group, split, panel, mb = fn.split("%u", units)
        _Unit(self, fn, group, split, panel).emit(mb)
        self.keep(fn)
        return fn.symbol, prod(units)

    def _combine(self) -> tuple[str, int]:
        fn = self.start(f"{self.prefix}_sum")
        where = (fn.div("%u", self.g.outputs), fn.mod("%u", self.g.outputs))
        partial = Partial(self.partial_at, self.partial_bytes, self.splits)
        emit_combine(fn, self.scratch_of(fn), partial, self.epilogue.symbol, self.acc, self.lanes, self.plane,
                     fn.mul("%u", self.plane), where)  # fmt: skip
        self.keep(fn)
        return fn.symbol, self.g.samples * self.g.outputs


class _Unit:
    """One panel of columns by some tiles of one group's weights."""

    def __init__(self, c: _Conv, fn: Code, group: Ix, split: Ix, panel: Ix) -> None:
        self.c, self.fn, self.group, self.split = c, fn, group, split
        self.tile = c.grid.tile
        self.pointers = kernel_pointers(fn, c.op)
        self.scratch = c.scratch_of(fn)
        self.blocked = c.chunks > c.splits
        tall = c.grid.per_unit[1]
        self.tiles = fn.alloca((tall if self.blocked else 1) * aligned(self.tile.bytes))
        size = c.acc.itemsize
        self.panel = fn.alloca((c.per_chunk * c.inner * self.tile.cols + 2 * c.lanes) * size)
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
        count = self._segments()
        size = c.acc.itemsize
        fn.declare("declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)")
        if self.width < self.tile.cols:
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

    def _pack(self, r0: Ix, r1: Ix, count: Ix) -> None:
        """Write the panel's columns for outer rows r0..r1, one k after the other."""
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
            with fn.range(0, inner, runs=True) as q:
                src = fn.at(base, fn.mul(fn.add(offset, fn.mul(q.i, g.step[2] * st[4])), size))
                dst = fn.at(self.panel, fn.add(row, fn.mul(q.i, self.tile.row_bytes)))
                with fn.range(0, count, runs=True) as s:
                    self._copy_segment(s.i, src, dst)

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
            x = _strided(fn, fn.at(src, fn.mul(v.i, stride * size)), c, stride, mask)
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
            if c.splits == 1:
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


def _strided(fn: Code, src: str, c: _Conv, stride: int, mask: str | None) -> str:
    """Every ``stride``-th element from ``src`` on."""
    lanes, t = c.lanes, mem_type(c.acc)
    if stride == 1:
        return load_lanes(fn, src, c.acc, lanes, mask)
    wide = f"<{lanes * stride} x {t}>"
    x = fn.load(wide, src, c.acc.itemsize)
    pick = ", ".join(f"i32 {i * stride}" for i in range(lanes))
    return fn.op(f"shufflevector {wide} {x}, {wide} poison, <{lanes} x i32> <{pick}>")
