"""Kernels of form ``conv``: an implicit contraction with what fusion put before and after it.

For each group the weights are a matrix of output channels by k (input channel and kernel position), read in
place; its partner holds one column per output position of any sample. No such matrix is ever in memory as a
whole: a unit of work packs the columns of one panel, for some k at a time, from the input (padded and dilated
beforehand where the convolution asks for that), and multiplies them by every tile of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from weft.codegen.blocks import Code, Ix
from weft.codegen.contract_kernel import contraction_of
from weft.codegen.contract_unit import Grid
from weft.codegen.conv_phases import Phases, emit_phase_weights, emit_weave, split_phases
from weft.codegen.conv_plan import PATCH, PatchPlan, PatchProblem
from weft.codegen.conv_unit import ConvUnit
from weft.codegen.conv_writer import ConvWriter
from weft.codegen.epilogue import kernel_pointers
from weft.codegen.kernel import KernelCode, Phase
from weft.codegen.lanes import store_lanes, tail_mask
from weft.codegen.llvm import reg_type
from weft.codegen.microkernel import Tile, widened
from weft.codegen.operands import Matrix, matrix
from weft.codegen.packing import Packer, Packing, element_of
from weft.codegen.phases import Partial, aligned, emit_combine
from weft.codegen.places import Coord, Place, Region
from weft.codegen.target import Target
from weft.codegen.uniforms import Uniforms
from weft.ir.access import row_major
from weft.ir.contraction import by_taps, turn_of
from weft.ir.graph import Op
from weft.ir.record import record, replace
from weft.ir.types import f32

Ints = tuple[int, ...]
_CHUNK = 512  # k packed at a time, about


def emit(op: Op, target: Target, prefix: str) -> KernelCode:
    """The code of a kernel of form ``conv``."""
    return chosen(op, target, prefix).emit()


def chosen(op: Op, target: Target, prefix: str) -> ConvWriter:
    """The way and the plan of least estimated cost."""
    return min(ways(op, target, prefix), key=lambda way: way.cost_ns)


def ways(op: Op, target: Target, prefix: str) -> Iterator[ConvWriter]:
    """Every way of computing the convolution that is worth an estimate, each with its best plan."""
    from weft.codegen import conv_direct, conv_planes, conv_taps

    conv = contraction_of(op.regions[0])
    turned = turn_of(op.regions[0], conv) is not None
    if conv_planes.suits(op):
        yield conv_planes.Planes(op, target, prefix)
    if by_taps(conv):
        yield conv_taps.Taps(op, target, prefix)
    elif conv_direct.suits(op):
        yield conv_direct.Direct(op, target, prefix)
    if not turned:
        yield Conv(op, target, prefix)


@record(frozen=True)
class Source:
    """Where patches are read: element strides of sample, channel and the three dimensions, and if one may
    read on.

    ``slack`` means that whole vectors may be read past the end of a row.
    """

    strides: Ints
    slack: bool


class Conv(ConvWriter):
    way = PATCH

    def __init__(self, op: Op, target: Target, prefix: str, plan: PatchPlan | None = None) -> None:
        super().__init__(op, target, prefix)
        split = split_phases(self.g)
        self.phases: Phases | None = None
        if split is not None:
            self.g, self.phases = split
        x, w = self.conv.operands
        self.w: Matrix = matrix(w, self.graph, ((), (0,), tuple(range(1, w.type.ndim))))
        self.x: Matrix = matrix(x, self.graph, ((0,), (1,), tuple(range(2, x.type.ndim))))
        self._flatten()
        self._chunks()
        self.pack_w = self.phases is not None or not self.w.in_registers
        self.choose(self._problem(), plan)
        self._blocking(self.plan)
        self._layout()

    # -- decisions

    def _flatten(self) -> None:
        """Run the spatial dimensions as one where the kernel is a single point that moves by one."""
        g = self.g
        flat = prod(g.kernel) == 1 and g.as_is and set(g.stride) == {1}
        self.turned = self._turned()
        self.copy_x = self.turned or not (self.x.plain and g.as_is and self._unit_rows())
        if flat and (self.copy_x or self.x.k_stride == 1):
            n = (1, 1, prod(g.size))
            self.g = replace(g, size=n, spread=n, out=n)

    def _turned(self) -> bool:
        """True where patches are read along kernel rows rather than along output rows, and transposed.

        Output rows are short and kernel rows long in the gradient of the weights. The constants weigh the
        work.
        """
        g, lanes = self.g, self.lanes
        waste = -(-g.kernel[2] // lanes) * lanes / g.kernel[2]
        return g.out[2] * waste < 9 and g.kernel[2] >= lanes // 2 and g.step[2] <= 4

    def _unit_rows(self) -> bool:
        """True where rows can be read in place: memory runs along them, and windows move by one."""
        a = self.x.access
        last = self.conv.operands[0].type.ndim - 1
        return a is not None and (a.strides[last] == 1) and self.g.stride[2] == 1

    def _problem(self) -> PatchProblem:
        g, size = self.g, self.acc.itemsize
        copied = g.samples * g.channels * prod(g.spread) * size if self.copy_x else 0
        copied += g.outputs * self.k * size if self.pack_w else 0
        run = g.kernel[2] if self.turned else g.out[2]
        return PatchProblem(g.groups, self.m, self.k, self.cols, self.chunks, run, self.lanes, size, copied,
                            self.phases is not None)  # fmt: skip

    def _chunks(self) -> None:
        g = self.g
        self.m, self.k = g.outputs // g.groups, g.channels // g.groups * prod(g.kernel)
        self.plane = prod(g.out)
        self.cols = g.samples * self.plane
        # k runs over (channel, kernel rows) and, inside, a kernel row, or pieces of a long one
        self.inner = min(g.kernel[2], _CHUNK)
        self.pieces = -(-g.kernel[2] // self.inner)
        self.outer = self.k // g.kernel[2] * self.pieces
        self.per_chunk = 1 if self.pieces > 1 else max(1, min(self.outer, _CHUNK // self.inner))
        self.chunks = -(-self.outer // self.per_chunk)

    def _blocking(self, plan: PatchPlan) -> None:
        tile = Tile(plan.rows, plan.vectors, self.lanes, self.acc)
        panels, tiles = -(-self.cols // tile.cols), -(-self.m // plan.rows)
        self.grid = Grid(tile, 0, panels, tiles, self.m, (1, plan.tiles), False, 0)
        self.splits = plan.parts
        self.partial = self.splits > 1 or self.phases is not None

    def _layout(self) -> None:
        g, size, at = self.g, self.acc.itemsize, 0
        slack = 2 * self.lanes * max(g.stride[2], g.step[2])
        self.copied = row_major((g.samples, g.channels, *g.spread))
        self.x_at = at
        if self.copy_x:
            at += aligned((g.samples * g.channels * prod(g.spread) + slack) * size)
        self.w_at, self.w_ld = at, self.k + (16 if self.k * size % 2048 == 0 else 0)
        if self.pack_w:
            at += aligned(g.outputs * self.w_ld * size)
        self.partial_at = at
        self.partial_bytes = g.samples * g.outputs * self.plane * size
        if self.partial:
            at += self.splits * self.partial_bytes
        self.uniforms = Uniforms(self, self.conv, aligned(at))
        self.scratch = aligned(at) + self.uniforms.nbytes
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
        self.start_epilogue()
        flops = 2 * self.cols * g.outputs * self.k
        phases: list[Phase] = self.uniforms.phase()
        prepare = ([self._spread_x()] if self.copy_x else []) + ([self._pack_w()] if self.pack_w else [])
        if prepare:
            phases.append(self.phase("prepare", prepare, 100.0 + 0.5 * g.spread[2]))
        part = self._main()
        phases.append(self.phase("main", [part], self.cost_ns / part[1]))
        if self.partial:
            phases.append(self.phase("combine", [self._combine()], self.plane * self.splits * 0.2))
        return self.code(phases, self.scratch, self._describe(), flops)

    def _describe(self) -> str:
        g, t = self.g, self.grid.tile
        return "\n".join([
            f"conv {g.groups} groups x [{self.m}, {self.k}] x [{self.k}, {self.cols}] {self.acc.name}",
            f"  x: {'spread to ' + str(g.spread) if self.copy_x else 'in place'}, packed by panel",
            f"  w: {'packed' if self.pack_w else 'in place'}",
            f"  phases: {self.phases.count if self.phases else 1}",
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
        if self.phases is not None:
            return emit_phase_weights(self, self.phases)
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
        ConvUnit(self, fn, group, split, panel).emit(mb)
        self.keep(fn)
        return fn.symbol, prod(units)

    def _combine(self) -> tuple[str, int]:
        if self.phases is not None:
            return emit_weave(self, self.phases)
        fn = self.start(f"{self.prefix}_sum")
        where = (fn.div("%u", self.g.outputs), fn.mod("%u", self.g.outputs))
        partial = Partial(self.partial_at, self.partial_bytes, self.splits)
        emit_combine(fn, self.scratch_of(fn), partial, self.epilogue.symbol, self.acc, self.lanes, self.plane,
                     fn.mul("%u", self.plane), where)  # fmt: skip
        self.keep(fn)
        return fn.symbol, self.g.samples * self.g.outputs
