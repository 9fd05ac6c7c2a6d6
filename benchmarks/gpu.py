"""weft eager and compiled beside torch eager and torch.compile on a GPU, and the device's measured limits.

Run: ``python -m benchmarks.gpu [--rows TEXT] [--peers weft,torch] [--save NAME] [--scale N]``. Each cell is a
process of its own, which times with events on the stream, the median of many calls. The limits are a copy of
a gigabyte and torch's product of bfloat16 matrices of 8192 (weft's where there is no torch). With
``WEFT_CUDA=emulate`` and a large ``--scale`` the command runs on the emulated device: its times say nothing,
and no peer is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu_workloads import DEVICE, ROWS, GpuWorkload

PEERS = ("weft compile", "weft eager", "torch compile", "torch eager")
RESULTS = Path(__file__).parent / "results"
CALLS, WARM = 30, 5
Cell = dict[str, Any]


def namespace(framework: str) -> Any:
    if framework == "torch":
        import torch as T
    else:
        import weft as T  # type: ignore[no-redef]
    return T


def seconds(T: Any, call: Any, calls: int = CALLS) -> float:
    """The median time of a call on the device."""
    for _ in range(min(WARM, calls)):
        call()
    T.cuda.synchronize()
    times = []
    for _ in range(calls):
        start, end = T.cuda.Event(enable_timing=True), T.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        T.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e-3)
    return sorted(times)[len(times) // 2]


def run_cell(peer: str, name: str, scale: int) -> Cell:
    framework, mode = peer.split()
    T = namespace(framework)
    compile = (lambda fn: fn) if mode == "eager" else T.compile
    call = ROWS[name].build(T, compile, scale)
    return {"seconds": seconds(T, call, CALLS if scale == 1 else 1)}


def limits(framework: str, scale: int) -> Cell:
    """Bytes a second of a copy of a gigabyte; operations a second of a product of bfloat16 matrices."""
    T = namespace(framework)
    calls = CALLS if scale == 1 else 1
    x = T.ones(2**28 // scale**2, device=DEVICE)
    y = T.empty(x.numel(), device=DEVICE)
    copied = 2 * x.numel() * 4 / seconds(T, partial(y.copy_, x), calls)
    del x, y
    n = 8192 // scale
    a, b = (T.randn(n, n, device=DEVICE, dtype=T.bfloat16) for _ in range(2))
    product = 2 * n**3 / seconds(T, lambda: a @ b, calls)
    return {
        "device": T.cuda.get_device_name(0), "capability": list(T.cuda.get_device_capability(0)),
        "copy GB/s": round(copied / 1e9), "bf16 products Tflop/s": round(product / 1e12, 1),
        "limits by": framework,
    }  # fmt: skip


def in_process(*args: str) -> Cell | None:
    """What this module prints as a process with these arguments; None, with its error shown, if it failed."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *args], capture_output=True, text=True, timeout=1200
    )
    if done.returncode:
        print(f"  {' '.join(args)}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def torch_has_a_gpu() -> bool:
    if os.environ.get("WEFT_CUDA") == "emulate":
        return False
    try:
        return namespace("torch").cuda.is_available()
    except ImportError:
        return False


def limit_of(work: GpuWorkload, machine: Cell, scale: int) -> float | None:
    if scale != 1:
        return None
    by_bytes = work.bytes / (machine["copy GB/s"] * 1e9)
    return max(by_bytes, work.flops / (machine["bf16 products Tflop/s"] * 1e12)) or None


def table(cells: dict[tuple[str, str], Cell | None], names: list[str], machine: Cell, scale: int) -> str:
    heads = ["workload (ms)", *PEERS, "limit", "of limit", "goal", "torch eager / weft compile"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name in names:
        work = ROWS[name]
        times = {p: c["seconds"] for p in PEERS if (c := cells.get((p, name)))}
        limit = limit_of(work, machine, scale)
        ours, theirs = times.get("weft compile"), times.get("torch eager")
        lines.append("| " + " | ".join([
            name, *(f"{times[p] * 1e3:.3g}" if p in times else "-" for p in PEERS),
            f"{limit * 1e3:.3g}" if limit else "-", f"{limit / ours:.0%}" if limit and ours else "-",
            f"{work.goal:.0%}" if work.goal else "-", f"{theirs / ours:.2f}" if ours and theirs else "-",
        ]) + " |")  # fmt: skip
    return "\n".join(lines)


def predictions() -> str:
    """What the limits of an H200 (4.8 TB/s, 790 Tflop/s of bfloat16 products measured) allow, in ms."""
    rows = []
    for name, work in ROWS.items():
        least = max(work.bytes / 4.8e12, work.flops / 790e12)
        if least:
            goal = f", goal {least / work.goal * 1e3:.3g}" if work.goal else ""
            rows.append(f"{name}: {least * 1e3:.3g}{goal}")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="")
    parser.add_argument("--peers", default="weft,torch")
    parser.add_argument("--scale", type=int, default=1)
    parser.add_argument("--save")
    parser.add_argument("--cell", nargs=2, metavar=("PEER", "ROW"))
    parser.add_argument("--limits", metavar="FRAMEWORK")
    parser.add_argument("--predict", action="store_true", help="print the limits on an H200")
    args = parser.parse_args()
    if args.predict:
        print(predictions())
    elif args.cell:
        print(json.dumps(run_cell(*args.cell, args.scale)))
    elif args.limits:
        print(json.dumps(limits(args.limits, args.scale)))
    else:
        measure(args)


def measure(args: argparse.Namespace) -> None:
    """The whole table."""
    import weft

    if not weft.cuda.is_available():
        raise SystemExit("there is no GPU here (WEFT_CUDA=emulate runs small sizes: --scale 1024)")
    with_torch = torch_has_a_gpu()
    wanted = args.peers.split(",")
    peers = [p for p in PEERS if p.split()[0] in wanted and (with_torch or p.startswith("weft"))]
    scale = ("--scale", str(args.scale))
    machine = in_process("--limits", "torch" if with_torch else "weft", *scale) or {}
    names = [n for n in ROWS if args.rows in n]
    cells = {}
    for name in names:
        for peer in peers:
            cell = cells[peer, name] = in_process("--cell", peer, name, *scale)
            shown = f"{cell['seconds'] * 1e3:.4g} ms" if cell else "-"
            print(f"{name:<50} {peer:<14} {shown}", flush=True)
    head = [f"- {k}: {v}" for k, v in machine.items()]
    text = "\n".join([*head, "", table(cells, names, machine, args.scale)])
    print(text)
    if args.save:
        (RESULTS / f"{args.save}.md").write_text(text + "\n")
        rows = [{"peer": p, "row": n, **(c or {})} for (p, n), c in cells.items()]
        (RESULTS / f"{args.save}.json").write_text(json.dumps({"machine": machine, "cells": rows}, indent=1))


if __name__ == "__main__":
    main()
