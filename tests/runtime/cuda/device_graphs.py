"""Graphs on a device, and their comparison with the interpreter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from weft.ir.graph import Graph, Op, Value
from weft.ir.interp import run
from weft.ir.types import Device, TensorType
from weft.runtime import compile_graph
from weft.runtime.cuda.array import DeviceArray, from_host

GPU = Device("cuda", 0)


def on_device(graph: Graph, device: Device = GPU) -> Graph:
    """The graph with every value on a device."""
    known: dict[Value, Value] = {}

    def moved(v: Value) -> Value:
        return known.setdefault(v, Value(TensorType(v.type.shape, v.type.dtype, device), v.name))

    params = [moved(p) for p in graph.params]
    ops = []
    for op in graph.ops:
        attrs = {k: device if k == "device" else v for k, v in op.attrs.items()}
        operands, results = [known[v] for v in op.operands], [moved(r) for r in op.results]
        regions = [on_device(g, device) for g in op.regions]
        ops.append(Op(op.prim, operands, attrs, results, regions, op.loc))
    return Graph(params, ops, [known[r] for r in graph.results], graph.name)


def device_arrays(arrays: Sequence[np.ndarray]) -> list[DeviceArray]:
    return [from_host(a) for a in arrays]


def fetched(outs: Sequence[Any]) -> list[np.ndarray]:
    return [o.copy_to_host() if isinstance(o, DeviceArray) else o for o in outs]


def agrees(graph: Graph, *arrays: Any, rtol: float = 1e-6, atol: float = 1e-7, **kwargs: Any) -> Any:
    """Compile for the device, compare with the interpreter; the executable."""
    own = [np.array(a) for a in arrays]
    want = [np.array(w) for w in run(graph, own)]
    made = compile_graph(on_device(graph), **kwargs)
    got = fetched(made.runner(*device_arrays([np.array(a) for a in arrays])))
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert (g.dtype, g.shape) == (w.dtype, w.shape)
        np.testing.assert_allclose(g, w, rtol=rtol, atol=atol)
    return made
