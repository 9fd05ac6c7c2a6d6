"""Choosing which images lie channels-last between convolutions.

The user's layout is channels-first, the fastest for a convolution is channels-last: its input then needs no
copy and its result no transposition. Values tied together by operations that do not care (maps, pooling,
concatenation, padding ...) are given one layout: channels-last where the bytes that convolutions would
convert outweigh those that are converted at the border of such a set.

Nothing but permutations is added, so a graph means the same in any interpreter: a convolution reads a value
permuted back, and the permutation that follows it tells its kernel to store channels-last.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weft.ir.contraction import by_pixels, by_taps
from weft.ir.graph import Graph, Op, Value
from weft.ir.prims import broadcast_p, copy_p, permute_p
from weft.ir.prims.base import Kind
from weft.passes.dce import dce
from weft.passes.rewriting import Rewriter, Rewritten, Rules

_BY_AXIS = {  # attributes with an entry for each axis
    "reduce_window": ("window", "stride", "padding", "dilation"),
    "window_scatter": ("window", "stride", "padding", "dilation"),
    "pad": ("lo", "hi", "interior"),
    "slice": ("start", "stop", "step"),
}
_REDUCTIONS = frozenset({"sum", "prod", "reduce_max", "reduce_min", "any", "all"})


def choose_layouts(graph: Graph) -> Graph:
    """Put images channels-last where that saves conversions.

    Expects a decomposed graph; leaves the results and parameters as they are.
    """
    if not any(op.prim.name == "conv" for op in graph.ops):
        return graph
    graph = dce(Rewriter(graph, _RULES).run())
    chosen = _Weights(graph).chosen()
    return dce(_Layout(graph, chosen).run()) if chosen else graph


_RULES = Rules()


@_RULES.on("permute")
def turn_before_reshape(r: Rewriter, op: Op) -> Rewritten:
    """Output channels go first at the convolution itself, not after axes of length 1 have been dropped."""
    view = r.producer(op.operands[0], "reshape")
    conv = r.producer(view.operands[0], "conv") if view is not None else None
    if view is None or conv is None or not by_taps(conv):
        return None
    shape, ndim = conv.result.type.shape, conv.result.type.ndim
    long, n = tuple(d for d in shape if d != 1), view.result.type.ndim
    if view.result.type.shape != long or 1 in shape[:2] or op.attrs["perm"] != (1, 0, *range(2, n)):
        return None
    turned = r.emit("permute", conv.result, perm=(1, 0, *range(2, ndim)))
    return r.reshape(turned, op.result.type.shape)


def _follows(op: Op) -> bool:
    """True for operations that run on either layout."""
    if op.prim.name in ("concatenate", *_BY_AXIS):
        return True
    return op.prim.kind is Kind.MAP and len(op.results) == 1


def _sums_up(op: Op) -> bool:
    """True for reductions whose result does not show the layout."""
    if op.prim.name not in _REDUCTIONS or op.operands[0].type.ndim < 3:
        return False
    axes, ndim = op.attrs["axes"], op.operands[0].type.ndim
    return 1 in axes or all(a in axes for a in range(2, ndim))


def _image(v: Value) -> bool:
    return 3 <= v.type.ndim <= 5


def _eligible(op: Op) -> bool:
    return op.prim.name == "conv" and by_pixels(op)


class _Weights:
    """For each set of tied values: what channels-last saves, and what it costs, in bytes."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.parent: dict[Value, Value] = {}
        self.free = {op.result for op in graph.ops if _made_anywhere(op)}

    def find(self, v: Value) -> Value:
        while (up := self.parent.get(v, v)) is not v:
            self.parent[v] = self.parent.get(up, up)
            v = up
        return v

    def chosen(self) -> set[Value]:
        """The values that are to lie channels-last."""
        for op in self.graph.ops:
            if _follows(op) and _image(op.result) and op.result not in self.free:
                for x in op.operands:
                    if _image(x) and x not in self.free:
                        self.parent[self.find(x)] = self.find(op.result)
        saves: dict[Value, int] = {}
        costs: dict[Value, dict[Value, int]] = {}

        def border(v: Value) -> None:
            if _image(v) and v not in self.free:
                costs.setdefault(self.find(v), {})[v] = v.type.nbytes

        for v in (*self.graph.params, *self.graph.results):
            border(v)
        for op in self.graph.ops:
            if _eligible(op):
                for v in (op.operands[0], op.result):
                    saves[self.find(v)] = saves.get(self.find(v), 0) + v.type.nbytes
                continue
            if _sums_up(op) or (_follows(op) and _image(op.result)):
                continue
            for v in (*op.operands, *op.results):
                border(v)
        gain = {root for root, n in saves.items() if n > sum(costs.get(root, {}).values())}
        everything = [*self.graph.params, *(v for op in self.graph.ops for v in op.results)]
        return {v for v in everything if _image(v) and v not in self.free and self.find(v) in gain}


def _made_anywhere(op: Op) -> bool:
    """True for values that cost nothing to make in another layout."""
    return len(op.results) == 1 and _image(op.result) and op.prim.name in ("broadcast", "full")


class _Layout:
    """Rewrites a graph so that the ``chosen`` values exist channels-last."""

    def __init__(self, graph: Graph, chosen: set[Value]) -> None:
        self.graph, self.chosen = graph, chosen
        self.r = Rewriter(graph, Rules())
        self.makers = graph.producers()
        self.plain: dict[Value, Value] = {p: p for p in graph.params}
        self.last: dict[Value, Value] = {}
        # images that others than convolutions read: these are converted once, in memory
        self.shared = {x for op in graph.ops if not _eligible(op) for x in op.operands}

    def run(self) -> Graph:
        for op in self.graph.ops:
            self.r.loc = op.loc
            self._place(op)
        results = [self.as_plain(v) for v in self.graph.results]
        return Graph(self.graph.params, self.r.ops, results, self.graph.name)

    def _place(self, op: Op) -> None:
        if _eligible(op):
            self._conv(op)
        elif _follows(op) and op.result in self.chosen:
            self.last[op.result] = self._emit(op, [self.as_last(x) for x in op.operands], _by_axis(op))
        elif _sums_up(op) and op.operands[0] in self.chosen:
            x = op.operands[0]
            axes = tuple(sorted(_there(a, x.type.ndim) for a in op.attrs["axes"]))
            self.plain[op.result] = self._emit(op, [self.as_last(x)], {"axes": axes})
        else:
            operands = [self.as_plain(x) for x in op.operands]
            results = [Value(v.type, v.name) for v in op.results]
            out = self.r.place(Op(op.prim, operands, op.attrs, results, op.regions, op.loc))
            self.plain.update(zip(op.results, out, strict=True))

    def _emit(self, op: Op, operands: list[Value], attrs: Mapping[str, Any]) -> Value:
        return self.r.emit(op.prim, *operands, **{**op.attrs, **attrs})

    def _conv(self, op: Op) -> None:
        x, w = op.operands
        if x in self.chosen:
            data = self.r.emit(permute_p, self.as_last(x), perm=_back(x.type.ndim))
        else:
            data = self.as_plain(x)
        out = self._emit(op, [data, self.as_plain(w)], {})
        if op.result in self.chosen:
            self.last[op.result] = self.r.emit(permute_p, out, perm=_forth(out.type.ndim))
        else:
            self.plain[op.result] = out

    def as_plain(self, v: Value) -> Value:
        """``v`` as the user sees it."""
        if v not in self.plain:
            self.plain[v] = self.r.emit(permute_p, self.last[v], perm=_back(v.type.ndim))
        return self.plain[v]

    def as_last(self, v: Value) -> Value:
        """``v`` channels-last, if it is an image."""
        if not _image(v):
            return self.as_plain(v)
        if v not in self.last:
            self.last[v] = self._converted(v)
        return self.last[v]

    def _converted(self, v: Value) -> Value:
        ndim, made = v.type.ndim, self.makers.get(v)
        shape = tuple(v.type.shape[a] for a in _forth(ndim))
        if made is not None and made.prim.name == "full":
            return self._emit(made, [], {"shape": shape})
        if made is not None and made.prim is broadcast_p:
            x = self.as_plain(made.operands[0])
            axes = [_there(a, ndim) for a in made.attrs["axes"]]
            order = sorted(range(len(axes)), key=axes.__getitem__)
            if order != list(range(len(axes))):
                x = self.r.emit(permute_p, x, perm=tuple(order))
            return self.r.emit(broadcast_p, x, shape=shape, axes=tuple(axes[i] for i in order))
        moved = self.r.emit(permute_p, self.as_plain(v), perm=_forth(ndim))
        return self.r.emit(copy_p, moved) if v in self.shared else moved


def _forth(ndim: int) -> tuple[int, ...]:
    return (0, *range(2, ndim), 1)


def _back(ndim: int) -> tuple[int, ...]:
    return (0, ndim - 1, *range(1, ndim - 1))


def _there(axis: int, ndim: int) -> int:
    """Where an axis lies channels-last."""
    return _back(ndim)[axis]


def _by_axis(op: Op) -> dict[str, Any]:
    """The attributes of ``op`` for operands that lie channels-last."""
    ndim = op.result.type.ndim
    if op.prim.name == "concatenate":
        return {"axis": _there(op.attrs["axis"], ndim)}
    names = _BY_AXIS.get(op.prim.name, ())
    return {name: tuple(op.attrs[name][a] for a in _forth(ndim)) for name in names}
