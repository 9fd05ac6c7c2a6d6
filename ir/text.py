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
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from weft.ir.graph import Graph, Op, Value
from weft.ir.prims.base import PRIMITIVES, Primitive
from weft.ir.types import CPU, Device, Dim, DType, TensorType, dtype_named, dtype_of_numpy

_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")


# printing ----------------------------------------------------------------


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


# parsing ----------------------------------------------------------------

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<string>"(?:[^"\\]|\\.)*")
  | (?P<value>%\w+)
  | (?P<array>[a-z]+\d*\[[\d,]*\]:0x[0-9a-f]*)
  | (?P<bits>f64:0x[0-9a-f]{16})
  | (?P<type>[a-z]+\d*\[[\w,]*\](?:@\w+(?::\d+)?)?)
  | (?P<place>(?:device|dim)\([^)]*\))
  | (?P<number>-?(?:\d+\.\d*(?:e[-+]?\d+)?|\d+e[-+]?\d+|\d+))
  | (?P<word>[A-Za-z_]\w*)
  | (?P<loc>\#\ .*)
  | (?P<punct>[(){},=:])
    )""",
    re.VERBOSE,
)
_DIM = r"(?:\d+|[A-Za-z_]\w*)"
_TYPE = re.compile(rf"([a-z]+\d*)\[({_DIM}(?:,{_DIM})*)?\](?:@(\w+)(?::(\d+))?)?")
_WORDS: dict[str, Any] = {"true": True, "false": False, "none": None}


class _Line:
    """The tokens of one line, read from left to right."""

    def __init__(self, text: str, number: int) -> None:
        self.number, self.text = number, text
        self.tokens: list[tuple[str, str]] = []
        at, end = 0, len(text.rstrip())
        while at < end:
            m = _TOKEN.match(text, at)
            if m is None:
                raise self.error(f"cannot read {text[at:].strip()!r}")
            kind = m.lastgroup or ""
            self.tokens.append((kind, m.group(kind)))
            at = m.end()
        self.at = 0

    def error(self, message: str) -> ValueError:
        return ValueError(f"line {self.number}: {message}\n    {self.text.strip()}")

    def fail(self, message: str) -> Any:
        raise self.error(message)

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.at] if self.at < len(self.tokens) else ("end", "")

    def next(self, kind: str) -> str:
        got, text = self.peek()
        if got != kind:
            self.fail(f"expected a {kind}, got {text or 'the end of the line'!r}")
        self.at += 1
        return text

    def accept(self, punct: str) -> bool:
        if self.peek() == ("punct", punct):
            self.at += 1
            return True
        return False

    def expect(self, punct: str) -> None:
        if not self.accept(punct):
            self.fail(f"expected {punct!r}, got {self.peek()[1] or 'the end of the line'!r}")

    def name(self) -> str:
        if self.peek()[0] == "string":
            return json.loads(self.next("string"))
        return self.next("word")

    def items(self, read: Callable[[], Any], close: str) -> list[Any]:
        """``read()`` separated by commas up to ``close``; a comma may come last."""
        out: list[Any] = []
        while not self.accept(close):
            out.append(read())
            if not self.accept(","):
                self.expect(close)
                break
        return out


def parse_type(text: str) -> TensorType:
    """A type from its text: ``f32[2,N]@cuda:0``; ValueError where it is none."""
    m = _TYPE.fullmatch(text)
    if m is None:
        raise ValueError(f"not a tensor type: {text!r}")
    dims = tuple(int(d) if d.isdigit() else Dim(d) for d in m[2].split(",")) if m[2] else ()
    device = CPU if m[3] is None else Device(m[3], None if m[4] is None else int(m[4]))
    try:
        return TensorType(dims, dtype_named(m[1]), CPU if device == CPU else device)
    except KeyError:
        raise ValueError(f"unknown dtype {m[1]!r} in {text!r}") from None


def _parse_array(text: str) -> np.ndarray:
    head, _, digits = text.partition(":0x")
    t = parse_type(head)
    return np.frombuffer(bytearray.fromhex(digits), t.dtype.np).reshape(t.shape)


def _parse_place(text: str) -> Device | Dim:
    what, _, inner = text[:-1].partition("(")
    if what == "dim":
        return Dim(inner)
    kind, _, index = inner.partition(":")
    return Device(kind, int(index)) if index else CPU if kind == "cpu" else Device(kind)


def _parse_number(text: str) -> int | float:
    return int(text) if text.lstrip("-").isdigit() else float(text)


def _parse_bits(text: str) -> float:
    return struct.unpack(">d", bytes.fromhex(text[6:]))[0]


_ATTR_PARSERS: dict[str, Callable[[str], Any]] = {
    "number": _parse_number,
    "bits": _parse_bits,
    "string": json.loads,
    "array": _parse_array,
    "place": _parse_place,
}


def _parse_word(line: _Line) -> Any:
    word = line.next("word")
    if word in _WORDS:
        return _WORDS[word]
    if word == "complex":
        line.expect("(")
        re_im = line.items(lambda: _parse_attr(line), ")")
        return complex(*re_im)
    try:
        return dtype_named(word)
    except KeyError:
        return line.fail(f"unknown attribute value {word!r}")


def _parse_attr(line: _Line) -> Any:
    kind, text = line.peek()
    if kind == "word":
        return _parse_word(line)
    if line.accept("("):
        return tuple(line.items(lambda: _parse_attr(line), ")"))
    parse = _ATTR_PARSERS.get(kind)
    if parse is None:
        line.fail(f"expected an attribute value, got {text!r}")
    assert parse is not None
    line.at += 1
    try:
        return parse(text)
    except ValueError as e:
        raise line.error(f"{text!r}: {e}") from e


class _Parser:
    def __init__(self, text: str) -> None:
        lines = enumerate(text.split("\n"), 1)
        self.lines = [(n, s) for n, s in lines if s and not s.isspace()]
        self.at = 0

    def line(self) -> _Line:
        if self.at >= len(self.lines):
            raise ValueError("the text ends inside a graph")
        n, s = self.lines[self.at]
        self.at += 1
        return _Line(s, n)

    def at_graph(self) -> bool:
        return self.at < len(self.lines) and self.lines[self.at][1].lstrip().startswith("graph ")

    def graph(self) -> Graph:
        line = self.line()
        if line.next("word") != "graph":
            line.fail("expected a graph")
        name = line.name()
        env: dict[str, Value] = {}
        line.expect("(")
        params = line.items(lambda: self.param(line, env), ")")
        line.expect("{")
        ops: list[Op] = []
        while True:
            line = self.line()
            if line.peek() == ("word", "return"):
                break
            ops.append(self.op(line, env))
        line.next("word")
        results = line.items(lambda: self.use(line, env), "}") if not self.done(line) else []
        self.line().expect("}")
        return Graph(params, ops, results, name)

    @staticmethod
    def done(line: _Line) -> bool:
        if line.peek()[0] == "end":
            return True
        line.tokens.append(("punct", "}"))  # a return line has no closing token of its own
        return False

    def param(self, line: _Line, env: dict[str, Value]) -> Value:
        ref, name = self.definition(line)
        line.expect(":")
        v = Value(self.type(line), name)
        return self.bind(line, env, ref, v)

    @staticmethod
    def type(line: _Line) -> TensorType:
        try:
            return parse_type(line.next("type"))
        except ValueError as e:
            return line.fail(str(e))

    @staticmethod
    def definition(line: _Line) -> tuple[str, str | None]:
        ref = line.next("value")
        if line.peek()[0] == "string":
            return ref, json.loads(line.next("string"))
        return ref, None if ref[1:].isdigit() else ref[1:]

    @staticmethod
    def bind(line: _Line, env: dict[str, Value], ref: str, v: Value) -> Value:
        if ref in env:
            line.fail(f"{ref} is defined twice")
        env[ref] = v
        return v

    @staticmethod
    def use(line: _Line, env: dict[str, Value]) -> Value:
        ref = line.next("value")
        return env[ref] if ref in env else line.fail(f"{ref} is not defined")

    def op(self, line: _Line, env: dict[str, Value]) -> Op:
        defs: list[tuple[str, str | None]] = []
        if line.peek()[0] == "value":
            defs = line.items(lambda: self.definition(line), "=")
        prim = self.primitive(line)
        line.expect("(")
        operands = line.items(lambda: self.use(line, env), ")")
        attrs = dict(line.items(lambda: self.attr(line), "}")) if line.accept("{") else {}
        types = self.types(line)
        loc = self.loc(line)
        regions: list[Graph] = []
        while self.at_graph():
            regions.append(self.graph())
        attrs = prim.normalize_attrs(attrs)
        if types is None:
            types = self.inferred(line, prim, operands, attrs, regions)
        if len(types) != len(defs):
            line.fail(f"{len(defs)} results but {len(types)} types")
        results = [self.bind(line, env, d[0], Value(t, d[1])) for t, d in zip(types, defs, strict=True)]
        return Op(prim, operands, attrs, results, regions, loc)

    @staticmethod
    def inferred(
        line: _Line, prim: Primitive, operands: list[Value], attrs: dict[str, Any], regions: list[Graph]
    ) -> Sequence[TensorType]:
        try:
            return prim.infer_types([v.type for v in operands], attrs, regions)
        except (TypeError, ValueError, KeyError) as e:
            raise line.error(f"{type(e).__name__}: {e}") from e

    @staticmethod
    def primitive(line: _Line) -> Primitive:
        name = line.next("word")
        return PRIMITIVES[name] if name in PRIMITIVES else line.fail(f"unknown primitive {name!r}")

    @staticmethod
    def attr(line: _Line) -> tuple[str, Any]:
        key = line.next("word")
        line.expect("=")
        return key, _parse_attr(line)

    def types(self, line: _Line) -> Sequence[TensorType] | None:
        if not line.accept(":"):
            return None
        out: list[TensorType] = []
        while line.peek()[0] == "type":
            out.append(self.type(line))
            line.accept(",")
        return out

    @staticmethod
    def loc(line: _Line) -> str | None:
        if line.peek()[0] == "end":
            return None
        loc = line.next("loc")[2:].strip()
        return json.loads(loc) if loc.startswith('"') else loc


def parse_graph(text: str) -> Graph:
    """The graph of a text; ValueError, with the line, where the text is not one.

    >>> print(parse_graph("graph f(%x: f32[3]) {\\n %y = neg(%x)\\n return %y\\n}"))
    graph f(%x: f32[3]) {
      %y = neg(%x): f32[3]
      return %y
    }
    """
    parser = _Parser(text)
    graph = parser.graph()
    if parser.at < len(parser.lines):
        n, s = parser.lines[parser.at]
        raise ValueError(f"line {n}: text after the graph\n    {s.strip()}")
    return graph


def value_names(graph: Graph, values: Iterable[Value]) -> list[str]:
    """How the text of ``graph`` refers to ``values``."""
    refs = _Printer(graph).refs
    return [refs.get(v, "%?") for v in values]
