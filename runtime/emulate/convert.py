"""cvt: between all types, with rounding, saturation and flushing."""

from __future__ import annotations

from typing import Any

import numpy as np
from weft.runtime.emulate import half, rounding
from weft.runtime.emulate.floating import flush, saturate
from weft.runtime.emulate.program import Decoder, Step, Unknown, instruction, view_of
from weft.runtime.emulate.ptx_ast import SIZES, Instruction, Operand
from weft.runtime.emulate.steps import assign, elementwise

Array = Any
_FLOATS = ("f16", "bf16", "f32", "f64")
_INTEGRAL = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


@instruction("cvt")
def _cvt(d: Decoder, ins: Instruction) -> Step:
    result, source = ins.mods[-2], ins.mods[-1]
    if "pack" in ins.mods:
        return _pack_integers(d, ins)
    if result == "tf32":
        return _tf32(d, ins)
    if result.endswith("x2") or source.endswith("x2"):
        return _pairs(d, ins, result, source)
    if result not in view_names() or source not in view_names():
        raise Unknown(f"a conversion from .{source} to .{result}")
    return _scalar(d, ins, result, source)


def view_names() -> set[str]:
    return {n for n in SIZES if n not in ("b128", "pred", "tf32", "f16x2", "bf16x2")}


def read(R: Any, slot: int, kind: str) -> Array:
    """A register's low part as a value of a type that may be narrower than the register."""
    x = R[slot]
    size = SIZES[kind]
    if x.dtype.itemsize != size:
        x = x.astype(f"u{size}")
    return x.view(view_of(kind))


def widen_to(value: Array, register_bytes: int) -> Array:
    """A value for a register: extended by its sign where it is signed and the register is wider."""
    if value.dtype.itemsize != register_bytes:
        if value.dtype.kind not in "iu":
            value = value.view(f"u{value.dtype.itemsize}")
        value = value.astype(f"{value.dtype.kind}{register_bytes}")
    return value.view(f"u{register_bytes}")


def _scalar(d: Decoder, ins: Instruction, result: str, source: str) -> Step:
    dst, operand = ins.operands
    slot, target = d.loose(operand, source), d.dest(dst)
    size = SIZES[getattr(dst, "type", result)]
    if size < SIZES[result]:
        raise Unknown("a destination narrower than the result")
    convert = _converter(ins, result, source)

    def run(R: Any, m: Any) -> None:
        assign(R, m, target, widen_to(convert(read(R, slot, source)), size))

    return run


def _converter(ins: Instruction, result: str, source: str) -> Any:
    ftz, sat = "ftz" in ins.mods, "sat" in ins.mods
    mode = next((m for m in ins.mods if m in ("rn", "rz", "rm", "rp", "rna", *_INTEGRAL)), None)
    to_float, from_float = result in _FLOATS, source in _FLOATS
    if from_float and to_float:
        relu = "relu" in ins.mods
        return lambda x: _float_to_float(x, result, mode, ftz, sat, relu)
    if from_float:
        if mode not in _INTEGRAL:
            raise Unknown("a conversion to an integer without integer rounding")
        return lambda x: float_to_integer(flush(x) if ftz and source == "f32" else x, result, mode)
    if to_float:
        return lambda x: _sat_float(integer_to_float(x, result, mode or "rn"), sat)
    return lambda x: _integer_to_integer(x, result, sat)


def _sat_float(x: Array, sat: bool) -> Array:
    if not sat:
        return x
    return saturate(x.astype(np.float32)).astype(x.dtype) if x.dtype.itemsize == 2 else saturate(x)


def _integer_to_integer(x: Array, result: str, sat: bool) -> Array:
    view = view_of(result)
    if sat:
        info, mine = np.iinfo(view), np.iinfo(x.dtype)
        low, high = max(info.min, mine.min), min(info.max, mine.max)
        x = np.clip(x, x.dtype.type(low), x.dtype.type(high))
    return x.astype(view)


def float_to_integer(x: Array, result: str, mode: str) -> Array:
    """Rounded and clamped to the range; NaN is 0, but the highest bit with 64 bits on either side."""
    view = view_of(result)
    info = np.iinfo(view)
    wide = x.astype(np.float64)
    rounded = _INTEGRAL[mode](wide)
    nan = np.isnan(wide)
    over, under = rounded >= np.float64(info.max), rounded <= np.float64(info.min)
    safe = np.where(nan | over | under, 0.0, rounded)
    value = safe.astype(view)
    value = np.where(over, view.type(info.max), np.where(under, view.type(info.min), value))
    invalid = view.type(0)
    if x.dtype == np.float64 or SIZES[result] == 8:
        invalid = np.array(1 << (SIZES[result] * 8 - 1), f"u{SIZES[result]}").view(view)
    return np.where(nan, invalid, value)


def integer_to_float(x: Array, result: str, mode: str) -> Array:
    if x.dtype.itemsize < 8:
        wide = x.astype(np.float64)
    elif mode == "rn" and result in ("f32", "f64"):
        return x.astype(view_of(result))
    else:
        high = (x >> x.dtype.type(32)).astype(np.float64) * 4294967296.0
        low = (x & x.dtype.type(0xFFFFFFFF)).astype(np.float64)
        if result == "f64":
            return rounding.add(high, low, mode)
        wide = rounding.round_to_odd(*rounding.two_sum(high, low))
    if result == "f64":
        return wide
    return rounding.narrow(wide, mode) if result == "f32" else _to_half(wide, result, mode)


def _float_to_float(x: Array, result: str, mode: str | None, ftz: bool, sat: bool, relu: bool) -> Array:
    if ftz and x.dtype == np.float32:
        x = flush(x)
    if mode in _INTEGRAL:
        wide = x.astype(np.float32) if x.dtype.itemsize == 2 else x
        value = _INTEGRAL[mode](wide).astype(view_of(result))
    elif result in ("f16", "bf16"):
        value = _to_half(x.astype(np.float64), result, mode or "rn")
    elif result == "f32" and x.dtype == np.float64:
        value = rounding.narrow(x, mode or "rn")
    else:
        value = x.astype(view_of(result))
    if ftz and result == "f32":
        value = flush(value)
    value = _sat_float(value, sat)
    if relu:
        wide = value.astype(np.float32)
        value = np.where(np.isnan(wide) | (wide > 0), value, value.dtype.type(0))
    return value


def _to_half(x: Array, result: str, mode: str) -> Array:
    view = view_of(result)
    near = half.narrow(x, result)
    if mode in ("rn", "rna"):
        return near.view(view)
    back = near.view(view).astype(np.float64)
    overflow = np.isinf(back) & np.isfinite(x)
    magnitude = near & np.uint16(0x7FFF)
    beyond, short = (np.abs(back) > np.abs(x)) | overflow, np.abs(back) < np.abs(x)
    sign = near & np.uint16(0x8000)
    if mode == "rz":
        move = np.where(beyond, -1, 0)
    else:
        outwards = ~np.signbit(x) if mode == "rp" else np.signbit(x)
        move = np.where(outwards, np.where(short, 1, 0), np.where(beyond, -1, 0))
    moved = (magnitude.astype(np.int32) + move).astype(np.uint16) | sign
    return np.where(np.isfinite(x), moved, near).view(view)


def _tf32(d: Decoder, ins: Instruction) -> Step:
    """f32 with ten bits of fraction, rounded to nearest: ties away from zero (rna) or to even (rn)."""
    away = "rna" in ins.mods

    def fn(x: Array) -> Array:
        bits = x.view(np.uint32)
        bump = np.uint32(0x1000) if away else np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))
        rounded = (bits + bump) & np.uint32(0xFFFFE000)
        return np.where(np.isfinite(x), rounded, bits)

    return elementwise(d, fn, "b32", ins.operands[0], (ins.operands[1], "f32"))


def _pairs(d: Decoder, ins: Instruction, result: str, source: str) -> Step:
    if result not in ("f16x2", "bf16x2") or source != "f32":
        from weft.runtime.emulate.small_floats import convert_small

        return convert_small(d, ins, result, source)
    mode = next((m for m in ins.mods if m in ("rn", "rz")), "rn")
    single, relu = result.removesuffix("x2"), "relu" in ins.mods

    def fn(high: Array, low: Array) -> Array:
        parts = [_float_to_float(x, single, mode, False, False, relu).view(np.uint16) for x in (low, high)]
        return half.join(*parts)

    dst, a, b = ins.operands
    return elementwise(d, fn, "b32", dst, (a, "f32"), (b, "f32"))


def _pack_integers(d: Decoder, ins: Instruction) -> Step:
    """cvt.pack.sat: two integers clamped, in the low half or byte pair, the third operand above."""
    kinds = [m for m in ins.mods if m not in ("pack", "sat")]
    small = kinds[0]
    width = int(small[1:])
    low, high = (-(1 << width - 1), (1 << width - 1) - 1) if small[0] == "s" else (0, (1 << width) - 1)

    def fn(a: Array, b: Array, *c: Array) -> Array:
        parts = [np.clip(x.astype(np.int64), low, high) & ((1 << width) - 1) for x in (b, a)]
        value = parts[0] | (parts[1] << width)
        if c:
            value = value | (c[0].astype(np.int64) << 2 * width)
        return value.astype(np.uint32)

    dst, a, b, *c = ins.operands
    sources: list[tuple[Operand, str]] = [(a, "s32"), (b, "s32"), *[(o, "b32") for o in c]]
    return elementwise(d, fn, "b32", dst, *sources)
