"""What GPU kernels take, as ``ptxas`` says: registers, shared memory, spills. Nothing is run on a GPU.

Run: ``python -m benchmarks.ptx_report [--arch sm_80,sm_90] [--only TEXT] [--save NAME]`` for the kernels of
the workloads of both tables, or ``--suite FOLDER`` for those that ``benchmarks.ptx_collect`` kept of the
tests. Each is emitted for each architecture and assembled. Exits with 1 where ``ptxas`` refuses a kernel, or
one of the workloads spills.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from weft.runtime.cuda.assembler import Resources, find_ptxas, ptxas_release

from benchmarks import gpu_workloads, workloads
from benchmarks.ptx_kernels import ARCHITECTURES, Kernel, Module, Row, graph_of, kernels_of, rows

RESULTS = Path(__file__).parent / "results"


def workload_kernels(only: str) -> Iterator[Kernel]:
    """The kernels of the workloads of both tables whose name contains ``only``."""
    for name, here in workloads.ROWS.items():
        if only in name:
            yield from kernels_of(graph_of(here.build), name)
    with mock.patch.object(gpu_workloads, "DEVICE", "cpu"):
        for name, there in gpu_workloads.ROWS.items():
            if only in name:
                yield from kernels_of(graph_of(there.build, 1), f"GPU: {name}")


def suite_kernels(folder: Path, only: str) -> Iterator[Kernel | Module]:
    """What the tests made, by form."""
    for kind, make in (("kernels", Kernel), ("modules", Module)):
        for path in sorted((folder / kind).glob("*.json")):
            found = make(path.stem, **json.loads(path.read_text()))
            if only in found.name:
                yield found


@dataclass
class Summary:
    """Counts of one architecture."""

    kernels: int = 0
    functions: int = 0
    unsupported: int = 0
    refused: int = 0
    spilling: int = 0
    spilled: int = 0
    registers: int = 0
    shared: int = 0

    def add(self, row: Row) -> None:
        self.kernels += 1
        self.functions += len(row.functions)
        self.unsupported += bool(row.unsupported)
        self.refused += bool(row.problem)
        for dynamic, r in row.functions:
            self.spilling += r.spill_bytes > 0
            self.spilled += r.spill_bytes
            self.registers = max(self.registers, r.registers)
            self.shared = max(self.shared, r.shared_bytes + dynamic)


_HEADS = ("architecture", "kernels", "functions", "unsupported", "refused", "spilling", "bytes spilled",
          "most registers", "most shared memory")  # fmt: skip


@dataclass
class Report:
    """All rows, and their sums by architecture."""

    rows: list[Row] = field(default_factory=list)
    summaries: dict[str, Summary] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        self.summaries.setdefault(row.architecture, Summary()).add(row)

    @property
    def refused(self) -> int:
        return sum(s.refused for s in self.summaries.values())

    @property
    def spilled(self) -> int:
        return sum(s.spilled for s in self.summaries.values())

    def table(self) -> str:
        lines = ["| " + " | ".join(_HEADS) + " |", "|" + "---|" * len(_HEADS)]
        for name in sorted(self.summaries, key=_order):
            numbers = vars(self.summaries[name]).values()
            lines.append("| " + " | ".join([name, *map(str, numbers)]) + " |")
        return "\n".join(lines)

    def faults(self) -> str:
        """A line for each kernel that is refused, not supported, or spills."""
        out = []
        for row in self.rows:
            what = f"{row.kernel.where}: {row.kernel.name}, {row.architecture}"
            said = row.problem or row.unsupported
            out += [f"- {what}: {said.strip()}"] if said else []
            out += [f"- {what}: {r.kernel} spills {r.spill_bytes} bytes, {r.registers} registers"
                    for _, r in row.functions if r.spill_bytes]  # fmt: skip
        return "\n".join(out)

    def json(self) -> dict[str, Any]:
        functions = [
            [row.kernel.where, row.kernel.name, row.architecture, r.kernel, r.registers,
             r.shared_bytes + dynamic, r.spill_bytes]
            for row in self.rows for dynamic, r in row.functions
        ]  # fmt: skip
        names = ["where", "kernel", "architecture", "function", "registers", "shared bytes", "spilled bytes"]
        return {"ptxas": _release(), "columns": names, "functions": functions}


def _order(architecture: str) -> tuple[int, str]:
    digits = "".join(c for c in architecture if c.isdigit())
    return int(digits), architecture


def _release() -> str:
    return ".".join(map(str, ptxas_release(find_ptxas() or "")))


def line(row: Row, dynamic: int, r: Resources) -> str:
    what = f"{row.kernel.where:22.22s} {row.architecture:7s} {row.kernel.name:32.32s} {r.kernel:12.12s}"
    return f"{what} {r.registers:4d} regs {r.shared_bytes + dynamic:6d} shared {r.spill_bytes:5d} spilled"


def save(report: Report, name: str, title: str) -> None:
    text = f"{title}\n\nptxas {_release()}\n\n{report.table()}\n"
    if report.faults():
        text += f"\n{report.faults()}\n"
    (RESULTS / f"{name}.md").write_text(text)
    if len(report.rows) < 4000:
        (RESULTS / f"{name}.json").write_text(json.dumps(report.json()).replace("], [", "],\n["))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default=",".join(ARCHITECTURES))
    parser.add_argument("--only", default="", help="workloads (of the suite: forms) whose name contains this")
    parser.add_argument("--suite", type=Path, help="a folder of kernels that benchmarks.ptx_collect kept")
    parser.add_argument("--save", metavar="NAME")
    options = parser.parse_args()
    suite = options.suite
    kernels = suite_kernels(suite, options.only) if suite else workload_kernels(options.only)
    report = Report()
    for row in rows(kernels, options.arch.split(",")):
        report.add(row)
        if not suite:
            for dynamic, r in row.functions:
                print(line(row, dynamic, r), flush=True)
    print(report.table(), report.faults(), sep="\n\n")
    if options.save:
        title = "GPU kernels of the tests" if suite else "GPU kernels of the benchmarks' workloads"
        save(report, options.save, title)
    return 1 if report.refused or (report.spilled and not suite) else 0


if __name__ == "__main__":
    sys.exit(main())
