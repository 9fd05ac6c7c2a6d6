"""Random programs of the public API, as Python source: made by running them eagerly, a statement at a time.

A program is a function of tensors (plain, transposed, stepped, expanded ...) and two Python numbers.
Statements that raise are left out. What jumps (comparisons, rounding, sorting) is applied to exact values
alone, so that results agree closely however operations are grouped.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SIZES = (0, 1, 2, 3, 4, 5, 7, 8, 13, 17, 33)
WEIGHTS = (1, 6, 6, 8, 8, 6, 4, 4, 3, 2, 1)
FLOATS = ("float32", "float64", "float16", "bfloat16")
INTS = ("int64", "int32", "uint8", "bool")


@dataclass
class Input:
    """An argument: ``build(T, array)`` makes it from plain data of ``shape``."""

    shape: tuple[int, ...]
    dtype: str
    layout: str
    grad: bool

    def build(self, T: Any, seed: int) -> Any:
        r = np.random.default_rng(seed)
        if self.dtype == "bool":
            a = r.random(self.shape) < 0.5
        elif self.dtype in INTS:
            a = r.integers(0 if self.dtype == "uint8" else -4, 5, self.shape)
        else:
            a = r.integers(-16, 17, self.shape) / 8
        t = T.tensor(a.tolist(), dtype=getattr(T, self.dtype)).reshape(self.shape)
        t = LAYOUTS[self.layout](t)
        return t.requires_grad_() if self.grad else t


LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda t: t,
    "transposed": lambda t: t.transpose(0, -1),
    "stepped": lambda t: t[..., ::2],
    "offset": lambda t: t[1:],
    "expanded": lambda t: t.unsqueeze(0).expand(3, *t.shape),
}


@dataclass
class Var:
    name: str
    value: Any
    exact: bool
    bits: int = 3  # of a fraction; products need the sum

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def is_float(self) -> bool:
        return self.value.dtype.is_floating_point


@dataclass
class Program:
    seed: int
    length: int = 12
    sizes: tuple[int, ...] = SIZES
    lines: list[str] = field(default_factory=list)
    is_random: bool = False

    def __post_init__(self) -> None:
        import weft

        self.T: Any = weft
        self.r = random.Random(self.seed)
        self.env: dict[str, Any] = {"T": weft, "F": weft.nn.functional, "s": 0.5, "k": 2}
        self.vars: list[Var] = []
        self.inputs = [self._input() for _ in range(self.r.randint(2, 4))]
        weft.manual_seed(0)
        for i, given in enumerate(self.inputs):
            self._add(f"a{i}", given.build(weft, 100 * self.seed + i), True)
        for _ in range(self.length):
            self._step()
        self.outputs = self._outputs()
        names = ", ".join(f"a{i}" for i in range(len(self.inputs)))
        body = "\n    ".join([*self.lines, f"return ({', '.join(self.outputs)},)"])
        self.source = f"def f({names}, s, k):\n    {body}\n"

    # -- the surroundings

    def shape(self, most: int = 4) -> tuple[int, ...]:
        n = self.r.choice((0, 1, 1, 2, 2, 2, 3, 3, 4))
        weights = WEIGHTS[: len(self.sizes)] if self.sizes == SIZES else None
        return tuple(self.r.choices(self.sizes, weights, k=min(n, most)))

    def _input(self) -> Input:
        shape = self.shape()
        if self.r.random() < 0.5 and hasattr(self, "inputs_shape"):
            shape = self.inputs_shape
        self.inputs_shape = shape
        dtype = self.r.choice(("float32",) * 6 + FLOATS + INTS)
        layout = self.r.choice(("plain",) * 5 + tuple(LAYOUTS)) if shape else "plain"
        return Input(shape, dtype, layout, dtype in FLOATS and self.r.random() < 0.5)

    def _add(self, name: str, value: Any, exact: bool, bits: int = 3) -> Var:
        v = Var(name, value, exact, bits)
        self.vars.append(v)
        self.env[name] = value
        return v

    def _outputs(self) -> list[str]:
        floats = [v.name for v in self.vars if v.is_float]
        some = self.r.sample([v.name for v in self.vars], min(3, len(self.vars)))
        last = [v.name for v in self.vars[-2:]]
        return list(dict.fromkeys([*some, *last, *floats[-1:]]))

    # -- choosing operands

    def pick(self, test: Callable[[Var], bool] = lambda v: True) -> Var:
        found = [v for v in self.vars if test(v)]
        if not found:
            raise LookupError
        return self.r.choice(found[-6:] if self.r.random() < 0.7 else found)

    def float(self, ndim: int = 0) -> Var:
        return self.pick(lambda v: v.is_float and len(v.shape) >= ndim)

    def exact(self, ndim: int = 0) -> Var:
        return self.pick(lambda v: v.exact and len(v.shape) >= ndim)

    def fitting(self, x: Var) -> Var:
        """A second operand that broadcasts with ``x``."""

        def fits(v: Var) -> bool:
            try:
                np.broadcast_shapes(v.shape, x.shape)
            except ValueError:
                return False
            return True

        return self.pick(fits)

    def like(self, x: Var) -> Var:
        return self.pick(lambda v: v.shape == x.shape and v.value.dtype == x.value.dtype)

    def dim(self, x: Var) -> int:
        if not x.shape:
            raise LookupError
        return self.r.randrange(-len(x.shape), len(x.shape))

    def number(self) -> str:
        return self.r.choice(("2", "-1", "0.5", "-1.5", "s", "k", "3", "0.25", "1"))

    def index(self, x: Var) -> str:
        """A subscript with ints, slices, None, Ellipsis and index arrays."""
        parts: list[str] = []
        for n in x.shape[: self.r.randint(1, len(x.shape))] if x.shape else ():
            kind = self.r.random()
            if kind < 0.2 and n:
                parts.append(str(self.r.randrange(-n, n)))
            elif kind < 0.65 or not n:
                a, b = self.r.choice(("", "0", "1", "-2")), self.r.choice(("", "-1", "3", str(n)))
                parts.append(f"{a}:{b}" + self.r.choice(("", "", ":2", ":3")))
            elif kind < 0.75:
                parts.append(":")
            elif kind < 0.85:
                parts.append(f"None, {':'}")
            else:
                i = [self.r.randrange(-n, n) for _ in range(self.r.choice((1, 2, 3)))]
                parts.append(f"T.tensor({i})" if self.r.random() < 0.5 else f"{i}")
        if self.r.random() < 0.15:
            parts = ["...", *parts[:1]]
        return ", ".join(parts) or "..."

    # -- statements

    def _step(self) -> None:
        from statements import STATEMENTS  # next to this file

        for _ in range(8):
            make = self.r.choices([m for m, _ in STATEMENTS], [w for _, w in STATEMENTS])[0]
            try:
                made = make(self)
            except (LookupError, ValueError):
                continue
            if made is not None and self._try(*made):
                return

    def _try(self, text: str, exact: bool, bits: int, target: Var | None = None) -> bool:
        """Run a statement (``target`` written in place) or bind the value of an expression."""
        name = f"v{len(self.lines)}"
        line = text if target is not None else f"{name} = {text}"
        if target is not None and not self._rehearse(text):
            return False
        try:
            exec(line, self.env)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return False
        value = self.env[name if target is None else target.name]
        if not isinstance(value, self.T.Tensor) or value.numel() > 50_000 or value.dtype.is_complex:
            return False
        self.is_random |= (
            "rand" in line or "dropout" in line or "topk" in line
        )  # which of equals topk picks is open
        self.lines.append(line)
        if target is None:
            self._add(name, value, exact and bits <= 12, bits)
        elif not exact:
            for v in self.vars:  # its views and bases change too
                v.exact = False
        return True

    def _rehearse(self, text: str) -> bool:
        """Whether a statement that writes runs through: on copies first, as it may fail half-way."""
        trial = {**self.env}
        with self.T.no_grad():
            for v in self.vars:
                trial[v.name] = v.value.detach().clone()
        try:
            exec(text, trial)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return False
        return True
