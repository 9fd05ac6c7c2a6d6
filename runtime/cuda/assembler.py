"""``ptxas``: assembles PTX to machine code and tells what the kernels take of a multiprocessor."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

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


_KERNEL = re.compile(r"(?:Compiling entry function|Function properties for) '?([\w.$]+)'?")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(?:, used (\d+) barriers)?(.*)")
_SHARED = re.compile(r"(\d+) bytes smem")


def assemble(ptx: str, architecture: str, level: int = 3) -> tuple[bytes, list[Resources]]:
    """The machine code (cubin) of a PTX module for an architecture, and the resources of its kernels.

    CompilerError with what ``ptxas`` says where it does not take the text; FileNotFoundError where there is
    no ``ptxas``.
    """
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
