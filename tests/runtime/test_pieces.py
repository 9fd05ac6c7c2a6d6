"""A graph compiled in pieces: the same results and objects, functions that one piece takes from another."""

from __future__ import annotations

from uuid import uuid4

import numpy as np
import pytest
from weft.codegen.target import host_target
from weft.ir import interp
from weft.ir import prims as P
from weft.ir.graph import Graph
from weft.ir.prims.base import trace
from weft.ir.types import TensorType, f32
from weft.runtime import build, jit, pieces, stats
from weft.runtime.compile import _compile
from weft.runtime.executable import Artifact, Executable


def many_kernels() -> Graph:
    """Products, reductions and maps, some of them alike: later kernels use functions of earlier ones."""

    def fn(x, w):
        for _ in range(6):
            x = P.tanh_p.bind(P.dot_general_p.bind(x, w, contract=((1,), (0,)), batch=((), ())))
            row = P.reshape_p.bind(P.sum_p.bind(P.exp_p.bind(x), axes=(1,)), shape=(40, 1))
            x = x / P.broadcast_p.bind(row, shape=(40, 40), axes=(0, 1))
        return x

    return trace(fn, TensorType((40, 40), f32), TensorType((40, 40), f32))


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE", 2000)
    monkeypatch.setenv("WEFT_CACHE", "0")


def compiled(graph: Graph) -> Executable:
    return _compile(graph, f"test {uuid4()}", {}, None, "test")  # a key that no cache has


def test_results_are_those_of_the_interpreter(small_pieces: None) -> None:
    graph = many_kernels()
    exe = compiled(graph)
    assert len(exe.artifact.pieces) >= 2
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 40, 40)).astype(np.float32)
    (out,), (expected,) = exe.runner(x, w), interp.run(graph, [x, w])
    np.testing.assert_allclose(out, expected, rtol=2e-5, atol=1e-6)


def test_pieces_use_functions_of_earlier_ones(small_pieces: None) -> None:
    exe = compiled(many_kernels())
    given: set[str] = set()
    used: set[str] = set()
    for image in (*exe.artifact.pieces, exe.artifact.image):
        wanted = jit.undefined_symbols(image)
        used |= wanted & given
        assert not {n for n in wanted if n.startswith("k")} - given
        given |= set(jit.defined_symbols(image))
    assert used and "weft_entry" in given


def test_the_same_graph_gives_the_same_objects(small_pieces: None) -> None:
    a, b = compiled(many_kernels()).artifact, compiled(many_kernels()).artifact
    assert (a.image, a.pieces) == (b.image, b.pieces)
    assert Artifact.from_bytes(a.to_bytes()).pieces == a.pieces


def test_small_graphs_are_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_CACHE", "0")
    before = stats.snapshot()["compiles"]
    exe = compiled(trace(lambda x: P.exp_p.bind(x) * x, TensorType((61,), f32)))  # compiled nowhere else
    assert exe.artifact.pieces == () and stats.snapshot()["compiles"] == before + 1


def test_a_build_to_be_read_compiles_nothing() -> None:
    before = stats.snapshot()["objects_compiled"]
    built = build.build(many_kernels(), host_target(), {})
    assert "define void @weft_entry" in built.llvm
    assert stats.snapshot()["objects_compiled"] == before
