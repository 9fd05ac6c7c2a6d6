"""mma.sync: products of small matrices that lie in the registers of a warp.

With g = lane / 4, t = lane % 4 and p elements in a register (1 of 32 or 64 bits, 2 of 16, 4 of 8), element e
of register r of a thread is, in every shape ("Matrix Fragments for mma", PTX ISA):

    A, 16 rows: row g + 8 (r % 2), column t p + e + 4 p (r / 2);   A, 8 rows: row g, column t p + e + 4 p r
    B: row t p + e + 4 p r, column g
    C and D, with i the number of an element: row g + 8 (i / 2), column 2 t + i % 2
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from weft.runtime.emulate import half
from weft.runtime.emulate.masks import WARP, Mask
from weft.runtime.emulate.program import Decoder, Step, Unknown, instruction
from weft.runtime.emulate.ptx_ast import Instruction
from weft.runtime.emulate.whole_warps import Change, put_warps, whole_warps, words_of

Array = Any
_SHAPE = re.compile(r"m(\d+)n(\d+)k(\d+)$")
_INPUTS = {
    "f16": np.float16, "bf16": ml_dtypes.bfloat16, "tf32": np.float32, "f64": np.float64, "s8": np.int8,
    "u8": np.uint8, "e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2,
}  # fmt: skip
_SHAPES = {
    "f16": ((16, 8, 8), (16, 8, 16)), "bf16": ((16, 8, 8), (16, 8, 16)), "tf32": ((16, 8, 4), (16, 8, 8)),
    "f64": ((8, 8, 4),), "s8": ((8, 8, 16), (16, 8, 16), (16, 8, 32)),
    "u8": ((8, 8, 16), (16, 8, 16), (16, 8, 32)), "e4m3": ((16, 8, 16), (16, 8, 32)),
    "e5m2": ((16, 8, 16), (16, 8, 32)),
}  # fmt: skip


def matrix_a(values: Array, rows: int, per: int) -> Array:
    """(registers, threads * per) elements as (warps, rows, depth)."""
    high = rows // 8
    parts = values.reshape(-1, high, values.shape[1] // (WARP * per), 8, 4 * per)
    return parts.transpose(2, 1, 3, 0, 4).reshape(parts.shape[2], rows, -1)


def matrix_b(values: Array, per: int) -> Array:
    """(registers, threads * per) elements as (warps, depth, 8)."""
    parts = values.reshape(values.shape[0], -1, 8, 4 * per)
    return parts.transpose(1, 2, 0, 3).reshape(parts.shape[1], 8, -1).transpose(0, 2, 1)


def from_fragment_c(values: Array, rows: int, per: int) -> Array:
    """(registers, threads * per) elements as (warps, rows, 8)."""
    if per == 2:
        parts = values.reshape(rows // 8, -1, 8, 4, 2).transpose(1, 0, 2, 3, 4)
    else:
        parts = values.reshape(rows // 8, 2, -1, 8, 4).transpose(2, 0, 3, 4, 1)
    return parts.reshape(-1, rows, 8)


def to_fragment_c(matrix: Array, per: int) -> Array:
    """The inverse: (registers, threads * per)."""
    high = matrix.shape[1] // 8
    parts = matrix.reshape(-1, high, 8, 4, 2)
    if per == 2:
        return np.ascontiguousarray(parts.transpose(1, 0, 2, 3, 4)).reshape(high, -1)
    return np.ascontiguousarray(parts.transpose(1, 4, 0, 2, 3)).reshape(2 * high, -1)


@dataclass
class Shape:
    rows: int
    columns: int
    depth: int


@instruction("mma")
def _mma(d: Decoder, ins: Instruction) -> Step:
    if "sp" in ins.mods or any("::" in m for m in ins.mods) or "sync" not in ins.mods:
        raise Unknown("this form of mma")
    match = next(m for m in map(_SHAPE.match, ins.mods) if m)
    shape = Shape(int(match[1]), int(match[2]), int(match[3]))
    result, first, second, sums = ins.mods[-4:]
    wanted = (shape.rows, shape.columns, shape.depth)
    if any(wanted not in _SHAPES.get(k, ()) for k in (first, second)) or "row.col" not in ins.op:
        raise Unknown("a shape of mma")
    return _Mma(d, ins, shape, (result, first, second, sums)).run


class _Mma:
    def __init__(self, d: Decoder, ins: Instruction, shape: Shape, kinds: tuple[str, str, str, str]) -> None:
        self.shape = shape
        result, first, second, sums = kinds
        into, a, b, c = (d.vector(o) for o in ins.operands)
        self.saturate = "satfinite" in ins.mods
        self.first, self.second = np.dtype(_INPUTS[first]), np.dtype(_INPUTS[second])
        self.wide = first == "f64"
        register = "b64" if self.wide else "b32"
        per = 1 if self.wide else 4 // self.first.itemsize
        self.a = [d.slot(o, register) for o in a]
        self.b = [d.slot(o, register) for o in b]
        self.c = [d.slot(o, register) for o in c]
        self.into = [d.dest(o, register) for o in into]
        self.per = per
        self.sums, self.result = _accumulator(sums), _accumulator(result)
        self.per_c, self.per_d = 1 + (sums == "f16"), 1 + (result == "f16")
        self._check_registers(per)
        self.key_a, self.key_b = f"A {first} {shape}", f"B {second} {shape}"
        self.widen_a, self.widen_b = _widener(first), _widener(second)

    def _check_registers(self, per: int) -> None:
        shape = self.shape
        wanted = (shape.rows * shape.depth // WARP // per, shape.depth * 8 // WARP // per)
        if (len(self.a), len(self.b)) != wanted:
            raise Unknown(f"{len(self.a)} and {len(self.b)} registers, not {wanted[0]} and {wanted[1]}")
        for slots, kind in ((self.c, self.sums), (self.into, self.result)):
            if len(slots) * WARP * max(4 // kind.itemsize, 1) != shape.rows * 8:
                raise Unknown("a wrong number of registers of the accumulator")

    def run(self, R: Any, m: Mask | None) -> None:
        warps = whole_warps(R, m)
        a = R.chunk.fragments.get(R, warps, self.a, self.key_a, self._matrix_a)
        b = R.chunk.fragments.get(R, warps, self.b, self.key_b, self._matrix_b)
        rows = self.shape.rows
        c = from_fragment_c(words_of(R, warps, self.c).view(self.sums), rows, self.per_c)
        total = self._sum(np.matmul(a, b), c)
        unsigned = np.uint64 if self.wide else np.uint32
        words = to_fragment_c(total, self.per_d).view(unsigned)
        for i, slot in enumerate(self.into):
            put_warps(R, m, warps, slot, words[i])

    def _matrix_a(self, words: Array) -> Array:
        return matrix_a(self.widen_a(words), self.shape.rows, self.per)

    def _matrix_b(self, words: Array) -> Array:
        return matrix_b(self.widen_b(words), self.per)

    def _sum(self, product: Array, c: Array) -> Array:
        if self.result.kind == "i":
            total = product.astype(np.int64) + c
            if self.saturate:
                total = np.clip(total, -(2**31), 2**31 - 1)
            return total.astype(np.int32)
        if self.result == half.F16:
            return half.narrow(product + c.astype(np.float32), "f16").view(np.float16)
        return (product + c).astype(self.result)


def _accumulator(kind: str) -> np.dtype[Any]:
    known = {"f16": np.float16, "f32": np.float32, "f64": np.float64, "s32": np.int32}
    if kind not in known:
        raise Unknown(f"an accumulator of type .{kind}")
    return np.dtype(known[kind])


def _widener(kind: str) -> Change:
    """From registers to f32 or f64, in which products and short sums lose nothing that the hardware keeps."""
    if kind == "tf32":
        return lambda words: (words & np.uint32(0xFFFFE000)).view(np.float32)  # it reads 19 of the 32 bits
    if kind == "f16":
        return lambda words: half.widen_f16(words.view(np.uint16))
    if kind == "bf16":
        return lambda words: (words.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    wide = np.float32 if kind in ("e4m3", "e5m2") else np.float64
    return lambda words: words.view(_INPUTS[kind]).astype(wide)
