"""Every primitive, all cases of the matrix at once, on the emulated device against its numpy evaluation.

What becomes kernels is run kernel by kernel (``KERNELS``); control flow, sources and what the host computes
go through the runtime, by a native entry that issues launches (``RUNTIME``).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "runtime" / "cuda"))
sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from device_graphs import device_arrays, fetched
from device_graphs import on_device as placed
from on_device import on_device
from opinfo import ROWS, Case, Point
from test_primitives import (
    DIFFERENTIABLE,
    assert_close,
    batch,
    by_signature,
    evaluated,
    groups,
    hostless,
    inexact_results,
    operands_of,
    random_like,
    varied,
)
from weft.codegen.gpu.target import gpu_target
from weft.ir.graph import Graph
from weft.ir.interp import run
from weft.ir.prims.base import PRIMITIVES, Kind
from weft.passes.autodiff import gradient_graph
from weft.passes.pipeline import lower
from weft.runtime import compile_graph
from weft.runtime.cuda.driver import is_available

pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::numpy.exceptions.ComplexWarning"),
    pytest.mark.gpu,
]
MOST = 10  # cases of one primitive
FEW = {Kind.CONTRACT: 4, Kind.ATTENTION: 3}  # of those that have tests of their own, and take long
ELSEWHERE = {"kernel": "what fusion makes of the others: every test here that runs one"}
FREE = {"reshape", "transfer"}  # which only name memory anew, or move what is on the device already


def device_cases(name: str) -> list[Case]:
    """One case per combination of dtypes and attributes, of those that compiled code must run."""
    prim = PRIMITIVES[name]
    cases = [c for c in ROWS[name].cases() if hostless(prim, c) and c.arrays]
    return (by_signature(cases) or cases)[: FEW.get(prim.kind, MOST)]


NAMES = sorted(set(PRIMITIVES) - set(ELSEWHERE))
KERNELS = [n for n in NAMES if device_cases(n)]
RUNTIME = [n for n in NAMES if n not in KERNELS]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_available():
        monkeypatch.setenv("WEFT_CUDA", "emulate")
        monkeypatch.setenv("WEFT_CUDA_DEVICES", "2")  # the driver that other tests use, too


def test_every_primitive_has_a_row_here() -> None:
    """A new primitive comes to one of the lists by its cases, or is said to be tested elsewhere."""
    assert {*KERNELS, *RUNTIME, *ELSEWHERE} == set(PRIMITIVES)
    for name in RUNTIME:
        prim = PRIMITIVES[name]
        assert prim.kind in (Kind.CONTROL, Kind.HOST, Kind.SOURCE) or prim.tags.get("host"), name
        assert runtime_cases(name), name


def compare(name: str, cases: list[Case], outs: Iterable[np.ndarray]) -> None:
    for case, out in groups(list(outs), cases):
        for got, want in zip(out, evaluated(PRIMITIVES[name], case), strict=True):
            if name in ("maximum", "minimum"):  # which of two zeros they give is left open
                got, want = got + got.dtype.type(0), want + want.dtype.type(0)
            assert_close(got, want, case, case.drift, case.atol)


@pytest.mark.parametrize("name", KERNELS)
def test_device_against_eval(name: str) -> None:
    cases = device_cases(name)
    graph = lower(batch(PRIMITIVES[name], cases)).graph
    outs, kernels = on_device(graph, operands_of(cases), gpu_target("sm_80"))
    compare(name, cases, outs)
    assert kernels or name in FREE


def runtime_cases(name: str) -> list[Case]:
    return list(ROWS[name].cases())[:MOST]


def through_the_runtime(graph: Graph, arrays: list[np.ndarray]) -> list[np.ndarray]:
    made = compile_graph(placed(graph))
    return fetched(made.runner(*device_arrays(arrays)))


@pytest.mark.parametrize("name", RUNTIME)
def test_runtime_against_eval(name: str, device: None) -> None:
    cases = runtime_cases(name)
    graph = batch(PRIMITIVES[name], cases)
    compare(name, cases, through_the_runtime(graph, operands_of(cases)))


# --- gradients -----------------------------------------------------------------------------------


def real_points(name: str) -> list[Point]:
    return [p for p in ROWS[name].points() if not any(a.dtype.kind == "c" for a in p.arrays)]


def gradient_of(name: str, point: Point) -> tuple[Graph, list[np.ndarray]]:
    """The gradient graph of a point, and what it is given: the operands and random cotangents."""
    graph = batch(PRIMITIVES[name], [point])
    outputs = inexact_results(graph)
    r = np.random.default_rng(1)
    arrays = [*point.arrays, *(random_like(graph.results[o].type, r) for o in outputs)]
    return gradient_graph(graph, varied(graph), outputs), arrays


def agree(got: Iterable[np.ndarray], want: Iterable[np.ndarray]) -> None:
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in DIFFERENTIABLE if n in KERNELS and real_points(n)])
def test_gradients_on_the_device(name: str) -> None:
    """The gradient graph of the first real point, against the interpreter."""
    gradient, arrays = gradient_of(name, real_points(name)[0])
    got, _ = on_device(lower(gradient).graph, arrays, gpu_target("sm_80"))
    agree(got, run(gradient, arrays))


@pytest.mark.parametrize("name", [n for n in DIFFERENTIABLE if n in RUNTIME])
def test_gradients_through_the_runtime(name: str, device: None) -> None:
    for point in ROWS[name].points():
        gradient, arrays = gradient_of(name, point)
        agree(through_the_runtime(gradient, arrays), run(gradient, arrays))


def test_every_gradient_is_taken_on_the_device() -> None:
    taken = {n for n in DIFFERENTIABLE if (n in KERNELS and real_points(n)) or n in RUNTIME}
    assert taken == {n for n in DIFFERENTIABLE if n not in ELSEWHERE}
