"""What kernels of windows share: vectors of neighbouring windows, read as whole blocks of a line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, prod

import numpy as np
from weft.codegen.blocks import Code, Ix, iota
from weft.codegen.emit import Reg, VectorBuilder
from weft.codegen.lanes import drawn, load_lanes, tail_mask
from weft.codegen.llvm import reg_type
from weft.ir.graph import Op
from weft.ir.record import record
from weft.ir.types import DType, bool_

Step = Callable[[list[Ix], list[str]], list[str]]
WRITTEN_OUT = 32  # taps up to which a window is written out
MOST_APART = 4  # elements from one window to the next, up to which all between them are loaded


def extreme(dtype: DType, low: bool) -> float | int:
    """The value that loses every comparison: the least (``low``) or the greatest of the dtype."""
    if dtype is bool_:
        return not low
    if dtype.is_floating_point:
        return -inf if low else inf
    info = np.iinfo(dtype.np)
    return int(info.min if low else info.max)


@record(frozen=True)
class Axis:
    """One dimension: position ``p`` of ``out`` at tap ``t`` of ``taps`` meets element ``p * stride + t * step
    - lo`` of ``size``, or padding."""

    size: int
    out: int
    taps: int
    stride: int
    step: int
    lo: int

    @property
    def reach(self) -> int:
        """From the first element that a window meets to the last."""
        return (self.taps - 1) * self.step

    @property
    def plain(self) -> bool:
        """True where each position meets the element of its own number."""
        return self.taps == 1 and self.stride == 1 and self.lo == 0 and self.out == self.size

    @property
    def inside(self) -> bool:
        """True where no window meets padding."""
        return self.lo <= 0 and (self.out - 1) * self.stride + self.reach - self.lo < self.size

    def element(self, fn: Code, position: Ix, tap: Ix) -> Ix:
        """The element that a position meets at a tap."""
        return fn.sub(fn.add(fn.mul(position, self.stride), fn.mul(tap, self.step)), self.lo)


def axes_of(windowed: Op) -> list[Axis]:
    """The dimensions of an operation over windows (at least one)."""
    a = windowed.attrs
    x = windowed.operands[-1].type.shape
    names = (a["window"], a["stride"], a["dilation"], a["padding"])
    found = [Axis(n, (n + lo + hi - (k - 1) * d - 1) // s + 1, k, s, d, lo)
             for n, k, s, d, (lo, hi) in zip(x, *names, strict=True)]  # fmt: skip
    return found or [Axis(1, 1, 1, 1, 1, 0)]


def lanes_for(line: Axis, most: int) -> int:
    """Windows of a line that are computed side by side: 0 where one by one."""
    if line.stride > MOST_APART or line.out < 3 or line.taps > WRITTEN_OUT:
        return 0
    lanes = most
    while lanes >= 2 * line.out:
        lanes //= 2
    return lanes


class Lines:
    """The lines of an array that a line of windows meets, by taps in the other dimensions."""

    def __init__(self, fn: Code, axes: Sequence[Axis], base: str, dtype: DType) -> None:
        self.fn, self.axes, self.base, self.dtype = fn, axes, base, dtype
        self.taps = [axis.taps for axis in axes[:-1]]

    def walk(self, carried: Sequence[tuple[str, str]], step: Step) -> list[str]:
        """``step(taps, values)`` over the taps in the other dimensions, in row-major order."""
        count = prod(self.taps)
        if count * self.axes[-1].taps <= WRITTEN_OUT:
            values = [v for _, v in carried]
            for i in range(count):
                values = step([int(t) for t in self.fn.split(i, self.taps)], values)
            return values
        with self.fn.range(0, count, 1, carried, runs=True) as turn:
            turn.next[:] = step(self.fn.split(turn.i, self.taps), turn.vars)
        return turn.out

    def at(self, where: Sequence[Ix], taps: Sequence[Ix]) -> tuple[str, Ix, str | None]:
        """The line that windows at ``where`` meet at ``taps``: address, number, whether there is one (the
        address is of some line in any case)."""
        fn, ok = self.fn, None
        number: Ix = 0
        for axis, position, tap in zip(self.axes, where, taps, strict=False):
            element = axis.element(fn, position, tap)
            if not axis.inside:
                test = fn.op(f"icmp ult i64 {element}, {axis.size}")
                ok = test if ok is None else fn.op(f"and i1 {ok}, {test}")
                element = fn.min(fn.max(element, 0), axis.size - 1)
            number = fn.add(fn.mul(number, axis.size), element)
        size = self.axes[-1].size * self.dtype.itemsize
        return fn.at(self.base, fn.mul(number, size)), number, ok

    def met(self, ok: str | None, lanes: str | None, count: int) -> str | None:
        """Which of ``count`` windows meet an element; None for all."""
        if ok is None:
            return lanes
        whole = self.fn.splat("i1", ok, count)
        return whole if lanes is None else self.fn.op(f"and <{count} x i1> {whole}, {lanes}")


class Blocks:
    """The elements that ``lanes`` neighbouring windows of a line meet, by taps.

    Tap ``t`` is member ``t * step % stride`` of a block of ``stride`` times ``lanes`` neighbours, which taps
    share.
    """

    def __init__(self, fn: Code, line: Axis, dtype: DType, lanes: int) -> None:
        self.fn, self.line, self.dtype, self.lanes = fn, line, dtype, lanes
        self.loaded: dict[tuple[str, int], list[str]] = {}
        vectors = -(-line.out // lanes)
        last = (vectors * lanes - 1) * line.stride + line.reach // line.stride * line.stride + line.stride - 1
        self.whole = line.lo <= 0 and last - line.lo < line.size  # no block reaches past the line

    def place(self, tap: int) -> tuple[int, int]:
        """Where the block of a tap begins, relative to the first window, and its member."""
        q, r = divmod(tap * self.line.step, self.line.stride)
        return q * self.line.stride, r

    def member(self, address: str, first: Ix, tap: int) -> str:
        """What windows from number ``first`` on meet at a tap of the line at ``address``; any value beside
        the line."""
        fn, line, lanes, t = self.fn, self.line, self.lanes, reg_type(self.dtype, self.lanes)
        begin, r = self.place(tap)
        key = (f"{address} {first}", begin)
        if key not in self.loaded:
            at = fn.sub(fn.add(fn.mul(first, line.stride), begin), line.lo)
            parts = []
            for k in range(line.stride):
                start = fn.add(at, k * lanes)
                mask = None if self.whole else self._mask(start)
                parts.append(load_lanes(fn, fn.at(address, fn.mul(start, self.dtype.itemsize)), self.dtype,
                                        lanes, mask))  # fmt: skip
            self.loaded[key] = parts
        return drawn(fn, t, lanes, self.loaded[key], r)

    def _mask(self, start: Ix) -> str:
        """Which elements from number ``start`` on the line has."""
        fn, lanes = self.fn, self.lanes
        if isinstance(start, int) and start >= 0:
            return tail_mask(fn, max(0, min(lanes, self.line.size - start)), lanes)
        v, short = f"<{lanes} x i32>", fn.op(f"trunc i64 {start} to i32")
        at = fn.op(f"add {v} {fn.splat('i32', short, lanes)}, {iota('i32', lanes)}")
        return fn.op(f"icmp ult {v} {at}, splat (i32 {self.line.size})")

    def inside(self, first: Ix, tap: int) -> str | None:
        """Which windows meet an element at a tap, None for all that there are."""
        fn, line, lanes = self.fn, self.line, self.lanes
        if line.inside:
            return None
        start = line.element(fn, first, tap)
        v, short = f"<{lanes} x i32>", fn.op(f"trunc i64 {fn.add(start, 0)} to i32")
        at = fn.op(f"add {v} {fn.splat('i32', short, lanes)}, {iota('i32', lanes, line.stride)}")
        return fn.op(f"icmp ult {v} {at}, splat (i32 {line.size})")


def spread(fn: Code, t: str, lanes: int, members: Sequence[str]) -> list[str]:
    """The inverse of :func:`drawn`: vectors of which member 0, 1, ... are laid in turn, end to end."""
    count, out = len(members), []
    for part in range(count):
        whole = members[0]
        for number in range(count):
            order = []
            for lane in range(lanes):
                place, member = divmod(part * lanes + lane, count)
                if member == number:
                    order.append(place if number == 0 else lanes + place)
                else:
                    order.append(lane if member < number else -1)
            if number or count > 1:
                picked = ", ".join(f"i32 {o}" if o >= 0 else "i32 poison" for o in order)
                other = members[number] if number else "poison"
                whole = fn.op(f"shufflevector {t} {whole}, {t} {other}, <{lanes} x i32> <{picked}>")
        out.append(whole)
    return out


def beats(b: VectorBuilder, x: Reg, best: Reg, none: Reg | None, inside: Reg | None) -> Reg:
    """Whether ``x`` is chosen over ``best``: an element beats padding (``none`` chosen so far) whatever its
    value; the first NaN beats all."""
    better = b.compare("gt", x, best)
    if x.dtype.is_floating_point:
        first_nan = b.binary("and", b.compare("ne", x, x), b.compare("eq", best, best))
        better = b.binary("or", better, first_nan)
    if none is not None:
        better = b.binary("or", better, none)
    return better if inside is None else b.binary("and", better, inside)
