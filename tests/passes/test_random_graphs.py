"""Every pass keeps the meaning of random graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from weft.ir.graph import Graph
from weft.ir.interp import run
from weft.ir.verify import verify
from weft.passes.autodiff import forward_backward, joint_graph
from weft.passes.canonicalise import canonicalise
from weft.passes.cse import cse
from weft.passes.dce import dce
from weft.passes.decompose import decompose
from weft.passes.pipeline import PASSES
from weft.passes.simplify import simplify

ALONE = {"dce": dce, "canonicalise": canonicalise, "cse": cse, "simplify": simplify, "decompose": decompose}


def whole(graph: Graph) -> Graph:
    for name, apply in PASSES:
        if name not in ("fuse", "trim"):
            graph = apply(graph, "cpu")
    return graph


@pytest.mark.parametrize("name", [*ALONE, "all"])
@pytest.mark.parametrize("exact", [True, False])
def test_results_are_kept(
    name: str, exact: bool, random_graph: Callable[..., Any], same: Callable[..., None]
) -> None:
    apply = ALONE.get(name, whole)
    changed = 0
    for seed in range(60):
        made = random_graph(seed, exact)
        out = apply(made.graph)
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


def test_split_gradients_equal_joint_ones(random_graph: Callable[..., Any]) -> None:
    """What is saved and what is computed again never changes a gradient."""
    saved = 0
    for seed in range(40):
        made = random_graph(seed, exact=False)
        graph = made.graph
        wrt = [i for i, p in enumerate(graph.params) if p.type.dtype.is_floating_point]
        outputs = [i for i, r in enumerate(graph.results) if r.type.dtype.is_floating_point]
        if not wrt or not outputs:
            continue
        split = forward_backward(graph, wrt, outputs)
        args = made.arguments()
        cts = [np.ones(graph.results[i].type.shape, graph.results[i].type.dtype.np) for i in outputs]
        forward = run(verify(split.forward), args)
        n = len(graph.results)
        grads = run(verify(split.backward), [*forward[n:], *cts])
        wanted = run(joint_graph(graph, wrt, outputs), [*args, *cts])
        for a, b in zip(wanted, [*forward[:n], *grads], strict=True):
            np.testing.assert_array_equal(b, a)
        saved += split.n_saved
    assert saved > 20
