"""Random graphs, lowered and run kernel by kernel on the emulated device, give the interpreter's results."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from on_device import on_device
from weft.codegen.gpu.target import gpu_target
from weft.ir.interp import run
from weft.passes.pipeline import lower

_path = Path(__file__).parent.parent.parent / "passes" / "conftest.py"
_spec = importlib.util.spec_from_file_location("random_graphs_of_passes", _path)
assert _spec is not None and _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)


@pytest.mark.parametrize("seed", range(24))
def test_results_are_the_interpreters(seed):
    graph = _module.GraphMaker(seed, exact=True, n_ops=8 + seed % 50).graph
    rng = np.random.default_rng(seed)
    arrays = [np.asarray(rng.integers(-3, 4, p.type.shape)).astype(p.type.dtype.np) for p in graph.params]
    want = run(graph, [a.copy() for a in arrays])
    got, kernels = on_device(lower(graph).graph, arrays, gpu_target("sm_80" if seed % 4 else "sm_75"))
    assert kernels
    for g, w in zip(got, want, strict=True):
        assert g.dtype == w.dtype and g.shape == w.shape
        np.testing.assert_array_equal(g, w)
