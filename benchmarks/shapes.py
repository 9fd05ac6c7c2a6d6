"""The second table: shapes that no one tuned for, forward and backward, weft compiled beside torch and JAX.

Run: ``python -m benchmarks.shapes [--family NAME] [--cases TEXT] [--peers weft,torch,jax] [--save NAME]``;
one process a peer and family. Peers: ``weft`` and ``torch-compile`` compile, ``torch`` and ``weft-eager`` do
not. Prints each case's medians, the geometric mean of the ratios, and the ten shapes furthest behind.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import undisturbed
from benchmarks.shape_cases import CASES, FAMILIES, Arg, Case
from benchmarks.worker import measure

PEERS = ("weft", "torch", "jax")
EVERY_PEER = (*PEERS, "weft-eager", "torch-compile")
RESULTS = Path(__file__).resolve().parent / "results"
BUDGET_S = 0.3
Key = tuple[str, str, str]


def host_array(arg: Arg, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    if arg.below:
        return rng.integers(0, arg.below, arg.shape).astype(arg.dtype)
    if arg.dtype == "bool":
        return rng.random(arg.shape) < 0.9
    return rng.standard_normal(arg.shape).astype(arg.dtype)


def is_float(arg: Arg) -> bool:
    return arg.dtype.startswith("float")


def torch_calls(T: Any, case: Case, compile: Callable[..., Any]) -> Iterator[tuple[str, Callable[[], Any]]]:
    rng = np.random.default_rng(0)
    args = [T.tensor(host_array(a, rng)) for a in case.args]
    forward = compile(lambda *args: case.run(T, *args))

    def without_grad() -> Any:
        with T.no_grad():
            return forward(*args)

    yield "forward", without_grad
    if not case.grad:
        return
    leaves = [
        x.requires_grad_() for x, a in zip(args, case.args, strict=True) if is_float(a) and a.below == 0
    ]

    def both(*args: Any) -> Any:
        out = case.run(T, *args[:-1])
        leaves = [x for x, a in zip(args[:-1], case.args, strict=True) if is_float(a)]
        return out.detach(), *T.autograd.grad(out, leaves, args[-1])

    assert leaves
    with T.no_grad():
        cotangent = T.tensor(rng.standard_normal(tuple(case.run(T, *args).shape)).astype(case.args[0].dtype))
    if compile is not _identity and T.__name__ == "torch":
        # Inductor cannot trace autograd.grad: the compiled forward's own compiled backward is measured.
        yield "backward", lambda: T.autograd.grad(forward(*args), leaves, cotangent)
        return
    gradient = compile(both)
    yield "backward", lambda: gradient(*args, cotangent)


def _identity(fn: Callable[..., Any]) -> Callable[..., Any]:
    return fn


def jax_calls(case: Case) -> Iterator[tuple[str, Callable[[], Any]]]:
    import jax

    jax.config.update("jax_enable_x64", any(a.dtype == "float64" for a in case.args))
    rng = np.random.default_rng(0)
    args = [jax.numpy.asarray(host_array(a, rng)) for a in case.args]
    forward = jax.jit(lambda *args: case.run_jax(jax, *args))
    yield "forward", lambda: jax.block_until_ready(forward(*args))
    if not case.grad:
        return
    places = [i for i, a in enumerate(case.args) if is_float(a)]
    cotangent = jax.numpy.asarray(rng.standard_normal(forward(*args).shape).astype(case.args[0].dtype))

    def both(args: Any, cotangent: Any) -> Any:
        def of_floats(*floats: Any) -> Any:
            full = list(args)
            for i, x in zip(places, floats, strict=True):
                full[i] = x
            return case.run_jax(jax, *full)

        out, pull = jax.vjp(of_floats, *(args[i] for i in places))
        return out, pull(cotangent)

    gradient = jax.jit(both)
    yield "backward", lambda: jax.block_until_ready(gradient(args, cotangent))


def calls(peer: str, case: Case) -> Iterator[tuple[str, Callable[[], Any]]]:
    if peer == "jax":
        return jax_calls(case)
    if peer.startswith("torch"):
        import torch as T
    else:
        import weft as T  # type: ignore[no-redef]
    return torch_calls(T, case, T.compile if peer in ("weft", "torch-compile") else _identity)


def work(peer: str, family: str, text: str) -> None:
    """Measures every case of a family; one line of JSON each."""
    for case in CASES:
        if case.family != family or text not in case.name:
            continue
        try:
            for direction, call in calls(peer, case):
                seconds = undisturbed(partial(measure, call, BUDGET_S))
                print(
                    json.dumps({"peer": peer, "case": case.name, "direction": direction, **seconds}),
                    flush=True,
                )
        except Exception as error:
            print(
                f"{peer}: {case.name}: {type(error).__name__}: {str(error)[:300]}",
                file=sys.stderr,
                flush=True,
            )


def run_family(peer: str, family: str, text: str) -> dict[Key, float]:
    """Median seconds by (peer, case, direction), measured in a process of its own with an empty cache."""
    with tempfile.TemporaryDirectory() as cache:
        env = {**os.environ, "WEFT_CACHE_DIR": f"{cache}/weft", "TORCHINDUCTOR_CACHE_DIR": cache}
        command = [
            sys.executable,
            "-m",
            "benchmarks.shapes",
            "--worker",
            peer,
            "--family",
            family,
            "--cases",
            text,
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=env, cwd=RESULTS.parent.parent)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {(peer, line["case"], line["direction"]): line["median"] for line in lines}


def microseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e6:.3g}" if seconds < 1e-3 else f"{seconds * 1e6:,.0f}"


def geometric_mean(ratios: list[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else math.nan


def ratio(times: dict[Key, float], case: str, direction: str) -> float | None:
    """The best peer's time over weft's; None where either is missing."""
    ours = times.get(("weft", case, direction))
    theirs = [
        t for (p, c, d), t in times.items() if c == case and d == direction and not p.startswith("weft")
    ]
    return min(theirs) / ours if ours and theirs else None


def report(times: dict[Key, float], peers: list[str]) -> str:
    heads = ["case", "direction", *(f"{p} us" for p in peers), "best peer / weft"]
    lines: list[str] = []
    ratios: dict[tuple[str, str, str], float] = {}
    for family in FAMILIES:
        rows = [(c, d) for c in CASES if c.family == family for d in ("forward", "backward")]
        rows = [(c, d) for c, d in rows if any((p, c.name, d) in times for p in peers)]
        if not rows:
            continue
        lines += [f"## {family}", "", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
        for case, direction in rows:
            r = ratio(times, case.name, direction)
            if r is not None:
                ratios[family, case.name, direction] = r
            shown = [microseconds(times.get((p, case.name, direction))) for p in peers]
            lines.append(
                f"| {case.name} | {direction} | {' | '.join(shown)} | {'-' if r is None else f'{r:.2f}'} |"
            )
        for direction in ("forward", "backward"):
            some = [r for (f, _, d), r in ratios.items() if f == family and d == direction]
            if some:
                mean = geometric_mean(some)
                lines += ["", f"{family}, {direction}: geometric mean {mean:.2f} over {len(some)} shapes."]
        lines.append("")
    worst = sorted(ratios.items(), key=lambda item: item[1])[:10]
    lines += [
        f"All: geometric mean {geometric_mean(list(ratios.values())):.2f} over {len(ratios)}.",
        "",
        "Furthest behind:",
        "",
    ]
    lines += [f"- {family}, {name}, {direction}: {r:.2f}" for (family, name, direction), r in worst]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", default="", choices=("", *FAMILIES))
    parser.add_argument("--cases", default="", help="only the cases whose name contains this text")
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--save", default="")
    parser.add_argument("--worker", default="", choices=("", *EVERY_PEER), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args.worker, args.family, args.cases)
    peers = [p for p in args.peers.split(",") if importlib.util.find_spec(p.split("-")[0])]
    times: dict[Key, float] = {}
    for family in [args.family] if args.family else FAMILIES:
        for peer in peers:
            times |= run_family(peer, family, args.cases)
    text = report(times, peers)
    print(text)
    if args.save:
        from benchmarks.machine import describe

        machine = describe()
        head = "\n".join(f"- {k}: {v}" for k, v in machine.items())
        (RESULTS / f"{args.save}.md").write_text(f"{head}\n\n{text}\n")
        cells = [{"peer": p, "case": c, "direction": d, "median": t} for (p, c, d), t in times.items()]
        (RESULTS / f"{args.save}.json").write_text(
            json.dumps({"machine": machine, "cells": cells}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
