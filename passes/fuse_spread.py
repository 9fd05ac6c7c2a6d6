"""Maps that spread small values, such as the sum of a column and a row: whoever reads them computes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weft.ir.graph import Op, Value
from weft.ir.prims.base import Kind

if TYPE_CHECKING:
    from weft.passes.fuse_groups import Grouping

SMALLER = 4  # by which what is read must be smaller than what is made of it
NEAR = 8  # maps between a contraction and its reader


def spread_for_epilogue(grouping: Grouping, op: Op) -> bool:
    """Whether the map ``op`` makes a large value of small ones for the epilogue of a product of its shape.

    With the kernels that give the small values it would be written to memory; in the epilogue it costs next
    to nothing.
    """
    if op.prim.kind is not Kind.MAP or op.result.type.size <= 1:
        return False
    inside = grouping.closure(op.operands)
    made = {r for o in inside for r in o.results}
    read = {x for o in (*inside, op) for x in o.operands if x not in made}
    if SMALLER * sum(x.type.size for x in read) > op.result.type.size:
        return False
    return any(_beside_product(grouping, user, op.result) for user in grouping.users.get(op.result, ()))


def _beside_product(grouping: Grouping, user: Op, v: Value) -> bool:
    """Whether ``user`` is a map of ``v`` and of what maps make of a product of the same shape."""
    if user.prim.kind is not Kind.MAP:
        return False
    stack, seen = [x for x in user.operands if x is not v], 0
    while stack and seen < NEAR:
        made = grouping.producer.get(stack.pop())
        seen += 1
        if made is None or made.results[0].type.shape != v.type.shape:
            continue
        if made.prim.kind is Kind.CONTRACT:
            return True
        if made.prim.kind is Kind.MAP:
            stack += made.operands
    return False
