"""Operands of PTX instructions, and the names that they use."""

from __future__ import annotations

import re
import struct

from weft.runtime.emulate.ptx_ast import (
    Address,
    Imm,
    Not,
    Operand,
    Pair,
    PtxSyntaxError,
    Reg,
    Special,
    Sym,
    Vector,
)
from weft.runtime.emulate.ptx_lex import tokens

_NUMBERED = re.compile(r"(.*?)(0|[1-9]\d*)$")
SPECIALS = re.compile(
    r"%(tid|ntid|ctaid|nctaid)(\.[xyz])?$|%(laneid|warpid|nwarpid|smid|nsmid|gridid|clock|clock_hi|clock64"
    r"|globaltimer|globaltimer_lo|globaltimer_hi|lanemask_(eq|le|lt|ge|gt)|dynamic_smem_size|total_smem_size"
    r"|is_explicit_cluster|cluster_\w+|clusterid\.[xyz]|nclusterid\.[xyz]|envreg\d+|pm\d+)$"
)


class Scope:
    """The registers declared between a pair of braces."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.registers: dict[str, Reg] = {}
        self.ranges: dict[str, tuple[int, str]] = {}

    def find(self, name: str) -> Reg | None:
        found = self.registers.get(name)
        if found is None and self.ranges:
            match = _NUMBERED.match(name)
            if match and match[1] in self.ranges:
                count, kind = self.ranges[match[1]]
                if int(match[2]) < count:
                    found = self.registers[name] = Reg(self.unique(name), kind)
        return found

    def unique(self, name: str) -> str:
        return f"{name}@{self.number}" if self.number else name


class OperandParser:
    """Where the parser stands in the text, and what it knows of operands."""

    def __init__(self, text: str) -> None:
        self.texts, self.kinds, self.lines = tokens(text)
        self.at = 0
        self.scopes: list[Scope] = []
        self.opened = 0
        self.renamed: list[dict[str, str]] = []

    # tokens

    @property
    def text(self) -> str:
        return self.texts[self.at]

    @property
    def kind(self) -> str:
        return self.kinds[self.at]

    @property
    def line(self) -> int:
        return self.lines[self.at]

    def next(self) -> str:
        text = self.texts[self.at]
        if text:
            self.at += 1
        return text

    def fail(self, message: str) -> PtxSyntaxError:
        return PtxSyntaxError(self.line, message)

    def accept(self, text: str) -> bool:
        if self.texts[self.at] == text:
            self.at += 1
            return True
        return False

    def expect(self, text: str) -> None:
        if not self.accept(text):
            raise self.fail(f"expected {text!r}, found {self.text!r}")

    def name(self) -> str:
        at = self.at
        if self.kinds[at] != "name":
            raise self.fail(f"expected a name, found {self.text!r}")
        self.at = at + 1
        return self.texts[at]

    def integer(self) -> int:
        negative = self.accept("-")
        value = _number(self.kind, self.text)
        if value is None or value.kind != "int":
            raise self.fail(f"expected an integer, found {self.text!r}")
        self.next()
        return -value.value if negative else value.value

    def skip_line(self) -> None:
        line = self.line
        while self.line == line and self.kind != "end":
            self.next()

    # operands

    def operand(self) -> Operand:
        text = self.text
        if text == "{":
            return self.vector()
        if text == "[":
            return self.address()
        if text == "!":
            self.next()
            of = self.operand()
            if not isinstance(of, Reg):
                raise self.fail("only a predicate can be negated")
            return Not(of)
        if text == "-" or self.kind == "number":
            return self.immediate()
        first = self.reference()
        if self.accept("|"):
            return Pair(first, self.reference())
        return first

    def immediate(self) -> Imm:
        negative = self.accept("-")
        value = _number(self.kind, self.text)
        if value is None:
            raise self.fail(f"expected a number, found {self.text!r}")
        self.next()
        if not negative:
            return value
        if value.kind == "int":
            return Imm(-value.value)
        return Imm(value.value ^ (1 << (31 if value.kind == "f32" else 63)), value.kind)

    def reference(self) -> Operand:
        name = self.name()
        for scope in reversed(self.scopes):
            found = scope.find(name)
            if found is not None:
                return found
        if name.startswith("%") and SPECIALS.match(name):
            return Special(name[1:])
        if name == "WARP_SZ":
            return Imm(32)
        if name.startswith("%"):
            raise self.fail(f"undeclared register {name}")
        return Sym(self.resolve_label(name), self.offset())

    def offset(self) -> int:
        total = 0
        while self.text in ("+", "-"):
            sign = -1 if self.next() == "-" else 1
            total += sign * self.integer()
        return total

    def address(self) -> Operand:
        self.expect("[")
        if self.kind == "number":
            found: Operand = Address(None, self.integer())
        else:
            base = self.reference()
            found = Address(base, self.offset())
            if self.text == ",":
                raise self.fail("tensor and surface addresses are not supported")
        self.expect("]")
        return found

    def vector(self) -> Vector:
        self.expect("{")
        items: list[Operand] = []
        while not self.accept("}"):
            items.append(self.operand())
            self.accept(",")
        return Vector(tuple(items))

    def resolve_label(self, name: str) -> str:
        for renamed in reversed(self.renamed):
            if name in renamed:
                return renamed[name]
        return name if len(self.scopes) == 1 else self.forward_label(name)

    def forward_label(self, name: str) -> str:
        """A label further on: of this scope, where it stands before the scope's end."""
        depth, at = 0, self.at
        while depth >= 0 and at + 1 < len(self.texts):
            text = self.texts[at]
            if depth == 0 and text == name and self.texts[at + 1] == ":":
                return self.scopes[-1].unique(name)
            depth += (text == "{") - (text == "}")
            at += 1
        return name


def _number(kind: str, text: str) -> Imm | None:
    if kind != "number":
        return None
    if text[:2] in ("0f", "0F"):
        return Imm(int(text[2:], 16), "f32")
    if text[:2] in ("0d", "0D"):
        return Imm(int(text[2:], 16), "f64")
    if "." in text:
        return Imm(int.from_bytes(struct.pack("<d", float(text)), "little"), "f64")
    text = text.rstrip("U")
    if len(text) > 1 and text[0] == "0" and text[1] in "01234567":
        return Imm(int(text, 8))
    return Imm(int(text, 0))
