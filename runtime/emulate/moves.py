"""mov, cvta, isspacep, and instructions without an effect that the emulator models."""

from __future__ import annotations

from typing import Any

import numpy as np
from weft.runtime.emulate import windows
from weft.runtime.emulate.bits import pack, unpack
from weft.runtime.emulate.program import Decoder, Step, Unknown, instruction
from weft.runtime.emulate.ptx_ast import SIZES, Instruction, Special, Vector
from weft.runtime.emulate.steps import assign, elementwise, no_effect


@instruction("mov")
def _mov(d: Decoder, ins: Instruction) -> Step:
    kind = ins.mods[-1]
    dst, source = ins.operands
    if isinstance(dst, Vector) and isinstance(source, Vector):
        raise Unknown("a move of vectors")
    if isinstance(dst, Vector):
        return unpack(d, dst, source, kind)
    if isinstance(source, Vector):
        return pack(d, dst, source, kind)
    target = d.dest(dst, kind)
    if isinstance(source, Special) and source.name.startswith(("clock", "globaltimer")):
        return _clock(target, SIZES[kind])
    slot = d.slot(source, kind)

    def run(R: Any, m: Any) -> None:
        R[target] = R[slot] if m is None else np.where(m.bits, R[slot], R[target])

    return run


def _clock(target: int, size: int) -> Step:
    """Time counts executed steps."""
    kind = np.dtype(f"u{size}")

    def run(R: Any, m: Any) -> None:
        R.chunk.clock += 1
        assign(R, m, target, np.array([R.chunk.clock & ((1 << 8 * size) - 1)], kind))

    return run


@instruction("cvta")
def _cvta(d: Decoder, ins: Instruction) -> Step:
    kind = ins.mods[-1]
    space = next((m for m in ins.mods if m.partition("::")[0] in windows.SPACES), None)
    if space is None:
        raise Unknown("an unknown state space")
    window = windows.SPACES[space.partition("::")[0]]
    if SIZES[kind] != 8:
        raise Unknown("32-bit generic addresses")
    step = np.uint64(window)
    fn = np.subtract if "to" in ins.mods else np.add
    return elementwise(d, lambda x: fn(x, step), "b64", ins.operands[0], (ins.operands[1], "b64"))


@instruction("isspacep")
def _isspacep(d: Decoder, ins: Instruction) -> Step:
    space = ins.mods[0].partition("::")[0]
    low, high = windows.RANGES[space]

    def fn(x: Any) -> Any:
        return (x >= np.uint64(low)) & (x < np.uint64(high))

    return elementwise(d, fn, "pred", ins.operands[0], (ins.operands[1], "b64"))


@instruction("membar", "fence")
def _fence(d: Decoder, ins: Instruction) -> Step:
    wide = any(m in ("gl", "sys", "gpu") for m in ins.mods)

    def run(R: Any, m: Any) -> None:
        if wide:
            R.chunk.release(m)

    return run


@instruction("prefetch", "prefetchu", "nanosleep", "brkpt", "discard", "applypriority", "setmaxnreg",
             "griddepcontrol", "pmevent")  # fmt: skip
def _nothing(d: Decoder, ins: Instruction) -> Step:
    return no_effect


@instruction("createpolicy")
def _createpolicy(d: Decoder, ins: Instruction) -> Step:
    target = d.dest(ins.operands[0], "b64")
    policy = np.zeros(1, np.uint64)
    return lambda R, m: assign(R, m, target, policy)
