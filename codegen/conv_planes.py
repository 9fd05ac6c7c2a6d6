"""Convolutions of each channel by itself, where images lie one channel after the other.

Vectors run along the lines of one image. A band of lines is copied to the stack with its padding, the columns
that a stride skips apart, so that every tap of every position is a load from there. Where there are many
positions, a block of a few lines of the result is summed over the taps, each of which multiplies by one
number. Where there are many taps (in the gradient of the weights) it is the other way round: each position
has a vector of sums, and the products of a line of the image by a line of the other operand are added to it.
Operands of such sums that lie channels-last are turned to lines first.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from weft.codegen.blocks import Code, Ix
from weft.codegen.contract_kernel import contraction_of
from weft.codegen.conv_geometry import geometry
from weft.codegen.conv_plan import PLANE, PlanePlan, PlaneProblem
from weft.codegen.conv_writer import ConvWriter
from weft.codegen.epilogue import kernel_pointers
from weft.codegen.kernel import KernelCode, Phase
from weft.codegen.lanes import drawn, load_lanes, store_lanes, tail_mask
from weft.codegen.llvm import reg_type
from weft.codegen.microkernel import accumulator, multiply_add, reduce_add
from weft.codegen.operands import Matrix, matrix
from weft.codegen.packing import Packer, Packing
from weft.codegen.phases import aligned
from weft.codegen.places import Coord, Region
from weft.codegen.target import Target, current_target
from weft.codegen.uniforms import Uniforms
from weft.ir.contraction import turn_of
from weft.ir.graph import Op, Value
from weft.ir.record import record

_MOST_TAPS = 81
_FAR = 4  # columns from one position to the next, at most
_TURNED = 64  # channels of a unit that turns an operand


@record(frozen=True)
class Walk:
    """One dimension: position ``j`` of ``count`` at tap ``t`` of ``taps`` meets element ``j * move + t * step
    - lo`` of the image's ``size``, or a zero."""

    count: int
    taps: int
    move: int
    step: int
    lo: int
    size: int

    def reach(self, lines: int) -> int:
        """Elements that ``lines`` positions meet."""
        return (lines - 1) * self.move + (self.taps - 1) * self.step + 1


def suits(op: Op) -> bool:
    """True where every channel is by itself, and both operands lie in lines."""
    graph, target = op.regions[0], current_target()
    conv = contraction_of(graph)
    g, (x, w) = geometry(conv), conv.operands
    if g.groups != g.outputs or not isinstance(target, Target):
        return False
    if x.type.ndim > 4 or max(g.gap) > 1 or turn_of(graph, conv) is not None:
        return False
    over_taps = _over_taps(conv)
    if g.channels != g.groups and not (over_taps and g.samples == 1):
        return False
    line, taps = (g.kernel, g.out) if over_taps else (g.out, g.kernel)
    move = (g.step if over_taps else g.stride)[2]
    lanes = target.lanes(accumulator(conv.result.type.dtype).bits)
    if prod(taps) > _MOST_TAPS or 2 * line[2] <= lanes or move > _FAR or g.groups * g.samples < 8:
        return False
    image, other = _image(op, x), _image(op, w)
    if over_taps:
        return all(_in_lines(m) or _turnable(m) is not None for m in (image, other))
    return _in_lines(image) and other.plain


def _over_taps(conv: Op) -> bool:
    """True where the kernel is larger than the result, as in the gradient of the weights."""
    return prod(conv.operands[1].type.shape[2:]) > prod(conv.result.type.shape[2:])


def _image(op: Op, v: Value) -> Matrix:
    n = v.type.ndim
    return matrix(v, op.regions[0], ((0, 1), tuple(range(2, n - 1)), (n - 1,)))


def _in_lines(m: Matrix) -> bool:
    """True where it can be read in place, a line at a time."""
    return m.plain and m.access is not None and (m.access.strides[-1] == 1 or m.value.type.shape[-1] == 1)


def _turnable(m: Matrix) -> int | None:
    """The axis of an operand, samples or channels, along which memory runs with whole pixels after it."""
    a = m.access
    if not m.plain or a is None:
        return None
    *rest, width = m.value.type.shape
    even = len(rest) < 3 or rest[2] == 1 or a.strides[2] == width * a.strides[3]
    return next((i for i in (0, 1) if even and a.strides[i] == 1 and rest[i] > 1), None)


@record(frozen=True)
class Image:
    """An operand and how it is read: element strides of its four coordinates (no rows have stride 0) from
    its own memory, or from the copy at byte ``at`` of the scratch memory."""

    matrix: Matrix
    strides: tuple[int, ...]
    offset: int
    at: int = -1

    @property
    def copied(self) -> bool:
        return self.at >= 0


class Planes(ConvWriter):
    way = PLANE

    def __init__(self, op: Op, target: Target, prefix: str, plan: PlanePlan | None = None) -> None:
        super().__init__(op, target, prefix)
        conv = self.conv
        self.size, self.over_taps = self.acc.itemsize, _over_taps(conv)
        self.copies = 0  # bytes of operands that are turned first
        self.x, self.w = (self._operand(_image(op, v)) for v in conv.operands)
        self.depth = self.g.channels // self.g.groups
        self.rows, self.cols = self._walk(1), self._walk(2)
        self._lay_out()
        self.choose(self._problem(), plan)
        self.band, self.block, self.apart = self.plan.band, self.plan.block, self.plan.apart
        self.bands = -(-self.rows.count // self.band)
        results = self.graph.results
        self.bare = not self.over_taps and list(results) == [conv.result]
        self.bare = self.bare and results[0].type.dtype is self.acc
        self.uniforms = Uniforms(self, conv, self.copies)

    # -- decisions

    def _operand(self, m: Matrix) -> Image:
        a, shape = m.access, m.value.type.shape
        assert a is not None
        if _in_lines(m) or not self.over_taps:
            strides = a.strides if len(shape) == 4 else (*a.strides[:2], 0, a.strides[2])
            return Image(m, strides, a.offset)
        pixels, inner = prod(shape[2:]), _turnable(m)
        strides = (shape[1] * pixels, pixels) if inner == 1 else (pixels, shape[0] * pixels)
        at, self.copies = self.copies, self.copies + aligned(m.value.type.size * self.size)
        return Image(m, (*strides, shape[-1], 1), 0, at)

    def _walk(self, d: int) -> Walk:
        g = self.g
        if self.over_taps:
            return Walk(g.kernel[d], g.out[d], g.step[d], g.stride[d], g.lo[d], g.size[d])
        return Walk(g.out[d], g.kernel[d], g.stride[d], g.step[d], g.lo[d], g.size[d])

    def _lay_out(self) -> None:
        """The copied lines: for each remainder of a column by the stride that some tap meets, one after the
        other, as many elements as vectors reach."""
        c, lanes = self.cols, self.lanes
        offsets = [t * c.step for t in range(c.taps)]
        self.remainders = sorted({o % c.move for o in offsets})
        reach = -(-c.count // lanes) * lanes + max(offsets) // c.move
        self.long = -(-reach // lanes) * lanes
        self.line_bytes = len(self.remainders) * self.long * self.size

    def _problem(self) -> PlaneProblem:
        r, c = self.rows, self.cols
        planes = self.g.samples * self.g.groups
        return PlaneProblem(planes, self.depth, r.count, c.count, r.taps, c.taps, r.move, r.reach(1),
                            self.line_bytes, self.over_taps, self.lanes, self.size, self.copies)  # fmt: skip

    # -- code

    def emit(self) -> KernelCode:
        shape = self.conv.result.type.shape
        if not self.bare:
            self.start_epilogue()
        fn = self.start(f"{self.prefix}_unit")
        unit = PlaneUnit(self, fn)
        units = self.g.samples * self.g.groups * (self.bands if self.apart else 1)
        if self.over_taps:
            unit.sums()
        else:
            unit.images()
        self.keep(fn)
        phases: list[Phase] = self.uniforms.phase()
        turned = [self._turn(name, m) for name, m in (("x", self.x), ("w", self.w)) if m.copied]
        if turned:
            phases.append(self.phase("turn", turned, 2000.0))
        phases.append(self.phase("main", [(fn.symbol, units)], self.cost_ns / units))
        flops = 2 * prod(shape) * self.depth * prod(self.g.kernel)
        return self.code(phases, self.copies + self.uniforms.nbytes, self._describe(), flops)

    def _turn(self, name: str, image: Image) -> tuple[str, int]:
        """Copy an operand whose pixels lie whole to lines: some channels (or samples) of one sample."""
        fn = self.start(f"{self.prefix}_turn_{name}")
        m, inner = image.matrix, _turnable(image.matrix)
        a, shape = m.access, m.value.type.shape
        assert a is not None and inner is not None
        rows, others, pixels = shape[inner], shape[1 - inner], prod(shape[2:])
        outer, block = fn.split("%u", (others, -(-rows // _TURNED)))
        first = fn.mul(block, _TURNED)
        source = fn.add(fn.mul(outer, a.strides[1 - inner]), a.offset)
        src = fn.at(kernel_pointers(fn, self.op)[a.param], fn.mul(source, self.size))
        to = fn.add(image.at, fn.mul(outer, rows * pixels * self.size))

        def nowhere(region: Region, row: Coord, col: Coord) -> str:
            raise AssertionError("whole blocks are turned in memory")

        packer = Packer(
            fn, lambda mask: Region(fn, self.graph, self.lanes, {}, mask), nowhere,
            Packing(rows, pixels, pixels, True, rows), self.acc, fn.at(self.scratch_of(fn), to), self.lanes,
            (src, a.strides[-1] * self.size),
        )  # fmt: skip
        packer.rows(first, fn.min(fn.add(first, _TURNED), rows))
        self.keep(fn)
        return fn.symbol, others * -(-rows // _TURNED)

    def _describe(self) -> str:
        r, c = self.rows, self.cols
        return "\n".join([
            f"conv by planes, {self.g.samples} x {self.g.groups} planes of {self.depth} "
            f"{self.acc.name}, {'over taps' if self.over_taps else 'over positions'}",
            f"  {r.count} x {c.count} positions by {r.taps} x {c.taps} taps",
            f"  {self.bands} bands of {self.band} lines, {self.block} at a time",
        ])  # fmt: skip


class PlaneUnit:
    """The code of one unit of work: a channel of an image, or a band of it."""

    def __init__(self, c: Planes, fn: Code) -> None:
        self.c, self.fn = c, fn
        self.pointers = kernel_pointers(fn, c.op)
        lines = c.rows.reach(c.band)
        self.buffer = fn.alloca(lines * c.line_bytes)
        self.tile = (
            ""
            if c.bare
            else fn.alloca(
                (c.rows.taps * c.cols.taps + c.lanes if c.over_taps else c.band * c.cols.count) * c.size
            )
        )
        self.t = reg_type(c.acc, c.lanes)
        fn.declare("declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)")
        self._clear(self.buffer, lines * c.line_bytes)  # the padding stays so

    def _clear(self, at: str, nbytes: int) -> None:
        self.fn.do(f"call void @llvm.memset.p0.i64(ptr align 64 {at}, i8 0, i64 {nbytes}, i1 false)")

    def _address(self, image: Image, *coords: Ix) -> str:
        """Of an element, by its sample (or group), channel, row and column."""
        a, fn = image.matrix.access, self.fn
        assert a is not None
        base = fn.at(self.c.scratch_of(fn), image.at) if image.copied else self.pointers[a.param]
        return fn.at(base, fn.mul(fn.dot(coords, image.strides, image.offset), self.c.size))

    # copied lines

    def _fill(self, sample: Ix, channel: Ix, first: Ix) -> None:
        """Copy the lines that the band from position ``first`` on meets."""
        c, fn, r = self.c, self.fn, self.c.rows
        lines = r.reach(c.band)
        inside = r.lo <= 0 and r.reach(r.count) - r.lo <= r.size
        with fn.range(0, lines, runs=True) as line:
            to = fn.at(self.buffer, fn.mul(line.i, c.line_bytes))
            at = fn.sub(fn.add(fn.mul(first, r.move), line.i), r.lo)
            ok = "true" if inside else fn.op(f"icmp ult i64 {at}, {r.size}")
            with fn.when(ok):
                self._copy(self._address(c.x, sample, channel, at, 0), to)
            if not inside:
                with fn.when(fn.op(f"xor i1 {ok}, true")):
                    self._clear(to, c.line_bytes)

    def _copy(self, line: str, to: str) -> None:
        """Copy a line of the image, ``move`` vectors at a time."""
        c, fn, w = self.c, self.fn, self.c.cols
        skipped, before = max(0, -w.lo), max(0, w.lo)
        count = max(0, min(w.size - skipped, w.move * c.long - before))
        step = w.move * c.lanes
        whole = count // step * step
        src = fn.at(line, skipped * c.size)

        def block(k: Ix, left: int) -> None:
            counts = [min(c.lanes, max(0, left - m * c.lanes)) for m in range(w.move)]
            parts = [
                load_lanes(fn, fn.at(src, fn.mul(fn.add(fn.mul(k, w.move), m * c.lanes), c.size)), c.acc,
                           c.lanes, None if n == c.lanes else tail_mask(fn, n, c.lanes))
                if n else "zeroinitializer"
                for m, n in enumerate(counts)
            ]  # fmt: skip
            for r in range(w.move):
                n = min(c.lanes, -(-(left - r) // w.move))
                if n <= 0 or (r + before) % w.move not in c.remainders:
                    continue
                row = c.remainders.index((r + before) % w.move) * c.long
                at = fn.at(to, fn.mul(fn.add(k, row + (r + before) // w.move), c.size))
                mask = None if n == c.lanes else tail_mask(fn, n, c.lanes)
                store_lanes(fn, drawn(fn, self.t, c.lanes, parts, r), at, c.acc, c.lanes, mask)

        if whole:
            with fn.range(0, whole // w.move, c.lanes, runs=True) as k:
                block(k.i, step)
        if whole < count:
            block(whole // w.move, count - whole)

    def _met(self, line: Ix, row: int, tap: int, col: Ix, mask: str | None = None) -> str:
        """What positions from ``col`` on meet at a tap, ``row`` lines below the buffered line ``line``."""
        c, fn = self.c, self.fn
        remainder, far = (tap * c.cols.step) % c.cols.move, (tap * c.cols.step) // c.cols.move
        inside = c.remainders.index(remainder) * c.long + far
        at = fn.add(fn.mul(fn.add(line, row), c.line_bytes), fn.mul(fn.add(col, inside), c.size))
        return load_lanes(fn, fn.at(self.buffer, at), c.acc, c.lanes, mask)

    def _pairs(self, lines: int, taps: range) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """Buffered lines that ``lines`` positions meet at some taps, each with the (position, tap) of it."""
        r = self.c.rows
        for row in range(r.reach(lines)):
            found = [(j, t) for j in range(lines) for t in taps if j * r.move + t * r.step == row]
            if found:
                yield row, found

    def _vectors(self) -> Iterator[tuple[Ix, str | None]]:
        """The columns in vectors, the last with a mask: loops around what the caller emits."""
        c, fn = self.c, self.fn
        whole = c.cols.count // c.lanes * c.lanes
        if whole:
            with fn.range(0, whole, c.lanes, runs=True) as v:
                yield v.i, None
        if whole < c.cols.count:
            yield whole, tail_mask(fn, c.cols.count - whole, c.lanes)

    def _finish(self, sample: Ix, channel: Ix, first: Ix, count: int) -> None:
        """Hand ``count`` elements of an image of the result, from ``first`` on, to the epilogue."""
        self.fn.do(f"call void @{self.c.epilogue.symbol}(ptr %bufs, ptr {self.tile}, i64 0, i64 {sample}, "
                   f"i64 {channel}, i64 1, i64 {first}, i64 {count})")  # fmt: skip

    # many positions

    def images(self) -> None:
        """Lines of the result, each the sum of its taps."""
        c, fn, r = self.c, self.fn, self.c.rows
        plane, band = (fn.div("%u", c.bands), fn.mod("%u", c.bands)) if c.apart else ("%u", 0)
        sample, channel = fn.split(plane, (c.g.samples, c.g.groups))
        weights = self._weights(channel)
        with fn.range(band, fn.add(band, 1 if c.apart else c.bands), runs=True) as b:
            # the last band may begin in the one before, as may a block: some lines are then computed again
            first = fn.min(fn.mul(b.i, c.band), r.count - c.band)
            self._fill(sample, channel, first)
            out = self._target(plane, first)
            with fn.range(0, c.band, c.block, runs=True) as block:
                line = fn.min(block.i, c.band - c.block)
                for col, mask in self._vectors():
                    self._block(line, col, mask, weights, out)
            if not c.bare:
                self._finish(sample, channel, fn.mul(first, c.cols.count), c.band * c.cols.count)

    def _weights(self, channel: Ix) -> list[list[str]]:
        """The channel's numbers: as vectors where registers hold them all, else their addresses."""
        c = self.c
        rows, cols = range(c.rows.taps), range(c.cols.taps)
        at = [[self._address(c.w, channel, 0, r, q) for q in cols] for r in rows]
        if len(rows) * len(cols) + c.block + 2 > c.target.registers:
            return at
        return [[self._splat(p) for p in line] for line in at]

    def _splat(self, address: str) -> str:
        elem = reg_type(self.c.acc)
        return self.fn.splat(elem, self.fn.load(elem, address, self.c.size), self.c.lanes)

    def _target(self, plane: Ix, first: Ix) -> str:
        c, fn = self.c, self.fn
        if not c.bare:
            return self.tile
        at = fn.mul(fn.add(fn.mul(plane, c.rows.count), first), c.cols.count * c.size)
        return fn.at(fn.arg(len(c.op.operands)), at)

    def _block(self, line: Ix, col: Ix, mask: str | None, weights: list[list[str]], out: str) -> None:
        c, fn = self.c, self.fn
        held = len(weights) * len(weights[0]) + c.block + 2 <= c.target.registers
        sums = ["zeroinitializer"] * c.block
        top = fn.mul(line, c.rows.move)
        for row, found in self._pairs(c.block, range(c.rows.taps)):
            for q in range(c.cols.taps):
                x = self._met(top, row, q, col)
                for j, t in found:
                    w = weights[t][q] if held else self._splat(weights[t][q])
                    sums[j] = multiply_add(fn, c.acc, c.lanes, x, w, sums[j])
        for j, total in enumerate(sums):
            at = fn.add(fn.mul(fn.add(line, j), c.cols.count), col)
            store_lanes(fn, total, fn.at(out, fn.mul(at, c.size)), c.acc, c.lanes, mask)

    # many taps

    def sums(self) -> None:
        """A number for each position of the result: the sum over samples, lines and columns."""
        c, fn, r = self.c, self.fn, self.c.rows
        count = r.taps * c.cols.taps
        totals = fn.alloca(count * c.lanes * c.size)
        self._clear(totals, count * c.lanes * c.size)
        with fn.range(0, c.depth, runs=True) as n, fn.range(0, c.bands, runs=True) as b:
            first = fn.mul(b.i, c.band)
            self._fill(0, fn.add(fn.mul("%u", c.depth), n.i), first)
            lines = fn.min(c.band, fn.sub(r.count, first))
            most = max(1, (c.target.registers - c.block - 2) // c.cols.taps)
            for t in range(0, r.taps, most):
                self._add(n.i, first, lines, range(t, min(t + most, r.taps)), totals)
        for i in range(count):
            x = load_lanes(fn, fn.at(totals, i * c.lanes * c.size), c.acc, c.lanes)
            fn.store(reg_type(c.acc), reduce_add(fn, x, c.acc, c.lanes), fn.at(self.tile, i * c.size), c.size)
        self._finish(0, "%u", 0, count)

    def _add(self, n: Ix, first: Ix, lines: Ix, taps: range, totals: str) -> None:
        """Add what a band gives at some rows of taps; its sums begin at zero, so that errors stay small."""
        c, fn = self.c, self.fn
        sums = ["zeroinitializer"] * (len(taps) * c.cols.taps)
        whole = fn.sub(lines, fn.mod(lines, c.block))
        for begin, end, abreast in ((0, whole, c.block), (whole, lines, 1)):
            if c.block == 1 and abreast == 1 and begin != 0:
                continue
            with fn.range(begin, end, abreast, [(self.t, s) for s in sums]) as line:
                line.next[:] = self._line(n, first, line.i, abreast, taps, line.vars)
            sums = line.out
        for i, total in enumerate(sums):
            at = fn.at(totals, (taps.start * c.cols.taps + i) * c.lanes * c.size)
            add = "fadd" if c.acc.is_floating_point else "add"
            before = load_lanes(fn, at, c.acc, c.lanes)
            store_lanes(fn, fn.op(f"{add} {self.t} {before}, {total}"), at, c.acc, c.lanes)

    def _line(self, n: Ix, first: Ix, line: Ix, lines: int, taps: range, sums: list[str]) -> list[str]:
        c, fn = self.c, self.fn
        whole = c.cols.count // c.lanes * c.lanes
        if whole:
            with fn.range(0, whole, c.lanes, [(self.t, s) for s in sums], runs=True) as v:
                v.next[:] = self._products(n, first, line, lines, taps, v.vars, v.i, None)
            sums = v.out
        if whole < c.cols.count:
            mask = tail_mask(fn, c.cols.count - whole, c.lanes)
            sums = self._products(n, first, line, lines, taps, sums, whole, mask)
        return sums

    def _products(
        self, n: Ix, first: Ix, line: Ix, lines: int, taps: range, sums: list[str], col: Ix, mask: str | None
    ) -> list[str]:
        c, fn, out = self.c, self.fn, list(sums)
        ys = [
            load_lanes(
                fn, self._address(c.w, "%u", n, fn.add(first, fn.add(line, j)), col), c.acc, c.lanes, mask
            )
            for j in range(lines)
        ]
        top = fn.mul(line, c.rows.move)
        for row, found in self._pairs(lines, taps):
            for q in range(c.cols.taps):
                x = self._met(top, row, q, col, mask)
                for j, t in found:
                    i = (t - taps.start) * c.cols.taps + q
                    out[i] = multiply_add(fn, c.acc, c.lanes, x, ys[j], out[i])
        return out
