"""Lowered graphs run kernel by kernel: those on the emulated device, everything else in numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from weft.codegen.gpu.target import GpuTarget
from weft.ir.graph import Graph
from weft.runtime.cuda.standalone import run_region


def on_device(graph: Graph, arrays: Sequence[np.ndarray], target: GpuTarget) -> tuple[list[np.ndarray], int]:
    """The results, and how many kernels the device ran: all there are, or the test fails."""
    env, kernels = dict(zip(graph.params, arrays, strict=True)), 0
    for op in graph.ops:
        xs = [np.asarray(env[v]) for v in op.operands]
        if op.prim.name == "kernel":
            outs = run_region(op, xs, target)
            kernels += 1
        else:
            outs = op.prim.evaluate(xs, op.attrs, op.regions)
        env.update(zip(op.results, outs, strict=True))
    return [np.asarray(env[r]) for r in graph.results], kernels
