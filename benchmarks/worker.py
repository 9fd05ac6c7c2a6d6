"""Measures one workload under one peer in a process of its own and prints one line of JSON.

Run: ``python -m benchmarks.worker PEER ROW``; peers: weft or torch with eager or compile, and jax jit.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.workloads import ROWS

BUDGET_S = 2.0


def build(peer: str, name: str) -> Callable[[], Any]:
    framework, mode = peer.split()
    if framework == "jax":
        from benchmarks.jax_workloads import builders

        return builders()[name]()
    if framework == "torch":
        import torch as T
    else:
        import weft as T  # type: ignore[no-redef]
    compile = (lambda fn: fn) if mode == "eager" else T.compile
    return ROWS[name].build(T, compile)


def measure(call: Callable[[], Any], budget: float = BUDGET_S) -> dict[str, float]:
    """Seconds of the first call and the median of the following ones; short calls are timed in batches."""
    start = time.perf_counter()
    call()
    first = time.perf_counter() - start
    for _ in range(3):
        call()
    start = time.perf_counter()
    call()
    once = time.perf_counter() - start
    batch = max(1, int(2e-3 / max(once, 1e-7)))
    times: list[float] = []
    end = time.perf_counter() + budget
    while len(times) < 7 or (time.perf_counter() < end and len(times) < 1000):
        start = time.perf_counter()
        for _ in range(batch):
            call()
        times.append((time.perf_counter() - start) / batch)
    times.sort()
    return {"first": first, "median": times[len(times) // 2], "best": times[0]}


def main() -> None:
    peer, name = sys.argv[1], sys.argv[2]
    print(json.dumps({"peer": peer, "row": name, **measure(build(peer, name))}))


if __name__ == "__main__":
    main()
