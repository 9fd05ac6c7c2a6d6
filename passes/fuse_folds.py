"""Which reductions, and maps of what they give, join the contraction whose tiles they read."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from weft.ir import contraction
from weft.ir.graph import Op, Value
from weft.ir.nest import BARRIER
from weft.ir.prims.base import Kind

if TYPE_CHECKING:
    from weft.passes.fuse_groups import Grouping, Node

WALKED = frozenset({Kind.MAP, Kind.REDUCE, Kind.MOVE, Kind.GATHER, Kind.RANDOM})
FARTHEST = 200  # operations behind a reduction that are looked at


def fold_refusal(grouping: Grouping, a: Node, b: Node) -> str | None:
    """Why the reduction ``b`` may not be computed from the tiles of contraction ``a``, whose values it reads.

    It saves a walk through the product, and the product itself where nobody else reads it. Where a kernel
    walks the same rows once more with what they were reduced to, they are in its cache, and it reduces them
    at no cost.
    """
    if len(b.ops) > 1:
        return "several operations at once do not run on a tile"
    (op,) = b.ops
    reason = contraction.fold_refusal(a.main, op)
    if reason is not None:
        return reason
    if a.form != "contract" or grouping.node.get(grouping.producer[op.operands[0]]) is not a:
        return "what is reduced is not computed on the tile"
    axes = contraction.result_axes(a.main)
    if "cols" in (contraction.folded(a.main, op) or ()):
        row = [op.operands[0].type.shape[d] for d in op.attrs["axes"]]
        near = all(d not in op.attrs["axes"] for d in axes["rows"]) and prod(row) <= BARRIER
    else:
        near = op.operands[0].type.size <= BARRIER
    if near and walked_again(grouping, a, op):
        return "the kernel that walks the rows again reduces them on the way"
    return None


def walked_again(grouping: Grouping, a: Node, op: Op) -> bool:
    """Whether something reads a value of the tiles of ``a`` beside what depends on the reduction ``op``."""
    stack, seen = [op.result], set()
    while stack and len(seen) < FARTHEST:
        for user in grouping.users.get(stack.pop(), ()):
            if user in seen or user.prim.kind not in WALKED:
                continue
            seen.add(user)
            if _reads_tile(grouping, a, user, op.operands[0]):
                return True
            stack += user.results
    return False


def _reads_tile(grouping: Grouping, a: Node, user: Op, like: Value) -> bool:
    """Whether ``user`` has an operand of the shape of the tiles' values that ``a`` computes, or that is made
    of them by maps and movements."""
    if user.result.type.size < like.type.size:
        return False
    stack, seen = list(user.operands), 0
    while stack and seen < FARTHEST:
        v = stack.pop()
        seen += 1
        op = grouping.producer.get(v)
        if op is None or v.type.size < like.type.size:
            continue
        if grouping.node.get(op) is a:
            return True
        if op.prim.kind in (Kind.MAP, Kind.MOVE):
            stack += op.operands
    return False


def follows_folds(a: Node, b: Node) -> bool:
    """Whether ``b`` is a map, element by element, of what the reductions in ``a`` give."""
    if len(b.ops) > 1 or b.main.prim.kind is not Kind.MAP:
        return False
    folded = contraction.folded_values(a.ops)
    return any(x in folded for x in b.main.operands)
