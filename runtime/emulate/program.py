"""A kernel decoded: every instruction a closure over the numbers of its registers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import ml_dtypes
import numpy as np
from weft.runtime.emulate.cfg import BasicBlock, basic_blocks, is_block_barrier, ranks
from weft.runtime.emulate.faults import EmulationError
from weft.runtime.emulate.inline import expand
from weft.runtime.emulate.ptx_ast import (
    SIZES,
    Function,
    Imm,
    Instruction,
    Module,
    Operand,
    Reg,
    Special,
    Sym,
    Variable,
    Vector,
)

UNSIGNED = {1: np.dtype(np.uint8), 2: np.dtype(np.uint16), 4: np.dtype(np.uint32), 8: np.dtype(np.uint64)}
_VIEWS: dict[str, Any] = {
    "s8": np.int8, "s16": np.int16, "s32": np.int32, "s64": np.int64, "f16": np.float16, "f32": np.float32,
    "f64": np.float64, "bf16": ml_dtypes.bfloat16,
}  # fmt: skip
# what a register holds that nothing wrote
_JUNK = 0xDEADBEEFDEADBEEF

Step = Callable[[Any, Any], None]  # (registers, mask)
Builder = Callable[["Decoder", Instruction], Step]
FAMILIES: dict[str, Builder] = {}
_loaded: list[bool] = []
_MODULES = ("integer", "bits", "compare", "moves", "floating", "approximate", "convert", "loads", "atomics",
            "warp", "asynchronous", "mma", "matrix_moves")  # fmt: skip


def instruction(*names: str) -> Callable[[Builder], Builder]:
    """Register the builder of the instructions of these names (up to the first dot)."""

    def register(builder: Builder) -> Builder:
        for name in names:
            FAMILIES[name] = builder
        return builder

    return register


class Unknown(Exception):
    """A form of an instruction that the emulator does not know."""


def view_of(kind: str) -> np.dtype[Any]:
    """The numpy type in which values of a PTX type are computed; for bits and pairs the unsigned type."""
    found = _VIEWS.get(kind)
    return np.dtype(found) if found is not None else UNSIGNED[SIZES[kind]]


def unsigned_of(kind: str) -> np.dtype[Any]:
    return UNSIGNED[SIZES[kind]]


@dataclass
class Block:
    """``steps`` run one after the other; then ``kind`` says where threads go.

    "next" and "jump" to ``targets[0]``; "branch" to ``targets[0]`` where register ``on`` holds (or not:
    ``negated``), else to ``targets[1]``; "switch" to ``targets[register on]``; "return"; "trap"; "barrier".
    """

    steps: list[Step]
    instructions: list[Instruction]
    kind: str
    targets: list[int]
    on: int = 0
    negated: bool = False
    end: Instruction | None = None
    barrier: Any = None


@dataclass
class Program:
    name: str
    blocks: list[Block] = field(default_factory=list)
    rank: list[int] = field(default_factory=list)
    initial: list[Any] = field(default_factory=list)
    specials: dict[str, int] = field(default_factory=dict)
    params: list[tuple[int, int, str]] = field(default_factory=list)  # (slot, offset, type)
    param_bytes: int = 0
    shared_bytes: int = 0
    dynamic_at: int = 0
    local_bytes: int = 0
    maxntid: int = 0
    reqntid: tuple[int, ...] = ()


def align_up(value: int, align: int) -> int:
    return -(-value // align) * align


def families() -> dict[str, Builder]:
    """The builders by name, all of them registered."""
    if not _loaded:
        for name in _MODULES:
            import_module(f"weft.runtime.emulate.{name}")
        _loaded.append(True)
    return FAMILIES


class Decoder:
    """Turns one entry into a Program. ``addresses``: those of global and constant variables."""

    def __init__(self, module: Module, entry: Function, addresses: dict[str, int], shared_base: int) -> None:
        self.module, self.entry, self.addresses = module, entry, addresses
        self.shared_base = shared_base
        self.program = Program(entry.name)
        self.slots: dict[str, int] = {}
        self.constants: dict[tuple[int, int], int] = {}
        self.symbols: dict[str, tuple[str, int]] = {n: ("global", a) for n, a in addresses.items()}
        self.ins = Instruction("", (), entry.line)

    def decode(self) -> Program:
        body = expand(self.module, self.entry)
        self.layout(body.variables)
        program = self.program
        try:
            blocks, _ = basic_blocks(body.items)
        except (KeyError, IndexError) as error:
            raise EmulationError(program.name, self.entry.line, None, f"no such label: {error}") from None
        program.rank = ranks([b.successors for b in blocks])
        program.blocks = [self.block(b) for b in blocks]
        directives = self.entry.directives
        if "maxntid" in directives:
            program.maxntid = int(np.prod(directives["maxntid"]))
        program.reqntid = directives.get("reqntid", ())
        return program

    # memory

    def layout(self, variables: list[Variable]) -> None:
        program = self.program
        for variable in self.entry.params:
            at = align_up(program.param_bytes, variable.align)
            self.symbols[variable.name] = ("kernel", at)
            program.param_bytes = at + variable.bytes
        mine = {v.name: v for v in variables}
        everything = [*self.module.variables.values(), *mine.values()]
        static = [v for v in everything if v.space == "shared" and not v.extern]
        dynamic = [v for v in everything if v.space == "shared" and v.extern]
        program.shared_bytes = self.place(static, "shared", 0)
        widest = max((v.align for v in dynamic), default=1)
        program.dynamic_at = align_up(program.shared_bytes, max(widest, 16))
        for variable in dynamic:
            self.symbols[variable.name] = ("shared", program.dynamic_at)
        private = [v for v in mine.values() if v.space in ("local", "param")]
        program.local_bytes = self.place(private, "local", 16)

    def place(self, variables: list[Variable], space: str, at: int) -> int:
        for variable in variables:
            at = align_up(at, max(variable.align, SIZES[variable.type]))
            self.symbols[variable.name] = (space, at)
            at += variable.bytes
        return at

    def symbol(self, operand: Sym) -> tuple[str, int]:
        """The state space of a variable, and its address there."""
        found = self.symbols.get(operand.name)
        if found is None:
            raise Unknown(f"unknown name {operand.name}")
        space, at = found
        return space, at + operand.offset + (self.shared_base if space == "shared" else 0)

    # code

    def block(self, source: BasicBlock) -> Block:
        steps = [self.step(ins) for ins in source.code]
        end = source.end
        block = Block(steps, source.code, "next", source.successors, end=end)
        if end is None:
            return block
        self.ins = end
        if end.guard is not None:
            block.on, block.negated = self.register(end.guard, "pred"), end.negated
        if is_block_barrier(end):
            from weft.runtime.emulate.barriers import decode_barrier

            block.kind, block.barrier = "barrier", self.checked(lambda: decode_barrier(self, end))
        elif end.base == "bra":
            block.kind = "branch" if end.guard is not None else "jump"
        elif end.base == "brx":
            if end.guard is not None:
                raise self.fault("a predicated brx")
            block.kind, block.on = "switch", self.checked(lambda: self.slot(end.operands[0], "u32"))
        else:
            block.kind = "trap" if end.base == "trap" else "return"
        return block

    def step(self, ins: Instruction) -> Step:
        self.ins = ins
        builder = families().get(ins.base)
        if builder is None:
            raise self.fault(f"unknown instruction {ins.text}")
        step = self.checked(lambda: builder(self, ins))
        return self.guarded(step, ins) if ins.guard is not None else step

    def checked(self, build: Callable[[], Any]) -> Any:
        try:
            return build()
        except Unknown as error:
            raise self.fault(f"{error}: {self.ins.text}") from None
        except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
            raise self.fault(f"cannot decode {self.ins.text} ({error!r})") from error

    def fault(self, text: str) -> EmulationError:
        return EmulationError(self.program.name, self.ins.line, None, text)

    def guarded(self, step: Step, ins: Instruction) -> Step:
        from weft.runtime.emulate.masks import Mask, narrow

        assert ins.guard is not None
        on, negated = self.register(ins.guard, "pred"), ins.negated

        def run(R: Any, m: Mask | None) -> None:
            taken = narrow(R, m, R[on], negated)
            if taken is not False:
                step(R, taken)

        return run

    # operands

    def new_slot(self, initial: Any) -> int:
        self.program.initial.append(initial)
        return len(self.program.initial) - 1

    def register(self, reg: Reg, kind: str | None = None) -> int:
        """The slot of a register, which must have the size of ``kind``."""
        if kind is not None:
            same = SIZES[reg.type] == SIZES[kind] and (reg.type == "pred") == (kind == "pred")
            if not same:
                raise Unknown(f"register {reg.name} of type .{reg.type} used as .{kind}")
        found = self.slots.get(reg.name)
        if found is None:
            if reg.type == "pred":
                initial = np.zeros(1, np.bool_)
            else:
                size = SIZES[reg.type]
                initial = np.array([_JUNK & ((1 << 8 * size) - 1)], UNSIGNED[size])
            found = self.slots[reg.name] = self.new_slot(initial)
        return found

    def dest(self, operand: Operand, kind: str | None = None) -> int:
        if isinstance(operand, Reg):
            return self.register(operand, kind)
        if isinstance(operand, Sym) and operand.name == "_":
            return self.new_slot(np.zeros(1, np.uint8))
        raise Unknown("a destination must be a register")

    def slot(self, operand: Operand, kind: str) -> int:
        """The slot of a source of a PTX type: a register, a literal, a special register, an address."""
        if isinstance(operand, Reg):
            return self.register(operand, kind)
        if isinstance(operand, Imm):
            return self.literal(operand, kind)
        if isinstance(operand, Special):
            return self.special(operand, kind)
        if isinstance(operand, Sym):
            return self.constant(self.symbol(operand)[1], SIZES[kind])
        raise Unknown("an operand of an unexpected kind")

    def loose(self, operand: Operand, kind: str) -> int:
        """A source whose register may be wider than its type (as of ``st`` and ``cvt``)."""
        if isinstance(operand, Reg):
            if SIZES[operand.type] < SIZES[kind]:
                raise Unknown(f"register {operand.name} is narrower than .{kind}")
            return self.register(operand)
        return self.slot(operand, kind)

    def literal(self, imm: Imm, kind: str) -> int:
        if kind == "pred":
            return self.new_slot(np.array([imm.value != 0]))
        size = SIZES[kind]
        value = imm.value
        if imm.kind == "f32" and kind == "f64":
            value = int(np.float64(np.uint32(value).view(np.float32)).view(np.uint64))
        elif imm.kind == "f64" and size == 4:
            value = int(np.float32(np.uint64(value).view(np.float64)).view(np.uint32))
        elif imm.kind == "int" and kind in ("f32", "f64"):
            raise Unknown("an integer literal as a floating-point operand")
        elif imm.kind != "int" and size < 4:
            raise Unknown("a floating-point literal of the wrong size")
        return self.constant(value, size)

    def constant(self, value: int, size: int) -> int:
        value &= (1 << 8 * size) - 1
        found = self.constants.get((value, size))
        if found is None:
            found = self.new_slot(np.array([value], UNSIGNED[size]))
            self.constants[value, size] = found
        return found

    def special(self, operand: Special, kind: str) -> int:
        name = operand.name
        size = 8 if name in ("clock64", "globaltimer") or name.startswith("gridid") else 4
        if name == "gridid" and SIZES[kind] == 4:
            size = 4
        key = f"{name}/{SIZES[kind] if SIZES[kind] != 2 else size}"
        found = self.program.specials.get(key)
        if found is None:
            found = self.program.specials[key] = self.new_slot(None)
        return found

    def vector(self, operand: Operand) -> tuple[Operand, ...]:
        return operand.items if isinstance(operand, Vector) else (operand,)
