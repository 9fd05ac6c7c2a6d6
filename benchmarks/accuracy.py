"""The error of every compiled unary function over float32: all 2^32 bit patterns, or a sample of them.

    python benchmarks/accuracy.py                          # everything; hours
    python benchmarks/accuracy.py --functions exp,log      # all bit patterns of two functions; minutes each
    python benchmarks/accuracy.py --sample 1048576         # a million patterns of each; seconds each

Prints a line per function: the largest error in ULP and where, how many results are not the correctly rounded
one, how many are more than 1 ULP off. Ends with status 1 if a function breaks its promise (2 ULP; tan,
erfinv, lgamma and digamma 4). References are numpy's and the standard library's f64 functions.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from weft.ir import prims  # noqa: F401
from weft.ir.prims.base import PRIMITIVES, trace
from weft.ir.types import TensorType, f32
from weft.runtime import Executable, compile_graph

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import references

CHUNK = 1 << 20
PATTERNS = 1 << 32


def kernel(name: str) -> Executable:
    """The function compiled for one chunk."""
    return compile_graph(trace(lambda x: PRIMITIVES[name].bind(x), TensorType((CHUNK,), f32), name=name))


def chunks(sample: int) -> Iterator[np.ndarray]:
    """Bit patterns, ``sample`` of them at equal distances, ``CHUNK`` at a time (the last is padded)."""
    step = max(PATTERNS // sample, 1)
    for start in range(0, PATTERNS, CHUNK * step):
        x = references.bit_patterns(start, min(start + CHUNK * step, PATTERNS), step)
        yield np.pad(x, (0, CHUNK - x.size), mode="edge") if x.size < CHUNK else x


def measure(name: str, sample: int) -> bool:
    """Print the line of one function; True if it keeps its promise."""
    run, exact = kernel(name), references.reference(name)
    worst, where, unrounded, beyond, count = 0.0, np.float32(0), 0, 0, 0
    began = time.monotonic()
    for x in chunks(sample):
        with np.errstate(all="ignore"):
            error = references.ulp_errors(run.call([x])[0], exact(x.astype(np.float64)))
        i = int(np.argmax(error))
        if error[i] > worst:
            worst, where = float(error[i]), x[i]
        count += x.size
        unrounded += int((error > 0.5).sum())
        beyond += int((error > 1).sum())
    kept = worst <= references.limit(name)
    print(
        f"{name:8s} {worst:7.3f} ULP at {where!s:>15s}   not rounded right {100 * unrounded / count:6.3f}%"
        f"   beyond 1 ULP {100 * beyond / count:6.3f}%   {'ok' if kept else 'TOO LARGE'}"
        f"   ({count} inputs, {time.monotonic() - began:.0f} s)",
        flush=True,
    )
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--functions", default=",".join(references.UNARY), help="names, separated by commas"
    )
    parser.add_argument("--sample", type=int, default=PATTERNS, help="number of bit patterns (default all)")
    options = parser.parse_args()
    kept = [measure(name, options.sample) for name in options.functions.split(",")]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
