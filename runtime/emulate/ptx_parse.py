"""PTX text, as LLVM emits it and as written by hand, to a Module."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from weft.runtime.emulate.ptx_ast import (
    SIZES,
    Address,
    Function,
    Imm,
    Instruction,
    Label,
    Module,
    Not,
    Operand,
    Pair,
    PtxSyntaxError,
    Reg,
    Special,
    Sym,
    Targets,
    Variable,
    Vector,
)
from weft.runtime.emulate.ptx_lex import tokens

_SPACES = {".global": "global", ".const": "const", ".shared": "shared", ".local": "local", ".param": "param"}
_LINKAGE = {".visible", ".extern", ".weak", ".common", ".internal"}
_NUMBERED = re.compile(r"(.*?)(0|[1-9]\d*)$")
SPECIALS = re.compile(
    r"%(tid|ntid|ctaid|nctaid)(\.[xyz])?$|%(laneid|warpid|nwarpid|smid|nsmid|gridid|clock|clock_hi|clock64"
    r"|globaltimer|globaltimer_lo|globaltimer_hi|lanemask_(eq|le|lt|ge|gt)|dynamic_smem_size|total_smem_size"
    r"|is_explicit_cluster|cluster_\w+|clusterid\.[xyz]|nclusterid\.[xyz]|envreg\d+|pm\d+)$"
)


def parse(text: str) -> Module:
    """The module that a PTX text describes. PtxSyntaxError, which names the line, where it is malformed."""
    return _Parser(text).module()


class _Scope:
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


class _Parser:
    def __init__(self, text: str) -> None:
        self.texts, self.kinds, self.lines = tokens(text)
        self.at = 0
        self.scopes: list[_Scope] = []
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

    # module

    def module(self) -> Module:
        module = Module()
        while self.kind != "end":
            self.module_item(module)
        return module

    def module_item(self, module: Module) -> None:
        text = self.text
        if text == ".version":
            self.next()
            module.version = self.next()
        elif text == ".target":
            self.next()
            module.target = self.name()
            while self.accept(","):
                self.name()
        elif text == ".address_size":
            self.next()
            module.address_size = self.integer()
        elif text in (".file", ".loc"):
            self.skip_line()
        elif text == ".section":
            self.skip_section()
        elif text == ".pragma":
            self.skip_statement()
        else:
            self.definition(module)

    def skip_section(self) -> None:
        while not self.accept("{"):
            self.next()
        while not self.accept("}"):
            if not self.next():
                raise self.fail("a section without an end")

    def skip_statement(self) -> None:
        while not self.accept(";"):
            if not self.next():
                raise self.fail("a statement without an end")

    def definition(self, module: Module) -> None:
        linkage: set[str] = set()
        while self.text in _LINKAGE:
            linkage.add(self.next())
        text = self.text
        if text in (".entry", ".func"):
            function = self.function()
            if function.defined or function.name not in module.functions:
                module.functions[function.name] = function
        elif text in _SPACES:
            for variable in self.variables(".extern" in linkage):
                module.variables[variable.name] = variable
        else:
            raise self.fail(f"unexpected {text!r} at module level")

    # variables

    def variables(self, extern: bool = False) -> Iterator[Variable]:
        space = _SPACES[self.next()]
        align, kind, repeat = self.attributes()
        while True:
            variable = self.variable(space, kind, align, repeat)
            variable.extern = extern or (variable.array and variable.count == 0)
            yield variable
            if not self.accept(","):
                break
        self.expect(";")

    def attributes(self) -> tuple[int, str, int]:
        align, kind, repeat = 0, "", 1
        while self.text.startswith("."):
            text = self.next()[1:]
            if text == "align":
                align = self.integer()
            elif text in ("v2", "v4"):
                repeat = int(text[1])
            elif text in SIZES:
                kind = text
            elif text == "attribute":
                self.expect("(")
                while not self.accept(")"):
                    self.next()
            elif text == "ptr":
                self.pointer_attributes()
            else:
                raise self.fail(f"unknown attribute .{text}")
        if not kind:
            raise self.fail("a declaration without a type")
        return align or SIZES[kind] * repeat, kind, repeat

    def pointer_attributes(self) -> None:
        while self.text in (".align", ".global", ".shared", ".local", ".const"):
            if self.next() == ".align":
                self.integer()

    def variable(self, space: str, kind: str, align: int, repeat: int) -> Variable:
        name, count, array = self.name(), repeat, False
        while self.accept("["):
            array = True
            count = count * self.integer() if self.text != "]" else 0
            self.expect("]")
        values: tuple[Operand, ...] = ()
        if self.accept("="):
            values = tuple(self.initialiser())
            if count == 0:
                count = len(values)
        return Variable(name, space, kind, align, count, array=array, values=values)

    def initialiser(self) -> Iterator[Operand]:
        if not self.accept("{"):
            yield self.initial_value()
            return
        while not self.accept("}"):
            if self.text == "{":
                yield from self.initialiser()
            else:
                yield self.initial_value()
            self.accept(",")

    def initial_value(self) -> Operand:
        if self.accept("generic"):
            self.expect("(")
            name = self.name()
            self.expect(")")
            return Sym(name, self.offset(), generic=True)
        return self.operand()

    # functions

    def function(self) -> Function:
        entry = self.next() == ".entry"
        line = self.line
        results = self.parameters() if not entry and self.text == "(" else []
        name = self.name()
        params = self.parameters() if self.text == "(" else []
        function = Function(name, entry, params, results, line=line)
        self.function_directives(function)
        if self.accept(";"):
            return function
        self.expect("{")
        function.defined = True
        self.scopes = [_Scope(0)]
        self.renamed = [{}]
        self.opened = 0
        self.body(function)
        return function

    def parameters(self) -> list[Variable]:
        found: list[Variable] = []
        self.expect("(")
        while not self.accept(")"):
            if self.text == ".reg":
                raise self.fail("parameters in registers are not supported")
            self.expect(".param")
            align, kind, repeat = self.attributes()
            found.append(self.variable("param", kind, align, repeat))
            self.accept(",")
        return found

    def function_directives(self, function: Function) -> None:
        while self.text.startswith("."):
            name = self.next()[1:]
            if name == "pragma":
                self.skip_statement()
                continue
            values = [self.integer()] if self.kind == "number" else []
            while values and self.accept(","):
                values.append(self.integer())
            function.directives[name] = tuple(values)

    def body(self, function: Function) -> None:
        depth = 1
        while depth:
            if self.kind == "end":
                raise self.fail(f"function {function.name} has no end")
            if self.accept("{"):
                depth += 1
                self.opened += 1
                self.scopes.append(_Scope(self.opened))
                self.renamed.append({})
            elif self.accept("}"):
                depth -= 1
                self.scopes.pop()
                self.renamed.pop()
            else:
                self.statement(function)

    def statement(self, function: Function) -> None:
        text = self.text
        if text == ".reg":
            self.registers(function)
        elif text in _SPACES:
            for variable in self.variables():
                unique = self.scopes[-1].unique(variable.name)
                self.renamed[-1][variable.name] = variable.name = unique
                function.variables.append(variable)
        elif text in (".loc", ".file"):
            self.skip_line()
        elif text == ".pragma":
            self.skip_statement()
        elif text == ".section":
            self.skip_section()
        elif text == ";":
            self.next()
        elif self.texts[self.at + 1] == ":":
            self.label(function)
        else:
            function.body.append(self.instruction())

    def label(self, function: Function) -> None:
        line = self.line
        name = self.next()
        self.expect(":")
        unique = self.scopes[-1].unique(name)
        self.renamed[-1][name] = unique
        if self.accept(".branchtargets"):
            labels = [self.resolve_label(self.name())]
            while self.accept(","):
                labels.append(self.resolve_label(self.name()))
            self.expect(";")
            function.body.append(Targets(unique, tuple(labels)))
        elif self.text in (".callprototype", ".calltargets"):
            self.skip_statement()
        else:
            function.body.append(Label(unique, line))

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

    def registers(self, function: Function) -> None:
        self.next()
        kind = ""
        while self.text.startswith("."):
            text = self.next()[1:]
            if text in SIZES:
                kind = text
            elif text not in ("v2", "v4"):
                raise self.fail(f"unknown register type .{text}")
        scope = self.scopes[-1]
        while True:
            name = self.name()
            if self.accept("<"):
                scope.ranges[name] = (self.integer(), kind)
                self.expect(">")
            else:
                scope.registers[name] = Reg(scope.unique(name), kind)
            if not self.accept(","):
                break
        self.expect(";")

    # instructions

    def instruction(self) -> Instruction:
        line, start = self.line, self.at
        guard, negated = None, False
        if self.accept("@"):
            negated = self.accept("!")
            found = self.operand()
            if not isinstance(found, Reg):
                raise self.fail("a guard must be a predicate register")
            guard = found
        op = self.name()
        operands: list[Operand] = []
        while not self.accept(";"):
            if self.text == "(":
                operands.append(self.arguments())
            else:
                operands.append(self.operand())
            if self.text != ";":
                self.expect(",")
        text = " ".join(self.texts[start : self.at - 1])
        return Instruction(op, tuple(operands), line, guard, negated, text)

    def arguments(self) -> Vector:
        self.expect("(")
        items: list[Operand] = []
        while not self.accept(")"):
            items.append(self.operand())
            self.accept(",")
        return Vector(tuple(items))

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
