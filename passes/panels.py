"""The second operand of a product in panels: some of its columns side by side, one line for every k.

A kernel that multiplies by a panel reads it from end to end. Panels are written by primitives and read
through a view of them (:func:`weft.ir.contraction.in_panels`), so a graph means the same in any interpreter.
"""

from __future__ import annotations

from weft.ir.contraction import Axes, axes_of
from weft.ir.graph import Graph, GraphBuilder, Op, Value
from weft.ir.prims import full_p, pad_p, permute_p, reshape_p, slice_p
from weft.ir.types import TensorType

_LINE = 64  # bytes: the panels of which tiles of any width, and of groups of columns, are made
_LARGE = 32 << 10  # bytes of weights that do not stay in the first-level cache
_OFTEN = 4  # steps of a loop that repay a copy


def panels_fit(dot: Op) -> bool:
    """True where the second operand has one axis of columns and one of k, besides those of the batch."""
    (k,), free = dot.attrs["contract"][1:], dot.operands[1].type.ndim
    return len(k) == 1 and free - len(dot.attrs["batch"][1]) == 2


def to_panels(b: GraphBuilder, w: Value, axes: Axes, width: int) -> Value:
    """Write ``w``, whose ``axes`` are (batch, columns, k), as [*batch, panels, k, width].

    The last panel is filled up with zeros; columns that are no more than ``width`` are one panel of their own
    number.
    """
    batch, (col,), (k,) = axes
    shape = w.type.shape
    lead, cols, depth = [shape[i] for i in batch], shape[col], shape[k]
    (v,) = b.add(permute_p, (w,), {"perm": (*batch, col, k)})
    width = min(width, cols)
    more, n = -cols % width, len(lead)
    if more:
        (zero,) = b.add(full_p, (), {"shape": (), "dtype": w.type.dtype, "value": 0})
        none = (0,) * (n + 2)
        (v,) = b.add(pad_p, (v, zero), {"lo": none, "hi": (*none[:n], more, 0), "interior": none})
    (v,) = b.add(reshape_p, (v,), {"shape": (*lead, (cols + more) // width, width, depth)})
    return b.add(permute_p, (v,), {"perm": (*range(n), n, n + 2, n + 1)})[0]


def from_panels(b: GraphBuilder, panels: Value, like: TensorType, axes: Axes) -> Value:
    """The value of type ``like`` that :func:`to_panels` wrote, as a view of its panels."""
    batch, (col,), (k,) = axes
    *lead, count, depth, width = panels.type.shape
    n = len(lead)
    (v,) = b.add(permute_p, (panels,), {"perm": (*range(n), n, n + 2, n + 1)})
    (v,) = b.add(reshape_p, (v,), {"shape": (*lead, count * width, depth)})
    stop = (*lead, like.shape[col], depth)
    if stop != v.type.shape:
        (v,) = b.add(slice_p, (v,), {"start": (0,) * (n + 2), "stop": stop, "step": (1,) * (n + 2)})
    order = (*batch, col, k)
    return b.add(permute_p, (v,), {"perm": tuple(order.index(i) for i in range(n + 2))})[0]


# --- constants of loops


def pack_constants(graph: Graph, target_kind: str) -> Graph:
    """Put what every step of a scan multiplies by into panels, once before the loop.

    Expects a captured graph; for CPUs alone.
    """
    if target_kind != "cpu" or not any(op.prim.name == "scan" for op in graph.ops):
        return graph
    b, env = GraphBuilder(graph.name), dict[Value, Value]()
    for p in graph.params:
        env[p] = b.param(p.type, p.name)
    for op in graph.ops:
        operands, regions = [env[x] for x in op.operands], list(op.regions)
        if op.prim.name == "scan" and op.attrs["length"] >= _OFTEN:
            for i in range(op.attrs["n_consts"]):
                axes = _multiplied(regions[0], regions[0].params[i])
                if axes is not None:
                    width = _LINE // operands[i].type.dtype.itemsize
                    operands[i] = to_panels(b, operands[i], axes, width)
                    regions = [_over_panels(regions[0], i, operands[i].type, axes)]
        env.update(zip(op.results, b.add(op.prim, operands, op.attrs, regions, op.loc), strict=True))
    return b.finish([env[r] for r in graph.results])


def _multiplied(step: Graph, w: Value) -> Axes | None:
    """The axes of ``w`` if it is large and nothing but the second operand of products."""
    users = step.users().get(w, ())
    if w in step.results or w.type.nbytes <= _LARGE or not w.type.dtype.is_floating_point:
        return None
    if not all(u.prim.name == "dot_general" and u.operands[0] is not w and panels_fit(u) for u in users):
        return None
    found = {axes_of(u, 1) for u in users}
    if len(found) != 1:
        return None
    (axes,) = found
    return axes if w.type.shape[axes[1][0]] * w.type.dtype.itemsize > _LINE else None


def _over_panels(step: Graph, number: int, t: TensorType, axes: Axes) -> Graph:
    """``step`` with a constant of type ``t`` in panels."""
    b, env = GraphBuilder(step.name), dict[Value, Value]()
    for i, p in enumerate(step.params):
        env[p] = b.param(t if i == number else p.type, p.name)
    w = step.params[number]
    env[w] = from_panels(b, env[w], w.type, axes)
    for op in step.ops:
        made = b.add(op.prim, [env[x] for x in op.operands], op.attrs, op.regions, op.loc)
        env.update(zip(op.results, made, strict=True))
    return b.finish([env[r] for r in step.results])
