"""Kernels of form ``window``: max, min, sum or argmax over sliding windows of all dimensions."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from weft.codegen.blocks import Code, Ix, iota
from weft.codegen.emit import Reg, VectorBuilder
from weft.codegen.indexing import only_op, operand_pointers
from weft.codegen.kernel import KernelCode
from weft.codegen.lanes import store_lanes, tail_mask
from weft.codegen.llvm import mem_type, reg_type
from weft.codegen.phases import Writer
from weft.codegen.places import Coord, Region
from weft.codegen.target import Target
from weft.codegen.window_gather_kernel import Gather
from weft.codegen.window_scatter_kernel import Scatter
from weft.codegen.windows import Blocks, Lines, axes_of, beats, extreme, lanes_for
from weft.ir.graph import Op
from weft.ir.types import bool_, f32, i64

Step = Callable[[list[Ix], list[str]], list[str]]
_UNROLL = 9  # windows of at most so many places are written out
_UNIT = 1 << 13  # elements read by one unit of work, about


def emit(op: Op, target: Target, prefix: str) -> KernelCode:
    """The code of a kernel of form ``window``."""
    if len(only_op(op.regions[0]).operands) == 2:
        scatter = Scatter(op, target, prefix)
        if Gather.suits(scatter.axes, scatter.lanes):
            return Gather(op, target, prefix).emit()
        return scatter.emit()
    return _Window(op, target, prefix).emit()


class _Window(Writer):
    def __init__(self, op: Op, target: Target, prefix: str) -> None:
        super().__init__(op, target, prefix)
        self.reduce = only_op(self.graph)
        a = self.reduce.attrs
        self.kind: str | None = a.get("op")  # None: the place of the maximum
        self.x, self.out = self.reduce.operands[0].type, self.reduce.result.type
        self.window, self.stride, self.dilation = a["window"], a["stride"], a["dilation"]
        self.lo = tuple(lo for lo, _ in a["padding"])
        half = self.x.dtype.is_floating_point and self.x.dtype.bits == 16
        self.dtype = f32 if half else self.x.dtype
        bits = 64 if self.kind is None else max(32, self.dtype.bits)
        self.axes = axes_of(self.reduce)
        beside = lanes_for(self.axes[-1], target.lanes(bits))
        self.rows = beside > 0  # vectors stay in one row: coordinates beside the last are scalars
        self.lanes = beside or target.lanes(bits)

    def emit(self) -> KernelCode:
        fn = self.start(f"{self.prefix}_unit")
        places = prod(self.window)
        run, total = self.out.size, 1
        if self.rows:
            run, total = self.axes[-1].out, prod(axis.out for axis in self.axes[:-1])
        vectors = -(-run // self.lanes)
        per_unit = max(1, min(vectors, _UNIT // (self.lanes * places)))
        blocks = -(-vectors // per_unit)
        row, block = fn.div("%u", blocks), fn.mod("%u", blocks)
        first = fn.mul(block, per_unit * self.lanes)
        last = fn.min(fn.add(first, per_unit * self.lanes), run)
        (self.pointer,), self.dst = operand_pointers(fn, self.op), fn.arg(len(self.op.operands))
        with fn.range(first, last, self.lanes, runs=True) as v:
            mask = tail_mask(fn, fn.sub(run, v.i), self.lanes) if run % self.lanes else None
            linear = fn.add(fn.mul(row, run), v.i)
            if self.rows:
                self._line(fn, fn.split(row, [axis.out for axis in self.axes[:-1]]), v.i, mask, linear)
            else:
                region = Region(fn, self.graph, self.lanes, {}, mask)
                self._vector(region, region.split(Coord(v.i, 1), self.out.shape), mask, linear)
        self.keep(fn)
        units = total * blocks
        phase = self.phase("window", [(fn.symbol, units)], 0.3 * self.out.size * places / units)
        return self.code([phase], 0, f"window {self.window}, {units} units of {per_unit} vectors")

    # windows beside each other in a line

    def _line(self, fn: Code, where: list[Ix], first: Ix, mask: str | None, linear: Ix) -> None:
        """The windows from number ``first`` on of a line of the result."""
        lines = Lines(fn, self.axes, self.pointer, self.x.dtype)
        b, lanes, dtype, line = VectorBuilder(fn, self.lanes), self.lanes, self.dtype, self.axes[-1]
        fill = b.const(0 if self.kind == "sum" else extreme(dtype, self.kind != "min"), dtype)
        t, n = reg_type(dtype, lanes), f"<{lanes} x i64>"

        def step(taps: list[Ix], values: list[str]) -> list[str]:
            address, number, ok = lines.at(where, taps)
            blocks = Blocks(fn, line, self.x.dtype, lanes)
            for tap in range(line.taps):
                x = b.convert(b.reg(blocks.member(address, first, tap), self.x.dtype, lanes), dtype)
                met = lines.met(ok, blocks.inside(first, tap), lanes)
                inside = None if met is None else b.reg(met, bool_, lanes)
                if self.kind is not None:
                    x = x if inside is None else b.select(inside, x, fill)
                    total = b.reg(values[0], dtype, lanes)
                    values = [b.binary("add" if self.kind == "sum" else self.kind, total, x).text]
                    continue
                best, chosen = b.reg(values[0], dtype, lanes), b.reg(values[1], i64, lanes)
                better = beats(b, x, best, b.compare("lt", chosen, b.const(0, i64)), inside)
                flat = fn.add(fn.mul(number, line.size), line.element(fn, first, tap))
                one, steps = fn.splat("i64", str(flat), lanes), iota("i64", lanes, line.stride)
                index = b.reg(fn.op(f"add {n} {one}, {steps}"), i64, lanes)
                values = [b.select(better, x, best).text, b.select(better, index, chosen).text]
            return values

        begin = [(t, b.text(fill, lanes))]
        if self.kind is not None:
            total = b.reg(lines.walk(begin, step)[0], dtype, lanes)
            out, stored = b.convert(total, self.x.dtype).text, self.x.dtype
        else:
            chosen = b.reg(lines.walk([*begin, (n, "splat (i64 -1)")], step)[1], i64, lanes)
            out, stored = b.binary("max", chosen, b.const(0, i64)).text, i64
        store_lanes(fn, out, fn.at(self.dst, linear, mem_type(stored)), stored, lanes, mask)

    # windows anywhere

    def _vector(self, region: Region, coords: list[Coord], mask: str | None, linear: Ix) -> None:
        if self.kind is None:
            best = self._argmax(region, coords, mask)
            dtype = i64
        else:
            total = region.builder.reg(self._reduce(region, coords, mask), self.dtype, self.lanes)
            dtype = self.x.dtype
            best = region.builder.convert(total, dtype).text
        store_lanes(region.fn, best, region.fn.at(self.dst, linear, mem_type(dtype)), dtype, self.lanes, mask)

    def _places(self, fn: Code, carried: list[tuple[str, str]], step: Step) -> list[str]:
        """Run ``step(place, values)`` over the window in row-major order."""
        n = prod(self.window)
        if n <= _UNROLL:
            values = [v for _, v in carried]
            for i in range(n):
                values = step([int(j) for j in fn.split(i, self.window)], values)
            return values
        with fn.range(0, n, 1, carried, runs=True) as turn:
            turn.next[:] = step(fn.split(turn.i, self.window), turn.vars)
        return turn.out

    def _read(self, region: Region, coords: list[Coord], place: list[Ix], mask: str | None
              ) -> tuple[Reg, str, Coord]:  # fmt: skip
        """The elements at one place of the windows, which lanes have one, and their flat indices."""
        fn, flags = region.fn, f"<{self.lanes} x i1>"
        source, inside = [], mask
        for i, (c, d) in enumerate(zip(coords, self.x.shape, strict=True)):
            at = region.plus(region.times(c, self.stride[i]), Coord(fn.mul(place[i], self.dilation[i])))
            at = region.plus(at, Coord(-self.lo[i]))
            source.append(at)
            if self._always_inside(i, d):
                continue
            ok = region.inside(at, d)
            inside = ok if inside is None else fn.op(f"and {flags} {inside}, {ok}")
        region.mask = inside
        linear = region.flat(source, self.x.shape)
        if linear.vec is None and linear.step == 0:  # one element for all lanes: still read under the mask
            linear = Coord(vec=region.vector(linear))
        got = region.load(self.pointer, self.x.dtype, linear, self.x.size)
        region.mask = mask
        return got, inside or fn.splat("i1", "true", self.lanes), linear

    def _always_inside(self, i: int, d: int) -> bool:
        low = -self.lo[i]
        high = (self.out.shape[i] - 1) * self.stride[i] + (self.window[i] - 1) * self.dilation[i] - self.lo[i]
        return low >= 0 and high < d

    def _reduce(self, region: Region, coords: list[Coord], mask: str | None) -> str:
        b, fn, dtype, lanes = region.builder, region.fn, self.dtype, self.lanes
        kind = self.kind
        fill = b.const(0 if kind == "sum" else extreme(dtype, kind == "max"), dtype)
        start = b.text(fill, lanes)

        def step(place: list[Ix], values: list[str]) -> list[str]:
            got, inside, _ = self._read(region, coords, place, mask)
            x = b.select(b.reg(inside, bool_, lanes), b.convert(got, dtype), fill)
            total = b.reg(values[0], dtype, lanes)
            return [b.binary("add" if kind == "sum" else str(kind), total, x).text]

        return self._places(fn, [(reg_type(dtype, lanes), start)], step)[0]

    def _argmax(self, region: Region, coords: list[Coord], mask: str | None) -> str:
        """An element beats padding whatever its value; the first NaN beats all."""
        b, lanes = region.builder, self.lanes
        dtype = self.dtype
        t, n = reg_type(dtype, lanes), f"<{lanes} x i64>"
        start = b.text(b.const(extreme(dtype, True), dtype), lanes)

        def step(place: list[Ix], values: list[str]) -> list[str]:
            got, inside, linear = self._read(region, coords, place, mask)
            x, best = b.convert(got, dtype), b.reg(values[0], dtype, lanes)
            index, chosen = b.reg(region.vector(linear), i64, lanes), b.reg(values[1], i64, lanes)
            none = b.compare("lt", chosen, b.const(0, i64))
            better = beats(b, x, best, none, b.reg(inside, bool_, lanes))
            return [b.select(better, x, best).text, b.select(better, index, chosen).text]

        found = self._places(region.fn, [(t, start), (n, "splat (i64 -1)")], step)[1]
        return b.binary("max", b.reg(found, i64, lanes), b.const(0, i64)).text
