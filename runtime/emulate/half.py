"""Arithmetic of f16, bf16 and pairs of them: computed wider, rounded once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from weft.runtime.emulate import rounding
from weft.runtime.emulate.program import Decoder, Step
from weft.runtime.emulate.ptx_ast import Instruction, Operand
from weft.runtime.emulate.steps import elementwise

Array = Any
Function = Callable[..., Array]
BF16 = np.dtype(ml_dtypes.bfloat16)
F16 = np.dtype(np.float16)
KINDS = {"f16": F16, "bf16": BF16, "f16x2": F16, "bf16x2": BF16}
_NANS = {F16: np.uint16(0x7FFF), BF16: np.uint16(0x7FFF)}


def FMA(a: Array, b: Array, c: Array) -> Array:
    """a * b + c in f64, to odd: rounded again to 16 bits it is as if rounded once (Boldo and Melquiond)."""
    a, b, c = (x.astype(np.float64) for x in (a, b, c))
    s, e = rounding.two_sum(a * b, c)
    return rounding.round_to_odd(s, e)


def widen_f16(bits: Array) -> Array:
    """f16 values given as bits, as f32: exact, and faster than numpy's own conversion."""
    wide = bits.astype(np.uint32)
    magnitude = (wide & np.uint32(0x7FFF)) << np.uint32(13)
    value = magnitude.view(np.float32) * np.float32(2.0**112)
    special = magnitude >= np.uint32(0x7C00 << 13)
    if special.any():
        value = np.where(special, (magnitude | np.uint32(0x7F800000)).view(np.float32), value)
    sign = (wide & np.uint32(0x8000)) << np.uint32(16)
    return (value.view(np.uint32) | sign).view(np.float32)


def narrow(value: Array, kind: str) -> Array:
    """f32 or f64 values rounded to nearest to 16 bits, as unsigned bits; NaN is canonical."""
    half = KINDS[kind]
    if value.dtype == np.float64 and half == BF16:
        # through f32, to odd there
        near = value.astype(np.float32)
        value = _odd32(near, value)
    bits = value.astype(half).view(np.uint16)
    return np.where(np.isnan(value), _NANS[half], bits)


def _odd32(near: Array, exact: Array) -> Array:
    wide = near.astype(np.float64)
    bits = near.view(np.int32)
    inexact = (wide != exact) & np.isfinite(exact)
    beyond = np.abs(wide) > np.abs(exact)
    truncated = np.where(inexact & beyond, bits - np.int32(1), bits)
    return np.where(inexact, truncated | np.int32(1), bits).view(np.float32)


def split(x: Array, kind: str) -> tuple[Array, Array]:
    """The low and the high half of pairs, as f32."""
    low = x.astype(np.uint16).view(KINDS[kind])
    high = (x >> np.uint32(16)).astype(np.uint16).view(KINDS[kind])
    return low.astype(np.float32), high.astype(np.float32)


def join(low: Array, high: Array) -> Array:
    """Pairs of 16-bit values given as bits."""
    return low.astype(np.uint32) | (high.astype(np.uint32) << np.uint32(16))


def elementwise_half(
    d: Decoder, ins: Instruction, fn: Function, kind: str, dst: Operand, sources: list[Operand]
) -> Step:
    """``fn``, which takes f32 arrays and gives f32 or f64, on values or pairs of 16 bits."""
    ftz, sat, relu = "ftz" in ins.mods, "sat" in ins.mods, "relu" in ins.mods
    single = kind.removesuffix("x2")
    bitwise = {"neg": _neg, "abs": _abs}.get(ins.base)

    def one(*operands: Array) -> Array:
        if bitwise is not None:
            return bitwise(*operands)
        wide = [x.view(KINDS[kind]).astype(np.float32) for x in operands]
        if ftz:
            wide = [_flush(x) for x in wide]
        return adjust(narrow(fn(*wide), single))

    def adjust(bits: Array) -> Array:
        if not (ftz or sat or relu):
            return bits
        from weft.runtime.emulate.floating import saturate

        value = bits.view(KINDS[kind]).astype(np.float32)
        if ftz:
            value = _flush(value)
        if sat:
            value = saturate(value)
        if relu:
            value = np.where(np.isnan(value) | (value > 0), value, np.float32(0))
        return narrow(value, single)

    def pair(*operands: Array) -> Array:
        low = one(*[x.astype(np.uint16) for x in operands])
        return join(low, one(*[(x >> np.uint32(16)).astype(np.uint16) for x in operands]))

    if kind.endswith("x2"):
        return elementwise(d, pair, "b32", dst, *[(o, "b32") for o in sources])
    return elementwise(d, one, "b16", dst, *[(o, "b16") for o in sources])


def _flush(x: Array) -> Array:
    """Subnormal numbers of f16 to zero."""
    small = np.abs(x) < np.float32(2.0**-14)
    return np.where(small, np.copysign(np.float32(0), x), x)


def _neg(x: Array) -> Array:
    return x ^ np.uint16(0x8000)


def _abs(x: Array) -> Array:
    return x & np.uint16(0x7FFF)
