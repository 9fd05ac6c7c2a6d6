"""Products built for AVX2 beside numpy's own kernels for it: run ``python -m benchmarks.haswell``.

weft is told to build for a Haswell by ``WEFT_CPU``, OpenBLAS by ``OPENBLAS_CORETYPE``; each runs in a process
of its own. Prints milliseconds and the ratio, which should not fall below 0.9.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time

import numpy as np

SIZES = (256, 512, 1024, 2048)


def milliseconds(peer: str, threads: int, budget: float) -> dict[int, float]:
    """The median time of a product of two n by n matrices, by n, in this process."""
    out = {}
    if peer == "weft":
        import weft

        weft.set_num_threads(threads)
    for n in SIZES:
        a, b = np.random.default_rng(0).standard_normal((2, n, n)).astype(np.float32)
        if peer == "weft":
            x, y = weft.tensor(a), weft.tensor(b)
            multiply = weft.compile(lambda x, y: x @ y)
            call = lambda f=multiply, x=x, y=y: f(x, y)  # noqa: E731
        else:
            into = np.empty_like(a)
            call = lambda a=a, b=b, into=into: np.matmul(a, b, out=into)  # noqa: E731
        call()
        call()
        times = []
        end = time.perf_counter() + budget
        while len(times) < 5 or time.perf_counter() < end:
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        out[n] = float(np.median(times)) * 1e3
    return out


def run(peer: str, threads: int, budget: float) -> dict[int, float]:
    """:func:`milliseconds` in a process built for Haswell."""
    env = {**os.environ, "OPENBLAS_NUM_THREADS": str(threads)}
    env |= {"WEFT_CPU": "haswell"} if peer == "weft" else {"OPENBLAS_CORETYPE": "Haswell"}
    command = [sys.executable, "-m", "benchmarks.haswell", "--peer", peer, "--threads", str(threads)]
    done = subprocess.run(
        [*command, "--budget", str(budget)], env=env, check=True, capture_output=True, text=True
    )
    return {int(n): t for n, t in json.loads(done.stdout).items()}


def main() -> None:
    """Print the table, or, given a peer, its times as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--budget", type=float, default=0.5, help="seconds per size")
    parser.add_argument("--peer", choices=("weft", "numpy"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        print(json.dumps(milliseconds(args.peer, int(args.threads), args.budget)))
        return
    print("| n | threads | weft | numpy | numpy / weft |\n|---|---|---|---|---|")
    for threads in map(int, args.threads.split(",")):
        weft, numpy = (run(peer, threads, args.budget) for peer in ("weft", "numpy"))
        for n in SIZES:
            print(f"| {n} | {threads} | {weft[n]:.3f} | {numpy[n]:.3f} | {numpy[n] / weft[n]:.2f} |")


if __name__ == "__main__":
    main()
