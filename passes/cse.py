"""Common subexpression elimination."""

from __future__ import annotations

from typing import Any

from weft.ir.graph import Graph, GraphBuilder, Op, Value, rewrite
from weft.passes.rewriting import attrs_key

# Constants up to this many bytes are compared; hashing a large one at every compile would not pay.
MAX_CONSTANT_BYTES = 1 << 16


def cse(graph: Graph) -> Graph:
    """Keep the first of several operations with the same primitive, operands and attributes.

    Expects any graph. Leaves one operation of each: equal attributes means the same bits (0.0 is not -0.0).
    ``copy`` stays, since it asks for storage of its own, and so does what has ``effects`` or regions. The
    regions themselves are swept. One hash lookup per operation.
    """
    seen: dict[Any, tuple[Value, ...]] = {}

    def visit(b: GraphBuilder, op: Op, operands: tuple[Value, ...]) -> tuple[Value, ...] | None:
        if op.regions:
            return _sweep_regions(b, op, operands)
        if op.prim.name == "copy" or op.prim.tags.get("effects") or op.attrs.get("effects"):
            return None
        if op.prim.name == "constant" and op.attrs["value"].nbytes > MAX_CONSTANT_BYTES:
            return None
        key = (op.prim, operands, attrs_key(op.attrs))
        found = seen.get(key)
        if found is not None:
            return found
        if operands == op.operands:
            b.ops.append(op)
            seen[key] = op.results
            return op.results
        new = Op(op.prim, operands, op.attrs, [Value(v.type, v.name) for v in op.results], (), op.loc)
        b.ops.append(new)
        seen[key] = new.results
        return new.results

    return rewrite(graph, visit)


def _sweep_regions(b: GraphBuilder, op: Op, operands: tuple[Value, ...]) -> tuple[Value, ...]:
    results = [Value(v.type, v.name) for v in op.results]
    b.ops.append(Op(op.prim, operands, op.attrs, results, [cse(g) for g in op.regions], op.loc))
    return tuple(results)
