"""Kernels of form ``sort``: stable sorting of lines with indices, and the k first of a sorted line.

Keys are turned into unsigned integers of the same order (NaN above all, both zeros equal) and sorted together
with their positions, by a least significant digit radix sort with 8-bit digits (Knuth, TAOCP 3, 5.2.5), or by
insertion where lines are short; values are then read again at the positions. The few first of a long line are
selected: it is compared, a vector at a time, with the last of those found so far.
"""

from __future__ import annotations

from weft.codegen.blocks import Code, Ix
from weft.codegen.emit import VectorBuilder
from weft.codegen.indexing import operand_pointers
from weft.codegen.kernel import KernelCode
from weft.codegen.lanes import load_lanes, load_raw, store_lanes
from weft.codegen.llvm import mem_type
from weft.codegen.phases import Writer, aligned
from weft.codegen.sort_lines import SortedLines
from weft.codegen.target import Target
from weft.ir.graph import Op
from weft.ir.types import bool_, i8, i16, i32, i64

_SHORT = 40  # lines up to this length are sorted by insertion
_UNITS = 16  # most units of work, each with scratch memory for a line
_SELECTING = 64  # the same where it only holds what is kept
_SELECTED = 8  # times as long as what is kept of it that a line must be to select
_RAW = {8: i8, 16: i16, 32: i32, 64: i64}


def emit(op: Op, target: Target, prefix: str) -> KernelCode:
    """The code of a kernel of form ``sort``."""
    return _Sort(op, target, prefix).emit()


class _Sort(SortedLines, Writer):
    def __init__(self, op: Op, target: Target, prefix: str) -> None:
        super().__init__(op, target, prefix)
        self.read_sort(self.graph)
        self.select = self.kept * _SELECTED <= self.n and self.n > _SHORT
        self.radix = self.n > _SHORT and not self.select
        self.units = min(self.lines, _SELECTING if self.select else _UNITS)
        copies = 2 if self.radix else 1
        room = self.kept if self.select else self.n
        self.keys_bytes, self.index_bytes = aligned(room * self.key.itemsize), aligned(room * 4)
        self.unit_bytes = copies * (self.keys_bytes + self.index_bytes)

    def emit(self) -> KernelCode:
        fn = self.start(f"{self.prefix}_unit")
        (self.src,) = operand_pointers(fn, self.op)
        wanted = {v: fn.arg(len(self.op.operands) + i) for i, v in enumerate(self.graph.results)}
        self.values, self.index = (wanted.get(v) for v in self.sort.results)
        base = fn.at(self.scratch_of(fn), fn.mul("%u", self.unit_bytes))
        half = self.keys_bytes + self.index_bytes
        buffers = [(fn.at(base, i * half), fn.at(base, i * half + self.keys_bytes)) for i in range(2)]
        first = fn.div(fn.mul("%u", self.lines), self.units)
        last = fn.div(fn.mul(fn.add("%u", 1), self.lines), self.units)
        if self.radix:
            self.counts = fn.alloca(256 * 4)
        with fn.range(first, last, runs=True) as line:
            origin = self._origin(fn, line.i, self.n)
            done = self._select(fn, buffers[0], origin) if self.select else self._order(fn, buffers, origin)
            self._write(fn, done[1], origin, self._origin(fn, line.i, self.kept))
        self.keep(fn)
        steps = 0.2 if self.select else 3 * self.key.itemsize if self.radix else self.n / 2
        phase = self.phase("sort", [(fn.symbol, self.units)], self.n * steps * self.lines / self.units)
        method = "selection" if self.select else "radix" if self.radix else "insertion"
        loops = f"sort {self.lines} lines of {self.n} by {method}"
        return self.code([phase], self.units * self.unit_bytes, loops)

    def _origin(self, fn: Code, line: Ix, length: int) -> Ix:
        """Element number of the first of a line that has ``length`` elements."""
        outer, inner = fn.div(line, self.inner), fn.mod(line, self.inner)
        return fn.add(fn.mul(outer, length * self.inner), inner)

    def _element(self, fn: Code, pointer: str, origin: Ix, i: Ix, ty: str) -> str:
        return fn.at(pointer, fn.add(origin, fn.mul(i, self.inner)), ty)

    def _order(self, fn: Code, buffers: list[tuple[str, str]], origin: Ix) -> tuple[str, str]:
        """The whole line in order."""
        self._take(fn, buffers[0], origin, self.n)
        return self._radix(fn, buffers) if self.radix else self._insertion(fn, buffers[0], self.n)

    def _take(self, fn: Code, buffer: tuple[str, str], origin: Ix, count: int) -> None:
        """The keys and positions of the first elements of a line."""
        with fn.range(0, count, runs=True) as i:
            position = fn.op(f"trunc i64 {i.i} to i32")
            self._put(fn, buffer, i.i, self._key(fn, origin, i.i), position)

    def _key(self, fn: Code, origin: Ix, i: Ix, lanes: int = 0, mask: str | None = None) -> str:
        """The element (or vector) as an unsigned integer of the same order."""
        d = self.x.dtype
        at = self._element(fn, self.src, origin, i, mem_type(d))
        b = VectorBuilder(fn, lanes)
        return self.key_of(b, b.reg(load_lanes(fn, at, d, lanes, mask), d, lanes)).text

    def _put(self, fn: Code, buffer: tuple[str, str], at: Ix, key: str, position: str) -> None:
        t = mem_type(self.key)
        fn.store(t, key, fn.at(buffer[0], at, t), self.key.itemsize)
        fn.store("i32", position, fn.at(buffer[1], at, "i32"), 4)

    def _get(self, fn: Code, buffer: tuple[str, str], at: Ix) -> tuple[str, str]:
        t = mem_type(self.key)
        key = fn.load(t, fn.at(buffer[0], at, t), self.key.itemsize)
        return key, fn.load("i32", fn.at(buffer[1], at, "i32"), 4)

    def _insertion(self, fn: Code, buffer: tuple[str, str], count: int) -> tuple[str, str]:
        """Each element in turn goes to its place among those before it."""
        with fn.range(1, count) as i:
            key, position = self._get(fn, buffer, i.i)
            self._insert(fn, buffer, i.i, key, position)
        return buffer

    def _insert(self, fn: Code, buffer: tuple[str, str], free: Ix, key: str, position: str) -> None:
        """From the free place on, greater elements move up (not equal ones: stable)."""
        t = mem_type(self.key)
        head, move, done = fn.new_label("sift"), fn.new_label("move"), fn.new_label("placed")
        before = fn.block
        fn.br(head)
        fn.label(head)
        hole = fn.phi("i64")
        hole.add(str(free), before)
        start = fn.op(f"icmp eq i64 {hole.name}, 0")
        below = fn.op(f"select i1 {start}, i64 0, i64 {fn.sub(hole.name, 1)}")
        other, other_position = self._get(fn, buffer, below)
        greater = fn.op(f"icmp ugt {t} {other}, {key}")
        fn.cond_br(fn.op(f"select i1 {start}, i1 false, i1 {greater}"), move, done)
        fn.label(move)
        self._put(fn, buffer, hole.name, other, other_position)
        hole.add(str(below), move)
        fn.br(head)
        fn.label(done)
        self._put(fn, buffer, hole.name, key, position)

    def _select(self, fn: Code, best: tuple[str, str], origin: Ix) -> tuple[str, str]:
        """The first ``kept`` of the line: whoever comes before the last of them takes its place."""
        k, lanes = self.kept, self.target.lanes(self.key.bits) if self.inner == 1 else 0
        self._take(fn, best, origin, k)
        self._insertion(fn, best, k)
        whole = k + (self.n - k) // lanes * lanes if lanes else k
        if lanes:
            with fn.range(k, whole, lanes, runs=True) as i:
                t = f"<{lanes} x {mem_type(self.key)}>"
                worst = fn.splat(mem_type(self.key), self._get(fn, best, k - 1)[0], lanes)
                below = fn.op(f"icmp ult {t} {self._key(fn, origin, i.i, lanes)}, {worst}")
                some = fn.call(f"llvm.vector.reduce.or.v{lanes}i1", "i1", f"<{lanes} x i1> {below}")
                with fn.when(some):
                    self._challenge(fn, best, origin, i.i, fn.add(i.i, lanes))
        if whole < self.n:
            self._challenge(fn, best, origin, whole, self.n)
        return best

    def _challenge(self, fn: Code, best: tuple[str, str], origin: Ix, first: Ix, last: Ix) -> None:
        """Elements one by one against those found so far."""
        k, t = self.kept, mem_type(self.key)
        with fn.range(first, last, runs=True) as i:
            key = self._key(fn, origin, i.i)
            below = fn.op(f"icmp ult {t} {key}, {self._get(fn, best, k - 1)[0]}")
            with fn.when(below):
                self._insert(fn, best, k - 1, key, fn.op(f"trunc i64 {i.i} to i32"))

    def _radix(self, fn: Code, buffers: list[tuple[str, str]]) -> tuple[str, str]:
        """One stable distribution per digit, least significant first; returns the sorted buffer."""
        src, dst = buffers
        digits = 1 if self.x.dtype is bool_ else self.key.itemsize
        fn.declare("declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)")
        for digit in range(digits):
            fn.do(f"call void @llvm.memset.p0.i64(ptr align 64 {self.counts}, i8 0, i64 1024, i1 false)")
            with fn.range(0, self.n, runs=True) as i:
                slot = self._slot(fn, self._get(fn, src, i.i)[0], digit)
                count = fn.load("i32", slot, 4)
                fn.store("i32", fn.op(f"add i32 {count}, 1"), slot, 4)
            with fn.range(0, 256, 1, [("i32", "0")]) as c:
                slot = fn.at(self.counts, c.i, "i32")
                count = fn.load("i32", slot, 4)
                fn.store("i32", c.vars[0], slot, 4)
                c.next[0] = fn.op(f"add i32 {c.vars[0]}, {count}")
            with fn.range(0, self.n, runs=True) as i:
                key, position = self._get(fn, src, i.i)
                slot = self._slot(fn, key, digit)
                at = fn.load("i32", slot, 4)
                fn.store("i32", fn.op(f"add i32 {at}, 1"), slot, 4)
                self._put(fn, dst, fn.op(f"zext i32 {at} to i64"), key, position)
            src, dst = dst, src
        return src

    def _slot(self, fn: Code, key: str, digit: int) -> str:
        """The counter of a key's digit."""
        t = mem_type(self.key)
        low = fn.op(f"lshr {t} {key}, {8 * digit}") if digit else key
        low = fn.op(f"and {t} {low}, 255") if self.key.bits > 8 else low
        if self.key.bits < 64:
            low = fn.op(f"zext {t} {low} to i64")
        return fn.at(self.counts, low, "i32")

    def _write(self, fn: Code, positions: str, origin: Ix, target: Ix) -> None:
        """Write the first elements and their positions."""
        raw = _RAW[max(8, self.x.dtype.bits)]
        elem = mem_type(raw)
        with fn.range(0, self.kept, runs=True) as i:
            position = fn.op(f"zext i32 {fn.load('i32', fn.at(positions, i.i, 'i32'), 4)} to i64")
            if self.values is not None:
                value = load_raw(fn, self._element(fn, self.src, origin, position, elem), raw, 0)
                store_lanes(fn, value, self._element(fn, self.values, target, i.i, elem), raw, 0)
            if self.index is not None:
                fn.store("i64", position, self._element(fn, self.index, target, i.i, "i64"), 8)
