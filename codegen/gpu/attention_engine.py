"""Products of rows by streams of columns, with what becomes of the scores in between left to the caller.

An engine computes S = A B' for ``rows`` of A and ``cols`` of B in registers, and adds W C to sums in
registers, where the caller made the weights W of S. :class:`TensorEngine` keeps all of it in the registers of
a warp, :class:`SimtEngine` (f32, f64) passes weights through shared memory.

Heads too wide for registers and shared memory are *split*: scores are added up chunk by chunk of the width,
and a block has the sums of one slice of columns only; the blocks of the others compute the scores again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from weft.codegen.blocks import Ix
from weft.codegen.gpu.contract_code import BlockCode, supports_async
from weft.codegen.gpu.contract_load import MatrixSide, TileLoader
from weft.codegen.gpu.contract_mma import Fragments, product
from weft.codegen.gpu.contract_plan import Plan
from weft.codegen.gpu.contract_region import vector_of
from weft.codegen.gpu.contract_simt import Simt
from weft.codegen.gpu.target import WARP, GpuTarget
from weft.codegen.llvm import reg_type
from weft.codegen.microkernel import accumulator
from weft.codegen.operands import matrix
from weft.ir.graph import Graph, Value
from weft.ir.types import DType, bf16, f16, f32

_OTHER_REGISTERS = 80  # for fragments and addresses
_CHUNK_BITS = 2048  # of a row of a split head, by which scores are added up
_SLICES = (512, 256, 128, 64, 32)  # columns that are summed by one block
_VECTORS = 64  # that a thread copies of one tile without much code
_DEPTH = 8  # k between which addresses are computed anew
Sums = list[str]


def padded(width: int, least: int = 16) -> int:
    """A power of two, which threads share out evenly."""
    return max(least, 1 << (width - 1).bit_length())


@dataclass(frozen=True)
class Run:
    """``count`` neighbouring values of a thread, from number ``first`` on, at (its row number, column)."""

    first: int
    row: int
    col: Ix
    count: int


class Stream:
    """An operand [batch, heads, rows, width] that is read by tiles of some rows, in shared memory at ``at``.

    ``uses``: "rows" and "score" (its rows are multiplied with rows), "sum" (its rows are added up). Rows are
    multiplied by ``chunk`` columns at a time; of "rows" the tiles of ``copies`` chunks lie behind each other.
    """

    def __init__(
        self, loaders: Mapping[str, TileLoader], width: int, rows: int, chunk: int, copies: int = 1
    ) -> None:
        self.loaders, self.width, self.rows = loaders, width, rows
        self.chunk, self.copies = chunk, copies
        self.at = 0

    def _parts(self) -> list[tuple[str, TileLoader, int]]:
        out, at = [], self.at
        for use, loader in {id(x): (u, x) for u, x in reversed(list(self.loaders.items()))}.values():
            out.append((use, loader, at))
            at += loader.bytes * self.copies
        return out

    @property
    def bytes(self) -> int:
        return sum(loader.bytes for _, loader, _ in self._parts()) * self.copies

    @property
    def vectors(self) -> int:
        """How many a thread copies of a tile."""
        return max(loader.count for _, loader, _ in self._parts())

    @property
    def asynchronous(self) -> bool:
        return all(loader.asynchronous for _, loader, _ in self._parts())

    def offset(self, use: str) -> int:
        """Where the tile for a use begins."""
        return next(at for _, loader, at in self._parts() if loader is self.loaders[use])

    def load(
        self, fn: BlockCode, pointers: Mapping[Value, str], batch: Ix, first: Ix, slot: Ix = 0,
        column: Ix = 0, use: str | None = None,
    ) -> None:  # fmt: skip
        """Copy the tile from row ``first`` and ``column`` on; asynchronous copies are left under way."""
        for name, loader, at in self._parts():
            if use not in (None, name):
                continue
            to = fn.i32("add", slot, at)
            across = isinstance(loader.side, MatrixSide) and loader.side.m.axes[1] == (3,)
            loader.begin(fn, pointers, batch, column if across else first)
            k, stop = (first, self.rows) if across else (column, self.width)
            if loader.asynchronous:
                loader.copy(fn, k, stop, to)
            else:
                loader.store(fn, loader.load(fn, k, stop), to)


class Engine:
    """Tiles of ``rows`` by ``cols`` scores; the common part."""

    rows: int
    cols: int
    threads: int
    dtype: DType
    acc: DType
    lanes: tuple[int, ...]  # distances of the lanes that hold the same row
    rate = 1  # products at a time, relative to fma
    busy = 256  # threads that keep a multiprocessor busy
    slice: int | None = None  # of split heads: columns that a block has sums for
    resident = True  # of split heads: all chunks of the rows stay in shared memory

    @property
    def split(self) -> bool:
        return self.slice is not None

    def extent(self, width: int) -> int:
        """The columns of a head that a block has sums for."""
        return width if self.slice is None else min(width, self.slice)

    def chunk(self, width: int) -> int:
        """The columns by which scores are added up."""
        return min(width, _CHUNK_BITS // self.dtype.bits) if self.split else width

    def slices(self, *widths: int) -> int:
        """How many blocks share the columns of heads of these widths."""
        return max(-(-w // self.extent(w)) for w in widths)

    def _stream(self, loaders: Mapping[str, TileLoader], width: int, rows: int) -> Stream:
        chunk = self.chunk(width)
        copies = -(-width // chunk) if self.resident and "rows" in loaders else 1
        return Stream(loaders, width, rows, chunk, copies)

    def reduce(self, fn: BlockCode, x: str, join: Callable[[str, str], str]) -> str:
        """A value per row, over all columns."""
        for d in self.lanes:
            x = join(x, self._shuffle(fn, x, d))
        return x

    def _shuffle(self, fn: BlockCode, x: str, distance: int) -> str:
        if self.acc.itemsize == 4:
            return fn.shuffle_xor(x, distance)
        both = fn.op(f"bitcast double {x} to <2 x i32>")
        halves = [fn.op(f"extractelement <2 x i32> {both}, i32 {i}") for i in (0, 1)]
        moved = [
            fn.call("llvm.nvvm.shfl.sync.bfly.i32", "i32", f"i32 -1, i32 {h}, i32 {distance}, i32 31")
            for h in halves
        ]
        return fn.op(f"bitcast <2 x i32> {vector_of(fn, moved, 'i32')} to double")

    def zeros(self, count: int) -> list[tuple[str, str]]:
        return [(reg_type(self.acc), "0.0")] * count


def _side(graph: Graph, v: Value, most: int, across: bool) -> MatrixSide:
    axes = ((0, 1), (3,), (2,)) if across else ((0, 1), (2,), (3,))
    return MatrixSide(matrix(v, graph, axes), graph, most)


class TensorEngine(Engine):
    """Four warps of 16 rows; weights become fragments of A in the registers in which scores were sums.

    Registers of a thread: cols / 2 scores (twice in the gradient), width / 2 sums, and fragments.
    """

    lanes = (1, 2)
    rate, busy = 8, 128

    def __init__(self, dtype: DType, target: GpuTarget, cols: int) -> None:
        self.dtype, self.target, self.acc = dtype, target, f32
        self.rows, self.cols, self.threads = 64, cols, 4 * WARP
        self.family = "mma.m16n8k16" if target.capability >= (8, 0) else "mma.m16n8k8"

    def stream(self, graph: Graph, v: Value, rows: int, uses: tuple[str, ...]) -> Stream:
        """``rows`` is how many of them a tile has."""
        side = _side(graph, v, 16 // v.type.dtype.itemsize, False)
        width = v.type.shape[3]

        def loader(use: str) -> TileLoader:
            columns = padded(self.extent(width) if use == "sum" else self.chunk(width))
            return TileLoader(side, rows, columns, self.threads, "narrow", 0, supports_async(self.target))

        # whole heads: one tile serves all uses
        whole = dict.fromkeys(uses, loader(uses[0]))
        loaders = {use: loader(use) for use in uses} if self.split else whole
        return self._stream(loaders, width, v.type.shape[2])

    def begin(self, fn: BlockCode) -> None:
        warp, lane = fn.i32("lshr", fn.thread, 5), fn.i32("and", fn.thread, 31)
        self.warp, self.column = warp, fn.i32("shl", fn.i32("and", lane, 3), 1)
        row = fn.i32("add", fn.i32("mul", warp, 16), fn.i32("lshr", lane, 2))
        self.thread_rows = [row, fn.i32("add", row, 8)]

    @property
    def held(self) -> int:
        """Scores of a thread."""
        return self.cols // 2

    def _runs(self, fn: BlockCode, extent: int) -> list[Run]:
        return [
            Run(4 * j + 2 * half, half, fn.i32("add", self.column, 8 * j), 2)
            for j in range(extent // 8)
            for half in (0, 1)
        ]

    def cells(self, fn: BlockCode) -> list[Run]:
        return self._runs(fn, self.cols)

    def sums(self, fn: BlockCode, width: int) -> list[Run]:
        return self._runs(fn, self.columns(width))

    def columns(self, width: int) -> int:
        """The columns that there are sums for, some of which may lie behind the last."""
        return padded(self.extent(width))

    def scores(self, fn: BlockCode, a: Stream, b: Stream, slot: Ix, rows_at: Ix, sums: Sums) -> Sums:
        """The sums plus A of the block, ``rows_at`` behind its place, by the tile of B at ``slot``."""
        left, right = a.loaders["rows"], b.loaders["score"]
        turned_a, turned_b = (x.side.along == "row" for x in (left, right))
        depth = left.depth
        fa = Fragments(left.swizzle, 16, depth, "a", turned_a)
        fb = Fragments(right.swizzle, self.cols, depth, "b", turned_b)
        fa.begin(fn, self.warp, a.offset("rows"))
        fb.begin(fn, 0, b.offset("score"))
        out = list(sums)
        for k in range(depth // 16):
            (x,), ys = fa.load(fn, rows_at, k), fb.load(fn, slot, k)
            self._add(fn, x, ys, out)
        return out

    def _add(self, fn: BlockCode, x: list[str], ys: list[list[str]], out: Sums) -> None:
        for j in range(len(ys) * 2):
            y = ys[j // 2][2 * (j % 2) : 2 * (j % 2) + 2]
            out[4 * j : 4 * j + 4] = product(fn, self.family, self.dtype, x, y, out[4 * j : 4 * j + 4])

    def add(self, fn: BlockCode, weights: Sums, b: Stream, slot: Ix, sums: Sums) -> Sums:
        """The sums plus the weights by the tile of B."""
        loader, out = b.loaders["sum"], list(sums)
        fb = Fragments(loader.swizzle, loader.depth, self.cols, "b", loader.side.along == "k")
        fb.begin(fn, 0, b.offset("sum"))
        for k in range(self.cols // 16):
            w = weights[8 * k : 8 * k + 8]
            x = [self._pair(fn, w[i], w[i + 1]) for i in (0, 2, 4, 6)]
            self._add(fn, x, fb.load(fn, slot, k), out)
        return out

    def _pair(self, fn: BlockCode, low: str, high: str) -> str:
        """Two weights, rounded, in one word."""
        if self.dtype is bf16:
            name = "llvm.nvvm.ff2bf16x2.rn"
            got = fn.call(name, "<2 x bfloat>", f"float {high}, float {low}")
            return fn.op(f"bitcast <2 x bfloat> {got} to i32")
        both = vector_of(fn, [fn.op(f"fptrunc float {x} to half") for x in (low, high)], "half")
        return fn.op(f"bitcast <2 x half> {both} to i32")

    def weight_bytes(self) -> int:
        return 0

    def holds(self, widths: tuple[int, ...], tiles: int) -> bool:
        """Whether the registers hold sums of these widths beside so many tiles of scores."""
        sums = sum(self.columns(w) for w in widths) // 2
        return sums + tiles * self.cols // 2 + _OTHER_REGISTERS <= 255


class SimtEngine(Engine):
    """Threads of 4 rows by 4 columns; sums of 4 rows by as many columns of every panel of ``cols``."""

    def __init__(self, dtype: DType, target: GpuTarget, rows: int, cols: int) -> None:
        self.dtype, self.target, self.acc = dtype, target, accumulator(dtype)
        self.rows, self.cols, self.threads = rows, cols, rows * cols // 16
        self.pad = 16 // self.acc.itemsize
        self.group = self.pad
        across = cols // 4
        self.lanes = tuple(1 << i for i in range(across.bit_length() - 1))
        self.weights_at = 0

    def stream(self, graph: Graph, v: Value, rows: int, uses: tuple[str, ...]) -> Stream:
        """``rows`` is how many of them a tile has."""
        most = 16 // max(v.type.dtype.itemsize, self.acc.itemsize)
        width = v.type.shape[3]
        made = {}
        for use in uses:
            across = use == "sum"
            shape = (rows, padded(self.chunk(width)))
            if across:
                shape = (padded(self.extent(width), self.cols), rows)
            side = _side(graph, v, most, across)
            made[use] = TileLoader(side, *shape, self.threads, "wide", self.pad, False)
        return self._stream(made, width, v.type.shape[2])

    def begin(self, fn: BlockCode) -> None:
        across = self.cols // 4
        self.ty, self.tx = fn.i32("udiv", fn.thread, across), fn.i32("urem", fn.thread, across)
        groups = 4 // self.group
        row, self.column = fn.i32("mul", self.ty, self.group), fn.i32("mul", self.tx, self.group)
        self.thread_rows = [
            fn.i32("add", row, g * (self.rows // groups) + e)
            for g in range(groups)
            for e in range(self.group)
        ]

    held = 16  # scores of a thread

    def _runs(self, fn: BlockCode, first: int, start: int) -> list[Run]:
        groups = 4 // self.group
        return [
            Run(first + 4 * r + g * self.group, r,
                fn.i32("add", self.column, start + g * (self.cols // groups)), self.group)
            for r in range(4)
            for g in range(groups)
        ]  # fmt: skip

    def cells(self, fn: BlockCode) -> list[Run]:
        return self._runs(fn, 0, 0)

    def _panels(self, width: int) -> int:
        return -(-self.extent(width) // self.cols)

    def columns(self, width: int) -> int:
        """The columns that there are sums for, some of which may lie behind the last."""
        return self._panels(width) * self.cols

    def sums(self, fn: BlockCode, width: int) -> list[Run]:
        return [r for p in range(self._panels(width)) for r in self._runs(fn, 16 * p, p * self.cols)]

    def _simt(self, a_ld: int, b_ld: int) -> Simt:
        plan = Plan("fma", self.rows, self.cols, 1, (1, 1), (4, 4))
        simt = Simt(plan, self.acc, (a_ld, b_ld))
        simt.row, simt.col = self.thread_rows[0], self.column
        return simt

    def _loop(self, fn: BlockCode, simt: Simt, a: Ix, b: Ix, depth: int, sums: Sums) -> Sums:
        size = self.acc.itemsize
        t = reg_type(self.acc)
        with fn.range(0, -(-depth // _DEPTH), 1, [(t, s) for s in sums]) as turn:
            k = fn.int32(fn.mul(turn.i, _DEPTH * size))
            at_a = fn.i32("add", a, fn.i32("mul", k, simt.lda))
            at_b = fn.i32("add", b, fn.i32("mul", k, simt.ldb))
            turn.next = simt.products(fn, at_a, at_b, range(_DEPTH), turn.vars)
        return turn.out

    def scores(self, fn: BlockCode, a: Stream, b: Stream, slot: Ix, rows_at: Ix, sums: Sums) -> Sums:
        """The sums plus A of the block, ``rows_at`` behind its place, by the tile of B at ``slot``."""
        simt = self._simt(a.loaders["rows"].ld, b.loaders["score"].ld)
        at = fn.i32("add", slot, b.offset("score"))
        return self._loop(fn, simt, fn.i32("add", rows_at, a.offset("rows")), at, a.chunk, sums)

    def add(self, fn: BlockCode, weights: Sums, b: Stream, slot: Ix, sums: Sums) -> Sums:
        """The sums plus the weights, by way of shared memory, by the tile of B."""
        self._share(fn, weights)
        loader = b.loaders["sum"]
        simt, out = self._simt(self.rows + self.pad, loader.ld), []
        for p in range(self._panels(b.width)):
            at = fn.i32("add", slot, b.offset("sum") + p * self.cols * self.acc.itemsize)
            out += self._loop(fn, simt, self.weights_at, at, self.cols, sums[16 * p : 16 * p + 16])
        return out

    def _share(self, fn: BlockCode, weights: Sums) -> None:
        """Put the weights into shared memory, column by column, in vectors of neighbouring rows."""
        ld, size, t = self.rows + self.pad, self.acc.itemsize, reg_type(self.acc)
        at: dict[tuple[int, int], tuple[Ix, list[str]]] = {}
        for run in self.cells(fn):
            for e in range(run.count):
                key = (run.row // self.group, run.first % 4 + e)
                _, rows = at.setdefault(key, (fn.i32("add", run.col, e), []))
                rows.append(weights[run.first + e])
        fn.barrier()
        for (group, _), (col, rows) in at.items():
            first = self.thread_rows[group * self.group]
            to = fn.i32("mul", fn.i32("add", fn.i32("mul", col, ld), first), size)
            vector = vector_of(fn, rows, t)
            fn.store_shared(reg_type(self.acc, self.group), vector, fn.i32("add", to, self.weights_at), 16)
        fn.barrier()

    def holds(self, widths: tuple[int, ...], tiles: int) -> bool:
        """Whether the registers hold sums of these widths beside so many tiles of scores."""
        held = 16 * (sum(self._panels(w) for w in widths) + tiles) * (self.acc.itemsize // 4)
        return held + _OTHER_REGISTERS <= 255

    def weight_bytes(self) -> int:
        return self.cols * (self.rows + self.pad) * self.acc.itemsize


AnyEngine = TensorEngine | SimtEngine


def engines(dtype: DType, target: GpuTarget) -> Iterator[AnyEngine]:
    """The engines, the best first: on tensor cores whole heads, then split ones; then the same by fma."""
    if (dtype is bf16 and target.capability >= (8, 0)) or dtype is f16:
        yield from _with_splits(lambda: [TensorEngine(dtype, target, cols) for cols in (64, 32)])
    tiles = ((32, 64), (32, 32), (16, 32), (32, 16))  # of a warp at least
    yield from _with_splits(lambda: [SimtEngine(dtype, target, rows, cols) for rows, cols in tiles])


def _with_splits(make: Callable[[], Sequence[AnyEngine]]) -> Iterator[AnyEngine]:
    yield from make()
    for columns in _SLICES:
        for resident in (True, False):
            for engine in make():
                engine.slice, engine.resident = columns, resident
                yield engine


def choose(
    dtype: DType, target: GpuTarget, needs: Callable[[AnyEngine], tuple[int, int]], scores: tuple[int, ...],
    sums: tuple[int, ...],
) -> AnyEngine:  # fmt: skip
    """The cheapest engine whose tiles fit the shared memory of a block, and sums and scores the registers.

    ``needs`` gives the bytes of shared memory of a block and the vectors that a thread copies of one tile.
    ``scores`` are the widths of heads of each product that gives scores, ``sums`` those added up. Split
    heads of any width fit.
    """
    best: tuple[float, AnyEngine] | None = None
    for engine in engines(dtype, target):
        if not engine.holds(sums, len(scores)):
            continue
        nbytes, vectors = needs(engine)
        if nbytes > target.shared_bytes:
            continue
        there = engine.threads * max(1, target.sm_shared_bytes // (nbytes + 1024))
        products = engine.slices(*sums) * sum(scores) + sum(sums)
        cost = products / engine.rate * max(1.0, engine.busy / there) * max(1.0, vectors / _VECTORS)
        if best is None or cost < best[0]:
            best = cost, engine
    assert best is not None
    return best[1]
