"""One access of memory by many threads: where it goes, whether it may, what it moves."""

from __future__ import annotations

from typing import Any

import numpy as np
from weft.runtime.emulate import windows
from weft.runtime.emulate.faults import LineTraffic
from weft.runtime.emulate.masks import Mask
from weft.runtime.emulate.memory import Fault, Space
from weft.runtime.emulate.program import Decoder, Unknown
from weft.runtime.emulate.ptx_ast import Address, Imm, Instruction, Operand, Reg, Sym
from weft.runtime.emulate.traffic import Patterns

Array = Any
_BASES = {
    "global": windows.GLOBAL_BASE, "const": windows.GLOBAL_BASE, "shared": windows.SHARED_BASE,
    "local": windows.LOCAL_BASE, "param": 0,
}  # fmt: skip
NAMED = ("global", "shared", "local", "const", "param")


def space_of(ins: Instruction) -> str:
    """The state space that an instruction names, "generic" without one."""
    for mod in ins.mods:
        name = mod.partition("::")[0]
        if name in NAMED:
            return name
    return "generic"


def _hex(address: Any) -> str:
    return hex(int(address) & (2**64 - 1))


class Site:
    """An instruction that accesses memory: its address operand, width and number of elements."""

    def __init__(
        self, d: Decoder, ins: Instruction, address: Operand, space: str, size: int, count: int
    ) -> None:
        self.ins, self.space, self.size, self.count = ins, space, size, count
        self.width = size * count
        self.shift = self.width.bit_length() - 1
        if self.width & (self.width - 1) or self.width > 32:
            raise Unknown(f"an access of {self.width} bytes")
        if not isinstance(address, Address):
            raise Unknown("an address was expected")
        self.offset = address.offset
        base = address.base
        if isinstance(base, Sym):
            home, at = d.symbol(base)
            if home == "kernel":
                home = "param"
            if self.space == "generic" or (self.space == "param" and home == "local"):
                self.space = home
            base = Imm(at)
        if base is None:
            base = Imm(0)
        wide = isinstance(base, Imm) or (isinstance(base, Reg) and base.type in ("b64", "u64", "s64"))
        self.slot = d.slot(base, "b64" if wide else "b32")
        self.patterns = Patterns()

    def addresses(self, R: Any, mask: Mask | None) -> Array:
        """The address of each active thread, as int64 (one element where all are the same)."""
        value = R[self.slot]
        if value.shape[0] != 1 and mask is not None:
            value = value[mask.index]
        value = value.view(np.int64) if value.dtype.itemsize == 8 else value.astype(np.int64)
        return value + self.offset if self.offset else value

    def parts(self, R: Any, mask: Mask | None) -> list[tuple[Space, Array, Mask | None]]:
        """The spaces accessed, the byte of each access there, and the threads that access it."""
        address = self.addresses(R, mask)
        if self.space != "generic":
            return [(R.chunk.spaces[self.space], self.flat(R, self.space, address, mask), mask)]
        return [
            (R.chunk.spaces[space], self.flat(R, space, a - windows.SPACES[space], m), m)
            for space, a, m in self._by_space(R, address, mask)
        ]

    def _by_space(self, R: Any, address: Array, mask: Mask | None) -> list[tuple[str, Array, Mask | None]]:
        found: list[tuple[str, Array, Mask | None]] = []
        left = address.size
        for space in ("global", "shared", "local", "param"):
            low, high = windows.RANGES[space]
            inside = (address >= low) & (address < high)
            count = int(np.count_nonzero(inside))
            if count == address.size:
                return [(space, address, mask)]
            if count:
                lanes = R.chunk.lane_of(mask)[inside]
                bits = np.zeros(R.chunk.lanes, np.bool_)
                bits[lanes] = True
                found.append((space, address[inside], Mask(bits, count)))
                left -= count
        if left:
            known = np.zeros(address.shape, np.bool_)
            for space in ("global", "shared", "local", "param"):
                low, high = windows.RANGES[space]
                known |= (address >= low) & (address < high)
            first = int(np.argmin(known))
            raise self.fault(R, mask, first, f"address {_hex(address[first])} is in no state space")
        return found

    def flat(self, R: Any, space: str, address: Array, mask: Mask | None) -> Array:
        """The byte in the space's memory, within bounds and aligned; one per active thread."""
        chunk = R.chunk
        at = address - _BASES[space]
        limit = chunk.spaces[space].bytes
        if space == "shared":
            limit = chunk.launch.shared_bytes
        elif space == "local":
            limit = chunk.launch.program.local_bytes
        outside = at.view(np.uint64) > np.uint64(max(limit - self.width, 0))
        if outside.any() or limit < self.width:
            first = int(np.argmax(outside)) if at.size > 1 else 0
            raise self.fault(R, mask, first, f"{space} address {_hex(address[first])} is out of bounds")
        if self.width > 1 and (at & (self.width - 1)).any():
            first = int(np.argmax((at & (self.width - 1)) != 0))
            text = f"{space} address {_hex(address[first])} is not aligned to {self.width} bytes"
            raise self.fault(R, mask, first, text)
        if space == "shared" and chunk.blocks > 1:
            return at + (chunk.lane_of(mask) // chunk.padded) * chunk.shared_stride
        if space == "local":
            return at + chunk.lane_of(mask) * chunk.local_stride
        if at.size == 1 and space != "param":
            return np.broadcast_to(at, (chunk.lanes if mask is None else mask.count,))
        return at

    def fault(self, R: Any, mask: Mask | None, at: int, text: str) -> Fault:
        return Fault(text, int(R.chunk.lane_of(mask)[at]))

    # reading and writing

    def read(self, R: Any, space: Space, flat: Array, mask: Mask | None, access: str = "plain") -> Array:
        """What is there: an unsigned array, for several elements with rows of them.

        ``access`` is "plain", "strong" or "atomic": who may access the same bytes at the same time.
        """
        at = flat >> self.shift
        try:
            unwritten = space.check_written(at, self.width)
        except Fault as fault:
            raise self.fault(R, mask, fault.lane or 0, fault.text) from None
        if unwritten is not None:
            self._find_unwritten(R, space, unwritten, mask)
        if access == "atomic":
            self._check_atomic(R, space, flat, mask)
        elif space.race is not None:
            tokens, order = R.chunk.tokens(mask), R.chunk.orders[space.name]
            race = space.race.read(flat, self.width, tokens, order, access == "strong")
            if race is not None:
                self._find_race(R, space, race, mask, "read of what another thread writes")
        self._count(R, space, flat, mask, False)
        return space.rows(self.size, self.count)[at]

    def write(
        self, R: Any, space: Space, flat: Array, mask: Mask | None, values: Array, strong: bool = False
    ) -> None:
        at = flat >> self.shift
        self.check_write(R, space, flat, mask, values, strong)
        space.rows(self.size, self.count)[at] = values
        space.mark_written(at, self.width)
        self._count(R, space, flat, mask, True)

    def check_write(
        self, R: Any, space: Space, flat: Array, mask: Mask | None, values: Array, strong: bool = False
    ) -> None:
        """Whether the bytes may be written, and whether that is a race."""
        at = flat >> self.shift
        if space.name == "param":
            raise self.fault(R, mask, 0, "a write of a kernel's parameters")
        try:
            space.check_allocated(at, self.width)
        except Fault as fault:
            raise self.fault(R, mask, fault.lane or 0, fault.text) from None
        if space.race is None:
            return
        if strong:
            self._check_atomic(R, space, flat, mask)
            return
        before, lost = space.race.write(flat, self.width, R.chunk.tokens(mask), R.chunk.orders[space.name])
        if before is not None or lost is not None:
            race = self._changes(space, at, values, before, lost)
            if race.any():
                self._find_race(R, space, race, mask, "write of what another thread reads or writes")

    def _check_atomic(self, R: Any, space: Space, flat: Array, mask: Mask | None) -> None:
        """Whether an atomic operation, or a strong store, races with plain accesses."""
        if space.race is None:
            return
        race = space.race.atomic(flat, self.width, R.chunk.tokens(mask), R.chunk.orders[space.name])
        if race is not None:
            self._find_race(R, space, race, mask, "atomic operation on what another thread accesses plainly")

    def check_pending(self, R: Any, space: Space, flat: Array, mask: Mask | None) -> None:
        """Whether something was written where a copy is about to arrive, since it was started."""
        there = space.is_written(flat >> self.shift, self.width)
        if there.any():
            self._find_race(R, space, there, mask, "write of where a copy is under way")

    def _changes(
        self, space: Space, at: Array, values: Array, before: Array | None, lost: Array | None
    ) -> Array:
        """Which racing writes change anything: several threads may store the same."""
        rows = space.rows(self.size, self.count)
        old = rows[at]
        rows[at] = values
        last = rows[at]
        rows[at] = old
        race = np.zeros(at.shape, np.bool_)
        for racing, there in ((before, old), (lost, last)):
            if racing is not None:
                differs = there != values
                race |= racing & (differs.any(axis=1) if differs.ndim > 1 else differs)
        return race

    def _find_unwritten(self, R: Any, space: Space, where: Array, mask: Mask | None) -> None:
        chunk = R.chunk
        lane = int(chunk.lane_of(mask)[int(np.argmax(where))]) if where.size > 1 else 0
        text = f"read of {space.name} memory that nothing wrote"
        chunk.launch.find("unwritten", self.ins, text, chunk.thread(lane), int(np.count_nonzero(where)))

    def _find_race(self, R: Any, space: Space, where: Array, mask: Mask | None, text: str) -> None:
        chunk = R.chunk
        lane = int(chunk.lane_of(mask)[int(np.argmax(where))])
        text = f"{space.name} memory: {text}, with nothing that orders them"
        chunk.launch.find("race", self.ins, text, chunk.thread(lane), int(np.count_nonzero(where)))

    def _count(self, R: Any, space: Space, flat: Array, mask: Mask | None, write: bool) -> None:
        statistics, moved = R.chunk.statistics, flat.size * self.width
        if space.name == "global":
            if write:
                statistics.global_written += moved
            else:
                statistics.global_read += moved
            line = statistics.lines.get(self.ins.line)
            if line is None:
                line = statistics.lines[self.ins.line] = LineTraffic(self.ins.text)
            self.patterns.count_sectors(line, flat, mask, self.width)
        elif space.name == "shared":
            if write:
                statistics.shared_written += moved
            else:
                statistics.shared_read += moved
            statistics.bank_conflicts += self.patterns.bank_conflicts(flat, mask, self.width)
        else:
            statistics.local_bytes += moved
