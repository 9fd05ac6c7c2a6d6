"""Kernels of form ``contract``: one dot_general with what fusion put before and after it.

The result is cut into tiles; a tile's products are summed in registers (:mod:`weft.codegen.microkernel`),
left in a buffer in the first-level cache, and taken from there through the epilogue into the results.
Operands that do not lie well in memory (or have a prologue, or are narrower than their accumulator) are
packed first, in a phase of their own.
"""

from __future__ import annotations

from math import prod

from weft.codegen.blocks import Code, Ix
from weft.codegen.contract_unit import ContractUnit, Grid
from weft.codegen.epilogue import EPILOGUE, Output, emit_epilogue, kernel_pointers, overwritable
from weft.codegen.kernel import KernelCode, Phase, Unsupported
from weft.codegen.microkernel import (
    Tile,
    accumulator,
    rows_for,
    widest,
)
from weft.codegen.operands import Matrix, matrix
from weft.codegen.packing import Packer, Packing, element_of, unit_rows
from weft.codegen.phases import Partial, Writer, aligned, emit_combine
from weft.codegen.places import Coord, Region
from weft.codegen.target import Target
from weft.codegen.uniforms import Uniforms
from weft.ir.contraction import unsupported
from weft.ir.graph import Graph, Op
from weft.ir.prims.base import Kind

_GFLOPS = 60.0  # assumed of one core, for the cost of a unit
_CHUNK_BYTES = 4096  # of k per block: a panel of B then takes a fraction of the second-level cache
_UNIT_FLOPS = 1 << 20  # units are not cut below this
_UNITS = 24  # units wanted, so that threads of unequal speed end together
_FEW_ROWS = 32
_PACK_ROWS = 64  # rows of a packed matrix per unit


def contraction_of(graph: Graph) -> Op:
    """The CONTRACT op of a kernel's region; Unsupported if there is not exactly one."""
    found = [op for op in graph.ops if op.prim.kind is Kind.CONTRACT]
    if len(found) != 1:
        raise Unsupported(f"{len(found)} contractions in one kernel")
    reason = unsupported(found[0])
    if reason is not None:
        raise Unsupported(reason)
    return found[0]


def emit(op: Op, target: Target, prefix: str) -> KernelCode:
    """The code of a kernel of form ``contract``."""
    return Contract(op, target, prefix).emit()


class Contract(Writer):
    def __init__(self, op: Op, target: Target, prefix: str) -> None:
        super().__init__(op, target, prefix)
        self.dot = contraction_of(self.graph)
        self.acc = accumulator(self.dot.result.type.dtype)
        self.lanes = target.lanes(self.acc.bits)
        self._operands()
        self.m, self.n, self.k = self.a.rows, self.b.rows, self.a.depth
        self.batch = self.a.batch
        self._modes()
        self._grids()
        self._layout()

    # -- decisions

    def _operands(self) -> None:
        contract, batch = self.dot.attrs["contract"], self.dot.attrs["batch"]
        sides = []
        for v, c, s in zip(self.dot.operands, contract, batch, strict=True):
            free = tuple(i for i in range(v.type.ndim) if i not in c and i not in s)
            sides.append(matrix(v, self.graph, (tuple(s), free, tuple(c))))
        self.a, self.b = sides
        rows, cols = self.a.sizes(1), self.b.sizes(1)
        self.swapped = self.b.rows == 1 and self.a.rows > 1
        if self.swapped:  # a column is a row in memory: matrix-vector becomes vector-matrix
            self.a, self.b = self.b, self.a
        self.output = Output(self.a.sizes(0), rows, cols, self.swapped)

    def _modes(self) -> None:
        a, b = self.a, self.b
        # where both operands run along k, packing B pays only for many rows and columns
        few = self.m <= _FEW_ROWS or (self.n <= self.lanes and self.m <= 8 * _FEW_ROWS)
        self.inner = few and a.pure and b.pure and a.k_stride == 1 and b.k_stride == 1
        # rows of B read in place lie on pages of their own: harmless while few are in use at once
        large = self.m >= 40 and self.k > 160 and self.k * self.n > 1 << 18
        self.pack_a = not self.inner and not (a.in_registers and not self._scattered(a))
        self.pack_b = not self.inner and (not (b.in_registers and b.row_stride == 1) or large)

    def _scattered(self, a: Matrix) -> bool:
        """True where walking along k jumps so far, and so often, that a packed copy is cheaper."""
        stride = abs(a.k_stride or 0) * self.acc.itemsize
        return stride >= 1024 and self.k >= 256 and self.n >= 256

    def _grids(self) -> None:
        n, lanes = self.n, self.lanes
        wide = widest(self.target)
        if self.inner:
            wide = 1
        elif self.m == 1 and self.target.registers >= 32:
            wide = 8
        self.chunks = -(-self.k // max(1, _CHUNK_BYTES // self.acc.itemsize)) if not self.inner else 1
        if self.k * self.acc.itemsize <= 1.5 * _CHUNK_BYTES:
            self.chunks = 1
        self.chunk = -(-self.k // self.chunks)
        self.chunks = -(-self.k // self.chunk)
        self.grids: list[Grid] = []
        main = n // (wide * lanes)
        if main:
            self._grid(wide, 0, main, 0)
        rest = n - main * wide * lanes
        vectors = -(-rest // lanes)
        if not rest:
            pass
        elif vectors * lanes <= n:  # the last panel overlaps the one before
            self._grid(vectors, n - vectors * lanes, 1, 0)
        elif vectors == 1:
            self._grid(1, 0, 1, n)
        else:
            self._grid(vectors - 1, 0, 1, 0)
            self._grid(1, n - lanes, 1, 0)
        self._splits()

    def _grid(self, vectors: int, start: int, panels: int, partial: int) -> None:
        rows = min(self.m, 12) if self.inner else rows_for(self.target, vectors, self.m)
        tile = Tile(rows, vectors, self.lanes, self.acc)
        tiles = -(-self.m // rows)
        per_panel = 2 * tile.rows * tile.cols * self.k
        tall, broad = min(tiles, max(1, 120 // rows)), min(panels, 4)
        while (
            panels * tiles * self.batch < _UNITS * tall * broad and tall * broad * per_panel > 2 * _UNIT_FLOPS
        ):
            if broad > 1:
                broad = -(-broad // 2)
            elif tall > 1:
                tall = -(-tall // 2)
            else:
                break
        self.grids.append(Grid(tile, start, panels, tiles, self.m, (broad, tall), self.inner, partial))

    def _splits(self) -> None:
        """Cut k into independent parts where the result alone gives too few units for the work."""
        units = self.batch * sum(prod(g.blocks) for g in self.grids)
        work = 2 * self.batch * self.m * self.n * self.k
        self.splits = 1
        if units < 6 and work > 8 * _UNIT_FLOPS and self.chunks >= 4:
            self.splits = min(8, self.chunks // 2)

    def _layout(self) -> None:
        """Where the packed operands and partial sums lie in the scratch memory."""
        size, at = self.acc.itemsize, 0
        self.a_ld = self.k + (16 if self.k * size % 2048 == 0 else 0)
        self.a_batch = 1 if self.a.same_for_batch else self.batch
        self.b_batch = 1 if self.b.same_for_batch else self.batch
        self.b_cols = sum(g.panels * g.tile.cols for g in self.grids)
        self.a_at, at = at, at + aligned(self.a_batch * self.m * self.a_ld * size if self.pack_a else 0)
        self.b_at, at = at, at + aligned(self.b_batch * self.k * self.b_cols * size if self.pack_b else 0)
        self.partial_at = at
        self.partial_bytes = self.batch * self.m * self.n * size
        if self.splits > 1:
            at += self.splits * self.partial_bytes
        self.uniforms = Uniforms(self, self.dot, aligned(at))
        self.scratch = aligned(at) + self.uniforms.nbytes

    # -- code

    def emit(self) -> KernelCode:
        self.epilogue = emit_epilogue(
            self.start(f"{self.prefix}_epilogue", EPILOGUE),
            self.op, self.dot, self.output, self.acc, self.lanes,
            any(g.partial for g in self.grids) or self.splits > 1, self.uniforms,
        )  # fmt: skip
        self.keep(self.epilogue)
        flops = 2 * self.batch * self.m * self.n * self.k
        phases = [*self.uniforms.phase(), *self._pack_phases()]
        parts = [self._grid_part(i, g) for i, g in enumerate(self.grids)]
        units = sum(n for _, n in parts)
        phases.append(self.phase("main", parts, flops / units / _GFLOPS))
        if self.splits > 1:
            phases.append(self.phase("combine", [self._combine()], self.n * self.splits * 0.2))
        return self.code(phases, self.scratch, self._describe(), flops, self._inplace())

    def _inplace(self) -> frozenset[tuple[int, int]]:
        """The results that may lie over an operand: none where panels overlap, so that columns are stored
        twice."""
        overlap = self.splits == 1 and any(
            g.start + g.panels * g.tile.cols > h.start > g.start for g in self.grids for h in self.grids
        )
        return frozenset() if overlap else overwritable(self.graph, self.dot)

    # packing

    def _pack_phases(self) -> list[Phase]:
        parts, elements = [], 0
        if self.pack_a:
            parts.append(self._pack_a())
            elements += self.a_batch * self.m * self.k
        if self.pack_b:
            parts.extend(self._pack_b(i, g) for i, g in enumerate(self.grids))
            elements += self.b_batch * self.n * self.k
        if not parts:
            return []
        return [self.phase("pack", parts, 0.3 * elements / sum(n for _, n in parts))]

    def _pack_a(self) -> tuple[str, int]:
        fn = self.start(f"{self.prefix}_pack_a", "ptr %bufs, i64 %u")
        pointers = kernel_pointers(fn, self.op)
        down = self.a.last_stride(1) == 1 and self.a.last_stride(2) != 1
        run = self.a.run(1 if down else 2)
        height = unit_rows(run, self.m) if down else _PACK_ROWS
        blocks = -(-self.m // height)
        first = fn.mul(fn.mod("%u", blocks), height)
        batch = fn.div("%u", blocks) if self.a_batch > 1 else 0
        dst = fn.at(
            self.scratch_of(fn), fn.add(self.a_at, fn.mul(batch, self.m * self.a_ld * self.acc.itemsize))
        )
        origin = None
        if down and self.a.in_registers:
            origin = (self.a.base(fn, pointers, batch), (self.a.k_stride or 0) * self.acc.itemsize)
        packer = Packer(
            fn, lambda mask: Region(fn, self.graph, self.lanes, pointers, mask),
            lambda r, row, col: element_of(r, self.a, pointers, batch, row, col),
            Packing(self.m, self.k, self.a_ld, down, run), self.acc, dst, self.lanes, origin,
        )  # fmt: skip
        packer.rows(first, fn.min(fn.add(first, height), self.m))
        self.keep(fn)
        return fn.symbol, self.a_batch * blocks

    def _pack_b(self, number: int, g: Grid) -> tuple[str, int]:
        """Panels of B, each stored as k rows of its columns. Panels need not start where a run does."""
        fn = self.start(f"{self.prefix}_pack_b{number}", "ptr %bufs, i64 %u")
        pointers = kernel_pointers(fn, self.op)
        down = self.b.last_stride(2) == 1 and self.b.last_stride(1) != 1
        run = self.b.run(2) if down else self.b.run(1)
        height = unit_rows(run, self.k) if down else _PACK_ROWS
        blocks, width = -(-self.k // height), g.tile.cols
        # panels first: a few rows of memory are then read from end to end
        panel = fn.mod("%u", g.panels)
        rest = fn.div("%u", g.panels)
        first = fn.mul(fn.mod(rest, blocks), height)
        batch = fn.div(rest, blocks) if self.b_batch > 1 else 0
        col0 = g.col(fn, panel)
        dst = self._packed_b(fn, self.scratch_of(fn), number, batch, panel)

        def source(r: Region, row: Coord, col: Coord) -> str:
            return element_of(r, self.b, pointers, batch, r.plus(col, Coord(col0)), row)

        origin = None
        if down and self.b.in_registers:
            step = (self.b.row_stride or 0) * self.acc.itemsize
            origin = (fn.at(self.b.base(fn, pointers, batch), fn.mul(col0, step)), step)
        packer = Packer(
            fn, lambda mask: Region(fn, self.graph, self.lanes, pointers, mask), source,
            Packing(self.k, g.partial or width, width, down, run if down else width, bool(g.partial)),
            self.acc, dst, self.lanes, origin,
        )  # fmt: skip
        packer.rows(first, fn.min(fn.add(first, height), self.k))
        self.keep(fn)
        return fn.symbol, self.b_batch * g.panels * blocks

    def _packed_b(self, fn: Code, scratch: str, number: int, batch: Ix, panel: Ix) -> str:
        size = self.k * self.acc.itemsize
        before = sum(g.panels * g.tile.cols for g in self.grids[:number])
        at = fn.add(fn.mul(batch, self.b_cols), fn.add(before, fn.mul(panel, self.grids[number].tile.cols)))
        return fn.at(scratch, fn.add(self.b_at, fn.mul(at, size)))

    # the tiles

    def _grid_part(self, number: int, g: Grid) -> tuple[str, int]:
        """The function that computes one unit of a grid, and the number of units."""
        fn = self.start(f"{self.prefix}_grid{number}", "ptr %bufs, i64 %u")
        n_blocks, m_blocks = g.blocks
        mb = fn.mod("%u", m_blocks)
        rest = fn.div("%u", m_blocks)
        nb = fn.mod(rest, n_blocks)
        rest = fn.div(rest, n_blocks)
        split = fn.mod(rest, self.splits)
        batch = fn.div(rest, self.splits) if self.batch > 1 else 0
        ContractUnit(self, fn, number, g, batch, split).emit(nb, mb)
        self.keep(fn)
        return fn.symbol, self.batch * self.splits * n_blocks * m_blocks

    def _combine(self) -> tuple[str, int]:
        """Add the partial sums of one row, always in the same order, and run the epilogue on it."""
        fn = self.start(f"{self.prefix}_sum", "ptr %bufs, i64 %u")
        row, batch = fn.mod("%u", self.m), fn.div("%u", self.m)
        partial = Partial(self.partial_at, self.partial_bytes, self.splits)
        emit_combine(fn, self.scratch_of(fn), partial, self.epilogue.symbol, self.acc, self.lanes, self.n,
                     fn.mul("%u", self.n), (batch, row))  # fmt: skip
        self.keep(fn)
        return fn.symbol, self.batch * self.m

    def _describe(self) -> str:
        lines = [f"contract {self.batch} x [{self.m}, {self.k}] x [{self.k}, {self.n}] {self.acc.name}"]
        for name, packed in (("a", self.pack_a), ("b", self.pack_b)):
            lines.append(f"  {name}: {'packed' if packed else 'in place'}")
        for g in self.grids:
            kind = "inner products" if g.inner else "broadcasts"
            lines.append(
                f"  grid: columns {g.start}.., {g.panels} panels x {g.tiles} tiles "
                f"of {g.tile.rows} x {g.tile.cols} "
                f"by {kind}, {g.per_unit[0]} x {g.per_unit[1]} per unit"
            )
        lines.append(f"  k: {self.chunks} blocks of {self.chunk}, {self.splits} parts")
        return "\n".join(lines)
