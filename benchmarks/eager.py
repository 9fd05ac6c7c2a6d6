"""Single eager operations beside torch's: what the way from a call to its kernel and back costs.

Run: ``python -m benchmarks.eager [--sizes 8,1000,64x64] [--rows TEXT] [--rounds 3] [--save eager]``. Each row
is one statement, run by torch and by weft in processes of their own, in turn; the best of the rounds' medians
counts. Prints torch's time over weft's for every row and size, the geometric mean of each group, and the
worst.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import subprocess
import sys
import timeit
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.eager_rows import GROUPS, SETUP, shape_of

RESULTS = Path(__file__).resolve().parent / "results"
SMALL, LARGE = ("8", "1000", "64x64"), ("100000", "1000000", "10000000")
PEERS = ("torch", "weft")
BATCH_S, BATCHES = 1e-3, 7
Cells = dict[tuple[str, str, str], float]


def seconds(statement: str, names: dict[str, Any]) -> float:
    """The median time of a statement; short ones are timed in batches. Calls enough come first that what
    is compiled on its return is compiled."""
    timer = timeit.Timer(statement, globals=names)
    once = min(timer.timeit(1) for _ in range(3))
    timer.timeit(24 if once < 1e-2 else 4)
    number = max(1, int(BATCH_S / max(timer.timeit(3) / 3, 1e-7)))
    return median(timer.repeat(BATCHES, number)) / number


def work(peer: str, sizes: list[str], text: str) -> None:
    """Measures every row of a peer; one line of JSON each."""
    library = importlib.import_module(peer)
    functional = importlib.import_module(f"{peer}.nn.functional")
    for size in sizes:
        for group, rows in GROUPS.items():
            names: dict[str, Any] = {"L": library, "F": functional, "shape": shape_of(size)}
            library.manual_seed(0)
            exec(SETUP, names)
            for row in rows:
                if text not in row and text != group:
                    continue
                try:
                    taken = seconds(row, names)
                except Exception as error:
                    print(f"{peer}: {row}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
                    continue
                print(json.dumps({"peer": peer, "row": row, "size": size, "seconds": taken}), flush=True)


def run_peer(peer: str, sizes: list[str], text: str) -> Cells:
    command = [sys.executable, "-m", "benchmarks.eager", "--worker", peer, "--sizes", ",".join(sizes)]
    done = subprocess.run(
        [*command, "--rows", text], stdout=subprocess.PIPE, text=True, cwd=RESULTS.parent.parent
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {(peer, line["row"], line["size"]): line["seconds"] for line in lines}


def measured(sizes: list[str], text: str, rounds: int) -> Cells:
    """The best of the rounds."""
    cells: Cells = {}
    for _ in range(rounds):
        for peer in PEERS:
            for key, taken in run_peer(peer, sizes, text).items():
                cells[key] = min(taken, cells.get(key, taken))
    return cells


def ratios(cells: Cells) -> dict[tuple[str, str], float]:
    """torch's time over weft's by row and size."""
    rows = {key[1:] for key in cells}
    return {
        key: cells["torch", *key] / cells["weft", *key]
        for key in sorted(rows)
        if ("torch", *key) in cells and ("weft", *key) in cells
    }


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def report(cells: Cells, sizes: list[str]) -> str:
    found = ratios(cells)
    heads = ["statement", *(f"{s}: torch us, weft us, ratio" for s in sizes)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    means = ["| group | " + " | ".join(sizes) + " |", "|" + "---|" * (len(sizes) + 1)]
    for group, rows in GROUPS.items():
        for row in rows:
            if any((row, s) in found for s in sizes):
                shown = [_cell(cells, found, row, s) for s in sizes]
                lines.append("| `" + row.replace("|", "\\|") + "` | " + " | ".join(shown) + " |")
        by_size = [[found[row, s] for row in rows if (row, s) in found] for s in sizes]
        if any(by_size):
            means.append(f"| {group} | " + " | ".join(f"{geometric_mean(v):.2f}" for v in by_size) + " |")
    every = [[r for (_, size), r in found.items() if size == s] for s in sizes]
    means.append("| all | " + " | ".join(f"{geometric_mean(v):.2f}" for v in every) + " |")
    behind = [f"{sum(r < 0.5 for r in v)} of {len(v)}" for v in every]
    means.append("| below 0.5 | " + " | ".join(behind) + " |")
    worst = sorted(found.items(), key=lambda item: item[1])[:20]
    ends = [f"- `{row}`, {size}: {r:.2f}" for (row, size), r in worst]
    return "\n".join([*lines, "", *means, "", "Furthest behind:", "", *ends])


def _cell(cells: Cells, found: dict[tuple[str, str], float], row: str, size: str) -> str:
    if (row, size) not in found:
        return "-"
    times = [f"{cells[peer, row, size] * 1e6:.3g}" for peer in PEERS]
    return f"{times[0]}, {times[1]}, **{found[row, size]:.2f}**"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default=",".join(SMALL), help=f"also {','.join(LARGE)}")
    parser.add_argument("--rows", default="", help="only the statements with this text, or this group")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", default="")
    parser.add_argument("--worker", default="", choices=("", *PEERS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    sizes = args.sizes.split(",")
    if args.worker:
        return work(args.worker, sizes, args.rows)
    cells = measured(sizes, args.rows, args.rounds)
    text = report(cells, sizes)
    print(text)
    if args.save:
        from benchmarks.machine import describe

        machine = describe()
        facts = "\n".join(f"- {k}: {v}" for k, v in machine.items())
        (RESULTS / f"{args.save}.md").write_text(f"{facts}\n\n{text}\n")
        data = [{"peer": p, "row": r, "size": s, "seconds": t} for (p, r, s), t in cells.items()]
        (RESULTS / f"{args.save}.json").write_text(
            json.dumps({"machine": machine, "cells": data}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
