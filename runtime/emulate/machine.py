"""The emulated device: memory, modules, launches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from weft.codegen.gpu.target import GpuTarget
from weft.runtime.emulate.chunk import Launch
from weft.runtime.emulate.faults import EmulationError, Finding, LaunchStatistics
from weft.runtime.emulate.memory import WRITTEN, Arena
from weft.runtime.emulate.program import Decoder, Program
from weft.runtime.emulate.ptx_ast import SIZES, Imm, Module, PtxSyntaxError, Sym, Variable
from weft.runtime.emulate.ptx_parse import parse
from weft.runtime.emulate.races import MAX_THREADS, Order
from weft.runtime.emulate.run import Runner
from weft.runtime.emulate.windows import SHARED_BASE

Dim3 = tuple[int, int, int]
_GRID_LIMITS = (2**31 - 1, 65535, 65535)
_BLOCK_LIMITS = (1024, 1024, 64)
_LANES = 8192


@dataclass(frozen=True)
class DeviceFunction:
    program: Program

    @property
    def name(self) -> str:
        return self.program.name


class LoadedModule:
    def __init__(self, machine: Machine, parsed: Module, addresses: dict[str, int]) -> None:
        self._machine, self._parsed, self.addresses = machine, parsed, addresses
        self._functions: dict[str, DeviceFunction] = {}

    def function(self, name: str) -> DeviceFunction:
        """An entry, decoded at first use. KeyError without it, EmulationError for what it cannot run."""
        found = self._functions.get(name)
        if found is None:
            entry = self._parsed.functions.get(name)
            if entry is None or not entry.entry or not entry.defined:
                raise KeyError(name)
            program = Decoder(self._parsed, entry, self.addresses, SHARED_BASE).decode()
            found = self._functions[name] = DeviceFunction(program)
        return found

    @property
    def names(self) -> list[str]:
        return [n for n, f in self._parsed.functions.items() if f.entry and f.defined]


class Machine:
    """A device of ``memory_bytes`` that runs PTX for ``target``.

    ``strict`` raises EmulationError at the end of a launch that raced or read memory that nothing wrote.
    ``findings`` collects what the launches showed, ``launches`` the statistics of each.
    """

    def __init__(
        self, target: GpuTarget, memory_bytes: int = 1 << 28, strict: bool = False, budget: int = 1 << 20
    ) -> None:
        self.target, self.strict, self.budget = target, strict, budget
        self.arena = Arena(memory_bytes)
        self.findings: list[Finding] = []
        self.launches: list[LaunchStatistics] = []
        self._next_thread = 32

    # memory

    def malloc(self, size: int) -> int:
        """The device address of ``size`` bytes, aligned to 256. MemoryError without room."""
        return self.arena.malloc(size)

    def free(self, address: int) -> None:
        """Give back what malloc returned. ValueError for another address."""
        self.arena.free(address)

    def htod(self, to: int, source: Any) -> None:
        """Copy from the host. ValueError where the bytes leave an allocation."""
        data = _bytes(source)
        where = self.arena.span(to, data.size)
        self.arena.data[where] = data
        self.arena.state[where] |= WRITTEN

    def dtoh(self, to: Any, source: int) -> None:
        """Copy to a writable buffer of the host."""
        data = _bytes(to)
        data[:] = self.arena.data[self.arena.span(source, data.size)]

    def dtod(self, to: int, source: int, size: int) -> None:
        """Copy within the device, with the state of each byte."""
        target, origin = self.arena.span(to, size), self.arena.span(source, size)
        self.arena.data[target] = self.arena.data[origin].copy()
        self.arena.state[target] = self.arena.state[origin].copy()

    def memset(self, to: int, value: int, size: int) -> None:
        """Set bytes."""
        where = self.arena.span(to, size)
        self.arena.data[where] = value & 0xFF
        self.arena.state[where] |= WRITTEN

    # modules

    def load(self, text: str) -> LoadedModule:
        """Parse PTX and place its global and constant variables. EmulationError for malformed text."""
        try:
            parsed = parse(text)
        except PtxSyntaxError as error:
            raise EmulationError("module", error.line, None, str(error)) from None
        addresses: dict[str, int] = {}
        placed = [v for v in parsed.variables.values() if v.space in ("global", "const")]
        for variable in placed:
            addresses[variable.name] = self.malloc(variable.bytes)
        for variable in placed:
            self.htod(addresses[variable.name], _initial(variable, addresses))
        return LoadedModule(self, parsed, addresses)

    # launches

    def launch(
        self, function: DeviceFunction, grid: Dim3, block: Dim3, shared_bytes: int, params: bytes
    ) -> LaunchStatistics:
        """Run a kernel to its end. ValueError for an impossible launch, EmulationError for a fault."""
        program = function.program
        launch = self._prepare(program, grid, block, shared_bytes, bytes(params))
        per_chunk = max(1, _LANES // launch.padded)
        with np.errstate(all="ignore"):
            for first in range(0, launch.blocks, per_chunk):
                Runner(launch, first, min(per_chunk, launch.blocks - first), self.budget).run()
        self._report(launch)
        return launch.statistics

    def _prepare(self, program: Program, grid: Dim3, block: Dim3, shared_bytes: int, params: bytes) -> Launch:
        _validate(program, self.target, grid, block, shared_bytes, params)
        padded = -(-block[0] * block[1] * block[2] // 32) * 32
        blocks = grid[0] * grid[1] * grid[2]
        if self._next_thread + padded * blocks >= MAX_THREADS:
            self._next_thread = 32
            assert self.arena.race is not None
            self.arena.race.clear()
        order = Order(self._next_thread, padded, blocks)
        self._next_thread += padded * blocks
        launch = Launch(program, grid, block, shared_bytes, params, self.arena, order)
        launch.multiprocessors = self.target.multiprocessors
        return launch

    def _report(self, launch: Launch) -> None:
        self.launches.append(launch.statistics)
        faults = list(launch.findings.values())
        self.findings += [*faults, *_uncoalesced(launch.statistics)]
        if self.strict and faults:
            first = faults[0]
            raise EmulationError(first.kernel, first.line, first.thread, str(first))


def _uncoalesced(statistics: LaunchStatistics) -> list[Finding]:
    """Accesses that moved at least twice the sectors that their distinct bytes fill."""
    found: list[Finding] = []
    for line, moved in statistics.lines.items():
        if moved.sectors >= 2 * moved.ideal:
            text = f"{moved.sectors} sectors of global memory where {moved.ideal} would do"
            finding = Finding(
                "uncoalesced", statistics.kernel, line, moved.instruction, text, None, moved.requests
            )
            found.append(finding)
    return found


def _bytes(buffer: Any) -> Any:
    if isinstance(buffer, np.ndarray):
        return buffer.reshape(-1).view(np.uint8) if buffer.size else np.zeros(0, np.uint8)
    return np.frombuffer(buffer, np.uint8)


def _initial(variable: Variable, addresses: dict[str, int]) -> bytes:
    """The bytes of a variable; what has no value is zero."""
    size, out = SIZES[variable.type], bytearray()
    for value in variable.values:
        if isinstance(value, Sym):
            number = addresses[value.name] + value.offset
        elif isinstance(value, Imm):
            number = value.value
            if value.kind == "f64" and size == 4:
                number = int(np.float32(np.uint64(number).view(np.float64)).view(np.uint32))
        else:
            raise EmulationError(variable.name, 0, None, "an initialiser that is no number and no address")
        out += (number & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    return bytes(out) + bytes(variable.bytes - len(out))


def _validate(
    program: Program, target: GpuTarget, grid: Dim3, block: Dim3, shared_bytes: int, params: bytes
) -> None:
    threads = block[0] * block[1] * block[2]
    limits = (*zip(grid, _GRID_LIMITS, strict=True), *zip(block, _BLOCK_LIMITS, strict=True))
    if any(not 1 <= n <= limit for n, limit in limits):
        raise ValueError(f"{program.name}: grid {grid} or block {block} is out of range")
    if threads > target.block_threads or (program.maxntid and threads > program.maxntid):
        raise ValueError(f"{program.name}: {threads} threads in a block, at most {program.maxntid or 1024}")
    if program.reqntid and tuple(block) != (*program.reqntid, 1, 1, 1)[:3]:
        raise ValueError(f"{program.name}: blocks must be {program.reqntid}, not {block}")
    total = program.shared_bytes + shared_bytes
    if shared_bytes < 0 or total > target.shared_bytes:
        raise ValueError(f"{program.name}: {total} bytes of shared memory, at most {target.shared_bytes}")
    if program.shared_bytes > 48 * 1024:
        raise ValueError(f"{program.name}: more than 48 KiB of static shared memory")
    if len(params) != program.param_bytes or len(params) > target.parameter_bytes:
        raise ValueError(f"{program.name}: {len(params)} bytes of parameters, {program.param_bytes} expected")
