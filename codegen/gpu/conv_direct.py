"""Convolutions of groups of few channels (depthwise): a thread adds up the taps of a vector of results."""

from __future__ import annotations

from math import prod

from weft.codegen.blocks import Ix
from weft.codegen.conv_geometry import Geometry
from weft.codegen.gpu.contract_code import BlockCode
from weft.codegen.gpu.contract_load import Line, Side
from weft.codegen.gpu.contract_region import vector_of
from weft.codegen.gpu.contract_simt import multiply_add
from weft.codegen.gpu.contract_tiles import Epilogue, Kernel, Product
from weft.codegen.lanes import to_register
from weft.codegen.llvm import reg_type
from weft.codegen.microkernel import accumulator, widened
from weft.ir.types import f32

_THREADS = 128
_DEEPEST = 512  # products of one result: more want to be cut into parts
_CHANNELS = 8  # output channels of a group from which tiles are filled well enough
_IN_LINE = 64  # products that are written out


def suits(g: Geometry) -> bool:
    """True for groups too narrow to fill a tile, of sums short enough for one thread."""
    depth = g.channels // g.groups * prod(g.kernel)
    return g.groups > 1 and g.outputs // g.groups < _CHANNELS and depth <= _DEEPEST


class Direct:
    """One launch; results of one group and row are neighbours in a vector where columns are."""

    def __init__(self, kernel: Kernel, p: Product, g: Geometry) -> None:
        self.kernel, self.p, self.g = kernel, p, g
        self.epilogue = Epilogue(kernel, p)
        self.dtype = p.main.operands[0].type.dtype
        self.acc = accumulator(self.dtype)
        self.a, self.b = p.a(1), p.b(1)

    def describe(self) -> str:
        return f"{self.p.title}\n  direct: vectors of {self.epilogue.lanes} results"

    def emit(self) -> None:
        p, lanes = self.p, self.epilogue.lanes
        fn = self.kernel.start("direct", _THREADS)
        vectors = p.n // lanes
        count = p.batch * p.m * vectors
        c = fn.add(fn.mul(fn.block_index("x"), _THREADS), fn.index(fn.thread))
        with fn.only(fn.below(c, count)):
            self.epilogue.begin(fn)
            rest, col = fn.div(c, vectors), fn.mul(fn.mod(c, vectors), lanes)
            batch, row = fn.div(rest, p.m), fn.mod(rest, p.m)
            sums = self._sums(fn, batch, row, [fn.add(col, i) for i in range(lanes)])
            self.epilogue.store(fn, vector_of(fn, sums, reg_type(self.acc)), batch, row, col)
        self.kernel.keep(fn, -(-count // _THREADS))

    def _sums(self, fn: BlockCode, batch: Ix, row: Ix, cols: list[Ix]) -> list[str]:
        pointers, t = self.kernel.pointers(), reg_type(self.acc)
        zero = "0.0" if self.acc.is_floating_point else "0"
        left = self.a.row(fn, batch, row)
        rights = [self.b.row(fn, batch, c) for c in cols]

        def value(side: Side, line: Line, k: Ix) -> str:
            spot = side.locate(fn, line, side.k(fn, k, 0, self.p.k))
            got = side.fetch(fn, pointers, batch, spot)
            got = to_register(fn, got, self.dtype, 0) if side.plain else got
            if not (self.acc is f32 and self.dtype.is_floating_point):
                got = widened(fn, got, self.dtype, 0)
            return got if spot.ok is None else fn.op(f"select i1 {spot.ok}, {t} {got}, {t} {zero}")

        def add(k: Ix, sums: list[str]) -> list[str]:
            x = value(self.a, left, k)
            return [
                multiply_add(fn, self.acc, x, value(self.b, r, k), s)
                for r, s in zip(rights, sums, strict=True)
            ]

        sums = [zero] * len(cols)
        if self.p.k <= _IN_LINE:
            for k in range(self.p.k):
                sums = add(k, sums)
            return sums
        with fn.range(0, self.p.k, 1, [(t, s) for s in sums]) as turn:
            turn.next = add(turn.i, turn.vars)
        return turn.out
