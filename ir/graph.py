"""Graphs in SSA form: values, operations and the builder that appends them.

Values and operations are immutable; a pass makes a new graph. A graph keeps its operations as a list in
program order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from weft.ir.types import Device, TensorType

if TYPE_CHECKING:
    from weft.ir.prims.base import Primitive


class Operators:
    """Arithmetic operators that bind primitives, so that gradient rules read like formulas. They neither
    broadcast nor promote; a Python number takes the type of the other operand."""

    __slots__ = ()

    # numpy must not try to loop over one in ``ndarray * value``
    __array_ufunc__ = None

    def __add__(self, other: Any) -> Any:
        return _operator("add", self, other)

    def __radd__(self, other: Any) -> Any:
        return _operator("add", other, self)

    def __sub__(self, other: Any) -> Any:
        return _operator("sub", self, other)

    def __rsub__(self, other: Any) -> Any:
        return _operator("sub", other, self)

    def __mul__(self, other: Any) -> Any:
        return _operator("mul", self, other)

    def __rmul__(self, other: Any) -> Any:
        return _operator("mul", other, self)

    def __truediv__(self, other: Any) -> Any:
        return _operator("div", self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return _operator("div", other, self)

    def __neg__(self) -> Any:
        return _operator("neg", self)


class Value(Operators):
    """One SSA value: a graph parameter or one result of one operation. Compared by identity."""

    __slots__ = ("__weakref__", "name", "type")

    def __init__(self, type: TensorType, name: str | None = None) -> None:
        self.type = type
        self.name = name

    def __repr__(self) -> str:
        return f"Value({self.name or hex(id(self))}: {self.type})"


def _operator(name: str, *operands: Any) -> Any:
    from weft.ir.prims.base import PRIMITIVES, lift_scalar

    like = next(x for x in operands if isinstance(x, Operators))
    return PRIMITIVES[name].bind(*(lift_scalar(x, like) for x in operands))


class Op:
    """One operation: a primitive applied to operands. Immutable.

    Attributes: ``prim``; ``operands`` and ``results`` (tuples of Value); ``attrs`` (read-only mapping of str
    to int, float, bool, str, None, DType, Device, ndarray or nested tuples of these); ``regions`` (tuple of
    Graph); ``loc`` (the user's ``file:line`` or None).
    """

    __slots__ = ("attrs", "loc", "operands", "prim", "regions", "results")

    def __init__(
        self,
        prim: Primitive,
        operands: Sequence[Value],
        attrs: Mapping[str, Any],
        results: Sequence[Value],
        regions: Sequence[Graph] = (),
        loc: str | None = None,
    ) -> None:
        self.prim = prim
        self.operands = tuple(operands)
        self.attrs: Mapping[str, Any] = _frozen(attrs)
        self.results = tuple(results)
        self.regions = tuple(regions)
        self.loc = loc

    @property
    def result(self) -> Value:
        """The only result of a single-result operation."""
        (r,) = self.results
        return r

    def __repr__(self) -> str:
        return f"Op({self.prim.name}, {len(self.operands)} operands, {len(self.results)} results)"


_NO_ATTRS: Mapping[str, Any] = MappingProxyType({})


def _frozen(attrs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The attributes as what nobody changes: those of another operation are that already."""
    if type(attrs) is MappingProxyType:
        return attrs
    return MappingProxyType(dict(attrs)) if attrs else _NO_ATTRS


class Graph:
    """A function: parameters, operations in program order, results."""

    __slots__ = ("__weakref__", "name", "ops", "params", "results")

    def __init__(
        self, params: Iterable[Value], ops: Iterable[Op], results: Iterable[Value], name: str = "main"
    ) -> None:
        self.params = tuple(params)
        self.ops = tuple(ops)
        self.results = tuple(results)
        self.name = name

    def __str__(self) -> str:
        from weft.ir.text import print_graph

        return print_graph(self)

    def __repr__(self) -> str:
        counts = f"{len(self.params)} params, {len(self.ops)} ops, {len(self.results)} results"
        return f"Graph({self.name}: {counts})"

    def producers(self) -> dict[Value, Op]:
        """The operation that defines each value (parameters have none)."""
        return {r: op for op in self.ops for r in op.results}

    def users(self) -> dict[Value, list[Op]]:
        """For each value the operations of this graph that read it, in order, once per operand."""
        out: dict[Value, list[Op]] = {}
        for op in self.ops:
            for v in op.operands:
                out.setdefault(v, []).append(op)
        return out

    def walk(self) -> Iterator[Op]:
        """All operations, those in nested regions too."""
        for op in self.ops:
            yield op
            for region in op.regions:
                yield from region.walk()


class GraphBuilder:
    """Builds a graph operation by operation. ``add`` infers the result types from the primitive.

    >>> from weft.ir.types import TensorType, f32
    >>> from weft.ir import prims as P
    >>> b = GraphBuilder("twice")
    >>> x = b.param(TensorType((3,), f32))
    >>> (y,) = b.add(P.add_p, (x, x))
    >>> len(b.finish([y]).ops)
    1
    """

    def __init__(self, name: str = "main") -> None:
        self.name = name
        self.params: list[Value] = []
        self.ops: list[Op] = []

    def param(self, type: TensorType, name: str | None = None) -> Value:
        v = Value(type, name)
        self.params.append(v)
        return v

    def add(
        self,
        prim: Primitive,
        operands: Sequence[Value],
        attrs: Mapping[str, Any] | None = None,
        regions: Sequence[Graph] = (),
        loc: str | None = None,
    ) -> tuple[Value, ...]:
        """Append one operation and return its results. Raises what the primitive's type rule raises."""
        attrs = prim.normalize_attrs(attrs or {})
        types = prim.infer_types([v.type for v in operands], attrs, regions)
        op = Op(prim, operands, attrs, [Value(t) for t in types], regions, loc)
        self.ops.append(op)
        return op.results

    def finish(self, results: Iterable[Value]) -> Graph:
        return Graph(self.params, self.ops, results, self.name)


def devices_of(graph: Graph | GraphBuilder) -> set[Device]:
    """The devices that values of the graph live on, those of nested regions aside."""
    found = {id(d): d for d in [p.type.device for p in graph.params]}
    for op in graph.ops:
        for r in op.results:
            device = r.type.device
            found[id(device)] = device
    return set(found.values())


def rewrite(
    graph: Graph, visit: Callable[[GraphBuilder, Op, tuple[Value, ...]], Sequence[Value] | None]
) -> Graph:
    """Copy ``graph`` op by op. ``visit(builder, op, operands)`` gets each op with its operands already mapped
    and returns the values that stand for its results, or None to copy the op as it is.
    """
    b = GraphBuilder(graph.name)
    b.params = list(graph.params)
    env: dict[Value, Value] = {p: p for p in graph.params}
    for op in graph.ops:
        operands = tuple(env[v] for v in op.operands)
        out = visit(b, op, operands)
        if out is None:
            out = copy_op(b, op, operands)
        env.update(zip(op.results, out, strict=True))
    return b.finish(env[r] for r in graph.results)


def copy_op(b: GraphBuilder, op: Op, operands: Sequence[Value]) -> tuple[Value, ...]:
    """Append ``op`` with other operands of the same types; keeps the op itself where nothing changed."""
    if all(a is o for a, o in zip(operands, op.operands, strict=True)):
        b.ops.append(op)
        return op.results
    new = Op(op.prim, operands, op.attrs, [Value(r.type, r.name) for r in op.results], op.regions, op.loc)
    b.ops.append(new)
    return new.results
