"""Random graphs, compiled for a GPU with random donations, give the interpreter's results to the bit."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from device_graphs import device_arrays, fetched, on_device
from weft.ir.interp import run
from weft.runtime import compile_graph

_path = Path(__file__).parent.parent.parent / "passes" / "conftest.py"
_spec = importlib.util.spec_from_file_location("random_graphs_of_passes", _path)
assert _spec is not None and _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(12))
def test_compiled_equals_interpreted(seed):
    graph = _module.GraphMaker(seed, exact=True, n_ops=8 + seed % 20).graph
    rng = np.random.default_rng(seed)
    arrays = [np.asarray(rng.integers(-3, 4, p.type.shape)).astype(p.type.dtype.np) for p in graph.params]
    want = [np.array(w) for w in run(graph, [a.copy() for a in arrays])]
    donate: dict[int, int] = {}
    for i, r in enumerate(graph.results):
        fits = [j for j, p in enumerate(graph.params) if p.type == r.type and j not in donate.values()]
        if fits and rng.integers(2):
            donate[i] = fits[0]
    own = device_arrays(arrays)
    got = compile_graph(on_device(graph), donate=donate).runner(*own)
    for i, (g, w) in enumerate(zip(fetched(got), want, strict=True)):
        assert (g.dtype, g.shape) == (w.dtype, w.shape)
        np.testing.assert_array_equal(g, w)
        assert i not in donate or got[i] is own[donate[i]]
