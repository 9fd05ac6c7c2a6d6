"""Kernels of form ``window``: max, min, sum or argmax over sliding windows of all dimensions."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, prod

import numpy as np
from weft.codegen.blocks import Code, Ix
from weft.codegen.emit import Reg
from weft.codegen.indexing import only_op, operand_pointers
from weft.codegen.kernel import KernelCode
from weft.codegen.lanes import store_lanes, tail_mask
from weft.codegen.llvm import mem_type, reg_type
from weft.codegen.phases import Writer
from weft.codegen.places import Coord, Region
from weft.codegen.target import Target
from weft.ir.graph import Op
from weft.ir.types import DType, bool_, f32, i64

Step = Callable[[list[Ix], list[str]], list[str]]
_UNROLL = 9  # windows of at most so many places are written out
_UNIT = 1 << 13  # elements read by one unit of work, about


def emit(op: Op, target: Target, prefix: str) -> KernelCode:
    """The code of a kernel of form ``window``."""
    return _Window(op, target, prefix).emit()


def extreme(dtype: DType, low: bool) -> float | int:
    """The value that loses every comparison: the least (``low``) or the greatest of the dtype."""
    if dtype is bool_:
        return not low
    if dtype.is_floating_point:
        return -inf if low else inf
    info = np.iinfo(dtype.np)
    return int(info.min if low else info.max)


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
        self.lanes = target.lanes(bits)

    def emit(self) -> KernelCode:
        fn = self.start(f"{self.prefix}_unit")
        rows = self.out.ndim > 0 and self.out.shape[-1] >= self.lanes
        places = prod(self.window)
        if rows:  # vectors stay in one row: coordinates beside the last are scalars
            run, total = self.out.shape[-1], prod(self.out.shape[:-1])
        else:
            run, total = self.out.size, 1
        vectors = -(-run // self.lanes)
        per_unit = max(1, min(vectors, _UNIT // (self.lanes * places)))
        blocks = -(-vectors // per_unit)
        row, block = fn.div("%u", blocks), fn.mod("%u", blocks)
        first = fn.mul(block, per_unit * self.lanes)
        last = fn.min(fn.add(first, per_unit * self.lanes), run)
        (self.pointer,), self.dst = operand_pointers(fn, self.op), fn.arg(len(self.op.operands))
        with fn.range(first, last, self.lanes, runs=True) as v:
            mask = tail_mask(fn, fn.sub(run, v.i), self.lanes) if run % self.lanes else None
            region = Region(fn, self.graph, self.lanes, {}, mask)
            if rows:
                coords = [*region.split(Coord(row), self.out.shape[:-1]), Coord(v.i, 1)]
            else:
                coords = region.split(Coord(v.i, 1), self.out.shape)
            self._vector(region, coords, mask, fn.add(fn.mul(row, run), v.i))
        self.keep(fn)
        units = total * blocks
        phase = self.phase("window", [(fn.symbol, units)], 0.3 * self.out.size * places / units)
        return self.code([phase], 0, f"window {self.window}, {units} units of {per_unit} vectors")

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
            better = b.binary("or", b.compare("lt", chosen, b.const(0, i64)), b.compare("gt", x, best))
            if dtype.is_floating_point:
                first_nan = b.binary("and", b.compare("ne", x, x), b.compare("eq", best, best))
                better = b.binary("or", better, first_nan)
            better = b.binary("and", better, b.reg(inside, bool_, lanes))
            return [b.select(better, x, best).text, b.select(better, index, chosen).text]

        found = self._places(region.fn, [(t, start), (n, "splat (i64 -1)")], step)[1]
        return b.binary("max", b.reg(found, i64, lanes), b.const(0, i64)).text
