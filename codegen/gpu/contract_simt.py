"""The products of a tile by fused multiply-adds of threads, each with a few rows and columns in registers.

A thread's rows are groups of 16 bytes, the groups of all threads side by side: a warp then reads whole lines
of shared memory, and threads that read the same address share one access.
"""

from __future__ import annotations

from weft.codegen.blocks import Ix
from weft.codegen.gpu.contract_code import BlockCode
from weft.codegen.gpu.contract_load import TileLoader
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
    """Sums in the order of k, as one thread adds them."""

    def __init__(self, plan: Plan, acc: DType, a: TileLoader, b: TileLoader) -> None:
        self.plan, self.acc, self.a, self.b = plan, acc, a, b
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
        out = list(sums)
        a_at = fn.i32("add", slot, fn.i32("mul", self.row, self.acc.itemsize))
        b_at = fn.i32("add", fn.i32("add", slot, self.a.bytes), fn.i32("mul", self.col, self.acc.itemsize))
        for k in range(self.plan.k):
            xs = self._strip(fn, a_at, k * self.a.ld, self.plan.m, self.rows)
            ys = self._strip(fn, b_at, k * self.b.ld, self.plan.n, self.cols)
            for i, x in enumerate(xs):
                for j, y in enumerate(ys):
                    n = i * self.cols + j
                    out[n] = multiply_add(fn, self.acc, x, y, out[n])
        return out

    def _strip(self, fn: BlockCode, at: Ix, before: int, extent: int, count: int) -> list[str]:
        out: list[str] = []
        groups = count // self.group
        for g in range(groups):
            offset = (before + g * (extent // groups)) * self.acc.itemsize
            t = reg_type(self.acc, self.group)
            got = fn.load_shared(t, fn.i32("add", at, offset), 16)
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
