"""Kernels of form ``attention`` for ``attention_grad``: cotangents of q, k and v without an array of scores.

A unit holds blocks of keys of one key head: for each it walks over the blocks of query rows, computes their
weights again from the scores and the logarithms of the rows' sums, and adds to its block of dk and dv in
buffers and to its own array of dq. A last phase adds up the arrays of dq in a fixed order, so that results do
not depend on the number of threads. Five products per block, none of them computed twice.

Source: Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning", 2023.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

from weft.codegen.attention_plan import AttentionPlan
from weft.codegen.attention_tiles import LN2, LOG2E, exp2, pack_rows
from weft.codegen.attention_unit import Attention
from weft.codegen.blocks import Code, Ix
from weft.codegen.emit import Reg, VectorBuilder
from weft.codegen.kernel import KernelCode, Phase
from weft.codegen.lanes import load_lanes, store_lanes, tail_mask
from weft.codegen.llvm import mem_type, reg_type
from weft.codegen.phases import aligned
from weft.codegen.target import Target
from weft.ir.graph import Op
from weft.ir.record import record

_DQ_ROWS = 16  # rows of dq per unit of the last phase


@record(frozen=True)
class Buffers:
    """The addresses of a unit's buffers: rows of q and ct, weights and their cotangents, dk and dv, and per
    row the logarithm of its sum and its delta."""

    q: str
    ct: str
    weights: str
    ds: str
    dk: str
    dv: str
    lse: str
    delta: str


@record(frozen=True)
class Place:
    """A block of scores: batch, key head, query head, first key, keys, first row, rows."""

    batch: Ix
    kv: Ix
    head: Ix
    key: Ix
    keys: Ix
    row: Ix
    rows: Ix


class Backward(Attention):
    gradient = True

    def __init__(self, op: Op, target: Target, prefix: str, plan: AttentionPlan | None = None) -> None:
        super().__init__(op, target, prefix, "attention_grad", 6)
        self.q, self.k, self.v, self.ct = self.operands[:4]
        self.row_inputs = [self.rows_input(x) for x in self.main.operands[4:6]]
        self.q_ld, self.out_ld = self.padded(self.width), self.padded(self.out_width)
        readable = self.rows_in_place(self.k, True) and self.rows_in_place(self.v, True)
        self.take(self.problem(2 * self.width + self.out_width, readable), plan)
        self._blocks()
        self._layout()

    def _blocks(self) -> None:
        """Rows per block, keys per block, and into how many parts the keys are dealt out."""
        strips = -(-self.length // self.tile)
        self.row_blocks = -(-strips // self.plan.strips)
        self.block = -(-strips // self.row_blocks) * self.tile
        self.row_blocks = -(-self.length // self.block)
        self.key_block = self.plan.keys
        self.key_blocks = -(-self.keys // self.key_block)
        self.parts = min(self.plan.parts, self.key_blocks)
        # tiles of keys by rows of tile height read a little beyond the last key
        self.score_ld = min(self.key_block, self.padded(self.keys)) + self.lanes

    def _layout(self) -> None:
        at = 0
        self.kt_at, at = at, at + (0 if self.in_place else self.columns_bytes(self.width))
        self.vt_at, at = at, at + (0 if self.in_place else self.columns_bytes(self.out_width))
        self.pack_k = not self.rows_in_place(self.k, self.in_place)
        self.k_at, at = at, at + (self.rows_bytes(self.width) if self.pack_k else 0)
        self.dq_at = at
        self.dq_head = aligned(self.row_blocks * self.block * self.q_ld * self.size)
        self.scratch = at + self.parts * self.batch * self.q_heads * self.dq_head

    # -- code

    def emit(self) -> KernelCode:
        heads, moved = self.batch * self.kv, 2 * self.width + self.out_width
        pack: list[tuple[str, int]] = []
        if not self.in_place:
            pack.append(self.pack_columns("keys", self.k, self.width, self.kt_at))
            pack.append(self.pack_columns("values", self.v, self.out_width, self.vt_at))
        if self.pack_k:
            pack.append(self.pack_rows("rows", self.k, self.width, self.k_at))
        phases: list[Phase] = []
        if pack:
            cost = 0.3 * heads * self.keys * moved / sum(n for _, n in pack)
            phases.append(self.phase("pack", pack, cost))
        cells = self.batch * self.q_heads * self.length * self.keys * (0.5 if self.causal else 1.0)
        flops = 2 * cells * (3 * self.width + 2 * self.out_width)
        units = heads * self.parts
        phases.append(self.phase("main", [(self._unit(), units)], self.cost_ns / units))
        phases.extend(self._sum_phase())
        return self.code(phases, self.scratch, self._describe(), int(flops))

    def _unit(self) -> str:
        fn = self.start(f"{self.prefix}_unit")
        part, bh = fn.mod("%u", self.parts), fn.div("%u", self.parts)
        batch, kv = fn.div(bh, self.kv), fn.mod(bh, self.kv)
        buf = self._buffers(fn)
        self._clear_dq(fn, part, bh)
        with fn.range(part, self.key_blocks, self.parts) as j:
            key = fn.mul(j.i, self.key_block)
            keys = fn.min(self.key_block, fn.sub(self.keys, key))
            tall = fn.mul(fn.div(fn.add(keys, self.tile - 1), self.tile), self.tile)
            self._clear(fn, buf.dk, fn.mul(tall, self.q_ld))
            self._clear(fn, buf.dv, fn.mul(tall, self.out_ld))
            begin = fn.div(key, self.block) if self.causal else 0
            with fn.range(0, self.groups) as g, fn.range(begin, self.row_blocks) as i:
                row = fn.mul(i.i, self.block)
                rows = fn.min(self.block, fn.sub(self.length, row))
                head = fn.add(fn.mul(kv, self.groups), g.i)
                self._block(fn, Place(batch, kv, head, key, keys, row, rows), buf, part)
            self._store(fn, 1, buf.dk, self.q_ld, self.width, LN2, (batch, kv, key, keys))
            self._store(fn, 2, buf.dv, self.out_ld, self.out_width, 1.0, (batch, kv, key, keys))
        self.keep(fn)
        return fn.symbol

    def _buffers(self, fn: Code) -> Buffers:
        n, size = self.block, self.size
        tall = min(self.key_block, self.padded(self.keys)) + self.tile
        return Buffers(
            q=fn.alloca(n * self.q_ld * size), ct=fn.alloca(n * self.out_ld * size),
            weights=fn.alloca(n * self.score_ld * size), ds=fn.alloca(n * self.score_ld * size),
            dk=fn.alloca(tall * self.q_ld * size), dv=fn.alloca(tall * self.out_ld * size),
            lse=fn.alloca(n * size), delta=fn.alloca(n * size),
        )  # fmt: skip

    def _clear(self, fn: Code, base: str, count: Ix) -> None:
        """Zeros in ``count`` elements, a whole number of vectors."""
        with fn.range(0, count, self.lanes) as c:
            at = fn.at(base, fn.mul(c.i, self.size))
            store_lanes(fn, "zeroinitializer", at, self.acc, self.lanes)

    def _dq(self, fn: Code, part: Ix, batch_head: Ix) -> str:
        """The array of dq of a part and a query head (batch * heads + head)."""
        at = fn.add(fn.mul(part, self.batch * self.q_heads), batch_head)
        return fn.at(self.scratch_of(fn), fn.add(self.dq_at, fn.mul(at, self.dq_head)))

    def _clear_dq(self, fn: Code, part: Ix, bh: Ix) -> None:
        base = self._dq(fn, part, fn.mul(bh, self.groups))
        self._clear(fn, base, self.groups * self.dq_head // self.size)

    # one block of scores

    def _block(self, fn: Code, p: Place, buf: Buffers, part: Ix) -> None:
        strips = fn.div(fn.add(p.rows, self.tile - 1), self.tile)
        self._load_rows(fn, p, buf, strips)
        self._products(fn, p, buf, strips)
        with fn.range(0, strips, runs=True) as s:
            row0 = fn.mul(s.i, self.tile)
            seen = p.keys
            if self.causal:
                last = fn.add(fn.add(p.row, row0), self.tile)
                seen = fn.max(0, fn.min(seen, fn.sub(last, p.key)))
            with fn.range(row0, fn.min(fn.add(row0, self.tile), p.rows)) as r:
                self._weights(fn, p, buf, r.i, seen)
            if self.result(fn, 0) is not None:
                with fn.when(fn.op(f"icmp sgt i64 {seen}, 0")) if self.causal else nullcontext():
                    self._add_dq(fn, p, buf, part, row0, seen)
        self._add_keys(fn, p, buf)

    def _products(self, fn: Code, p: Place, buf: Buffers, strips: Ix) -> None:
        """Scores q k' and products ct v' of the block."""
        bh = fn.add(fn.mul(p.batch, self.kv), p.kv)
        diagonal = p.row if self.causal else None
        for x, rows, at, width, ld, to in (
            (self.k, buf.q, self.kt_at, self.width, self.q_ld, buf.weights),
            (self.v, buf.ct, self.vt_at, self.out_width, self.out_ld, buf.ds),
        ):
            out = (to, self.score_ld)
            if self.in_place:
                keys = (x.address(fn, p.batch, p.kv, p.key), x.row_bytes)
                self.inner_products(fn, (rows, ld), keys, width, self.block, p.keys, out)
            else:
                self.products(fn, rows, (at, width), bh, p.key, p.keys, strips, out, diagonal, row_ld=ld)

    def _load_rows(self, fn: Code, p: Place, buf: Buffers, strips: Ix) -> None:
        """Rows of q, scaled, and of ct; zeros behind the last one."""
        where = (p.batch, p.head, p.row)
        factor = self.scale * LOG2E
        pack_rows(fn, self.q, where, p.rows, self.width, buf.q, self.q_ld, self.acc, self.lanes, factor)
        pack_rows(fn, self.ct, where, p.rows, self.out_width, buf.ct, self.out_ld, self.acc, self.lanes)
        rest = fn.sub(fn.mul(strips, self.tile), p.rows)
        for base, ld in ((buf.q, self.q_ld), (buf.ct, self.out_ld)):
            end = fn.at(base, fn.mul(p.rows, ld * self.size))
            self._clear(fn, end, fn.mul(rest, ld))
        b, low = VectorBuilder(fn, 0), float("-inf")
        index = fn.add(fn.mul(fn.add(fn.mul(p.batch, self.q_heads), p.head), self.length), p.row)
        with fn.range(0, p.rows, runs=True) as r:
            at = fn.mul(fn.add(index, r.i), self.size)
            lse, delta = (b.reg(load_lanes(fn, fn.at(fn.arg(i), at), self.acc, 0), self.acc)
                          for i in self.row_inputs)  # fmt: skip
            none = b.compare("eq", lse, b.const(low, self.acc))  # a row without keys has no weights
            lse = b.select(none, b.const(-low, self.acc), b.binary("mul", lse, b.const(LOG2E, self.acc)))
            to = fn.mul(r.i, self.size)
            store_lanes(fn, lse.text, fn.at(buf.lse, to), self.acc, 0)
            store_lanes(fn, delta.text, fn.at(buf.delta, to), self.acc, 0)

    def _weights(self, fn: Code, p: Place, buf: Buffers, r: Ix, seen: Ix) -> None:
        """Turn a row of scores and of products ct v' into weights and the cotangents of scores."""
        lanes, i, offset = self.lanes, fn.add(p.row, r), fn.mul(r, self.score_ld * self.size)
        weights, ds = fn.at(buf.weights, offset), fn.at(buf.ds, offset)
        self._mask(fn, p, weights, i, seen)
        one = VectorBuilder(fn, 0)
        lse, delta = (one.reg(load_lanes(fn, fn.at(x, fn.mul(r, self.size)), self.acc, 0), self.acc)
                      for x in (buf.lse, buf.delta))  # fmt: skip
        seeds, number = None, 0
        if self.dropout:
            seeds, number = self.seeds(fn), self.weight_number(fn, p.batch, p.head, i, p.key)
        with fn.range(0, seen, lanes) as c:
            b, at = VectorBuilder(fn, lanes), fn.mul(c.i, self.size)
            x, dp = (b.reg(load_lanes(fn, fn.at(y, at), self.acc, lanes), self.acc, lanes)
                     for y in (weights, ds))  # fmt: skip
            w = exp2(b, b.binary("sub", x, lse))
            kept = w
            if seeds is not None:
                factor = self.factor(fn, seeds, fn.add(number, c.i))
                dp, kept = b.binary("mul", dp, factor), b.binary("mul", w, factor)
            store_lanes(fn, kept.text, fn.at(weights, at), self.acc, lanes)
            d = b.binary("mul", w, b.binary("sub", dp, delta))
            store_lanes(fn, d.text, fn.at(ds, at), self.acc, lanes)
        if self.causal:  # what lies above the diagonal is read with whole tiles
            begin = fn.mul(fn.div(fn.add(seen, lanes - 1), lanes), lanes)
            for line in (weights, ds):
                rest = fn.sub(self.score_ld, begin)
                self._clear(fn, fn.at(line, fn.mul(begin, self.size)), rest)

    def _mask(self, fn: Code, p: Place, line: str, i: Ix, seen: Ix) -> None:
        where, tests = (p.batch, p.head, i), []
        if self.mask is None:
            if self.causal:
                tests.append(fn.op(f"icmp sgt i64 {fn.add(p.key, seen)}, {i}"))
            if self.keys % self.lanes:
                tests.append(fn.op(f"icmp eq i64 {fn.add(p.key, seen)}, {self.keys}"))
            if not tests:
                return
        test = tests[0] if len(tests) == 1 else fn.op(f"or i1 {tests[0]}, {tests[1]}") if tests else "true"
        if self.causal:
            test = fn.op(f"and i1 {test}, {fn.op(f'icmp sgt i64 {seen}, 0')}")
        with fn.when(test):
            self.mask_row(fn, line, where, p.key, seen)

    def _add_dq(self, fn: Code, p: Place, buf: Buffers, part: Ix, row0: Ix, seen: Ix) -> None:
        """dq += ds k for one strip of rows."""
        bh = fn.add(fn.mul(p.batch, self.q_heads), p.head)
        step = self.q_ld * self.size
        to = fn.at(self._dq(fn, part, bh), fn.mul(fn.add(p.row, row0), step))
        keys, b_step, exact = self._key_rows(fn, p)
        a = fn.at(buf.ds, fn.mul(row0, self.score_ld * self.size))
        self.multiply(fn, self.tile, self.panels(self.width), (a, self.score_ld * self.size, self.size),
                      (keys, b_step), seen, (to, step), start="add", exact=exact)  # fmt: skip

    def _key_rows(self, fn: Code, p: Place) -> tuple[str, int, int]:
        """Rows of keys: address, bytes between them, and how many columns are memory (0: whole vectors)."""
        if not self.pack_k:
            return self.k.address(fn, p.batch, p.kv, p.key), self.k.row_bytes, self.width
        step, bh = self.q_ld * self.size, fn.add(fn.mul(p.batch, self.kv), p.kv)
        return fn.at(self.rows_of(fn, self.k_at, self.width, bh), fn.mul(p.key, step)), step, 0

    def _add_keys(self, fn: Code, p: Place, buf: Buffers) -> None:
        """dv += weights' ct and dk += ds' q, a strip of keys at a time, from the first row that sees it."""
        strips = fn.div(fn.add(p.keys, self.tile - 1), self.tile)
        with fn.range(0, strips, runs=True) as s:
            key = fn.mul(s.i, self.tile)
            first: Ix = 0
            if self.causal:
                first = fn.max(0, fn.sub(fn.add(p.key, key), p.row))
            rows = fn.sub(p.rows, first)
            with fn.when(fn.op(f"icmp sgt i64 {rows}, 0")) if self.causal else nullcontext():
                for number, scores, b, ld, width, out in (
                    (2, buf.weights, buf.ct, self.out_ld, self.out_width, buf.dv),
                    (1, buf.ds, buf.q, self.q_ld, self.width, buf.dk),
                ):
                    if self.result(fn, number) is None:
                        continue
                    to, step = fn.at(out, fn.mul(key, ld * self.size)), ld * self.size
                    a = fn.at(scores, fn.mul(fn.add(fn.mul(first, self.score_ld), key), self.size))
                    rows_of_b = fn.at(b, fn.mul(first, ld * self.size))
                    self.multiply(
                        fn, self.tile, self.panels(width), (a, self.size, self.score_ld * self.size),
                        (rows_of_b, step), rows, (to, step),
                        start="add",
                    )  # fmt: skip

    # results

    def _store(self, fn: Code, number: int, base: str, ld: int, width: int, factor: float,
               where: tuple[Ix, Ix, Ix, Ix]) -> None:  # fmt: skip
        """Store ``where`` = (batch, head, first row, rows) of a result from a buffer."""
        batch, head, first, rows = where
        with fn.range(0, rows) as r:
            line = fn.at(base, fn.mul(r.i, ld * self.size))

            def load(b: VectorBuilder, c: Ix, line: str = line) -> Reg:
                at = fn.at(line, fn.mul(c, self.size))
                return b.reg(load_lanes(fn, at, self.acc, self.lanes), self.acc, self.lanes)

            self._store_row(fn, number, (batch, head, fn.add(first, r.i)), width, factor, load)

    def _store_row(self, fn: Code, number: int, where: tuple[Ix, Ix, Ix], width: int, factor: float,
                   load: Callable[[VectorBuilder, Ix], Reg]) -> None:  # fmt: skip
        to = self.result(fn, number)
        if to is None:
            return
        (batch, head, row), lanes = where, self.lanes
        t = self.main.results[number].type
        _, second, third, _ = t.shape
        one, two = (row, head) if self.main.attrs["heads_inside"][number] else (head, row)
        index = fn.add(fn.mul(fn.add(fn.mul(batch, second), one), third), two)
        to = fn.at(to, fn.mul(index, width * t.dtype.itemsize))
        with fn.range(0, width, lanes) as c:
            b = VectorBuilder(fn, lanes)
            mask = tail_mask(fn, fn.sub(width, c.i), lanes) if width % lanes else None
            x = load(b, c.i)
            if factor != 1.0:
                x = b.binary("mul", x, b.const(factor, self.acc))
            store_lanes(
                fn, b.convert(x, t.dtype).text, fn.at(to, c.i, mem_type(t.dtype)), t.dtype, lanes, mask
            )

    def _sum_phase(self) -> list[Phase]:
        """Add up the arrays of dq, part by part."""
        fn = self.start(f"{self.prefix}_dq_rows")
        if self.result(fn, 0) is None:
            return []
        blocks = -(-self.length // _DQ_ROWS)
        bh, block = fn.div("%u", blocks), fn.mod("%u", blocks)
        row = fn.mul(block, _DQ_ROWS)
        t = reg_type(self.acc, self.lanes)
        with fn.range(row, fn.min(fn.add(row, _DQ_ROWS), self.length)) as r:
            base, part = self._dq(fn, 0, bh), self.batch * self.q_heads * self.dq_head

            def load(b: VectorBuilder, c: Ix) -> Reg:
                at = fn.at(base, fn.mul(fn.add(fn.mul(r.i, self.q_ld), c), self.size))
                with fn.range(0, self.parts, 1, [(t, "zeroinitializer")]) as p:
                    x = load_lanes(fn, fn.at(at, fn.mul(p.i, part)), self.acc, self.lanes)
                    p.next[0] = fn.op(f"fadd {t} {p.vars[0]}, {x}")
                return b.reg(p.out[0], self.acc, self.lanes)

            where = (fn.div(bh, self.q_heads), fn.mod(bh, self.q_heads), r.i)
            self._store_row(fn, 0, where, self.width, self.scale, load)
        self.keep(fn)
        units = self.batch * self.q_heads * blocks
        return [self.phase("dq", [(fn.symbol, units)], 0.3 * _DQ_ROWS * self.q_ld * (self.parts + 1))]

    def _describe(self) -> str:
        lines = [
            f"attention_grad {self.batch} x {self.q_heads} heads ({self.kv} of keys), "
            f"[{self.length}, {self.width}] x [{self.keys}, {self.width}] x [{self.keys}, {self.out_width}] "
            f"{self.acc.name}{' causal' if self.causal else ''}",
            f"  units: {self.parts} parts of {self.key_blocks} blocks of {self.key_block} keys of a key head",
            f"  tiles: {self.tile} x {self.key_panels.cols}, blocks of {self.block} rows",
            f"  rows of k: {'packed' if self.pack_k else 'in place'}",
        ]
        return "\n".join(lines)
