"""Where the choices of elementwise kernels (threads, units, vectors at once) are not the best of those tried.

    python -m benchmarks.choices --family elementwise [--cases "x+y"] [--slack 0.1]

Every case is compiled under the model and under each alternative to its choices, and timed, all taking turns;
a line per case gives the microseconds of each and names the alternatives that beat the model by more than the
slack.
"""

from __future__ import annotations

import argparse
import importlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any
from unittest import mock

import numpy as np
from weft.codegen import entry, loop_loops, schedule
from weft.ir import prims as P
from weft.ir.graph import Graph
from weft.ir.prims.base import trace, type_of
from weft.ir.record import replace
from weft.runtime import Executable, compile_graph

Alternative = Callable[[], AbstractContextManager[Any]]
Case = tuple[Graph, list[np.ndarray]]
TURNS = 9


@contextmanager
def setting(module: Any, **values: Any) -> Iterator[None]:
    """Other values for constants or functions of a module that chooses."""
    with ExitStack() as stack:
        for name, value in values.items():
            stack.enter_context(mock.patch.object(module, name, value))
        yield


def compiled(graph: Graph, alternative: Alternative) -> Executable:
    """A fresh executable made under an alternative."""
    importlib.import_module("weft.runtime.compile")._memory.clear()
    with alternative():
        return compile_graph(graph)


def seconds(run: Callable[..., Any], arrays: list[np.ndarray]) -> float:
    """The least time of a call among some in a row, the first ones left out."""
    start = time.perf_counter()
    run(*arrays)
    once = time.perf_counter() - start
    batch = max(1, min(2000, int(2e-3 / max(once, 1e-7))))
    start = time.perf_counter()
    for _ in range(batch):
        run(*arrays)
    return (time.perf_counter() - start) / batch


def compare(case: Case, alternatives: Mapping[str, Alternative]) -> dict[str, float]:
    """Seconds under the model and under every alternative."""
    graph, arrays = case
    runs = {"model": compiled(graph, nullcontext)}
    runs |= {name: compiled(graph, a) for name, a in alternatives.items()}
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(TURNS):
        for name, executable in runs.items():
            best[name] = min(best[name], seconds(executable.runner, arrays))
    return best


def report(name: str, times: Mapping[str, float], slack: float) -> bool:
    """Print the line of a case; True where the model's choice stands."""
    better = {n: t for n, t in times.items() if t * (1 + slack) < times["model"]}
    shown = "  ".join(f"{n} {t * 1e6:9.2f}" for n, t in times.items())
    ranked = sorted(better, key=better.__getitem__)
    verdict = ", ".join(f"{n} is {times['model'] / times[n]:.2f}x" for n in ranked)
    print(f"{name:34s} {shown}   {'<- ' + verdict if better else ''}", flush=True)
    return not better


def _serial() -> AbstractContextManager[Any]:
    return setting(entry, INLINE_NS=float("inf"))


def _threads() -> AbstractContextManager[Any]:
    return setting(entry, INLINE_NS=0.0, CHUNK_NS=1.0)


def _unit(n: int) -> Alternative:
    return lambda: setting(schedule, CPU=replace(schedule.CPU, lanes_chunk=n))


def _unroll(n: int) -> Alternative:
    return lambda: setting(loop_loops, unroll_of=lambda body, registers: n)


BODIES: dict[str, Callable[..., Any]] = {
    "x+y": lambda x, y: x + y,
    "tanh(x)*y": lambda x, y: P.tanh_p.bind(x) * y,
    "x/y": lambda x, y: P.div_p.bind(x, y),
    "exp(x)+log(y)": lambda x, y: P.exp_p.bind(x) + P.log_p.bind(y),
    "pow(x,y)": lambda x, y: P.pow_p.bind(x, y),
}


ALTERNATIVES: dict[str, Alternative] = {
    "serial": _serial,
    "threads": _threads,
    "unit 1024": _unit(1024),
    "unit 16384": _unit(16384),
    "unroll 1": _unroll(1),
    "unroll 2": _unroll(2),
    "unroll 4": _unroll(4),
}


def elementwise() -> Iterator[tuple[str, Case]]:
    rng = np.random.default_rng(0)
    for body, fn in BODIES.items():
        for n in (4096, 16384, 32768, 65536, 131072, 1 << 20, 1 << 23):
            x, y = (np.abs(rng.normal(size=n)).astype(np.float32) for _ in range(2))
            yield f"{body} {n}", (trace(fn, type_of(x), type_of(y), name="choice"), [x, y])


def main(arguments: list[str]) -> None:
    """Print a line per case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default="", help="only the cases whose name contains this text")
    parser.add_argument("--slack", type=float, default=0.1, help="by how much an alternative must be faster")
    args = parser.parse_args(arguments)
    os.environ["WEFT_CACHE"] = "0"
    results = [
        report(name, compare(case, ALTERNATIVES), args.slack)
        for name, case in elementwise()
        if args.cases in name
    ]
    beaten = len(results) - sum(results)
    print(f"{beaten} of {len(results)} choices were beaten by more than {args.slack:.0%}")
