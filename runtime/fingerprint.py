"""A canonical hash of a graph: equal for graphs that compile to the same code, whatever their values are
called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from weft.ir.graph import Graph, Op, Value
from weft.ir.types import Device, Dim, DType, TensorType
from weft.runtime.digest import digest


def fingerprint(graph: Graph) -> str:
    """Hex digest of a graph's types, operations, attributes and regions; not of names or source lines."""
    parts: list[str] = []
    _graph(graph, parts, {})
    return _digest("\n".join(parts).encode())


def op_fingerprint(op: Op) -> str:
    """Hex digest of one operation and the types of its operands."""
    parts = [_attrs(op.attrs), *(str(v.type) for v in op.operands), *(str(r.type) for r in op.results)]
    parts.append(op.prim.name)
    for region in op.regions:
        _graph(region, parts, {})
    return _digest("\n".join(parts).encode())


def _digest(data: bytes) -> str:
    return digest(data).hex()


def _graph(graph: Graph, parts: list[str], known: dict[int, str]) -> None:
    """Adds the text of a graph. ``known``: that of types and attributes by their ids, many of which values
    and operations share."""
    number: dict[Value, str] = {}
    for p in graph.params:
        number[p] = str(len(number))
        parts.append(_type(p.type, known))
    for op in graph.ops:
        attrs = known.get(id(op.attrs)) if op.attrs else ""
        if attrs is None:
            attrs = known[id(op.attrs)] = _attrs(op.attrs)
        operands = ",".join([number[v] for v in op.operands])
        types = ",".join([_type(r.type, known) for r in op.results])
        parts.append(f"{op.prim.name}({operands}){{{attrs}}}{types}")
        for region in op.regions:
            parts.append("(")
            _graph(region, parts, known)
            parts.append(")")
        for r in op.results:
            number[r] = str(len(number))
    parts.append("return " + ",".join([number[r] for r in graph.results]))


def _type(type: TensorType, known: dict[int, str]) -> str:
    text = known.get(id(type))
    if text is None:
        text = known[id(type)] = str(type)
    return text


def _attrs(attrs: Mapping[str, Any]) -> str:
    return ";".join([f"{k}={_attr(v)}" for k, v in sorted(attrs.items())]) if attrs else ""


def _attr(value: Any) -> str:
    """One attribute, typed: ``1``, ``1.0`` and ``True`` differ, and so do ``0.0`` and ``-0.0``."""
    if isinstance(value, (tuple, list)):
        return "(" + ",".join([_attr(v) for v in value]) + ")"
    if isinstance(value, np.ndarray):
        return f"array:{value.dtype}:{value.shape}:{_digest(value.tobytes())}"
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return f"{type(value).__name__}:{value!r}"
    if isinstance(value, DType):
        return "dtype:" + value.name
    if isinstance(value, (Device, Dim, np.generic)):
        return f"{type(value).__name__}:{value}"
    raise TypeError(f"an attribute of type {type(value).__name__} cannot be hashed")
