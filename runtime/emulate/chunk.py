"""The blocks of a launch that run together, in lockstep."""

from __future__ import annotations

from typing import Any

import numpy as np
from weft.runtime.emulate.asynchronous import Copies
from weft.runtime.emulate.faults import Finding, LaunchStatistics, Thread
from weft.runtime.emulate.masks import WARP, Mask
from weft.runtime.emulate.memory import ALLOCATED, JUNK, Arena, Space
from weft.runtime.emulate.program import Program
from weft.runtime.emulate.ptx_ast import Instruction
from weft.runtime.emulate.races import THREAD, Order, RaceShadow
from weft.runtime.emulate.whole_warps import Fragments

Array = Any


class Launch:
    """What the chunks of one launch share."""

    def __init__(self, program: Program, grid: tuple[int, int, int], block: tuple[int, int, int],
                 shared_bytes: int, params: bytes, arena: Arena, order: Order) -> None:  # fmt: skip
        self.program, self.grid, self.block = program, grid, block
        self.dynamic_bytes = shared_bytes
        self.shared_bytes = program.shared_bytes
        if shared_bytes or program.dynamic_at > program.shared_bytes:
            self.shared_bytes = program.dynamic_at + shared_bytes
        self.params, self.arena, self.order = params, arena, order
        self.private_order = Order(order.first, order.block_threads, 0, private=True)
        self.threads = block[0] * block[1] * block[2]
        self.padded = -(-self.threads // WARP) * WARP
        self.blocks = grid[0] * grid[1] * grid[2]
        self.statistics = LaunchStatistics(program.name, grid, block)
        self.findings: dict[tuple[str, int], Finding] = {}
        self.multiprocessors = 1

    def find(self, kind: str, ins: Instruction, text: str, thread: Thread | None, count: int) -> None:
        old = self.findings.get((kind, ins.line))
        if old is None:
            found = Finding(kind, self.program.name, ins.line, ins.text, text, thread, count)
            self.findings[kind, ins.line] = found
        else:
            old.count += count


class Chunk:
    def __init__(self, launch: Launch, first: int, blocks: int) -> None:
        self.launch, self.first, self.blocks = launch, first, blocks
        self.padded = launch.padded
        self.lanes = blocks * launch.padded
        self.warps = self.lanes // WARP
        self.orders = {"global": launch.order, "shared": launch.private_order}
        self.statistics = launch.statistics
        self.clock = 0
        self.everyone = np.arange(self.lanes)
        self.block_epoch = np.zeros(blocks, np.int64)
        self.warp_epoch = np.zeros(self.warps, np.int64)
        self._tokens: Array | None = None
        self._thread_part = (np.arange(self.lanes) + (launch.order.first + first * launch.padded)) << THREAD
        inside = (np.arange(self.lanes) % self.padded) < launch.threads
        self.live = inside
        self.start = None if launch.padded == launch.threads else Mask(inside)
        self.shared_stride = -(-max(launch.shared_bytes, 1) // 128) * 128
        self.local_stride = -(-max(launch.program.local_bytes, 16) // 32) * 32
        self.spaces = self._spaces()
        self.copies = Copies(self.lanes)
        self.fragments = Fragments()

    def _spaces(self) -> dict[str, Space]:
        launch = self.launch
        params = np.frombuffer(launch.params + bytes(-len(launch.params) % 32 + 32), np.uint8)
        state = np.zeros(params.size, np.uint8)
        state[: len(launch.params)] = 3
        return {
            "global": launch.arena,
            "const": launch.arena,
            "shared": self._private("shared", self.shared_stride, launch.shared_bytes, self.blocks, True),
            "local": self._private("local", self.local_stride, launch.program.local_bytes, self.lanes, False),
            "param": Space("param", params, state, None),
        }

    def _private(self, name: str, stride: int, size: int, copies: int, racing: bool) -> Space:
        total = stride * copies
        state = np.zeros((copies, stride), np.uint8)
        state[:, :size] = ALLOCATED
        data = np.full(total, JUNK, np.uint8)
        return Space(name, data, state.reshape(-1), RaceShadow(total) if racing else None)

    # threads

    def lane_of(self, mask: Mask | None) -> Array:
        return self.everyone if mask is None else mask.index

    def mask_of(self, lanes: Array) -> Mask | None:
        """The threads of these numbers, which ascend."""
        if lanes.size == self.lanes:
            return None
        bits = np.zeros(self.lanes, np.bool_)
        bits[lanes] = True
        return Mask(bits, lanes.size)

    def thread(self, lane: int) -> Thread:
        block, thread = divmod(lane, self.padded)
        return _unflatten(self.first + block, self.launch.grid), _unflatten(thread, self.launch.block)

    def tokens(self, mask: Mask | None) -> Array:
        if self._tokens is None:
            epochs = np.repeat((self.block_epoch & 0xFFFF) << 16, self.padded // WARP)
            epochs |= self.warp_epoch & 0xFFFF
            self._tokens = (self._thread_part | np.repeat(epochs, WARP)).view(np.uint64)
        return self._tokens if mask is None else self._tokens[mask.index]

    # order

    def passed_block_barrier(self, blocks: Array) -> None:
        """The blocks (bits) have passed a barrier."""
        self.block_epoch[blocks] += 1
        self.warp_epoch.reshape(self.blocks, -1)[blocks] += 1
        self._tokens = None

    def passed_warp_barrier(self, mask: Mask | None) -> None:
        if mask is None:
            self.warp_epoch += 1
        else:
            self.warp_epoch[self.warps_of(mask)] += 1
        self._tokens = None

    def warps_of(self, mask: Mask) -> Array:
        return mask.bits.reshape(-1, WARP).any(axis=1)

    def blocks_of(self, mask: Mask | None) -> Array:
        if mask is None:
            return np.ones(self.blocks, np.bool_)
        return mask.bits.reshape(self.blocks, -1).any(axis=1)

    def release(self, mask: Mask | None) -> None:
        which = np.flatnonzero(self.blocks_of(mask))
        self.launch.order.released[self.first + which] = self.block_epoch[which] + 1

    def acquire(self, mask: Mask | None) -> None:
        self.launch.order.acquired[self.first + np.flatnonzero(self.blocks_of(mask))] = True


def _unflatten(number: int, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    x, y = shape[0], shape[1]
    return number % x, number // x % y, number // (x * y)
