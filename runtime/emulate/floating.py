"""Floating-point arithmetic of f32 and f64, and the instructions that integers and floats share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from weft.runtime.emulate import half, rounding
from weft.runtime.emulate.integer import arithmetic, integer_mul, is_float
from weft.runtime.emulate.program import Decoder, Step, Unknown, instruction
from weft.runtime.emulate.ptx_ast import Instruction
from weft.runtime.emulate.steps import elementwise

Array = Any
Function = Callable[..., Array]
_MODES = ("rn", "rz", "rm", "rp")
_NAN32 = np.uint32(0x7FFFFFFF).view(np.float32)
_NAN64 = np.uint64(0x7FF8000000000000).view(np.float64)


def mode_of(ins: Instruction) -> str:
    return next((m for m in ins.mods if m in _MODES), "rn")


def flush(x: Array) -> Array:
    """Subnormal numbers to zeros of their sign."""
    tiny = np.finfo(x.dtype).tiny if x.dtype.kind == "f" else x.dtype.type(2.0**-126)
    small = np.abs(x) < tiny
    return np.where(small, np.copysign(x.dtype.type(0), x), x) if small.any() else x


def modified(fn: Function, ins: Instruction) -> Function:
    """``fn`` with operands and results as ``.ftz``, ``.sat`` and ``.relu`` have them."""
    ftz, sat, relu = "ftz" in ins.mods, "sat" in ins.mods, "relu" in ins.mods
    if not (ftz or sat or relu):
        return fn

    def run(*operands: Array) -> Array:
        value = fn(*[flush(x) for x in operands] if ftz else operands)
        if ftz:
            value = flush(value)
        if sat:
            value = saturate(value)
        if relu:
            zero = value.dtype.type(0)
            value = np.where(np.isnan(value) | (value > zero), value, zero)
        return value

    return run


def saturate(value: Array) -> Array:
    """Into [0, 1], NaN to 0."""
    t = value.dtype.type
    return np.where(value > t(0), np.minimum(value, t(1)), t(0))


def _apply(d: Decoder, ins: Instruction, fn: Function) -> Step:
    kind = ins.mods[-1]
    dst, *sources = ins.operands
    if kind in half.KINDS:
        return half.elementwise_half(d, ins, fn, kind, dst, sources)
    if kind not in ("f32", "f64"):
        raise Unknown(f"type .{kind}")
    return elementwise(d, modified(fn, ins), kind, dst, *[(o, kind) for o in sources])


@instruction("add")
def _add(d: Decoder, ins: Instruction) -> Step:
    if not is_float(ins.mods[-1]):
        return arithmetic(d, ins)
    mode = mode_of(ins)
    return _apply(d, ins, np.add if mode == "rn" else lambda a, b: rounding.add(a, b, mode))


@instruction("sub")
def _sub(d: Decoder, ins: Instruction) -> Step:
    if not is_float(ins.mods[-1]):
        return arithmetic(d, ins)
    mode = mode_of(ins)
    return _apply(d, ins, np.subtract if mode == "rn" else lambda a, b: rounding.add(a, -b, mode))


@instruction("mul")
def _mul(d: Decoder, ins: Instruction) -> Step:
    if not is_float(ins.mods[-1]):
        return integer_mul(d, ins)
    mode = mode_of(ins)
    return _apply(d, ins, np.multiply if mode == "rn" else lambda a, b: rounding.multiply(a, b, mode))


@instruction("fma")
def fused(d: Decoder, ins: Instruction) -> Step:
    if ins.mods[-1] in half.KINDS:
        return _apply(d, ins, half.FMA)
    mode = mode_of(ins)
    return _apply(d, ins, lambda a, b, c: rounding.fma(a, b, c, mode))


@instruction("div")
def _div(d: Decoder, ins: Instruction) -> Step:
    if not is_float(ins.mods[-1]):
        return arithmetic(d, ins)
    mode = mode_of(ins)
    if "approx" in ins.mods:
        return _apply(d, ins, _divide_approximately)
    return _apply(d, ins, np.divide if mode == "rn" else lambda a, b: rounding.divide(a, b, mode))


def _divide_approximately(a: Array, b: Array) -> Array:
    """a * (1 / b): 0 for |b| beyond 2^126, as documented."""
    reciprocal = (1.0 / b.astype(np.float64)).astype(np.float32)
    huge = (np.abs(b) > np.float32(2.0**126)) & np.isfinite(b)
    return np.where(huge, np.where(np.isinf(a), np.float32(np.nan), a * np.float32(0)), a * reciprocal)


def minimum(a: Array, b: Array) -> Array:
    """The other where one is NaN; -0 is less than +0."""
    smaller = np.where((a < b) | ((a == b) & np.signbit(a)), a, b)
    return _quiet(np.where(np.isnan(b), a, np.where(np.isnan(a), b, smaller)))


def maximum(a: Array, b: Array) -> Array:
    larger = np.where((a > b) | ((a == b) & ~np.signbit(a)), a, b)
    return _quiet(np.where(np.isnan(b), a, np.where(np.isnan(a), b, larger)))


def _quiet(x: Array) -> Array:
    """NaN results are canonical: positive, and of all ones in f32."""
    if x.dtype == np.float32:
        return np.where(np.isnan(x), _NAN32, x)
    return np.where(np.isnan(x), x.dtype.type(np.nan), x)


def extreme(ins: Instruction) -> Function:
    base = minimum if ins.base == "min" else maximum

    def chosen(a: Array, b: Array) -> Array:
        if "xorsign" not in ins.mods:
            return with_nan(a, b)
        sign = np.signbit(a) ^ np.signbit(b)
        value = np.abs(with_nan(np.abs(a), np.abs(b)))
        return np.where(sign, -value, value)

    def with_nan(a: Array, b: Array) -> Array:
        if "NaN" not in ins.mods:
            return base(a, b)
        return _quiet(np.where(np.isnan(a) | np.isnan(b), a.dtype.type(np.nan), base(a, b)))

    def by_magnitude(a: Array, b: Array) -> Array:
        return chosen(np.abs(a), np.abs(b))

    return by_magnitude if "abs" in ins.mods and "xorsign" not in ins.mods else chosen


@instruction("min", "max")
def _extreme(d: Decoder, ins: Instruction) -> Step:
    if not is_float(ins.mods[-1]):
        return arithmetic(d, ins)
    fn = extreme(ins)
    if len(ins.operands) == 4:
        return _apply(d, ins, lambda a, b, c: fn(fn(a, b), c))
    return _apply(d, ins, fn)


@instruction("neg")
def _neg(d: Decoder, ins: Instruction) -> Step:
    return _apply(d, ins, np.negative) if is_float(ins.mods[-1]) else arithmetic(d, ins)


@instruction("abs")
def _abs(d: Decoder, ins: Instruction) -> Step:
    return _apply(d, ins, np.abs) if is_float(ins.mods[-1]) else arithmetic(d, ins)


@instruction("copysign")
def _copysign(d: Decoder, ins: Instruction) -> Step:
    """The sign of the first operand on the second."""
    return _apply(d, ins, lambda a, b: np.copysign(b, a))


@instruction("testp")
def _testp(d: Decoder, ins: Instruction) -> Step:
    what, kind = ins.mods[0], ins.mods[-1]
    tests: dict[str, Function] = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "number": lambda x: ~np.isnan(x),
        "notanumber": np.isnan,
        "normal": lambda x: np.isfinite(x) & (np.abs(x) >= np.finfo(x.dtype).tiny),
        "subnormal": lambda x: (np.abs(x) < np.finfo(x.dtype).tiny) & (x != 0),
    }
    return elementwise(d, tests[what], "pred", ins.operands[0], (ins.operands[1], kind))


@instruction("sqrt")
def _sqrt(d: Decoder, ins: Instruction) -> Step:
    mode = mode_of(ins)
    return _apply(d, ins, np.sqrt if mode == "rn" else lambda a: rounding.root(a, mode))


@instruction("rcp")
def _rcp(d: Decoder, ins: Instruction) -> Step:
    if "approx" in ins.mods:
        return _apply(d, ins, lambda a: rounding.either(1 / a.astype(np.float64), a))
    mode = mode_of(ins)
    return _apply(d, ins, lambda a: rounding.divide(a.dtype.type(1), a, mode))
