"""Replacing what code generation does not take by what it does."""

from __future__ import annotations

from collections.abc import Sequence

from weft.ir.graph import Graph, Op, Value
from weft.ir.prims import copy_p
from weft.ir.prims.base import Kind
from weft.ir.types import bf16, f16, f32
from weft.passes.dce import dce
from weft.passes.decompose_attention import ATTENTION
from weft.passes.rewriting import Rewriter, Rewritten, Rules, others
from weft.passes.simplify import SIMPLIFICATIONS

CPU_RULES = Rules(SIMPLIFICATIONS, ATTENTION)
TARGETS = {"cpu": CPU_RULES, "cuda": CPU_RULES, "null": CPU_RULES}
SELECTED = 8  # times as long as what is kept of it that a line is where the first are selected
_IDENTITY = {"sum": 0, "prod": 1, "any": False, "all": True}


def decompose(graph: Graph, target_kind: str = "cpu") -> Graph:
    """Write the graph in the operations that the target generates code for.

    Expects a simplified graph. Leaves no operation with an empty result but ``full``, no reduction or
    contraction of empty operands, no contraction that is an outer or an inner product (they are maps and
    sums, which fuse), no ``topk`` of much of a line; attention where a softmax stands between two
    contractions; and results that are values of their own: a result that is a parameter, a constant,
    another result or a view of one of these is copied.
    """
    return dce(separate_results(Rewriter(graph, TARGETS[target_kind]).run()))


def separate_results(graph: Graph) -> Graph:
    """Give every result storage of its own, with a ``copy`` where it would share."""
    makers = graph.producers()
    taken = set(graph.params)
    ops = list(graph.ops)
    results: list[Value] = []
    for v in graph.results:
        root = _storage(makers, v)
        made = makers.get(root)
        if root in taken or (made is not None and made.prim.name == "constant"):
            ops.append(Op(copy_p, (v,), {}, [Value(v.type, v.name)]))
            v = ops[-1].result
        taken.add(root)
        results.append(v)
    return graph if len(ops) == len(graph.ops) else Graph(graph.params, ops, results, graph.name)


def _storage(makers: dict[Value, Op], v: Value) -> Value:
    """The value whose memory ``v`` shares: reshapes are free."""
    while v in makers and makers[v].prim.name == "reshape":
        v = makers[v].operands[0]
    return v


@CPU_RULES.on("*")
def empty_result(r: Rewriter, op: Op) -> Rewritten:
    if op.prim.kind in (Kind.SOURCE, Kind.HOST, Kind.CONTROL, Kind.KERNEL):
        return None
    if any(v.type.size for v in op.results):
        return None
    return tuple(r.full(v.type, v.type.dtype.np.type(0).item()) for v in op.results)


@CPU_RULES.on(*_IDENTITY)
def reduction_of_nothing(r: Rewriter, op: Op) -> Rewritten:
    if op.operands[0].type.size:
        return None
    return r.full(op.result.type, op.result.type.dtype.np.type(_IDENTITY[op.prim.name]).item())


@CPU_RULES.on("dot_general", "conv")
def contraction_of_nothing(r: Rewriter, op: Op) -> Rewritten:
    if all(v.type.size for v in op.operands):
        return None
    return r.full(op.result.type, op.result.type.dtype.np.type(0).item())


@CPU_RULES.on("dot_general")
def outer_product(r: Rewriter, op: Op) -> Rewritten:
    """Nothing, or one term, to sum: a map of broadcast operands."""
    contract, nb = op.attrs["contract"], len(op.attrs["batch"][0])
    if any(op.operands[0].type.shape[i] != 1 for i in contract[0]):
        return None
    a, b = (_in_order(r, op, side) for side in (0, 1))
    a, b = (r.reshape(v, v.type.shape[: v.type.ndim - len(contract[0])]) for v in (a, b))
    shape, na = op.result.type.shape, a.type.ndim
    left = r.emit("broadcast", a, shape=shape, axes=tuple(range(na)))
    right = r.emit("broadcast", b, shape=shape, axes=(*range(nb), *range(na, len(shape))))
    return r.emit("mul", left, right)


@CPU_RULES.on("dot_general")
def inner_product(r: Rewriter, op: Op) -> Rewritten:
    """Nothing free on either side: a sum of products. Halves are multiplied in f32, where they accumulate."""
    dims = [(v.type, op.attrs["contract"][i], op.attrs["batch"][i]) for i, v in enumerate(op.operands)]
    if any(t.shape[i] != 1 for t, c, s in dims for i in others((*c, *s), t.ndim)):
        return None
    n = len(op.attrs["contract"][0])
    a, b = (_in_order(r, op, side) for side in (0, 1))
    lead = op.result.type.shape[: len(op.attrs["batch"][0])]
    tail = a.type.shape[a.type.ndim - n :]
    a, b = (r.reshape(v, (*lead, *tail)) for v in (a, b))
    dtype = op.result.type.dtype
    if dtype in (f16, bf16):
        a, b = r.convert(a, f32), r.convert(b, f32)
    total = r.emit("sum", r.emit("mul", a, b), axes=tuple(range(len(lead), len(lead) + n)))
    return r.reshape(r.convert(total, dtype), op.result.type.shape)


def _in_order(r: Rewriter, op: Op, side: int) -> Value:
    """An operand of a contraction as (batch..., free..., contracted...)."""
    v, contract, batch = op.operands[side], op.attrs["contract"][side], op.attrs["batch"][side]
    perm = (*batch, *others((*contract, *batch), v.type.ndim), *contract)
    return v if perm == tuple(range(v.type.ndim)) else r.emit("permute", v, perm=perm)


@CPU_RULES.on("topk")
def topk_by_sorting(r: Rewriter, op: Op) -> Rewritten:
    """Of a line that is not much longer than what is wanted of it; a longer one is selected from."""
    x, axis = op.operands[0], op.attrs["axis"]
    if 0 < op.attrs["k"] * SELECTED <= x.type.shape[axis]:
        return None
    values, indices = r.emit_all("sort", x, axis=axis, descending=op.attrs["largest"])
    return _first(r, values, axis, op.attrs["k"]), _first(r, indices, axis, op.attrs["k"])


def _first(r: Rewriter, x: Value, axis: int, k: int) -> Value:
    stop: Sequence[int] = [k if i == axis else d for i, d in enumerate(x.type.shape)]
    return r.emit("slice", x, start=(0,) * x.type.ndim, stop=tuple(stop), step=(1,) * x.type.ndim)


@CPU_RULES.on("take_along")
def note_checked_index(r: Rewriter, op: Op) -> Rewritten:
    """Where an index was read with, it is known to be in range (or the whole call fails)."""
    x, index = op.operands
    axis = op.attrs["axis"]
    r.notes.add((index, axis, x.type.shape[axis]))
    return None


@CPU_RULES.on("scatter_along")
def one_write_per_row(r: Rewriter, op: Op) -> Rewritten:
    """One update along the axis: a map over the operand, which fuses.

    This is the gradient of picking one element per row, as negative log-likelihood does. An index that is not
    checked elsewhere is read through the positions of the axis, which checks it.
    """
    (x, index, update), axis, mode = op.operands, op.attrs["axis"], op.attrs["mode"]
    shape = x.type.shape
    rest = others((axis,), len(shape))
    if mode not in ("add", "set"):
        return None
    if index.type.shape[axis] != 1 or any(index.type.shape[i] != shape[i] for i in rest):
        return None
    if (index, axis, shape[axis]) not in r.notes:
        positions = r.emit("iota", shape=shape, dtype=index.type.dtype, axis=axis, device=x.type.device)
        index = r.emit("take_along", positions, index, axis=axis)
    row = tuple(shape[i] for i in rest)
    spread = [r.emit("broadcast", r.reshape(v, row), shape=shape, axes=rest) for v in (index, update)]
    place = r.emit("iota", shape=shape, dtype=index.type.dtype, axis=axis, device=x.type.device)
    written = spread[1] if mode == "set" else r.emit("add", x, spread[1])
    return r.emit("where", r.emit("eq", place, spread[0]), written, x)
