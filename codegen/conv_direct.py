"""Convolutions as products of rows of pixels by packed weights, with vectors along the output channels.

A tile is some output positions by some vectors of output channels. For each tap of the kernel it reads, at
each of its positions, the channels of one input pixel, found through a table of addresses: what lies in the
padding reads from a row of zeros, so that nothing is padded, unrolled or copied (the indirect convolution of
Dukhan, "The Indirect Convolution Algorithm", 2019). Where the input is dilated (in gradients of strided
convolutions), output positions fall into classes that meet the same taps, and each class is computed by its
own taps alone.

The weights are packed by blocks of output channels; an input that does not lie channels-last is copied once,
and results go out channels-last, or are transposed tile by tile.
"""

from __future__ import annotations

import itertools
from math import prod

from weft.codegen.blocks import Code, Ix
from weft.codegen.contract_kernel import contraction_of
from weft.codegen.conv_copy import copy_positions
from weft.codegen.conv_direct_unit import DirectUnit, emit_scattered
from weft.codegen.conv_geometry import Geometry, Line, lines_of
from weft.codegen.conv_plan import DIRECT, DirectCut, DirectPlan, DirectProblem, direct_cut
from weft.codegen.conv_weights import emit_weights
from weft.codegen.conv_writer import ConvWriter
from weft.codegen.epilogue import Output, kernel_pointers
from weft.codegen.kernel import KernelCode, Phase
from weft.codegen.microkernel import Tile
from weft.codegen.operands import Matrix, matrix
from weft.codegen.packing import Packer, Packing, element_of, unit_rows
from weft.codegen.phases import aligned
from weft.codegen.places import Region
from weft.codegen.target import Target
from weft.codegen.uniforms import Uniforms
from weft.ir.access import Access, collapse
from weft.ir.contraction import (
    block_of_weights,
    blocked_weights,
    by_kernel_rows,
    by_pixels,
    depthwise,
    turn_of,
)
from weft.ir.graph import Op
from weft.ir.record import record, replace

Ints = tuple[int, ...]
_PIXELS = 256  # copied by one unit


@record(frozen=True)
class PixelClass:
    """Output positions that meet the same taps: a line for each dimension."""

    lines: tuple[Line, ...]

    @property
    def shape(self) -> Ints:
        return tuple(line.count for line in self.lines)

    @property
    def pixels(self) -> int:
        return prod(self.shape)

    @property
    def taps(self) -> int:
        return prod(line.taps for line in self.lines)

    @property
    def inside(self) -> bool:
        return all(line.inside for line in self.lines)

    @property
    def whole(self) -> bool:
        """True where these are all output positions, in order."""
        return all(line.gap == 1 for line in self.lines)


def classes_of(g: Geometry) -> list[PixelClass]:
    return [PixelClass(lines) for lines in itertools.product(*(lines_of(g, d) for d in range(3)))]


def suits(op: Op) -> bool:
    """True where a convolution is better computed this way than over packed patches."""
    conv = contraction_of(op.regions[0])
    return by_pixels(conv) or turn_of(op.regions[0], conv) is not None


class Direct(ConvWriter):
    way = DIRECT

    def __init__(self, op: Op, target: Target, prefix: str, plan: DirectPlan | None = None) -> None:
        super().__init__(op, target, prefix)
        x, w = self.conv.operands
        self.w: Matrix = matrix(w, self.graph, ((), (0,), tuple(range(1, w.type.ndim))))
        self.x: Matrix = matrix(x, self.graph, ((0,), tuple(range(2, x.type.ndim)), (1,)))
        self.row = self.g.kernel[2] if by_kernel_rows(self.conv) else 1  # taps that count as channels
        self.pixel, self.pad, self.width = self.g.channels, self.g.lo[2], self.g.size[2]
        if self.row > 1:
            self.g = self._joined()
        self.depthwise = depthwise(self.conv)
        self.m, self.depth = self.g.outputs // self.g.groups, self.g.channels // self.g.groups
        if self.depthwise:  # vectors run through the groups
            self.m, self.g = self.g.outputs, replace(self.g, groups=1)
        self.plane, self.taps = prod(self.g.out), prod(self.g.kernel)
        self.classes = classes_of(self.g)
        self.scattered = len(self.classes) > 1 and self.turn is None
        self.frozen = self._frozen()
        self.choose(self._problem(), plan)
        self.tile = Tile(self.plan.rows, self.plan.vectors, self.lanes, self.acc)
        self.blocks = -(-self.m // self.tile.cols)
        self._source()
        self._layout()

    # -- decisions

    def _joined(self) -> Geometry:
        """The convolution whose channels are those of a row of the kernel, over padded rows of the input."""
        g = self.g
        size = (*g.size[:2], (g.out[2] - 1) * g.stride[2] + self.row)
        kernel, lo = (*g.kernel[:2], 1), (*g.lo[:2], 0)
        return replace(g, channels=g.channels * self.row, size=size, kernel=kernel, lo=lo)

    def _frozen(self) -> Access | None:
        """Where the weights lie in blocks as the kernels read them: then nothing is packed."""
        w = self.conv.operands[1]
        found = blocked_weights(self.graph, self.conv)
        block = block_of_weights(w.type)
        if found is None or self.row > 1 or self.depthwise or self.m % block or block % self.lanes:
            return None
        taps = collapse(w.type.shape[2:], found.strides[3:])
        return None if taps is None else replace(found, strides=(*found.strides[:3], taps))

    def _source(self) -> None:
        """Read the input where it lies, if its channels are neighbours; else from a channels-last copy."""
        a, last = self.x.access, self._channels_last()
        inside = all(c.inside for c in self.classes)
        self.copy_x = not last and not (self.x.plain and inside and self.blocks == 1)
        self.copy_x = self.copy_x or self.row > 1
        if self.depthwise:  # whole vectors of channels are read
            self.copy_x = not last or self.m % self.tile.cols != 0
        if self.copy_x:
            size, c = self.g.size, self.pixel
            strides = (prod(size) * c, 1, size[1] * size[2] * c, size[2] * c, c)
            self.x_strides, self.x_offset = strides, 0
            return
        assert a is not None
        lead = (0,) * (5 - len(a.strides))
        self.x_strides, self.x_offset = (*a.strides[:2], *lead, *a.strides[2:]), a.offset

    def _problem(self) -> DirectProblem:
        g, size = self.g, self.acc.itemsize
        block = block_of_weights(self.conv.operands[1].type) if self.frozen else 0
        classes = tuple((c.pixels, c.taps) for c in self.classes)
        copied = 0 if self._channels_last() else g.samples * prod(g.size) * self.pixel * size
        return DirectProblem(g.samples, g.groups, self.m, self.depth, classes, self.lanes, size, block,
                             self.depthwise, copied, self.turn is not None)  # fmt: skip

    def cut(self, c: PixelClass) -> DirectCut:
        """How units of a class of positions are cut."""
        return direct_cut(self.problem, self.plan, c.pixels, c.taps)

    def _channels_last(self) -> bool:
        """True where the input is read as it lies, pixel by pixel."""
        a = self.x.access
        beside = self.x.plain and a is not None and (a.strides[1] == 1 or self.g.channels == 1)
        return beside and self.row == 1

    def _layout(self) -> None:
        g, size, at = self.g, self.acc.itemsize, 0
        self.zero_at = at
        if not all(c.inside for c in self.classes):
            at += aligned(g.channels * size + self.tile.row_bytes)
        self.x_at = at
        if self.copy_x:
            at += aligned(g.samples * prod(g.size) * self.pixel * size + self.tile.row_bytes)
        self.w_at = at
        if self.frozen is None:
            at += aligned(g.groups * self.blocks * self.taps * self.depth * self.tile.row_bytes)
        self.sums_at = at
        if self.scattered:
            at += aligned((g.samples * self.plane * g.outputs + self.lanes) * size)
        self.uniforms = Uniforms(self, self.conv, aligned(at))
        self.scratch = aligned(at) + self.uniforms.nbytes

    # -- code

    def emit(self) -> KernelCode:
        g, shape = self.g, self.conv.result.type.shape
        self.start_epilogue(Output((g.samples,), tuple(shape[2:]), (shape[1],)))
        phases: list[Phase] = self.uniforms.phase()
        prepare = self._prepare()
        if prepare:
            phases.append(self.phase("prepare", prepare, 2000.0))
        flops = sum(2 * g.samples * c.pixels * c.taps * self.depth * g.outputs for c in self.classes)
        parts = [self._unit(i, c) for i, c in enumerate(self.classes)]
        phases.append(self.phase("main", parts, self.cost_ns / sum(n for _, n in parts)))
        if self.scattered:
            phases.append(self.phase("combine", [emit_scattered(self)], 2000.0))
        return self.code(phases, self.scratch, self._describe(), flops)

    def _describe(self) -> str:
        g, t, b = self.g, self.tile, self.cut(self.classes[0])
        return "\n".join([
            f"direct {'depthwise ' * self.depthwise}conv {g.groups} groups x "
            f"[{g.samples} x {self.plane} pixels] x [{self.m} channels], "
            f"{self.taps} taps of {self.depth} {self.acc.name}{' (rows of the kernel)' * (self.row > 1)}",
            f"  x: {'copied channels-last' if self.copy_x else 'in place'}",
            f"  w: {'in blocks' if self.frozen else 'packed'}",
            f"  y: {'channels-last' if self.turn else 'transposed by tile'}, {len(self.classes)} classes",
            f"  grid: {self.blocks} blocks of tiles of {t.rows} pixels x {t.cols}, "
            f"{b.tiles} x {b.blocks} per unit, k by {b.taps} taps x {b.depth}",
        ])  # fmt: skip

    def _prepare(self) -> list[tuple[str, int]]:
        parts = [self._copy_rows() if self.row > 1 else self._copy_x()] if self.copy_x else []
        if self.frozen is None:
            parts.append(emit_weights(self))
        if self.zero_at < self.x_at:
            parts.append(self._clear())
        return parts

    def _clear(self) -> tuple[str, int]:
        fn = self.start(f"{self.prefix}_zero")
        fn.declare("declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)")
        fn.do(f"call void @llvm.memset.p0.i64(ptr align 64 {fn.at(self.scratch_of(fn), self.zero_at)}, i8 0, "
              f"i64 {self.g.channels * self.acc.itemsize}, i1 false)")  # fmt: skip
        self.keep(fn)
        return fn.symbol, 1

    def _copy_x(self) -> tuple[str, int]:
        """Copy some pixels of one sample, channels-last, as the accumulator's dtype."""
        fn = self.start(f"{self.prefix}_copy_x")
        pointers, x, c = kernel_pointers(fn, self.op), self.x, self.g.channels
        down = x.last_stride(1) == 1 and x.last_stride(2) != 1
        run = x.run(1 if down else 2)
        height = unit_rows(run, x.rows, _PIXELS) if down else _PIXELS
        blocks, size = -(-x.rows // height), self.acc.itemsize
        first, sample = fn.mul(fn.mod("%u", blocks), height), fn.div("%u", blocks)
        dst = fn.at(self.scratch_of(fn), fn.add(self.x_at, fn.mul(sample, x.rows * c * size)))
        origin = None
        if down and x.in_registers:
            origin = (x.base(fn, pointers, sample), (x.k_stride or 0) * size)
        packer = Packer(
            fn, lambda mask: Region(fn, self.graph, self.lanes, pointers, mask),
            lambda r, row, col: element_of(r, x, pointers, sample, row, col),
            Packing(x.rows, c, c, down, run), self.acc, dst, self.lanes, origin,
        )  # fmt: skip
        packer.rows(first, fn.min(fn.add(first, height), x.rows))
        self.keep(fn)
        return fn.symbol, self.g.samples * blocks

    def _copy_rows(self) -> tuple[str, int]:
        """Copy one row of an input of few channels, channels-last and padded."""
        fn = self.start(f"{self.prefix}_copy_rows")
        pointers, x, c, g = kernel_pointers(fn, self.op), self.x, self.pixel, self.g
        rows, size = g.size[0] * g.size[1], self.acc.itemsize
        sample, first = fn.div("%u", rows), fn.mul(fn.mod("%u", rows), self.width)
        dst = fn.at(self.scratch_of(fn), fn.add(self.x_at, fn.mul("%u", g.size[2] * c * size)))
        fn.declare("declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)")
        fn.do(f"call void @llvm.memset.p0.i64(ptr {dst}, i8 0, i64 {g.size[2] * c * size}, i1 false)")
        count = min(self.width, g.size[2] - self.pad)
        copy_positions(self, fn, x, pointers, sample, first, count, fn.at(dst, self.pad * c * size), self.acc,
                       self.lanes)  # fmt: skip
        self.keep(fn)
        return fn.symbol, g.samples * rows

    def x_base(self, fn: Code, sample: Ix) -> str:
        """The address of the first channel of the first pixel of a sample."""
        size = self.acc.itemsize
        index = fn.add(fn.mul(sample, self.x_strides[0]), self.x_offset)
        if self.copy_x:
            return fn.at(self.scratch_of(fn), fn.add(self.x_at, fn.mul(index, size)))
        assert self.x.access is not None
        return fn.at(kernel_pointers(fn, self.op)[self.x.access.param], fn.mul(index, size))

    def _unit(self, number: int, c: PixelClass) -> tuple[str, int]:
        fn = self.start(f"{self.prefix}_unit{number}")
        b = self.cut(c)
        tiles = -(-c.pixels // self.tile.rows)
        counts = (self.g.samples, -(-self.g.groups * self.blocks // b.blocks), -(-tiles // b.tiles))
        sample, block, part = fn.split("%u", counts)
        DirectUnit(self, fn, c, b, sample).emit(block, part)
        self.keep(fn)
        return fn.symbol, prod(counts)
