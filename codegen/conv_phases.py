"""Convolutions with a dilated input, without multiplying by the zeros in it.

Where the input is spread by ``gap`` (in the gradient of a strided convolution, or a transposed one), the
output positions of one phase, ``gap * q + phase``, see only some taps of the kernel, and always the same. So
all phases are computed by one convolution of the input as it is, with a smaller kernel and ``prod(gap)``
times the output channels, and are woven together afterwards (the sub-pixel convolution of Shi et al., CVPR
2016, the other way round).
"""

from __future__ import annotations

import itertools
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from weft.codegen.blocks import Code, Ix
from weft.codegen.epilogue import kernel_pointers
from weft.codegen.lanes import gather_lanes, load_lanes, store_lanes, tail_mask
from weft.codegen.llvm import reg_type
from weft.codegen.microkernel import accumulator, widened
from weft.codegen.places import Coord, Place, Region, constant
from weft.ir.record import record, replace
from weft.ir.types import bool_, f32

if TYPE_CHECKING:
    from weft.codegen.conv_geometry import Geometry
    from weft.codegen.conv_kernel import Conv

Ints = tuple[int, ...]


@record(frozen=True)
class Phases:
    """``taps[phase, place]`` is the flat kernel position that a phase multiplies at a place of its window, or
    -1.

    ``out`` is the size of the whole result, ``inner`` that of one phase; ``outputs`` its channels.
    """

    taps: np.ndarray
    gap: Ints
    out: Ints
    inner: Ints
    outputs: int

    @property
    def count(self) -> int:
        return prod(self.gap)


def split_phases(g: Geometry) -> tuple[Geometry, Phases] | None:
    """The convolution of all phases of ``g``, where that saves work; else None."""
    if max(g.gap) == 1 or max(g.stride) > 1:
        return None
    lines = [_line(*numbers) for numbers in zip(g.gap, g.lo, g.step, g.kernel, strict=True)]
    lo = tuple(-first for first, _ in lines)
    window = tuple(len(table[0]) for _, table in lines)
    if 3 * prod(window) > 2 * prod(g.kernel):
        return None
    taps = np.full((prod(g.gap), prod(window)), -1, np.int64)
    for phase, place in itertools.product(np.ndindex(*g.gap), np.ndindex(*window)):
        found = [table[p][j] for (_, table), p, j in zip(lines, phase, place, strict=True)]
        if min(found) >= 0:
            taps[np.ravel_multi_index(phase, g.gap), np.ravel_multi_index(place, window)] = (
                np.ravel_multi_index(found, g.kernel)
            )
    out = tuple(-(-n // gap) for n, gap in zip(g.out, g.gap, strict=True))
    spread = tuple(q + j - 1 for q, j in zip(out, window, strict=True))
    ones = (1,) * len(out)
    inner = replace(
        g, outputs=g.outputs * prod(g.gap), spread=spread, kernel=window, out=out, lo=lo, gap=ones, step=ones
    )
    return inner, Phases(taps, g.gap, g.out, out, g.outputs)


def _line(gap: int, lo: int, step: int, kernel: int) -> tuple[int, list[list[int]]]:
    """For one dimension: where windows begin, relative to q, and by phase the tap (or -1) at each place."""
    # output gap * q + phase meets tap k at input q + e, if phase + k * step - lo == gap * e
    meets = [(p, k, (p + k * step - lo) // gap) for p in range(gap) for k in range(kernel)
             if (p + k * step - lo) % gap == 0]  # fmt: skip
    if not meets:
        return 0, [[-1] for _ in range(gap)]
    first, last = min(e for *_, e in meets), max(e for *_, e in meets)
    table = [[-1] * (last - first + 1) for _ in range(gap)]
    for p, k, e in meets:
        table[p][e - first] = k
    return first, table


def emit_phase_weights(c: Conv, phases: Phases) -> tuple[str, int]:
    """Pack the weights of every phase: rows (group, phase, channel), columns (input channel, place)."""
    fn = c.start(f"{c.prefix}_pack_w")
    pointers = kernel_pointers(fn, c.op)
    w = c.conv.operands[1]
    shape, acc = w.type.shape, c.acc
    rows = c.m // phases.count  # of one phase in one group
    group, phase, row = fn.split("%u", (c.g.groups, phases.count, rows))
    table = constant(fn, phases.taps)
    places = phases.taps.shape[1]
    line = fn.at(c.scratch_of(fn), fn.add(c.w_at, fn.mul("%u", c.w_ld * acc.itemsize)))
    with fn.range(0, shape[1], runs=True) as ch, fn.range(0, places, runs=True) as j:
        tap = fn.load("i64", fn.at(table, fn.add(fn.mul(phase, places), j.i), "i64"), 8)
        region = Region(fn, c.graph, c.lanes, pointers)
        spatial = fn.split(fn.max(tap, 0), shape[2:])
        coords = [Coord(i) for i in (fn.add(fn.mul(group, rows), row), ch.i, *spatial)]
        b, dtype = region.builder, w.type.dtype
        got = region.value(w, Place(shape, lambda coords=coords: coords))
        half = dtype.is_floating_point and acc is f32
        text = got.text if half else widened(fn, got.text, dtype, 0)
        there = b.reg(fn.op(f"icmp sge i64 {tap}, 0"), bool_)
        value = b.select(there, b.reg(text, accumulator(dtype)), b.const(0, acc))
        at = fn.at(line, fn.mul(fn.add(fn.mul(ch.i, places), j.i), acc.itemsize))
        fn.store(reg_type(acc), value.text, at, acc.itemsize)
    c.keep(fn)
    return fn.symbol, c.g.outputs


def emit_weave(c: Conv, phases: Phases) -> tuple[str, int]:
    """Gather the phases of one channel of one sample from the partial sums, row by row, into the epilogue."""
    fn = c.start(f"{c.prefix}_weave")
    acc, lanes, size = c.acc, c.lanes, c.acc.itemsize
    rows = c.m // phases.count
    sample, group, row = fn.split("%u", (c.g.samples, c.g.groups, rows))
    base = fn.at(c.scratch_of(fn), c.partial_at)
    block = 8 * lanes
    line = fn.alloca(block * size)
    with fn.range(0, phases.out[0]) as p0, fn.range(0, phases.out[1]) as p1:
        q0, f0 = fn.div(p0.i, phases.gap[0]), fn.mod(p0.i, phases.gap[0])
        q1, f1 = fn.div(p1.i, phases.gap[1]), fn.mod(p1.i, phases.gap[1])
        outer = fn.mul(fn.add(fn.mul(f0, phases.gap[1]), f1), phases.gap[2])
        channel = fn.add(fn.mul(fn.add(fn.mul(sample, c.g.groups), group), c.m), row)
        start = fn.add(fn.mul(fn.add(channel, fn.mul(outer, rows)), c.plane),
                       fn.mul(fn.add(fn.mul(q0, phases.inner[1]), q1), phases.inner[2]))  # fmt: skip
        with fn.range(0, phases.out[2], block) as p2:
            count = fn.min(fn.sub(phases.out[2], p2.i), block)
            with fn.range(0, count, lanes) as v:
                mask = tail_mask(fn, fn.sub(count, v.i), lanes)
                total = _woven(c, phases, base, start, fn.add(p2.i, v.i), mask, fn)
                store_lanes(fn, total, fn.at(line, fn.mul(v.i, size)), acc, lanes)
            col = fn.add(fn.mul(fn.add(fn.mul(p0.i, phases.out[1]), p1.i), phases.out[2]), p2.i)
            out_row = fn.add(fn.mul(group, rows), row)
            fn.do(f"call void @{c.epilogue.symbol}(ptr %bufs, ptr {line}, i64 {block * size}, i64 {sample}, "
                  f"i64 {out_row}, i64 1, i64 {col}, i64 {count})")  # fmt: skip
    c.keep(fn)
    return fn.symbol, c.g.samples * phases.outputs


def _woven(c: Conv, phases: Phases, base: str, start: Ix, col: Ix, mask: str, fn: Code) -> str:
    """The sums, from column ``col`` on, of the row that begins at element ``start`` of its first phase."""
    lanes, acc, gap = c.lanes, c.acc, phases.gap[2]
    t = reg_type(acc, lanes)
    region = Region(fn, c.graph, lanes, {}, mask)
    q, phase = region.divmod(Coord(col, 1), gap, phases.out[2] + lanes)
    apart = c.m // phases.count * c.plane  # elements between phases
    index = region.plus(region.plus(q, region.times(phase, apart)), Coord(start))
    total = ""
    for s in range(c.splits):
        array = fn.at(base, s * c.partial_bytes)
        if index.vec is None:
            x = load_lanes(fn, fn.at(array, index.base, reg_type(acc)), acc, lanes, mask)
        else:
            x = gather_lanes(fn, array, index.vec, acc, lanes, mask)
        add = "fadd" if acc.is_floating_point else "add"
        total = fn.op(f"{add} {t} {total}, {x}") if total else x
    return total
