"""Operands of a contraction on their way to shared memory: where elements lie, and who copies which.

A :class:`Side` tells where element (row, k) of an operand is. What depends on the row alone is computed
before the loop over k, what depends on k once per step; both are :class:`Line`. Rows and k out of range are
clamped (so that what is read is there) and give zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from weft.codegen.blocks import Ix
from weft.codegen.gpu.contract_code import BlockCode, power_of_two
from weft.codegen.gpu.contract_region import DeviceRegion, elements, lanes_within, load_elements
from weft.codegen.lanes import to_memory, to_register
from weft.codegen.llvm import mem_type, reg_type
from weft.codegen.microkernel import accumulator, widened
from weft.codegen.operands import Matrix
from weft.codegen.places import Coord
from weft.ir.graph import Graph, Value
from weft.ir.types import DType, f32

_ASYNC_BYTES = (4, 8, 16)
_ABREAST = 16  # rows that a warp copies at a time where elements are scattered


@dataclass(frozen=True)
class Line:
    """A row, or a k: its part of the index of an element, its clamped number, and the i1 that it is in range.

    ``more`` holds what a kind of operand needs besides.
    """

    index: Ix
    at: Ix
    ok: str | None
    more: tuple[Ix, ...] = ()


@dataclass(frozen=True)
class Spot:
    """A vector of an operand: its index where memory holds it, row and k, and the i1 that it is in range."""

    index: Ix
    row: Line
    k: Line
    ok: str | None


class Side(Protocol):
    """An operand; ``along`` ("k" or "row") is the direction of its vectors of ``vector`` elements."""

    along: str
    vector: int
    dtype: DType
    plain: bool  # memory holds the elements as they are
    step: int  # k of a tile

    def row(self, fn: BlockCode, batch: Ix, row: Ix) -> Line: ...

    def k(self, fn: BlockCode, first: Ix, inside: Ix, stop: Ix) -> Line:
        """k number ``inside`` of the tile from ``first`` on."""
        ...

    def locate(self, fn: BlockCode, row: Line, k: Line) -> Spot:
        """Where the vector from (row, k) on is."""
        ...

    def address(self, fn: BlockCode, pointers: Mapping[Value, str], spot: Spot) -> str: ...

    def fetch(self, fn: BlockCode, pointers: Mapping[Value, str], batch: Ix, spot: Spot) -> str:
        """The vector: as memory holds it if ``plain``, else in registers."""
        ...


class MatrixSide:
    """An operand of dot_general: a strided view, or whatever the region computes from one.

    With ``parts`` > 1 the rows are so many groups of equal size, of which ``batch`` chooses one.
    """

    def __init__(self, m: Matrix, graph: Graph, most: int, parts: int = 1) -> None:
        self.m, self.graph, self.dtype, self.parts = m, graph, m.dtype, parts
        self.plain, self.step = m.affine, 1
        self.rows, self.depth = m.rows // parts, m.depth
        self.along, self.vector = self._direction(most)

    def _direction(self, most: int) -> tuple[str, int]:
        m = self.m
        if m.access is None:
            return "k", 1
        strides = {"row": m.last_stride(1) or 0, "k": m.last_stride(2) or 0}
        along = "row" if strides["row"] == 1 and strides["k"] != 1 else "k"
        if strides["k"] not in (0, 1) and strides["row"] not in (0, 1):
            along = "row" if abs(strides["row"]) < abs(strides["k"]) else "k"
        which = 1 if along == "row" else 2
        lanes = min(most, power_of_two(self.rows) if along == "row" else most)
        if not self.plain:
            return along, lanes_within(m.sizes(which), lanes)
        if strides[along] != 1:
            return along, 1
        return along, min(lanes, self._whole(which))

    def _whole(self, which: int) -> int:
        """The largest power of two of elements that all strides and offsets keep together."""
        m = self.m
        assert m.access is not None
        found = min(power_of_two(m.access.offset), power_of_two(m.groups(which)[-1][0]))
        for g in range(3):
            for size, stride in m.groups(g)[: -1 if g == which else None]:
                found = min(found, power_of_two(stride) if size > 1 else found)
        return found

    def _base(self, fn: BlockCode, batch: Ix) -> Ix:
        a = self.m.access
        assert a is not None
        return fn.dot(
            fn.split(0 if self.parts > 1 else batch, self.m.sizes(0)),
            [a.strides[i] for i in self.m.axes[0]],
            a.offset,
        )

    def _groups(self, fn: BlockCode, which: int, at: Ix) -> Ix:
        groups = self.m.groups(which)
        return fn.dot(fn.split(at, [d for d, _ in groups]), [s for _, s in groups])

    def row(self, fn: BlockCode, batch: Ix, row: Ix) -> Line:
        ok = fn.below(row, self.rows)
        row = fn.select(ok, row, 0)
        if self.parts > 1:
            row = fn.add(row, fn.mul(batch, self.rows))
        index = fn.add(self._base(fn, batch), self._groups(fn, 1, row)) if self.plain else 0
        return Line(index, row, ok)

    def k(self, fn: BlockCode, first: Ix, inside: Ix, stop: Ix) -> Line:
        k = fn.add(first, inside)
        ok = fn.below(k, stop)
        k = fn.select(ok, k, 0)
        return Line(self._groups(fn, 2, k) if self.plain else 0, k, ok)

    def locate(self, fn: BlockCode, row: Line, k: Line) -> Spot:
        return Spot(fn.add(row.index, k.index), row, k, fn.both(row.ok, k.ok))

    def address(self, fn: BlockCode, pointers: Mapping[Value, str], spot: Spot) -> str:
        assert self.m.access is not None
        return fn.at(pointers[self.m.access.param], spot.index, mem_type(self.dtype))

    def fetch(self, fn: BlockCode, pointers: Mapping[Value, str], batch: Ix, spot: Spot) -> str:
        lanes = self.vector if self.vector > 1 else 0
        if self.plain:
            assert self.m.access is not None
            return load_elements(fn, pointers[self.m.access.param], spot.index, self.dtype, lanes)
        row, k = spot.row, spot.k
        region = DeviceRegion(fn, self.graph, self.vector, pointers)
        step = 1 if lanes else 0
        r, d = (Coord(row.at), Coord(k.at))
        if self.along == "row":
            r = Coord(row.at, step, block=self.vector)
        else:
            d = Coord(k.at, step, block=self.vector)
        got = region.value(self.m.value, self.m.place(region, 0 if self.parts > 1 else batch, r, d))
        if lanes:
            return region.wide(got)
        return elements(fn, got.text, reg_type(self.dtype), got.lanes)[0]


@dataclass(frozen=True)
class Swizzle:
    """Lines of ``chunks`` pieces of 16 bytes in shared memory, permuted so that eight lines of one column
    fall into different banks."""

    chunks: int

    @property
    def line_bytes(self) -> int:
        return self.chunks * 16

    def turn(self, fn: BlockCode, line: Ix) -> Ix:
        """What the number of a piece is xored with, in this line (i32)."""
        lines = max(1, 8 // self.chunks)
        return fn.i32("and", fn.i32("udiv", line, lines), min(self.chunks, 8) - 1)


class TileLoader:
    """Copies tiles of ``rows`` by ``depth`` of a side to shared memory, by all threads of a block.

    ``kind`` "wide": as the accumulator's dtype, k by k, ``rows + pad`` elements each (for
    :mod:`contract_simt`); "narrow": as in memory, in swizzled lines along the side's direction (for
    ``ldmatrix``).
    """

    def __init__(
        self, side: Side, rows: int, depth: int, threads: int, kind: str, pad: int, asynchronous: bool
    ) -> None:
        self.side, self.rows, self.depth, self.threads, self.kind = side, rows, depth, threads, kind
        self.acc = accumulator(side.dtype)
        side.step = depth
        self.vector = min(side.vector, rows if side.along == "row" else depth)
        nbytes = self.vector * side.dtype.itemsize
        # ldmatrix transposes elements of 16 bits only: others are scattered
        self.scattered = kind == "narrow" and side.along == "row" and side.dtype.itemsize != 2
        self.turned = side.along == "row" and not self.scattered
        plain = kind == "narrow" and side.plain and not self.scattered
        self.asynchronous = asynchronous and plain and nbytes in _ASYNC_BYTES
        line = depth if side.along == "k" else rows
        self.swizzle = Swizzle((rows if self.turned else depth) * side.dtype.itemsize // 16)
        self.line = line // self.vector  # vectors in a line
        self.ld = rows + pad
        self.count = -(-rows * depth // (self.vector * threads))  # vectors per thread
        self.partial = rows * depth < self.count * self.vector * threads
        self.bytes = (
            rows * depth * side.dtype.itemsize if kind == "narrow" else depth * self.ld * self.acc.itemsize
        )

    def begin(self, fn: BlockCode, pointers: Mapping[Value, str], batch: Ix, row0: Ix) -> None:
        """Before the loop: which elements are this thread's, and what depends on their rows alone."""
        self.pointers, self.batch = pointers, batch
        self.rows_of: list[Line] = []
        self.ks: list[Ix] = []
        self.to: list[Ix] = []
        self.mine: list[str | None] = []
        self._line0, self._at0 = self._first(fn)
        seen: dict[Ix, Line] = {}
        for i in range(self.count):
            line, at = self._place(fn, i)
            r, k = (line, at) if self.side.along == "k" else (at, line)
            if r not in seen:
                row = fn.add(row0, fn.index(r, self.vector if self.side.along == "row" else 1))
                seen[r] = self.side.row(fn, batch, row)
            self.rows_of.append(seen[r])
            self.ks.append(k)
            self.to.append(self._offset(fn, line, at))
            self.mine.append(self._within(fn, i) if self.partial else None)

    def _first(self, fn: BlockCode) -> tuple[Ix, Ix]:
        """Line and element of this thread's first vector.

        Vectors that are stored across the lines are taken from a few rows side by side, so that the stores of
        a warp fall into different banks.
        """
        n, high = self.line, self._abreast
        rest, inside = fn.i32("udiv", fn.thread, high), fn.i32("urem", fn.thread, high)
        line = fn.i32("add", fn.i32("mul", fn.i32("udiv", rest, n), high), inside)
        return line, fn.i32("mul", fn.i32("urem", rest, n), self.vector)

    @property
    def _abreast(self) -> int:
        """Lines that neighbouring threads take a vector of each."""
        if self.kind != "wide" or self.side.along != "k" or self.rows % _ABREAST:
            return 1
        passes = self.threads // _ABREAST  # vectors of each of these lines at a time
        return _ABREAST if passes % self.line == 0 or self.line % passes == 0 else 1

    def _within(self, fn: BlockCode, i: int) -> str:
        left = self.rows * self.depth // self.vector - i * self.threads
        return fn.op(f"icmp ult i32 {fn.thread}, {max(left, 0)}")

    def _place(self, fn: BlockCode, i: int) -> tuple[Ix, Ix]:
        """Line and element of vector number ``i`` of this thread (i32)."""
        t, n, tid, high = self.threads, self.line, fn.thread, self._abreast
        if t // high < n and high > 1:  # several passes for the same lines
            turns = n // (t // high)
            at = fn.i32("add", self._at0, (i % turns) * (t // high) * self.vector)
            return fn.i32("add", self._line0, (i // turns) * high), at
        if t % n == 0:
            return fn.i32("add", self._line0, i * (t // n)), self._at0
        return (i * t) // n, fn.i32("mul", fn.i32("add", tid, (i * t) % n), self.vector)

    def _offset(self, fn: BlockCode, line: Ix, at: Ix) -> Ix:
        """Where in the tile the vector goes, in bytes."""
        if self.kind == "wide":
            row, k = (line, at) if self.side.along == "k" else (at, line)
            return fn.i32("mul", fn.i32("add", fn.i32("mul", k, self.ld), row), self.acc.itemsize)
        if self.scattered:
            line, at = at, line
        return self._swizzled(fn, line, at)

    def _swizzled(self, fn: BlockCode, line: Ix, at: Ix) -> Ix:
        size = self.side.dtype.itemsize
        per = 16 // size
        chunk = fn.i32("xor", fn.i32("udiv", at, per), self.swizzle.turn(fn, line))
        inner = fn.i32("mul", fn.i32("urem", at, per), size)
        start = fn.i32("add", fn.i32("mul", line, self.swizzle.line_bytes), fn.i32("mul", chunk, 16))
        return fn.i32("add", start, inner)

    def _k_lines(self, fn: BlockCode, k0: Ix, stop: Ix) -> list[Line]:
        seen: dict[Ix, Line] = {}
        out = []
        for k in self.ks:
            if k not in seen:
                inside = fn.index(k, self.vector if self.side.along == "k" else 1)
                seen[k] = self.side.k(fn, k0, inside, stop)
            out.append(seen[k])
        return out

    def copy(self, fn: BlockCode, k0: Ix, stop: Ix, slot: Ix) -> None:
        """Start copying the tile from ``k0`` on to byte ``slot`` of shared memory."""
        size = self.vector * self.side.dtype.itemsize
        for i, k in enumerate(self._k_lines(fn, k0, stop)):
            spot = self.side.locate(fn, self.rows_of[i], k)
            source = self.side.address(fn, self.pointers, spot)
            with fn.only(self.mine[i]):
                fn.copy_async(fn.i32("add", slot, self.to[i]), source, size, spot.ok)

    def load(self, fn: BlockCode, k0: Ix, stop: Ix) -> list[str]:
        """This thread's vectors of the tile from ``k0`` on, in the form in which they are stored."""
        out = []
        for i, k in enumerate(self._k_lines(fn, k0, stop)):
            spot = self.side.locate(fn, self.rows_of[i], k)
            got = self.side.fetch(fn, self.pointers, self.batch, spot)
            out.append(self._stored(fn, got, spot.ok))
        return out

    @property
    def _lanes(self) -> int:
        return self.vector if self.vector > 1 else 0

    def _stored(self, fn: BlockCode, got: str, valid: str | None) -> str:
        dtype, lanes = self.side.dtype, self._lanes
        if self.kind == "wide":
            got = to_register(fn, got, dtype, lanes) if self.side.plain else got
            if not (self.acc is f32 and dtype.is_floating_point):
                got = widened(fn, got, dtype, lanes)
            ty = reg_type(self.acc, lanes)
        else:
            got = got if self.side.plain else to_memory(fn, got, dtype, lanes)
            ty = mem_type(dtype, lanes)
        if valid is None:
            return got
        zero = "zeroinitializer" if lanes else "0.0" if ty in ("float", "double", "half") else "0"
        return fn.op(f"select i1 {valid}, {ty} {got}, {ty} {zero}")

    def store(self, fn: BlockCode, vectors: list[str], slot: Ix) -> None:
        """Put what :meth:`load` gave into shared memory at byte ``slot``."""
        for i, got in enumerate(vectors):
            to = fn.i32("add", slot, self.to[i])
            with fn.only(self.mine[i]):
                if self.kind == "wide" and self.side.along == "k":
                    ty, step = reg_type(self.acc), self.ld * self.acc.itemsize
                    for j, x in enumerate(elements(fn, got, ty, self._lanes)):
                        fn.store_shared(ty, x, fn.i32("add", to, j * step), self.acc.itemsize)
                elif self.kind == "wide":
                    align = min(16, self.vector * self.acc.itemsize)
                    fn.store_shared(reg_type(self.acc, self._lanes), got, to, align)
                elif self.scattered:
                    self._scatter(fn, i, got, slot)
                else:
                    dtype = self.side.dtype
                    align = min(16, self.vector * dtype.itemsize)
                    fn.store_shared(mem_type(dtype, self._lanes), got, to, align)

    def _scatter(self, fn: BlockCode, i: int, vector: str, slot: Ix) -> None:
        """The elements of vector number ``i``, which are rows, each to its line."""
        k, row = self._place(fn, i)
        ty, size = mem_type(self.side.dtype), self.side.dtype.itemsize
        for j, x in enumerate(elements(fn, vector, ty, self._lanes)):
            to = self._swizzled(fn, fn.i32("add", row, j), k)
            fn.store_shared(ty, x, fn.i32("add", slot, to), size)
