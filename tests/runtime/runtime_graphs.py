"""Graphs that several tests of the runtime use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from weft.ir import prims as P
from weft.ir.graph import Graph
from weft.ir.prims.base import trace
from weft.ir.types import TensorType, bool_, f32, f64, i64

F8 = TensorType((8,), f32)
I0 = TensorType((), i64)


def tiny() -> Graph:
    return trace(lambda x, y: P.tanh_p.bind(x + y) * y, F8, F8)


def doubling() -> Graph:
    """x, n -> x doubled until it is n or more, and the number of steps."""
    i0 = TensorType((), i64)
    test = trace(lambda x, n, k: P.lt_p.bind(x, n), i0, i0, i0, name="test")
    body = trace(lambda x, n, k: (x + x, n, k + 1), i0, i0, i0, name="body")
    return trace(lambda x, n: P.while_loop_p.bind(x, n, P.full_p.bind(shape=(), dtype=i64, value=0),
                                                  regions=(test, body)), i0, i0)  # fmt: skip


def either() -> Graph:
    """p, x -> x + x where p, else x * x."""
    yes = trace(lambda x: x + x, F8, name="yes")
    no = trace(lambda x: x * x, F8, name="no")
    return trace(lambda p, x: P.cond_p.bind(p, x, regions=(yes, no)), TensorType((), bool_), F8)


def running(reverse: bool, length: int = 5) -> Graph:
    """c, s, xs[length, 3] -> s accumulated with c * x, and what it was at each step."""
    row = TensorType((3,), f64)
    step = trace(lambda c, s, x: (s + c * x, s), row, row, row, name="step")

    def run(c: Any, s: Any, xs: Any) -> Any:
        return P.scan_p.bind(c, s, xs, n_consts=1, n_carry=1, length=length, reverse=reverse, regions=(step,))

    return trace(run, row, row, TensorType((length, 3), f64))


def sample(t: TensorType, seed: int = 0) -> np.ndarray:
    """An array of a type, the same for the same seed."""
    rng = np.random.default_rng(seed)
    return np.asarray(rng.standard_normal(t.shape) * 3).astype(t.dtype.np)


def samples(graph: Graph) -> list[np.ndarray]:
    return [sample(p.type, i) for i, p in enumerate(graph.params)]


def as_kernel(graph: Graph, name: str = "group") -> Graph:
    """The whole graph as one kernel operation of a form that has no code generation."""
    types = [p.type for p in graph.params]

    def body(*xs: Any) -> Any:
        return P.kernel_p.bind(*xs, form="none", name=name, regions=(graph,))

    return trace(body, *types)


Fn = Callable[..., Any]
