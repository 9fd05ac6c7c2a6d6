"""Fusion keeps the meaning of random graphs: by the interpreter, and with its loop kernels as machine
code."""

from __future__ import annotations

import numpy as np
import pytest
from weft.codegen.standalone import Standalone
from weft.ir import prims as P
from weft.ir.interp import run
from weft.ir.nest import analyse
from weft.ir.prims.base import trace
from weft.ir.types import TensorType, f32
from weft.ir.verify import verify
from weft.passes import fuse_groups
from weft.passes.fuse import fuse
from weft.passes.fuse_grow import Growing
from weft.passes.fuse_reshape import groups, sink_reshapes
from weft.passes.pipeline import lower


@pytest.mark.parametrize("exact", [True, False])
def test_fused_graphs_mean_the_same(exact, random_graph, same):
    kernels = 0
    for seed in range(60):
        made = random_graph(seed, exact)
        out = lower(made.graph).graph
        verify(out)
        kernels += sum(op.prim.name == "kernel" for op in out.ops)
        same(made.graph, out, made.arguments(), exact)
    assert kernels > 60


@pytest.mark.parametrize("exact", [True, False])
def test_sinking_reshapes_keeps_the_results(exact, random_graph, same):
    changed = 0
    for seed in range(100):
        made = random_graph(seed, exact)
        out = sink_reshapes(made.graph)
        verify(out)
        changed += out is not made.graph
        same(made.graph, out, made.arguments(), exact)
    assert changed > 10


def test_growing_without_analysis_changes_no_kernel(random_graph, monkeypatch):
    graphs = [random_graph(seed, True).graph for seed in range(150)]
    quick = [str(lower(g).graph) for g in graphs]
    monkeypatch.setattr(Growing, "grow", lambda *args: False)
    assert [str(lower(g).graph) for g in graphs] == quick


def test_a_chain_of_maps_is_analysed_once(monkeypatch):
    calls = []

    def counted(*args):
        calls.append(args)
        return analyse(*args)

    monkeypatch.setattr(fuse_groups, "analyse", counted)

    def chain(x, row):
        row = P.broadcast_p.bind(row, axes=(1,), shape=x.type.shape)
        for _ in range(40):
            x = P.tanh_p.bind(x) * row
        return P.sum_p.bind(x, axes=(1,))

    graph = fuse(trace(chain, TensorType((30, 20), f32), TensorType((20,), f32)))
    assert len([op for op in graph.ops if op.prim.name == "kernel"]) == 1
    assert len(calls) < 10


@pytest.mark.parametrize("seed", range(12))
def test_machine_code_of_random_graphs(seed, random_graph):
    made = random_graph(seed, True)
    arguments = made.arguments()
    graph = lower(made.graph).graph
    env = dict(zip(graph.params, arguments, strict=True))
    for op in graph.ops:
        xs = [np.asarray(env[v]) for v in op.operands]
        if op.prim.name == "kernel" and op.attrs["form"] == "loop":
            outs = Standalone(op)(*xs)
        else:
            with np.errstate(all="ignore"):
                outs = op.prim.evaluate(xs, op.attrs, op.regions)
        env.update(zip(op.results, outs, strict=True))
    for r, want in zip(graph.results, run(made.graph, arguments), strict=True):
        np.testing.assert_allclose(env[r], want, rtol=1e-6, atol=1e-6)


def test_a_merging_reshape_moves_below_maps_and_reductions():
    def f(x, b):
        y = P.reshape_p.bind(P.exp_p.bind(x), shape=(6, 4))
        z = y * P.broadcast_p.bind(b, shape=(6, 4), axes=(1,))
        return P.sum_p.bind(z, axes=(1,))

    g = fuse(trace(f, TensorType((2, 3, 4), f32), TensorType((4,), f32)))
    assert [op.prim.name for op in g.ops] == ["kernel", "reshape"]
    assert g.ops[0].result.type.shape == (2, 3)


def test_groups_of_merged_dimensions():
    assert groups((2, 3, 4), (6, 4)) == [[0, 1], [2]]
    assert groups((2, 3, 4), (2, 12)) == [[0], [1, 2]]
    assert groups((2, 3, 4), (3, 8)) is None
    assert groups((2, 3), (2, 3, 1)) == [[0], [1], []]


def test_a_split_of_a_computed_value_stays_in_its_kernel():
    def f(x):
        heads = P.reshape_p.bind(P.exp_p.bind(x), shape=(4, 2, 3, 8))
        return P.permute_p.bind(heads, perm=(0, 2, 1, 3)) * 2.0

    assert [op.prim.name for op in fuse(trace(f, TensorType((4, 2, 24), f32))).ops] == ["kernel"]
