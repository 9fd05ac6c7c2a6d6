"""What a graph is compiled to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from weft.ir.graph import Graph
from weft.runtime import stats


class Executable:
    """A compiled graph. ``call`` checks its arguments; ``runner`` does not."""

    def __init__(self, graph: Graph, lowered: Any, donate: dict[int, int], name: str) -> None:
        self.graph, self.name = graph, name
        self.stages = lowered.stages
        self._final = lowered.graph
        self._donate = donate
        self.in_types = tuple(p.type for p in graph.params)
        self.out_types = tuple(r.type for r in graph.results)
        self.kernels: list[Any] = []
        self.n_kernels = sum(1 for op in self._final.walk() if op.prim.name == "kernel")
        self.plan: Any = ""

    def call(self, arrays: Sequence[Any]) -> list[np.ndarray]:
        """Run on arrays (checked, made contiguous)."""
        return self.runner(*(np.ascontiguousarray(a, t.dtype.np).reshape(t.shape)
                             if not isinstance(a, np.ndarray) else a
                             for a, t in zip(arrays, self.in_types, strict=True)))

    def runner(self, *arrays: Any) -> list[np.ndarray]:
        stats.count("calls")
        g = self._final
        env: dict[Any, Any] = {p: np.asarray(a, p.type.dtype.np) for p, a in zip(g.params, arrays, strict=True)}
        with np.errstate(all="ignore"):
            for op in g.ops:
                out = op.prim.evaluate([env[v] for v in op.operands], op.attrs, op.regions)
                env.update(zip(op.results, out, strict=True))
        outs = [np.array(env[r]) for r in g.results]
        for i, j in self._donate.items():
            arrays[j][...] = outs[i]
            outs[i] = arrays[j]
        return outs

    def llvm(self) -> str:
        return ""

    def asm(self) -> str:
        return ""
