"""Floating-point constants that fill a vector of 512 bits, as whole vectors in memory.

LLVM loads such a constant by ``vbroadcastss`` from four bytes. On Zen 4 that takes a shuffle unit, so that
each constant read in a loop costs as much as a permutation; a load of 64 bytes is free beside arithmetic. The
loads stand at the start of the function: LLVM keeps in registers what it has room for, and makes the rest
operands in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weft.codegen.llvm import reg_type

if TYPE_CHECKING:
    from weft.codegen.emit import Reg, VectorBuilder


def whole_vector(b: VectorBuilder, x: Reg, lanes: int) -> str | None:
    """A constant as a loaded vector; None where an immediate vector is as good."""
    target, d = b.target, x.dtype
    if target is None or not target.masked or not d.is_floating_point or lanes * d.bits != 512:
        return None
    if x.value == 0:
        return None
    scalar, vector = reg_type(d), reg_type(d, lanes)
    name = f"@weft_splat_{scalar}_{x.text}"
    b.fn.declares.add(f"{name} = private unnamed_addr constant {vector} splat ({scalar} {x.text}), align 64")
    return b.emit(f"load {vector}, ptr {name}, align 64, !invariant.load !{{}}", d, lanes, 0).text
