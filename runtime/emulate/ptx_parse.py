"""PTX text, as LLVM emits it and as written by hand, to a Module."""

from __future__ import annotations

from collections.abc import Iterator

from weft.runtime.emulate.ptx_ast import (
    SIZES,
    Function,
    Instruction,
    Label,
    Module,
    Operand,
    Reg,
    Sym,
    Targets,
    Variable,
    Vector,
)
from weft.runtime.emulate.ptx_operands import OperandParser, Scope

_SPACES = {".global": "global", ".const": "const", ".shared": "shared", ".local": "local", ".param": "param"}
_LINKAGE = {".visible", ".extern", ".weak", ".common", ".internal"}


def parse(text: str) -> Module:
    """The module that a PTX text describes. PtxSyntaxError, which names the line, where it is malformed."""
    return _Parser(text).module()


class _Parser(OperandParser):
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
        self.scopes = [Scope(0)]
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
                self.scopes.append(Scope(self.opened))
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
