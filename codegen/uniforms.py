"""Single values that every tile of a kernel reads, such as a step size: computed once, in a first phase.

They are kept in the kernel's scratch memory, from where the other functions load them.
"""

from __future__ import annotations

from collections.abc import Mapping

from weft.codegen.blocks import Code
from weft.codegen.emit import Reg, VectorBuilder
from weft.codegen.kernel import Phase
from weft.codegen.lanes import load_lanes, store_lanes
from weft.codegen.phases import Writer
from weft.codegen.places import Coord, Place, Region
from weft.ir.graph import Graph, Op, Value
from weft.ir.prims.base import Kind

SLOT = 8  # bytes per value


def uniform_values(graph: Graph, main: Op) -> list[Value]:
    """Values of one element that maps compute beside the contraction, and that larger values are made of."""
    known = {v for v in graph.params if v.type.size == 1}  # values of one element that need no main op
    made: set[Value] = set()
    found: dict[Value, None] = {}
    for op in graph.ops:
        plain = op.prim.kind in (Kind.MAP, Kind.MOVE, Kind.SOURCE) and op is not main
        if plain and op.results[0].type.size == 1 and all(v in known for v in op.operands):
            known.update(op.results)
            if op.prim.kind is Kind.MAP:
                made.update(op.results)
            continue
        found.update(dict.fromkeys(v for v in op.operands if v in made))
    return list(found)


class Uniforms:
    """The uniform values of a kernel, at ``offset`` of its scratch memory."""

    def __init__(self, writer: Writer, main: Op, offset: int) -> None:
        self.writer, self.offset = writer, offset
        self.values = uniform_values(writer.graph, main)

    @property
    def nbytes(self) -> int:
        return -(-len(self.values) * SLOT // 64) * 64

    def phase(self) -> list[Phase]:
        """The phase that computes them, if there are any."""
        if not self.values:
            return []
        w = self.writer
        fn = w.start(f"{w.prefix}_uniform_unit")
        pointers = {v: fn.arg(i) for i, v in enumerate(w.graph.params)}
        base = w.scratch_of(fn)
        region = Region(fn, w.graph, 1, pointers)
        for i, v in enumerate(self.values):
            at = Place(v.type.shape, lambda n=v.type.ndim: (Coord(),) * n, Coord)
            got = region.value(v, at)
            store_lanes(fn, got.text, fn.at(base, self.offset + i * SLOT), v.type.dtype, 0)
        w.keep(fn)
        return [w.phase("uniform", [(fn.symbol, 1)], 100.0, False)]

    def load(self, fn: Code) -> Mapping[Value, Reg]:
        """The values in registers; to be called at the start of a function."""
        if not self.values:
            return {}
        base, b = self.writer.scratch_of(fn), VectorBuilder(fn, 0)
        out: dict[Value, Reg] = {}
        for i, v in enumerate(self.values):
            text = load_lanes(fn, fn.at(base, self.offset + i * SLOT), v.type.dtype, 0)
            out[v] = b.reg(text, v.type.dtype)
        return out
