"""Graphs with frozen parameters: a prologue that runs once per version of them, and the rest."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from weft.ir.graph import Graph, Op
from weft.ir.types import CPU
from weft.runtime.compile import compile_graph

Stamp = Callable[[], tuple[Sequence[np.ndarray], Callable[[], bool]]]


class _Made:
    """What a prologue made: ``fits(arrays)`` while the frozen ones are those that it was made of."""

    def __init__(
        self, results: list[np.ndarray], numbers: Sequence[int], of: Sequence[np.ndarray],
        fresh: Callable[[], bool],
    ) -> None:  # fmt: skip
        self.results = results
        # one expression: it is evaluated in every call
        same = " and ".join(["fresh()", *(f"x[{i}] is a{i}" for i in numbers)])
        names = {"fresh": fresh, **{f"a{i}": a for i, a in zip(numbers, of, strict=True)}}
        self.fits: Callable[[Sequence[Any]], bool] = eval(f"lambda x: {same}", names)


class Frozen:
    """An executable in two parts; for what it does not define itself it is that of the main part.

    ``stamp()`` gives the frozen arrays as they are and a function that tells whether they still are that;
    where an array that is passed is not the stamped one, nothing is known of its versions, and the prologue
    runs again. ``prologue_runs`` counts how often it ran.
    """

    def __init__(self, graph: Graph, split: Any, stamp: Stamp, name: str) -> None:
        self.graph, self.stamp = graph, stamp
        self.prologue = compile_graph(split.prologue, donate=None, target=None, name=f"{name}_prologue")
        self.main = compile_graph(split.main, donate=None, target=None, name=name)
        self.frozen, self.kept = split.frozen, split.kept
        self.prologue_runs = 0
        self._made: _Made | None = None
        self._lock = threading.Lock()
        self.runner = self._over(self.main.runner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.main, name)

    def native_runner(self, slow: Callable[..., Any]) -> Callable[..., Any] | None:
        """As that of an executable; None where native calls cannot be used."""
        inner = self.main.native_runner(slow)
        return None if inner is None else self._over(inner)

    def call(self, arrays: Sequence[Any]) -> list[np.ndarray]:
        return self._over(lambda *rest: self.main.call(rest))(*arrays)

    def _over(self, run: Callable[..., Any]) -> Callable[..., Any]:
        kept = self.kept

        def call(*arrays: Any) -> Any:
            made = self._made
            results = made.results if made is not None and made.fits(arrays) else self._make(arrays)
            return run(*[arrays[i] for i in kept], *results)

        return call

    def _make(self, arrays: Sequence[Any]) -> list[np.ndarray]:
        """The prologue's results for these arrays."""
        of, fresh = self.stamp()
        given = [arrays[i] for i in self.frozen]
        with self._lock:
            out = self.prologue.call(given)
            self.prologue_runs += 1
        # the stamp was read first: what changed meanwhile shows at the next call
        known = all(x is a for x, a in zip(given, of, strict=True))
        self._made = _Made(out, self.frozen, of, fresh) if known else None
        return out


def _panel_width(graph: Graph, dot: Op) -> int:
    """Of the weights of a product on the CPU; see :func:`weft.codegen.contract_kernel.panel_width`."""
    from weft.codegen.contract_kernel import panel_width
    from weft.codegen.target import host_target

    return panel_width(graph, dot, host_target()) if dot.result.type.device is CPU else 0


def freeze_graph(graph: Graph, params: Sequence[int], stamp: Stamp, name: str) -> Frozen | None:
    """See :func:`weft.runtime.freeze_graph`."""
    from weft.passes.freeze import split_frozen
    from weft.passes.pipeline import simplified

    # which side of a product the weights are on is seen once transpositions have gone into the products
    split = split_frozen(simplified(graph), set(params), _panel_width)
    return None if split is None else Frozen(graph, split, stamp, name)
