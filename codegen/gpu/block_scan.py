"""Running reductions over the threads of a block: shuffles within a warp, shared memory between warps."""

from __future__ import annotations

from weft.codegen.emit import Reg, VectorBuilder
from weft.codegen.gpu.device import DeviceFunction
from weft.codegen.gpu.target import WARP
from weft.codegen.gpu.writer import load_value, store_value
from weft.ir.types import bool_


class BlockScan:
    """Scans one value of each thread. ``combine`` is an operation of the scalar vocabulary."""

    def __init__(self, fn: DeviceFunction, b: VectorBuilder, tid: str, combine: str, identity: Reg) -> None:
        self.fn, self.b, self.combine, self.identity = fn, b, combine, identity
        self.warps = fn.threads // WARP
        self.array = fn.shared(self.warps * 8)
        self.lane, self.warp = fn.op(f"and i64 {tid}, {WARP - 1}"), fn.op(f"lshr i64 {tid}, 5")

    def exclusive(self, x: Reg) -> tuple[Reg, Reg]:
        """What the threads before this one have, and what all have."""
        fn, b, dtype = self.fn, self.b, self.identity.dtype
        inclusive = x
        for distance in (1, 2, 4, 8, 16):
            more = b.binary(self.combine, fn.from_below(b, inclusive, distance), inclusive)
            inclusive = self._where(f"icmp uge i64 {self.lane}, {distance}", more, inclusive)
        with fn.when(fn.op(f"icmp eq i64 {self.lane}, {WARP - 1}")):
            store_value(fn, inclusive, self.array, self.warp, dtype)
        fn.barrier()
        before, total = self.identity, self.identity
        for w in range(self.warps):
            its = load_value(fn, b, self.array, w, dtype)
            with_it = b.binary(self.combine, before, its)
            before = self._where(f"icmp ugt i64 {self.warp}, {w}", with_it, before)
            total = b.binary(self.combine, total, its)
        fn.barrier()
        joined = b.binary(self.combine, before, fn.from_below(b, inclusive, 1))
        return self._where(f"icmp ne i64 {self.lane}, 0", joined, before), total

    def _where(self, test: str, x: Reg, y: Reg) -> Reg:
        return self.b.select(self.b.reg(self.fn.op(test), bool_), x, y)
