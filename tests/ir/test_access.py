"""How values lie in the memory of others."""

from __future__ import annotations

from weft.ir import prims as P
from weft.ir.access import access_of
from weft.ir.graph import GraphBuilder
from weft.ir.types import TensorType, f32


def test_many_paths_to_a_value_are_one_question():
    b = GraphBuilder()
    x = y = b.param(TensorType((4, 8), f32))
    for _ in range(200):  # 2^200 paths
        (y,) = b.add(P.add_p, (y, y))
    graph = b.finish([y])
    found = access_of(y, graph.producers())
    assert found is not None
    assert (found.param, found.strides, found.pure) == (x, (8, 1), False)
