"""Kernels of form ``cumulative`` on a GPU: running sums, products, maxima and minima along one axis.

Where lines are many and lie side by side, each has a thread. Else each has a block, which scans it a piece
at a time: within a thread, by shuffles within a warp, through shared memory between warps (Harris, "Parallel
Prefix Sum (Scan) with CUDA", 2007). Few long lines are cut: the totals of their parts are scanned first. The
order of additions is fixed by the shape alone.
"""

from __future__ import annotations

from math import prod

from weft.codegen.blocks import Ix
from weft.codegen.emit import Reg, VectorBuilder
from weft.codegen.gpu.block_scan import BlockScan
from weft.codegen.gpu.device import DeviceFunction
from weft.codegen.gpu.kernel import DeviceCode
from weft.codegen.gpu.target import WARP, GpuTarget
from weft.codegen.gpu.writer import DeviceWriter, load_value, store_value
from weft.codegen.indexing import only_op
from weft.codegen.kernel import Unsupported
from weft.codegen.llvm import reg_type
from weft.codegen.window_kernel import extreme
from weft.ir.graph import Op
from weft.ir.types import DType, bool_, f32

_OPS = {"cumsum": "add", "cumprod": "mul", "cummax": "max", "cummin": "min"}
_ITEMS = 4  # elements of a thread in one piece
_BLOCK = 256
_PART = 8 * _BLOCK * _ITEMS  # least elements of a part of a line
_SHORT = 64  # length up to which a line is one thread's anyway


def emit(op: Op, target: GpuTarget, prefix: str) -> DeviceCode:
    """The code of a kernel of form ``cumulative``."""
    return _Scan(op, target, prefix).emit()


class _Scan(DeviceWriter):
    def __init__(self, op: Op, target: GpuTarget, prefix: str) -> None:
        super().__init__(op, target, prefix)
        self.scan = only_op(self.graph)
        if self.scan.prim.name not in _OPS:
            raise Unsupported(f"{self.scan.prim.name} is no running reduction that is compiled")
        t, axis = self.scan.result.type, self.scan.attrs["axis"]
        self.combine, self.reverse = _OPS[self.scan.prim.name], self.scan.attrs["reverse"]
        self.n, self.inner = t.shape[axis], prod(t.shape[axis + 1 :])
        self.lines = t.size // self.n
        self.dtype: DType = t.dtype
        half = t.dtype.is_floating_point and t.dtype.bits == 16
        self.carried: DType = f32 if half else t.dtype
        self.x = self.operand(self.scan.operands[0])

    def emit(self) -> DeviceCode:
        many = self.lines >= 64 * self.target.multiprocessors
        if self.n <= _SHORT or (many and self.inner >= WARP):
            return self._by_threads()
        wanted = -(-2 * self.target.multiprocessors // self.lines)
        parts = max(1, min(wanted, self.n // _PART, _BLOCK * _ITEMS))
        return self._by_blocks(parts)

    def _identity(self, b: VectorBuilder) -> Reg:
        value = {"add": 0, "mul": 1}.get(self.combine)
        return b.const(extreme(self.carried, self.combine == "max") if value is None else value, self.carried)

    def _at(self, fn: DeviceFunction, base: Ix, j: Ix) -> Ix:
        """The element number j of the line in the order of the scan."""
        return fn.add(base, fn.mul(fn.sub(self.n - 1, j) if self.reverse else j, self.inner))

    def _base(self, fn: DeviceFunction, line: Ix) -> Ix:
        return fn.add(fn.mul(fn.div(line, self.inner), self.n * self.inner), fn.mod(line, self.inner))

    def _read(self, fn: DeviceFunction, b: VectorBuilder, at: Ix) -> Reg:
        return b.convert(load_value(fn, b, "%a0", at, self.dtype), self.carried)

    def _write(self, fn: DeviceFunction, b: VectorBuilder, x: Reg, at: Ix) -> None:
        store_value(fn, b.convert(x, self.dtype), "%a1", at, self.dtype)

    def _by_threads(self) -> DeviceCode:
        with self.each((self.x, self.result(0)), self.lines) as (fn, line):
            b = self.builder(fn)
            base = self._base(fn, line)
            first = self._read(fn, b, self._at(fn, base, 0))
            self._write(fn, b, first, self._at(fn, base, 0))
            with fn.range(1, self.n, 1, [(reg_type(self.carried), first.text)]) as turn:
                new = self._read(fn, b, self._at(fn, base, turn.i))
                total = b.binary(self.combine, b.reg(turn.vars[0], self.carried), new)
                self._write(fn, b, total, self._at(fn, base, turn.i))
                turn.next[0] = total.text
        return self.code(f"{self.scan.prim.name} of {self.lines} lines of {self.n}, a thread for each")

    # -- a block for a line, or for a part of it

    def _by_blocks(self, parts: int) -> DeviceCode:
        length = -(-self.n // parts)
        size = self.carried.itemsize
        if parts > 1:
            at = self.room(self.lines * parts * size)
            with self.launch((self.x, self.scratch), self.lines * parts, _BLOCK) as fn:
                self._part(fn, parts, length, f"{at}", "total")
            with self.launch((self.scratch,), self.lines, _BLOCK) as fn:
                self._scan_totals(fn, parts, at)
            with self.launch((self.x, self.result(0), self.scratch), self.lines * parts, _BLOCK) as fn:
                self._part(fn, parts, length, f"{at}", "scan")
        else:
            with self.launch((self.x, self.result(0)), self.lines, _BLOCK) as fn:
                self._part(fn, 1, length, "", "scan")
        return self.code(f"{self.scan.prim.name} of {self.lines} lines of {self.n} in {parts} parts")

    def _part(self, fn: DeviceFunction, parts: int, length: int, at: str, what: str) -> None:
        """Scan one part of a line, or fold it to its total."""
        b, t = self.builder(fn), reg_type(self.carried)
        block, tid = fn.index("ctaid.x").text, fn.index("tid.x").text
        line, part = fn.div(block, parts), fn.mod(block, parts)
        base = self._base(fn, line)
        first = fn.mul(part, length)
        last = fn.min(fn.add(first, length), self.n)
        shared = BlockScan(fn, b, tid, self.combine, self._identity(b))
        start = self._identity(b)
        if what == "scan" and parts > 1:
            totals = fn.at("%a2", int(at))
            start = load_value(fn, b, totals, block, self.carried)
        chunk = _BLOCK * _ITEMS
        with fn.range(first, last, chunk, [(t, start.text)], runs=True) as turn:
            carry = b.reg(turn.vars[0], self.carried)
            mine = fn.add(turn.i, fn.mul(tid, _ITEMS))
            places = [fn.add(mine, k) for k in range(_ITEMS)]
            inside = [fn.op(f"icmp slt i64 {p}, {last}") for p in places]
            xs = []
            for p, ok in zip(places, inside, strict=True):
                safe = fn.op(f"select i1 {ok}, i64 {p}, i64 {first}")
                x = self._read(fn, b, self._at(fn, base, safe))
                xs.append(self._pick(b, ok, x))
            sums = [xs[0]]
            for x in xs[1:]:
                sums.append(b.binary(self.combine, sums[-1], x))
            before, total = shared.exclusive(sums[-1])
            before = b.binary(self.combine, carry, before)
            if what == "scan":
                for p, ok, s in zip(places, inside, sums, strict=True):
                    out = b.binary(self.combine, before, s)
                    with fn.when(ok):
                        self._write(fn, b, out, self._at(fn, base, p))
            turn.next[0] = b.binary(self.combine, carry, total).text
        if what == "total":
            with fn.when(fn.op(f"icmp eq i64 {tid}, 0")):
                out = b.reg(turn.out[0], self.carried)
                store_value(fn, out, fn.at("%a1", int(at)), block, self.carried)

    def _pick(self, b: VectorBuilder, ok: str, x: Reg) -> Reg:
        return b.select(b.reg(ok, bool_), x, self._identity(b))

    def _scan_totals(self, fn: DeviceFunction, parts: int, at: int) -> None:
        """The totals of the parts of one line become what comes before each part."""
        b = self.builder(fn)
        line, tid = fn.index("ctaid.x").text, fn.index("tid.x").text
        totals = fn.at("%a0", at)
        first = fn.mul(line, parts)
        mine = fn.mul(tid, _ITEMS)
        sums: list[Reg] = []
        xs, inside = [], []
        for k in range(_ITEMS):
            place = fn.add(mine, k)
            ok = fn.op(f"icmp ult i64 {place}, {parts}")
            safe = fn.op(f"select i1 {ok}, i64 {place}, i64 0")
            x = self._pick(b, ok, load_value(fn, b, totals, fn.add(first, safe), self.carried))
            xs.append(x)
            inside.append((place, ok))
            sums.append(x if not sums else b.binary(self.combine, sums[-1], x))
        shared = BlockScan(fn, b, tid, self.combine, self._identity(b))
        before, _ = shared.exclusive(sums[-1])
        fn.barrier()  # all have read before any writes
        for k, (place, ok) in enumerate(inside):
            out = b.binary(self.combine, before, sums[k - 1]) if k else before
            with fn.when(ok):
                store_value(fn, out, totals, fn.add(first, place), self.carried)
