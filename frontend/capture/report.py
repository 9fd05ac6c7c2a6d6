"""``weft.explain``: what became of a function, in words and numbers."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from weft.capture.compiled import Compiled, compile
from weft.capture.segments import SEGMENTS
from weft.devices import cuda


@dataclasses.dataclass
class KernelReport:
    """One kernel: bytes it moves, operations it does, seconds it took, and the share of the nearer machine
    limit."""

    name: str
    form: str
    bytes_moved: float
    flops: float
    seconds: float | None
    share: float | None
    bound: str


@dataclasses.dataclass
class Report:
    """What ``weft.explain(fn)(*args)`` found; ``print`` it.

    ``graphs`` is the number of graphs the call ran in; ``seconds`` the time of one compiled call.
    """

    name: str
    graphs: int
    breaks: list[str]
    guards: list[str]
    recompiles: list[str]
    kernels: list[KernelReport]
    refusals: list[str]
    ops: int
    seconds: float
    limits: dict[str, float]

    @property
    def graph_count(self) -> int:
        return self.graphs

    @property
    def graph_break_count(self) -> int:
        return len(self.breaks)

    def __str__(self) -> str:
        lines = [
            f"{self.name}: {self.graphs} graph{'s' * (self.graphs != 1)} of {self.ops} operations, "
            f"{len(self.kernels)} kernels, {self.seconds * 1e6:.1f} us a call"
        ]
        lines += _section("graph breaks", self.breaks)
        lines += _section("recompiles", self.recompiles)
        lines += _section("guards", self.guards)
        lines += _section("kernels", [_kernel_line(k) for k in self.kernels])
        lines += _section("fusions refused", self.refusals)
        limits = f"{self.limits['flops'] / 1e9:.0f} Gflop/s, {self.limits['bytes'] / 1e9:.0f} GB/s copied"
        return "\n".join([*lines, f"machine limits (measured): {limits}"])

    __repr__ = __str__


def _section(title: str, lines: list[str]) -> list[str]:
    return [f"{title}: {len(lines)}", *(f"  {line}" for line in lines)]


def _kernel_line(k: KernelReport) -> str:
    text = f"{k.name} ({k.form}): {_unit(k.bytes_moved, 'B')}, {_unit(k.flops, 'op')}"
    if k.seconds is not None and k.share is not None:
        text += f", {k.seconds * 1e6:.1f} us, {100 * k.share:.0f}% of the {k.bound} limit"
    return text


def _unit(x: float, unit: str) -> str:
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if x >= factor:
            return f"{x / factor:.1f} {prefix}{unit}"
    return f"{x:.0f} {unit}"


def explain(fn: Callable[..., Any]) -> Callable[..., Report]:
    """What compiling ``fn`` does with given arguments: ``weft.explain(fn)(*args)`` calls it and reports.

    The report has the graph breaks with their lines, guards, recompiles with reasons, every kernel with
    bytes, operations, time and its share of the machine's measured limit, and the fusions that were
    refused and why. ``fn`` may be compiled already (its history is in the report) or not. The function is
    called a few times.

    >>> import weft
    >>> report = explain(lambda x: (x * 2).tanh().sum())(weft.ones(1000))
    >>> report.graph_count, report.graph_break_count
    (1, 0)
    """

    def run(*args: Any, **kwargs: Any) -> Report:
        target: Any = fn if isinstance(fn, Compiled) else compile(fn)
        compiled: Compiled = target if isinstance(target, Compiled) else target._compiled
        return report(compiled, args, kwargs)

    return run


def report(compiled: Compiled, args: Any, kwargs: Any) -> Report:
    """The report of one compiled function and these arguments."""
    compiled(*args, **kwargs)
    SEGMENTS.latest.clear()
    start = time.perf_counter()
    compiled(*args, **kwargs)
    seconds = time.perf_counter() - start
    pieces = list(SEGMENTS.latest) or ([e.executable for e in compiled.entries[:1]])
    limits = limits_of(pieces[0]) if pieces else machine_limits()
    return Report(
        name=compiled.name,
        graphs=len(pieces),
        breaks=list(compiled.breaks),
        guards=compiled.guards() if compiled.entries else [],
        recompiles=list(compiled.recompiles),
        kernels=[k for e in pieces for k in _kernels(e)],
        refusals=list(dict.fromkeys(r for e in pieces for r in _refusals(e))),
        ops=sum(len(e.graph.ops) for e in pieces),
        seconds=seconds,
        limits=limits,
    )


def _kernels(executable: Any) -> list[KernelReport]:
    limits = limits_of(executable)
    out = []
    for k, seconds in zip(executable.kernels, _measure(executable), strict=True):
        by_bytes, by_flops = k.bytes_moved / limits["bytes"], k.flops / limits["flops"]
        bound = "memory" if by_bytes >= by_flops else "arithmetic"
        share = max(by_bytes, by_flops) / seconds if seconds else None
        out.append(KernelReport(k.name, k.form, k.bytes_moved, k.flops, seconds or None, share, bound))
    return out


def _measure(executable: Any) -> list[float]:
    """Seconds of each kernel within a call on arrays of its own; 0 for those that run in Python."""
    if not executable.kernels:
        return []
    return executable.kernel_seconds([_sample(t) for t in executable.in_types])


def _sample(t: Any) -> np.ndarray:
    """An array to measure with: indices are in range."""
    return np.ones(t.shape, t.dtype.np) if t.dtype.is_inexact else np.zeros(t.shape, t.dtype.np)


def _time(fn: Callable[[], Any]) -> float:
    start = time.perf_counter()
    fn()
    return time.perf_counter() - start


def _refusals(executable: Any) -> list[str]:
    from weft.runtime.why import refusals

    return refusals(executable.graph)


_limits: dict[str, float] = {}


def limits_of(executable: Any) -> dict[str, float]:
    """The measured limits of the machine that an executable runs on."""
    state = getattr(executable, "state", None)
    return machine_limits() if state is None else cuda.profile.limits(state)


def machine_limits() -> dict[str, float]:
    """``bytes`` per second of a large copy and ``flops`` per second of a matrix product, measured once."""
    if not _limits:
        a = np.ones((768, 768), np.float32)
        np.matmul(a, a)
        t = min(_time(lambda: np.matmul(a, a)) for _ in range(12))
        big, to = np.ones(1 << 24, np.uint8), np.ones(1 << 24, np.uint8)
        copy = min(_time(lambda: np.copyto(to, big)) for _ in range(12))
        _limits.update(flops=2 * 768**3 / t, bytes=2 * big.nbytes / copy)
    return _limits
