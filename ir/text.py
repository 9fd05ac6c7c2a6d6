"""The text form of graphs: :func:`print_graph` and :func:`parse_graph`; the round trip is the identity.

::

    graph main(%x: f32[2,3], %1: f32[2,3]) {
      %2 = mul(%x, %1): f32[2,3]  # train.py:12
      %3, %4 = sort(%2) {axis=1}: f32[2,3], i64[2,3]
      %5 = cond(%3, %2): f32[2,3]
        graph then(%0: f32[2,3]) {
          return %0
        }
        graph otherwise(%0: f32[2,3]) {
          %1 = neg(%0): f32[2,3]
          return %1
        }
      return %5, %4
    }

Values are numbered in the order of their definition, afresh in each region; a value with a name shows it
(``%x``, or ``%7 "layer.1"`` where it is no identifier or is taken). Attributes are sorted and those that
equal the default are left out. Numbers that are not finite, and arrays, are written as bit patterns. The
result types may be left out when parsing: they are inferred.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from weft.ir.graph import Graph, Op, Value
from weft.ir.prims.base import Primitive
from weft.ir.text_parse import parse_graph, parse_type
from weft.ir.types import Device, Dim, DType, TensorType, dtype_of_numpy

__all__ = [
    "canonical_text",
    "op_printer",
    "parse_graph",
    "parse_type",
    "print_attr",
    "print_graph",
    "value_names",
]

_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")


def print_graph(graph: Graph, *, locs: bool = True, names: bool = True) -> str:
    """The text of ``graph``.

    Without ``locs`` and ``names`` (of values and graphs) the text depends only on what the graph computes,
    which makes it a key for caches. Linear in the size of the graph.

    >>> from weft.ir.prims.base import trace
    >>> from weft.ir.types import f32
    >>> print(print_graph(trace(lambda x: x + x, TensorType((3,), f32), name="twice")))
    graph twice(%0: f32[3]) {
      %1 = add(%0, %0): f32[3]
      return %1
    }
    """
    out: list[str] = []
    _Printer(graph, locs, names).write(out, "")
    return "\n".join(out)


def canonical_text(graph: Graph) -> str:
    """The text without names and source lines: equal for graphs that compute the same in the same order."""
    return print_graph(graph, locs=False, names=False)


class _Printer:
    """Names the values of one graph (not of its regions) and writes its lines."""

    def __init__(self, graph: Graph, locs: bool = True, names: bool = True, lenient: bool = False) -> None:
        self.graph, self.locs, self.names = graph, locs, names
        self.show = _print_anything if lenient else print_attr
        self.refs: dict[Value, str] = {}
        self.shown: dict[Value, str] = {}  # the text at the definition, where it is more than the reference
        self.types: dict[int, str] = {}
        taken: set[str] = set()
        n = 0
        for values in (graph.params, *(op.results for op in graph.ops)):
            for v in values:
                self.refs[v] = ref = f"%{n}"
                n += 1
                if names and v.name is not None:
                    if v.name not in taken and _IDENTIFIER.fullmatch(v.name):
                        taken.add(v.name)
                        self.refs[v] = f"%{v.name}"
                    else:
                        self.shown[v] = f"{ref} {json.dumps(v.name)}"

    def define(self, v: Value) -> str:
        return self.shown.get(v) or self.refs[v]

    def refer(self, v: Value) -> str:
        return self.refs.get(v) or "%?"

    def type(self, t: TensorType) -> str:
        s = self.types.get(id(t))
        if s is None:
            s = self.types[id(t)] = str(t)
        return s

    def op(self, op: Op) -> str:
        """The line of one operation, without its regions."""
        refs = self.refs
        s = ", ".join([self.define(r) for r in op.results])
        s += f" = {op.prim.name}(" if s else f"{op.prim.name}("
        s += ", ".join([refs.get(v) or "%?" for v in op.operands]) + ")"
        attrs = _print_attrs(op.attrs, op.prim, self.show)
        if attrs:
            s += f" {{{attrs}}}"
        s += ": " + ", ".join([self.type(r.type) for r in op.results])
        return f"{s}  # {_print_loc(op.loc)}" if self.locs and op.loc is not None else s

    def write(self, out: list[str], indent: str) -> None:
        g = self.graph
        name = _print_name(g.name) if self.names else "_"
        params = ", ".join([f"{self.define(p)}: {self.type(p.type)}" for p in g.params])
        out.append(f"{indent}graph {name}({params}) {{")
        for op in g.ops:
            out.append(f"{indent}  {self.op(op)}")
            for region in op.regions:
                _Printer(region, self.locs, self.names).write(out, indent + "    ")
        out.append(f"{indent}  return {', '.join([self.refer(r) for r in g.results])}".rstrip())
        out.append(indent + "}")


def op_printer(graph: Graph) -> Callable[[Op], str]:
    """A function from an operation of ``graph`` to its line, for messages: it prints any graph, sound or not.

    Undefined values print as ``%?``, attributes of other types as Python shows them.
    """
    return _Printer(graph, lenient=True).op


def _print_name(name: str) -> str:
    return name if _IDENTIFIER.fullmatch(name) else json.dumps(name)


def _print_loc(loc: str) -> str:
    return loc if loc.isprintable() and loc.strip() == loc and loc and loc[0] != '"' else json.dumps(loc)


def _is_default(value: Any, defaults: Mapping[str, Any], key: str) -> bool:
    if key not in defaults:
        return False
    default = defaults[key]
    return value is default or (type(value) is type(default) and print_attr(value) == print_attr(default))


def _print_attrs(attrs: Mapping[str, Any], prim: Primitive, show: Callable[[Any], str]) -> str:
    if not attrs:
        return ""
    defaults = prim.defaults
    kept = [k for k in sorted(attrs) if not _is_default(attrs[k], defaults, k)]
    return ", ".join([f"{k}={show(attrs[k])}" for k in kept])


def _print_float(x: float) -> str:
    return repr(x) if math.isfinite(x) else f"f64:0x{struct.pack('>d', x).hex()}"


def _print_array(x: np.ndarray) -> str:
    little = np.ascontiguousarray(x)
    if little.dtype.byteorder == ">":
        little = little.astype(little.dtype.newbyteorder("<"))
    return f"{dtype_of_numpy(x.dtype).name}[{','.join(map(str, x.shape))}]:0x{little.tobytes().hex()}"


def _print_tuple(x: tuple[Any, ...]) -> str:
    return f"({print_attr(x[0])},)" if len(x) == 1 else f"({', '.join([print_attr(v) for v in x])})"


_PRINTERS: dict[type, Callable[[Any], str]] = {
    int: repr,
    float: _print_float,
    bool: lambda x: "true" if x else "false",
    type(None): lambda x: "none",
    str: json.dumps,
    tuple: _print_tuple,
    DType: lambda x: x.name,
    complex: lambda x: f"complex({_print_float(x.real)}, {_print_float(x.imag)})",
    Device: lambda x: f"device({x})",
    Dim: lambda x: f"dim({x})",
    np.ndarray: _print_array,
}


def print_attr(value: Any) -> str:
    """The text of one attribute value; TypeError for a type that attributes cannot have."""
    printer = _PRINTERS.get(type(value))
    if printer is not None:
        return printer(value)
    if isinstance(value, np.generic):
        return print_attr(value.item())
    raise TypeError(f"an attribute cannot be a {type(value).__name__}: {value!r}")


def _print_anything(value: Any) -> str:
    try:
        return print_attr(value)
    except TypeError:
        return repr(value)


def value_names(graph: Graph, values: Iterable[Value]) -> list[str]:
    """How the text of ``graph`` refers to ``values``."""
    refs = _Printer(graph).refs
    return [refs.get(v, "%?") for v in values]
