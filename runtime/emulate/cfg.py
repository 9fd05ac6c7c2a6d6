"""Basic blocks, and the order in which divergent threads run them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from weft.runtime.emulate.ptx_ast import Instruction, Label, Sym, Targets

# these end a block: control leaves, or threads wait for others
_ENDS = {"bra", "brx", "ret", "exit", "trap"}
BARRIERS = {"bar", "barrier"}


@dataclass
class BasicBlock:
    code: list[Instruction] = field(default_factory=list)
    end: Instruction | None = None
    successors: list[int] = field(default_factory=list)
    line: int = 0


def is_block_barrier(ins: Instruction) -> bool:
    return ins.base in BARRIERS and "warp" not in ins.mods and "cluster" not in ins.mods


def basic_blocks(items: Iterable[Instruction | Label | Targets]) -> tuple[list[BasicBlock], dict[str, int]]:
    """Blocks in the order of the text, and the block of each label. KeyError for a branch to no label.

    A block without ``end`` falls through to its only successor. For ``bra`` the first successor is the
    target, the second (where predicated) the next block. The last block is an implicit ``ret``.
    """
    blocks = [BasicBlock()]
    labels: dict[str, int] = {}
    tables: dict[str, tuple[str, ...]] = {}
    for item in items:
        if isinstance(item, Targets):
            tables[item.name] = item.labels
            continue
        if isinstance(item, Label):
            if blocks[-1].code or blocks[-1].end:
                blocks.append(BasicBlock(line=item.line))
            labels[item.name] = len(blocks) - 1
            continue
        if blocks[-1].end:
            blocks.append(BasicBlock(line=item.line))
        if item.base in _ENDS or is_block_barrier(item):
            blocks[-1].end = item
        else:
            blocks[-1].code.append(item)
    if not blocks[-1].end or blocks[-1].end.guard or is_block_barrier(blocks[-1].end):
        blocks.append(BasicBlock(end=Instruction("ret", (), blocks[-1].line, text="ret")))
    for number, block in enumerate(blocks):
        block.successors = _successors(block, number, labels, tables)
    return blocks, labels


def _successors(
    block: BasicBlock, number: int, labels: dict[str, int], tables: dict[str, tuple[str, ...]]
) -> list[int]:
    end, following = block.end, [number + 1]
    if end is None or is_block_barrier(end):
        return following
    fall = following if end.guard is not None else []
    if end.base == "bra":
        return [labels[_label(end.operands[0])], *fall]
    if end.base == "brx":
        return [labels[name] for name in tables[_label(end.operands[1])]] + fall
    return fall


def _label(operand: object) -> str:
    if not isinstance(operand, Sym):
        raise KeyError(str(operand))
    return operand.name


def ranks(successors: list[list[int]]) -> list[int]:
    """The place of each block in an order in which divergent threads join again as early as they can.

    Among the blocks where threads stand the one of the lowest rank runs first. The order is topological but
    for back edges, and every loop is contiguous: no thread runs past a block that others of its warp can
    still reach, and all leave a loop before any goes on behind it (Diamos et al., "SIMD re-convergence at
    thread frontiers", 2011).
    """
    order: list[int] = []
    _place(set(range(len(successors))), [0], successors, order)
    order.extend(node for node in range(len(successors)) if node not in set(order))
    place = [0] * len(successors)
    for rank, node in enumerate(order):
        place[node] = rank
    return place


def _place(nodes: set[int], roots: list[int], successors: list[list[int]], order: list[int]) -> None:
    entered = set(roots)
    for component in _components(nodes, roots, successors):
        header = min(component & entered, default=min(component))
        order.append(header)
        if len(component) > 1:
            inside = component - {header}
            _place(inside, [s for s in successors[header] if s in inside], successors, order)
        entered.update(s for node in component for s in successors[node])


def _components(nodes: set[int], roots: list[int], successors: list[list[int]]) -> list[set[int]]:
    """Strongly connected components of what ``roots`` reach in ``nodes``, in topological order (Tarjan)."""
    search = _Tarjan(nodes, successors)
    for root in roots:
        if root not in search.index:
            search.run(root)
    return search.found[::-1]


class _Tarjan:
    def __init__(self, nodes: set[int], successors: list[list[int]]) -> None:
        self.nodes = nodes
        self.successors = successors
        self.index: dict[int, int] = {}
        self.low: dict[int, int] = {}
        self.stack: list[int] = []
        self.on_stack: set[int] = set()
        self.found: list[set[int]] = []

    def run(self, root: int) -> None:
        work = [(root, iter(self.successors[root]))]
        self.enter(root)
        while work:
            node, edges = work[-1]
            child = next((c for c in edges if c in self.nodes and self.visit(node, c)), None)
            if child is not None:
                self.enter(child)
                work.append((child, iter(self.successors[child])))
                continue
            work.pop()
            if work:
                parent = work[-1][0]
                self.low[parent] = min(self.low[parent], self.low[node])
            if self.low[node] == self.index[node]:
                self.leave(node)

    def enter(self, node: int) -> None:
        self.index[node] = self.low[node] = len(self.index)
        self.stack.append(node)
        self.on_stack.add(node)

    def visit(self, node: int, child: int) -> bool:
        """Whether ``child`` is new; otherwise account for the edge."""
        if child not in self.index:
            return True
        if child in self.on_stack:
            self.low[node] = min(self.low[node], self.index[child])
        return False

    def leave(self, node: int) -> None:
        component: set[int] = set()
        while node not in component:
            member = self.stack.pop()
            self.on_stack.discard(member)
            component.add(member)
        self.found.append(component)
