"""The table: every workload under weft and each installed peer, a process a cell, beside the limit.

Run: ``python -m benchmarks.bench [--rows TEXT] [--peers weft,torch,jax] [--rounds 2] [--save NAME]``. A cell
is measured in several rounds, far apart, and its best round counts: another guest of the machine can take a
core for seconds, and its host put two CPUs on one core (a cell after which they are is measured again). The
first round starts with empty caches, the others with what it left on disk.
``--save`` writes ``benchmarks/results/NAME.md`` and ``.json``.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import describe, undisturbed
from benchmarks.workloads import ROWS, Workload

PEERS = ("weft compile", "weft eager", "torch compile", "torch eager", "jax jit")
RESULTS = Path(__file__).resolve().parent / "results"
Cell = dict[str, Any]
Cells = dict[tuple[str, str], Cell | None]


def environment() -> dict[str, str]:
    """That of a user's process: bytecode is on disk."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def write_bytecode() -> None:
    """As an installation does, so that no first call pays for it."""
    weft = importlib.import_module("weft")
    parts = [importlib.import_module(f"weft.{part}") for part in ("ir", "passes", "codegen", "runtime")]
    for folder in (m.__path__[0] for m in (weft, *parts)):
        command = [sys.executable, "-m", "compileall", "-q", folder]
        subprocess.run(command, env=environment(), check=True)


def run_cell(peer: str, name: str, cache: str) -> Cell | None:
    """One measurement in a fresh process; None where the peer has no such row or fails."""
    env = {**environment(), "WEFT_CACHE_DIR": f"{cache}/weft", "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.worker", peer, name],
        capture_output=True, text=True, env=env, cwd=RESULTS.parent.parent, timeout=600,
    )  # fmt: skip
    if done.returncode:
        if "KeyError" not in done.stderr:
            print(f"{peer}, {name}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def steady_cell(peer: str, name: str, cache: str) -> Cell | None:
    """A measurement while the CPUs were apart, with the first call of the first attempt; those of later ones,
    disturbed or not, had what that one left on disk."""
    cells: list[Cell | None] = []

    def run() -> Cell | None:
        cells.append(run_cell(peer, name, cache))
        return cells[-1]

    last = undisturbed(run)
    if not last or not cells[0]:
        return last
    again = [c["first"] for c in cells[1:] if c]
    return {**last, "first": cells[0]["first"], **({"warm": min(again)} if again else {})}


def merged(before: Cell | None, now: Cell | None) -> Cell | None:
    """The first call of the first round, that of a later one as ``warm``, the better median."""
    if before is None or now is None:
        return before or now
    best = {k: min(before[k], now[k]) for k in ("median", "best")}
    warm = [now["first"], *(c["warm"] for c in (before, now) if "warm" in c)]
    return {**before, **best, "warm": min(warm)}


def import_seconds(module: str) -> float:
    """The best of some imports in fresh processes, the interpreter's own start taken off."""
    code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    command = [sys.executable, "-c", code]
    runs = [subprocess.run(command, capture_output=True, text=True, env=environment()) for _ in range(6)]
    return min(float(r.stdout) for r in runs)


def limit_seconds(work: Workload, machine: dict[str, Any]) -> float | None:
    by_bytes = work.bytes / (machine["copy GB/s"] * 1e9)
    by_flops = work.flops / (machine["fma peak Gflop/s of all threads at once"] * 1e9)
    return max(by_bytes, by_flops) or None


def show(seconds: float | None, unit: str) -> str:
    if seconds is None:
        return "-"
    value = seconds * (1e3 if unit == "ms" else 1e6)
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def table(cells: Cells, names: list[str], peers: list[str], machine: dict[str, Any]) -> str:
    heads = ["workload", *peers, "limit", "of limit", "best peer / weft", "torch eager / weft eager"]
    heads += ["first call s: weft, empty cache", "full cache", "torch.compile", "jax"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name in names:
        work = ROWS[name]
        median = medians(cells, name)
        limit, ours = limit_seconds(work, machine), median.get("weft compile")
        share = f"{limit / ours:.0%}" if limit and ours else "-"
        lines.append("| " + " | ".join([
            f"{name} ({work.unit})", *(show(median.get(p), work.unit) for p in peers),
            show(limit, work.unit), share,
            *(f"{r:.2f}" if (r := fn(median)) else "-" for fn in (compiled_ratio, eager_ratio)),
            *(f"{c[k]:.3f}" if (c := cells.get((p, name))) and k in c else "-" for p, k in FIRST_CALLS),
        ]) + " |")  # fmt: skip
    return "\n".join(lines)


FIRST_CALLS = (
    ("weft compile", "first"), ("weft compile", "warm"), ("torch compile", "first"), ("jax jit", "first"),
)  # fmt: skip


def medians(cells: Cells, name: str) -> dict[str, float]:
    return {p: c["median"] for (p, n), c in cells.items() if n == name and c}


def compiled_ratio(median: dict[str, float]) -> float | None:
    """The best peer's time over that of weft compiled."""
    theirs = [m for p, m in median.items() if not p.startswith("weft")]
    return min(theirs) / median["weft compile"] if theirs and "weft compile" in median else None


def eager_ratio(median: dict[str, float]) -> float | None:
    """torch eager's time over that of weft eager."""
    both = [median.get(p) for p in ("torch eager", "weft eager")]
    return both[0] / both[1] if both[0] and both[1] else None


def summary(cells: Cells, names: list[str]) -> str:
    """The geometric means of both ratios, and the rows where weft is behind."""
    lines = []
    for what, fn in (("weft compiled to the best peer", compiled_ratio),
                     ("weft eager to torch eager", eager_ratio)):  # fmt: skip
        ratios = {n: r for n in names if (r := fn(medians(cells, n)))}
        if not ratios:
            continue
        mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
        behind = ", ".join(f"{n} {r:.2f}" for n, r in ratios.items() if r < 1) or "none"
        lines.append(f"- {what}, geometric mean of {len(ratios)} rows: {mean:.2f}; behind: {behind}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="", help="only the rows whose name contains this text")
    parser.add_argument("--peers", default="weft,torch,jax")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--save", default="")
    args = parser.parse_args()
    wanted = args.peers.split(",")
    peers = [p for p in PEERS if p.split()[0] in wanted and importlib.util.find_spec(p.split()[0])]
    names = [n for n in ROWS if args.rows in n]
    machine = describe()
    cells: Cells = {}
    write_bytecode()
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(args.rounds):
            for number, name in enumerate(names):
                for peer in peers:
                    cell = steady_cell(peer, name, f"{cache}/{number}")
                    cells[peer, name] = merged(cells.get((peer, name)), cell)
                    shown = show(cell and cell["median"], ROWS[name].unit)
                    print(f"{name:<42} {peer:<14} {shown} {ROWS[name].unit}", flush=True)
    machine["import weft s"] = round(import_seconds("weft"), 3)
    facts = "\n".join(f"- {k}: {v}" for k, v in machine.items())
    text = f"{facts}\n\n{table(cells, names, peers, machine)}\n\n{summary(cells, names)}\n"
    print("\n" + text)
    if args.save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{args.save}.md").write_text(text)
        data = {"machine": machine, "cells": [c for c in cells.values() if c]}
        (RESULTS / f"{args.save}.json").write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
