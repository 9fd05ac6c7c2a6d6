"""Kernels of form ``sort`` on a GPU: stable sorting of lines with indices, and the k first of a sorted line.

Keys are unsigned integers of the same order (NaN above all, both zeros equal), sorted with their positions;
values are then read again at the positions.
"""

from __future__ import annotations

from weft.codegen.blocks import Ix
from weft.codegen.gpu.device import DeviceFunction
from weft.codegen.gpu.kernel import DeviceCode
from weft.codegen.gpu.radix import sorting
from weft.codegen.gpu.target import GpuTarget
from weft.codegen.gpu.writer import DeviceWriter, load_value
from weft.codegen.sort_lines import SortedLines
from weft.ir.graph import Op
from weft.ir.types import u32


def emit(op: Op, target: GpuTarget, prefix: str) -> DeviceCode:
    """The code of a kernel of form ``sort``."""
    return _Sort(op, target, prefix).emit()


class _Sort(SortedLines, DeviceWriter):
    def __init__(self, op: Op, target: GpuTarget, prefix: str) -> None:
        super().__init__(op, target, prefix)
        self.read_sort(self.graph)

    def emit(self) -> DeviceCode:
        wanted = {v: self.result(i) for i, v in enumerate(self.graph.results)}
        slots = [self.operand(self.sort.operands[0])]
        names: list[str | None] = []
        for v in self.sort.results:
            if v in wanted:
                names.append(f"%a{len(slots)}")
                slots.append(wanted[v])
            else:
                names.append(None)
        self.values, self.index = names
        bits = max(32, self.key.bits)
        order = sorting(self, self.lines, self.n, self.kept, bits, tuple(slots), self.key.bits)
        how = order.emit(self._take, self._finish)
        return self.code(f"sort {self.lines} lines of {self.n} {how}")

    def _place(self, fn: DeviceFunction, line: Ix, i: Ix, length: int) -> Ix:
        """Element number of place i of a line of ``length`` elements."""
        outer, inner = fn.div(line, self.inner), fn.mod(line, self.inner)
        return fn.add(fn.add(fn.mul(outer, length * self.inner), inner), fn.mul(i, self.inner))

    def _take(self, fn: DeviceFunction, line: Ix, i: Ix) -> tuple[str, str]:
        """The element as an unsigned integer of the same order, and its position."""
        b, key = self.builder(fn), self.key
        x = load_value(fn, b, "%a0", self._place(fn, line, i, self.n), self.x.dtype)
        got = self.key_of(b, x)
        return b.convert(got, u32 if key.bits < 32 else key).text, fn.op(f"trunc i64 {i} to i32")

    def _finish(self, fn: DeviceFunction, line: Ix, rank: Ix, key: str, position: str) -> None:
        """Write the element of a rank and its position."""
        i = fn.op(f"zext i32 {position} to i64")
        to = self._place(fn, line, rank, self.kept)
        if self.values is not None:
            size = self.x.dtype.itemsize
            t = f"i{8 * size}"
            raw = fn.load(t, fn.at("%a0", self._place(fn, line, i, self.n), t), size)
            fn.store(t, raw, fn.at(self.values, to, t), size)
        if self.index is not None:
            fn.store("i64", i, fn.at(self.index, to, "i64"), 8)
