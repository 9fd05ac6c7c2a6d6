"""Reading the text form of graphs: see :mod:`weft.ir.text` for what it looks like."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from weft.ir.graph import Graph, Op, Value
from weft.ir.prims.base import PRIMITIVES, Primitive
from weft.ir.types import CPU, Device, Dim, TensorType, dtype_named

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
