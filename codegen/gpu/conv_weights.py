"""Weights of a convolution copied so that vectors of them run along k, in a launch before the products."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from weft.codegen.blocks import Ix
from weft.codegen.gpu.contract_code import BlockCode, power_of_two
from weft.codegen.gpu.contract_load import Line, MatrixSide, Side, Spot
from weft.codegen.gpu.contract_region import load_elements, store_aligned
from weft.codegen.gpu.contract_tiles import Kernel
from weft.codegen.lanes import to_register
from weft.codegen.llvm import mem_type
from weft.ir.graph import Value

_THREADS = 256
LEAST_PRODUCTS = 1 << 29  # multiply-adds from which one more launch pays


class CopiedSide:
    """Rows of ``depth`` elements in the scratch memory from byte ``at`` on; ``batch`` counts groups."""

    along = "k"
    plain = True
    step = 1

    def __init__(self, kernel: Kernel, source: MatrixSide, at: int, most: int) -> None:
        self.kernel, self.at, self.dtype = kernel, at, source.dtype
        self.rows, self.depth = source.rows, source.depth
        self.vector = min(most, power_of_two(self.depth))

    def row(self, fn: BlockCode, batch: Ix, row: Ix) -> Line:
        ok = fn.below(row, self.rows)
        row = fn.add(fn.mul(batch, self.rows), fn.select(ok, row, 0))
        return Line(fn.mul(row, self.depth), row, ok)

    def k(self, fn: BlockCode, first: Ix, inside: Ix, stop: Ix) -> Line:
        k = fn.add(first, inside)
        ok = fn.below(k, stop)
        k = fn.select(ok, k, 0)
        return Line(k, k, ok)

    def locate(self, fn: BlockCode, row: Line, k: Line) -> Spot:
        return Spot(fn.add(row.index, k.index), row, k, fn.both(row.ok, k.ok))

    def _base(self, fn: BlockCode) -> str:
        return fn.at(self.kernel.scratch, self.at)

    def address(self, fn: BlockCode, pointers: Mapping[Value, str], spot: Spot) -> str:
        return fn.at(self._base(fn), spot.index, mem_type(self.dtype))

    def fetch(self, fn: BlockCode, pointers: Mapping[Value, str], batch: Ix, spot: Spot) -> str:
        lanes = self.vector if self.vector > 1 else 0
        return load_elements(fn, self._base(fn), spot.index, self.dtype, lanes)


def copied(kernel: Kernel, source: MatrixSide, groups: int) -> int:
    """Emit the launch that copies a side, one element a thread; where to in scratch memory."""
    count = groups * source.rows * source.depth
    at = kernel.reserve(count * source.dtype.itemsize)
    fn = kernel.start("weights", _THREADS)
    i = fn.add(fn.mul(fn.block_index("x"), _THREADS), fn.index(fn.thread))
    with fn.only(fn.below(i, count)):
        rest, k = fn.div(i, source.depth), fn.mod(i, source.depth)
        group, row = fn.div(rest, source.rows), fn.mod(rest, source.rows)
        spot = source.locate(fn, source.row(fn, group, row), source.k(fn, k, 0, source.depth))
        got = source.fetch(fn, kernel.pointers(), group, spot)
        got = to_register(fn, got, source.dtype, 0) if source.plain else got
        store_aligned(fn, got, fn.at(kernel.scratch, at), i, source.dtype, 0)
    kernel.keep(fn, -(-count // _THREADS))
    return at


def relaid(kernel: Kernel, sides: Callable[[int], Side], groups: int, products: int) -> Callable[[int], Side]:
    """The side in vectors along k, where it is not so already and there are products enough to pay for it."""
    source = sides(1)
    assert isinstance(source, MatrixSide)
    wide = sides(16 // source.dtype.itemsize)
    already = wide.plain and wide.along == "k" and wide.vector > 1
    if products < LEAST_PRODUCTS or already or source.depth % 2:
        return sides
    at = copied(kernel, source, groups)
    return lambda most: CopiedSide(kernel, source, at, most)
