"""mma.sync: products of small matrices that lie in the registers of a warp.

With g = lane / 4, t = lane % 4 and p elements in a register (1 of 32 or 64 bits, 2 of 16, 4 of 8), element e
of register r of a thread is, in every shape ("Matrix Fragments for mma", PTX ISA):

    A, 16 rows: row g + 8 (r % 2), column t p + e + 4 p (r / 2);   A, 8 rows: row g, column t p + e + 4 p r
    B: row t p + e + 4 p r, column g
    C and D, with i the number of an element: row g + 8 (i / 2), column 2 t + i % 2
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from weft.runtime.emulate import half
from weft.runtime.emulate.chunk import WARP
from weft.runtime.emulate.masks import Mask, full
from weft.runtime.emulate.memory import Fault
from weft.runtime.emulate.program import Decoder, Step, Unknown, instruction
from weft.runtime.emulate.ptx_ast import Instruction
from weft.runtime.emulate.steps import assign

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


def fragment_a(rows: int, depth: int, per: int) -> Array:
    """For each element of A, row by row, its place in the registers of a warp: (register, lane, part)."""
    row, k = np.divmod(np.arange(rows * depth), depth)
    high, k = np.divmod(k, 4 * per)
    register = 2 * high + row // 8 if rows == 16 else high
    return (register * WARP + (row % 8) * 4 + k // per) * per + k % per


def fragment_b(depth: int, per: int) -> Array:
    k, column = np.divmod(np.arange(depth * 8), 8)
    register, k = np.divmod(k, 4 * per)
    return (register * WARP + column * 4 + k // per) * per + k % per


def fragment_c(rows: int, per: int) -> Array:
    row, column = np.divmod(np.arange(rows * 8), 8)
    number = 2 * (row // 8) + column % 2
    return (number // per * WARP + (row % 8) * 4 + column // 2) * per + number % per


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
        self.at_a = fragment_a(shape.rows, shape.depth, per)
        self.at_b = fragment_b(shape.depth, per)
        self.sums, self.result = _accumulator(sums), _accumulator(result)
        self.at_c = fragment_c(shape.rows, 2 if sums == "f16" else 1)
        self.at_d = fragment_c(shape.rows, 2 if result == "f16" else 1)
        self._check_registers(per)
        self.rounded = _truncate_tf32 if first == "tf32" else None

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
        a = gather(R, warps, self.a, self.first, self.at_a, self.rounded)
        b = gather(R, warps, self.b, self.second, self.at_b, self.rounded)
        c = gather(R, warps, self.c, self.sums, self.at_c, None)
        shape = self.shape
        product = np.matmul(_wide(a).reshape(-1, shape.rows, shape.depth),
                            _wide(b).reshape(-1, shape.depth, shape.columns))  # fmt: skip
        total = self._sum(product.reshape(c.shape), c)
        words = np.empty(total.shape, total.dtype)
        words[:, self.at_d] = total
        unsigned = np.uint64 if self.wide else np.uint32
        words = words.view(unsigned).reshape(total.shape[0], len(self.into), WARP)
        for i, slot in enumerate(self.into):
            put_warps(R, m, warps, slot, words[:, i])

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


def _wide(x: Array) -> Array:
    """Inputs as floats whose products and short sums lose nothing that the hardware keeps."""
    if x.dtype.kind in "iu" or x.dtype == np.float64:
        return x.astype(np.float64)
    return x.astype(np.float32)


def _truncate_tf32(x: Array) -> Array:
    """The hardware reads 19 of the 32 bits."""
    return (x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


# warps as a whole


def whole_warps(R: Any, m: Mask | None) -> Array | None:
    """The warps that execute an aligned instruction, None for all. Fault where a warp is divided."""
    if m is None:
        return None
    bits = m.bits.reshape(-1, WARP)
    some, every = bits.any(axis=1), bits.all(axis=1)
    if (some != every).any():
        warp = int(np.argmax(some != every))
        lane = warp * WARP + int(np.argmax(bits[warp]))
        raise Fault("an instruction of whole warps that not all threads of the warp execute", lane)
    return np.flatnonzero(every)


def gather(
    R: Any,
    warps: Array | None,
    slots: list[int],
    kind: Any,
    at: Array,
    change: Callable[[Array], Array] | None,
) -> Array:
    """The elements of a matrix, in its order, for each warp."""
    rows = [full(R, R[slot]).reshape(-1, WARP) for slot in slots]
    if warps is not None:
        rows = [row[warps] for row in rows]
    values = np.stack(rows, axis=1).reshape(rows[0].shape[0], -1).view(kind)
    values = change(values) if change is not None else values
    return values[:, at]


def put_warps(R: Any, m: Mask | None, warps: Array | None, slot: int, values: Array) -> None:
    """Set a register in whole warps to rows of values."""
    if warps is None:
        R[slot] = np.ascontiguousarray(values).reshape(-1)
        return
    everyone = np.zeros((R.chunk.warps, WARP), values.dtype)
    everyone[warps] = values
    assign(R, m, slot, everyone.reshape(-1))
