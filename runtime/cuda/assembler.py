"""``ptxas``: assembles PTX to machine code and tells what the kernels take of a multiprocessor."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from weft.codegen.gpu.target import GpuTarget
from weft.ir.errors import CompilerError
from weft.ir.record import record


@record(frozen=True)
class Resources:
    """What a kernel takes: registers of a thread, shared memory of a block, bytes spilled, bytes of stack."""

    kernel: str
    registers: int
    shared_bytes: int
    spill_bytes: int
    stack_bytes: int
    barriers: int = 0


@cache
def find_ptxas() -> str | None:
    """``ptxas`` on the PATH, or that of the wheel ``nvidia-cuda-nvcc``; None where there is none."""
    found = shutil.which("ptxas")
    if found:
        return found
    for place in sys.path:
        for candidate in Path(place or ".").glob("nvidia/*/bin/ptxas"):
            return str(candidate)
    return None


@cache
def ptxas_release(ptxas: str) -> tuple[int, int]:
    """The release of CUDA that a ``ptxas`` is of; (0, 0) where it does not tell."""
    said = subprocess.run([ptxas, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def ptx_version(cuda: tuple[int, int]) -> int:
    """The PTX version that a version of CUDA came with (PTX ISA, "Release Notes").

    >>> ptx_version((11, 8)), ptx_version((12, 4)), ptx_version((13, 0))
    (78, 84, 90)
    """
    major, minor = cuda
    if major == 11:
        return 70 + minor
    if major == 12:
        return 80 + (minor if minor <= 5 else minor - 1)
    return 90 + minor if major > 12 else 63


def knows(ptxas: str, target: GpuTarget) -> bool:
    """Whether a ``ptxas`` is new enough for the PTX of a target, and so for the target."""
    return ptx_version(ptxas_release(ptxas)) >= target.ptx


_KERNEL = re.compile(r"(?:Compiling entry function|Function properties for) '?([\w.$]+)'?")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(?:, used (\d+) barriers)?(.*)")
_SHARED = re.compile(r"(\d+) bytes smem")
_SM_REGISTERS = 65536  # of a multiprocessor, in all architectures from 7.5 on
_ATTEMPTS = 3


def assemble(ptx: str, architecture: str, level: int = 3) -> tuple[bytes, list[Resources]]:
    """The machine code (cubin) of a PTX module for an architecture, and the resources of its kernels.

    ``ptxas`` guesses how many registers leave room for enough blocks, and some newer releases would rather
    spill than give one more. A kernel that spills while a multiprocessor has more is assembled again, with
    fewer blocks to make room for. CompilerError with what ``ptxas`` says where it does not take the text;
    FileNotFoundError where there is no ``ptxas``.
    """
    best = last = assembled(ptx, architecture, level)
    for _ in range(_ATTEMPTS):
        wider = with_room(ptx, last[1])
        if wider == ptx:
            break
        ptx, last = wider, assembled(wider, architecture, level)
        best = min(best, last, key=lambda made: sum(r.spill_bytes for r in made[1]))
    return best


def assembled(ptx: str, architecture: str, level: int) -> tuple[bytes, list[Resources]]:
    """The machine code and resources of the text as it stands."""
    ptxas = find_ptxas()
    if ptxas is None:
        raise FileNotFoundError("ptxas is neither on the PATH nor installed as nvidia-cuda-nvcc")
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder, "k.ptx"), Path(folder, "k.cubin")
        source.write_text(ptx)
        command = [ptxas, "-v", f"-O{level}", f"-arch={architecture}", str(source), "-o", str(binary)]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            said = run.stderr + run.stdout
            raise CompilerError(f"ptxas does not take the module for {architecture}:\n{said}")
        return binary.read_bytes(), parse_resources(run.stderr + run.stdout)


def with_room(ptx: str, found: list[Resources]) -> str:
    """The text, with fewer blocks a multiprocessor for each kernel that spills and can have more registers.

    >>> text = ".visible .entry k(\\n)\\n.maxntid 256\\n{\\n}"
    >>> print(with_room(text, [Resources("k", 48, 0, 16, 8)]))
    .visible .entry k(
    )
    .maxntid 256
    .minnctapersm 4
    {
    }
    """
    for r in found:
        head = re.search(rf"\.entry {re.escape(r.kernel)}\(.*?^(?=\{{)", ptx, re.DOTALL | re.MULTILINE)
        threads = re.search(r"\.maxntid (\d+)", head[0]) if head else None
        if not r.spill_bytes or head is None or threads is None:
            continue
        blocks = _SM_REGISTERS // (r.registers * int(threads[1])) - 1
        if blocks > 0:
            bare = re.sub(r"^\.minnctapersm \d+\n", "", head[0], flags=re.MULTILINE)
            ptx = ptx[: head.start()] + f"{bare}.minnctapersm {blocks}\n" + ptx[head.end() :]
    return ptx


def parse_resources(text: str) -> list[Resources]:
    """The resources of each kernel in what ``ptxas -v`` prints."""
    out: list[Resources] = []
    kernel, stack, spilled = "", 0, 0
    for line in text.splitlines():
        if name := _KERNEL.search(line):
            kernel = name[1]
        elif frame := _STACK.search(line):
            stack, spilled = int(frame[1]), int(frame[2]) + int(frame[3])
        elif used := _USED.search(line):
            shared = _SHARED.search(used[3])
            smem = int(shared[1]) if shared else 0
            out.append(Resources(kernel, int(used[1]), smem, spilled, stack, int(used[2] or 0)))
    return out
