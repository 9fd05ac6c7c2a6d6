"""The products of a tile on tensor cores: ``ldmatrix`` from swizzled shared memory, ``mma.sync``.

Layouts of fragments: PTX ISA, "Matrix Fragments for mma.m16n8k16". An operand whose rows are contiguous in
memory instead of its k lies that way in shared memory, too, and is transposed by ``ldmatrix.trans``.
"""

from __future__ import annotations

from weft.codegen.blocks import Ix
from weft.codegen.gpu.contract_code import BlockCode
from weft.codegen.gpu.contract_load import Swizzle, TileLoader
from weft.codegen.gpu.contract_plan import Plan
from weft.codegen.gpu.contract_region import vector_of
from weft.ir.types import DType, bf16, f32

K_BYTES = 32  # of a row of a fragment of A
QUAD = "{i32, i32, i32, i32}"
_SUMS = "{float, float, float, float}"


class Fragments:
    """The fragments that a warp reads of an operand's tile: 16 rows by 16 of k each, as four words a thread.

    ``order`` "a": words are (rows 0-7, 8-15) of the first eight k, then of the others; "b": the two halves of
    k of rows 0-7, then those of rows 8-15. ``turned``: lines of shared memory are k, and run along rows.
    """

    def __init__(
        self, swizzle: Swizzle, rows: int, depth: int, order: str, turned: bool, itemsize: int = 2
    ) -> None:
        self.swizzle, self.rows, self.order, self.turned = swizzle, rows, order, turned
        self.steps = depth * itemsize // K_BYTES

    def begin(self, fn: BlockCode, warp: Ix, base: int) -> None:
        """Addresses of this lane: ``warp`` counts strips of rows; the tile is ``base`` bytes after slots."""
        swizzle, lane = self.swizzle, fn.i32("and", fn.thread, 31)
        low, high = fn.i32("and", lane, 7), fn.i32("lshr", lane, 4)
        middle = fn.i32("and", fn.i32("lshr", lane, 3), 1)
        if (self.order == "a") == (not self.turned):
            line, chunk = fn.i32("and", lane, 15), high
        else:
            line, chunk = fn.i32("add", fn.i32("shl", high, 3), low), middle
        turn = swizzle.turn(fn, line)
        first = fn.i32("mul", warp, self.rows)
        if self.turned:
            chunk = fn.i32("add", fn.i32("udiv", first, 8), chunk)
        else:
            line = fn.i32("add", first, line)
        start = fn.i32("add", fn.i32("mul", line, swizzle.line_bytes), base)
        x = fn.i32("xor", chunk, turn)
        pieces = self.rows // 16 if self.turned else self.steps
        self.pieces = [
            fn.i32("add", start, fn.i32("shl", fn.i32("xor", x, 2 * p), 4)) for p in range(pieces)
        ]  # fmt: skip

    def load(self, fn: BlockCode, slot: Ix, k: int) -> list[list[str]]:
        """The words of every fragment of k number ``k`` of the tile at ``slot``."""
        out, line = [], self.swizzle.line_bytes
        for i in range(self.rows // 16):
            piece, down = (i, k) if self.turned else (k, i)
            at = fn.shared(fn.i32("add", slot, self.pieces[piece]))
            if down:
                at = fn.op(f"getelementptr i8, ptr addrspace(3) {at}, i32 {down * 16 * line}")
            out.append(load_matrix(fn, at, self.turned))
        return out


def load_matrix(fn: BlockCode, at: str, turned: bool) -> list[str]:
    """Four 8 x 8 matrices of 16-bit elements; each lane gives the address of a line and gets four words."""
    name = f"llvm.nvvm.ldmatrix.sync.aligned.m8n8.x4.{'trans.' if turned else ''}b16.p3"
    fn.declare(f"declare {QUAD} @{name}(ptr addrspace(3))")
    got = fn.op(f"call {QUAD} @{name}(ptr addrspace(3) {at})")
    return [fn.op(f"extractvalue {QUAD} {got}, {i}") for i in range(4)]


def product(fn: BlockCode, family: str, dtype: DType, a: list[str], b: list[str], c: list[str]) -> list[str]:
    """c + a b of a fragment of 16 x 16 and one of 16 x 8; four sums a thread."""
    if family == "mma.m16n8k8.tf32":
        return _mma(fn, "m16n8k8", dtype, a, b, c)
    if family == "mma.m16n8k8":
        for half in (0, 1):
            c = _mma(fn, "m16n8k8", dtype, a[2 * half : 2 * half + 2], b[half : half + 1], c)
        return c
    return _mma(fn, "m16n8k16", dtype, a, b, c)


def _mma(fn: BlockCode, shape: str, dtype: DType, a: list[str], b: list[str], c: list[str]) -> list[str]:
    words = [*a, *b]
    if dtype is bf16:
        t, name = "i32", f"llvm.nvvm.mma.{shape}.row.col.bf16"
    elif dtype is f32:
        t, name = "i32", f"llvm.nvvm.mma.{shape}.row.col.tf32"
    else:
        t, name = "<2 x half>", f"llvm.nvvm.mma.{shape}.row.col.f32.f32"
        words = [fn.op(f"bitcast i32 {w} to <2 x half>") for w in words]
    args = ", ".join([*(f"{t} {w}" for w in words), *(f"float {x}" for x in c)])
    fn.declare(f"declare {_SUMS} @{name}({', '.join([t] * len(words) + ['float'] * 4)})")
    got = fn.op(f"call {_SUMS} @{name}({args})")
    return [fn.op(f"extractvalue {_SUMS} {got}, {i}") for i in range(4)]


def _rounded(fn: BlockCode, word: str) -> str:
    """An f32 with the 10 bits of mantissa that tensor cores multiply."""
    return fn.call("llvm.nvvm.f2tf32.rna", "i32", f"float {fn.op(f'bitcast i32 {word} to float')}")


class Tensor:
    """Sums of products of half precision (or TF32) in f32, in the order in which the instructions add."""

    def __init__(self, plan: Plan, dtype: DType, a: TileLoader, b: TileLoader) -> None:
        self.plan, self.dtype, self.base = plan, dtype, a.bytes
        self.rows, self.cols = plan.m // plan.warps[0], plan.n // plan.warps[1]
        self.a, self.b = (
            Fragments(x.swizzle, rows, plan.k, order, x.turned, dtype.itemsize)
            for x, rows, order in ((a, self.rows, "a"), (b, self.cols, "b"))
        )

    def begin(self, fn: BlockCode) -> None:
        warp = fn.i32("lshr", fn.thread, 5)
        self.down = fn.i32("urem", warp, self.plan.warps[0])
        self.across = fn.i32("udiv", warp, self.plan.warps[0])
        self.a.begin(fn, self.down, 0)
        self.b.begin(fn, self.across, self.base)

    def zeros(self) -> list[tuple[str, str]]:
        return [("float", "0.0")] * (self.rows * self.cols // 32)

    def step(self, fn: BlockCode, slot: Ix, sums: list[str]) -> list[str]:
        """The sums after the tile at byte ``slot`` of shared memory."""
        out = list(sums)
        across = self.cols // 8
        for k in range(self.a.steps):
            left, right = self.a.load(fn, slot, k), self.b.load(fn, slot, k)
            if self.dtype is f32:
                left, right = ([[_rounded(fn, w) for w in f] for f in fs] for fs in (left, right))
            for i, a in enumerate(left):
                for j in range(across):
                    n = 4 * (i * across + j)
                    b = right[j // 2][2 * (j % 2) : 2 * (j % 2) + 2]
                    out[n : n + 4] = product(fn, self.plan.family, self.dtype, a, b, out[n : n + 4])
        return out

    def spill(self, fn: BlockCode, sums: list[str], ld: int) -> None:
        """Put the finished sums into shared memory, row by row of ``ld`` elements."""
        lane = fn.i32("and", fn.thread, 31)
        row = fn.i32("add", fn.i32("mul", self.down, self.rows), fn.i32("lshr", lane, 2))
        col = fn.i32("add", fn.i32("mul", self.across, self.cols), fn.i32("shl", fn.i32("and", lane, 3), 1))
        start = fn.i32("mul", fn.i32("add", fn.i32("mul", row, ld), col), f32.itemsize)
        across = self.cols // 8
        for i in range(self.rows // 16):
            for j in range(across):
                for half in (0, 1):
                    n = 4 * (i * across + j) + 2 * half
                    at = fn.i32("add", start, ((16 * i + 8 * half) * ld + 8 * j) * f32.itemsize)
                    fn.store_shared("<2 x float>", vector_of(fn, sums[n : n + 2], "float"), at, 8)
