"""Kernels of form ``scatter`` on a GPU: updates written, or combined, into a copy of x at indices.

What meets in one element is applied in program order, so that results are the same in every run: atomic
additions would come in any order. Items are sorted by where they go (a stable sort, :mod:`bitonic`), then a
thread for each piece of each destination walks the items that go there. Lines of the ``along`` primitives do
not meet; where they are short or many, each has a thread.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from math import prod

from weft.codegen.blocks import Ix
from weft.codegen.emit import Reg, VectorBuilder, memory_literal
from weft.codegen.gpu.bitonic import Arrays, BitonicSort, Pairs
from weft.codegen.gpu.device import DeviceFunction
from weft.codegen.gpu.gather_kernel import block_lanes, block_offset
from weft.codegen.gpu.kernel import DeviceCode
from weft.codegen.gpu.radix import sorting
from weft.codegen.gpu.target import GpuTarget
from weft.codegen.gpu.writer import DeviceWriter, load_value, move, report, store_value, widest
from weft.codegen.indexing import Addressing, addressing, only_op
from weft.codegen.llvm import mem_type, reg_type
from weft.ir.graph import Graph, Op
from weft.ir.types import DType, f32

_SHORT = 16  # lines up to this length have a thread each


def emit(op: Op, target: GpuTarget, prefix: str) -> DeviceCode:
    """The code of a kernel of form ``scatter``."""
    return _Scatter(op, target, prefix).emit()


class _Scatter(DeviceWriter):
    def __init__(self, op: Op, target: GpuTarget, prefix: str) -> None:
        super().__init__(op, target, prefix)
        self.scatter, self.fill = self._parts()
        self.where: Addressing = addressing(self.scatter)
        self.mode = self.scatter.attrs["mode"]
        self.dtype: DType = self.scatter.result.type.dtype
        half = self.dtype.is_floating_point and self.dtype.bits == 16
        self.carried = f32 if half else self.dtype
        self.index = self.operand(self.scatter.operands[1])
        self.updates = self.operand(self.scatter.operands[2])

    def _parts(self) -> tuple[Op, float | None]:
        """The scatter of the region, and the number that it writes into, if that is what it starts from."""
        *before, scatter = self.graph.ops
        if [op.prim.name for op in before] != ["full"] or before[0].result is not scatter.operands[0]:
            return only_op(self.graph), None
        only_op(Graph([*self.graph.params, before[0].result], [scatter], self.graph.results))
        return scatter, before[0].attrs["value"]

    def emit(self) -> DeviceCode:
        self._start()
        if self.where.along and self._by_lines():
            self._along()
            how = "a thread for each line"
        else:
            how = self._sorted()
        return self.code(f"scatter {self.mode}: {self.where.items} items of {self.where.block_size}, {how}")

    # -- what is there before

    def _start(self) -> None:
        """Copy x to the result, or fill it with one number."""
        size, t = self.dtype.itemsize, mem_type(self.dtype)
        lanes = widest(size, self.where.x.size)
        if self.fill is None:
            x = self.operand(self.scatter.operands[0])
            with self.each((x, self.result(0)), self.where.x.size // lanes) as (fn, number):
                at = fn.mul(number, lanes)
                move(fn, fn.at("%a0", at, t), fn.at("%a1", at, t), lanes, size)
            return
        number = memory_literal(self.fill, self.dtype)
        raw = f"i{8 * size}" if self.dtype.bits == 16 else t
        with self.each((self.result(0),), self.where.x.size // lanes) as (fn, thread):
            at = fn.at("%a0", fn.mul(thread, lanes), raw)
            if lanes == 1:
                fn.store(raw, number, at, size)
            else:
                fn.store(f"<{lanes} x {raw}>", f"splat ({raw} {number})", at, lanes * size)

    # -- lines that do not meet

    def _lines(self) -> tuple[int, int, int]:
        """Lines, their length, and how far apart their elements lie."""
        axis, shape = self.where.axes[0], self.where.index.shape
        return self.where.items // shape[axis], shape[axis], prod(shape[axis + 1 :])

    def _by_lines(self) -> bool:
        lines, n, _ = self._lines()
        return n <= _SHORT or lines >= 64 * self.target.multiprocessors

    def _along(self) -> None:
        lines, n, inner = self._lines()
        slots = (self.index, self.updates, self.result(0), self.status)
        with self.each(slots, lines) as (fn, line):
            b = self.builder(fn)
            first = fn.add(fn.mul(fn.div(line, inner), n * inner), fn.mod(line, inner))
            with fn.range(0, n, runs=True) as j:
                item = fn.add(first, fn.mul(j.i, inner))
                _, offset, ok = self.where.point(fn, "%a0", item)
                with self._inside(fn, ok, "%a3"):
                    new = self._combine(b, load_value(fn, b, "%a2", offset, self.dtype),
                                        load_value(fn, b, "%a1", item, self.dtype))  # fmt: skip
                    store_value(fn, b.convert(new, self.dtype), "%a2", offset, self.dtype)

    def _inside(self, fn: DeviceFunction, ok: str, status: str) -> AbstractContextManager[None]:
        """Code for an item in range; the others are reported."""
        with fn.when(fn.op(f"xor i1 {ok}, true")):
            report(fn, status)
        return fn.when(ok)

    def _combine(self, b: VectorBuilder, old: Reg, new: Reg) -> Reg:
        """The new value of an element (halves as f32) from the old one and an update."""
        new = b.convert(new, self.carried)
        return new if self.mode == "set" else b.binary(self.mode, b.convert(old, self.carried), new)

    # -- sorted by destination

    def _sorted(self) -> str:
        n = self.where.items
        bits = 32 if self.where.x.size < (1 << 32) - 1 else 64
        apart = self.where.x.size.bit_length()  # low bits in which no two destinations, or none, are the same
        order = sorting(self, 1, n, n, bits, (self.index, self.status), apart)
        at = self.room(n * order.pairs.itemsize)
        scratch = f"%a{len(order.slots)}"
        t = order.pairs.key

        def take(fn: DeviceFunction, line: Ix, item: Ix) -> tuple[str, str]:
            _, offset, ok = self.where.point(fn, "%a0", item)
            with fn.when(fn.op(f"xor i1 {ok}, true")):
                report(fn, "%a1")
            text = str(offset)
            to = fn.op(f"trunc i64 {text} to {t}") if bits == 32 else text
            key = fn.op(f"select i1 {ok}, {t} {to}, {t} -1")
            return key, fn.op(f"trunc i64 {item} to i32")

        def finish(fn: DeviceFunction, line: Ix, rank: Ix, key: str, position: str) -> None:
            own = order.pairs.arrays(fn, fn.at(scratch, at), n)
            order.pairs.store(fn, own, rank, order.pairs.join(fn, key, position))

        how = order.emit(take, finish)
        self._apply(order, at)
        return f"sorted by destination {how}"

    def _apply(self, order: BitonicSort, at: int) -> None:
        """The first item of a destination walks all that go there; of written ones the last counts."""
        n, where, pairs = self.where.items, self.where, order.pairs
        lanes = min(8, block_lanes(where, self.dtype.itemsize))
        pieces = where.block_size // lanes
        with self.each((self.updates, self.result(0), self.scratch), n * pieces) as (fn, number):
            rank, piece = fn.div(number, pieces), fn.mod(number, pieces)
            own = pairs.arrays(fn, fn.at("%a2", at), n)
            key, position = pairs.split(fn, pairs.load(fn, own, rank))
            step = 1 if self.mode == "set" else -1
            beside = fn.add(rank, step)
            there = fn.op(f"icmp ult i64 {beside}, {n}")
            safe = fn.op(f"select i1 {there}, i64 {beside}, i64 {rank}")
            other, _ = pairs.split(fn, pairs.load(fn, own, safe))
            differs = fn.op(f"icmp ne {pairs.key} {other}, {key}")
            alone = fn.op(f"select i1 {there}, i1 {differs}, i1 true")
            mine = fn.op(f"and i1 {alone}, {fn.op(f'icmp ne {pairs.key} {key}, -1')}")
            with fn.when(mine):
                b = self.builder(fn)
                within = fn.mul(piece, lanes)
                to = fn.op(f"zext i32 {key} to i64") if not pairs.wide else key
                target = fn.at(fn.at("%a1", to, mem_type(self.dtype)), block_offset(fn, where, within),
                               mem_type(self.dtype))  # fmt: skip
                if self.mode == "set":
                    source = self._update(fn, position, within)
                    move(fn, source, target, lanes, self.dtype.itemsize)
                else:
                    self._walk(fn, b, pairs, own, rank, (key, position), within, target, lanes)

    def _update(self, fn: DeviceFunction, position: str, within: Ix) -> str:
        item = fn.op(f"zext i32 {position} to i64")
        return fn.at("%a0", fn.add(fn.mul(item, self.where.block_size), within), mem_type(self.dtype))

    def _walk(
        self, fn: DeviceFunction, b: VectorBuilder, pairs: Pairs, own: Arrays, rank: Ix,
        pair: tuple[str, str], within: Ix, target: str, lanes: int,
    ) -> None:  # fmt: skip
        """Add up the updates of one destination in order."""
        n, (key, position) = self.where.items, pair
        old = [load_value(fn, b, target, k, self.dtype) for k in range(lanes)]
        t = reg_type(self.carried)
        carried = [("i64", rank), ("i32", position)] + [(t, b.convert(x, self.carried).text) for x in old]
        with fn.repeat([(a, str(x)) for a, x in carried]) as turn:
            q, item, *sums = turn.vars
            source = self._update(fn, item, within)
            for k, s in enumerate(sums):
                x = load_value(fn, b, source, k, self.dtype)
                new = self._combine(b, b.reg(s, self.carried), x)
                turn.next[2 + k] = b.convert(new, self.dtype).text  # halves are rounded at every step
            after = fn.add(q, 1)
            there = fn.op(f"icmp ult i64 {after}, {n}")
            safe = fn.op(f"select i1 {there}, i64 {after}, i64 {q}")
            other, turn.next[1] = pairs.split(fn, pairs.load(fn, own, safe))
            same = fn.op(f"icmp eq {pairs.key} {other}, {key}")
            turn.next[0] = str(after)
            turn.stop = fn.op(f"xor i1 {fn.op(f'and i1 {there}, {same}')}, true")
        for k, s in enumerate(turn.out[2:]):
            store_value(fn, b.convert(b.reg(s, self.carried), self.dtype), target, k, self.dtype)
