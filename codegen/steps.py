"""What a native entry runs: launches, calls into Python, copies and control flow over buffers."""

from __future__ import annotations

from typing import NamedTuple

from weft.codegen.kernel import Phase
from weft.ir.record import field, record


class Loc(NamedTuple):
    """A buffer: ``kind`` is in, out, const, arena or status; ``index`` a position, or an arena offset."""

    kind: str
    index: int


@record(frozen=True)
class Launch:
    """Run the phases of one kernel."""

    phases: tuple[Phase, ...]
    operands: tuple[Loc, ...]
    results: tuple[Loc, ...]
    scratch: Loc | None = None
    kernel: int = 0  # its number, under which a profile counts its time


@record(frozen=True)
class Host:
    """Run operation ``index`` of the context in Python."""

    index: int
    operands: tuple[Loc, ...]
    results: tuple[Loc, ...]


@record(frozen=True)
class Move:
    """Copy ``nbytes`` bytes."""

    target: Loc
    source: Loc
    nbytes: int


@record(frozen=True)
class Branch:
    """Call one of two entries by a bool."""

    predicate: Loc
    entries: tuple[str, str]
    operands: tuple[Loc, ...]
    results: tuple[Loc, ...]
    arena: Loc


@record(frozen=True)
class While:
    """Call ``body`` on the carried buffers until ``condition`` writes false to ``flag``. The carry alternates
    between the results and the ``spare`` buffers."""

    condition: str
    body: str
    operands: tuple[Loc, ...]
    results: tuple[Loc, ...]
    spare: tuple[Loc, ...]
    sizes: tuple[int, ...]
    flag: Loc
    arena: Loc


@record(frozen=True)
class Scan:
    """Call ``body`` once for each of ``length`` slices along the leading axis, on the ``consts``, the
    carries and the slices; carries come first in operands and results. ``sizes`` are the bytes of the
    carries, ``in_strides`` and ``out_strides`` those of one slice. ``staging`` has a place for each slice,
    inputs first, that is to be copied before the body reads it or after it wrote it; None for the others."""

    body: str
    length: int
    reverse: bool
    consts: tuple[Loc, ...]
    operands: tuple[Loc, ...]
    results: tuple[Loc, ...]
    spare: tuple[Loc, ...]
    sizes: tuple[int, ...]
    in_strides: tuple[int, ...]
    out_strides: tuple[int, ...]
    arena: Loc
    staging: tuple[Loc | None, ...] = ()


Step = Launch | Host | Move | Branch | While | Scan


@record
class Program:
    """What one entry runs."""

    symbol: str
    n_in: int
    n_out: int
    steps: list[Step] = field(default_factory=list)
    constants: list[bytes] = field(default_factory=list)
    profile: bool = False  # add up the nanoseconds of each kernel in @weft_times


STATUS = Loc("status", 0)


def cost_ns(step: Step) -> float:
    """A rough estimate of the time of one step on one core."""
    if isinstance(step, Launch):
        return sum(p.units * p.cost_ns for p in step.phases)
    return 100.0 if isinstance(step, Move) else 100_000.0
