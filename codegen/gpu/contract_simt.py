"""The products of a tile by fused multiply-adds of threads, each with a few rows and columns in registers.

A thread's rows are groups of 16 bytes, the groups of all threads side by side: a warp then reads whole lines
of shared memory, and threads that read the same address share one access.
"""

from __future__ import annotations

from weft.codegen.blocks import Ix
from weft.codegen.gpu.contract_code import BlockCode
from weft.codegen.gpu.contract_plan import Plan
from weft.codegen.gpu.contract_region import elements
from weft.codegen.llvm import reg_type
from weft.ir.types import DType


def multiply_add(fn: BlockCode, acc: DType, x: str, y: str, z: str) -> str:
    """x * y + z of single values; rounded once for floats, modulo 2**n for integers."""
    t = reg_type(acc)
    if acc.is_floating_point:
        name = "llvm.fma.f64" if acc.itemsize == 8 else "llvm.fma.f32"
        return fn.call(name, t, f"{t} {x}, {t} {y}, {t} {z}")
    return fn.op(f"add {t} {fn.op(f'mul {t} {x}, {y}')}, {z}")


class Simt:
    """Sums in the order of k, as one thread adds them.

    Tiles have ``lds`` elements between their k; that of B begins ``b_at`` bytes after that of A.
    """

    row: Ix = 0  # of the thread's first group of rows and of columns
    col: Ix = 0

    def __init__(self, plan: Plan, acc: DType, lds: tuple[int, int], b_at: int = 0) -> None:
        self.plan, self.acc, self.b_at = plan, acc, b_at
        self.lda, self.ldb = lds
        self.group = 16 // acc.itemsize
        self.rows, self.cols = plan.thread

    def begin(self, fn: BlockCode) -> None:
        across = self.plan.n // self.cols
        ty, tx = fn.i32("udiv", fn.thread, across), fn.i32("urem", fn.thread, across)
        self.row, self.col = fn.i32("mul", ty, self.group), fn.i32("mul", tx, self.group)

    def zeros(self) -> list[tuple[str, str]]:
        zero = "0.0" if self.acc.is_floating_point else "0"
        return [(reg_type(self.acc), zero)] * (self.rows * self.cols)

    def step(self, fn: BlockCode, slot: Ix, sums: list[str]) -> list[str]:
        """The sums after the tile at byte ``slot`` of shared memory."""
        return self.products(fn, slot, fn.i32("add", slot, self.b_at), range(self.plan.k), sums)

    def products(self, fn: BlockCode, a_at: Ix, b_at: Ix, ks: range, sums: list[str]) -> list[str]:
        """The sums after some k of the tiles at these bytes of shared memory."""
        out, size = list(sums), self.acc.itemsize
        a_at = fn.i32("add", a_at, fn.i32("mul", self.row, size))
        b_at = fn.i32("add", b_at, fn.i32("mul", self.col, size))
        for k in ks:
            xs = self._strip(fn, a_at, k * self.lda, self.plan.m, self.rows)
            ys = self._strip(fn, b_at, k * self.ldb, self.plan.n, self.cols)
            for i, x in enumerate(xs):
                for j, y in enumerate(ys):
                    n = i * self.cols + j
                    out[n] = multiply_add(fn, self.acc, x, y, out[n])
        return out

    def _strip(self, fn: BlockCode, at: Ix, before: int, extent: int, count: int) -> list[str]:
        """The elements of a thread's groups, which ``extent`` elements spread over."""
        out: list[str] = []
        groups = count // self.group
        for g in range(groups):
            offset = (before + g * (extent // groups)) * self.acc.itemsize
            got = fn.load_shared(reg_type(self.acc, self.group), fn.i32("add", at, offset), 16)
            out += elements(fn, got, reg_type(self.acc), self.group)
        return out

    def spill(self, fn: BlockCode, sums: list[str], ld: int) -> None:
        """Put the finished sums into shared memory, row by row of ``ld`` elements."""
        size, t = self.acc.itemsize, reg_type(self.acc)
        start = fn.i32("mul", fn.i32("add", fn.i32("mul", self.row, ld), self.col), size)
        for i in range(self.rows):
            g, e = divmod(i, self.group)
            row = g * (self.plan.m // (self.rows // self.group)) + e
            for j in range(self.cols):
                h, f = divmod(j, self.group)
                col = h * (self.plan.n // (self.cols // self.group)) + f
                at = fn.i32("add", start, (row * ld + col) * size)
                fn.store_shared(t, sums[i * self.cols + j], at, size)
