"""Random graphs over all kinds of primitives: compiled, they give what the reference interpreter gives."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from random_programs import Program, agree, arguments, tolerances
from weft.codegen.target import Target, host_target, named_target
from weft.ir import prims as P
from weft.ir.graph import Graph
from weft.ir.interp import run
from weft.ir.prims.base import full_like, trace
from weft.ir.text import parse_graph, print_graph
from weft.ir.types import TensorType, f32, i64
from weft.ir.verify import verify
from weft.passes.autodiff import gradient_graph
from weft.runtime import compile_graph

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(autouse=True)
def no_disk_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_CACHE", "0")


def check(graph: Graph, arrays: list[np.ndarray], what: str) -> None:
    want, allowed = run(graph, arrays), tolerances(graph)
    got = compile_graph(graph).call(arrays)
    for i, (g, w, v) in enumerate(zip(got, want, graph.results, strict=True)):
        assert agree(g, w, allowed[v]), f"{what}, result {i}\n{graph}"


@pytest.mark.parametrize("seeds", [range(k, k + 20) for k in range(0, 120, 20)], ids=str)
def test_compiled_equals_interpreted(seeds: range) -> None:
    for seed in seeds:
        graph = verify(Program(seed).graph)
        check(graph, arguments(graph, seed), f"program {seed}")


@pytest.mark.parametrize("seeds", [range(5000, 5010), range(5010, 5020)], ids=str)
def test_larger_arrays(seeds: range) -> None:
    """Large enough for all threads."""
    for seed in seeds:
        graph = Program(seed, length=8, largest=1_000_000, sizes=(1, 3, 32, 100, 333)).graph
        check(graph, arguments(graph, seed), f"large program {seed}")


@pytest.mark.parametrize("seeds", [range(k, k + 10) for k in range(7000, 7040, 10)], ids=str)
def test_gradients(seeds: range) -> None:
    for seed in seeds:
        graph = Program(seed, length=8).graph
        wrt = [i for i, p in enumerate(graph.params) if p.type.dtype.is_floating_point]
        outputs = [i for i, r in enumerate(graph.results) if r.type.dtype.is_floating_point]
        gradient = verify(gradient_graph(graph, wrt, outputs))
        check(gradient, arguments(gradient, seed), f"gradient of program {seed}")


@pytest.fixture
def narrow_vectors(monkeypatch: pytest.MonkeyPatch) -> Target:
    """Where the machine has AVX-512, pretend that it has AVX2 only."""
    target = named_target("haswell") if host_target().vector_bits == 512 else host_target()
    monkeypatch.setattr("weft.runtime.compile.host_target", lambda: target)
    return target


@pytest.mark.parametrize("seeds", [range(300, 320), range(320, 340)], ids=str)
def test_narrow_vectors(seeds: range, narrow_vectors: Target) -> None:
    assert narrow_vectors.vector_bits <= 256
    for seed in seeds:
        graph = Program(seed).graph
        check(graph, arguments(graph, seed), f"program {seed} on {narrow_vectors.cpu}")


def test_text_round_trip() -> None:
    for seed in range(60):
        text = print_graph(Program(seed).graph)
        assert print_graph(parse_graph(text)) == text


def test_random_bits_in_a_joined_part() -> None:
    """Found by a random program: the first lanes of the joined part have negative positions."""

    def fn(x: Any) -> Any:
        state = P.full_p.bind(shape=(2,), dtype=i64, value=882)
        bits = P.random_bits_p.bind(state, shape=(8, 3, 4, 4))
        noise = P.convert_p.bind(P.shr_p.bind(bits, full_like(bits, 8)), dtype=f32)
        return P.concatenate_p.bind(x, x + noise, axis=3)

    check(trace(fn, TensorType((8, 3, 4, 4), f32)), [np.ones((8, 3, 4, 4), np.float32)], "joined bits")


def test_rows_in_another_order() -> None:
    """Found by a random program: rows of a softmax beside the same in reverse order."""

    def fn(x: Any) -> Any:
        top = P.broadcast_p.bind(P.reduce_max_p.bind(x, axes=(2,)), shape=(17, 16, 17), axes=(0, 1))
        e = P.exp_p.bind(x - top)
        return P.flip_p.bind(e, axes=(0,)) - e * 0.5

    x = np.random.default_rng(0).normal(size=(17, 16, 17)).astype(np.float32)
    check(trace(fn, TensorType((17, 16, 17), f32)), [x], "reversed rows")
