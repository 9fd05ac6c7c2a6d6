"""Every primitive, all cases of the matrix at once, on the emulated device against its numpy evaluation."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from on_device import on_device
from opinfo import ROWS, Case, Point
from test_primitives import (
    DIFFERENTIABLE,
    NAMES,
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
from weft.ir.interp import run
from weft.ir.prims.base import PRIMITIVES, Kind
from weft.passes.autodiff import gradient_graph
from weft.passes.pipeline import lower

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::numpy.exceptions.ComplexWarning")
OTHERS = (Kind.CONTRACT, Kind.ATTENTION) if hasattr(Kind, "ATTENTION") else (Kind.CONTRACT,)
MOST = 10  # cases of one primitive
MINE = [n for n in NAMES if PRIMITIVES[n].kind not in (*OTHERS, Kind.HOST, Kind.CONTROL)]


def device_cases(name: str) -> list[Case]:
    """One case per combination of dtypes and attributes, of those that compiled code must run."""
    return by_signature(c for c in ROWS[name].cases() if hostless(PRIMITIVES[name], c))[:MOST]


@pytest.mark.parametrize("name", [n for n in MINE if device_cases(n)])
def test_device_against_eval(name: str) -> None:
    prim, cases = PRIMITIVES[name], device_cases(name)
    graph = lower(batch(prim, cases)).graph
    outs, _ = on_device(graph, operands_of(cases), gpu_target("sm_80"))
    for case, out in groups(outs, cases):
        for got, want in zip(out, evaluated(prim, case), strict=True):
            if name in ("maximum", "minimum"):  # which of two zeros they give is left open
                got, want = got + got.dtype.type(0), want + want.dtype.type(0)
            assert_close(got, want, case, case.drift, case.atol)


def real_points(name: str) -> list[Point]:
    return [p for p in ROWS[name].points() if not any(a.dtype.kind == "c" for a in p.arrays)]


@pytest.mark.parametrize("name", [n for n in DIFFERENTIABLE if n in MINE and real_points(n)])
def test_gradients_on_the_device(name: str) -> None:
    """The gradient graph of the first real point, against the interpreter."""
    prim = PRIMITIVES[name]
    point = real_points(name)[0]
    graph = batch(prim, [point])  # type: ignore[list-item]
    outputs = inexact_results(graph)
    gradient = gradient_graph(graph, varied(graph), outputs)
    r = np.random.default_rng(1)
    arrays = [*point.arrays, *(random_like(graph.results[o].type, r) for o in outputs)]
    got, _ = on_device(lower(gradient).graph, arrays, gpu_target("sm_80"))
    for a, b in zip(got, run(gradient, arrays), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
