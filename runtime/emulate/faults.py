"""What goes wrong on the emulated device, and what is merely noteworthy."""

from __future__ import annotations

from dataclasses import dataclass, field

Thread = tuple[tuple[int, int, int], tuple[int, int, int]]


class EmulationError(RuntimeError):
    """A fault: the kernel, the line of its PTX, the thread ((block), (thread)) where one is to blame."""

    def __init__(self, kernel: str, line: int, thread: Thread | None, text: str) -> None:
        where = f" in block {thread[0]} thread {thread[1]}" if thread else ""
        super().__init__(f"{kernel}, PTX line {line}{where}: {text}")
        self.kernel, self.line, self.thread, self.text = kernel, line, thread, text


@dataclass
class Finding:
    """``kind`` is "race", "unwritten", "undefined" or "uncoalesced"; ``count`` says how often it was seen."""

    kind: str
    kernel: str
    line: int
    instruction: str
    text: str
    thread: Thread | None = None
    count: int = 1

    def __str__(self) -> str:
        where = f" first in block {self.thread[0]} thread {self.thread[1]}" if self.thread else ""
        return (
            f"{self.kind}: {self.kernel}, PTX line {self.line} ({self.instruction}): {self.text}"
            f"{where}, {self.count} times"
        )


@dataclass
class LineTraffic:
    """What one load or store of global memory moved: 32-byte sectors, and the fewest that could have done."""

    instruction: str
    requests: int = 0
    bytes: int = 0
    sectors: int = 0
    ideal: int = 0


@dataclass
class LaunchStatistics:
    """Counts of one launch. Instructions count threads; sectors, wavefronts and conflicts count warps."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    instructions: int = 0
    global_read: int = 0
    global_written: int = 0
    shared_read: int = 0
    shared_written: int = 0
    local_bytes: int = 0
    atomics: int = 0
    barriers: int = 0
    bank_conflicts: int = 0
    lines: dict[int, LineTraffic] = field(default_factory=dict)

    @property
    def sectors(self) -> int:
        return sum(line.sectors for line in self.lines.values())

    @property
    def ideal_sectors(self) -> int:
        return sum(line.ideal for line in self.lines.values())
