"""The kernel IR: loop nests over flat buffers, between fused graphs and machine code.

A :class:`Kernel` has buffers and phases; a phase is a list of independent :class:`Nest`; a nest runs its
body for each point of its axes (in parallel, in units), and bodies hold statements and inner loops. Every
value is in SSA form and named by a string; every index is affine (:class:`Index`) in loop variables and in
i64 values computed before.

The text form is in :mod:`weft.ir.loops_text`, the numpy interpreter in :mod:`weft.ir.loops_interp`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from weft.ir.record import field, record
from weft.ir.types import DType


class Index:
    """``sum(coefficient * name) + const``. Immutable and hashable; names are loop variables or i64 values.

    >>> i = Index.var("r") * 8 + Index.var("c") + 3
    >>> str(i)
    'c + 8*r + 3'
    """

    __slots__ = ("_hash", "const", "terms")

    def __init__(self, terms: tuple[tuple[str, int], ...] = (), const: int = 0) -> None:
        self.terms, self.const = terms, const
        self._hash = hash((terms, const))

    @staticmethod
    def var(name: str) -> Index:
        return Index(((name, 1),))

    @staticmethod
    def of(const: int) -> Index:
        return Index((), const)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Index) and self.const == other.const and self.terms == other.terms

    def __add__(self, other: Index | int) -> Index:
        if isinstance(other, int):
            return Index(self.terms, self.const + other) if other else self
        if not other.terms:
            return Index(self.terms, self.const + other.const)
        if not self.terms:
            return Index(other.terms, self.const + other.const)
        sums = dict(self.terms)
        for n, c in other.terms:
            sums[n] = sums.get(n, 0) + c
        return Index(tuple(sorted((n, c) for n, c in sums.items() if c)), self.const + other.const)

    def __mul__(self, k: int) -> Index:
        if k == 1:
            return self
        return Index(tuple((n, c * k) for n, c in self.terms) if k else (), self.const * k)

    def __sub__(self, other: Index | int) -> Index:
        return self + (-other if isinstance(other, int) else other * -1)

    def coefficient(self, name: str) -> int:
        for n, c in self.terms:
            if n == name:
                return c
        return 0

    def without(self, name: str) -> Index:
        return Index(tuple(t for t in self.terms if t[0] != name), self.const)

    def names(self) -> tuple[str, ...]:
        return tuple(n for n, _ in self.terms)

    def __str__(self) -> str:
        parts = [n if c == 1 else f"{c}*{n}" for n, c in self.terms]
        if self.const or not parts:
            parts.append(str(self.const))
        return " + ".join(parts)

    __repr__ = __str__


@record(slots=True)
class Buffer:
    """Flat memory of the kernel. ``role``: in, out, or scratch (shared by phases and threads)."""

    name: str
    dtype: DType
    size: int
    role: str


@record(slots=True)
class Number:
    """``name = constant``."""

    name: str
    dtype: DType
    value: Any


@record(slots=True)
class Affine:
    """``name = index`` as an i64."""

    name: str
    index: Index


@record(slots=True)
class Load:
    """``name = buffer[index]``, zero where ``mask`` does not hold (the memory is not touched there)."""

    name: str
    buffer: str
    index: Index
    mask: str | None = None


@record(slots=True)
class Compute:
    """``name = primitive(args)``: a MAP primitive on elements, or ``random_bits(seed, offset, index)``."""

    name: str
    prim: str
    args: tuple[str, ...]
    attrs: Mapping[str, Any]
    dtype: DType


@record(slots=True)
class Check:
    """``name = source`` clamped to 0..size-1; an index out of range sets the status of the kernel.

    Without a size it is a divisor: 1 stands for 0, which sets the status.
    """

    name: str
    source: str
    size: int | None
    mask: str | None = None


@record(slots=True)
class Store:
    """``buffer[index] = source`` (nowhere else does the kernel write that element)."""

    buffer: str
    index: Index
    source: str
    mask: str | None = None


@record(slots=True)
class Accumulate:
    """``buffer[index] = op(buffer[index], source)`` where ``buffer`` holds partial results of one unit."""

    buffer: str
    index: Index
    op: str
    source: str


@record(slots=True)
class Tile:
    """A row-local array, alive for one iteration of the enclosing nest."""

    name: str
    dtype: DType
    size: int


@record(slots=True)
class Fold:
    """``name`` = the fold of ``source`` over a loop. ``op``: sum prod max min any all argmax argmin.

    argmax and argmin give the i64 ``index`` (a value of the loop) of the first extreme; NaN wins.
    """

    name: str
    op: str
    source: str
    dtype: DType
    index: str | None = None


@record(slots=True)
class Loop:
    """A loop (or loops, outermost first) inside a nest.

    ``kind`` ``vector``: iterations of the last axis go into vector lanes; ``serial``: one by one;
    ``unroll``: written out. ``limit`` stops the last axis early, where ``limit[0] + var >= limit[1]``.
    """

    axes: list[tuple[str, int]]
    kind: str
    body: list[Any] = field(default_factory=list)
    folds: list[Fold] = field(default_factory=list)
    limit: tuple[Index, int] | None = None


@record(slots=True)
class Partial:
    """Partial results: ``size`` elements of ``buffer`` per unit, started at the identity of op."""

    buffer: str
    size: int
    op: str
    dtype: DType


@record(slots=True)
class Nest:
    """A parallel loop nest over ``axes`` (outermost first).

    ``kind`` ``rows``: the body runs for each point, vectorised inside; ``lanes``: the last axis goes into
    vector lanes. A unit of work is ``chunk`` points of the flattened axes (rows), or ``chunk`` of the last
    axis (lanes). Where there are ``partials`` the variable ``u`` numbers the unit.
    """

    axes: list[tuple[str, int]]
    kind: str
    chunk: int
    body: list[Any] = field(default_factory=list)
    partials: list[Partial] = field(default_factory=list)

    @property
    def points(self) -> int:
        n = 1
        for _, e in self.axes:
            n *= e
        return n

    @property
    def units(self) -> int:
        """Number of units of work."""
        if self.kind == "rows" or not self.axes:
            return -(-self.points // self.chunk)
        last = self.axes[-1][1]
        return self.points // last * -(-last // self.chunk)


@record(slots=True)
class Kernel:
    """Buffers and phases of nests. Phases run one after the other; the nests of a phase in any order."""

    name: str
    buffers: list[Buffer]
    phases: list[list[Nest]]

    def __str__(self) -> str:
        from weft.ir.loops_text import print_kernel

        return print_kernel(self)


def statements(body: list[Any]) -> Iterator[Any]:
    """All statements of a body, those in inner loops too."""
    for s in body:
        yield s
        if isinstance(s, Loop):
            yield from statements(s.body)


IDENTITIES: dict[str, Any] = {
    "sum": lambda d: 0,
    "prod": lambda d: 1,
    "any": lambda d: False,
    "all": lambda d: True,
    "max": lambda d: _least(d),
    "min": lambda d: _greatest(d),
    "argmax": lambda d: _least(d),
    "argmin": lambda d: _greatest(d),
}
"""The value that a fold starts from, given its dtype."""


def _least(d: DType) -> Any:
    if d.is_floating_point:
        return float("-inf")
    return -(1 << (d.bits - 1)) if d.is_signed else 0


def _greatest(d: DType) -> Any:
    if d.is_floating_point:
        return float("inf")
    return (1 << (d.bits - int(d.is_signed))) - 1


FOLD_OF = {
    "sum": "sum", "prod": "prod", "reduce_max": "max", "reduce_min": "min", "any": "any", "all": "all",
    "argmax": "argmax", "argmin": "argmin",
}  # fmt: skip
"""The fold of a REDUCE primitive."""
