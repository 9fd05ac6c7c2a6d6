"""Integer arithmetic: add, sub, mul, mad, div, rem, min, max, abs, neg, sad, and the carry chain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from weft.runtime.emulate.program import Decoder, Step, Unknown, instruction
from weft.runtime.emulate.ptx_ast import SIZES, Instruction, Reg
from weft.runtime.emulate.steps import assign, elementwise

Array = Any
_WIDER = {"u8": "u16", "s8": "s16", "u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}
_U64 = np.uint64
_LOW = _U64(0xFFFFFFFF)
_HALF = _U64(32)


def is_float(kind: str) -> bool:
    return kind in ("f16", "f16x2", "bf16", "bf16x2", "f32", "f64")


def _halves(fn: Callable[..., Array], half: Any) -> Callable[..., Array]:
    """``fn`` on the two 16-bit halves of 32-bit values."""

    def run(*operands: Array) -> Array:
        low = fn(*[_part(x, 0).view(half) for x in operands]).view(np.uint16)
        high = fn(*[_part(x, 16).view(half) for x in operands]).view(np.uint16)
        return low.astype(np.uint32) | (high.astype(np.uint32) << np.uint32(16))

    return run


def _part(x: Array, shift: int) -> Array:
    return (x >> np.uint32(shift)).astype(np.uint16)


def _saturated(fn: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    def run(a: Array, b: Array) -> Array:
        return np.clip(fn(a.astype(np.int64), b.astype(np.int64)), -(2**31), 2**31 - 1).astype(np.int32)

    return run


def mul_hi(a: Array, b: Array) -> Array:
    """The upper half of the product, of arrays of one integer type."""
    bits = a.dtype.itemsize * 8
    if bits < 64:
        wide = np.int64 if a.dtype.kind == "i" else np.uint64
        return ((a.astype(wide) * b.astype(wide)) >> wide(bits)).astype(a.dtype)
    if a.dtype.kind == "u":
        return _mul_hi_u64(a, b)
    high = _mul_hi_u64(a.view(_U64), b.view(_U64)).view(np.int64)
    return high - np.where(a < 0, b, 0) - np.where(b < 0, a, 0)


def _mul_hi_u64(a: Array, b: Array) -> Array:
    al, ah, bl, bh = a & _LOW, a >> _HALF, b & _LOW, b >> _HALF
    middle = (al * bl >> _HALF) + (ah * bl & _LOW) + (al * bh & _LOW)
    return ah * bh + (ah * bl >> _HALF) + (al * bh >> _HALF) + (middle >> _HALF)


def divide(a: Array, b: Array) -> Array:
    """The quotient towards zero; all ones for a division by zero."""
    zero = b == 0
    safe = np.where(zero, b.dtype.type(1), b)
    if a.dtype.kind == "u":
        return np.where(zero, np.array(-1).astype(a.dtype), a // safe)
    quotient = _magnitude(a) // _magnitude(safe)
    signed = quotient.view(a.dtype)
    return np.where(zero, a.dtype.type(-1), np.where((a < 0) != (b < 0), -signed, signed))


def remainder(a: Array, b: Array) -> Array:
    """The remainder of ``divide``, with the dividend's sign; the dividend for a division by zero."""
    return np.where(b == 0, a, a - divide(a, b) * b)


def _magnitude(x: Array) -> Array:
    unsigned = np.dtype(f"u{x.dtype.itemsize}")
    return np.where(x < 0, -x, x).view(unsigned)


def _mul24(a: Array, b: Array, high: bool) -> Array:
    shift = np.int64(40)
    x, y = (a.astype(np.int64) << shift) >> shift, (b.astype(np.int64) << shift) >> shift
    if a.dtype.kind == "u":
        x, y = x & np.int64(0xFFFFFF), y & np.int64(0xFFFFFF)
    product = x * y
    return (product >> np.int64(16) if high else product).astype(a.dtype)


def _rectified(fn: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    return lambda a, b: np.maximum(fn(a, b), a.dtype.type(0))


_SIMPLE: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "div": divide,
    "rem": remainder,
    "min": np.minimum,
    "max": np.maximum,
    "neg": np.negative,
    "abs": np.abs,
}


@instruction("rem")
def arithmetic(d: Decoder, ins: Instruction) -> Step:
    """add, sub, div, rem, min, max, neg and abs of integer types."""
    kind = ins.mods[-1]
    fn = _SIMPLE[ins.base]
    if "cc" in ins.mods:
        return _carry(d, ins)
    if "sat" in ins.mods:
        if kind != "s32":
            raise Unknown("saturation of a type other than .s32")
        fn = _saturated(fn)
    if "relu" in ins.mods:
        fn = _rectified(fn)
    if kind in ("u16x2", "s16x2"):
        fn, kind = _halves(fn, np.uint16 if kind[0] == "u" else np.int16), "b32"
    return elementwise(d, fn, kind, ins.operands[0], *[(o, kind) for o in ins.operands[1:]])


def integer_mul(d: Decoder, ins: Instruction) -> Step:
    kind, fn = ins.mods[-1], _product(ins)
    result = _WIDER[kind] if "wide" in ins.mods else kind
    return elementwise(d, fn, result, *_first(ins), *[(o, kind) for o in ins.operands[1:]])


def _first(ins: Instruction) -> tuple[Any]:
    return (ins.operands[0],)


def _product(ins: Instruction) -> Callable[[Array, Array], Array]:
    if "wide" in ins.mods:
        return _wide
    if "hi" in ins.mods:
        return mul_hi
    return np.multiply


def _wide(a: Array, b: Array) -> Array:
    wide = np.dtype(f"{a.dtype.kind}{a.dtype.itemsize * 2}")
    return a.astype(wide) * b.astype(wide)


@instruction("mad")
def _mad(d: Decoder, ins: Instruction) -> Step:
    kind = ins.mods[-1]
    if is_float(kind):
        from weft.runtime.emulate.floating import fused

        return fused(d, ins)
    if "cc" in ins.mods:
        return _carry(d, ins)
    product = _product(ins)
    result = _WIDER[kind] if "wide" in ins.mods else kind
    dst, a, b, c = ins.operands
    if "sat" in ins.mods:

        def saturating(x: Array, y: Array, z: Array) -> Array:
            return _saturated(np.add)(mul_hi(x, y), z)

        return elementwise(d, saturating, result, dst, (a, kind), (b, kind), (c, kind))
    return elementwise(d, lambda x, y, z: product(x, y) + z, result, dst, (a, kind), (b, kind), (c, result))


@instruction("mul24")
def _mul24_step(d: Decoder, ins: Instruction) -> Step:
    kind, high = ins.mods[-1], "hi" in ins.mods
    dst, a, b = ins.operands
    return elementwise(d, lambda x, y: _mul24(x, y, high), kind, dst, (a, kind), (b, kind))


@instruction("mad24")
def _mad24_step(d: Decoder, ins: Instruction) -> Step:
    kind, high = ins.mods[-1], "hi" in ins.mods
    if "sat" in ins.mods:
        raise Unknown("saturation")
    dst, *sources = ins.operands
    return elementwise(d, lambda x, y, z: _mul24(x, y, high) + z, kind, dst, *[(o, kind) for o in sources])


@instruction("sad")
def _sad(d: Decoder, ins: Instruction) -> Step:
    kind = ins.mods[-1]
    unsigned = "u" + kind[1:]

    def fn(a: Array, b: Array, c: Array) -> Array:
        return c + (np.maximum(a, b) - np.minimum(a, b))

    dst, a, b, c = ins.operands
    if kind == unsigned:
        return elementwise(d, fn, kind, dst, (a, kind), (b, kind), (c, kind))
    return elementwise(
        d, lambda x, y, z: z + (np.maximum(x, y) - np.minimum(x, y)).view(z.dtype), unsigned, dst, (a, kind),
        (b, kind), (c, unsigned),
    )  # fmt: skip


# dot products of bytes and halves


@instruction("dp4a", "dp2a")
def _dot(d: Decoder, ins: Instruction) -> Step:
    first, second = ins.mods[-2], ins.mods[-1]
    if ins.base == "dp4a":
        lanes = [(8 * i, 8, 8 * i) for i in range(4)]
    else:
        at = 16 if "hi" in ins.mods else 0
        lanes = [(16 * i, 16, at + 8 * i) for i in range(2)]

    def fn(a: Array, b: Array, c: Array) -> Array:
        total = c.view(np.int32).astype(np.int64)
        for left, width, right in lanes:
            x, y = _field(a, left, width, first), _field(b, right, 8, second)
            total = total + x * y
        return total.astype(np.uint32)

    dst, a, b, c = ins.operands
    return elementwise(d, fn, "b32", dst, (a, "b32"), (b, "b32"), (c, "b32"))


def _field(x: Array, at: int, width: int, kind: str) -> Array:
    value = (x.astype(np.int64) >> np.int64(at)) & np.int64((1 << width) - 1)
    if kind[0] == "s":
        sign = np.int64(1 << (width - 1))
        value = (value ^ sign) - sign
    return value


# the carry flag is a register of its own


def _carry_slot(d: Decoder) -> int:
    return d.register(Reg("CC.CF", "pred"))


def _carry(d: Decoder, ins: Instruction) -> Step:
    """add, sub and mad that write the carry (``.cc``), and their successors that read it."""
    kind = "u" + ins.mods[-1][1:]
    base, out = ins.base.rstrip("c"), "cc" in ins.mods
    reads = ins.base in ("addc", "subc", "madc")
    flag, dst = _carry_slot(d), d.dest(ins.operands[0], kind)
    slots = [d.slot(o, kind) for o in ins.operands[1:]]
    high, signed = "hi" in ins.mods, ins.mods[-1][0] == "s"
    bits = SIZES[kind] * 8

    def run(R: Any, m: Any) -> None:
        operands = [R[s] for s in slots]
        carry = R[flag].astype(operands[0].dtype) if reads else operands[0].dtype.type(0)
        if base == "mad":
            x, y, other = operands
            one = _high_half(x, y, signed, bits) if high else x * y
        else:
            one, other = operands
        if base == "sub":
            partial = one - other
            value = partial - carry
            after = (one < other) | (partial < carry)
        else:
            partial = one + other
            value = partial + carry
            after = (partial < one) | (value < partial)
        assign(R, m, dst, value)
        if out:
            assign(R, m, flag, after)

    return run


def _high_half(x: Array, y: Array, signed: bool, bits: int) -> Array:
    if not signed:
        return mul_hi(x, y)
    kind = np.dtype(f"i{bits // 8}")
    return mul_hi(x.view(kind), y.view(kind)).view(x.dtype)


@instruction("addc", "subc", "madc")
def _with_carry(d: Decoder, ins: Instruction) -> Step:
    return _carry(d, ins)
