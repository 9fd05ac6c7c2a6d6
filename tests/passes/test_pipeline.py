"""The whole list of passes: stages, the verifier between them, sizes of what comes out."""

from __future__ import annotations

import numpy as np
import pytest
from weft.ir.errors import VerificationError
from weft.ir.graph import Graph, Op, Value
from weft.ir.interp import run
from weft.ir.prims.base import Kind, trace
from weft.ir.types import f32
from weft.ir.verify import verify
from weft.passes import pipeline
from weft.passes.autodiff import gradient_graph, joint_graph
from weft.passes.pipeline import PASSES, lower

from tests.passes.functions import CASES, mlp_graph


def arguments(graph: Graph) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [
        rng.normal(size=p.type.shape).astype(p.type.dtype.np)
        if p.type.dtype.is_floating_point
        else rng.integers(0, 5, p.type.shape)
        for p in graph.params
    ]


@pytest.mark.parametrize("name", [*CASES, "mlp"])
def test_every_stage_computes_the_same(name: str) -> None:
    graph = mlp_graph() if name == "mlp" else trace(*CASES[name][:1], *CASES[name][1])
    n = len(graph.params) - (2 if name == "mlp" else 0)
    joint = joint_graph(graph, list(range(n)), [0])
    args = arguments(joint)
    wanted = run(joint, args)
    for stage, after in lower(joint).stages:
        for a, b in zip(wanted, run(verify(after), args), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-12, err_msg=stage)


def test_stages_are_named_after_the_passes() -> None:
    lowered = lower(mlp_graph())
    assert [name for name, _ in lowered.stages] == ["captured", *(name for name, _ in PASSES)]
    assert lowered.stages[-1][1] is lowered.graph
    assert all(len(r) == 3 for r in lowered.refusals)


def test_the_last_graph_holds_kernels_and_views_only() -> None:
    joint = joint_graph(mlp_graph(dtype=f32), [0, 1, 2, 3], [0])
    kinds = {op.prim.kind for op in lower(joint).graph.ops}
    assert kinds <= {Kind.KERNEL, Kind.MOVE}
    assert all(op.prim.name == "reshape" for op in lower(joint).graph.ops if op.prim.kind is Kind.MOVE)


def test_the_verifier_runs_between_passes_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: Graph, kind: str) -> Graph:
        return Graph(graph.params, graph.ops[1:], graph.results)

    monkeypatch.setattr(pipeline, "PASSES", [("breaks", broken)])
    lower(mlp_graph())
    monkeypatch.setenv("WEFT_VERIFY", "1")
    with pytest.raises(VerificationError, match="after breaks"):
        lower(mlp_graph())


def test_work_grows_with_the_graph_and_not_faster() -> None:
    """Operations that the passes place, counted over a graph and one three times as deep."""
    counts = []
    for depth in (40, 120):
        ops = count_placed(depth)
        counts.append(ops)
    assert counts[1] <= 3.2 * counts[0]


def count_placed(depth: int) -> int:
    from weft.passes import rewriting

    placed = 0
    original = rewriting.Rewriter.place

    def place(self: rewriting.Rewriter, op: Op) -> tuple[Value, ...]:
        nonlocal placed
        placed += 1
        return original(self, op)

    def deep(x: Value, w: Value) -> Value:
        fn = CASES["gelu"][0]
        y = x
        for _ in range(depth):
            y = y * w + x
        return fn(y)

    graph = gradient_graph(trace(deep, *CASES["gelu"][1] * 2), [0, 1], [0])
    rewriting.Rewriter.place = place  # type: ignore[method-assign]
    try:
        for name, apply in PASSES:
            if name != "fuse":
                graph = apply(graph, "cpu")
    finally:
        rewriting.Rewriter.place = original  # type: ignore[method-assign]
    return placed
