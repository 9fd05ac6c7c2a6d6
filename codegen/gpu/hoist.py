"""Values that no point of a nest changes, such as a step size: computed once, in a phase before the others.

Every thread would compute them again, and a power in double precision takes longer than the update of the
parameters that it scales.
"""

from __future__ import annotations

from typing import Any

from weft.ir.loops import Buffer, Compute, Index, Kernel, Load, Loop, Nest, Number, Store, statements
from weft.ir.scalarcost import cost_by_name
from weft.ir.types import DType

LONG = 60.0  # simple operations of such values from which they are worth a launch,
MANY = 1 << 14  # where the nests have at least so many points

Key = tuple[Any, ...]


def hoist_uniforms(kernel: Kernel) -> Kernel:
    """The kernel with the long scalar computations of its first phase in a phase of their own."""
    if not kernel.phases or sum(n.points for n in kernel.phases[0]) < MANY:
        return kernel
    hoist = _Hoist(kernel)
    for nest in kernel.phases[0]:
        hoist.look(nest)
    if not hoist.nests:
        return kernel
    nests = [hoist.without(n) for n in kernel.phases[0]]
    return Kernel(kernel.name, [*kernel.buffers, *hoist.buffers], [hoist.nests, nests, *kernel.phases[1:]])


class _Hoist:
    def __init__(self, kernel: Kernel) -> None:
        self.dtypes = {b.name: b.dtype for b in kernel.buffers}
        self.constant = {b.name for b in kernel.buffers if b.role == "in"}
        self.kept: dict[Key, str] = {}  # what a value is made of -> the buffer that holds it
        self.buffers: list[Buffer] = []
        self.nests: list[Nest] = []
        self.known: dict[int, dict[str, Key]] = {}  # by nest: its uniform values, and what they are made of
        self.wanted: dict[int, list[str]] = {}

    def look(self, nest: Nest) -> None:
        """Find the uniform values of a nest, and a place for those that the rest of it reads."""
        known: dict[str, Key] = {}
        made: dict[str, Any] = {}
        for s in nest.body:
            key = self._key(s, known)
            if key is not None:
                known[s.name], made[s.name] = key, s
        read: dict[str, None] = {}
        for s in statements(nest.body):
            if getattr(s, "name", None) not in known:
                read.update(dict.fromkeys(n for n in reads(s) if n in known))
        wanted = [n for n in read if isinstance(made[n], Compute)]
        cost = sum(cost_by_name(s.prim) for s in made.values() if isinstance(s, Compute))
        if nest.points == 1 or cost < LONG:
            return
        self.known[id(nest)], self.wanted[id(nest)] = known, wanted
        new = [n for n in wanted if known[n] not in self.kept]
        if new:
            self._compute(nest, new, made, known)

    def _key(self, s: Any, known: dict[str, Key]) -> Key | None:
        """What a statement computes, where nothing in it depends on the point; else None."""
        if isinstance(s, Number):
            return "number", s.dtype.name, repr(s.value)
        if isinstance(s, Load) and s.mask is None and s.buffer in self.constant and not s.index.terms:
            return "load", s.buffer, s.index.const
        if isinstance(s, Compute) and all(a in known for a in s.args) and s.prim != "random_bits":
            attrs = tuple(sorted((k, repr(v)) for k, v in s.attrs.items()))
            return s.prim, s.dtype.name, attrs, tuple(known[a] for a in s.args)
        return None

    def _compute(self, nest: Nest, new: list[str], made: dict[str, Any], known: dict[str, Key]) -> None:
        """A nest of one point that computes and keeps values."""
        needed: set[str] = set()
        stack = list(new)
        while stack:
            n = stack.pop()
            if n not in needed:
                needed.add(n)
                stack += made[n].args if isinstance(made[n], Compute) else ()
        body: list[Any] = [s for s in nest.body if getattr(s, "name", None) in needed]
        for n in new:
            dtype: DType = made[n].dtype
            buffer = Buffer(f"h{len(self.buffers)}", dtype, 1, "scratch")
            self.kept[known[n]] = buffer.name
            self.buffers.append(buffer)
            body.append(Store(buffer.name, Index.of(0), n))
        self.nests.append(Nest([], "rows", 1, body))

    def without(self, nest: Nest) -> Nest:
        """The nest, reading what was computed before."""
        if id(nest) not in self.known:
            return nest
        known, wanted = self.known[id(nest)], self.wanted[id(nest)]
        loads: list[Any] = [Load(n, self.kept[known[n]], Index.of(0)) for n in wanted]
        others = [s for s in statements(nest.body) if getattr(s, "name", None) not in known]
        still = {n for s in others for n in reads(s)} - set(wanted)
        rest = [s for s in nest.body if getattr(s, "name", None) not in known or s.name in still]
        return Nest(nest.axes, nest.kind, nest.chunk, [*loads, *rest], nest.partials)


def reads(s: Any) -> tuple[str, ...]:
    """Names of values that a statement uses."""
    if isinstance(s, Compute):
        return tuple(s.args)
    if isinstance(s, Loop):
        named = [n for f in s.folds for n in (f.source, f.index) if n]
        return (*named, *(s.limit[0].names() if s.limit else ()))
    found = [getattr(s, "source", None), getattr(s, "mask", None)]
    index: Index | None = getattr(s, "index", None)
    return (*(n for n in found if n), *(index.names() if index is not None else ()))
