"""Putting independent kernels side by side, so that one parallel region runs them all.

Small ones, and those that do the same to different values (the update of each parameter of a model).
"""

from __future__ import annotations

from weft.ir.prims.base import Primitive
from weft.passes.fuse_groups import Grouping, Node

SMALL_BYTES = 4 << 20  # kernels that move more than this gain nothing
MOST_NESTS = 256
MOST_OPS = 6000


def side_by_side(grouping: Grouping) -> None:
    """Merge loop groups of which neither depends on the other, in program order."""
    rows: list[tuple[Node, tuple[Primitive, ...], bool]] = []
    for node in sorted(grouping.nodes, key=lambda n: n.bits.bit_length()):
        if node.form != "loop":
            continue
        work = tuple(op.prim for op in node.ops)
        small = moved_bytes(grouping, node) <= SMALL_BYTES
        for k in range(len(rows) - 1, max(-1, len(rows) - 9), -1):
            other, its_work, its_small = rows[k]
            alike = (small and its_small) or work == its_work
            if alike and _independent(node, other) and _room(node, other):
                nests = node.nests + other.nests
                merged = grouping.merge(other, node)
                merged.nests = nests
                rows[k] = (merged, its_work, small and its_small)
                break
        else:
            rows.append((node, work, small))


def _independent(a: Node, b: Node) -> bool:
    return not (a.before & b.bits or b.before & a.bits)


def _room(a: Node, b: Node) -> bool:
    return a.nests + b.nests <= MOST_NESTS and len(a.ops) + len(b.ops) <= MOST_OPS


def moved_bytes(grouping: Grouping, node: Node) -> int:
    """Bytes of the values that a group computes for others."""
    return sum(v.type.nbytes for v in grouping.outputs(node.ops))
