"""What may stand before and after a contraction inside one fused kernel: the legality that fusion asks for.

A kernel of form ``contract`` or ``conv`` holds one CONTRACT op. Around it may stand

* a *prologue*: ops between the kernel's operands and the contraction's (evaluated while packing);
* an *epilogue*: ops from the contraction's result on, of its very shape, evaluated on each finished tile;
* *side* ops: what feeds the epilogue besides the contraction (a broadcast bias, a constant, random bits);
* *folds*: reductions of values of the epilogue over all rows, all columns or both (and over the batch), whose
  partial results tiles leave behind, and maps of what they give.

Each predicate returns None for yes, or the reason for no. They look at one op at a time: the caller grows the
group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod

from weft.ir.access import Access, Ints, access_of, merge
from weft.ir.graph import Graph, Op, Value
from weft.ir.prims.base import Kind
from weft.ir.record import record, replace
from weft.ir.types import TensorType

Axes = tuple[Ints, Ints, Ints]  # of an operand as a batch of matrices: batch, rows, k
FOLDS = frozenset({"sum", "prod", "reduce_max", "reduce_min", "any", "all"})
FEWEST = 8  # elements of a matrix for each of its partial results, below which they save nothing
_MOST_GROUPS = 4  # of columns: registers hold a vector of each for some rows
FORMS = {"dot_general": "contract", "conv": "conv"}
# Moves that send an output coordinate to one operand coordinate, possibly none (pad).
INDEX_MOVES = frozenset({"reshape", "permute", "broadcast", "slice", "flip", "pad", "copy"})


def form_of(contract: Op) -> str:
    """The kernel form of a CONTRACT op; ValueError for another kind."""
    if contract.prim.kind is not Kind.CONTRACT:
        raise ValueError(f"{contract.prim.name} is not a contraction")
    return FORMS[contract.prim.name]


def unsupported(contract: Op) -> str | None:
    """Why the contraction itself cannot be a compiled kernel, or None."""
    if any(_complex(v.type) for v in (*contract.operands, *contract.results)):
        return "complex contractions are not compiled"
    if contract.result.type.size == 0:
        return "the result is empty"
    if any(v.type.size == 0 for v in contract.operands):
        return "nothing is contracted"
    return None


def _complex(t: TensorType) -> bool:
    return t.dtype.is_complex


def _common(op: Op) -> str | None:
    if len(op.results) != 1:
        return f"{op.prim.name} has {len(op.results)} results"
    if any(_complex(v.type) for v in (*op.operands, *op.results)):
        return "complex values are not fused"
    if op.result.type.size == 0:
        return "an empty value"
    return None


def prologue_refusal(contract: Op, op: Op, operand: int = 0) -> str | None:
    """Why ``op`` may not be computed while packing operand number ``operand`` of ``contract``.

    >>> from weft.ir.types import TensorType, f32
    >>> from weft.ir import prims as P
    >>> from weft.ir.prims.base import trace
    >>> def f(a, b):
    ...     at = P.permute_p.bind(a, perm=(1, 0))
    ...     return P.dot_general_p.bind(at, b, contract=((1,), (0,)), batch=((), ()))
    >>> move, dot = trace(f, TensorType((3, 4), f32), TensorType((3, 5), f32)).ops
    >>> prologue_refusal(dot, move) is None
    True
    """
    reason = _common(op)
    if reason is not None:
        return reason
    kind = op.prim.kind
    if kind is Kind.MOVE:
        return None if op.prim.name in INDEX_MOVES else f"{op.prim.name} is not an index map of one operand"
    if kind is Kind.SOURCE:
        return None
    if kind is not Kind.MAP:
        return f"a {kind.value} op cannot be computed while packing"
    if form_of(contract) == "conv" and operand == 0 and not _is_cast(op):
        return (
            "elements of a convolution's data operand are packed several times; only casts and moves are free"
        )
    return None


def _is_cast(op: Op) -> bool:
    """A one-operand map that changes the dtype: cheap enough to repeat."""
    return len(op.operands) == 1 and op.operands[0].type.dtype is not op.result.type.dtype


def epilogue_refusal(contract: Op, op: Op, columns: Columns | None = None) -> str | None:
    """Why ``op``, which reads a value of the epilogue, may not join the epilogue of ``contract``.

    ``columns`` are groups of columns whose maps may join, too.
    """
    reason = _common(op)
    if reason is not None:
        return reason
    if op.prim.kind is not Kind.MAP:
        return f"a {op.prim.kind.value} op does not run on a tile of the result"
    shape = contract.result.type.shape
    if columns is not None and op.result.type.shape == (*shape[:-1], columns.width):
        return None
    if op.result.type.shape != shape:
        return "the epilogue keeps the shape of the contraction"
    return None


def result_axes(dot: Op) -> dict[str, tuple[int, ...]]:
    """The axes of a dot_general's result that are batch, rows (of the first operand) and columns."""
    batch, contracted = dot.attrs["batch"], dot.attrs["contract"]
    leading = len(batch[0])
    rows = leading + dot.operands[0].type.ndim - len(batch[0]) - len(contracted[0])
    axes = range(dot.result.type.ndim)
    return {"batch": tuple(axes[:leading]), "rows": tuple(axes[leading:rows]), "cols": tuple(axes[rows:])}


def folded(dot: Op, op: Op) -> frozenset[str] | None:
    """Which of batch, rows and columns a reduction of the result's shape folds, each of them as a whole; None
    where it folds a part of one. Axes of length 1 are of no account.
    """
    shape, folds = dot.result.type.shape, set(op.attrs["axes"])
    over = set()
    for name, axes in result_axes(dot).items():
        inside = [a in folds for a in axes if shape[a] > 1]
        if any(inside) and not all(inside):
            return None
        if any(inside):
            over.add(name)
    return frozenset(over)


def fold_refusal(contract: Op, op: Op) -> str | None:
    """Why the reduction ``op`` of a value of the epilogue may not be computed from the tiles."""
    reason = _common(op)
    if reason is not None:
        return reason
    if form_of(contract) == "conv":
        return "the tiles of a convolution are not reduced"
    if op.prim.name not in FOLDS:
        return f"{op.prim.name} is not computed from tiles"
    if op.operands[0].type.shape != contract.result.type.shape:
        return "the epilogue keeps the shape of the contraction"
    over = folded(contract, op)
    if over is None:
        return "rows or columns of a tile are reduced as a whole"
    shape, axes = contract.result.type.shape, result_axes(contract)
    if prod(shape[a] for name in over - {"batch"} for a in axes[name]) < FEWEST:
        return "partial results would be as large as the product"
    return None


def folded_values(ops: Iterable[Op]) -> set[Value]:
    """What the reductions among the operations of a kernel give, and what is computed from it."""
    found: set[Value] = set()
    for op in ops:
        if op.prim.kind is Kind.REDUCE or any(v in found for v in op.operands):
            found.update(op.results)
    return found


def side_refusal(contract: Op, op: Op) -> str | None:
    """Why ``op``, which feeds the epilogue but does not depend on the contraction, may not be computed there.

    Index moves, sources, random bits and maps of any shape are allowed; that a map on a large value under a
    broadcast is then repeated per tile is for the caller to weigh (it costs nothing for a bias).
    """
    reason = _common(op)
    if reason is not None:
        return reason
    kind = op.prim.kind
    if kind is Kind.MOVE:
        return None if op.prim.name in INDEX_MOVES else f"{op.prim.name} is not an index map of one operand"
    if kind in (Kind.MAP, Kind.SOURCE):
        return None
    if kind is Kind.RANDOM and op.prim.scalar is not None:
        return None
    return f"a {kind.value} op cannot be computed on a tile"


def axes_of(dot: Op, operand: int) -> Axes:
    """The axes of an operand of a ``dot_general``: batch, free ones, contracted ones."""
    batch, k = dot.attrs["batch"][operand], dot.attrs["contract"][operand]
    rows = (i for i in range(dot.operands[operand].type.ndim) if i not in k and i not in batch)
    return tuple(batch), tuple(rows), tuple(k)


def unfolded(v: Value, axes: Axes, producers: Mapping[Value, Op]) -> tuple[Value, Axes]:
    """What ``v`` is a view of where axes are not yet merged, nor rows at the end cut off; and its axes there.

    Row numbers are the same in both.
    """
    while (op := producers.get(v)) is not None:
        found = _axes_before(op, axes)
        if found is None:
            break
        v, axes = op.operands[0], found
    return v, axes


def _axes_before(op: Op, axes: Axes) -> Axes | None:
    if op.prim.name == "permute":
        spread = [(p,) for p in op.attrs["perm"]]
    elif op.prim.name == "slice":
        old, new = op.operands[0].type.shape, op.result.type.shape
        cut = {i for i, (d, e) in enumerate(zip(old, new, strict=True)) if d != e}
        if any(op.attrs["start"]) or set(op.attrs["step"]) != {1} or not cut <= set(axes[1][:1]):
            return None
        return axes
    elif op.prim.name == "reshape":
        refined = _refinement(op.operands[0].type.shape, op.result.type.shape)
        if refined is None:
            return None
        spread = refined
    else:
        return None
    batch, rows, k = (tuple(i for a in group for i in spread[a]) for group in axes)
    return batch, rows, k


def _refinement(old: Ints, new: Ints) -> list[Ints] | None:
    """For each axis of ``new`` those of ``old`` that it merges, or None where one is split."""
    out: list[Ints] = []
    i = 0
    for d in new:
        first, size = i, 1
        while i < len(old) and (size < d or (size == d and old[i] == 1)):
            size, i = size * old[i], i + 1
        if size != d:
            return None
        out.append(tuple(range(first, i)))
    return out if i == len(old) else None


def in_panels(graph: Graph, dot: Op, operand: int) -> bool:
    """True where rows of an operand lie in memory in panels: side by side in each, one line for every k.

    Such an operand is a view that no strides over its own axes describe; kernels read it through
    :func:`unfolded`.
    """
    producers, v = graph.producers(), dot.operands[operand]
    if dot.prim.name != "dot_general" or access_of(v, producers) is not None:
        return False
    inner, (_, rows, k) = unfolded(v, axes_of(dot, operand), producers)
    found = access_of(inner, producers)
    if found is None or not found.pure:
        return False
    down, along = (
        merge([inner.type.shape[i] for i in group], [found.strides[i] for i in group]) for group in (rows, k)
    )
    return len(down) == 2 and down[1][1] == 1 and len(along) < 2


@record(frozen=True)
class Columns:
    """``count`` groups of ``width`` columns of a product's result, which an epilogue reads side by side."""

    count: int
    width: int


def columns_of(cut: Op) -> Columns | None:
    """The groups of which ``cut``, a slice, takes one: equal parts of the last axis, each at least a cache
    line. None for any other operation.
    """
    if cut.prim.name != "slice" or not cut.operands[0].type.ndim or set(cut.attrs["step"]) != {1}:
        return None
    (*lead, whole), (*same, width) = cut.operands[0].type.shape, cut.result.type.shape
    (*outer, start), size = cut.attrs["start"], cut.result.type.dtype.itemsize
    if lead != same or any(outer) or width * size < 64 or whole % width or start % width:
        return None
    return Columns(whole // width, width) if 2 <= whole // width <= _MOST_GROUPS else None


def columns_in(graph: Graph, dot: Op) -> Columns | None:
    """The groups in which a kernel's epilogue reads the columns of its product, if it does so."""
    after = set(dot.results)
    for op in graph.ops:
        if after.intersection(op.operands):
            after.update(op.results)
            if op.prim.name == "slice" and op.operands[0].type.shape == dot.result.type.shape:
                return columns_of(op)
    return None


def turn_of(graph: Graph, conv: Op) -> Op | None:
    """The permutation with which ``conv`` stores its result: channels last, or, where it is computed from
    taps, output channels first. None where there is none, or something else reads the result.
    """
    users = [op for op in graph.ops if conv.result in op.operands]
    if len(users) != 1 or conv.result in graph.results or users[0].prim.name != "permute":
        return None
    perm, n = users[0].attrs["perm"], conv.result.type.ndim
    if by_taps(conv):
        return users[0] if perm == (1, 0, *range(2, n)) else None
    if max(conv.attrs["lhs_dilation"]) > 1 and max(conv.attrs["stride"]) > 1:
        return None
    return users[0] if perm == (0, *range(2, n), 1) else None


def by_taps(conv: Op) -> bool:
    """True where a convolution has few positions and many taps, as the gradient of weights has, and is
    computed as a sum over the taps.
    """
    w, a, y = conv.operands[1].type, conv.attrs, conv.result.type
    spread = max(a["lhs_dilation"]) > 1
    if spread and max(*a["stride"], *a["rhs_dilation"]) > 1:
        return False
    along = y.shape[0] if spread else w.shape[0] // a["groups"]
    lanes = 512 // max(y.dtype.bits, 32)
    filled = along / (-(-along // lanes) * lanes)
    taps, positions = prod(w.shape[2:]), prod(y.shape[2:])
    return filled >= 0.7 and taps >= 16 and (taps > 4 * positions or taps * w.shape[1] >= 256 > positions)


def by_pixels(conv: Op) -> bool:
    """True where a convolution is computed from whole pixels: it then reads and stores channels-last best.

    That needs enough channels on both sides, and positions rather than taps to spread over.
    """
    w, a = conv.operands[1], conv.attrs
    if by_taps(conv) or (max(a["lhs_dilation"]) > 1 and max(a["stride"]) > 1):
        return False
    outputs, depth = w.type.shape[0] // a["groups"], w.type.shape[1]
    if depthwise(conv):
        outputs, depth = w.type.shape[0], 8
    rows = by_kernel_rows(conv)
    depth *= w.type.shape[-1] if rows else 1
    lanes = 512 // max(conv.result.type.dtype.bits, 32)
    filled = outputs / (-(-outputs // lanes) * lanes)
    positions, taps = conv.result.type.shape[2:], w.type.shape[2:]
    # results of few products cost more to turn than to compute
    enough = depth >= 8 and (not rows or w.type.size >= 32 * w.type.shape[0])
    return enough and filled >= 0.7 and prod(taps) <= 512 and prod(positions) > 1


def depthwise(conv: Op) -> bool:
    """True where every channel is a group of its own, with one output."""
    w = conv.operands[1].type.shape
    return w[1] == 1 and w[0] == conv.attrs["groups"] > 1


def by_kernel_rows(conv: Op) -> bool:
    """True where pixels of few channels are read a row of the kernel at a time, as neighbours in memory."""
    w, a = conv.operands[1].type.shape, conv.attrs
    apart = a["lhs_dilation"][-1] > 1 or a["rhs_dilation"][-1] > 1 or a["padding"][-1][0] < 0
    return w[1] < 8 and a["groups"] == 1 and 1 < w[-1] <= 128 and not apart


def block_of_weights(t: TensorType) -> int:
    """Output channels whose frozen weights lie side by side: a cache line of them; 0 for narrow dtypes."""
    return 64 // t.dtype.itemsize if t.dtype.is_floating_point and t.dtype.itemsize >= 4 else 0


def blocked_weights(graph: Graph, conv: Op) -> Access | None:
    """Where the weights of ``conv`` lie in blocks (strides of block, lane, input channel and taps), if so.

    They are then a view of an array [O/lanes, *K, C, lanes] that lies in memory.
    """
    w = conv.operands[1]
    lanes = block_of_weights(w.type)
    if not lanes or w.type.shape[0] % lanes:
        return None
    producers, v = graph.producers(), w
    while v in producers and producers[v].prim.name == "reshape":
        v = producers[v].operands[0]
    out, *rest = w.type.shape
    want = (out // lanes, lanes, *rest)
    found = access_of(v, producers) if v is not w else None
    if found is None or not found.pure or _long(v.type.shape) != _long(want):
        return None
    kept = iter([s for d, s in zip(v.type.shape, found.strides, strict=True) if d != 1])
    strides = tuple(0 if d == 1 else next(kept) for d in want)
    return replace(found, strides=strides) if strides[1:3] == (1, lanes if rest[0] > 1 else 0) else None


def _long(shape: Sequence[int]) -> list[int]:
    return [d for d in shape if d != 1]
