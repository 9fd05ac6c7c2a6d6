"""The sizes of an attention and its masked scores: what its kernels, forward and backward, have in common."""

from __future__ import annotations

from collections.abc import Callable

from weft.codegen.attention_plan import AttentionPlan, AttentionProblem, choose, ways
from weft.codegen.attention_tiles import (
    LOG2E,
    Lies,
    Panels,
    attention_of,
    lies,
    load_vector,
    pack_rows,
    pack_turned,
    tile_kernel,
)
from weft.codegen.blocks import Code, Ix, iota
from weft.codegen.emit import Reg, VectorBuilder
from weft.codegen.lanes import load_lanes, store_lanes, tail_mask
from weft.codegen.llvm import reg_type
from weft.codegen.microkernel import Tile, inner_kernel
from weft.codegen.phases import Writer, aligned
from weft.codegen.target import Target
from weft.ir.graph import Op, Value
from weft.ir.prims.attention import accumulator, split_optional
from weft.ir.prims.attention_numpy import threshold
from weft.ir.prims.base import PRIMITIVES
from weft.ir.types import bool_, i64, u32, u64

_PACKED_ROWS = 64  # rows of a copy per unit


class Attention(Writer):
    """Sizes, operands and emitters shared by the kernels of ``attention`` and ``attention_grad``.

    A unit works on rows of one key head: those of one query head or, where ``heads`` > 1, of all query heads
    of a group, one behind the other.
    """

    def __init__(self, op: Op, target: Target, prefix: str, name: str, operands: int) -> None:
        super().__init__(op, target, prefix)
        self.main = main = attention_of(self.graph, name)
        q, k, v = (x.type.shape for x in main.operands[:3])
        self.batch, self.q_heads, self.length, self.width = q
        self.kv, self.keys, self.out_width = k[1], k[2], v[3]
        self.groups = self.q_heads // self.kv
        self.acc = accumulator(main.operands[0].type.dtype)
        self.size = self.acc.itemsize
        self.lanes = target.lanes(self.acc.bits)
        self.causal, self.dropout = main.attrs["causal"], main.attrs["dropout"]
        self.scale = main.attrs["scale"]
        self.operands = [lies(self.graph, x) for x in main.operands[:operands]]
        mask, state = split_optional(tuple(main.operands[operands:]), self.dropout)
        self.mask = None if mask is None else lies(self.graph, mask)
        self.state = None if state is None else self.graph.params.index(state)
        self.heads = 1
        self.rows = self.length

    # -- decisions

    gradient = False

    def problem(self, copied: int, readable: bool) -> AttentionProblem:
        """The numbers that the cost model asks for: ``copied`` columns of the keys, unless in place."""
        units = self.batch * self.q_heads // self.heads
        wide, out = self.padded(self.width), self.padded(self.out_width)
        return AttentionProblem(units, self.rows, self.keys, wide, out, self.batch * self.kv, self.groups,
                                self.lanes, self.size, self.causal, self.mask is not None, readable,
                                copied)  # fmt: skip

    def take(self, problem: AttentionProblem, plan: AttentionPlan | None) -> None:
        """Take ``plan``, or that of least estimated cost."""
        self.the_problem = problem
        self.plan = plan = plan or choose(problem, self.target, self.gradient)
        self.cost_ns = ways(self.gradient)[1](problem, plan, self.target) * self.target.slot_ns
        self.wide, self.tile, self.in_place = plan.vectors, plan.rows, plan.in_place
        self.key_panels = self.panels(self.keys)

    def rows_input(self, v: Value) -> int:
        """The number of the parameter that holds a number per row [B, H, L]."""
        return self.graph.params.index(v)

    # -- tiles

    def panels(self, n: int) -> Panels:
        return Panels(n, self.wide, self.lanes)

    def padded(self, n: int) -> int:
        """``n`` up to whole vectors."""
        return -(-n // self.lanes) * self.lanes

    def multiply(
        self, fn: Code, rows: int, cols: Panels, a: tuple[str, int, int], b: tuple[str, int], depth: Ix,
        out: tuple[str, int], *, start: str, scales: str = "null", exact: int = 0,
    ) -> None:  # fmt: skip
        """A tile of ``rows`` of A times all columns of row-major B, into ``out``.

        ``a`` is its address and the bytes between rows and between k, ``b`` and ``out`` address and bytes
        between rows. ``exact``: B is memory for so many columns only.
        """
        step = "k" if a[2] == self.size else "m"

        def call(vectors: int, at: Ix, masked: bool) -> None:
            tile = Tile(rows, vectors, self.lanes, self.acc)
            name = tile_kernel(fn, tile, step=step, start=start, masked=masked)
            left: Ix = fn.sub(exact, at) if masked else 0
            rows_of_b, to = (fn.at(x, fn.mul(at, self.size)) for x in (b[0], out[0]))
            fn.do(
                f"call void @{name}(ptr {a[0]}, i64 {a[1]}, i64 {a[2]}, ptr {rows_of_b}, "
                f"i64 {b[1]}, i64 {depth}, ptr {to}, i64 {out[1]}, "
                f"ptr {scales}, ptr null, i64 {left})"
            )

        if cols.whole:
            with fn.range(0, cols.whole) as p:
                call(cols.wide, fn.mul(p.i, cols.cols), False)
        if cols.rest:
            call(cols.rest, cols.whole * cols.cols, exact % self.lanes != 0)

    def result(self, fn: Code, number: int) -> str | None:
        """The address of a result of the attention; None where nobody reads it."""
        v = self.main.results[number]
        if v not in self.graph.results:
            return None
        return fn.arg(len(self.op.operands) + self.graph.results.index(v))

    # -- copies of keys and values, of all key heads, in the scratch memory

    def rows_in_place(self, x: Lies, few: bool) -> bool:
        """Whether rows are read where they lie: not where vectors of them cannot be loaded, or where a block
        of them shares cache sets (unless it is read but once or twice)."""
        if x.dtype is not self.acc or x.strides[3] != 1:
            return False
        return few or x.row_bytes % 1024 != 0

    def columns_bytes(self, width: int) -> int:
        return self.batch * self.kv * aligned(width * self.padded(self.keys) * self.size)

    def rows_bytes(self, width: int) -> int:
        return self.batch * self.kv * aligned(self.keys * self.padded(width) * self.size)

    def columns_of(self, fn: Code, at: int, width: int, bh: Ix, first: Ix) -> str:
        """The panel of columns that begins with key ``first``, a multiple of the panel's width."""
        head = aligned(width * self.padded(self.keys) * self.size)
        return fn.at(
            self.scratch_of(fn), fn.add(at, fn.add(fn.mul(bh, head), fn.mul(first, width * self.size)))
        )

    def rows_of(self, fn: Code, at: int, width: int, bh: Ix) -> str:
        head = aligned(self.keys * self.padded(width) * self.size)
        return fn.at(self.scratch_of(fn), fn.add(at, fn.mul(bh, head)))

    def pack_columns(self, name: str, src: Lies, width: int, at: int) -> tuple[str, int]:
        """The function that copies a panel of keys, transposed, and how many there are."""
        fn = self.start(f"{self.prefix}_{name}")
        panels = self.key_panels
        count = panels.whole + (panels.rest > 0)
        bh, p = fn.div("%u", count), fn.mod("%u", count)
        where = (fn.div(bh, self.kv), fn.mod(bh, self.kv), fn.mul(p, panels.cols))
        dst = self.columns_of(fn, at, width, bh, where[2])

        def pack(vectors: int) -> None:
            here = panels.cols if vectors == panels.wide else panels.n - panels.whole * panels.cols
            pack_turned(fn, src, where, here, width, dst, vectors * self.lanes, self.acc, self.lanes)

        self.by_width(fn, where[2], pack)
        self.keep(fn)
        return fn.symbol, self.batch * self.kv * count

    def pack_rows(self, name: str, src: Lies, width: int, at: int) -> tuple[str, int]:
        """The function that copies a block of rows, and how many there are."""
        fn = self.start(f"{self.prefix}_{name}")
        count, ld = -(-self.keys // _PACKED_ROWS), self.padded(width)
        bh, p = fn.div("%u", count), fn.mod("%u", count)
        first = fn.mul(p, _PACKED_ROWS)
        here = fn.min(_PACKED_ROWS, fn.sub(self.keys, first))
        dst = fn.at(self.rows_of(fn, at, width, bh), fn.mul(first, ld * self.size))
        where = (fn.div(bh, self.kv), fn.mod(bh, self.kv), first)
        pack_rows(fn, src, where, here, width, dst, ld, self.acc, self.lanes)
        self.keep(fn)
        return fn.symbol, self.batch * self.kv * count

    def by_width(self, fn: Code, at: Ix, emit: Callable[[int], None]) -> None:
        """``emit(vectors)`` for the panel at key ``at``: a whole one, or the last and narrower one."""
        panels = self.key_panels
        if not panels.rest:
            emit(panels.wide)
        elif not panels.whole:
            emit(panels.rest)
        else:
            whole = fn.op(f"icmp slt i64 {at}, {panels.whole * panels.cols}")
            with fn.when(whole):
                emit(panels.wide)
            with fn.when(fn.op(f"xor i1 {whole}, true")):
                emit(panels.rest)

    def products(
        self, fn: Code, rows: str, columns: tuple[int, int], bh: Ix, first: Ix, count: Ix, strips: Ix,
        out: tuple[str, int], diagonal: Ix | None, peaks: str | None = None, row_ld: int = 0,
    ) -> None:  # fmt: skip
        """All strips of rows times packed keys (offset, width) ``first`` to ``first + count``, by panels.

        ``out`` is the buffer and its elements per row. ``diagonal``: the query of the first row, where strips
        above the diagonal are left out. ``peaks``: where the maxima of rows are kept. ``row_ld``: elements
        between rows, unless it is the width.
        """
        (at, width), (to, ld), start = columns, out, "zero"
        step = (row_ld or width) * self.size
        with fn.range(0, count, self.key_panels.cols, runs=True) as p:
            key = fn.add(first, p.i)
            b = self.columns_of(fn, at, width, bh, key)
            begin = 0 if diagonal is None else fn.div(fn.max(0, fn.sub(key, diagonal)), self.tile)

            def tiles(vectors: int) -> None:
                tile = Tile(self.tile, vectors, self.lanes, self.acc)
                name = tile_kernel(fn, tile, step="k", start=start, peak=peaks is not None)
                with fn.range(begin, strips) as s:
                    row = fn.mul(s.i, self.tile)
                    a = fn.at(rows, fn.mul(row, step))
                    t = fn.at(to, fn.mul(fn.add(fn.mul(row, ld), p.i), self.size))
                    top = "null" if peaks is None else fn.at(peaks, fn.mul(row, self.lanes * self.size))
                    fn.do(
                        f"call void @{name}(ptr {a}, i64 {step}, i64 {self.size}, ptr {b}, "
                        f"i64 {tile.row_bytes}, i64 {width}, ptr {t}, i64 {ld * self.size}, ptr null, "
                        f"ptr {top}, i64 0)"
                    )

            self.by_width(fn, key, tiles)

    def inner_products(
        self, fn: Code, rows: tuple[str, int], keys: tuple[str, int], depth: int, high: int, count: Ix,
        out: tuple[str, int],
    ) -> None:  # fmt: skip
        """``high`` rows (address, elements between them) times ``count`` rows of keys where they lie
        (address, bytes between them), into the buffer ``out`` of so many elements per row.
        """
        (base, row_ld), (at, step), (to, ld) = rows, keys, out
        tall, broad = _inner_shape(self.target, high)

        def tile(row: Ix, col: Ix, cols: int) -> None:
            name = inner_kernel(fn, tall, cols, self.acc, self.lanes)
            a = fn.at(base, fn.mul(row, row_ld * self.size))
            t = fn.at(to, fn.mul(fn.add(fn.mul(row, ld), col), self.size))
            fn.do(
                f"call void @{name}(ptr {a}, i64 {row_ld * self.size}, ptr {fn.at(at, fn.mul(col, step))}, "
                f"i64 {step}, i64 {depth}, ptr {t}, i64 {ld * self.size})"
            )

        whole = fn.mul(fn.div(count, broad), broad)
        for row in range(0, high, tall):
            start = min(row, high - tall)  # rows may be computed twice
            with fn.range(0, whole, broad) as c:
                tile(start, c.i, broad)
            with fn.range(whole, count) as c:
                tile(start, c.i, 1)

    def across(self, fn: Code, x: str, op: str) -> str:
        """The lanes of a vector combined by halves."""
        n, elem = self.lanes, reg_type(self.acc)
        while n > 1:
            half = n // 2
            lo, hi = (", ".join(f"i32 {i}" for i in r) for r in (range(half), range(half, n)))
            t = f"<{n} x {elem}>"
            parts = [
                fn.op(f"shufflevector {t} {x}, {t} poison, <{half} x i32> <{pick}>") for pick in (lo, hi)
            ]
            x = VectorBuilder(fn, half).binary(op, *(Reg(p, self.acc, half, fn.depth) for p in parts)).text
            n = half
        return fn.op(f"extractelement <1 x {elem}> {x}, i64 0")

    # -- masks

    def query(self, fn: Code, row: Ix) -> tuple[Ix, Ix]:
        """The query head within the unit's, and the query, of a row."""
        if self.heads == 1:
            return 0, row
        return fn.div(row, self.length), fn.mod(row, self.length)

    def mask_row(self, fn: Code, line: str, where: tuple[Ix, Ix, Ix], first: Ix, cols: Ix) -> str:
        """Mask ``cols`` scores (in units of log2 e) of query ``where`` = (batch, head, i) from key ``first``
        on, in whole vectors; returns the vector of their maxima.
        """
        t, lanes = reg_type(self.acc, self.lanes), self.lanes
        batch, head, i = where
        end: Ix = self.keys
        if self.causal:
            end = fn.min(end, fn.add(i, 1))
        count = fn.sub(end, first)
        low = VectorBuilder(fn, lanes)
        lowest = low.text(low.const(float("-inf"), self.acc), lanes)
        base = "" if self.mask is None else self.mask.address(fn, batch, head, i, first)
        with fn.range(0, cols, lanes, [(t, lowest)], runs=True) as c:
            b = VectorBuilder(fn, lanes)
            at = fn.at(line, fn.mul(c.i, self.size))
            x = b.reg(load_lanes(fn, at, self.acc, lanes), self.acc, lanes)
            seen = tail_mask(fn, fn.sub(count, c.i), lanes)
            if self.mask is not None:
                x, seen = self._mask_vector(fn, b, self.mask, base, c.i, x, seen)
            x = b.select(b.reg(seen, bool_, lanes), x, b.const(float("-inf"), self.acc))
            store_lanes(fn, x.text, at, self.acc, lanes)
            c.next[0] = b.binary("fmax", b.reg(c.vars[0], self.acc, lanes), x).text
        return c.out[0]

    def _mask_vector(
        self, fn: Code, b: VectorBuilder, mask: Lies, base: str, at: Ix, x: Reg, seen: str
    ) -> tuple[Reg, str]:
        stride, lanes = mask.strides[3], self.lanes
        index = fn.mul(at, stride)
        if mask.dtype is bool_:
            got = load_vector(fn, base, bool_, bool_, lanes, stride, index, seen, mask.size)
            return x, fn.op(f"and <{lanes} x i1> {seen}, {got.text}")
        got = load_vector(fn, base, mask.dtype, self.acc, lanes, stride, index, seen, mask.size)
        return b.fma(got, b.const(LOG2E, self.acc), x), seen

    # -- dropout

    def seeds(self, fn: Code) -> tuple[Reg, Reg]:
        """Seed and offset of the random bits."""
        assert self.state is not None
        b = VectorBuilder(fn, self.lanes)
        at = fn.arg(self.state)
        seed, offset = (b.reg(load_lanes(fn, fn.at(at, 8 * i), i64, 0), i64) for i in range(2))
        return b.bitcast(seed, u64), b.bitcast(offset, u64)

    def factor(self, fn: Code, seeds: tuple[Reg, Reg], first: Ix) -> Reg:
        """0 or 1 / (1 - dropout) for the weights number ``first`` and on of all weights."""
        b, lanes = VectorBuilder(fn, self.lanes), self.lanes
        start = fn.splat("i64", str(first), lanes)
        index = b.reg(fn.op(f"add <{lanes} x i64> {start}, {iota('i64', lanes)}"), u64, lanes)
        scalar = PRIMITIVES["random_bits"].scalar
        assert scalar is not None
        words = scalar(b, *seeds, index, shape=())
        kept = b.compare("ge", words, b.const(threshold(self.dropout) << 8, u32))
        return b.select(kept, b.const(1 / (1 - self.dropout), self.acc), b.const(0.0, self.acc))

    def weight_number(self, fn: Code, batch: Ix, head: Ix, i: Ix, j: Ix) -> Ix:
        """The number of a weight among all [B, H, L, S]."""
        row = fn.add(fn.mul(fn.add(fn.mul(batch, self.q_heads), head), self.length), i)
        return fn.add(fn.mul(row, self.keys), j)


def _inner_shape(target: Target, rows: int) -> tuple[int, int]:
    """Rows of q and of k whose inner products are computed at once: what the registers hold."""
    if target.registers >= 32:
        return (rows, 8) if rows <= 3 else (min(rows, 6), 4)
    return (1, 8) if rows == 1 else (2, 4)
