"""Gradients of pooling on the emulated GPU: one launch that asks windows, nothing sorted."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from device_kernels import rng
from weft.codegen.gpu.target import gpu_target
from weft.ir import prims as P
from weft.ir.interp import run
from weft.ir.prims.base import trace
from weft.ir.types import TensorType, dtype_of_numpy
from weft.passes.autodiff import gradient_graph
from weft.passes.pipeline import lower
from weft.runtime.cuda.standalone import DeviceStandalone

Pool = dict[str, Any]


def pool(window: Any, stride: Any, padding: Any, dilation: Any) -> Pool:
    """Attributes of a window over the last two of four dimensions."""
    pads = ((0, 0), (0, 0), *((p, p) for p in padding))
    ones = (1, 1)
    return {"window": (*ones, *window), "stride": (*ones, *stride), "padding": pads,
            "dilation": (*ones, *dilation)}  # fmt: skip


POOLS = {
    "apart": ((2, 3, 8, 12), pool((2, 2), (2, 2), (0, 0), (1, 1))),
    "overlapping": ((2, 3, 9, 11), pool((3, 3), (2, 2), (1, 1), (1, 1))),
    "dense": ((1, 2, 7, 9), pool((3, 2), (1, 1), (1, 0), (1, 1))),
    "dilated": ((1, 2, 12, 13), pool((3, 2), (2, 3), (1, 0), (2, 3))),
    "few": ((1, 2, 7, 6), pool((3, 3), (2, 1), (1, 1), (1, 2))),
    "gaps": ((2, 2, 11, 9), pool((2, 2), (3, 4), (0, 0), (1, 1))),
}


def kernels_of(shape: tuple[int, ...], how: Pool, dtype: Any, op: str) -> tuple[Any, list[np.ndarray], Any]:
    """The lowered gradient, its operands, and what the interpreter makes of it unlowered."""
    x = rng.integers(-3, 4, shape).astype(dtype)  # many ties
    if op == "max":
        x[..., 3, 4] = np.nan
    t = TensorType(shape, dtype_of_numpy(x.dtype))
    graph = trace(lambda x: P.reduce_window_p.bind(x, op=op, **how), t)
    ct = rng.standard_normal(graph.results[0].type.shape).astype(dtype)
    gradient = gradient_graph(graph, (0,), (0,))
    return lower(gradient).graph, [x, ct], run(gradient, [x, ct])[0]


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("op", ["max", "min"])
def test_gradient_of_pooling(name: str, op: str) -> None:
    dtype = ml_dtypes.bfloat16 if name == "overlapping" else np.float32
    graph, arrays, want = kernels_of(*POOLS[name], dtype, op)
    env = dict(zip(graph.params, arrays, strict=True))
    launches = 0
    for o in graph.ops:
        xs = [np.asarray(env[v]) for v in o.operands]
        if o.prim.name != "kernel":
            outs = o.prim.evaluate(xs, o.attrs, o.regions)
        else:
            kernel = DeviceStandalone(o, gpu_target("sm_80"))
            outs = kernel(*xs)
            launches += len(kernel.statistics)
        env.update(zip(o.results, outs, strict=True))
    (got,) = (env[r] for r in graph.results)
    assert got.dtype == want.dtype and launches <= (2 if op == "max" else 3)
    np.testing.assert_array_equal(got, want)
