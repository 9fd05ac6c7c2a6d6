"""The table: every workload under weft and each installed peer, a process a cell, beside the limit.

Run: ``python -m benchmarks.bench [--rows TEXT] [--peers weft,torch,jax] [--save NAME]``. The first call of
weft is measured with an empty cache. ``--save`` writes ``benchmarks/results/NAME.md`` and ``.json``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.workloads import ROWS, Workload

PEERS = ("weft compile", "weft eager", "torch compile", "torch eager", "jax jit")
RESULTS = Path(__file__).resolve().parent / "results"
Cell = dict[str, Any]


def run_cell(peer: str, name: str) -> Cell | None:
    """One measurement in a fresh process; None where the peer has no such row or fails."""
    with tempfile.TemporaryDirectory() as cache:
        env = {**os.environ, "WEFT_CACHE_DIR": str(Path(cache) / "weft"), "TORCHINDUCTOR_CACHE_DIR": cache}
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.worker", peer, name],
            capture_output=True, text=True, env=env, cwd=RESULTS.parent.parent, timeout=600,
        )  # fmt: skip
    if done.returncode:
        if "KeyError" not in done.stderr:
            print(f"{peer}, {name}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def import_seconds(module: str) -> float:
    """The best of five imports in fresh processes, the interpreter's own start taken off."""
    code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True) for _ in range(5)]
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


def table(
    cells: dict[tuple[str, str], Cell | None], names: list[str], peers: list[str], machine: dict[str, Any]
) -> str:
    heads = [
        "workload",
        *peers,
        "limit",
        "of limit",
        "best peer / weft",
        "first call s: weft",
        "torch",
        "jax",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name in names:
        work = ROWS[name]
        median = {p: c["median"] if (c := cells.get((p, name))) else None for p in peers}
        first = {p: f"{c['first']:.3f}" if (c := cells.get((p, name))) else "-" for p in PEERS}
        limit = limit_seconds(work, machine)
        ours = median.get("weft compile")
        theirs = [m for p, m in median.items() if m and not p.startswith("weft")]
        share = f"{limit / ours:.0%}" if limit and ours else "-"
        ratio = f"{min(theirs) / ours:.2f}" if theirs and ours else "-"
        lines.append("| " + " | ".join([
            f"{name} ({work.unit})", *(show(median[p], work.unit) for p in peers),
            show(limit, work.unit), share, ratio,
            first["weft compile"], first["torch compile"], first["jax jit"],
        ]) + " |")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="", help="only the rows whose name contains this text")
    parser.add_argument("--peers", default="weft,torch,jax")
    parser.add_argument("--save", default="")
    args = parser.parse_args()
    wanted = args.peers.split(",")
    peers = [p for p in PEERS if p.split()[0] in wanted and importlib.util.find_spec(p.split()[0])]
    names = [n for n in ROWS if args.rows in n]
    machine = describe()
    cells: dict[tuple[str, str], Cell | None] = {}
    for name in names:
        for peer in peers:
            cells[peer, name] = cell = run_cell(peer, name)
            print(
                f"{name:<42} {peer:<14} {show(cell and cell['median'], ROWS[name].unit)} {ROWS[name].unit}",
                flush=True,
            )
    machine["import weft s"] = round(import_seconds("weft"), 3)
    text = (
        "\n".join(f"- {k}: {v}" for k, v in machine.items())
        + "\n\n"
        + table(cells, names, peers, machine)
        + "\n"
    )
    print("\n" + text)
    if args.save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{args.save}.md").write_text(text)
        data = {"machine": machine, "cells": [c for c in cells.values() if c]}
        (RESULTS / f"{args.save}.json").write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
