"""Convolutions whose kernel is as large as an image, as in the gradient of the weights.

There are few output positions and many taps, so the sum over the taps is the long one. One operand is copied
with its padding, and for each output position and channel of it a row of a tile broadcasts one element at a
time, walking along the image; the other gives vectors of its channels:

    sums[(a, p), b] = sum over samples n and taps t of A[n, position(p, t), a] * B[n, t, b]

A is the convolution's input and B its weights, or the other way round where the input is dilated: then a tap
is looked for where the input has an element, not the reverse. Both lie with their channels last, in copies
if need be. Long sums are cut into parts, which are added in a fixed order.
"""

from __future__ import annotations

from math import prod

from weft.codegen.blocks import Code, Ix
from weft.codegen.conv_copy import Channels, copy_positions
from weft.codegen.conv_plan import TAPS, TapsPlan, TapsProblem, taps_pieces
from weft.codegen.conv_writer import ConvWriter
from weft.codegen.epilogue import Output, kernel_pointers
from weft.codegen.kernel import KernelCode, Phase
from weft.codegen.lanes import load_lanes, store_lanes
from weft.codegen.llvm import reg_type
from weft.codegen.microkernel import Tile, multiply_add, share
from weft.codegen.operands import Matrix, matrix
from weft.codegen.packing import transpose_function
from weft.codegen.phases import aligned
from weft.codegen.target import Target
from weft.codegen.uniforms import Uniforms
from weft.ir.graph import Op
from weft.ir.record import record

Ints = tuple[int, ...]
_COPIED = 256  # positions that are copied by one unit
_BLOCK_ROWS = 64  # rows of sums that are turned at a time


@record(frozen=True)
class Walk:
    """One dimension: output ``p`` at tap ``t`` meets element ``base + p * move + t * step`` of A, padding
    included; ``size`` elements with ``lo`` of padding before the ``count`` that are there from ``skip`` on.
    """

    outputs: int
    taps: int
    base: int
    move: int
    step: int
    size: int
    lo: int
    skip: int
    count: int


def walk(outputs: int, taps: int, origin: int, move: int, step: int, extent: int) -> Walk:
    """The walk where output p at tap t meets element ``origin + p * move + t * step`` of ``extent``."""
    low = min(0, (outputs - 1) * move) + origin
    high = max(0, (outputs - 1) * move) + origin + (taps - 1) * step
    size = high - low + 1
    skip = max(low, 0)
    count = max(0, min(high + 1, extent) - skip)
    return Walk(outputs, taps, origin - low, move, step, size, skip - low, skip, count)


class Taps(ConvWriter):
    way = TAPS

    def __init__(self, op: Op, target: Target, prefix: str, plan: TapsPlan | None = None) -> None:
        super().__init__(op, target, prefix)
        g = self.g
        self.swapped = max(g.gap) > 1
        x, w = self.conv.operands
        # batch: samples of the sum; rows: positions; k: channels of tile rows or columns
        of_x: Matrix = matrix(x, self.graph, ((1,), tuple(range(2, x.type.ndim)), (0,)))
        of_w: Matrix = matrix(w, self.graph, ((1,), tuple(range(2, w.type.ndim)), (0,)))
        self.a, self.b = (of_w, of_x) if self.swapped else (of_x, of_w)
        self.m, self.depth = g.outputs // g.groups, g.channels // g.groups
        # in one group: channels along rows and along columns of the sums
        self.across, self.along = (self.m, g.samples) if self.swapped else (g.samples, self.m)
        self.walks = [self._walk(d) for d in range(3)]
        self.point = self._point()
        if self.point:
            n = prod(self._a_sizes())
            self.walks = [walk(1, 1, 0, 1, 1, 1), walk(1, 1, 0, 1, 1, 1), walk(1, n, 0, 1, 1, n)]
        self.positions = prod(g.out)
        self.rows = self.across * self.positions
        self.all_lines = self.depth * self.walks[0].taps * self.walks[1].taps
        self.choose(self._problem(), plan)
        self.tile = Tile(self.plan.rows, self.plan.vectors, self.lanes, self.acc)
        self.blocks = -(-self.along // self.tile.cols)
        self.tiles = -(-self.rows // self.tile.rows)
        self.per_unit, self.parts = self.plan.tiles, self.plan.parts
        self.piece, self.lines = taps_pieces(self.problem)
        self._layout()

    # -- decisions

    def _walk(self, d: int) -> Walk:
        g = self.g
        if self.swapped:
            return walk(g.out[d], g.size[d], g.lo[d], -1, g.gap[d], g.kernel[d])
        return walk(g.out[d], g.kernel[d], -g.lo[d], g.stride[d], g.step[d], g.size[d])

    def _point(self) -> bool:
        """True where taps are the elements of A in order: an image is then a single line."""
        return prod(self.g.out) == 1 and self._whole() and all(w.step == 1 or w.taps == 1 for w in self.walks)

    def _whole(self) -> bool:
        """True where A is walked as it is, without padding."""
        return all(w.lo == 0 and w.skip == 0 and w.count == w.size == d
                   for w, d in zip(self.walks, self._a_sizes(), strict=True))  # fmt: skip

    def _problem(self) -> TapsProblem:
        lines, g, size = [w.taps for w in self.walks], self.g, self.acc.itemsize
        copied = 0 if self._read_in_place() else prod(w.size for w in self.walks) * self.across
        copied += 0 if self.b.plain and self._packed(self.b) else prod(lines) * self.along
        return TapsProblem(g.groups, self.rows, self.along, self.depth, lines[0] * lines[1], lines[2],
                           self.lanes, size, copied * g.groups * self.depth * size)  # fmt: skip

    def _read_in_place(self) -> bool:
        """True where A is walked where it lies."""
        whole = self.point or self._whole()
        return self.a.plain and self.a.access is not None and whole and self._packed(self.a)

    def _layout(self) -> None:
        g, size, at = self.g, self.acc.itemsize, 0
        b, inside = self.b.access, self.walks
        self.a_pixel = self.across * (g.groups if self.swapped else 1)  # channels of a position of A
        self.b_pixel = self.along * (1 if self.swapped else g.groups)
        full = self.along == self.blocks * self.tile.cols  # no vector reaches past the end
        # positions far apart fall on few lines of the cache
        full = full and (self.b_pixel * size < 1024 or self.blocks == 1)
        self.copy_a = not self._read_in_place()
        self.copy_b = not (self.b.plain and b is not None and full and self._packed(self.b))
        self.a_at = at
        self.a_image = prod(w.size for w in inside) * self.a_pixel
        if self.copy_a:
            at += aligned(self.a.batch * self.a_image * size)
        self.b_at = at
        self.b_groups = 1 if self.swapped else g.groups
        self.b_image = prod(w.taps for w in inside) * self.b_pixel
        if self.copy_b:
            at += aligned(self.b_groups * self.blocks * self.b.batch * self.b.rows * self.tile.row_bytes)
        self.sums_at = at
        self.sums_group = self.tiles * self.blocks * self.tile.bytes
        self.sums_part = g.groups * self.sums_group
        at += aligned(self.parts * self.sums_part)
        self.uniforms = Uniforms(self, self.conv, aligned(at))
        self.scratch = aligned(at) + self.uniforms.nbytes

    def _a_sizes(self) -> Ints:
        return self.g.kernel if self.swapped else self.g.size

    def _packed(self, m: Matrix) -> bool:
        """True where positions follow one another without gaps, channels innermost."""
        a = m.access
        assert a is not None
        expect = m.value.type.shape[0]
        for i in (*reversed(m.axes[1]), *m.axes[0]):
            d = m.value.type.shape[i]
            if d != 1 and a.strides[i] != expect:
                return False
            expect *= d
        return True

    # -- code

    def emit(self) -> KernelCode:
        g, shape = self.g, self.conv.result.type.shape
        self.start_epilogue(Output((), (shape[1],), (shape[0], *shape[2:])))
        phases: list[Phase] = self.uniforms.phase()
        prepare = [self._copy_a()] if self.copy_a else []
        prepare += [self._copy_b()] if self.copy_b else []
        if prepare:
            phases.append(self.phase("prepare", prepare, 1000.0))
        flops = 2 * g.samples * g.outputs * self.positions * self.depth * prod(w.taps for w in self.walks)
        part = self._unit()
        phases.append(self.phase("main", [part], self.cost_ns / part[1]))
        phases.append(self.phase("combine", [self._combine()], 1000.0 * self.parts))
        return self.code(phases, self.scratch, self._describe(), flops)

    def _describe(self) -> str:
        t, taps = self.tile, prod(w.taps for w in self.walks)
        return "\n".join([
            f"conv over taps, {self.g.groups} groups x [{self.rows}] x [{self.along}], "
            f"{self.depth} x {taps} taps {self.acc.name}",
            f"  a: {'copied' if self.copy_a else 'in place'}, b: {'copied' if self.copy_b else 'in place'}",
            f"  y: {'output channels first' if self.turn else 'in order'}",
            f"  grid: {self.tiles} tiles of {t.rows} x {t.cols} in {self.blocks} blocks, {self.per_unit} per "
            f"unit, {self.parts} parts",
        ])  # fmt: skip

    def _copy_a(self) -> tuple[str, int]:
        """Copy one line of one image of A, with its padding."""
        fn = self.start(f"{self.prefix}_copy_a")
        outer, middle, inner = self.walks
        image, p0, p1 = fn.split("%u", (self.a.batch, outer.size, middle.size))
        size, sizes = self.acc.itemsize, self._a_sizes()
        dst = fn.at(self.scratch_of(fn), fn.add(self.a_at, fn.mul("%u", inner.size * self.a_pixel * size)))
        fn.declare("declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)")
        if inner.count < inner.size or outer.count < outer.size or middle.count < middle.size:
            fn.do(f"call void @llvm.memset.p0.i64(ptr {dst}, i8 0, i64 {inner.size * self.a_pixel * size}, "
                  "i1 false)")  # fmt: skip
        ok = "true"
        for p, line in ((p0, outer), (p1, middle)):
            if line.count < line.size:
                test = fn.op(f"icmp ult i64 {fn.sub(p, line.lo)}, {line.count}")
                ok = fn.op(f"and i1 {ok}, {test}")
        with fn.when(ok):
            i0, i1 = (fn.add(p, line.skip - line.lo) for p, line in ((p0, outer), (p1, middle)))
            first = fn.add(fn.mul(fn.add(fn.mul(i0, sizes[1]), i1), sizes[2]), inner.skip)
            if inner.count:
                copy_positions(self, fn, self.a, kernel_pointers(fn, self.op), image, first, inner.count,
                               fn.at(dst, inner.lo * self.a_pixel * size), self.acc, self.lanes)  # fmt: skip
        self.keep(fn)
        return fn.symbol, self.a.batch * outer.size * middle.size

    def _copy_b(self) -> tuple[str, int]:
        """Copy some positions of one image of B, for one block of columns."""
        fn = self.start(f"{self.prefix}_copy_b")
        rows, cols = self.b.rows, self.tile.cols
        height = min(rows, _COPIED)
        counts = (self.b_groups, self.blocks, self.b.batch, -(-rows // height))
        group, block, image, part = fn.split("%u", counts)
        first = fn.mul(part, height)
        image_at = fn.dot((group, block, image), (self.blocks * self.b.batch, self.b.batch, 1))
        line = fn.add(fn.mul(image_at, rows), first)
        dst = fn.at(self.scratch_of(fn), fn.add(self.b_at, fn.mul(line, self.tile.row_bytes)))
        pointers = kernel_pointers(fn, self.op)
        channel = fn.add(fn.mul(group, self.along), fn.mul(block, cols))
        # the last block and the last part may be smaller
        for at_edge, count in _edges(fn, part, counts[3], rows, height):
            with fn.when(at_edge):
                for last, width in _edges(fn, block, self.blocks, self.along, cols):
                    with fn.when(last):
                        some = Channels(channel, width, cols)
                        copy_positions(self, fn, self.b, pointers, image, first, count, dst, self.acc,
                                       self.lanes, some)  # fmt: skip
        self.keep(fn)
        return fn.symbol, prod(counts)

    def _unit(self) -> tuple[str, int]:
        fn = self.start(f"{self.prefix}_unit")
        ranges = -(-self.tiles // self.per_unit)
        part, group, block = fn.split("%u", (self.parts, self.g.groups, ranges))
        TapsUnit(self, fn, part, group, fn.mul(block, self.per_unit)).emit()
        self.keep(fn)
        return fn.symbol, self.parts * self.g.groups * ranges

    def _combine(self) -> tuple[str, int]:
        """Add the parts of a block of rows by a vector of columns, turn it, and hand it to the epilogue."""
        fn = self.start(f"{self.prefix}_sum")
        lanes, size, tile = self.lanes, self.acc.itemsize, self.tile
        counts = (self.g.groups, -(-self.rows // _BLOCK_ROWS), -(-self.along // lanes))
        group, block, vector = fn.split("%u", counts)
        first, column = fn.mul(block, _BLOCK_ROWS), fn.mul(vector, lanes)
        count = fn.min(_BLOCK_ROWS, fn.sub(self.rows, first))
        width = fn.min(lanes, fn.sub(self.along, column))
        lines, ld = fn.alloca(_BLOCK_ROWS * lanes * size), _BLOCK_ROWS * size + 64
        turned = fn.alloca(lanes * ld)
        where = fn.add(fn.mul(fn.div(column, tile.cols), tile.bytes), fn.mul(fn.mod(column, tile.cols), size))
        sums = fn.at(self.scratch_of(fn), fn.add(self.sums_at, fn.add(fn.mul(group, self.sums_group), where)))
        t, add = reg_type(self.acc, lanes), "fadd" if self.acc.is_floating_point else "add"
        with fn.range(0, count, runs=True) as r:
            row = fn.add(first, r.i)
            at = fn.add(fn.mul(fn.div(row, tile.rows), self.blocks * tile.bytes),
                        fn.mul(fn.mod(row, tile.rows), tile.row_bytes))  # fmt: skip
            x = load_lanes(fn, fn.at(sums, at), self.acc, lanes)
            for p in range(1, self.parts):
                y = load_lanes(fn, fn.at(sums, fn.add(at, p * self.sums_part)), self.acc, lanes)
                x = fn.op(f"{add} {t} {x}, {y}")
            store_lanes(fn, x, fn.at(lines, fn.mul(r.i, lanes * size)), self.acc, lanes)
        name = transpose_function(fn, self.acc, lanes)
        with fn.range(0, count, lanes, runs=True) as r:
            src, dst = fn.at(lines, fn.mul(r.i, lanes * size)), fn.at(turned, fn.mul(r.i, size))
            cols = fn.min(lanes, fn.sub(count, r.i))
            fn.do(f"call void @{name}(ptr {src}, i64 {lanes * size}, ptr {dst}, i64 {ld}, i64 {lanes}, "
                  f"i64 {cols}, i64 {lanes})")  # fmt: skip
        self._hand(fn, turned, ld, group, (first, count), (column, width))
        self.keep(fn)
        return fn.symbol, prod(counts)

    def _hand(
        self, fn: Code, turned: str, ld: int, group: Ix, rows: tuple[Ix, Ix], cols: tuple[Ix, Ix]
    ) -> None:
        """Give turned sums to the epilogue: rows are (channel of A, position), columns channels of B."""
        size, call = self.acc.itemsize, f"call void @{self.epilogue.symbol}(ptr %bufs"
        (first, count), (column, width) = rows, cols
        if not self.swapped and self.turn is not None:
            row = fn.add(fn.mul(group, self.m), column)
            fn.do(f"{call}, ptr {turned}, i64 {ld}, i64 0, i64 {row}, i64 {width}, i64 {first}, i64 {count})")
            return
        with fn.repeat([("i64", "0")]) as piece:  # rows of one channel of A
            at = piece.vars[0]
            channel, p = fn.split(fn.add(first, at), (self.across, self.positions))
            length = fn.min(fn.sub(self.positions, p), fn.sub(count, at))
            tile = fn.at(turned, fn.mul(at, size))
            if not self.swapped:
                row = fn.add(fn.mul(group, self.m), column)
                fn.do(f"{call}, ptr {tile}, i64 {ld}, i64 {channel}, i64 {row}, i64 {width}, i64 {p}, "
                      f"i64 {length})")  # fmt: skip
            else:
                row = fn.add(fn.mul(group, self.m), channel)
                with fn.range(0, width, runs=True) as b:
                    sample, line = fn.add(column, b.i), fn.at(tile, fn.mul(b.i, ld))
                    batch, col = (sample, p) if self.turn is None else (
                        0, fn.add(fn.mul(sample, self.positions), p))  # fmt: skip
                    fn.do(f"{call}, ptr {line}, i64 {ld}, i64 {batch}, i64 {row}, i64 1, i64 {col}, "
                          f"i64 {length})")  # fmt: skip
            piece.next = [str(fn.add(at, length))]
            piece.stop = fn.op(f"icmp sge i64 {piece.next[0]}, {count}")


def _edges(fn: Code, index: Ix, count: int, total: int, size: int) -> list[tuple[str, int]]:
    """Conditions on a block's index and the sizes that go with them: whole blocks, and a smaller last one."""
    rest = total - (count - 1) * size
    if rest == size:
        return [("true", size)]
    if count == 1:
        return [("true", rest)]
    last = fn.op(f"icmp eq i64 {index}, {count - 1}")
    return [(fn.op(f"xor i1 {last}, true"), size), (last, rest)]


class TapsUnit:
    """Some tiles of one group, over one part of the samples and lines of taps."""

    def __init__(self, c: Taps, fn: Code, part: Ix, group: Ix, first: Ix) -> None:
        self.c, self.fn, self.part, self.group, self.first = c, fn, part, group, first
        self.size, self.scratch = c.acc.itemsize, c.scratch_of(fn)
        self.pointers = kernel_pointers(fn, c.op)
        self.count = fn.min(c.per_unit, fn.sub(c.tiles, first))

    def _base(self, copied: bool, at: int, m: Matrix) -> str:
        if copied:
            return self.fn.at(self.scratch, at)
        assert m.access is not None
        return self.fn.at(self.pointers[m.access.param], m.access.offset * self.size)

    def emit(self) -> None:
        c, fn, size = self.c, self.fn, self.size
        a, b = self._base(c.copy_a, c.a_at, c.a), self._base(c.copy_b, c.b_at, c.b)
        rows = self._rows(a)
        at = fn.add(fn.mul(self.part, c.sums_part), fn.mul(self.group, c.sums_group))
        sums = fn.at(self.scratch, fn.add(fn.add(c.sums_at, at), fn.mul(self.first, c.blocks * c.tile.bytes)))
        fn.declare("declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)")
        nbytes = fn.mul(self.count, c.blocks * c.tile.bytes)
        fn.do(f"call void @llvm.memset.p0.i64(ptr align 64 {sums}, i8 0, i64 {nbytes}, i1 false)")
        inner, name = c.walks[2], taps_kernel(fn, c.tile)
        steps = -(-c.all_lines // c.lines)
        begin = fn.div(fn.mul(self.part, steps), c.parts)
        end = fn.div(fn.mul(fn.add(self.part, 1), steps), c.parts)
        a_group = fn.mul(0 if c.swapped else self.group, c.depth * c.a_image)
        b_step = (c.tile.cols if c.copy_b else c.b_pixel) * size
        lines = fn.alloca(8 * c.lines)
        with fn.range(begin, end, runs=True) as step:
            line = fn.mul(step.i, c.lines)
            count = fn.min(c.lines, fn.sub(c.all_lines, line))
            self._lines(lines, line, count)
            with fn.range(0, inner.taps, c.piece) as q:
                taps = fn.min(c.piece, fn.sub(inner.taps, q.i))
                skip = fn.add(a_group, fn.mul(q.i, inner.step * c.a_pixel))
                tap = fn.add(fn.mul(line, inner.taps), q.i)
                with fn.range(0, c.blocks) as v, fn.range(0, self.count, runs=True) as t:
                    columns = self._columns(b, v.i, tap)
                    tile = fn.at(sums, fn.mul(fn.add(fn.mul(t.i, c.blocks), v.i), c.tile.bytes))
                    first = fn.at(rows, fn.mul(t.i, c.tile.rows), "ptr")
                    a_step = inner.step * c.a_pixel * size
                    fn.do(f"call void @{name}(ptr {first}, i64 {fn.mul(skip, size)}, ptr {lines}, "
                          f"i64 {count}, i64 {a_step}, ptr {columns}, i64 {inner.taps * b_step}, "
                          f"i64 {b_step}, i64 {taps}, ptr {tile})")  # fmt: skip

    def _columns(self, b: str, block: Ix, tap: Ix) -> str:
        """Where a block of columns of B begins, at a tap counted through the images of the group."""
        c, fn = self.c, self.fn
        own = c.all_lines * c.walks[2].taps  # taps of a group
        if c.copy_b:
            line = fn.mul(block, own * c.g.groups) if c.swapped else fn.mul(
                fn.add(fn.mul(self.group, c.blocks), block), own)  # fmt: skip
            line = fn.add(fn.add(line, tap), fn.mul(self.group, own) if c.swapped else 0)
            return fn.at(b, fn.mul(line, c.tile.row_bytes))
        if c.swapped:
            tap, column = fn.add(tap, fn.mul(self.group, own)), 0
        else:
            column = fn.mul(self.group, c.along)
        index = fn.add(fn.mul(tap, c.b_pixel), fn.add(column, fn.mul(block, c.tile.cols)))
        return fn.at(b, fn.mul(index, self.size))

    def _rows(self, a: str) -> str:
        """The address of what each row of each tile reads first; rows past the end repeat the last."""
        c, fn = self.c, self.fn
        table = fn.alloca(8 * c.per_unit * c.tile.rows)
        outer, middle, inner = c.walks
        with fn.range(0, fn.mul(self.count, c.tile.rows), runs=True) as r:
            flat = fn.min(fn.add(fn.mul(self.first, c.tile.rows), r.i), c.rows - 1)
            channel, *p = fn.split(flat, (c.across, *c.g.out))
            if c.swapped:
                channel = fn.add(channel, fn.mul(self.group, c.across))
            at: Ix = 0
            p = [0, 0, 0] if c.positions == 1 else p
            for w, q in zip((outer, middle, inner), p, strict=True):
                at = fn.add(fn.mul(at, w.size), fn.add(fn.mul(q, w.move), w.base))
            address = fn.at(a, fn.mul(fn.add(fn.mul(at, c.a_pixel), channel), self.size))
            fn.store("ptr", address, fn.at(table, r.i, "ptr"), 8)
        return table

    def _lines(self, table: str, first: Ix, count: Ix) -> None:
        """How many bytes after the first image some lines of taps begin."""
        c, fn = self.c, self.fn
        outer, middle, inner = c.walks
        with fn.range(0, count, runs=True) as r:
            image, i, j = fn.split(fn.add(first, r.i), (c.depth, outer.taps, middle.taps))
            at = fn.add(fn.mul(i, outer.step * middle.size), fn.mul(j, middle.step))
            at = fn.add(fn.mul(image, c.a_image), fn.mul(at, inner.size * c.a_pixel))
            fn.store("i64", str(fn.mul(at, self.size)), fn.at(table, r.i, "i64"), 8)


def taps_kernel(fn: Code, tile: Tile) -> str:
    """Declare in ``fn`` and name the kernel that adds products along lines of an image to a tile of sums.

    Its arguments: addresses of the rows, bytes to add to them, bytes to add for each line, lines, bytes
    between taps of A, B, bytes between lines of B, bytes between taps of B, taps of a line, sums.
    """
    name = f"weft_taps_{tile.dtype.name}_{tile.rows}x{tile.vectors}x{tile.lanes}"
    params = ("ptr noalias %rows, i64 %skip, ptr noalias %offsets, i64 %lines, i64 %step, ptr noalias %b, "
              "i64 %bline, i64 %bstep, i64 %taps, ptr noalias %t")  # fmt: skip
    k = Code(name, params, linkage="internal")
    t, elem, size = reg_type(tile.dtype, tile.lanes), reg_type(tile.dtype), tile.dtype.itemsize
    count = tile.rows * tile.vectors
    begin = [(t, load_lanes(k, k.at("%t", i, t), tile.dtype, tile.lanes)) for i in range(count)]
    with k.range(0, "%lines", 1, begin, runs=True) as line:
        skip = k.add("%skip", k.load("i64", k.at("%offsets", line.i, "i64"), 8))
        rows = [k.at(k.load("ptr", k.at("%rows", r, "ptr"), 8), skip) for r in range(tile.rows)]
        start = k.at("%b", k.mul(line.i, "%bline"))
        carried = [("ptr", start), ("i64", "0"), *((t, v) for v in line.vars)]
        with k.range(0, "%taps", 1, carried, runs=True) as turn:
            bp, offset, sums = turn.vars[0], turn.vars[1], turn.vars[2:]
            ws = [load_lanes(k, k.at(bp, v, t), tile.dtype, tile.lanes) for v in range(tile.vectors)]
            for r in range(tile.rows):
                x = k.splat(elem, k.load(elem, k.at(rows[r], offset), size), tile.lanes)
                for v in range(tile.vectors):
                    i = r * tile.vectors + v
                    turn.next[2 + i] = multiply_add(k, tile.dtype, tile.lanes, x, ws[v], sums[i])
            turn.next[0] = k.at(bp, "%bstep")
            turn.next[1] = str(k.add(offset, "%step"))
        line.next[:] = turn.out[2:]
    for i in range(count):
        k.store(t, line.out[i], k.at("%t", i, t), size)
    return share(fn, k)
