"""The reference interpreter: runs any graph, at any stage, in numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from weft.ir.errors import CompilerError
from weft.ir.graph import Graph, Op, Value
from weft.ir.types import Dim, TensorType


def run(graph: Graph, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Evaluate ``graph`` on ``arrays``, one per parameter, and return its results.

    Results may share memory with the arguments (a graph that only reshapes returns a view). Raises ValueError
    for arguments that do not have the types of the parameters, CompilerError where a primitive's value does
    not have the type its rule inferred, and what a primitive raises (IndexError for an index out of range).

    >>> from weft.ir.prims.base import trace
    >>> from weft.ir.types import TensorType, f32
    >>> run(trace(lambda x: x + x, TensorType((2,), f32)), [np.float32([1, 2])])
    [array([2., 4.], dtype=float32)]
    """
    arrays = [np.asarray(a) for a in arrays]
    _check_arguments(graph, arrays)
    env: dict[Value, np.ndarray] = dict(zip(graph.params, arrays, strict=True))
    last = _last_uses(graph)
    with np.errstate(all="ignore"):
        for i, op in enumerate(graph.ops):
            out = op.prim.evaluate([env[v] for v in op.operands], op.attrs, op.regions)
            _check_results(graph, op, out)
            env.update(zip(op.results, out, strict=True))
            for v in last.get(i, ()):
                env.pop(v, None)
    return [env[r] for r in graph.results]


def _last_uses(graph: Graph) -> dict[int, list[Value]]:
    """For each operation the values that nothing after it reads."""
    last: dict[Value, int] = {}
    for i, op in enumerate(graph.ops):
        for v in (*op.results, *op.operands):
            last[v] = i
    for v in graph.results:
        last.pop(v, None)
    out: dict[int, list[Value]] = {}
    for v, i in last.items():
        out.setdefault(i, []).append(v)
    return out


def _fits(t: TensorType, a: np.ndarray) -> bool:
    if a.dtype != t.dtype.np or a.ndim != t.ndim:
        return False
    if a.shape == t.shape:
        return True
    return all(isinstance(d, Dim) or d == n for d, n in zip(t.shape, a.shape, strict=True))


def _check_arguments(graph: Graph, arrays: Sequence[np.ndarray]) -> None:
    if len(arrays) != len(graph.params):
        raise ValueError(f"graph {graph.name} takes {len(graph.params)} arguments, got {len(arrays)}")
    for i, (p, a) in enumerate(zip(graph.params, arrays, strict=True)):
        if not _fits(p.type, a):
            got = f"{a.dtype}{list(a.shape)}"
            raise ValueError(f"argument {i} of graph {graph.name} must be {p.type}, got {got}")


def _check_results(graph: Graph, op: Op, out: Sequence[np.ndarray]) -> None:
    if len(out) != len(op.results):
        raise CompilerError(f"{op.prim.name} gave {len(out)} results for {len(op.results)}", graph)
    for r, a in zip(op.results, out, strict=True):
        if not _fits(r.type, a):
            raise CompilerError(
                f"{op.prim.name} gave {a.dtype}{list(a.shape)} where its type is {r.type}"
                + (f" (at {op.loc})" if op.loc else ""),
                graph,
            )
