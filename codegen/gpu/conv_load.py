"""The data operand of a convolution as a matrix of output positions by (tap, channel): patches, in place.

Nothing is unrolled into memory: every element is addressed from its position, tap and channel, and is zero in
the padding and between the elements of a dilated input.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from weft.codegen.blocks import Ix
from weft.codegen.conv_geometry import Geometry
from weft.codegen.gpu.contract_code import BlockCode, power_of_two
from weft.codegen.gpu.contract_load import Line, Spot
from weft.codegen.gpu.contract_region import DeviceRegion, elements, load_elements
from weft.codegen.llvm import mem_type, reg_type
from weft.codegen.places import Coord, Place
from weft.ir.access import Access, access_of
from weft.ir.graph import Graph, Value

_DIMS = (0, 1, 2)
_CHANNELS = 32  # in a multiple of which there are enough to walk them before the taps


def channels_last(x: Value, graph: Graph) -> bool:
    """True where memory runs along the channels of an image."""
    a = access_of(x, graph.producers())
    return a is not None and a.strides[1] == 1 and x.type.shape[1] > 1


def taps_outside(x: Value, graph: Graph, g: Geometry) -> bool:
    """True where k is (*taps, channel): a tile then has a single tap, or vectors run along channels."""
    return channels_last(x, graph) or g.channels // g.groups % _CHANNELS == 0


class PatchSide:
    """Rows are positions (sample, *out), k (*taps, channel) or (channel, *taps); ``batch`` is the group."""

    def __init__(self, x: Value, graph: Graph, g: Geometry, most: int) -> None:
        self.x, self.graph, self.g, self.dtype = x, graph, g, x.type.dtype
        self.access: Access | None = access_of(x, graph.producers())
        self.plain = self.access is not None and self.access.pure
        self.last, self.outside = channels_last(x, graph), taps_outside(x, graph, g)
        self.step = 1
        self._taps: dict[tuple[Ix, Ix], Line] = {}
        self._seen: dict[object, tuple[str | None, list[Ix]]] = {}
        self.depth = g.channels // g.groups
        self.rows = g.samples * prod(g.out)
        rows = g.out[2] / g.stride[2] >= min(8, g.kernel[2] / g.step[2])
        self.along = "row" if rows and not self.last else "k"
        self.vector = min(most, self._whole()) if self.last else 1
        self.separable = self.plain and max(g.gap) == 1

    def _whole(self) -> int:
        """The largest power of two of channels that all strides and offsets keep together."""
        a, shape = self.access, self.x.type.shape
        assert a is not None
        found = power_of_two(self.depth)
        if not self.plain:
            return found
        strides = [s for i, s in enumerate(a.strides) if i != 1 and shape[i] > 1]
        return min([found, power_of_two(a.offset), *map(power_of_two, strides)])

    @property
    def _strides(self) -> tuple[int, ...]:
        """Elements between samples, channels and the three dimensions."""
        if self.access is None:
            return (0, 0, 0, 0, 0)
        n, c, *space = self.access.strides
        return (n, c, *(0,) * (3 - len(space)), *space)

    def row(self, fn: BlockCode, batch: Ix, row: Ix) -> Line:
        g, strides = self.g, self._strides
        ok = fn.below(row, self.rows)
        row = fn.select(ok, row, 0)
        n, *out = fn.split(row, (g.samples, *g.out))
        corner = [fn.sub(fn.mul(o, g.stride[d]), g.lo[d]) for d, o in enumerate(out)]
        first = fn.mul(batch, self.depth)
        index: Ix = 0
        if self.plain:
            assert self.access is not None
            index = fn.dot((n, first), strides[:2], self.access.offset)
        if self.separable:
            index = fn.dot(corner, strides[2:], index)
        return Line(index, n, ok, (first, *corner))

    def k(self, fn: BlockCode, first: Ix, inside: Ix, stop: Ix) -> Line:
        g = self.g
        if self.outside and self.depth % self.step == 0:  # one tap for the tile; parts of k are whole tiles
            key = (first, stop)
            if key not in self._taps:
                ok = fn.below(first, stop)
                *taps, c = fn.split(fn.select(ok, first, 0), (*g.kernel, self.depth))
                self._taps[key] = self._line(fn, c, taps, ok)
            tile = self._taps[key]
            c = fn.add(tile.at, inside)
            index = fn.add(tile.index, fn.mul(inside, self._strides[1])) if self.plain else 0
            return Line(index, c, tile.ok, tile.more)
        k = fn.add(first, inside)
        ok = fn.below(k, stop)
        k = fn.select(ok, k, 0)
        if self.outside:
            *taps, c = fn.split(k, (*g.kernel, self.depth))
        else:
            c, *taps = fn.split(k, (self.depth, *g.kernel))
        return self._line(fn, c, taps, ok)

    def _line(self, fn: BlockCode, c: Ix, taps: list[Ix], ok: str | None) -> Line:
        strides = self._strides
        reach = [fn.mul(t, self.g.step[d]) for d, t in enumerate(taps)]
        index = fn.mul(c, strides[1]) if self.plain else 0
        if self.separable:
            index = fn.dot(reach, strides[2:], index)
        return Line(index, c, ok, tuple(reach))

    def _inside(self, dim: int) -> bool:
        """True where every tap of every position along a dimension is an input."""
        g = self.g
        reach = (g.out[dim] - 1) * g.stride[dim] - g.lo[dim] + (g.kernel[dim] - 1) * g.step[dim]
        return g.lo[dim] <= 0 and reach < g.size[dim] and g.gap[dim] == 1

    def _within(self, fn: BlockCode, row: Line, k: Line) -> tuple[str | None, list[Ix]]:
        """Whether there is an input for a position and a tap, and its coordinates."""
        g, ok, at = self.g, fn.both(row.ok, k.ok), []
        for d in _DIMS:
            q = fn.add(row.more[1 + d], k.more[d])
            if not self._inside(d):
                ok = fn.both(ok, fn.below(q, (g.size[d] - 1) * g.gap[d] + 1))
            if g.gap[d] > 1:
                safe = fn.select(ok, q, 0)
                whole = fn.op(f"icmp eq i64 {fn.mod(safe, g.gap[d])}, 0")
                ok, q = fn.both(ok, whole), fn.div(safe, g.gap[d])
            at.append(q)
        return ok, at

    def locate(self, fn: BlockCode, row: Line, k: Line) -> Spot:
        strides, key = self._strides, (row.ok, row.more, k.ok, k.more)
        if key not in self._seen:
            self._seen[key] = self._within(fn, row, k)
        ok, at = self._seen[key]
        index: Ix = 0
        if self.plain:
            index = fn.add(row.index, k.index)
            index = index if self.separable else fn.dot(at, strides[2:], index)
            index = fn.select(ok, index, 0)
        channel = fn.add(row.more[0], k.at)
        spot = Line(0, row.at, None, (channel, *(fn.select(ok, q, 0) for q in at)) if not self.plain else ())
        return Spot(index, spot, k, ok)

    def address(self, fn: BlockCode, pointers: Mapping[Value, str], spot: Spot) -> str:
        assert self.access is not None
        return fn.at(pointers[self.access.param], spot.index, mem_type(self.dtype))

    def fetch(self, fn: BlockCode, pointers: Mapping[Value, str], batch: Ix, spot: Spot) -> str:
        lanes = self.vector if self.vector > 1 else 0
        if self.plain:
            assert self.access is not None
            return load_elements(fn, pointers[self.access.param], spot.index, self.dtype, lanes)
        region = DeviceRegion(fn, self.graph, self.vector, pointers)
        channel, *space = spot.row.more
        shape = self.x.type.shape
        c = Coord(channel, 1, block=lanes) if lanes else Coord(channel)
        coords = [Coord(spot.row.at), c, *(Coord(q) for q in space[3 - (len(shape) - 2) :])]
        got = region.value(self.x, Place(shape, lambda: coords))
        if lanes:
            return region.wide(got)
        return elements(fn, got.text, reg_type(self.dtype), got.lanes)[0]
