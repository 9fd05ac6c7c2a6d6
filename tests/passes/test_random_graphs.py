"""Every pass keeps the meaning of random graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from weft.ir.graph import Graph
from weft.ir.verify import verify
from weft.passes.canonicalise import canonicalise
from weft.passes.cse import cse
from weft.passes.dce import dce
from weft.passes.decompose import decompose
from weft.passes.pipeline import PASSES
from weft.passes.simplify import simplify

ALONE = {"dce": dce, "canonicalise": canonicalise, "cse": cse, "simplify": simplify, "decompose": decompose}


def whole(graph: Graph) -> Graph:
    for name, run in PASSES:
        if name != "fuse":
            graph = run(graph, "cpu")
    return graph


@pytest.mark.parametrize("name", [*ALONE, "all"])
@pytest.mark.parametrize("exact", [True, False])
def test_results_are_kept(
    name: str, exact: bool, random_graph: Callable[..., Any], same: Callable[..., None]
) -> None:
    run = ALONE.get(name, whole)
    changed = 0
    for seed in range(60):
        made = random_graph(seed, exact)
        out = run(made.graph)
        verify(out)
        changed += out is not made.graph
        same(made.graph, out, made.arguments(), exact)
    assert changed > 20


def test_source_lines_are_kept(random_graph: Callable[..., Any]) -> None:
    for seed in range(20):
        out = whole(random_graph(seed, True).graph)
        lost = [op.prim.name for op in out.ops if op.loc is None]
        assert all(name in ("full", "constant", "copy", "broadcast") for name in lost)


def test_a_second_run_changes_nothing(random_graph: Callable[..., Any]) -> None:
    """Each pass reaches its own fixed point in one run on most graphs."""
    again = 0
    for seed in range(40):
        once = cse(simplify(random_graph(seed, True).graph))
        again += len(simplify(once).ops) != len(once.ops)
    assert again <= 8
