"""Where the start goes: the first call of four programs with an empty and with a full disk cache, by stage,
and ``import weft`` by module. Every figure is the median of several fresh processes.

Run: ``python -m benchmarks.start [--rows TEXT] [--runs 5] [--save NAME]``. Bytecode is on disk, as it is
where a package is installed. ``--save`` writes ``benchmarks/results/NAME.md`` and ``.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe

RESULTS = Path(__file__).resolve().parent / "results"
PROGRAMS = {
    "tiny": "tanh(x+y)*y on 8 floats",
    "MLP step": "MLP training step, batch 64, Adam",
    "GPT step": "small GPT training step 4x192, 8x128",
    "ResNet-18": "ResNet-18 batch 1",
}
LIMITS = {"tiny": (0.030, 0.006), "MLP step": (0.3, 0.06), "GPT step": (1.5, 0.3), "ResNet-18": (1.5, 0.3)}


def environment(cache: str) -> dict[str, str]:
    """Of a process that starts as a user's would: with bytecode on disk."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    env["WEFT_CACHE_DIR"] = os.path.join(cache, "weft")
    env["PYTHONPYCACHEPREFIX"] = os.path.join(cache, "pyc")
    return env


def fresh(arguments: Sequence[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command, folder = [sys.executable, *arguments], RESULTS.parent.parent
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=folder, check=True)


def runs(row: str, folder: str, full: bool, count: int, stages: bool) -> list[dict[str, Any]]:
    """The measurements of ``count`` fresh processes whose cache is full, or empty."""
    out = []
    flags = ["--stages"] if stages else []
    for _ in range(count):
        if not full:
            for path in Path(folder, "weft").glob("*"):
                path.unlink()
        done = fresh(["-m", "benchmarks.start_worker", row, *flags], environment(folder))
        out.append(json.loads(done.stdout.strip().splitlines()[-1]))
    return out


def median(results: Sequence[dict[str, Any]], key: str) -> float:
    return statistics.median(r[key] for r in results)


def program(name: str, folder: str, count: int) -> dict[str, Any]:
    """Both starts of one program. The stages come from runs of their own: the clocks cost time."""
    out: dict[str, Any] = {}
    for kind, full in (("empty", False), ("full", True)):
        plain = runs(PROGRAMS[name], folder, full, count, False)
        staged = runs(PROGRAMS[name], folder, full, max(3, count // 2), True)
        names = dict.fromkeys(k for r in staged for k in r["stages"])
        out[kind] = {k: median(plain, k) for k in ("import", "prepare", "first", "second")}
        out[kind]["stages"] = {k: statistics.median(r["stages"].get(k, 0.0) for r in staged) for k in names}
        if staged[0]["missing"]:
            raise SystemExit(f"stages that are no longer there: {staged[0]['missing']}")
    return out


def show_program(name: str, found: dict[str, Any]) -> list[str]:
    stages = dict.fromkeys([*found["empty"]["stages"], *found["full"]["stages"]])
    lines = [f"| {name} | empty cache, ms | full cache, ms |", "|---|---|---|"]
    for label in ("prepare", "first", "second"):
        empty, full = (found[k][label] * 1e3 for k in ("empty", "full"))
        lines.append(f"| **{label}** | {empty:.1f} | {full:.1f} |")
    lines.append("| limit | " + " | ".join(f"{s * 1e3:.0f}" for s in LIMITS[name]) + " |")
    for stage in stages:
        empty, full = (found[k]["stages"].get(stage, 0.0) * 1e3 for k in ("empty", "full"))
        lines.append(f"| {stage} | {empty:.1f} | {full:.1f} |")
    return lines


def imports(folder: str, count: int) -> dict[str, dict[str, float]]:
    """``import weft``: seconds in all, and by package, the time of each module counted where it is spent."""
    env = environment(folder)
    total, packages = [], defaultdict(list)
    code = "import time; t = time.perf_counter(); import weft; print(time.perf_counter() - t)"
    for _ in range(count):
        total.append(float(fresh(["-c", code], env).stdout))
        spent: defaultdict[str, float] = defaultdict(float)
        for module, own in module_times(fresh(["-X", "importtime", "-c", "import weft"], env).stderr):
            spent[package_of(module)] += own
        for k, v in spent.items():
            packages[k].append(v)
    by = {k: statistics.median(v) for k, v in packages.items()}
    return {"total": {"import weft": statistics.median(total)},
            "packages": dict(sorted(by.items(), key=lambda kv: -kv[1]))}  # fmt: skip


def package_of(module: str) -> str:
    """The line of the table that a module belongs to."""
    parts = module.split(".")
    if parts[0] == "weft":
        return ".".join(parts[:2])
    return parts[0] if parts[0] == "numpy" else "others"


def module_times(text: str) -> list[tuple[str, float]]:
    """(module, seconds of its own) of all lines of ``-X importtime`` that belong to the last import."""
    lines = [line.split("|") for line in text.splitlines() if line.startswith("import time:")]
    rows = [(name, float(own.split(":")[1]) * 1e-6) for own, _, name in lines[1:]]
    last = max((k for k, (name, _) in enumerate(rows) if name.strip() == "site"), default=-1)
    return [(name.strip(), own) for name, own in rows[last + 1 :]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="", help="only the programs whose name contains this text")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--save", default="")
    args = parser.parse_args()
    machine, found, lines = describe() if args.save else {}, {}, []
    with tempfile.TemporaryDirectory() as folder:
        fresh(["-m", "benchmarks.start_worker", PROGRAMS["tiny"]], environment(folder))  # writes the bytecode
        found["import"] = imports(folder, args.runs)
        lines += ["| import weft | ms |", "|---|---|"]
        lines += [f"| **{k}** | {v * 1e3:.1f} |" for k, v in found["import"]["total"].items()]
        lines += [f"| {k} | {v * 1e3:.1f} |" for k, v in found["import"]["packages"].items() if v > 1e-3]
        print("\n".join(lines), flush=True)
        for name in PROGRAMS:
            if args.rows in name:
                runs(PROGRAMS[name], folder, False, 1, False)
                found[name] = program(name, folder, args.runs)
                table = show_program(name, found[name])
                print("\n" + "\n".join(table), flush=True)
                lines += ["", *table]
    if args.save:
        RESULTS.mkdir(exist_ok=True)
        head = "\n".join(f"- {k}: {v}" for k, v in machine.items())
        (RESULTS / f"{args.save}.md").write_text(f"{head}\n\n" + "\n".join(lines) + "\n")
        (RESULTS / f"{args.save}.json").write_text(json.dumps({"machine": machine} | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
