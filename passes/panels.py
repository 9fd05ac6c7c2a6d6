"""The second operand of a product in panels: some of its columns side by side, one line for every k.

A kernel that multiplies by a panel reads it from end to end. Panels are written by primitives and read
through a view of them (:func:`weft.ir.contraction.in_panels`), so a graph means the same in any interpreter.
"""

from __future__ import annotations

from weft.ir.contraction import Axes
from weft.ir.graph import GraphBuilder, Op, Value
from weft.ir.prims import full_p, pad_p, permute_p, reshape_p, slice_p
from weft.ir.types import TensorType


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
