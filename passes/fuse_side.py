"""Putting small independent kernels side by side, so that one parallel region runs them all."""

from __future__ import annotations

from weft.passes.fuse_groups import Grouping, Node

SMALL_BYTES = 4 << 20  # kernels that move more than this gain nothing
MOST_NESTS = 256
MOST_OPS = 6000


def side_by_side(grouping: Grouping) -> None:
    """Merge loop groups of which neither depends on the other, in program order."""
    rows: list[Node] = []
    for node in sorted(set(grouping.node.values()), key=lambda n: n.bits.bit_length()):
        if node.form != "loop" or moved_bytes(grouping, node) > SMALL_BYTES:
            continue
        for other in reversed(rows[-8:]):
            if _independent(node, other) and _room(node, other):
                nests = node.nests + other.nests
                merged = grouping.merge(other, node)
                merged.nests = nests
                break
        else:
            rows.append(node)


def _independent(a: Node, b: Node) -> bool:
    return not (a.before & b.bits or b.before & a.bits)


def _room(a: Node, b: Node) -> bool:
    return a.nests + b.nests <= MOST_NESTS and len(a.ops) + len(b.ops) <= MOST_OPS


def moved_bytes(grouping: Grouping, node: Node) -> int:
    """Bytes of the values that a group computes for others."""
    return sum(v.type.nbytes for v in grouping.outputs(node.ops))
