"""The products of a tile in f64 on tensor cores: fragments from shared memory, ``mma.sync.m8n8k4.f64``.

Layouts of fragments: PTX ISA, "Matrix Fragments for mma.m8n8k4 with .f64 floating point type". Operands lie k
by k, as they do for fused multiply-adds; where a k has 4 elements modulo 16, the 16 lanes of a half warp,
which have four rows of every k, read 16 different pairs of banks.
"""

from __future__ import annotations

from weft.codegen.blocks import Ix
from weft.codegen.gpu.contract_code import BlockCode
from weft.codegen.gpu.contract_load import TileLoader
from weft.codegen.gpu.contract_plan import Plan
from weft.codegen.gpu.contract_region import vector_of
from weft.ir.types import f64

_SIDE = 8  # rows and columns of a product
_DEPTH = 4  # k of a product
_SUMS = "{double, double}"


class Doubles:
    """Sums of products of f64, each product and sum rounded as a fused multiply-add, four k at a time."""

    def __init__(self, plan: Plan, a: TileLoader, b: TileLoader) -> None:
        self.plan, self.lda, self.ldb, self.b_at = plan, a.ld, b.ld, a.bytes
        self.rows, self.cols = plan.m // plan.warps[0], plan.n // plan.warps[1]

    def begin(self, fn: BlockCode) -> None:
        """Where this lane's elements of both operands and of the sums are."""
        warp, lane = fn.i32("lshr", fn.thread, 5), fn.i32("and", fn.thread, 31)
        self.group, self.inside = fn.i32("lshr", lane, 2), fn.i32("and", lane, 3)
        self.row = fn.i32("mul", fn.i32("urem", warp, self.plan.warps[0]), self.rows)
        self.col = fn.i32("mul", fn.i32("udiv", warp, self.plan.warps[0]), self.cols)
        self.a_at = self._first(fn, self.row, self.lda, 0)
        self.b_first = self._first(fn, self.col, self.ldb, self.b_at)

    def _first(self, fn: BlockCode, row: Ix, ld: int, start: int) -> Ix:
        place = fn.i32("add", fn.i32("mul", self.inside, ld), fn.i32("add", row, self.group))
        return fn.i32("add", fn.i32("mul", place, f64.itemsize), start)

    def zeros(self) -> list[tuple[str, str]]:
        return [("double", "0.0")] * (self.rows * self.cols // 32)

    def step(self, fn: BlockCode, slot: Ix, sums: list[str]) -> list[str]:
        """The sums after the tile at byte ``slot`` of shared memory."""
        out, across = list(sums), self.cols // _SIDE
        a_at, b_at = fn.i32("add", slot, self.a_at), fn.i32("add", slot, self.b_first)
        for k in range(0, self.plan.k, _DEPTH):
            left = self._fragments(fn, a_at, k * self.lda, self.rows)
            right = self._fragments(fn, b_at, k * self.ldb, self.cols)
            for i, a in enumerate(left):
                for j, b in enumerate(right):
                    n = 2 * (i * across + j)
                    out[n : n + 2] = product(fn, a, b, out[n : n + 2])
        return out

    def _fragments(self, fn: BlockCode, at: Ix, before: int, count: int) -> list[str]:
        return [
            fn.load_shared("double", fn.i32("add", at, (before + r) * f64.itemsize), f64.itemsize)
            for r in range(0, count, _SIDE)
        ]

    def spill(self, fn: BlockCode, sums: list[str], ld: int) -> None:
        """Put the finished sums into shared memory, row by row of ``ld`` elements."""
        row = fn.i32("add", self.row, self.group)
        col = fn.i32("add", self.col, fn.i32("shl", self.inside, 1))
        start = fn.i32("mul", fn.i32("add", fn.i32("mul", row, ld), col), f64.itemsize)
        across = self.cols // _SIDE
        for i in range(self.rows // _SIDE):
            for j in range(across):
                n = 2 * (i * across + j)
                at = fn.i32("add", start, (_SIDE * i * ld + _SIDE * j) * f64.itemsize)
                fn.store_shared("<2 x double>", vector_of(fn, sums[n : n + 2], "double"), at, 16)


def product(fn: BlockCode, a: str, b: str, c: list[str]) -> list[str]:
    """c + a b of a fragment of 8 x 4 and one of 4 x 8; two sums a thread."""
    name = "llvm.nvvm.mma.m8n8k4.row.col.f64"
    fn.declare(f"declare {_SUMS} @{name}(double, double, double, double)")
    got = fn.op(f"call {_SUMS} @{name}(double {a}, double {b}, double {c[0]}, double {c[1]})")
    return [fn.op(f"extractvalue {_SUMS} {got}, {i}") for i in range(2)]
