"""Cutting a graph in two: what depends on frozen parameters alone, and the rest.

The first part, the *prologue*, need run only when a parameter has changed; its results are parameters of the
second. The weights of convolutions are put in the order in which kernels read them there
(:func:`weft.ir.contraction.blocked_weights`), and those of products into panels
(:mod:`weft.passes.panels`), so that no call packs them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from weft.ir.contraction import Axes, axes_of, block_of_weights, by_kernel_rows, by_pixels, depthwise
from weft.ir.graph import Graph, GraphBuilder, Op, Value
from weft.ir.prims import broadcast_p, permute_p, reshape_p
from weft.ir.prims.base import Kind
from weft.ir.record import record
from weft.passes.dce import dce
from weft.passes.panels import from_panels, panels_fit, to_panels

_PURE = frozenset({Kind.MAP, Kind.REDUCE, Kind.MOVE, Kind.CONTRACT, Kind.GATHER, Kind.SOURCE})


@record(frozen=True)
class Split:
    """``prologue`` takes the params ``frozen`` (by number); ``main`` those in ``kept``, then its results."""

    prologue: Graph
    main: Graph
    frozen: tuple[int, ...]
    kept: tuple[int, ...]


PanelWidth = Callable[[Graph, Op], int]


def split_frozen(graph: Graph, frozen: Collection[int], panel: PanelWidth | None = None) -> Split | None:
    """Cut ``graph`` where values of the params numbered ``frozen`` meet others.

    ``panel(graph, dot)`` tells how wide panels of the second operand of a product should be, 0 for none. None
    where nothing depends on frozen params alone. The results of ``main`` are those of ``graph``.
    """
    return _Splitter(graph, frozen, panel or (lambda graph, dot: 0)).split()


class _Splitter:
    def __init__(self, graph: Graph, frozen: Collection[int], panel: PanelWidth) -> None:
        self.graph, self.panel = graph, panel
        self.params = {p: i for i, p in enumerate(graph.params)}
        self.known = {p for p, i in self.params.items() if i in frozen}
        self.makers = graph.producers()
        self.first, self.main = GraphBuilder(f"{graph.name}_prologue"), GraphBuilder(graph.name)
        self.before: dict[Value, Value] = {}  # of known values, in the prologue
        self.after: dict[Value, Value] = {}
        self.crossing: list[Value] = []
        self.panels: dict[tuple[Value, Axes, int], Value] = {}  # in the main graph

    def split(self) -> Split | None:
        for p in self.graph.params:
            self.after[p] = self.main.param(p.type, p.name)
            if p in self.known:
                self.before[p] = self.first.param(p.type, p.name)
        for op in self.graph.ops:
            if self._is_known(op):
                self.known.update(op.results)
                self._add(self.first, self.before, op, [self.before[x] for x in op.operands])
            elif op.prim.name == "conv" and self._blocks(op):
                x, w = op.operands
                self._add(self.main, self.after, op, [self.later(x), self._packed(w)])
            elif op.prim.name == "dot_general" and (width := self._panel_width(op)):
                x, w = op.operands
                panels = self._in_panels(w, axes_of(op, 1), width)
                self._add(self.main, self.after, op, [self.later(x), panels])
            else:
                self._add(self.main, self.after, op, [self.later(x) for x in op.operands])
        results = [self.later(r) for r in self.graph.results]
        if not self.crossing:
            return None
        main = dce(self.main.finish(results))
        used = {x for op in main.ops for x in op.operands} | set(main.results)
        kept = tuple(i for p, i in self.params.items() if self.after[p] in used or p not in self.known)
        made = main.params[len(self.params) :]
        main = Graph([*(main.params[i] for i in kept), *made], main.ops, main.results, main.name)
        frozen = tuple(i for p, i in self.params.items() if p in self.before)
        return Split(self.first.finish(self.crossing), main, frozen, kept)

    def _is_known(self, op: Op) -> bool:
        """Known once the frozen params are, and no larger than what it is made of."""
        if op.prim.kind not in _PURE or op.prim is broadcast_p or op.regions or not op.operands:
            return False
        sizes = [x.type.nbytes for x in op.operands]
        return self.known.issuperset(op.operands) and sum(r.type.nbytes for r in op.results) <= sum(sizes)

    @staticmethod
    def _add(b: GraphBuilder, env: dict[Value, Value], op: Op, operands: list[Value]) -> None:
        env.update(zip(op.results, b.add(op.prim, operands, op.attrs, op.regions, op.loc), strict=True))

    def later(self, v: Value) -> Value:
        """``v`` in the main graph; moves of known values are made there again."""
        if v not in self.after:
            op = self.makers[v]
            if op.prim.kind is Kind.MOVE:
                self._add(self.main, self.after, op, [self.later(x) for x in op.operands])
            else:
                self.after[v] = self._cross(self.before[v])
        return self.after[v]

    def _cross(self, v: Value) -> Value:
        self.crossing.append(v)
        return self.main.param(v.type, v.name)

    def _blocks(self, conv: Op) -> bool:
        w = conv.operands[1]
        if w not in self.known or not by_pixels(conv) or by_kernel_rows(conv) or depthwise(conv):
            return False
        block = block_of_weights(w.type)
        return block > 0 and (w.type.shape[0] // conv.attrs["groups"]) % block == 0

    def _panel_width(self, dot: Op) -> int:
        x, w = dot.operands
        known = w in self.known and x not in self.known
        return self.panel(self.graph, dot) if known and panels_fit(dot) else 0

    def _in_panels(self, w: Value, axes: Axes, width: int) -> Value:
        """``w`` as the main graph sees it: a view of panels that the prologue has written."""
        key = (w, axes, width)
        if key not in self.panels:
            blocks = self._cross(to_panels(self.first, self.before[w], axes, width))
            self.panels[key] = from_panels(self.main, blocks, w.type, axes)
        return self.panels[key]

    def _packed(self, w: Value) -> Value:
        """The weights as the main graph sees them: a view of blocks that the prologue has written."""
        out, depth, *kernel = w.type.shape
        lanes, n = block_of_weights(w.type), len(kernel)
        shape = (out // lanes, lanes, depth, *kernel)
        (split,) = self.first.add(reshape_p, (self.before[w],), {"shape": shape})
        forth = (0, *range(3, 3 + n), 2, 1)
        (blocks,) = self.first.add(permute_p, (split,), {"perm": forth})
        back = (0, n + 2, n + 1, *range(1, n + 1))
        (view,) = self.main.add(permute_p, (self._cross(blocks),), {"perm": back})
        return self.main.add(reshape_p, (view,), {"shape": w.type.shape})[0]
