"""Sorting by (key, position) on a GPU: bitonic networks (Batcher, 1968), in shared memory where they fit.

Positions differ, so the order is total and equal keys keep theirs. Lines that one block holds are sorted by
one launch. Longer ones are sorted in chunks and merged: steps between chunks go through global memory, those
within a chunk through shared memory. The few first of a long line are those of the few first of its chunks.
"""

from __future__ import annotations

from collections.abc import Callable

from weft.codegen.blocks import Ix
from weft.codegen.gpu.device import DeviceFunction
from weft.codegen.gpu.target import WARP
from weft.codegen.gpu.writer import DeviceWriter

CHUNK = 2048  # elements that one block sorts
BLOCK = 512  # most threads of such a block
GROUP = 256  # least elements of a block, where lines are shorter

Pair = tuple[str, ...]
Arrays = tuple[str, ...]  # their addresses
Take = Callable[[DeviceFunction, Ix, Ix], tuple[str, str]]  # (line, place) -> key, position
Finish = Callable[[DeviceFunction, Ix, Ix, str, str], None]  # (line, rank, key, position)


class Pairs:
    """Arrays of pairs: one word of 64 bits where the key has 32 at most, else the keys and the positions."""

    def __init__(self, key_bits: int) -> None:
        self.key = f"i{key_bits}"
        self.bits = key_bits
        self.wide = key_bits > 32
        self.types = ("i64", "i32") if self.wide else ("i64",)
        self.itemsize = 12 if self.wide else 8

    def join(self, fn: DeviceFunction, key: str, position: str) -> Pair:
        if self.wide:
            return key, position
        high = fn.op(f"shl i64 {fn.op(f'zext {self.key} {key} to i64')}, 32")
        return (fn.op(f"or i64 {high}, {fn.op(f'zext i32 {position} to i64')}"),)

    def split(self, fn: DeviceFunction, pair: Pair) -> tuple[str, str]:
        if self.wide:
            return pair[0], pair[1]
        high = fn.op(f"lshr i64 {pair[0]}, 32")
        return fn.op(f"trunc i64 {high} to {self.key}"), fn.op(f"trunc i64 {pair[0]} to i32")

    def arrays(self, fn: DeviceFunction, base: str, count: int) -> Arrays:
        """The arrays of ``count`` pairs at an address."""
        return (base, fn.at(base, 8 * count)) if self.wide else (base,)

    def load(self, fn: DeviceFunction, arrays: Arrays, i: Ix) -> Pair:
        sizes = (8, 4)
        return tuple(
            fn.load(t, fn.at(a, i, t), s) for t, a, s in zip(self.types, arrays, sizes, strict=False)
        )

    def store(self, fn: DeviceFunction, arrays: Arrays, i: Ix, pair: Pair) -> None:
        for t, a, s, x in zip(self.types, arrays, (8, 4), pair, strict=False):
            fn.store(t, x, fn.at(a, i, t), s)

    def less(self, fn: DeviceFunction, x: Pair, y: Pair) -> str:
        below = fn.op(f"icmp ult i64 {x[0]}, {y[0]}")
        if not self.wide:
            return below
        same = fn.op(f"icmp eq i64 {x[0]}, {y[0]}")
        first = fn.op(f"icmp ult i32 {x[1]}, {y[1]}")
        return fn.op(f"or i1 {below}, {fn.op(f'and i1 {same}, {first}')}")

    def choose(self, fn: DeviceFunction, test: str, x: Pair, y: Pair) -> Pair:
        return tuple(
            fn.op(f"select i1 {test}, {t} {a}, {t} {b}") for t, a, b in zip(self.types, x, y, strict=True)
        )


class BitonicSort:
    """Sorts ``lines`` lines of ``n`` pairs, of which the first ``kept`` are wanted.

    ``take`` reads a pair from the memory of ``sources``, ``finish`` writes what has a rank below ``kept`` to
    the memory of ``targets``; both find their pointers in the function as ``%a0 ...`` in that order.
    """

    def __init__(
        self, w: DeviceWriter, lines: int, n: int, kept: int, key_bits: int, slots: tuple[int, ...]
    ) -> None:
        self.w, self.lines, self.n, self.kept = w, lines, n, kept
        self.pairs = Pairs(key_bits)
        self.slots = slots  # what take and finish need
        self.padded = 1 << max(1, (n - 1).bit_length())
        self.tid = ""  # the number of the thread in the function being written
        self.run = 0  # elements that end in ascending order there

    def emit(self, take: Take, finish: Finish) -> str:
        """Write the launches; says how it is done."""
        if self.padded <= CHUNK:
            self._small(take, finish)
            return "in one block"
        if 2 * self.kept <= CHUNK:
            return self._select(take, finish)
        self._long(take, finish)
        return f"in chunks of {CHUNK}, merged"

    # -- networks in shared memory

    def _step(self, fn: DeviceFunction, shared: Arrays, count: int, first: Ix, k: int, j: int) -> None:
        """Compare and exchange the elements of an array of ``count`` that lie j apart, in runs of k."""
        tid = self.tid
        for turn in range(max(1, count // 2 // fn.threads)):
            p = fn.add(tid, turn * fn.threads)
            low = fn.op(f"and i64 {p}, {j - 1}")
            i = fn.op(f"or i64 {fn.op(f'shl i64 {fn.sub(p, low)}, 1')}, {low}")
            other = fn.op(f"or i64 {i}, {j}")
            self._exchange(fn, shared, i, other, fn.add(first, i), k)
        fn.barrier()

    def _exchange(
        self, fn: DeviceFunction, arrays: Arrays, i: Ix, other: Ix, place: Ix, k: int
    ) -> None:
        pairs = self.pairs
        x, y = pairs.load(fn, arrays, i), pairs.load(fn, arrays, other)
        swap = pairs.less(fn, y, x)
        if k < self.run:
            down = fn.op(f"icmp ne i64 {fn.op(f'and i64 {place}, {k}')}, 0")
            swap = fn.op(f"xor i1 {swap}, {down}")
        pairs.store(fn, arrays, i, pairs.choose(fn, swap, y, x))
        pairs.store(fn, arrays, other, pairs.choose(fn, swap, x, y))

    def _network(self, fn: DeviceFunction, shared: Arrays, count: int, first: Ix, run: int) -> None:
        """Sort runs of ``run`` elements, whose directions follow their place in the line."""
        k = 2
        while k <= run:
            self._merge(fn, shared, count, first, k, k // 2)
            k *= 2

    def _merge(self, fn: DeviceFunction, shared: Arrays, count: int, first: Ix, k: int, j: int) -> None:
        while j:
            self._step(fn, shared, count, first, k, j)
            j //= 2

    def _fill(
        self, fn: DeviceFunction, shared: Arrays, count: int, read: Callable[[Ix], Pair]
    ) -> None:
        for turn in range(max(1, count // fn.threads)):
            i = fn.add(self.tid, turn * fn.threads)
            self.pairs.store(fn, shared, i, read(i))
        fn.barrier()

    def _taken(self, fn: DeviceFunction, take: Take, line: Ix, place: Ix, n: Ix) -> Pair:
        """The pair at a place of a line; beyond its end one that comes after all others."""
        b, t = self.pairs, self.pairs.key
        inside = fn.op(f"icmp ult i64 {place}, {n}")
        key, position = take(fn, line, fn.op(f"select i1 {inside}, i64 {place}, i64 0"))
        key = fn.op(f"select i1 {inside}, {t} {key}, {t} -1")
        far = fn.op(f"or i32 {fn.op(f'trunc i64 {place} to i32')}, -2147483648")
        return b.join(fn, key, fn.op(f"select i1 {inside}, i32 {position}, i32 {far}"))

    def _small(self, take: Take, finish: Finish) -> None:
        """Lines that fit a block, several to a block where they are short."""
        p = self.padded
        wanted = max(1, min(GROUP // p, self.lines))
        together = max(2 * WARP // p, 1 << (wanted.bit_length() - 1))
        count = together * p
        with self._launch(-(-self.lines // together), count) as fn:
            shared = self._shared(fn, count)
            first = fn.mul(fn.index("ctaid.x").text, together)

            def line_of(i: Ix) -> Ix:
                line = fn.add(first, fn.div(i, p))
                return line if self.lines % together == 0 else fn.min(line, self.lines - 1)

            self._fill(fn, shared, count, lambda i: self._taken(fn, take, line_of(i), fn.mod(i, p), self.n))
            self._network(fn, shared, count, 0, p)
            for turn in range(max(1, count // fn.threads)):
                i = fn.add(self.tid, turn * fn.threads)
                rank = fn.mod(i, p)
                ok = fn.op(f"icmp ult i64 {rank}, {self.kept}")
                if self.lines % together:
                    line = fn.add(first, fn.div(i, p))
                    ok = fn.op(f"and i1 {ok}, {fn.op(f'icmp ult i64 {line}, {self.lines}')}")
                with fn.when(ok):
                    key, position = self.pairs.split(fn, self.pairs.load(fn, shared, i))
                    finish(fn, line_of(i), rank, key, position)

    # -- long lines

    def _long(self, take: Take, finish: Finish) -> None:
        pairs, p = self.pairs, self.padded
        chunks = p // CHUNK
        at = self.w.room(self.lines * p * pairs.itemsize)
        k = CHUNK
        while k <= p:
            j = k // 2
            while j >= CHUNK:
                self._between(at, k, j)
                j //= 2
            with self._launch(self.lines * chunks, CHUNK, p) as fn:
                self._within(fn, at, k, take, finish)
            k *= 2

    def _within(self, fn: DeviceFunction, at: int, k: int, take: Take, finish: Finish) -> None:
        """The steps for runs of k whose pairs lie in one chunk, for the chunk of this block."""
        pairs, p, chunks = self.pairs, self.padded, self.padded // CHUNK
        block = fn.index("ctaid.x").text
        line, first = fn.div(block, chunks), fn.mul(fn.mod(block, chunks), CHUNK)
        shared, base = self._shared(fn, CHUNK), fn.mul(block, CHUNK)
        own = pairs.arrays(fn, fn.at(f"%a{len(self.slots)}", at), self.lines * p)
        if k == CHUNK:
            self._fill(fn, shared, CHUNK, self._reader(fn, take, line, first, self.n))
            self._network(fn, shared, CHUNK, first, CHUNK)
        else:
            self._fill(fn, shared, CHUNK, lambda i: pairs.load(fn, own, fn.add(base, i)))
            self._merge(fn, shared, CHUNK, first, k, CHUNK // 2)
        for turn in range(CHUNK // fn.threads):
            i = fn.add(self.tid, turn * fn.threads)
            pair = pairs.load(fn, shared, i)
            if k < p:
                pairs.store(fn, own, fn.add(base, i), pair)
                continue
            rank = fn.add(first, i)
            with fn.when(fn.op(f"icmp ult i64 {rank}, {self.kept}")):
                finish(fn, line, rank, *pairs.split(fn, pair))

    def _between(self, at: int, k: int, j: int) -> None:
        """A step of the network whose pairs lie in different chunks."""
        total = self.lines * self.padded
        self.run = self.padded
        with self.w.each((self.w.scratch,), total // 2) as (fn, p):
            own = self.pairs.arrays(fn, fn.at("%a0", at), total)
            low = fn.op(f"and i64 {p}, {j - 1}")
            i = fn.op(f"or i64 {fn.op(f'shl i64 {fn.sub(p, low)}, 1')}, {low}")
            place = fn.op(f"and i64 {i}, {self.padded - 1}")
            self._exchange(fn, own, i, fn.op(f"or i64 {i}, {j}"), place, k)

    def _select(self, take: Take, finish: Finish) -> str:
        """Rounds in which every chunk leaves its first ones."""
        pairs, n, rounds = self.pairs, self.n, 0
        source: tuple[int, int] | None = None  # where the pairs of the round lie, how many in all
        while True:
            chunks = -(-n // CHUNK)
            last = chunks == 1
            left = chunks * self.kept
            at = 0 if last else self.w.room(self.lines * left * pairs.itemsize)
            with self._launch(self.lines * chunks, CHUNK) as fn:
                block, scratch = fn.index("ctaid.x").text, f"%a{len(self.slots)}"
                line, chunk = fn.div(block, chunks), fn.mod(block, chunks)
                first = fn.mul(chunk, CHUNK)
                shared = self._shared(fn, CHUNK)
                read = take if source is None else self._from(source, n)
                self._fill(fn, shared, CHUNK, self._reader(fn, read, line, first, n))
                self._network(fn, shared, CHUNK, 0, CHUNK)
                for turn in range(-(-self.kept // fn.threads)):
                    i = fn.add(self.tid, turn * fn.threads)
                    with fn.when(fn.op(f"icmp ult i64 {i}, {self.kept}")):
                        pair = pairs.load(fn, shared, i)
                        if last:
                            finish(fn, line, i, *pairs.split(fn, pair))
                        else:
                            own = pairs.arrays(fn, fn.at(scratch, at), self.lines * left)
                            pairs.store(fn, own, fn.add(fn.mul(block, self.kept), i), pair)
            rounds += 1
            if last:
                return f"by selection in {rounds} rounds"
            source, n = (at, self.lines * left), left

    def _reader(self, fn: DeviceFunction, read: Take, line: Ix, first: Ix, n: int) -> Callable[[Ix], Pair]:
        return lambda i: self._taken(fn, read, line, fn.add(first, i), n)

    def _from(self, source: tuple[int, int], n: int) -> Take:
        """Read what an earlier round left."""
        at, total = source

        def read(fn: DeviceFunction, line: Ix, place: Ix) -> tuple[str, str]:
            own = self.pairs.arrays(fn, fn.at(f"%a{len(self.slots)}", at), total)
            return self.pairs.split(fn, self.pairs.load(fn, own, fn.add(fn.mul(line, n), place)))

        return read

    # -- launches

    def _launch(self, blocks: int, count: int, run: int = 0) -> _Started:
        self.run = run or min(count, self.padded)
        return _Started(self, blocks, min(BLOCK, count // 2))

    def _shared(self, fn: DeviceFunction, count: int) -> Arrays:
        return self.pairs.arrays(fn, fn.shared(count * self.pairs.itemsize), count)


class _Started:
    """A launch whose thread number is at hand as ``tid``."""

    def __init__(self, sort: BitonicSort, blocks: int, threads: int) -> None:
        self.sort = sort
        self.inner = sort.w.launch((*sort.slots, sort.w.scratch), blocks, threads)

    def __enter__(self) -> DeviceFunction:
        fn = self.inner.__enter__()
        self.sort.tid = fn.index("tid.x").text
        return fn

    def __exit__(self, *error: object) -> None:
        self.inner.__exit__(*error)  # type: ignore[arg-type]
