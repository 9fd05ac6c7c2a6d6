"""The verifier: a graph that breaks a rule of the IR is shown with the operations around the fault."""

from __future__ import annotations

from typing import Any

import numpy as np
from weft.ir.errors import VerificationError
from weft.ir.graph import Graph, Op, Value
from weft.ir.prims.base import PRIMITIVES
from weft.ir.text import op_printer
from weft.ir.types import Device, Dim, DType, dtype_of_numpy

_CONTEXT = 2  # operations shown before and after the faulty one
_SCALARS = (int, float, complex, bool, str, type(None), DType, Device, Dim)


def verify(graph: Graph) -> Graph:
    """Check ``graph`` and its regions; returns it, so that passes can be chained.

    Checked: every value is defined once and before its uses; result types equal those the primitive infers;
    attributes are of allowed types; a region reads nothing of the graph around it. Raises VerificationError
    with the neighbouring operations and their source lines.
    """
    _verify(graph, set())
    return graph


def _verify(graph: Graph, outer: set[Value]) -> None:
    defined: set[Value] = set()
    for p in graph.params:
        if p in defined or p in outer:
            raise VerificationError(f"graph {graph.name}: parameter {p!r} is defined twice", graph)
        defined.add(p)
    for i, op in enumerate(graph.ops):
        fault = _operand_fault(op, defined, outer) or _attr_fault(op) or _result_fault(op, defined | outer)
        if fault is None:
            for region in op.regions:
                _verify(region, defined | outer)
            fault = _type_fault(op)
        if fault is not None:
            raise VerificationError(_report(graph, i, fault), graph)
        defined.update(op.results)
    for j, r in enumerate(graph.results):
        if r not in defined:
            where = "a graph around it" if r in outer else "no operation"
            raise VerificationError(
                _report(graph, len(graph.ops), f"result {j} is defined by {where}"), graph
            )


def _operand_fault(op: Op, defined: set[Value], outer: set[Value]) -> str | None:
    if PRIMITIVES.get(op.prim.name) is not op.prim:
        return "the primitive is not in the registry"
    for j, v in enumerate(op.operands):
        if v not in defined:
            if v in outer:
                return f"operand {j} belongs to a graph around the region; regions are closed"
            return f"operand {j} is not defined before its use"
    return None


def _result_fault(op: Op, taken: set[Value]) -> str | None:
    for j, r in enumerate(op.results):
        if r in taken or r in op.results[:j]:
            return f"result {j} is defined twice"
    return None


def _attr_fault(op: Op) -> str | None:
    for key, value in op.attrs.items():
        bad = _bad_attr(value)
        if bad is not None:
            return f"attribute {key} holds a {type(bad).__name__}, which attributes cannot have"
    return None


def _bad_attr(value: Any) -> Any | None:
    """The part of an attribute value whose type is not allowed; None where all is well."""
    if isinstance(value, tuple):
        return next((bad for bad in map(_bad_attr, value) if bad is not None), None)
    if isinstance(value, np.ndarray):
        try:
            dtype_of_numpy(value.dtype)
        except TypeError:
            return value
        return None
    return None if type(value) in _SCALARS else value


def _type_fault(op: Op) -> str | None:
    try:
        types = op.prim.infer_types([v.type for v in op.operands], op.attrs, op.regions)
    except Exception as e:
        return f"the type rule refuses it: {type(e).__name__}: {e}"
    have = tuple(r.type for r in op.results)
    if types != have:
        return f"result types are {_types(have)} but the type rule infers {_types(types)}"
    return None


def _types(types: tuple[Any, ...]) -> str:
    return "(" + ", ".join(map(str, types)) + ")"


def _report(graph: Graph, at: int, fault: str) -> str:
    """The fault with its neighbourhood; ``at`` past the last operation points at the return."""
    show = op_printer(graph)
    lines = [f"{'' if at >= len(graph.ops) else graph.ops[at].prim.name + ': '}{fault}"]
    lines.append(f"in graph {graph.name}, operation {at} of {len(graph.ops)}:")
    for i in range(max(0, at - _CONTEXT), min(len(graph.ops), at + _CONTEXT + 1)):
        lines.append(f"  {'->' if i == at else '  '} {show(graph.ops[i])}")
    if at >= len(graph.ops):
        lines.append("  -> return")
    return "\n".join(lines)
