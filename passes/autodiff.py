"""Reverse-mode differentiation: one walk, :func:`backprop`, for the tape, for graphs and under the Recorder.

The walk reads only primitives, operands, results and attributes, and emits through ``bind``: what the
gradient *is* (arrays, graph values, tensors that are taped again) is decided by the interpreter that is
current.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any

from weft.ir.graph import Graph, GraphBuilder, Op, Value
from weft.ir.prims.base import (
    PRIMITIVES,
    GraphInterpreter,
    Kind,
    Primitive,
    current_interpreter,
    interpreting,
)
from weft.ir.record import record
from weft.passes.dce import dce
from weft.passes.partition import partition

Key = Hashable


@record(slots=True)
class OpRecord:
    """One operation that ran: what the reverse walk needs to know of it.

    ``operands`` and ``results`` are values of the current interpreter; those that the gradient rule does
    not read (``Primitive.needs``) may be anything that has a type (see :func:`weft.ir.prims.base.type_of`).
    Each key names a value across records (a graph Value, a tape id); None says that no gradient can flow
    through that value.
    """

    prim: Primitive
    operands: Sequence[Any]
    results: Sequence[Any]
    attrs: Mapping[str, Any]
    regions: Sequence[Graph]
    operand_keys: Sequence[Key | None]
    result_keys: Sequence[Key | None]
    loc: str | None = None


def backprop(
    records: Sequence[OpRecord],
    cotangents: Mapping[Key, Any],
    needed: Collection[Key],
    on_cotangent: Callable[[Key, Any], Any] | None = None,
) -> dict[Key, Any]:
    """The cotangents of the ``needed`` keys, given those of some results of ``records`` (in program order).

    Contributions are added with ``add_p``. Records that no needed key reaches, or that no cotangent
    reaches, are skipped. ``on_cotangent(key, ct)`` is called once per key, when its cotangent is complete,
    before it flows on; what it returns (unless None) takes its place. A needed key that no cotangent
    reaches is absent from the result. Raises RuntimeError for an operation on the path that has no gradient
    rule.
    """
    needed = needed if isinstance(needed, (set, frozenset, dict)) else set(needed)
    live = _live_keys(records, needed)
    pending = {k: v for k, v in cotangents.items() if k in live}
    found: dict[Key, Any] = {}

    def take(key: Key | None) -> Any:
        ct = pending.pop(key, None) if key is not None else None
        if ct is None:
            return None
        if on_cotangent is not None:
            replaced = on_cotangent(key, ct)
            ct = ct if replaced is None else replaced
        if key in needed:
            found[key] = ct
        return ct

    for done in reversed(records):
        cts = [take(k) for k in done.result_keys]
        if all(ct is None for ct in cts) or not any(k in live for k in done.operand_keys):
            continue
        for key, ct in zip(done.operand_keys, _vjp(done, cts), strict=True):
            if ct is not None and key is not None and key in live:
                old = pending.get(key)
                pending[key] = ct if old is None else PRIMITIVES["add"].bind(old, ct)
    for key in list(pending):
        take(key)
    return found


def _live_keys(records: Sequence[OpRecord], needed: Collection[Key]) -> set[Key]:
    """The needed keys and every key that is computed from one of them by a differentiable operation."""
    live = set(needed)
    for done in records:
        if not done.prim.nondifferentiable and any(k in live for k in done.operand_keys if k is not None):
            live.update(k for k in done.result_keys if k is not None)
    return live


def _vjp(record: OpRecord, cts: Sequence[Any]) -> Sequence[Any]:
    """The cotangents of the operands of one record."""
    prim = record.prim
    if prim.nondifferentiable:
        return (None,) * len(record.operand_keys)
    if prim.vjp is None:
        raise RuntimeError(f"derivative for {prim.name} is not implemented" + _at(record.loc))
    interpreter = current_interpreter()
    if isinstance(interpreter, GraphInterpreter) and record.loc is not None:
        interpreter.loc = record.loc
    single = len(record.results) == 1
    extra: dict[str, Any] = {}
    if prim.kind is Kind.CONTROL:
        extra = {"regions": tuple(record.regions), "differentiate": gradient_graph}
    ct, out = (cts[0], record.results[0]) if single else (tuple(cts), tuple(record.results))
    return prim.vjp(ct, out, *record.operands, **record.attrs, **extra)


def _at(loc: str | None) -> str:
    return f" (at {loc})" if loc else ""


def records_of(graph: Graph) -> list[OpRecord]:
    """The operations of a graph as records. Keys are its Values, None for those of integer or bool type."""
    return [_record(op) for op in graph.ops]


def _record(op: Op) -> OpRecord:
    keys = [_key(v) for v in op.operands], [_key(v) for v in op.results]
    return OpRecord(op.prim, op.operands, op.results, op.attrs, op.regions, *keys, op.loc)


def _key(v: Value) -> Value | None:
    return v if v.type.dtype.is_inexact else None


def joint_graph(graph: Graph, wrt: Sequence[int], outputs: Sequence[int]) -> Graph:
    """``(params..., cotangents of outputs...) -> (results..., gradients of the params wrt...)``.

    The forward operations come first, unchanged. A parameter that the outputs do not depend on gets zeros.
    """
    b = GraphBuilder(graph.name)
    b.params = list(graph.params)
    b.ops = list(graph.ops)
    seeds: dict[Key, Value] = {}
    interpreter = GraphInterpreter(b)
    with interpreting(interpreter):
        for i in outputs:
            result = graph.results[i]
            ct = b.param(result.type, f"ct{i}")
            seeds[result] = PRIMITIVES["add"].bind(seeds[result], ct) if result in seeds else ct
        params = [graph.params[i] for i in wrt]
        found = backprop(records_of(graph), seeds, set(params))
        interpreter.loc = None
        grads = [found[p] if p in found else _zeros(p) for p in params]
    return b.finish([*graph.results, *grads])


def _zeros(like: Value) -> Value:
    t = like.type
    return PRIMITIVES["full"].bind(shape=t.shape, dtype=t.dtype, value=0, device=t.device)


def gradient_graph(graph: Graph, wrt: Sequence[int], outputs: Sequence[int]) -> Graph:
    """``(params..., cotangents of outputs...) -> gradients of the params wrt...``: what gradient rules of
    control primitives get as ``differentiate``. The forward operations that the gradients read are computed
    again inside.
    """
    joint = joint_graph(graph, wrt, outputs)
    return dce(Graph(joint.params, joint.ops, joint.results[len(graph.results) :], f"{graph.name}_grad"))


@record(frozen=True)
class ForwardBackward:
    """A graph split for differentiation outside of it.

    ``forward``: the params -> the results, then ``n_saved`` saved values. ``backward``: (saved...,
    cotangents of the chosen outputs...) -> gradients of the chosen params.
    """

    forward: Graph
    backward: Graph
    n_saved: int


def forward_backward(graph: Graph, wrt: Sequence[int], outputs: Sequence[int]) -> ForwardBackward:
    """Differentiate ``graph``: gradients of the params ``wrt`` for cotangents of the results ``outputs``.

    What the forward part saves and what the backward part computes again is decided by
    :func:`weft.passes.partition.partition`.
    """
    joint = joint_graph(graph, wrt, outputs)
    forward, backward, n_saved = partition(joint, len(graph.params), len(graph.results))
    return ForwardBackward(forward, backward, n_saved)
