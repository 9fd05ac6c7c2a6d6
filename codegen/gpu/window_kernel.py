"""Kernels of form ``window`` on a GPU: a thread walks the window of one element of the result.

What is scattered to the maxima of windows takes two launches: one finds the maxima, and in the next a thread
for each element asks the few windows that cover it whether theirs is there, in program order. Nothing is
sorted or added in memory, and results are the same in every run.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from weft.codegen.blocks import Ix
from weft.codegen.emit import Reg, VectorBuilder
from weft.codegen.gpu.device import DeviceFunction
from weft.codegen.gpu.kernel import DeviceCode
from weft.codegen.gpu.target import GpuTarget
from weft.codegen.gpu.writer import DeviceWriter, load_value, store_value
from weft.codegen.indexing import only_op
from weft.codegen.llvm import reg_type
from weft.codegen.windows import beats, extreme
from weft.ir.graph import Op
from weft.ir.types import bool_, f32, i64

Step = Callable[[list[Ix], list[Reg]], list[Reg]]
_UNROLL = 16  # windows of at most so many places are written out


def emit(op: Op, target: GpuTarget, prefix: str) -> DeviceCode:
    """The code of a kernel of form ``window``."""
    return _Window(op, target, prefix).emit()


class _Window(DeviceWriter):
    def __init__(self, op: Op, target: GpuTarget, prefix: str) -> None:
        super().__init__(op, target, prefix)
        self.reduce = only_op(self.graph)
        a = self.reduce.attrs
        self.kind: str | None = a.get("op")  # None: the place of the maximum
        self.x, self.out = self.reduce.operands[-1].type, self.reduce.result.type
        self.positions = self.reduce.operands[0].type.shape  # of windows, where numbers are scattered
        self.window, self.stride, self.dilation = a["window"], a["stride"], a["dilation"]
        self.lo = tuple(lo for lo, _ in a["padding"])
        half = self.x.dtype.is_floating_point and self.x.dtype.bits == 16
        self.dtype = f32 if half else self.x.dtype

    def emit(self) -> DeviceCode:
        if len(self.reduce.operands) == 2:
            return self._scatter()
        slots = (self.operand(self.reduce.operands[0]), self.result(0))
        with self.each(slots, self.out.size) as (fn, number):
            b = self.builder(fn)
            starts = self._starts(fn, fn.split(number, self.out.shape))
            if self.kind is None:
                store_value(fn, self._argmax(fn, b, starts), "%a1", number, i64)
            else:
                total = b.convert(self._reduce(fn, b, starts), self.x.dtype)
                store_value(fn, total, "%a1", number, self.x.dtype)
        return self.code(f"window {self.window}, a thread for each of {self.out.size} results")

    def _starts(self, fn: DeviceFunction, where: list[Ix]) -> list[Ix]:
        """Where a window begins, padding included."""
        return [fn.sub(fn.mul(c, s), lo) for c, s, lo in zip(where, self.stride, self.lo, strict=True)]

    def _scatter(self) -> DeviceCode:
        """Find where each window has its maximum; then each element takes what goes there."""
        count = prod(self.positions)
        at = self.room(count * 8)
        held, x = (self.operand(v) for v in self.reduce.operands)
        with self.each((x, self.scratch), count) as (fn, number):
            b = self.builder(fn)
            best = self._argmax(fn, b, self._starts(fn, fn.split(number, self.positions)))
            store_value(fn, best, fn.at("%a1", at), number, i64)
        with self.each((held, self.scratch, self.result(0)), self.out.size) as (fn, number):
            b = self.builder(fn)
            own = fn.split(number, self.x.shape)
            starts = zip(own, self.lo, self.stride, self.positions, strict=True)
            last = [fn.min(fn.div(fn.max(fn.add(c, lo), 0), s), m - 1) for c, lo, s, m in starts]
            sizes = zip(self.positions, self.window, self.dilation, self.stride, strict=True)
            counts = [min(m, (k - 1) * d // s + 1) for m, k, d, s in sizes]
            zero, asked = b.const(0, self.dtype), prod(counts)

            def ask(i: Ix, total: Reg) -> Reg:
                """Add what the window number ``i`` of those that may cover the element holds for it."""
                back = [fn.sub(n - 1, j) for n, j in zip(counts, fn.split(i, counts), strict=True)]
                where, ok = self._asked(fn, last, back)
                goes = load_value(fn, b, fn.at("%a1", at), where, i64)
                mine = fn.op(f"and i1 {ok}, {fn.op(f'icmp eq i64 {goes.text}, {number}')}")
                value = b.convert(load_value(fn, b, "%a0", where, self.x.dtype), self.dtype)
                return b.binary("add", total, b.select(b.reg(mine, bool_), value, zero))

            total = self._asked_all(fn, b, asked, ask, zero)
            store_value(fn, b.convert(total, self.x.dtype), "%a2", number, self.x.dtype)
        return self.code(f"window scatter {self.window}, a thread asks {asked} windows")

    def _asked_all(self, fn: DeviceFunction, b: VectorBuilder, count: int, ask: Callable[[Ix, Reg], Reg],
                   zero: Reg) -> Reg:  # fmt: skip
        if count <= _UNROLL:
            total = zero
            for i in range(count):
                total = ask(i, total)
            return total
        with fn.range(0, count, 1, [(reg_type(self.dtype), zero.text)], runs=True) as turn:
            turn.next[0] = ask(turn.i, b.reg(turn.vars[0], self.dtype)).text
        return b.reg(turn.out[0], self.dtype)

    def _asked(self, fn: DeviceFunction, last: list[Ix], back: list[Ix]) -> tuple[Ix, str]:
        """The number of the window so many before the last ones, or 0; and whether there is one."""
        ok: str = "true"
        flat: Ix = 0
        for at, before, m in zip(last, back, self.positions, strict=True):
            place = fn.sub(at, before)
            ok = fn.op(f"and i1 {ok}, {fn.op(f'icmp ult i64 {place}, {m}')}")
            flat = fn.add(fn.mul(flat, m), place)
        return (fn.op(f"select i1 {ok}, i64 {flat}, i64 0") if last else 0), ok

    def _walk(self, fn: DeviceFunction, b: VectorBuilder, state: list[Reg], step: Step) -> list[Reg]:
        """``step(place, state)`` over the window in row-major order."""
        n = prod(self.window)
        if n <= _UNROLL:
            for i in range(n):
                state = step([int(j) for j in fn.split(i, self.window)], state)
            return state
        carried = [(reg_type(r.dtype), r.text) for r in state]
        with fn.range(0, n, 1, carried, runs=True) as turn:
            held = [b.reg(v, r.dtype) for v, r in zip(turn.vars, state, strict=True)]
            turn.next[:] = [r.text for r in step(fn.split(turn.i, self.window), held)]
        return [b.reg(v, r.dtype) for v, r in zip(turn.out, state, strict=True)]

    def _read(self, fn: DeviceFunction, b: VectorBuilder, starts: list[Ix], place: list[Ix]
              ) -> tuple[Reg, Reg | None, Ix]:  # fmt: skip
        """The element at one place of the window, whether there is one, and its flat index."""
        inside: str | None = None
        flat: Ix = 0
        for i, d in enumerate(self.x.shape):
            at = fn.add(starts[i], fn.mul(place[i], self.dilation[i]))
            flat = fn.add(fn.mul(flat, d), at)
            if not self._always_inside(i, d):
                ok = fn.op(f"icmp ult i64 {at}, {d}")
                inside = ok if inside is None else fn.op(f"and i1 {inside}, {ok}")
        safe = fn.op(f"select i1 {inside}, i64 {flat}, i64 0") if inside is not None else flat
        got = load_value(fn, b, "%a0", safe, self.x.dtype)
        return b.convert(got, self.dtype), None if inside is None else b.reg(inside, bool_), flat

    def _always_inside(self, i: int, d: int) -> bool:
        low = -self.lo[i]
        high = (self.out.shape[i] - 1) * self.stride[i] + (self.window[i] - 1) * self.dilation[i] - self.lo[i]
        return low >= 0 and high < d

    def _reduce(self, fn: DeviceFunction, b: VectorBuilder, starts: list[Ix]) -> Reg:
        kind = str(self.kind)
        fill = b.const(0 if kind == "sum" else extreme(self.dtype, kind == "max"), self.dtype)

        def step(place: list[Ix], state: list[Reg]) -> list[Reg]:
            x, inside, _ = self._read(fn, b, starts, place)
            if inside is not None:
                x = b.select(inside, x, fill)
            return [b.binary("add" if kind == "sum" else kind, state[0], x)]

        return self._walk(fn, b, [fill], step)[0]

    def _argmax(self, fn: DeviceFunction, b: VectorBuilder, starts: list[Ix]) -> Reg:
        """An element beats padding whatever its value; the first NaN beats all."""
        first = [b.const(extreme(self.dtype, True), self.dtype), b.const(-1, i64)]

        def step(place: list[Ix], state: list[Reg]) -> list[Reg]:
            x, inside, flat = self._read(fn, b, starts, place)
            best, chosen = state
            better = beats(b, x, best, b.compare("lt", chosen, b.const(0, i64)), inside)
            index = b.const(flat, i64) if isinstance(flat, int) else b.reg(flat, i64)
            return [b.select(better, x, best), b.select(better, index, chosen)]

        return b.binary("max", self._walk(fn, b, first, step)[1], b.const(0, i64))
