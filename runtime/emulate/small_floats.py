"""Conversions of pairs of 8-bit floats, e4m3 and e5m2."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from weft.runtime.emulate import half
from weft.runtime.emulate.program import Decoder, Step, Unknown
from weft.runtime.emulate.ptx_ast import Instruction
from weft.runtime.emulate.steps import elementwise

Array = Any
_KINDS = {"e4m3x2": np.dtype(ml_dtypes.float8_e4m3fn), "e5m2x2": np.dtype(ml_dtypes.float8_e5m2)}


def convert_small(d: Decoder, ins: Instruction, result: str, source: str) -> Step:
    relu = "relu" in ins.mods
    dst, *sources = ins.operands
    if source in _KINDS and result == "f16x2":
        return elementwise(d, lambda x: _widen(x, _KINDS[source], relu), "b32", dst, (sources[0], "b16"))
    if result in _KINDS and source == "f32":
        kind = _KINDS[result]
        return elementwise(
            d, lambda high, low: _narrow(high, low, kind, relu), "b16", dst, *[(o, "f32") for o in sources]
        )
    if result in _KINDS and source == "f16x2":
        kind = _KINDS[result]

        def fn(x: Array) -> Array:
            low, high = half.split(x, "f16x2")
            return _narrow(high, low, kind, relu)

        return elementwise(d, fn, "b16", dst, (sources[0], "b32"))
    raise Unknown(f"a conversion from .{source} to .{result}")


def _widen(x: Array, kind: Any, relu: bool) -> Array:
    parts = [((x >> np.uint16(s)).astype(np.uint8)).view(kind).astype(np.float16) for s in (0, 8)]
    if relu:
        parts = [np.where(np.isnan(p) | (p > 0), p, np.float16(0)) for p in parts]
    return half.join(*[p.view(np.uint16) for p in parts])


def _narrow(high: Array, low: Array, kind: Any, relu: bool) -> Array:
    """Rounded to nearest; beyond the range the largest finite number (satfinite)."""
    largest = np.float32(ml_dtypes.finfo(kind).max)

    def one(x: Array) -> Array:
        if relu:
            x = np.where(np.isnan(x) | (x > 0), x, np.float32(0))
        value = np.clip(x, -largest, largest).astype(kind).view(np.uint8)
        return np.where(np.isnan(x), np.uint8(0x7F), value).astype(np.uint16)

    return one(low) | (one(high) << np.uint16(8))
