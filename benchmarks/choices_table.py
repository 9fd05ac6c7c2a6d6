"""The table of what the cost model chose beside the best of what was tried, kept by family."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from weft.ir.graph import Graph

from benchmarks.choices_loops import compiled
from benchmarks.choices_loops import seconds as seconds_of

RESULTS = Path(__file__).parent / "results"
TURNS = 7


@dataclass(frozen=True)
class Choice:
    """What was chosen for a case, what was best, microseconds of both, and how many were tried."""

    chosen: str
    chosen_us: float
    best: str
    best_us: float
    tried: int

    @property
    def loss(self) -> float:
        """By how much the choice is slower than the best."""
        return self.chosen_us / self.best_us - 1


def compare(
    graph: Graph, arrays: list[np.ndarray], settings: Mapping[str, Callable[[], AbstractContextManager[Any]]]
) -> dict[str, float]:
    """Seconds of a graph compiled under each setting, taking turns."""
    runs = {name: compiled(graph, setting) for name, setting in settings.items()}
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(TURNS):
        for name, executable in runs.items():
            best[name] = min(best[name], seconds_of(executable.runner, arrays))
    return best


def choice(times: Mapping[str, float], chosen: str) -> Choice:
    """The row of a case; ``chosen`` is best unless another is measurably faster."""
    best = min(times, key=times.__getitem__)
    return Choice(chosen, times[chosen] * 1e6, best, times[best] * 1e6, len(times))


def show(name: str, c: Choice, slack: float) -> None:
    """Print a case, with the best where the choice lost more than ``slack``."""
    line = f"{name:44s} {c.chosen:44s} {c.chosen_us:9.1f} us of {c.tried:2d}"
    print(line + (f"   best {c.best} {c.best_us:.1f} us, {c.loss:.0%}" if c.loss > slack else ""), flush=True)


def save(family: str, rows: Mapping[str, Choice]) -> None:
    """Put rows into the table of results, beside those of other families and of other cases."""
    path = RESULTS / "choices.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    known.setdefault(family, {}).update({name: asdict(c) for name, c in rows.items()})
    path.write_text(json.dumps(known, indent=1) + "\n")
    text = [
        "# What the cost model chose, and the best of what was tried\n",
        "Microseconds on two threads, by `python -m benchmarks.choices --save`. Loss: by how much the choice "
        "is slower than the best.\n",
    ]
    for name, cases in sorted(known.items()):
        found = {n: Choice(**c) for n, c in cases.items()}
        text += [f"## {name}\n", "| case | chosen | us | best | us | loss | tried |", "|---" * 7 + "|"]
        for n, c in found.items():
            best = "the same" if c.best == c.chosen else c.best
            times = f"{c.chosen} | {c.chosen_us:.1f} | {best} | {c.best_us:.1f}"
            text.append(f"| {n} | {times} | {c.loss:.0%} | {c.tried} |")
        losses = [c.loss for c in found.values()]
        over = sum(x > 0.05 for x in losses)
        mean = float(np.exp(np.mean(np.log1p(losses)))) - 1
        text.append(f"\n{over} of {len(losses)} lost more than 5 %; on average {mean:.1%} were lost.\n")
    (RESULTS / "choices.md").write_text("\n".join(text))


def plans_of(
    family: str, description: str | None, cases: Sequence[Any], measured: Callable[..., Choice],
    arguments: list[str],
) -> None:  # fmt: skip
    """The command of a family: a line for each direction of each case, whose ``graphs()`` gives them.
    ``measured(graph, most, everything)`` tries about ``most`` plans."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default="", help="only the cases whose name contains this text")
    parser.add_argument("--slack", type=float, default=0.05, help="by how much an alternative must be faster")
    parser.add_argument("--most", type=int, default=8, help="plans tried, about")
    parser.add_argument("--all", action="store_true", help="print every plan of every case")
    parser.add_argument("--save", action="store_true", help="put the cases into results/choices.md")
    args = parser.parse_args(arguments)
    os.environ["WEFT_CACHE"] = "0"
    rows: dict[str, Choice] = {}
    for case in cases:
        for direction, graph in case.graphs():
            name = f"{case.name}, {direction}"
            if args.cases in name:
                rows[name] = measured(graph, args.most, args.all)
                show(name, rows[name], args.slack)
    beaten = sum(c.loss > args.slack for c in rows.values())
    print(f"{beaten} of {len(rows)} choices were beaten by more than {args.slack:.0%}")
    if args.save:
        save(family, rows)
