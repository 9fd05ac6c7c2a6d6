"""Kernels of form ``attention``: softmax(q k' * scale + mask) v by tiles, without an array of scores.

A unit holds a block of query rows. It walks over blocks of keys: scores come from register tiles into a small
buffer, become weights there relative to the largest score so far, and are multiplied with the values into
the unit's block of sums, which is rescaled where the largest score grew (online softmax). Scores are in units
of log2 e, so that weights are powers of two. Keys are packed once, transposed, in a phase of their own;
values are read in place where they lie well.

Few rows (decoding) are bound by memory: the keys are read in place, by inner products, and cut into parts,
whose sums a last phase combines in a fixed order.

Source: Dao, "FlashAttention-2", 2023; the parts: "Flash-Decoding", 2023.
"""

from __future__ import annotations

from typing import Any

from weft.codegen.attention_plan import FEW_ROWS, GROUPED, AttentionPlan
from weft.codegen.attention_tiles import LN2, LOG2E, exp2, load_vector
from weft.codegen.attention_unit import Attention
from weft.codegen.blocks import Code, Ix
from weft.codegen.emit import Reg, VectorBuilder
from weft.codegen.kernel import KernelCode, Phase
from weft.codegen.lanes import load_lanes, store_lanes, tail_mask
from weft.codegen.llvm import mem_type, reg_type
from weft.codegen.target import Target
from weft.ir.graph import Op
from weft.ir.record import record
from weft.ir.types import bool_


def emit(op: Op, target: Target, prefix: str) -> KernelCode:
    """The code of a kernel of form ``attention``."""
    if any(o.prim.name == "attention_grad" for o in op.regions[0].ops):
        from weft.codegen.attention_grad_kernel import Backward

        return Backward(op, target, prefix).emit()
    return Forward(op, target, prefix).emit()


def _log2(b: Any, x: Reg) -> Reg:
    return b.log2(x)


@record(frozen=True)
class Buffers:
    """The addresses of a unit's buffers: rows of q, scores, sums; per row maximum, total and rescaling."""

    q: str
    scores: str
    sums: str
    peaks: str
    top: str
    total: str
    alpha: str


@record(frozen=True)
class Place:
    """A unit: batch, key head, first query head, first row, and how many rows."""

    batch: Ix
    kv: Ix
    head: Ix
    row: Ix
    count: Ix


class Forward(Attention):
    def __init__(self, op: Op, target: Target, prefix: str, plan: AttentionPlan | None = None) -> None:
        super().__init__(op, target, prefix, "attention", 3)
        self.q, self.k, self.v = self.operands
        self.heads_inside = self.main.attrs["heads_inside"]
        if self.groups > 1 and self.groups * self.length <= GROUPED:
            self.heads, self.rows = self.groups, self.groups * self.length
        self.pack_v = not self.rows_in_place(self.v, self.rows <= FEW_ROWS)
        columns = self.width + (self.out_width if self.pack_v else 0)
        self.take(self.problem(columns, self.rows_in_place(self.k, True)), plan)
        self.out_panels, self.out_ld = self.panels(self.out_width), self.padded(self.out_width)
        self._blocks()
        self._layout()

    # -- decisions

    def _blocks(self) -> None:
        """Rows per unit, keys per block and per part."""
        strips = -(-self.rows // self.tile)
        self.head_units = self.batch * self.q_heads // self.heads
        self.row_blocks = -(-strips // self.plan.strips)
        self.strips = -(-strips // self.row_blocks)
        self.row_blocks = -(-strips // self.strips)
        self.block = self.strips * self.tile
        cols = self.key_panels.cols
        per_part = -(-self.keys // self.plan.parts)
        self.part = -(-per_part // cols) * cols
        self.parts = -(-self.keys // self.part)
        self.key_block = min(self.plan.keys, self.part)
        self.score_ld = min(self.key_block, self.padded(self.keys))

    def _layout(self) -> None:
        """Where packed keys and values and the sums of parts lie in the scratch memory."""
        self.k_at, at = 0, 0 if self.in_place else self.columns_bytes(self.width)
        self.v_at, at = at, at + (self.rows_bytes(self.out_width) if self.pack_v else 0)
        self.part_at = at
        # per row: sums, maximum, total (a vector each, so that all is aligned)
        self.part_row = (self.out_ld + 2 * self.lanes) * self.size
        self.part_bytes = self.head_units * self.rows * self.part_row
        self.scratch = at + (self.parts * self.part_bytes if self.parts > 1 else 0)

    # -- code

    def emit(self) -> KernelCode:
        cells = self.batch * self.q_heads * self.length * self.keys * (0.5 if self.causal else 1.0)
        units = self.head_units * self.row_blocks * self.parts
        fn_units = self._unit()
        phases = self._pack()
        phases.append(self.phase("main", [(fn_units, units)], self.cost_ns / units))
        if self.parts > 1:
            rows = self.head_units * self.rows
            phases.append(self.phase("combine", [(self._combine(), rows)], self.parts * self.out_ld * 0.3))
        flops = int(2 * cells * (self.width + self.out_width))
        return self.code(phases, self.scratch, self._describe(), flops)

    def _pack(self) -> list[Phase]:
        """Keys as columns, panel by panel; values as rows."""
        parts, moved = [], 0
        if not self.in_place:
            parts.append(self.pack_columns("keys", self.k, self.width, self.k_at))
            moved += self.width
        if self.pack_v:
            parts.append(self.pack_rows("values", self.v, self.out_width, self.v_at))
            moved += self.out_width
        if not parts:
            return []
        cells = self.batch * self.kv * self.keys * moved
        return [self.phase("pack", parts, 0.3 * cells / sum(n for _, n in parts))]

    def _unit(self) -> str:
        fn = self.start(f"{self.prefix}_unit")
        part = fn.mod("%u", self.parts)
        rest = fn.div("%u", self.parts)
        block = fn.mod(rest, self.row_blocks)
        if self.causal:  # rows that see many keys first
            block = fn.sub(self.row_blocks - 1, block)
        bh = fn.div(rest, self.row_blocks)
        per_batch = self.q_heads // self.heads
        batch, unit = fn.div(bh, per_batch), fn.mod(bh, per_batch)
        head = fn.mul(unit, self.heads)
        row = fn.mul(block, self.block)
        place = Place(batch, fn.div(head, self.groups), head, row, fn.min(self.block, fn.sub(self.rows, row)))
        buffers = self._buffers(fn)
        self._start(fn, place, buffers)
        end = fn.min(self.keys, fn.mul(fn.add(part, 1), self.part))
        if self.causal:
            last = self.length if self.heads > 1 else fn.add(place.row, place.count)
            end = fn.min(end, last)
        with fn.range(fn.mul(part, self.part), end, self.key_block) as j:
            self._key_block(fn, place, buffers, j.i, fn.min(self.key_block, fn.sub(end, j.i)))
        if self.parts > 1:
            self._store_part(fn, place, buffers, fn.add(fn.mul(part, self.head_units), bh))
        else:
            self._finish(fn, place, buffers)
        self.keep(fn)
        return fn.symbol

    def _buffers(self, fn: Code) -> Buffers:
        n, vector = self.block, self.lanes * self.size
        return Buffers(
            q=fn.alloca(n * self.width * self.size + 64),
            scores=fn.alloca(n * self.score_ld * self.size),
            sums=fn.alloca(n * self.out_ld * self.size),
            peaks=fn.alloca(n * vector),
            top=fn.alloca(n * self.size),
            total=fn.alloca(n * vector),
            alpha=fn.alloca(n * self.size),
        )

    def _start(self, fn: Code, place: Place, buf: Buffers) -> None:
        """Copy the rows of q, scaled; clear the sums."""
        acc, lanes = self.acc, self.lanes
        factor = self.scale * LOG2E
        b = VectorBuilder(fn, lanes)
        padded = fn.mul(self._strips_of(fn, place), self.tile)
        with fn.range(0, padded, runs=True) as r:
            # rows beyond the last are computed, and forgotten
            row = fn.add(place.row, fn.min(r.i, fn.sub(place.count, 1)))
            g, i = self.query(fn, row)
            to = fn.at(buf.q, fn.mul(r.i, self.width * self.size))
            with fn.range(0, self.width, lanes) as c:
                mask = tail_mask(fn, fn.sub(self.width, c.i), lanes) if self.width % lanes else None
                x = self._q_vector(fn, place, g, i, c.i, mask)
                x = b.binary("mul", x, b.const(factor, acc))
                store_lanes(fn, b.text(x, lanes), fn.at(to, fn.mul(c.i, self.size)), acc, lanes, mask)
            line = fn.at(buf.sums, fn.mul(r.i, self.out_ld * self.size))
            with fn.range(0, self.out_ld, lanes) as c:
                store_lanes(fn, "zeroinitializer", fn.at(line, fn.mul(c.i, self.size)), acc, lanes)
            vector = fn.mul(r.i, lanes * self.size)
            store_lanes(fn, "zeroinitializer", fn.at(buf.total, vector), acc, lanes)
            low = b.const(float("-inf"), acc)
            store_lanes(fn, b.text(low, lanes), fn.at(buf.peaks, vector), acc, lanes)
            store_lanes(fn, b.text(low, 0), fn.at(buf.top, fn.mul(r.i, self.size)), acc, 0)

    def _q_vector(self, fn: Code, place: Place, g: Ix, i: Ix, col: Ix, mask: str | None) -> Reg:
        base = self.q.address(fn, place.batch, fn.add(place.head, g), i)
        index = fn.mul(col, self.q.strides[3])
        return load_vector(fn, base, self.q.dtype, self.acc, self.lanes, self.q.strides[3], index, mask,
                           self.q.size)  # fmt: skip

    # one block of keys

    def _key_block(self, fn: Code, place: Place, buf: Buffers, first: Ix, count: Ix) -> None:
        if self.in_place:
            self._scores_in_place(fn, place, buf, first, count)
        else:
            self._scores(fn, place, buf, first, count)
        with fn.range(0, self._strips_of(fn, place), runs=True) as s:
            row0 = fn.mul(s.i, self.tile)
            seen = count
            if self.causal and self.heads == 1:
                last = fn.add(fn.add(place.row, row0), self.tile)
                seen = fn.min(count, fn.sub(last, first))
            if not self.causal or self.heads > 1:
                self._strip(fn, place, buf, first, row0, seen)
            else:
                with fn.when(fn.op(f"icmp sgt i64 {seen}, 0")):
                    self._strip(fn, place, buf, first, row0, seen)

    def _scores(self, fn: Code, place: Place, buf: Buffers, first: Ix, count: Ix) -> None:
        """Scores of all strips, a panel of packed keys at a time; strips above the diagonal are left out."""
        bh = fn.add(fn.mul(place.batch, self.kv), place.kv)
        diagonal = place.row if self.causal and self.heads == 1 else None
        self.products(fn, buf.q, (self.k_at, self.width), bh, first, count, self._strips_of(fn, place),
                      (buf.scores, self.score_ld), diagonal, buf.peaks)  # fmt: skip

    def _strips_of(self, fn: Code, place: Place) -> Ix:
        return fn.div(fn.add(place.count, self.tile - 1), self.tile)

    def _scores_in_place(self, fn: Code, place: Place, buf: Buffers, first: Ix, count: Ix) -> None:
        """Scores of few rows by inner products with the keys where they lie."""
        keys = self.k.address(fn, place.batch, place.kv, first)
        self.inner_products(fn, (buf.q, self.width), (keys, self.k.row_bytes), self.width, self.block, count,
                            (buf.scores, self.score_ld))  # fmt: skip
        self._pad_scores(fn, buf, count)

    def _pad_scores(self, fn: Code, buf: Buffers, count: Ix) -> None:
        """-inf between the last score of a row and the next whole vector; then the peaks of each row."""
        t, lanes = reg_type(self.acc, self.lanes), self.lanes
        with fn.range(0, self.block) as r:
            line = fn.at(buf.scores, fn.mul(r.i, self.score_ld * self.size))
            b = VectorBuilder(fn, lanes)
            low = b.const(float("-inf"), self.acc)
            with fn.range(0, count, lanes, [(t, b.text(low, lanes))], runs=True) as c:
                b = VectorBuilder(fn, lanes)
                at = fn.at(line, fn.mul(c.i, self.size))
                x = b.reg(load_lanes(fn, at, self.acc, lanes), self.acc, lanes)
                seen = b.reg(tail_mask(fn, fn.sub(count, c.i), lanes), bool_, lanes)
                x = b.select(seen, x, low)
                store_lanes(fn, x.text, at, self.acc, lanes)
                c.next[0] = b.binary("fmax", b.reg(c.vars[0], self.acc, lanes), x).text
            store_lanes(fn, c.out[0], fn.at(buf.peaks, fn.mul(r.i, lanes * self.size)), self.acc, lanes)

    def _strip(self, fn: Code, place: Place, buf: Buffers, first: Ix, row0: Ix, seen: Ix) -> None:
        """Weights of one strip of rows, from its scores for ``seen`` keys, and their part of the sums."""
        self._mask_strip(fn, place, buf, first, row0, seen)
        with fn.range(0, self.tile) as r:
            self._weights(fn, place, buf, fn.add(row0, r.i), first, seen)
        line, ld = fn.at(buf.scores, fn.mul(row0, self.score_ld * self.size)), self.score_ld * self.size
        sums = fn.at(buf.sums, fn.mul(row0, self.out_ld * self.size))
        alpha = fn.at(buf.alpha, fn.mul(row0, self.size))
        bh = fn.add(fn.mul(place.batch, self.kv), place.kv)
        if self.pack_v:
            step = self.out_ld * self.size
            values = fn.at(self.rows_of(fn, self.v_at, self.out_width, bh), fn.mul(first, step))
        else:
            step, values = self.v.row_bytes, self.v.address(fn, place.batch, place.kv, first)
        self.multiply(
            fn, self.tile, self.out_panels, (line, ld, self.size), (values, step), seen,
            (sums, self.out_ld * self.size), start="scale", scales=alpha,
            exact=0 if self.pack_v else self.out_width,
        )  # fmt: skip

    def _mask_strip(self, fn: Code, place: Place, buf: Buffers, first: Ix, row0: Ix, seen: Ix) -> None:
        """Mask the strip where there is a mask, the diagonal or the end of the keys in it."""
        masked = self.mask is not None or (self.causal and self.heads > 1)
        if masked:
            self._mask_rows(fn, place, buf, first, row0, seen)
            return
        tests = []
        if self.causal:
            tests.append(fn.op(f"icmp sgt i64 {fn.add(first, seen)}, {fn.add(place.row, row0)}"))
        if self.keys % self.lanes and not self.in_place:
            tests.append(fn.op(f"icmp eq i64 {fn.add(first, seen)}, {self.keys}"))
        if not tests:
            return
        test = tests[0] if len(tests) == 1 else fn.op(f"or i1 {tests[0]}, {tests[1]}")
        with fn.when(test):
            self._mask_rows(fn, place, buf, first, row0, seen)

    def _mask_rows(self, fn: Code, place: Place, buf: Buffers, first: Ix, row0: Ix, seen: Ix) -> None:
        with fn.range(0, self.tile) as r:
            local = fn.add(row0, r.i)
            g, i = self.query(fn, fn.add(place.row, fn.min(local, fn.sub(place.count, 1))))
            line = fn.at(buf.scores, fn.mul(local, self.score_ld * self.size))
            top = self.mask_row(fn, line, (place.batch, fn.add(place.head, g), i), first, seen)
            store_lanes(
                fn, top, fn.at(buf.peaks, fn.mul(local, self.lanes * self.size)), self.acc, self.lanes
            )

    def _weights(self, fn: Code, place: Place, buf: Buffers, local: Ix, first: Ix, seen: Ix) -> None:
        """Scores of a row become weights relative to the largest so far; what was summed gets rescaled."""
        acc, lanes, t = self.acc, self.lanes, reg_type(self.acc, self.lanes)
        one, b = VectorBuilder(fn, 0), VectorBuilder(fn, lanes)
        low = b.const(float("-inf"), acc)
        vector = fn.mul(local, lanes * self.size)
        peaks = fn.at(buf.peaks, vector)
        now = one.reg(self.across(fn, load_lanes(fn, peaks, acc, lanes), "fmax"), acc)
        store_lanes(fn, b.text(low, lanes), peaks, acc, lanes)
        top_at = fn.at(buf.top, fn.mul(local, self.size))
        before = one.reg(load_lanes(fn, top_at, acc, 0), acc)
        top = one.binary("fmax", before, now)
        store_lanes(fn, top.text, top_at, acc, 0)
        base = one.select(one.compare("eq", top, one.const(float("-inf"), acc)), one.const(0.0, acc), top)
        alpha = exp2(one, one.binary("sub", before, base))
        store_lanes(fn, alpha.text, fn.at(buf.alpha, fn.mul(local, self.size)), acc, 0)
        line = fn.at(buf.scores, fn.mul(local, self.score_ld * self.size))
        seeds, number = None, 0
        if self.dropout:
            seeds = self.seeds(fn)
            g, i = self.query(fn, fn.add(place.row, local))
            number = self.weight_number(fn, place.batch, fn.add(place.head, g), i, first)
        with fn.range(0, seen, lanes, [(t, "zeroinitializer")], runs=True) as c:
            at = fn.at(line, fn.mul(c.i, self.size))
            b = VectorBuilder(fn, lanes)
            x = b.reg(load_lanes(fn, at, acc, lanes), acc, lanes)
            p = exp2(b, b.binary("sub", x, base))
            c.next[0] = b.binary("add", b.reg(c.vars[0], acc, lanes), p).text
            if seeds is not None:
                p = b.binary("mul", p, self.factor(fn, seeds, fn.add(number, c.i)))
            store_lanes(fn, p.text, at, acc, lanes)
        total_at = fn.at(buf.total, vector)
        total = b.reg(load_lanes(fn, total_at, acc, lanes), acc, lanes)
        b = VectorBuilder(fn, lanes)
        total = b.fma(total, alpha, b.reg(c.out[0], acc, lanes))
        store_lanes(fn, total.text, total_at, acc, lanes)

    # results

    def _finish(self, fn: Code, place: Place, buf: Buffers) -> None:
        """Divide the sums by the totals and store rows of the results."""
        with fn.range(0, place.count, runs=True) as r:
            vector = fn.mul(r.i, self.lanes * self.size)
            total = self.across(fn, load_lanes(fn, fn.at(buf.total, vector), self.acc, self.lanes), "add")
            top = load_lanes(fn, fn.at(buf.top, fn.mul(r.i, self.size)), self.acc, 0)
            line = fn.at(buf.sums, fn.mul(r.i, self.out_ld * self.size))
            g, i = self.query(fn, fn.add(place.row, r.i))
            self._store_row(fn, (place.batch, fn.add(place.head, g), i), line, top, total)

    def _store_row(self, fn: Code, where: tuple[Ix, Ix, Ix], line: str, top: str, total: str) -> None:
        batch, head, i = where
        one, acc, lanes = VectorBuilder(fn, 0), self.acc, self.lanes
        dtype = self.main.results[0].type.dtype
        whole = one.reg(total, acc)
        number = fn.add(fn.mul(fn.add(fn.mul(batch, self.q_heads), head), self.length), i)
        lse = self.result(fn, 1)
        if lse is not None:
            value = one.binary("add", one.reg(top, acc), _log2(one, whole))
            value = one.binary("mul", value, one.const(LN2, acc))
            store_lanes(fn, value.text, fn.at(lse, fn.mul(number, self.size)), acc, 0)
        out = self.result(fn, 0)
        if out is None:
            return
        divisor = whole
        if not self.main.attrs["nan_rows"]:
            none = one.compare("eq", whole, one.const(0.0, acc))
            divisor = one.select(none, one.const(1.0, acc), whole)
        if self.heads_inside:
            number = fn.add(fn.mul(fn.add(fn.mul(batch, self.length), i), self.q_heads), head)
        to = fn.at(out, fn.mul(number, self.out_width * dtype.itemsize))
        with fn.range(0, self.out_width, lanes) as c:
            b = VectorBuilder(fn, lanes)
            mask = tail_mask(fn, fn.sub(self.out_width, c.i), lanes) if self.out_width % lanes else None
            x = b.reg(load_lanes(fn, fn.at(line, fn.mul(c.i, self.size)), acc, lanes), acc, lanes)
            y = b.emit(
                f"fdiv {reg_type(acc, lanes)} {x.text}, {b.text(divisor, lanes)}", acc, lanes, fn.depth
            )
            store_lanes(fn, b.convert(y, dtype).text, fn.at(to, c.i, mem_type(dtype)), dtype, lanes, mask)

    # parts of the keys

    def _part_row(self, fn: Code, number: Ix, row: Ix) -> str:
        at = fn.mul(fn.add(fn.mul(number, self.rows), row), self.part_row)
        return fn.at(self.scratch_of(fn), fn.add(self.part_at, at))

    def _store_part(self, fn: Code, place: Place, buf: Buffers, number: Ix) -> None:
        acc, lanes = self.acc, self.lanes
        with fn.range(0, place.count, runs=True) as r:
            to = self._part_row(fn, number, fn.add(place.row, r.i))
            line = fn.at(buf.sums, fn.mul(r.i, self.out_ld * self.size))
            with fn.range(0, self.out_ld, lanes) as c:
                at = fn.mul(c.i, self.size)
                store_lanes(fn, load_lanes(fn, fn.at(line, at), acc, lanes), fn.at(to, at), acc, lanes)
            top = load_lanes(fn, fn.at(buf.top, fn.mul(r.i, self.size)), acc, 0)
            total = load_lanes(fn, fn.at(buf.total, fn.mul(r.i, lanes * self.size)), acc, lanes)
            store_lanes(fn, total, fn.at(to, self.out_ld * self.size), acc, lanes)
            store_lanes(fn, top, fn.at(to, (self.out_ld + lanes) * self.size), acc, 0)

    def _combine(self) -> str:
        """Bring the parts of one row to a common maximum and add them up, in order."""
        fn = self.start(f"{self.prefix}_row")
        acc, lanes, t = self.acc, self.lanes, reg_type(self.acc, self.lanes)
        per_batch = self.q_heads // self.heads
        bh, row = fn.div("%u", self.rows), fn.mod("%u", self.rows)
        batch, unit = fn.div(bh, per_batch), fn.mod(bh, per_batch)
        line = fn.alloca(self.out_ld * self.size)
        one = VectorBuilder(fn, 0)
        low = one.const(float("-inf"), acc)

        def top_of(part: Ix) -> Reg:
            at = self._part_row(fn, fn.add(fn.mul(part, self.head_units), bh), row)
            text = load_lanes(fn, fn.at(at, (self.out_ld + lanes) * self.size), acc, 0)
            return VectorBuilder(fn, 0).reg(text, acc)

        with fn.range(0, self.parts, 1, [(reg_type(acc), one.text(low, 0))]) as p:
            b = VectorBuilder(fn, 0)
            p.next[0] = b.binary("fmax", b.reg(p.vars[0], acc), top_of(p.i)).text
        top = one.reg(p.out[0], acc)
        base = one.select(one.compare("eq", top, low), one.const(0.0, acc), top)
        with fn.range(0, self.out_ld, lanes) as c:
            store_lanes(fn, "zeroinitializer", fn.at(line, fn.mul(c.i, self.size)), acc, lanes)
        with fn.range(0, self.parts, 1, [(t, "zeroinitializer")]) as p:
            b = VectorBuilder(fn, lanes)
            at = self._part_row(fn, fn.add(fn.mul(p.i, self.head_units), bh), row)
            s = VectorBuilder(fn, 0)
            scale = exp2(s, s.binary("sub", top_of(p.i), base))
            with fn.range(0, self.out_ld, lanes) as c:
                v = VectorBuilder(fn, lanes)
                here = fn.at(line, fn.mul(c.i, self.size))
                x, y = (v.reg(load_lanes(fn, a, acc, lanes), acc, lanes)
                        for a in (fn.at(at, fn.mul(c.i, self.size)), here))  # fmt: skip
                store_lanes(fn, v.fma(x, scale, y).text, here, acc, lanes)
            total = b.reg(load_lanes(fn, fn.at(at, self.out_ld * self.size), acc, lanes), acc, lanes)
            p.next[0] = b.fma(total, scale, b.reg(p.vars[0], acc, lanes)).text
        total = self.across(fn, p.out[0], "add")
        g, i = self.query(fn, row)
        self._store_row(fn, (batch, fn.add(fn.mul(unit, self.heads), g), i), line, top.text, total)
        self.keep(fn)
        return fn.symbol

    def _describe(self) -> str:
        lines = [
            f"attention {self.batch} x {self.q_heads} heads ({self.kv} of keys), "
            f"[{self.length}, {self.width}] x [{self.keys}, {self.width}] x [{self.keys}, {self.out_width}] "
            f"{self.acc.name}{' causal' if self.causal else ''}",
            f"  units: {self.row_blocks} blocks of {self.block} rows, {self.heads} heads, {self.parts} parts",
            f"  tiles: {self.tile} x {self.key_panels.cols}, blocks of {self.key_block} keys",
            f"  k: {'in place' if self.in_place else 'packed'}",
            f"  v: {'packed' if self.pack_v else 'in place'}",
        ]
        return "\n".join(lines)
