"""What a PTX module consists of, as parsed."""

from __future__ import annotations

from dataclasses import dataclass, field

SIZES = {
    "b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "bf16": 2, "b32": 4, "u32": 4,
    "s32": 4, "f32": 4, "f16x2": 4, "bf16x2": 4, "tf32": 4, "b64": 8, "u64": 8, "s64": 8, "f64": 8,
    "b128": 16, "pred": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reg:
    """A register, by a name that is unique in its function."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Special:
    name: str


@dataclass(frozen=True, slots=True)
class Imm:
    """A literal. ``kind`` is "int", "f32" (value: the bits), "f64" (value: the bits)."""

    value: int
    kind: str = "int"


@dataclass(frozen=True, slots=True)
class Sym:
    """A variable, a label or a function, and an offset in bytes."""

    name: str
    offset: int = 0
    generic: bool = False


@dataclass(frozen=True, slots=True)
class Address:
    base: Operand | None
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Vector:
    items: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two destinations ``d|p``."""

    first: Operand
    second: Operand


@dataclass(frozen=True, slots=True)
class Not:
    """A negated predicate ``!p``."""

    of: Reg


Operand = Reg | Special | Imm | Sym | Address | Vector | Pair | Not


@dataclass(slots=True)
class Instruction:
    op: str
    operands: tuple[Operand, ...]
    line: int
    guard: Reg | None = None
    negated: bool = False
    text: str = ""
    base: str = ""
    mods: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        parts = self.op.split(".")
        self.base, self.mods = parts[0], tuple(parts[1:])


@dataclass(slots=True)
class Label:
    name: str
    line: int


@dataclass(slots=True)
class Targets:
    """``name: .branchtargets a, b, ...``"""

    name: str
    labels: tuple[str, ...]


@dataclass(slots=True)
class Variable:
    """``space`` is global, const, shared, local or param; ``count`` elements (0: extern, sized at launch)."""

    name: str
    space: str
    type: str
    align: int
    count: int = 1
    extern: bool = False
    array: bool = False
    values: tuple[Operand, ...] = ()

    @property
    def bytes(self) -> int:
        return SIZES[self.type] * self.count


@dataclass(slots=True)
class Function:
    name: str
    entry: bool
    params: list[Variable]
    results: list[Variable]
    body: list[Instruction | Label | Targets] = field(default_factory=list)
    variables: list[Variable] = field(default_factory=list)
    registers: dict[str, str] = field(default_factory=dict)
    directives: dict[str, tuple[int, ...]] = field(default_factory=dict)
    line: int = 0
    defined: bool = False


@dataclass(slots=True)
class Module:
    version: str = ""
    target: str = ""
    address_size: int = 64
    variables: dict[str, Variable] = field(default_factory=dict)
    functions: dict[str, Function] = field(default_factory=dict)


class PtxSyntaxError(ValueError):
    """The text is not PTX that the parser knows; ``line`` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"PTX line {line}: {message}")
        self.line = line
