"""Every primitive, all cases of the matrix at once, on the emulated device against its numpy evaluation."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from on_device import on_device
from opinfo import ROWS
from test_primitives import NAMES, assert_close, batch, by_signature, evaluated, groups, hostless, operands_of
from weft.codegen.gpu.target import gpu_target
from weft.ir.prims.base import PRIMITIVES, Kind
from weft.passes.pipeline import lower

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::numpy.exceptions.ComplexWarning")
OTHERS = (Kind.CONTRACT, Kind.ATTENTION) if hasattr(Kind, "ATTENTION") else (Kind.CONTRACT,)
MOST = 10  # cases of one primitive
MINE = [n for n in NAMES if PRIMITIVES[n].kind not in (*OTHERS, Kind.HOST, Kind.CONTROL)]


@pytest.mark.parametrize("name", MINE)
def test_device_against_eval(name: str) -> None:
    prim = PRIMITIVES[name]
    cases = by_signature(c for c in ROWS[name].cases() if hostless(prim, c))[:MOST]
    graph = lower(batch(prim, cases)).graph
    outs, _ = on_device(graph, operands_of(cases), gpu_target("sm_80"))
    for case, out in groups(outs, cases):
        for got, want in zip(out, evaluated(prim, case), strict=True):
            if name in ("maximum", "minimum"):  # which of two zeros they give is left open
                got, want = got + got.dtype.type(0), want + want.dtype.type(0)
            assert_close(got, want, case, case.drift, case.atol)
