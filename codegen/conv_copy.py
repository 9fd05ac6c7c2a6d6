"""Copies of images with their channels last."""

from __future__ import annotations

from collections.abc import Mapping

from weft.codegen.blocks import Code, Ix
from weft.codegen.operands import Matrix
from weft.codegen.packing import Packer, Packing, element_of
from weft.codegen.phases import Writer
from weft.codegen.places import Coord, Region
from weft.ir.graph import Value
from weft.ir.record import record
from weft.ir.types import DType


@record(frozen=True)
class Channels:
    """``count`` channels from ``first`` on, written ``apart`` elements for each position."""

    first: Ix
    count: int
    apart: int


def copy_positions(
    w: Writer, fn: Code, m: Matrix, pointers: Mapping[Value, str], batch: Ix, first: Ix, count: int, dst: str,
    acc: DType, lanes: int, some: Channels | None = None,
) -> None:  # fmt: skip
    """Write the channels of ``count`` positions of an image, from ``first`` on, to ``dst``.

    ``m`` has images along its batch, positions along its rows and channels along k.
    """
    some = some or Channels(0, m.depth, m.depth)
    channels, size = some.count, acc.itemsize
    down = m.depth > 1 and m.last_stride(1) == 1 and m.last_stride(2) != 1
    single = m.depth == 1 and some.apart == 1

    def source(r: Region, row: Coord, col: Coord) -> str:
        position, channel = (col, Coord()) if single else (row, r.plus(col, Coord(some.first)))
        return element_of(r, m, pointers, batch, r.plus(position, Coord(first)), channel)

    origin = None
    if down and m.in_registers:
        index = fn.dot((first, some.first), (m.row_stride or 0, m.k_stride or 0))
        origin = (fn.at(m.base(fn, pointers, batch), fn.mul(index, size)), (m.k_stride or 0) * size)
    if single:
        packing = Packing(1, count, count, False, count)
    else:
        fill = channels < some.apart
        packing = Packing(count, channels, some.apart, down, count if down else channels, fill)
    packer = Packer(fn, lambda mask: Region(fn, w.graph, lanes, pointers, mask), source, packing, acc, dst,
                    lanes, origin)  # fmt: skip
    packer.rows(0, packing.rows)
