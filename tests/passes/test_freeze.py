"""The cut between what depends on frozen parameters alone and the rest."""

from __future__ import annotations

import numpy as np
import pytest
from weft.codegen.target import named_target
from weft.ir import prims as P
from weft.ir.graph import Graph
from weft.ir.interp import run
from weft.ir.prims.base import trace
from weft.ir.types import TensorType, f32
from weft.ir.verify import verify
from weft.passes.freeze import split_frozen
from weft.runtime import compile_graph, compile_only

rng = np.random.default_rng(2)


def conv(x, w, stride=1, pad=1, groups=1):
    ones, n = (1, 1), (stride, stride)
    pads = ((pad, pad),) * 2
    return P.conv_p.bind(x, w, stride=n, padding=pads, lhs_dilation=ones, rhs_dilation=ones, groups=groups)


def shape(x):
    return tuple(x.type.shape)


def network(x, w, v, w2, w3):
    y = conv(x, w)
    y = y * P.broadcast_p.bind(P.rsqrt_p.bind(v * v + v), shape=shape(y), axes=(1,))
    return conv(conv(y, w2, 2, 0), w3, groups=2)


SHAPES = [(2, 16, 7, 7), (64, 16, 3, 3), (64,), (128, 64, 1, 1), (32, 64, 3, 3)]


def example() -> tuple[Graph, list[np.ndarray]]:
    graph = trace(network, *[TensorType(s, f32) for s in SHAPES])
    return graph, [rng.random(s).astype(np.float32) for s in SHAPES]


def test_the_parts_compute_what_the_whole_does() -> None:
    graph, arrays = example()
    split = split_frozen(graph, {1, 2, 3, 4})
    assert split is not None and (split.frozen, split.kept) == ((1, 2, 3, 4), (0,))
    verify(split.prologue)
    verify(split.main)
    given, rest = [arrays[i] for i in split.frozen], [arrays[i] for i in split.kept]
    (want,) = run(graph, arrays)
    for runs in (lambda g, a: run(g, a), lambda g, a: compile_graph(g).call(a)):
        (got,) = runs(split.main, [*rest, *runs(split.prologue, given)])
        np.testing.assert_allclose(got, want, rtol=2e-5)


@pytest.mark.parametrize("target", [None, "haswell"])
def test_kernels_read_frozen_weights_where_they_lie(target: str | None) -> None:
    split = split_frozen(example()[0], {1, 2, 3, 4})
    assert split is not None
    compiled = compile_graph(split.main) if target is None else compile_only(split.main, named_target(target))
    convs = [k.loops for k in compiled.kernels if k.form == "conv"]
    assert len(compiled.kernels) == len(convs) == 3 and all("w: in blocks" in text for text in convs)


def test_arithmetic_on_small_parameters_runs_before_and_broadcasts_after() -> None:
    split = split_frozen(example()[0], {2})
    assert split is not None and [op.prim.name for op in split.prologue.ops] == ["mul", "add", "rsqrt"]
    assert split.prologue.results[0].type.shape == (64,)
    assert {op.prim.name for op in split.main.ops} == {"conv", "broadcast", "mul"}


def test_nothing_to_do_before_is_no_cut() -> None:
    graph = trace(lambda x, w: x + w, TensorType((3,), f32), TensorType((3,), f32))
    assert split_frozen(graph, {1}) is None
    assert split_frozen(example()[0], ()) is None


def test_a_result_of_parameters_alone() -> None:
    graph = trace(lambda x, w: (x + w, w * w), TensorType((3,), f32), TensorType((3,), f32))
    split = split_frozen(graph, {1})
    x, w = (rng.random(3).astype(np.float32) for _ in range(2))
    assert split is not None and split.kept == (0, 1)
    got = compile_graph(split.main).call([x, w, *compile_graph(split.prologue).call([w])])
    for a, b in zip(got, (x + w, w * w), strict=True):
        np.testing.assert_array_equal(a, b)
