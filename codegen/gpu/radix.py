"""Sorting long lines by (key, position) on a GPU, a digit of eight bits at a time from the lowest on.

Each pass counts the digits of every chunk, scans the counts in the order of digits, and sends each element to
its place (Merrill and Grimshaw, "Revisiting Sorting for GPGPU Stream Architectures", 2010). Within a chunk
elements are first brought into the order of the digit by a network, which keeps the order of equal ones and
so gives each its place; nothing depends on the order in which threads run.
"""

from __future__ import annotations

from weft.codegen.blocks import Ix
from weft.codegen.emit import Reg
from weft.codegen.gpu.bitonic import BLOCK, CHUNK, Arrays, BitonicSort, Finish, Pair, Pairs, Take
from weft.codegen.gpu.block_scan import BlockScan
from weft.codegen.gpu.device import DeviceFunction
from weft.codegen.gpu.writer import DeviceWriter
from weft.ir.types import bool_, i32

DIGIT = 8
BUCKETS = 1 << DIGIT
SCANNERS, ITEMS = 256, 8  # threads that scan the counts of a line, and what each takes; more threads spill


class _Words(Pairs):
    """Digits and places within a chunk, in one word of 32 bits."""

    def __init__(self) -> None:
        super().__init__(32)
        self.types = ("i32",)  # type: ignore[assignment]
        self.itemsize = 4

    def load(self, fn: DeviceFunction, arrays: Arrays, i: Ix) -> Pair:
        return (fn.load("i32", fn.at(arrays[0], i, "i32"), 4),)

    def store(self, fn: DeviceFunction, arrays: Arrays, i: Ix, pair: Pair) -> None:
        fn.store("i32", pair[0], fn.at(arrays[0], i, "i32"), 4)

    def less(self, fn: DeviceFunction, x: Pair, y: Pair) -> str:
        return fn.op(f"icmp ult i32 {x[0]}, {y[0]}")


class RadixSort(BitonicSort):
    """The same for lines of several chunks; ``bits`` low bits tell keys apart."""

    def __init__(
        self, w: DeviceWriter, lines: int, n: int, kept: int, key_bits: int, slots: tuple[int, ...], bits: int
    ) -> None:
        super().__init__(w, lines, n, kept, key_bits, slots)
        self.digits = -(-bits // DIGIT)
        self.chunks = -(-n // CHUNK)

    def emit(self, take: Take, finish: Finish) -> str:
        """Write the launches; says how it is done."""
        total = self.lines * self.chunks * CHUNK
        self.near = self.w.room(total * self.pairs.itemsize)  # in the order of the digit within each chunk
        self.far = self.w.room(total * self.pairs.itemsize)  # in the order of the digits so far
        self.counts = self.w.room(self.lines * self.chunks * BUCKETS * 4)
        self.starts = self.w.room(self.lines * self.chunks * BUCKETS * 4)
        self.scratch = f"%a{len(self.slots)}"
        for digit in range(self.digits):
            with self._launch(self.lines * self.chunks, CHUNK) as fn:
                self._count(fn, digit, take)
            with self.w.launch((self.w.scratch,), self.lines, SCANNERS) as fn:
                self._scan(fn)
            with self._launch(self.lines * self.chunks, CHUNK) as fn:
                self._send(fn, digit, finish)
        return f"by {self.digits} digits"

    def _array(self, fn: DeviceFunction, at: int) -> Arrays:
        return self.pairs.arrays(fn, fn.at(self.scratch, at), self.lines * self.chunks * CHUNK)

    def _digit(self, fn: DeviceFunction, pair: Pair, digit: int) -> str:
        key, _ = self.pairs.split(fn, pair)
        t = self.pairs.key
        low = fn.op(f"and {t} {fn.op(f'lshr {t} {key}, {DIGIT * digit}')}, {BUCKETS - 1}")
        return fn.op(f"trunc {t} {low} to i32") if self.pairs.bits > 32 else low

    def _count(self, fn: DeviceFunction, digit: int, take: Take) -> None:
        """Order a chunk by a digit; leave where each digit starts in it, and how often it occurs."""
        block = fn.index("ctaid.x").text
        line, chunk = fn.div(block, self.chunks), fn.mod(block, self.chunks)
        base, first = fn.mul(block, CHUNK), fn.mul(chunk, CHUNK)
        held = self._shared(fn, CHUNK)
        words, starts, ends = (fn.shared(4 * n) for n in (CHUNK, BUCKETS, BUCKETS))
        is_bucket = fn.op(f"icmp ult i64 {self.tid}, {BUCKETS}")
        with fn.when(is_bucket):
            fn.store("i32", "0", fn.at(starts, self.tid, "i32"), 4)
            fn.store("i32", "0", fn.at(ends, self.tid, "i32"), 4)
        far = self._array(fn, self.far)
        for turn in range(CHUNK // BLOCK):
            i = fn.add(self.tid, turn * BLOCK)
            if digit:
                pair = self.pairs.load(fn, far, fn.add(base, i))
            else:
                pair = self._taken(fn, take, line, fn.add(first, i), self.n)
            self.pairs.store(fn, held, i, pair)
            high = fn.op(f"shl i32 {self._digit(fn, pair, digit)}, 16")
            place = fn.op(f"trunc i64 {i} to i32")
            fn.store("i32", fn.op(f"or i32 {high}, {place}"), fn.at(words, i, "i32"), 4)
        fn.barrier()
        pairs, self.pairs = self.pairs, _Words()
        self.run = CHUNK
        self._network(fn, (words,), CHUNK, 0, CHUNK)
        self.pairs = pairs
        near = self._array(fn, self.near)
        for turn in range(CHUNK // BLOCK):
            rank = fn.add(self.tid, turn * BLOCK)
            self._leave(fn, rank, words, starts, ends)
            word = fn.load("i32", fn.at(words, rank, "i32"), 4)
            place = fn.op(f"zext i32 {fn.op(f'and i32 {word}, 65535')} to i64")
            self.pairs.store(fn, near, fn.add(base, rank), self.pairs.load(fn, held, place))
        fn.barrier()
        with fn.when(is_bucket):
            start = fn.load("i32", fn.at(starts, self.tid, "i32"), 4)
            count = fn.op(f"sub i32 {fn.load('i32', fn.at(ends, self.tid, 'i32'), 4)}, {start}")
            fn.store("i32", count, self._counter(fn, line, self.tid, chunk), 4)
            fn.store("i32", start, self._start(fn, block, self.tid), 4)

    def _leave(self, fn: DeviceFunction, rank: Ix, words: str, starts: str, ends: str) -> None:
        """Where a digit differs from the one before, that one ends and this one starts."""

        def digit_at(i: Ix) -> str:
            return fn.op(f"lshr i32 {fn.load('i32', fn.at(words, i, 'i32'), 4)}, 16")

        def put(array: str, digit: str, value: Ix) -> None:
            at = fn.at(array, fn.op(f"zext i32 {digit} to i64"), "i32")
            fn.store("i32", fn.op(f"trunc i64 {value} to i32"), at, 4)

        mine = digit_at(rank)
        is_first = fn.op(f"icmp eq i64 {rank}, 0")
        before = digit_at(fn.op(f"select i1 {is_first}, i64 0, i64 {fn.sub(rank, 1)}"))
        differs = fn.op(f"icmp ne i32 {mine}, {before}")
        with fn.when(fn.op(f"or i1 {is_first}, {differs}")):
            put(starts, mine, rank)
        with fn.when(differs):
            put(ends, before, rank)
        with fn.when(fn.op(f"icmp eq i64 {rank}, {CHUNK - 1}")):
            put(ends, mine, fn.add(rank, 1))

    def _counter(self, fn: DeviceFunction, line: Ix, bucket: Ix, chunk: Ix) -> str:
        """Of a digit in a chunk: digits one after the other, the chunks of each together."""
        at = fn.add(fn.mul(fn.add(fn.mul(line, BUCKETS), bucket), self.chunks), chunk)
        return fn.at(fn.at(self.scratch, self.counts), at, "i32")

    def _start(self, fn: DeviceFunction, block: Ix, bucket: Ix) -> str:
        return fn.at(fn.at(self.scratch, self.starts), fn.add(fn.mul(block, BUCKETS), bucket), "i32")

    def _scan(self, fn: DeviceFunction) -> None:
        """The counts of a line become the places of the first elements that they count."""
        b, tid, line = self.w.builder(fn), fn.index("tid.x").text, fn.index("ctaid.x").text
        length = BUCKETS * self.chunks
        counts = fn.at(fn.at("%a0", self.counts), fn.mul(line, length), "i32")
        zero = b.const(0, i32)
        scan = BlockScan(fn, b, tid, "add", zero)
        with fn.range(0, length, SCANNERS * ITEMS, [("i32", "0")], runs=True) as turn:
            first = fn.add(turn.i, fn.mul(tid, ITEMS))
            inside = [fn.op(f"icmp ult i64 {fn.add(first, k)}, {length}") for k in range(ITEMS)]
            xs: list[Reg] = []
            for k, ok in enumerate(inside):
                at = fn.op(f"select i1 {ok}, i64 {fn.add(first, k)}, i64 0")
                raw = b.reg(fn.load("i32", fn.at(counts, at, "i32"), 4), i32)
                xs.append(b.select(b.reg(ok, bool_), raw, zero))
            mine = xs[0]
            for x in xs[1:]:
                mine = b.binary("add", mine, x)
            before, total = scan.exclusive(mine)
            place = b.binary("add", b.reg(turn.vars[0], i32), before)
            fn.barrier()  # the first count stands in for those past the end: all have read before any writes
            for k, (x, ok) in enumerate(zip(xs, inside, strict=True)):
                with fn.when(ok):
                    fn.store("i32", place.text, fn.at(counts, fn.add(first, k), "i32"), 4)
                place = b.binary("add", place, x)
            turn.next[0] = b.binary("add", b.reg(turn.vars[0], i32), total).text

    def _send(self, fn: DeviceFunction, digit: int, finish: Finish) -> None:
        """Each element goes behind those of smaller digits, of chunks before, and of its chunk before it."""
        block = fn.index("ctaid.x").text
        line, chunk = fn.div(block, self.chunks), fn.mod(block, self.chunks)
        near, far = self._array(fn, self.near), self._array(fn, self.far)
        for turn in range(CHUNK // BLOCK):
            rank = fn.add(self.tid, turn * BLOCK)
            pair = self.pairs.load(fn, near, fn.add(fn.mul(block, CHUNK), rank))
            bucket = fn.op(f"zext i32 {self._digit(fn, pair, digit)} to i64")
            base = fn.load("i32", self._counter(fn, line, bucket, chunk), 4)
            start = fn.load("i32", self._start(fn, block, bucket), 4)
            offset = fn.op(f"sext i32 {fn.op(f'sub i32 {base}, {start}')} to i64")
            to = fn.add(rank, offset)
            if digit < self.digits - 1:
                self.pairs.store(fn, far, fn.add(fn.mul(line, self.chunks * CHUNK), to), pair)
                continue
            with fn.when(fn.op(f"icmp ult i64 {to}, {self.kept}")):
                finish(fn, line, to, *self.pairs.split(fn, pair))


def sorting(
    w: DeviceWriter, lines: int, n: int, kept: int, key_bits: int, slots: tuple[int, ...], bits: int
) -> BitonicSort:
    """The sort with fewer launches: merging takes more with each doubling of the lines, digits do not."""
    plain = BitonicSort(w, lines, n, kept, key_bits, slots)
    if plain.padded <= CHUNK or 2 * kept <= CHUNK:
        return plain
    doublings = (plain.padded // CHUNK).bit_length() - 1
    merging = 1 + sum(s + 1 for s in range(1, doublings + 1))
    by_digits = RadixSort(w, lines, n, kept, key_bits, slots, bits)
    return by_digits if 3 * by_digits.digits < merging else plain
