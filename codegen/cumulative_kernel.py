"""Kernels of form ``cumulative``: running sums, products, maxima and minima along one axis.

Always added up in order, so that results do not depend on the number of threads (and are numpy's to the bit).
Lines that lie side by side are walked together, a piece of a row at a time, so that memory is read and
written in pieces that the processor's streams follow; what runs along is kept in registers, or in an array
where the piece is longer.
"""

from __future__ import annotations

from math import prod

from weft.codegen.blocks import Code, Ix
from weft.codegen.emit import VectorBuilder
from weft.codegen.indexing import only_op, operand_pointers
from weft.codegen.kernel import KernelCode, Unsupported
from weft.codegen.lanes import fence_streams, load_lanes, store_lanes, stream_lanes, tail_mask
from weft.codegen.llvm import mem_type, reg_type
from weft.codegen.loop_memory import PREFETCHED
from weft.codegen.loop_traffic import AHEAD_BYTES, STREAM_BYTES
from weft.codegen.phases import UNIT, Writer
from weft.codegen.target import Target
from weft.ir.graph import Op
from weft.ir.types import f32

_OPS = {"cumsum": "add", "cumprod": "mul", "cummax": "max", "cummin": "min"}
_IN_REGISTERS = 4  # vectors of a row that run along in registers
_PIECE = 64  # vectors of a row that one unit takes at most: the processor's streams end with a page
_UNITS = 16  # units wanted, so that threads end together


def emit(op: Op, target: Target, prefix: str) -> KernelCode:
    """The code of a kernel of form ``cumulative``. Lanes run over what lies inside the axis, if anything."""
    scan = only_op(op.regions[0])
    if scan.prim.name not in _OPS:
        raise Unsupported(f"{scan.prim.name} is no running reduction that is compiled")
    return _Cumulative(op, scan, target, prefix).emit()


class _Cumulative(Writer):
    """``n`` steps along the axis, ``inner`` lines side by side, of which a unit takes ``piece``."""

    def __init__(self, op: Op, scan: Op, target: Target, prefix: str) -> None:
        super().__init__(op, target, prefix)
        self.scan, self.combine, self.reverse = scan, _OPS[scan.prim.name], scan.attrs["reverse"]
        t, axis = scan.result.type, scan.attrs["axis"]
        self.type, self.dtype = t, t.dtype
        self.n, self.inner = t.shape[axis], prod(t.shape[axis + 1 :])
        self.lanes = target.lanes(max(t.dtype.bits, 32)) if self.inner > 1 else 0
        self.half = t.dtype.is_floating_point and t.dtype.bits == 16
        self.carried = f32 if self.half else t.dtype  # half types are rounded when they are stored
        self.outer = t.size // (self.n * self.inner)
        self.piece = self._piece() * max(self.lanes, 1)
        self.pieces = -(-self.inner // self.piece)

    def _piece(self) -> int:
        """Vectors of a row in one unit: as many as leave units enough."""
        if not self.lanes:
            return 1
        vectors = -(-self.inner // self.lanes)
        if vectors > _IN_REGISTERS and self.outer * -(-vectors // _PIECE) >= _UNITS:
            return min(vectors, _PIECE)
        wide = _IN_REGISTERS
        while wide > 1 and (wide >= 2 * vectors or self.outer * -(-vectors // wide) < _UNITS):
            wide //= 2
        return wide

    def emit(self) -> KernelCode:
        whole = self.lanes and self.inner % self.lanes == 0
        large = self.type.nbytes >= STREAM_BYTES and self.dtype.itemsize >= 4
        plain = self._unit("unit", False)
        units = self.outer * self.pieces
        if whole and large:
            streamed = self._unit("streamed", True)
            plain = self._either(streamed, plain)
        vectors = -(-min(self.piece, self.inner) // max(self.lanes, 1))
        phase = self.phase("scan", [(plain, units)], 1.5 * self.n * vectors)
        lines = f"{self.scan.prim.name} of {self.outer * self.inner} lines of {self.n}, "
        return self.code([phase], 0, lines + f"{min(self.piece, self.inner)} abreast")

    def _either(self, streamed: str, plain: str) -> str:
        """The unit that streams its stores where they are aligned."""
        fn = self.start(f"{self.prefix}_choose")
        out = fn.arg(len(self.op.operands))
        low = fn.op(f"and i64 {fn.op(f'ptrtoint ptr {out} to i64')}, {self.target.vector_bits // 8 - 1}")
        yes, no = fn.new_label("aligned"), fn.new_label("unaligned")
        done = fn.new_label("done")
        fn.cond_br(fn.op(f"icmp eq i64 {low}, 0"), yes, no)
        for label, callee in ((yes, streamed), (no, plain)):
            fn.label(label)
            fn.do(f"call void @{callee}(ptr %bufs, i64 %u)")
            fn.br(done)
        fn.label(done)
        self.keep(fn)
        return fn.symbol

    def _unit(self, name: str, stream: bool) -> str:
        fn = self.start(f"{self.prefix}_{name}", UNIT)
        (x,), out = operand_pointers(fn, self.op), fn.arg(len(self.op.operands))
        col = fn.mul(fn.mod("%u", self.pieces), self.piece)
        base = fn.add(fn.mul(fn.div("%u", self.pieces), self.n * self.inner), col)
        count = fn.min(fn.sub(self.inner, col), self.piece)
        if self.piece <= _IN_REGISTERS * max(self.lanes, 1):
            self._in_registers(fn, x, out, base, count, stream)
        else:
            self._in_memory(fn, x, out, base, count, stream)
        if stream:
            fence_streams(fn, self.target)
        self.keep(fn)
        return fn.symbol

    def _in_registers(self, fn: Code, x: str, out: str, base: Ix, count: Ix, stream: bool) -> None:
        """All steps of a few vectors; those past the end of the row are masked out."""
        lanes = self.lanes
        cols = range(0, self.piece, max(lanes, 1))
        masks = [self._mask(fn, fn.sub(count, c), c) for c in cols]
        first = []
        for c, mask in zip(cols, masks, strict=True):
            got = load_lanes(fn, self._at(fn, x, base, 0, c), self.dtype, lanes, mask)
            self._store(fn, out, base, 0, c, got, mask, stream)
            first.append((reg_type(self.carried, lanes), got))
        with fn.range(1, self.n, 1, first) as turn:
            for k, (c, mask) in enumerate(zip(cols, masks, strict=True)):
                self._prefetch(fn, self._at(fn, x, base, turn.i, c))
                total = self._step(fn, self._at(fn, x, base, turn.i, c), turn.vars[k], mask)
                self._store(fn, out, base, turn.i, c, total, mask, stream)
                turn.next[k] = total

    def _in_memory(self, fn: Code, x: str, out: str, base: Ix, count: Ix, stream: bool) -> None:
        """Step by step, a piece of the row each; the totals are in an array."""
        lanes = self.lanes
        totals = fn.alloca(self.piece * self.carried.itemsize)

        def run(i: Ix, start: bool) -> None:
            with fn.range(0, count, lanes, runs=True) as v:
                mask = self._mask(fn, fn.sub(count, v.i), self.piece)
                self._prefetch(fn, self._at(fn, x, base, i, v.i))
                at, kept = self._at(fn, x, base, i, v.i), fn.at(totals, v.i, mem_type(self.carried))
                if start:
                    total = load_lanes(fn, at, self.dtype, lanes, mask)
                else:
                    total = self._step(fn, at, load_lanes(fn, kept, self.carried, lanes), mask)
                store_lanes(fn, total, kept, self.carried, lanes)
                self._store(fn, out, base, i, v.i, total, mask, stream)

        run(0, True)
        with fn.range(1, self.n) as turn:
            run(turn.i, False)

    def _mask(self, fn: Code, left: Ix, col: int) -> str | None:
        """The lanes inside the row; None where rows are whole vectors, and pieces whole rows."""
        if not self.lanes or (self.inner % self.lanes == 0 and (col == 0 or self.inner % self.piece == 0)):
            return None
        if self.inner % self.lanes == 0 and self.piece > _IN_REGISTERS * self.lanes:
            return None  # the loop ends with the row
        return tail_mask(fn, left, self.lanes)

    def _at(self, fn: Code, pointer: str, base: Ix, i: Ix, col: Ix) -> str:
        step = fn.sub(self.n - 1, i) if self.reverse else i
        index = fn.add(fn.add(base, fn.mul(step, self.inner)), col)
        return fn.at(pointer, index, mem_type(self.dtype))

    def _prefetch(self, fn: Code, at: str) -> None:
        """Ask for what lies some rows further on, which no stream of the processor follows from page to
        page."""
        if self.type.nbytes < PREFETCHED or not self.lanes:
            return
        row = self.inner * self.dtype.itemsize
        rows = max(1, AHEAD_BYTES // (min(self.piece, self.inner) * self.dtype.itemsize))
        fn.declare("declare void @llvm.prefetch.p0(ptr, i32 immarg, i32 immarg, i32 immarg)")
        fn.do(
            f"call void @llvm.prefetch.p0(ptr {fn.at(at, -rows * row if self.reverse else rows * row)}, "
            "i32 0, i32 2, i32 1)"
        )

    def _step(self, fn: Code, at: str, total: str, mask: str | None) -> str:
        b, lanes = VectorBuilder(fn, self.lanes), self.lanes
        new = b.reg(load_lanes(fn, at, self.dtype, lanes, mask), self.carried, lanes)
        return b.binary(self.combine, b.reg(total, self.carried, lanes), new).text

    def _store(
        self, fn: Code, out: str, base: Ix, i: Ix, col: Ix, value: str, mask: str | None, stream: bool
    ) -> None:
        b, lanes = VectorBuilder(fn, self.lanes), self.lanes
        text = b.convert(b.reg(value, self.carried, lanes), self.dtype).text if self.half else value
        at = self._at(fn, out, base, i, col)
        if stream and mask is None:
            stream_lanes(fn, text, at, self.dtype, lanes)
        else:
            store_lanes(fn, text, at, self.dtype, lanes, mask)
