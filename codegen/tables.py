"""Tables of sixteen f32 values looked up in registers, as each target does it best."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from weft.codegen.llvm import reg_type
from weft.ir import types as T
from weft.ir.types import DType

if TYPE_CHECKING:
    from weft.codegen.emit import Reg, VectorBuilder


def lookup(b: VectorBuilder, values: list[str], index: Reg, dtype: DType) -> Reg:
    """``values[index mod 16]``; ``values`` are literals of f32, the index an i32 of any value."""
    assert dtype is T.f32 and len(values) == 16
    target, lanes = b.target, index.lanes
    features = target.features.split(",") if target else []
    if lanes == 16 and target is not None and target.masked:
        return _permute(b, "llvm.x86.avx512.permvar.sf.512", values, index)
    if lanes in (0, 8) and "+avx2" in features:
        return _two_halves(b, values, index)
    if lanes == 4 and target is not None and target.architecture == "aarch64":
        return _bytes(b, values, index)
    return _tree(b, values, index)


def _vector(values: list[str], ty: str) -> str:
    return "<" + ", ".join(f"{ty} {v}" for v in values) + ">"


def _permute(b: VectorBuilder, name: str, values: list[str], index: Reg) -> Reg:
    """One permutation of as many values as there are lanes."""
    t, i = reg_type(T.f32, index.lanes), reg_type(T.i32, index.lanes)
    order = f"{i} {index.text}"
    data = f"{t} {_vector(values, 'float')}"
    b.fn.declares.add(f"declare {t} @{name}({t}, {i})")
    return b.emit(f"call {t} @{name}({data}, {order})", T.f32, index.lanes, index.depth)


def _two_halves(b: VectorBuilder, values: list[str], index: Reg) -> Reg:
    """Two permutations of eight values; bit 3 of the index, moved to the sign, chooses. A scalar takes part
    as one lane.
    """
    wide = index if index.lanes else b.splat(index, 8)
    low, high = (_permute(b, "llvm.x86.avx2.permps", values[k : k + 8], wide) for k in (0, 8))
    upper = b.compare("lt", b.binary("shl", wide, b.const(28, T.i32)), b.const(0, T.i32))
    out = b.select(upper, high, low)
    if index.lanes:
        return out
    return b.emit(f"extractelement <8 x float> {out.text}, i64 0", T.f32, 0, index.depth)


def _bytes(b: VectorBuilder, values: list[str], index: Reg) -> Reg:
    """NEON's table of 64 bytes: four bytes are looked up per lane."""
    first = b.binary("and", index, b.const(15, T.i32))
    spread = b.binary("mul", first, b.const(0x04040404, T.i32))
    at = b.binary("add", spread, b.const(0x03020100, T.i32))
    v, name = "<16 x i8>", "llvm.aarch64.neon.tbl4.v16i8"
    order = b.emit(f"bitcast <4 x i32> {at.text} to {v}", T.u8, 16, index.depth)
    data = b"".join(struct.pack("<f", struct.unpack(">d", bytes.fromhex(x[2:]))[0]) for x in values)
    parts = [_vector([str(byte) for byte in data[k : k + 16]], "i8") for k in (0, 16, 32, 48)]
    b.fn.declares.add(f"declare {v} @{name}({', '.join([v] * 5)})")
    args = ", ".join(f"{v} {p}" for p in [*parts, order.text])
    found = b.emit(f"call {v} @{name}({args})", T.u8, 16, index.depth)
    return b.emit(f"bitcast {v} {found.text} to <4 x float>", T.f32, 4, index.depth)


def _tree(b: VectorBuilder, values: list[str], index: Reg) -> Reg:
    """Fifteen selections, by the bits of the index from the lowest on."""
    from weft.codegen.emit import Reg

    level = [Reg(v, T.f32, 0, 0, v) for v in values]
    for bit in range(4):
        place = b.const(1 << bit, T.i32)
        odd = b.compare("ne", b.binary("and", index, place), b.const(0, T.i32))
        level = [b.select(odd, level[k + 1], level[k]) for k in range(0, len(level), 2)]
    return level[0]
