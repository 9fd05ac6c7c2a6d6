"""ldmatrix, stmatrix, movmatrix: 8x8 matrices of 16-bit elements between shared memory and registers."""

from __future__ import annotations

from typing import Any

import numpy as np
from weft.runtime.emulate.access import Site
from weft.runtime.emulate.masks import WARP, Mask, full
from weft.runtime.emulate.program import Decoder, Step, Unknown, instruction
from weft.runtime.emulate.ptx_ast import Address, Instruction
from weft.runtime.emulate.whole_warps import put_warps, whole_warps

Array = Any


class _Rows:
    """The rows of one, two or four matrices: lane i holds the address of row i % 8 of matrix i / 8."""

    def __init__(self, d: Decoder, ins: Instruction, address: Any) -> None:
        if "m8n8" not in ins.mods or ins.mods[-1] != "b16" or not isinstance(address, Address):
            raise Unknown("this form of a matrix")
        self.count = next(int(m[1:]) for m in ins.mods if m in ("x1", "x2", "x4"))
        space = "shared" if any(m.startswith("shared") for m in ins.mods) else "generic"
        self.site = Site(d, ins, address, space, 4, 4)
        self.transposed = "trans" in ins.mods

    def lanes(self, R: Any, m: Mask | None) -> Mask | None:
        """The threads whose addresses count."""
        if self.count == 4:
            return m
        first = R.chunk.everyone % WARP < 8 * self.count
        return Mask(first if m is None else first & m.bits)

    def turned(self, words: Array) -> Array:
        """Matrices as (warp, matrix, 32 words), each one transposed."""
        shape = words.shape
        elements = np.ascontiguousarray(words).view(np.uint16).reshape(*shape[:2], 8, 8)
        return np.ascontiguousarray(elements.transpose(0, 1, 3, 2)).view(np.uint32).reshape(shape)


@instruction("ldmatrix")
def _ldmatrix(d: Decoder, ins: Instruction) -> Step:
    dst, address = ins.operands
    rows = _Rows(d, ins, address)
    targets = [d.dest(o, "b32") for o in d.vector(dst)]
    if len(targets) != rows.count:
        raise Unknown("a wrong number of registers")

    def run(R: Any, m: Any) -> None:
        warps = whole_warps(R, m)
        parts = rows.site.parts(R, rows.lanes(R, m))
        if len(parts) != 1:
            raise Unknown("matrices in several state spaces")
        words = rows.site.read(R, *parts[0]).reshape(-1, rows.count, WARP)
        if rows.transposed:
            words = rows.turned(words)
        for i, target in enumerate(targets):
            put_warps(R, m, warps, target, words[:, i])

    return run


@instruction("stmatrix")
def _stmatrix(d: Decoder, ins: Instruction) -> Step:
    address, source = ins.operands
    rows = _Rows(d, ins, address)
    slots = [d.slot(o, "b32") for o in d.vector(source)]
    if len(slots) != rows.count:
        raise Unknown("a wrong number of registers")

    def run(R: Any, m: Any) -> None:
        warps = whole_warps(R, m)
        words = np.stack([full(R, R[slot]).reshape(-1, WARP) for slot in slots], axis=1)
        if warps is not None:
            words = words[warps]
        if rows.transposed:
            words = rows.turned(words)
        space, flat, mask = rows.site.parts(R, rows.lanes(R, m))[0]
        rows.site.write(R, space, flat, mask, words.reshape(-1, 4))

    return run


@instruction("movmatrix")
def _movmatrix(d: Decoder, ins: Instruction) -> Step:
    if "m8n8" not in ins.mods or "trans" not in ins.mods:
        raise Unknown("this form of a matrix")
    dst, source = ins.operands
    target, slot = d.dest(dst, "b32"), d.slot(source, "b32")

    def run(R: Any, m: Any) -> None:
        warps = whole_warps(R, m)
        words = full(R, R[slot]).reshape(-1, WARP)
        if warps is not None:
            words = words[warps]
        elements = np.ascontiguousarray(words).view(np.uint16).reshape(-1, 8, 8)
        turned = np.ascontiguousarray(elements.transpose(0, 2, 1)).view(np.uint32).reshape(-1, WARP)
        put_warps(R, m, warps, target, turned)

    return run
