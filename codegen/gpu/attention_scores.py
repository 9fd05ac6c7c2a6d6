"""What the attention kernels of a GPU share: sizes, masked scores, dropout, and how a block is laid out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from weft.codegen.attention_tiles import LOG2E, attention_of, exp2, lies
from weft.codegen.blocks import Ix
from weft.codegen.emit import Reg
from weft.codegen.gpu.attention_engine import AnyEngine, Stream, TensorEngine
from weft.codegen.gpu.builder import DeviceBuilder
from weft.codegen.gpu.contract_code import BlockCode
from weft.codegen.gpu.contract_region import lanes_within, load_aligned, store_elements, vector_of
from weft.codegen.gpu.contract_tiles import Kernel
from weft.codegen.gpu.target import GpuTarget
from weft.codegen.lanes import to_memory
from weft.codegen.llvm import mem_type, reg_type
from weft.ir.graph import Op, Value
from weft.ir.prims.attention import accumulator, split_optional
from weft.ir.prims.attention_numpy import threshold
from weft.ir.prims.base import PRIMITIVES
from weft.ir.types import DType, bool_, f64, i64, u32, u64

Cell = tuple[Ix, Ix]  # a query and a key
Load = Callable[[Stream, Ix, Ix, str | None], None]  # of (stream, slot, column, use)
_SLOTS = 2
_VECTOR_BYTES = 16


def _pad(dtype: DType) -> int:
    """Bytes between rows of results, so that stores of a warp fall into different banks."""
    return 16 if dtype.itemsize == 2 else 32


class Block:
    """A block's layout in shared memory: what is copied once, and slots of what streams through."""

    def __init__(self, engine: AnyEngine, fixed: list[Stream], streams: list[Stream]) -> None:
        self.engine, self.fixed, self.streams = engine, fixed, streams
        at = 0
        for s in fixed:
            s.at, at = at, at + s.bytes
        if not isinstance(engine, TensorEngine):
            engine.weights_at, at = at, at + engine.weight_bytes()
        start = at
        for s in streams:
            s.at, at = at, at + s.bytes
        self.slot = at - start
        self.slots = _SLOTS if any(s.asynchronous for s in streams) and not engine.split else 1
        widest = max(engine.columns(s.width) for s in (*fixed, *streams))
        results = engine.rows * (widest * engine.acc.itemsize + _pad(engine.acc))
        self.bytes = max(start + self.slots * self.slot, results)

    @property
    def needs(self) -> tuple[int, int]:
        """Bytes of shared memory, and the vectors that a thread copies of one tile."""
        return self.bytes, max(s.vectors for s in (*self.fixed, *self.streams))

    def fetch_tile(self, slot: Ix, column: Ix, load: Load) -> None:
        """Copy what streams past: whole heads, of split ones what is added up, from ``column`` on."""
        for s in self.streams:
            if not self.engine.split:
                load(s, slot, 0, None)
            elif "sum" in s.loaders:
                load(s, slot, column, "sum")

    def fetch_rows(self, fn: BlockCode, rows: Sequence[Stream], load: Load) -> None:
        """Copy the rows that stay, all of their columns."""
        if self.engine.split and not self.engine.resident:
            return
        for s in rows:
            with fn.range(0, s.copies, 1) as c:
                load(s, fn.int32(fn.mul(c.i, s.loaders["rows"].bytes)), fn.mul(c.i, s.chunk), "rows")

    def scores(self, fn: BlockCode, a: Stream, b: Stream, slot: Ix, load: Load) -> list[str]:
        """Rows of ``a`` by the tile of ``b``, of split heads chunk by chunk of columns."""
        engine = self.engine
        zeros = engine.zeros(engine.held)
        if not engine.split:
            return engine.scores(fn, a, b, slot, 0, [x for _, x in zeros])
        with fn.range(0, -(-a.width // a.chunk), 1, zeros) as c:
            column, at = fn.mul(c.i, a.chunk), fn.int32(fn.mul(c.i, a.loaders["rows"].bytes))
            fn.barrier()
            load(b, slot, column, "score")
            if not engine.resident:
                load(a, 0, column, "rows")
            self._arrived(fn)
            c.next = engine.scores(fn, a, b, slot, at if engine.resident else 0, c.vars)
        return c.out

    def walk(
        self, fn: BlockCode, begin: Ix, end: Ix, carried: list[tuple[str, str]],
        load: Callable[[Ix, Ix], None], body: Callable[[Ix, Ix, list[str]], list[str]],
    ) -> list[str]:  # fmt: skip
        """``body(tile, slot, values)`` for every tile from ``begin`` to ``end``, of ``load(tile, slot)``.

        With two slots the next tile is on its way while one is worked on.
        """
        if self.slots == 1:
            with fn.range(begin, end, 1, carried) as t:
                fn.barrier()
                load(t.i, 0)
                self._arrived(fn)
                t.next = body(t.i, 0, t.vars)
            return t.out
        fn.barrier()
        with fn.only(fn.op(f"icmp slt i64 {begin}, {end}")):
            load(begin, 0)
        with fn.range(begin, end, 1, [*carried, ("i32", "0")]) as t:
            *values, slot = t.vars
            self._arrived(fn)
            after = fn.add(t.i, 1)
            other = fn.op(f"sub i32 {self.slot}, {slot}")
            with fn.only(fn.op(f"icmp slt i64 {after}, {end}")):
                load(after, other)
            t.next = [*body(t.i, slot, values), other]
        return t.out[:-1]

    def _arrived(self, fn: BlockCode) -> None:
        if any(s.asynchronous for s in (*self.streams, *self.fixed)):
            fn.commit_copies()
            fn.wait_copies(0)
        fn.barrier()


class Scores:
    """Sizes and operands of an ``attention`` or ``attention_grad``, and its masked scores."""

    def __init__(self, op: Op, target: GpuTarget, prefix: str, name: str, operands: int) -> None:
        self.kernel = Kernel(op, target, prefix)
        self.op, self.target, self.graph = op, target, op.regions[0]
        self.main = main = attention_of(self.graph, name)
        q, k, v = (x.type.shape for x in main.operands[:3])
        self.batch, self.heads, self.length, self.width = q
        self.kv, self.keys, self.out_width = k[1], k[2], v[3]
        self.groups = self.heads // self.kv
        self.dtype = main.operands[0].type.dtype
        self.acc = accumulator(self.dtype)
        self.causal, self.dropout, self.scale = (main.attrs[n] for n in ("causal", "dropout", "scale"))
        mask, state = split_optional(tuple(main.operands[operands:]), self.dropout)
        self.mask = None if mask is None else lies(self.graph, mask)
        self.state = None if state is None else self.graph.params.index(state)
        self.widths = (self.width, self.out_width)

    def builder(self, fn: BlockCode) -> DeviceBuilder:
        return DeviceBuilder(fn, 0)

    def exponential(self, fn: BlockCode, x: Reg) -> Reg:
        """2^x of an x of at most 0; what lies below the smallest normal number is 0."""
        b = self.builder(fn)
        return exp2(b, x) if x.dtype is f64 else b.unit("llvm.nvvm.ex2.approx.ftz.f", x)

    def pointer(self, number: int) -> str:
        return f"%arg{number}"

    def batch_of(self, fn: BlockCode, number: Ix) -> tuple[Ix, Ix, Ix]:
        """Batch, head and number of key heads before, of head number ``number`` of all batches."""
        n, h = fn.div(number, self.heads), fn.mod(number, self.heads)
        return n, h, fn.add(fn.mul(n, self.kv), fn.div(h, self.groups))

    # -- masks

    def seed(self, fn: BlockCode) -> None:
        """Load the state of dropout, once per thread."""
        if self.state is None:
            return
        b = self.builder(fn)
        words = [load_aligned(fn, self.pointer(self.state), i, i64, 0) for i in range(2)]
        self._words = [b.bitcast(b.reg(w, i64, 0, 0), u64) for w in words]

    def masked(self, fn: BlockCode, x: Reg, where: tuple[Ix, Ix], cell: Cell, ok: str | None) -> Reg:
        """A score in units of log2 e, with its mask; -inf where the key is out of range or not seen.

        ``where`` is batch and head, ``ok`` the i1 that query and key are in range.
        """
        b = self.builder(fn)
        low = b.const(float("-inf"), self.acc)
        if self.mask is not None:
            index = fn.select(ok, self.mask.at(fn, *where, *cell), 0)
            got = b.reg(
                load_aligned(fn, self.pointer(self.mask.param), index, self.mask.dtype, 0), self.mask.dtype
            )
            if self.mask.dtype is bool_:
                x = b.select(got, x, low)
            else:
                x = b.fma(b.convert(got, self.acc), b.const(LOG2E, self.acc), x)
        if self.causal:
            ok = fn.both(ok, fn.op(f"icmp sle i64 {cell[1]}, {cell[0]}"))
        return x if ok is None else b.select(b.reg(ok, bool_), x, low)

    def hiding(self, fn: BlockCode, query: Ix, key: Ix, cols: int) -> str | None:
        """The i1 that ``cols`` keys from ``key`` on are masked for queries from ``query`` on; None: never."""
        tests = []
        end = fn.add(key, cols)
        if self.keys % cols:
            tests.append(fn.op(f"icmp sgt i64 {end}, {self.keys}"))
        if self.causal:
            tests.append(fn.op(f"icmp sgt i64 {end}, {fn.add(query, 1)}"))
        if self.mask is not None:
            return "true"
        return tests[0] if len(tests) == 1 else fn.op(f"or i1 {', '.join(tests)}") if tests else None

    def kept(self, fn: BlockCode, where: tuple[Ix, Ix], cell: Cell) -> Reg:
        """0 or 1 / (1 - dropout)."""
        b = self.builder(fn)
        n, h = where
        row = fn.add(fn.mul(fn.add(fn.mul(n, self.heads), h), self.length), cell[0])
        index = b.reg(str(fn.add(fn.mul(row, self.keys), cell[1])), u64)
        words = PRIMITIVES["random_bits"].scalar
        assert words is not None
        word = words(b, *self._words, index)
        least = b.const(threshold(self.dropout) << 8, u32)
        return b.select(
            b.compare("ge", word, least), b.const(1 / (1 - self.dropout), self.acc), b.const(0.0, self.acc)
        )

    # -- results

    def first_thread(self, fn: BlockCode, engine: AnyEngine, column: Ix) -> str | None:
        """The i1 that a thread is the first of those that share its rows, in the first block of these."""
        first = fn.op(f"icmp eq i32 {engine.column}, 0")
        return fn.both(first, fn.op(f"icmp eq i64 {column}, 0") if isinstance(column, str) else None)

    def store_rows(
        self, fn: BlockCode, engine: AnyEngine, v: Value, at: Callable[[Ix], Ix], row0: Ix, rows: int,
        column: Ix, sums: list[str], factors: list[Reg],
    ) -> None:  # fmt: skip
        """Sums of every row, times its factor, to a result whose row begins at element ``at(row)``."""
        if v not in self.graph.results:
            return
        dtype, width = v.type.dtype, v.type.shape[-1]
        self.store_sums(fn, engine, self.result(v), dtype, width, at, row0, rows, column, sums, factors)

    def result(self, v: Value) -> str:
        """The address of a result of the kernel."""
        return self.pointer(len(self.op.operands) + self.graph.results.index(v))

    def store_sums(
        self, fn: BlockCode, engine: AnyEngine, base: str, dtype: DType, width: int, at: Callable[[Ix], Ix],
        row0: Ix, rows: int, column: Ix, sums: list[str], factors: list[Reg],
    ) -> None:  # fmt: skip
        """Sums of every row from ``column`` on, times its factor, to an array at ``base`` as ``dtype``.

        They pass through shared memory, so that neighbouring threads store neighbouring vectors.
        """
        size, extent = dtype.itemsize, engine.extent(width)
        ld = engine.columns(width) + _pad(dtype) // size
        fn.barrier()  # everybody is done with what is there
        self._share_sums(fn, engine, dtype, width, ld, sums, factors)
        fn.barrier()
        lanes = lanes_within((width,), _VECTOR_BYTES // size)
        vectors = extent // lanes
        count = engine.rows * vectors
        with fn.range(fn.index(fn.thread), count, engine.threads, runs=count >= engine.threads) as c:
            r, v = fn.div(c.i, vectors), fn.mul(fn.mod(c.i, vectors), lanes)
            row, col = fn.add(row0, r), fn.add(column, v)
            inside = fn.both(fn.below(row, rows), fn.below(col, width) if engine.split else None)
            with fn.only(inside):
                place = fn.int32(fn.mul(fn.add(fn.mul(r, ld), v), size))
                raw = fn.load_shared(mem_type(dtype, _lanes(lanes)), place, min(_VECTOR_BYTES, lanes * size))
                store_elements(fn, raw, base, fn.add(at(row), col), dtype, _lanes(lanes))

    def _share_sums(
        self, fn: BlockCode, engine: AnyEngine, dtype: DType, width: int, ld: int, sums: list[str],
        factors: list[Reg],
    ) -> None:  # fmt: skip
        """Put a thread's sums, times the factors of their rows, into shared memory, row by row."""
        b, size = self.builder(fn), dtype.itemsize
        for run in engine.sums(fn, width):
            values = [
                b.convert(b.binary("mul", b.reg(sums[run.first + e], self.acc), factors[run.row]), dtype).text
                for e in range(run.count)
            ]
            vector = to_memory(fn, vector_of(fn, values, reg_type(dtype)), dtype, run.count)
            row = fn.i32("mul", engine.thread_rows[run.row], ld)
            to = fn.i32("mul", fn.i32("add", row, run.col), size)
            fn.store_shared(mem_type(dtype, run.count), vector, to, run.count * size)


def _lanes(count: int) -> int:
    return count if count > 1 else 0
