"""Whole programs, captured and differentiated as for the CPU, on a device: no operation goes to the host."""

from __future__ import annotations

import numpy as np
import pytest
import weft
from device_graphs import device_arrays, fetched, on_device
from weft import nn
from weft.ir.interp import run
from weft.nn import functional as F
from weft.runtime import compile_graph, stats

pytestmark = pytest.mark.gpu


def on_the_device(fn, *args):
    """Run the graphs of a compiled function on a device and compare with the interpreter; the executables."""
    compiled = weft.compile(fn)
    compiled(*args)
    out = []
    for entry in compiled.entries:
        graph, rng = entry.executable.graph, np.random.default_rng(0)
        arrays = [sample(p.type, rng) for p in graph.params]
        want = run(graph, [a.copy() for a in arrays])
        made = compile_graph(on_device(graph))
        stats.reset()
        got = fetched(made.runner(*device_arrays(arrays)))
        assert stats.snapshot()["host_calls"] == 0
        for g, w in zip(got, want, strict=True):
            np.testing.assert_allclose(g, w, rtol=2e-4, atol=1e-5)
        out.append(made)
    return out


def sample(t, rng):
    if t.dtype.is_floating_point:
        return rng.uniform(0.1, 1, t.shape).astype(t.dtype.np)
    return rng.integers(0, 3, t.shape).astype(t.dtype.np)


def test_a_training_step():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 5))
    optimizer = weft.optim.Adam(model.parameters(), lr=1e-3)

    def step(x, y):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    (made,) = on_the_device(step, weft.randn(4, 6), weft.randint(0, 5, (4,)))
    assert all(k.native for k in made.kernels)


def test_a_recurrent_layer():
    lstm = nn.LSTM(3, 4)
    with weft.no_grad():
        (made,) = on_the_device(lambda x: lstm(x)[0], weft.randn(3, 2, 3))
    assert "scan" in {op.prim.name for op in made.stages[-1][1].ops}
