"""The weights of a convolution, packed as ``[group][block of output channels][tap][input channel][lane]``."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from weft.codegen.blocks import Code, Ix
from weft.codegen.epilogue import kernel_pointers
from weft.codegen.lanes import load_lanes, store_lanes, tail_mask
from weft.codegen.packing import element_of, transpose_function
from weft.codegen.places import Coord, Region
from weft.ir.access import collapse

if TYPE_CHECKING:
    from weft.codegen.conv_direct import Direct

_UNIT_ELEMENTS = 1 << 14


class WeightPacking:
    """Writes one vector's width of output channels for some input channels. ``strides``: of output channel,
    input channel and tap in elements, where the weights lie in memory as they are packed; else None.
    """

    def __init__(self, d: Direct, fn: Code) -> None:
        self.d, self.fn = d, fn
        self.pointers = kernel_pointers(fn, d.op)
        self.strides: tuple[int, int, int] | None = None
        a = d.w.access
        if d.w.plain and a is not None and d.row == 1:
            taps = collapse(d.w.value.type.shape[2:], a.strides[2:])
            if taps is not None:
                self.strides = (a.strides[0], a.strides[1], taps)

    def emit(self, group: Ix, vector: Ix, first: Ix, last: Ix) -> None:
        """Input channels ``first`` to ``last`` of vector number ``vector`` of a group's output channels."""
        d, fn = self.d, self.fn
        per_block = d.tile.vectors
        block, lane = fn.div(vector, per_block), fn.mul(fn.mod(vector, per_block), d.lanes)
        where = fn.dot((group, block), (d.blocks, 1))
        at = fn.add(fn.mul(where, d.taps * d.depth * d.tile.row_bytes), fn.mul(lane, d.acc.itemsize))
        self.dst = fn.at(d.scratch_of(fn), fn.add(d.w_at, at))
        col = fn.mul(vector, d.lanes)
        self.row = fn.add(fn.mul(group, d.m), col)
        self.count = fn.max(fn.min(fn.sub(d.m, col), d.lanes), 0)
        s = self.strides
        if s is not None and s[0] != 1 and ((abs(s[2]) == 1 and d.taps > 1) or (s[1] == 1 and d.taps == 1)):
            some = fn.op(f"icmp sgt i64 {self.count}, 0")
            with fn.when(some):
                self._transposed(first, last, s)
            with fn.when(fn.op(f"xor i1 {some}, true")):
                self._vectors(first, last)
            return
        self._vectors(first, last)

    def _transposed(self, first: Ix, last: Ix, strides: tuple[int, int, int]) -> None:
        """Turn blocks in which memory runs along the taps, or along input channels where there is one tap."""
        d, fn, size = self.d, self.fn, self.d.acc.itemsize
        name, row_bytes = transpose_function(fn, d.acc, d.lanes), d.tile.row_bytes
        assert d.w.access is not None
        base = fn.at(self.pointers[d.w.access.param],
                     fn.mul(fn.add(d.w.access.offset, fn.mul(self.row, strides[0])), size))  # fmt: skip

        def turn(src: str, dst: str, ld: int, rows: Ix) -> None:
            fn.do(f"call void @{name}(ptr {src}, i64 {strides[0] * size}, ptr {dst}, i64 {ld}, i64 {rows}, "
                  f"i64 {self.count}, i64 {d.lanes})")  # fmt: skip

        if d.taps == 1:
            with fn.range(first, last, d.lanes) as c:
                rows = fn.min(fn.sub(last, c.i), d.lanes)
                turn(fn.at(base, fn.mul(c.i, size)), fn.at(self.dst, fn.mul(c.i, row_bytes)), row_bytes, rows)
            return
        forward, apart = strides[2] == 1, d.depth * row_bytes
        with fn.range(first, last) as c, fn.range(0, d.taps, d.lanes) as t:
            rows = fn.min(fn.sub(d.taps, t.i), d.lanes)
            # memory running backwards is read from the last tap on
            low = t.i if forward else fn.sub(d.taps - 1, t.i)
            start = t.i if forward else fn.sub(0, low)
            src = fn.at(base, fn.mul(fn.add(fn.mul(c.i, strides[1]), start), size))
            dst = fn.at(self.dst, fn.add(fn.mul(low, apart), fn.mul(c.i, row_bytes)))
            turn(src, dst, apart if forward else -apart, rows)

    def _vectors(self, first: Ix, last: Ix) -> None:
        """Read vectors of output channels, gathered where they are no neighbours."""
        d, fn = self.d, self.fn
        mask = tail_mask(fn, self.count, d.lanes)
        with fn.range(first, last) as c, fn.range(0, d.taps) as t:
            at = fn.at(self.dst, fn.mul(fn.add(fn.mul(t.i, d.depth), c.i), d.tile.row_bytes))
            if self.strides is not None and self.strides[0] == 1:
                assert d.w.access is not None
                index = fn.dot((self.row, c.i, t.i), self.strides, d.w.access.offset)
                src = fn.at(self.pointers[d.w.access.param], fn.mul(index, d.acc.itemsize))
                x = load_lanes(fn, src, d.acc, d.lanes, mask)
            else:
                region = Region(fn, d.graph, d.lanes, self.pointers, mask)
                # of a row of the kernel: input channel, then place in the row
                channel, place = (fn.mod(c.i, d.pixel), fn.div(c.i, d.pixel)) if d.row > 1 else (c.i, 0)
                k = Coord(fn.add(fn.mul(fn.add(fn.mul(channel, d.taps), t.i), d.row), place))
                x = element_of(region, d.w, self.pointers, 0, Coord(self.row, 1), k)
            store_lanes(fn, x, at, d.acc, d.lanes)


def emit_weights(d: Direct) -> tuple[str, int]:
    """The function that packs some of the weights, and the number of its units."""
    fn = d.start(f"{d.prefix}_pack_w")
    per_unit = max(1, min(d.depth, _UNIT_ELEMENTS // (d.taps * d.lanes)))
    counts = (d.g.groups, d.blocks * d.tile.vectors, -(-d.depth // per_unit))
    group, vector, part = fn.split("%u", counts)
    first = fn.mul(part, per_unit)
    WeightPacking(d, fn).emit(group, vector, first, fn.min(fn.add(first, per_unit), d.depth))
    d.keep(fn)
    return fn.symbol, prod(counts)
