"""Moving reshapes below the operations that read them, so that they end as free views outside kernels.

An operation on a reshaped value runs on the value before the reshape, if that only merged dimensions; its
other operands are viewed in the same shape, and the reshape follows the result. What is left of reshapes
then splits dimensions, or stands where a contraction or a result wants it.
"""

from __future__ import annotations

from collections.abc import Sequence

from weft.ir.graph import Graph, GraphBuilder, Op, Value, copy_op
from weft.ir.prims import broadcast_p, permute_p, reshape_p
from weft.ir.prims.base import Kind

FOLLOWED = frozenset(
    {Kind.MAP, Kind.MOVE, Kind.REDUCE, Kind.RANDOM, Kind.GATHER, Kind.CONTRACT, Kind.SCATTER}
)


def sink_reshapes(graph: Graph) -> Graph:
    """The same graph with reshapes below maps, reductions, broadcasts and permutations."""
    if not any(op.prim is reshape_p for op in graph.ops):
        return graph
    return _Sink(graph).run()


def groups(fine: Sequence[int], shape: Sequence[int]) -> list[list[int]] | None:
    """For each dim of ``shape`` the dims of ``fine`` that it merges, or None where they do not line up."""
    out: list[list[int]] = []
    i = 0
    for d in shape:
        run, n = [], 1
        while n < d and i < len(fine):
            run.append(i)
            n *= fine[i]
            i += 1
        if n != d:
            return None
        out.append(run)
    return out if i == len(fine) else None


class _Sink:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.b = GraphBuilder(graph.name)
        self.b.params = list(graph.params)
        self.env: dict[Value, Value] = {p: p for p in graph.params}
        self.fine: dict[
            Value, Value
        ] = {}  # value -> the computed value of finer shape of which it is a reshape
        self.kinds: dict[Value, Kind] = {}

    def run(self) -> Graph:
        for op in self.graph.ops:
            operands = [self.env[x] for x in op.operands]
            results = self.rewrite(op, operands) or copy_op(self.b, op, operands)
            for old, new in zip(op.results, results, strict=True):
                self.env[old] = new
                self.kinds.setdefault(new, op.prim.kind)
        return self.b.finish(self.env[r] for r in self.graph.results)

    def rewrite(self, op: Op, operands: list[Value]) -> tuple[Value, ...] | None:
        if op.prim is reshape_p:
            return self.reshape(op, operands[0])
        if not any(x in self.fine for x in operands):
            return None
        if op.prim.kind is Kind.MAP:
            return self.map(op, operands)
        if op.prim.kind is Kind.REDUCE and "axes" in op.attrs:
            return self.reduce(op, operands[0])
        if op.prim is broadcast_p:
            return self.broadcast(op, operands[0])
        if op.prim is permute_p:
            return self.permute(op, operands[0])
        return None

    def view(self, x: Value, shape: Sequence[int], loc: str | None) -> Value:
        """``x`` in another shape."""
        shape = tuple(shape)
        base = self.fine.get(x, x)
        if base.type.shape == shape:
            return base
        if x.type.shape == shape:
            return x
        return self.b.add(reshape_p, (x,), {"shape": shape}, (), loc)[0]

    def back(self, fine: Value, op: Op) -> tuple[Value, ...]:
        """``fine`` in the shape that ``op`` promised."""
        shape = op.result.type.shape
        if fine.type.shape == shape:
            return (fine,)
        self.kinds[fine] = op.prim.kind
        (out,) = self.b.add(reshape_p, (fine,), {"shape": shape}, (), op.loc)
        if groups(fine.type.shape, shape) is not None:
            self.fine[out] = fine
        return (out,)

    def reshape(self, op: Op, x: Value) -> tuple[Value, ...]:
        shape = op.result.type.shape
        base = self.fine.get(x, x)
        if base.type.shape == shape:
            return (base,)
        (out,) = self.b.add(reshape_p, (base,), {"shape": shape}, (), op.loc)
        computed = self.kinds.get(base) in FOLLOWED
        if computed and len(base.type.shape) > len(shape) and groups(base.type.shape, shape) is not None:
            self.fine[out] = base
        return (out,)

    def map(self, op: Op, operands: list[Value]) -> tuple[Value, ...] | None:
        shapes = {self.fine[x].type.shape for x in operands if x in self.fine}
        shape = max(shapes, key=len)
        if any(groups(shape, s) is None for s in shapes):
            return None
        views = [self.view(x, shape, op.loc) for x in operands]
        (out,) = self.b.add(op.prim, views, op.attrs, (), op.loc)
        return self.back(out, op)

    def reduce(self, op: Op, x: Value) -> tuple[Value, ...] | None:
        fine = self.fine[x]
        parts = groups(fine.type.shape, x.type.shape)
        if parts is None:
            return None
        axes = sorted(d for a in op.attrs["axes"] for d in parts[a])
        (out,) = self.b.add(op.prim, (fine,), {**op.attrs, "axes": tuple(axes)}, (), op.loc)
        return self.back(out, op)

    def broadcast(self, op: Op, x: Value) -> tuple[Value, ...] | None:
        fine, shape = self.fine[x], op.result.type.shape
        parts = groups(fine.type.shape, x.type.shape)
        if parts is None:
            return None
        to = dict(zip(op.attrs["axes"], range(x.type.ndim), strict=True))
        new_shape: list[int] = []
        axes: dict[int, int] = {}
        for d, extent in enumerate(shape):
            mine = parts[to[d]] if d in to else []
            if mine and x.type.shape[to[d]] == extent:
                axes.update({f: len(new_shape) + k for k, f in enumerate(mine)})
                new_shape += [fine.type.shape[f] for f in mine]
            else:
                if mine:  # extent one, spread: keep one dim for each
                    return None
                new_shape.append(extent)
        if len(axes) != fine.type.ndim:
            return None
        attrs = {"shape": tuple(new_shape), "axes": tuple(axes[f] for f in range(fine.type.ndim))}
        (out,) = self.b.add(broadcast_p, (fine,), attrs, (), op.loc)
        return self.back(out, op)

    def permute(self, op: Op, x: Value) -> tuple[Value, ...] | None:
        fine = self.fine[x]
        parts = groups(fine.type.shape, x.type.shape)
        if parts is None:
            return None
        perm = tuple(d for p in op.attrs["perm"] for d in parts[p])
        (out,) = self.b.add(permute_p, (fine,), {"perm": perm}, (), op.loc)
        return self.back(out, op)
