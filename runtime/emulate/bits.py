"""Bits: logic, shifts, fields, counts and permutations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from weft.runtime.emulate.program import Decoder, Step, Unknown, instruction
from weft.runtime.emulate.ptx_ast import SIZES, Imm, Instruction, Pair, Vector
from weft.runtime.emulate.steps import assign, elementwise

Array = Any
_U32 = np.uint32


@instruction("and", "or", "xor")
def _logic(d: Decoder, ins: Instruction) -> Step:
    kind = ins.mods[-1]
    fn = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[ins.base]
    dst, a, b = ins.operands
    return elementwise(d, fn, kind, dst, (a, kind), (b, kind))


@instruction("not")
def _not(d: Decoder, ins: Instruction) -> Step:
    kind = ins.mods[-1]
    return elementwise(d, np.invert, kind, ins.operands[0], (ins.operands[1], kind))


@instruction("cnot")
def _cnot(d: Decoder, ins: Instruction) -> Step:
    kind = ins.mods[-1]
    return elementwise(d, lambda x: (x == 0).astype(x.dtype), kind, ins.operands[0], (ins.operands[1], kind))


def _shift_left(a: Array, amount: Array) -> Array:
    bits = a.dtype.itemsize * 8
    shifted = np.left_shift(a, np.minimum(amount, _U32(bits - 1)).astype(a.dtype))
    return np.where(amount >= bits, a.dtype.type(0), shifted)


def _shift_right(a: Array, amount: Array) -> Array:
    bits = a.dtype.itemsize * 8
    shifted = np.right_shift(a, np.minimum(amount, _U32(bits - 1)).astype(a.dtype))
    return shifted if a.dtype.kind == "i" else np.where(amount >= bits, a.dtype.type(0), shifted)


@instruction("shl", "shr")
def _shift(d: Decoder, ins: Instruction) -> Step:
    kind = ins.mods[-1]
    dst, a, b = ins.operands
    fn = _shift_left if ins.base == "shl" else _shift_right
    if isinstance(b, Imm) and 0 <= b.value < SIZES[kind] * 8:
        simple = np.left_shift if ins.base == "shl" else np.right_shift
        return elementwise(d, simple, kind, dst, (a, kind), (b, kind))
    return elementwise(d, fn, kind, dst, (a, kind), (b, "u32"))


@instruction("shf")
def _funnel(d: Decoder, ins: Instruction) -> Step:
    left, wrap = "l" in ins.mods, "wrap" in ins.mods

    def fn(low: Array, high: Array, amount: Array) -> Array:
        n = (amount & _U32(31) if wrap else np.minimum(amount, _U32(32))).astype(np.uint64)
        both = (high.astype(np.uint64) << np.uint64(32)) | low
        shifted = (both << n) >> np.uint64(32) if left else both >> n
        return shifted.astype(np.uint32)

    dst, a, b, c = ins.operands
    return elementwise(d, fn, "b32", dst, (a, "b32"), (b, "b32"), (c, "u32"))


def _ones(length: Array, dtype: Any) -> Array:
    """``length`` ones in the low bits."""
    bits = dtype.itemsize * 8
    full = np.invert(dtype.type(0))
    part = (dtype.type(1) << np.minimum(length, _U32(bits - 1)).astype(dtype)) - dtype.type(1)
    return np.where(length >= bits, full, part)


@instruction("bfe")
def _extract(d: Decoder, ins: Instruction) -> Step:
    kind = ins.mods[-1]
    unsigned, bits, signed = "u" + kind[1:], SIZES[kind] * 8, kind[0] == "s"

    def fn(a: Array, position: Array, length: Array) -> Array:
        position, length = position & _U32(255), length & _U32(255)
        ones = _ones(length, a.dtype)
        value = _shift_right(a, position) & ones
        if not signed:
            return value
        sign_at = np.minimum(position + length - _U32(1), _U32(bits - 1))
        sign: Any = (_shift_right(a, sign_at) & a.dtype.type(1)).astype(bool) & (length != 0)
        kept = np.where(position < bits, np.minimum(length, _U32(bits) - np.minimum(position, _U32(bits))), 0)
        return np.where(sign, value | ~_ones(kept.astype(_U32), a.dtype), value)

    dst, a, b, c = ins.operands
    return elementwise(d, fn, unsigned, dst, (a, unsigned), (b, "u32"), (c, "u32"))


@instruction("bfi")
def _insert(d: Decoder, ins: Instruction) -> Step:
    kind = ins.mods[-1]

    def fn(a: Array, b: Array, position: Array, length: Array) -> Array:
        position, length = position & _U32(255), length & _U32(255)
        ones = _ones(length, a.dtype)
        field = _shift_left(ones, position)
        return (_shift_left(a & ones, position) & field) | (b & ~field)

    dst, a, b, c, e = ins.operands
    return elementwise(d, fn, kind, dst, (a, kind), (b, kind), (c, "u32"), (e, "u32"))


@instruction("bmsk")
def _mask_bits(d: Decoder, ins: Instruction) -> Step:
    wrap = "wrap" in ins.mods

    def fn(a: Array, b: Array) -> Array:
        if wrap:
            a, b = a & _U32(31), b & _U32(31)
        return _shift_left(_ones(b, np.dtype(np.uint32)), a)

    dst, a, b = ins.operands
    return elementwise(d, fn, "b32", dst, (a, "u32"), (b, "u32"))


@instruction("szext")
def _extend(d: Decoder, ins: Instruction) -> Step:
    wrap, signed = "wrap" in ins.mods, ins.mods[-1] == "s32"

    def fn(a: Array, b: Array) -> Array:
        n = b & _U32(31) if wrap else b
        ones = _ones(n, np.dtype(np.uint32))
        if not signed:
            return a & ones
        top: Any = _shift_right(a, np.where(n == 0, _U32(0), n - _U32(1))) & _U32(1)
        extended: Any = a | ~ones
        return np.where(top.astype(bool) & (n != 0) & (n < 32), extended, a & ones)

    dst, a, b = ins.operands
    return elementwise(d, fn, "u32", dst, (a, "u32"), (b, "u32"))


def _leading(x: Array) -> Array:
    """The number of the highest bit that is set, -1 for none."""
    found = np.full(x.shape, -1, np.int64)
    value = x.copy()
    bits = x.dtype.itemsize * 8
    step = bits // 2
    at = np.zeros(x.shape, np.int64)
    while step:
        upper = value >> x.dtype.type(step)
        has = upper != 0
        at = np.where(has, at + step, at)
        value = np.where(has, upper, value)
        step //= 2
    return np.where(x != 0, at, found)


@instruction("popc", "clz")
def _count(d: Decoder, ins: Instruction) -> Step:
    kind = ins.mods[-1]
    bits = SIZES[kind] * 8

    def leading_zeros(x: Array) -> Array:
        return bits - 1 - _leading(x)

    count = np.bitwise_count if ins.base == "popc" else leading_zeros
    dst, a = ins.operands
    return elementwise(d, lambda x: count(x).astype(np.uint32), "u32", dst, (a, kind))


@instruction("bfind")
def _find(d: Decoder, ins: Instruction) -> Step:
    kind, shift = ins.mods[-1], "shiftamt" in ins.mods
    unsigned, signed, bits = "u" + kind[1:], kind[0] == "s", SIZES[kind] * 8

    def fn(x: Array) -> Array:
        if signed:
            x = np.where(x >> x.dtype.type(bits - 1) != 0, ~x, x)
        at = _leading(x)
        if shift:
            at = np.where(at >= 0, bits - 1 - at, -1)
        return at.astype(np.uint32)

    return elementwise(d, fn, "u32", ins.operands[0], (ins.operands[1], unsigned))


@instruction("fns")
def _nth_set(d: Decoder, ins: Instruction) -> Step:
    """The n-th set bit from a base, upwards or downwards."""

    def one(mask: int, base: int, offset: int) -> int:
        base &= 31
        step = 1 if offset >= 0 else -1
        wanted, at = (offset if offset > 0 else -offset), base
        if offset == 0:
            return base if mask >> base & 1 else 0xFFFFFFFF
        while 0 <= at < 32:
            if mask >> at & 1:
                wanted -= 1
                if wanted == 0:
                    return at
            at += step
        return 0xFFFFFFFF

    every = np.vectorize(one, otypes=[np.uint32])
    dst, a, b, c = ins.operands
    return elementwise(d, every, "b32", dst, (a, "b32"), (b, "b32"), (c, "s32"))


@instruction("brev")
def _reverse(d: Decoder, ins: Instruction) -> Step:
    kind = ins.mods[-1]

    def fn(x: Array) -> Array:
        t = x.dtype.type
        for step, mask in ((1, 0x55), (2, 0x33), (4, 0x0F)):
            m = t(int.from_bytes(bytes([mask]) * x.dtype.itemsize, "little"))
            x = ((x >> t(step)) & m) | ((x & m) << t(step))
        return x.byteswap()

    return elementwise(d, fn, kind, ins.operands[0], (ins.operands[1], kind))


@instruction("lop3")
def _lop3(d: Decoder, ins: Instruction) -> Step:
    *dst, a, b, c, table = ins.operands[:5]
    if not isinstance(table, Imm) or "BoolOp" in ins.op or len(dst) != 1 or isinstance(dst[0], Pair):
        raise Unknown("this form of lop3")
    lut = table.value

    def fn(x: Array, y: Array, z: Array) -> Array:
        out = np.zeros_like(x & y & z)
        for row in range(8):
            if lut >> row & 1:
                out |= (x if row & 4 else ~x) & (y if row & 2 else ~y) & (z if row & 1 else ~z)
        return out

    return elementwise(d, fn, "b32", dst[0], (a, "b32"), (b, "b32"), (c, "b32"))


# the bytes chosen, from the lowest, by the two low bits s of the control
_PRMT_MODES: dict[str, Callable[[int], list[int]]] = {
    "f4e": lambda s: [s, s + 1, s + 2, s + 3],
    "b4e": lambda s: [s, (s + 7) % 8, (s + 6) % 8, (s + 5) % 8],
    "rc8": lambda s: [s, s, s, s],
    "ecl": lambda s: [max(i, s) for i in range(4)],
    "ecr": lambda s: [min(i, s) for i in range(4)],
    "rc16": lambda s: [2 * (s & 1), 2 * (s & 1) + 1] * 2,
}


@instruction("prmt")
def _permute(d: Decoder, ins: Instruction) -> Step:
    mode = ins.mods[-1] if ins.mods[-1] != "b32" else None
    rows = np.array([_PRMT_MODES[mode](s) for s in range(4)], np.uint32) if mode else None

    def fn(a: Array, b: Array, control: Array) -> Array:
        both = (b.astype(np.uint64) << np.uint64(32)) | a
        out: Any = np.zeros(np.broadcast_shapes(a.shape, b.shape, control.shape), np.uint32)
        for i in range(4):
            pick = rows[control & _U32(3), i] if rows is not None else (control >> _U32(4 * i)) & _U32(15)
            byte = (both >> ((pick & _U32(7)) * _U32(8)).astype(np.uint64)).astype(np.uint32) & _U32(255)
            if rows is None:
                byte = np.where(pick & _U32(8), (byte >> _U32(7)) * _U32(255), byte)
            out = out | (byte << _U32(8 * i)).astype(np.uint32)
        return out

    dst, a, b, c = ins.operands
    return elementwise(d, fn, "b32", dst, (a, "b32"), (b, "b32"), (c, "b32"))


# mov: packs and unpacks where an operand is a vector


def pack(d: Decoder, dst: Any, source: Vector, kind: str) -> Step:
    parts = len(source.items)
    part = f"b{SIZES[kind] * 8 // parts}"
    slots = [d.slot(o, part) for o in source.items]
    width, target, wide = SIZES[part] * 8, d.dest(dst, kind), np.dtype(f"u{SIZES[kind]}")

    def run(R: Any, m: Any) -> None:
        value = R[slots[0]].astype(wide)
        for i, slot in enumerate(slots[1:], 1):
            value = value | (R[slot].astype(wide) << wide.type(width * i))
        assign(R, m, target, value)

    return run


def unpack(d: Decoder, dst: Vector, source: Any, kind: str) -> Step:
    parts = len(dst.items)
    part = f"b{SIZES[kind] * 8 // parts}"
    targets = [d.dest(o, part) if not _sink(o) else None for o in dst.items]
    slot, width, narrow = d.slot(source, kind), SIZES[part] * 8, np.dtype(f"u{SIZES[part]}")

    def run(R: Any, m: Any) -> None:
        value = R[slot]
        for i, target in enumerate(targets):
            if target is not None:
                assign(R, m, target, (value >> value.dtype.type(width * i)).astype(narrow))

    return run


def _sink(operand: Any) -> bool:
    return getattr(operand, "name", "") == "_"
