"""What primitives with regions share: checks of their signatures, running and inlining them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from weft.ir.graph import Graph, GraphBuilder, Op, Value
from weft.ir.types import TensorType


def check_regions(prim: str, regions: Sequence[Graph], count: int) -> None:
    if len(regions) != count:
        raise TypeError(f"{prim}: needs {count} region{'s' * (count > 1)}, got {len(regions)}")


def check_signature(
    prim: str, region: Graph, params: Sequence[TensorType], results: Sequence[TensorType] | None = None
) -> None:
    """TypeError unless the region takes ``params`` (and gives ``results``)."""
    for what, have, want in (
        ("takes", region.params, params),
        ("returns", region.results, results),
    ):
        types = [v.type for v in have]
        if want is not None and types != list(want):
            raise TypeError(
                f"{prim}: region {region.name} {what} ({', '.join(map(str, types))}),"
                f" not ({', '.join(map(str, want))})"
            )


def result_types(region: Graph) -> tuple[TensorType, ...]:
    return tuple(r.type for r in region.results)


def run_region(region: Graph, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    from weft.ir.interp import run

    return run(region, arrays)


def own(results: Sequence[np.ndarray], arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Results in storage of their own: a region may return a parameter, a view of one, or one value twice."""
    out: list[np.ndarray] = []
    for r in results:
        shared = r.base is not None or any(r is a for a in (*arrays, *out))
        out.append(r.copy(order="C") if shared else r)
    return tuple(out)


def inline(b: GraphBuilder, graph: Graph, args: Sequence[Value]) -> list[Value]:
    """Append the operations of ``graph``, applied to ``args``, and return what stands for its results."""
    env: dict[Value, Value] = dict(zip(graph.params, args, strict=True))
    for op in graph.ops:
        fresh = [Value(r.type, r.name) for r in op.results]
        b.ops.append(Op(op.prim, [env[v] for v in op.operands], op.attrs, fresh, op.regions, op.loc))
        env.update(zip(op.results, fresh, strict=True))
    return [env[r] for r in graph.results]


def as_tuple(x: Any, count: int) -> tuple[Any, ...]:
    """The results of ``bind`` as a tuple: one result comes back bare."""
    return (x,) if count == 1 else tuple(x)
