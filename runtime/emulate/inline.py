"""One entry with the device functions that it calls expanded into it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from weft.runtime.emulate.faults import EmulationError
from weft.runtime.emulate.ptx_ast import (
    Address,
    Function,
    Instruction,
    Label,
    Module,
    Not,
    Operand,
    Pair,
    Reg,
    Sym,
    Targets,
    Variable,
    Vector,
)

_DEPTH = 64


@dataclass
class Body:
    items: list[Instruction | Label | Targets] = field(default_factory=list)
    variables: list[Variable] = field(default_factory=list)


def expand(module: Module, entry: Function) -> Body:
    """The body of ``entry`` without calls. EmulationError for recursion and unknown functions."""
    return _Expander(module, entry.name).run(entry)


class _Expander:
    def __init__(self, module: Module, kernel: str) -> None:
        self.module = module
        self.kernel = kernel
        self.body = Body()
        self.count = 0

    def run(self, entry: Function) -> Body:
        self.copy(entry, "", {}, None, 0)
        return self.body

    def copy(
        self, function: Function, suffix: str, names: dict[str, str], after: str | None, depth: int
    ) -> None:
        """Append the body; ``names`` renames variables, ``after`` is the label to which ``ret`` jumps."""
        names = dict(names)
        for variable in function.variables:
            names[variable.name] = variable.name + suffix
            self.body.variables.append(replace(variable, name=variable.name + suffix))
        labels = {item.name for item in function.body if isinstance(item, Label | Targets)}
        names.update((label, label + suffix) for label in labels)
        rename = _Renamer(suffix, names)
        for item in function.body:
            if isinstance(item, Label):
                self.body.items.append(Label(names[item.name], item.line))
            elif isinstance(item, Targets):
                self.body.items.append(Targets(names[item.name], tuple(names[n] for n in item.labels)))
            else:
                self.instruction(rename.instruction(item), after, depth)

    def instruction(self, ins: Instruction, after: str | None, depth: int) -> None:
        if ins.base == "call":
            self.call(ins, depth)
        elif ins.base == "ret" and after is not None:
            self.body.items.append(replace(ins, op="bra", operands=(Sym(after),)))
        else:
            self.body.items.append(ins)

    def call(self, ins: Instruction, depth: int) -> None:
        operands = list(ins.operands)
        first = operands[0] if operands else None
        results = first if isinstance(first, Vector) else Vector(())
        if first is results:
            operands.pop(0)
        name = operands[0].name if operands and isinstance(operands[0], Sym) else None
        callee = self.module.functions.get(name) if name is not None else None
        if ins.guard is not None or callee is None or not callee.defined or depth >= _DEPTH:
            why = "nested too deep" if depth >= _DEPTH else "predicated, or of an unknown function"
            raise EmulationError(self.kernel, ins.line, None, f"a call that is {why}: {ins.text}")
        arguments = operands[1] if len(operands) > 1 else Vector(())
        self.count += 1
        suffix = f"#{self.count}"
        names: dict[str, str] = {}
        actual = (*results.items, *(arguments.items if isinstance(arguments, Vector) else ()))
        formal = (*callee.results, *callee.params)
        if len(actual) != len(formal):
            raise EmulationError(self.kernel, ins.line, None, f"wrong number of arguments: {ins.text}")
        for variable, given in zip(formal, actual, strict=True):
            if not isinstance(given, Sym):
                raise EmulationError(self.kernel, ins.line, None, "arguments must be .param variables")
            names[variable.name] = given.name
        after = f"return{suffix}"
        self.copy(callee, suffix, names, after, depth + 1)
        self.body.items.append(Label(after, ins.line))


class _Renamer:
    def __init__(self, suffix: str, names: dict[str, str]) -> None:
        self.suffix = suffix
        self.names = names

    def instruction(self, ins: Instruction) -> Instruction:
        if not self.suffix:
            return ins  # the entry itself keeps its names
        guard = self.operand(ins.guard) if ins.guard else None
        assert guard is None or isinstance(guard, Reg)
        return replace(ins, operands=tuple(self.operand(o) for o in ins.operands), guard=guard)

    def operand(self, operand: Operand) -> Operand:
        if isinstance(operand, Reg):
            return Reg(operand.name + self.suffix, operand.type)
        if isinstance(operand, Sym):
            return replace(operand, name=self.names.get(operand.name, operand.name))
        if isinstance(operand, Address):
            return replace(operand, base=self.operand(operand.base) if operand.base else None)
        if isinstance(operand, Vector):
            return Vector(tuple(self.operand(o) for o in operand.items))
        if isinstance(operand, Pair):
            return Pair(self.operand(operand.first), self.operand(operand.second))
        if isinstance(operand, Not):
            return Not(Reg(operand.of.name + self.suffix, operand.of.type))
        return operand
