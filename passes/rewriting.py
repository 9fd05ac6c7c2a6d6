"""The engine of the rewriting passes: one walk, rules indexed by primitive, bounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from weft.ir.errors import CompilerError
from weft.ir.graph import Graph, Op, Value
from weft.ir.prims.base import PRIMITIVES, Kind, Primitive
from weft.ir.types import DType, TensorType

# How often the result of a rule may itself be rewritten. Every rule makes its operation smaller or moves it
# one step, so chains are short; the bound is what makes the time linear whatever the rules do.
MAX_DEPTH = 16

Rewritten = Value | tuple[Value, ...] | None
Rule = Callable[["Rewriter", Op], Rewritten]


class Rules:
    """A table of rules by the name of the primitive they start from. ``"*"`` rules are tried on every
    operation.

    >>> table = Rules()
    >>> @table.on("neg")
    ... def double_negation(r, op):
    ...     return r.operand_of(op.operands[0], "neg")
    >>> [rule.__name__ for rule in table["neg"]]
    ['double_negation']
    """

    def __init__(self, *included: Rules) -> None:
        self.by_name: dict[str, list[Rule]] = {}
        for table in included:
            for name, rules in table.by_name.items():
                self.by_name.setdefault(name, []).extend(rules)

    def on(self, *names: str) -> Callable[[Rule], Rule]:
        """Register a rule for the primitives of these names; earlier rules are tried first."""

        def register(rule: Rule) -> Rule:
            for name in names:
                self.by_name.setdefault(name, []).append(rule)
            return rule

        return register

    def __getitem__(self, name: str) -> list[Rule]:
        return self.by_name.get("*", []) + self.by_name.get(name, [])


class Rewriter:
    """Copies a graph operation by operation through a table of rules.

    A rule ``rule(r, op)`` sees an operation whose operands belong to the new graph already. It returns the
    value (or tuple of values) that stands for its results, or None. It asks for producers with
    :meth:`producer` and appends with :meth:`emit`, whose operations go through the rules too. Replaced
    operations are left to dce.
    """

    def __init__(self, graph: Graph, rules: Rules) -> None:
        self.graph = graph
        self.table = rules
        self.rules: dict[str, list[Rule]] = {}
        self.ops: list[Op] = []
        self.made: dict[Value, Op] = {}
        self.loc: str | None = None
        self.depth = 0
        self.changed = False
        self.results = frozenset(graph.results)  # of the old graph
        self.notes: set[tuple[Any, ...]] = set()  # what rules of one run tell each other
        self.current: Op | None = None  # the operation of the old graph that is being copied

    def run(self) -> Graph:
        """The rewritten graph; the old one itself where no rule applied."""
        env: dict[Value, Value] = {p: p for p in self.graph.params}
        for op in self.graph.ops:
            self.current, self.loc = op, op.loc
            operands = tuple([env[v] for v in op.operands])
            regions = self._regions(op)
            if operands != op.operands or regions is not op.regions:
                new = [Value(v.type, v.name) for v in op.results]
                op = Op(op.prim, operands, op.attrs, new, regions, op.loc)
            out = self.place(op)
            env.update(zip(self.current.results, out, strict=True))
        if not self.changed:
            return self.graph
        return Graph(self.graph.params, self.ops, [env[v] for v in self.graph.results], self.graph.name)

    def _regions(self, op: Op) -> tuple[Graph, ...]:
        if not op.regions or op.prim.kind is Kind.KERNEL:
            return op.regions
        regions = tuple([Rewriter(g, self.table).run() for g in op.regions])
        if all(a is b for a, b in zip(regions, op.regions, strict=True)):
            return op.regions
        self.changed = True
        return regions

    def place(self, op: Op) -> tuple[Value, ...]:
        """Append ``op`` or what the rules make of it; the values that stand for its results."""
        name = op.prim.name
        rules = self.rules.get(name)
        if rules is None:
            rules = self.rules[name] = self.table[name]
        if rules and self.depth < MAX_DEPTH:
            self.depth += 1
            try:
                for rule in rules:
                    out = rule(self, op)
                    if out is not None:
                        out = (out,) if isinstance(out, Value) else tuple(out)
                        self._check(rule, op, out)
                        self.changed = True
                        return out
            finally:
                self.depth -= 1
        self.ops.append(op)
        for v in op.results:
            self.made[v] = op
        return op.results

    def _check(self, rule: Rule, op: Op, out: tuple[Value, ...]) -> None:
        if [v.type for v in out] != [v.type for v in op.results]:
            was, now = ", ".join(str(v.type) for v in op.results), ", ".join(str(v.type) for v in out)
            raise CompilerError(f"rule {rule.__name__} turned {op.prim.name} of {was} into {now}", self.graph)

    def emit(
        self, name: str | Primitive, *operands: Value, regions: Sequence[Graph] = (), **attrs: Any
    ) -> Value:
        """Append a single-result operation through the rules."""
        (out,) = self.emit_all(name, *operands, regions=regions, **attrs)
        return out

    def emit_all(
        self, name: str | Primitive, *operands: Value, regions: Sequence[Graph] = (), **attrs: Any
    ) -> tuple[Value, ...]:
        prim = PRIMITIVES[name] if isinstance(name, str) else name
        attrs = prim.normalize_attrs(attrs)
        types = prim.infer_types([v.type for v in operands], attrs, regions)
        return self.place(Op(prim, operands, attrs, [Value(t) for t in types], regions, self.loc))

    def full(self, like: TensorType, value: complex) -> Value:
        """A constant of this type."""
        return self.emit("full", shape=like.shape, dtype=like.dtype, value=value, device=like.device)

    def reshape(self, x: Value, shape: Sequence[Any]) -> Value:
        """``x`` in another shape; ``x`` itself where it has it already."""
        return x if x.type.shape == tuple(shape) else self.emit("reshape", x, shape=tuple(shape))

    def convert(self, x: Value, dtype: DType) -> Value:
        return x if x.type.dtype is dtype else self.emit("convert", x, dtype=dtype)

    def inline(self, graph: Graph, operands: Sequence[Value]) -> tuple[Value, ...]:
        """The operations of ``graph`` applied to ``operands``, through the rules."""
        env = dict(zip(graph.params, operands, strict=True))
        for op in graph.ops:
            new = [Value(v.type, v.name) for v in op.results]
            out = self.place(Op(op.prim, [env[v] for v in op.operands], op.attrs, new, op.regions, op.loc))
            env.update(zip(op.results, out, strict=True))
        return tuple([env[v] for v in graph.results])

    def producer(self, v: Value, name: str | None = None) -> Op | None:
        """The operation that makes ``v`` (None for a parameter), if it is of the primitive ``name``."""
        op = self.made.get(v)
        return op if op is None or name is None or op.prim.name == name else None

    def operand_of(self, v: Value, name: str) -> Value | None:
        """``x`` where ``v`` is ``name(x)``."""
        op = self.producer(v, name)
        return op.operands[0] if op is not None else None

    def uniform(self, v: Value) -> Any:
        """The number that every element of ``v`` has, or None where it is not known."""
        op = self.made.get(v)
        return op.attrs["value"] if op is not None and op.prim.name == "full" else None

    @cached_property
    def readers(self) -> Mapping[Value, Sequence[Op]]:
        """The operations of the old graph that read each of its values."""
        return self.graph.users()

    def is_result(self) -> bool:
        """Whether the operation of the old graph that is being copied gives a result of the graph."""
        return self.current is not None and any(v in self.results for v in self.current.results)


def others(axes: Sequence[int], ndim: int) -> tuple[int, ...]:
    """The axes that are not in ``axes``, in order."""
    return tuple(i for i in range(ndim) if i not in axes)


def attr_key(value: Any) -> Any:
    """A hashable key that tells apart what compares equal but is not the same: 0.0 and -0.0, 1 and True; a
    NaN equals itself. Arrays go by their bytes.
    """
    if isinstance(value, float):
        return ("f", value.hex()) if value == value else ("f", "nan")
    if isinstance(value, tuple):
        return tuple([attr_key(v) for v in value])
    if isinstance(value, (bool, int)):
        return (value.__class__, value)
    if isinstance(value, complex):
        return ("c", attr_key(value.real), attr_key(value.imag))
    if hasattr(value, "tobytes"):
        return (value.shape, value.dtype.str, value.tobytes())
    return value


def attrs_key(attrs: Mapping[str, Any]) -> tuple[Any, ...]:
    """The key of a whole attribute mapping, whatever its order."""
    if not attrs:
        return ()
    return tuple(sorted([(k, attr_key(v)) for k, v in attrs.items()], key=_first))


def _first(item: tuple[str, Any]) -> str:
    return item[0]
