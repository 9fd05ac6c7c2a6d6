"""Kernels of form ``contract``: one dot_general with what fusion put before and after it.

The result is cut into tiles; a tile's products are summed in registers (:mod:`weft.codegen.microkernel`),
left in a buffer in the first-level cache, and taken from there through the epilogue into the results.
Operands that do not lie well in memory (or have a prologue, or are narrower than their accumulator) are
packed first, in a phase of their own or panel by panel. Which loops run on which tiles, and what is packed,
is chosen by :mod:`weft.codegen.contract_plan`.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd, prod

from weft.codegen.blocks import Code, Ix
from weft.codegen.contract_plan import (
    Plan,
    Problem,
    Side,
    best_panel,
    choose,
    chunk_of,
    cost,
    fused_rows,
)
from weft.codegen.contract_unit import ContractUnit, Grid
from weft.codegen.epilogue import EPILOGUE, Output, emit_epilogue, kernel_pointers, overwritable
from weft.codegen.kernel import KernelCode, Phase, Unsupported
from weft.codegen.microkernel import (
    Tile,
    accumulator,
    rows_for,
)
from weft.codegen.operands import Matrix, made_matrix, unfolded_matrix
from weft.codegen.packing import Packer, Packing, element_of, unit_rows
from weft.codegen.phases import COMBINED, Partial, Writer, aligned, emit_combine
from weft.codegen.places import Coord, Region
from weft.codegen.target import Target
from weft.codegen.tile_folds import FOLDS, Folds, Span, Units
from weft.codegen.uniforms import Uniforms
from weft.ir.contraction import Columns, axes_of, columns_in, unsupported
from weft.ir.graph import Graph, Op, Value
from weft.ir.prims.base import Kind
from weft.ir.record import replace

_COLD = 2.0  # by how much a kernel between others is slower than one alone, whose operands are in the caches
_UNIT_NS = 4_000.0  # units are not cut below this
_UNITS = 96  # units wanted, so that threads end together
_PACK_ROWS = 64  # rows of a packed matrix per unit
_INNER_ROWS = 12  # rows, at most, of a tile that the kernel of inner products fills


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


def _side(m: Matrix) -> Side:
    """What the choice of a plan needs to know of an operand."""
    size = m.dtype.itemsize
    row, k = (m.row_stride or 0, m.k_stride or 0) if m.pure else (0, 0)
    copies = 1 if m.same_for_batch else m.batch
    return Side(
        m.in_registers, m.pure and k == 1, m.pure and row == 1, abs(row) * size, abs(k) * size, copies,
        m.pure, m.panel, not m.plain,
    )  # fmt: skip


def panel_width(graph: Graph, dot: Op, target: Target) -> int:
    """Columns of the panels in which the second operand of ``dot`` should lie if writing them costs nothing.

    0 where it is read best as it is.
    """
    if unsupported(dot) is not None:
        return 0
    acc = accumulator(dot.result.type.dtype)
    b = unfolded_matrix(dot.operands[1], graph, axes_of(dot, 1))
    a = made_matrix(dot.operands[0], graph, axes_of(dot, 0))
    if not b.affine or b.rows == 1:
        return 0
    lanes = target.lanes(acc.bits)
    p = Problem(a.batch, a.rows, b.rows, a.depth, acc.itemsize, lanes, _side(a), _side(b))
    width, columns = best_panel(p, target), columns_in(graph, dot)
    if not width or columns is None:
        return width
    # as wide as what a tile has of each group, none of which a panel may straddle
    width = gcd(max(lanes, width // columns.count // lanes * lanes), columns.width)
    return width if width % lanes == 0 else 0


def _inner_rows(m: int, rows: int) -> int:
    """Rows of a tile filled ``rows`` at a time: the most of those that overlap least at the lower edge."""
    heights = range(rows, max(rows, _INNER_ROWS) + 1, rows)
    return min(heights, key=lambda h: (-(-m // h) * h, -h))


class Contract(Writer):
    """The kernel of one contraction; ``plan`` instead of the cheapest one is for measuring."""

    def __init__(self, op: Op, target: Target, prefix: str, plan: Plan | None = None) -> None:
        super().__init__(op, target, prefix)
        self.dot = contraction_of(self.graph)
        self.acc = accumulator(self.dot.result.type.dtype)
        self.lanes = target.lanes(self.acc.bits)
        self._operands()
        self.m, self.n, self.k = self.a.rows, self.b.rows, self.a.depth
        self.batch = self.a.batch
        self.columns = columns_in(self.graph, self.dot) or Columns(1, self.n)
        self.problem = Problem(
            self.batch, self.m, self.n, self.k, self.acc.itemsize, self.lanes, _side(self.a), self._b_side(),
            self.columns.count,
        )  # fmt: skip
        self.plan = plan or choose(self.problem, target)
        self.pack_a, self.pack_b = self.plan.pack_a, self.plan.pack_b
        self.panelled = self.problem.b.panel > 0 and self.plan.kind == "outer" and not self.pack_b
        # the sums are the kernel's only result, as they are
        results = self.graph.results
        self.bare = list(results) == [self.dot.result] and results[0].type.dtype is self.acc
        self.cost_ns = cost(self.problem, self.plan, target) * target.slot_ns
        self._grids()
        self._splits()
        self._layout()

    # -- decisions

    def _operands(self) -> None:
        (batch, rows, _), (_, cols, _) = ax = axes_of(self.dot, 0), axes_of(self.dot, 1)
        x, w = self.dot.operands
        self.a, self.b = (unfolded_matrix(v, self.graph, at) for v, at in zip((x, w), ax, strict=True))
        self.swapped = self.b.rows == 1 and self.a.rows > 1
        if self.swapped:  # a column is a row in memory: matrix-vector becomes vector-matrix
            self.a, self.b = self.b, self.a
        shape, other = x.type.shape, w.type.shape
        self.output = Output(
            tuple(shape[i] for i in batch), tuple(shape[i] for i in rows), tuple(other[i] for i in cols),
            self.swapped,
        )  # fmt: skip

    def _b_side(self) -> Side:
        """B, which can be read where it lies if groups of columns are at one distance from each other."""
        side, width = _side(self.b), self.columns.width
        if self.columns.count > 1 and side.panel and width % side.panel:
            return replace(side, panel=0)
        return side

    def offsets(self, tile: Tile) -> tuple[int, ...]:
        """Where the vectors of a tile's row lie in B, which is read as it is; in bytes from the first."""
        count, width, lanes = self.columns.count, self.columns.width, self.lanes
        each = tile.vectors // count
        columns = [j * width + v * lanes for j in range(count) for v in range(each)]
        panel = self.problem.b.panel
        if panel:
            far = self.b.groups(1)[0][1]
            columns = [c // panel * far + c % panel for c in columns]
        return tuple(c * self.b.dtype.itemsize for c in columns)

    def _grids(self) -> None:
        """Tiles that cover the columns of each group."""
        n, lanes, wide = self.columns.width, self.lanes, self.plan.vectors // self.columns.count
        self.grids: list[Grid] = []
        main = n // (wide * lanes)
        if main:
            self._grid(wide, 0, main, 0)
        rest = n - main * wide * lanes
        vectors = -(-rest // lanes)
        if not rest:
            pass
        elif self.panelled:  # whose last one is whole
            self._grid(vectors, n - rest, 1, rest if rest % lanes else 0)
        elif vectors * lanes <= n:  # the last panel overlaps the one before
            self._grid(vectors, n - vectors * lanes, 1, 0)
        elif vectors == 1:
            self._grid(1, 0, 1, n)
        else:
            self._grid(vectors - 1, 0, 1, 0)
            self._grid(1, n - lanes, 1, 0)

    def _grid(self, vectors: int, start: int, panels: int, partial: int) -> None:
        kind, rows = self.plan.kind, self.plan.rows
        vectors *= self.columns.count
        if kind == "inner":
            rows = min(self.m, _inner_rows(self.m, rows))
        elif kind == "outer" and vectors != self.plan.vectors:
            rows = rows_for(self.target, vectors, self.m, rows if rows <= 6 else 14)
        tile = Tile(rows, vectors, self.lanes, self.acc)
        tiles = -(-self.m // rows)
        share = vectors * self.lanes * panels / max(self.n, self.lanes)
        blocks = self._per_unit(tile, panels, tiles, share * self.cost_ns / (panels * tiles * self.batch))
        before = max((g.start + g.panels * g.cols for g in self.grids), default=0)
        done, groups = max(0, before - start), self.columns.count
        self.grids.append(
            Grid(tile, start, panels, tiles, self.m, blocks, kind == "inner", partial, done, groups)
        )

    def _per_unit(self, tile: Tile, panels: int, tiles: int, tile_ns: float) -> tuple[int, int]:
        """Panels and tiles of one unit: first along a panel of B, which then stays in the cache."""
        wanted = max(_UNIT_NS, self.cost_ns / _UNITS) / max(tile_ns, 1.0)
        if self.plan.fused:
            wanted = max(wanted, -(-fused_rows(self.m) // tile.rows))
        tall, depth = min(tiles, max(1, int(wanted))), chunk_of(self.problem, self.plan)
        most = tiles * panels
        if depth < self.k:  # sums wait on the stack for the next block of k
            most = max(1, max(64 << 10, self.target.l2_bytes // 4) // tile.bytes)
        near = max(8, self.target.l2_bytes // 2 // (tile.rows * depth * self.acc.itemsize))
        again = not self.plan.fused and near < min(tall, most)  # rows of A stay in the cache for more panels
        tall = min(tall, most, near if again else tall)
        tall = -(-tiles // -(-tiles // tall))
        broad = min(panels, max(1, min(int(wanted), most) // tall)) if tall == tiles or again else 1
        return -(-panels // -(-panels // broad)), tall

    def _splits(self) -> None:
        """Cut k into blocks, and into independent parts where the result alone gives too few units."""
        units = self.batch * sum(prod(g.blocks) for g in self.grids)
        self.splits = 1
        if units < 6 and self.cost_ns > 12 * _UNIT_NS and self.columns.count == 1:
            self.splits = max(1, min(8, self.k // 256, int(self.cost_ns / units / _UNIT_NS / 2)))
        chunk = chunk_of(self.problem, self.plan)
        blocks = self.splits * -(-self.k // (chunk * self.splits))
        self.chunk = -(-self.k // (blocks * self.lanes)) * self.lanes  # packing cuts k where vectors begin
        self.chunks = -(-self.k // self.chunk)
        self.splits = min(self.splits, self.chunks)

    def _layout(self) -> None:
        """Where the packed operands and partial sums lie in the scratch memory."""
        size, at = self.acc.itemsize, 0
        self.ld = -(-self.k // self.lanes) * self.lanes  # of operands packed along k
        self.ld += self.lanes if self.ld * size % 2048 == 0 else 0
        self.a_batch = 1 if self.a.same_for_batch else self.batch
        self.b_batch = 1 if self.b.same_for_batch else self.batch
        self.b_cols = sum(g.panels * g.tile.cols for g in self.grids)
        self.a_at, at = at, at + aligned(self.a_batch * self.m * self.ld * size if self.pack_a else 0)
        b_elements = self.n * self.ld if self.plan.kind == "inner" else self.k * self.b_cols
        self.b_at, at = (
            at,
            at + aligned(self.b_batch * b_elements * size if self.pack_b and not self.plan.fused else 0),
        )
        self.partial_at = at
        self.partial_bytes = self.batch * self.m * self.n * size
        if self.splits > 1:
            at += self.splits * self.partial_bytes
        self.uniforms = Uniforms(self, self.dot, aligned(at))
        units = [Units(self.m, 1)] if self.splits > 1 else [Units(*reversed(g.blocks)) for g in self.grids]
        at = aligned(at) + self.uniforms.nbytes
        self.folds = Folds(self.graph, self.dot, self.output, units, self.lanes, at)
        self.scratch = self.folds.end

    # -- code

    def emit(self) -> KernelCode:
        masked = any(g.partial for g in self.grids) or self.splits > 1
        self.epilogue = self.edge_epilogue = self._epilogue("epilogue", masked)
        if self.folds and not masked and any(g.done for g in self.grids):
            self.edge_epilogue = self._epilogue("edge", True)
        flops = 2 * self.batch * self.m * self.n * self.k
        phases = [*self.uniforms.phase(), *self._pack_phases()]
        parts = [self._grid_part(i, g) for i, g in enumerate(self.grids)]
        units = sum(n for _, n in parts)
        phases.append(self.phase("main", parts, _COLD * self.cost_ns / units))
        if self.splits > 1:
            phases.append(self.phase("combine", [self._combine()], self.n * self.splits * 0.2))
        phases += self.folds.phases(self, self.uniforms)
        return self.code(phases, self.scratch, self._describe(), flops, self._inplace())

    def _epilogue(self, name: str, masked: bool) -> Code:
        fn = self.start(f"{self.prefix}_{name}", EPILOGUE + (FOLDS if self.folds else ""))
        most = max(COMBINED * self.lanes, *(g.tile.cols for g in self.grids))
        emit_epilogue(fn, self.op, self.dot, self.output, self.acc, self.lanes, masked, self.uniforms,
                      self.columns, self.folds, most)  # fmt: skip
        self.keep(fn)
        return fn

    def folds_at(self, table: str) -> str:
        """The argument of the epilogue that tells it where partial results lie."""
        return f", ptr {table}" if self.folds else ""

    def _inplace(self) -> frozenset[tuple[int, int]]:
        """The results that may lie over an operand: none where panels overlap, so that columns are stored
        twice."""
        overlap = self.splits == 1 and any(
            g.start + g.panels * g.cols > h.start > g.start for g in self.grids for h in self.grids
        )
        own = frozenset() if overlap else overwritable(self.graph, self.dot)
        return own | self.folds.overwritable()

    # packing

    def _pack_phases(self) -> list[Phase]:
        parts, elements = [], 0
        if self.pack_a:
            parts.append(self._pack_along("a", self.a, self.a_at, self.a_batch))
            elements += self.a_batch * self.m * self.k
        if self.pack_b and self.plan.kind == "inner":
            parts.append(self._pack_along("b", self.b, self.b_at, self.b_batch))
        elif self.pack_b and not self.plan.fused:
            parts.extend(self._pack_b(i, g) for i, g in enumerate(self.grids))
        if self.pack_b and not self.plan.fused:
            elements += self.b_batch * self.n * self.k
        if not parts:
            return []
        return [self.phase("pack", parts, 0.3 * elements / sum(n for _, n in parts))]

    def _pack_along(self, name: str, side: Matrix, at: int, copies: int) -> tuple[str, int]:
        """An operand row by row, each along k."""
        fn = self.start(f"{self.prefix}_pack_{name}", "ptr %bufs, i64 %u")
        pointers = kernel_pointers(fn, self.op)
        down = side.last_stride(1) == 1 and side.last_stride(2) != 1
        run = side.run(1 if down else 2)
        height = unit_rows(run, side.rows) if down else _PACK_ROWS
        blocks = -(-side.rows // height)
        first = fn.mul(fn.mod("%u", blocks), height)
        batch = fn.div("%u", blocks) if copies > 1 else 0
        dst = fn.at(self.scratch_of(fn), fn.add(at, fn.mul(batch, side.rows * self.ld * self.acc.itemsize)))
        origin = None
        if down and side.in_registers:
            origin = (side.base(fn, pointers, batch), (side.k_stride or 0) * self.acc.itemsize)
        packer = Packer(
            fn, lambda mask: Region(fn, self.graph, self.lanes, pointers, mask),
            lambda r, row, col: element_of(r, side, pointers, batch, row, col),
            Packing(side.rows, self.k, self.ld, down, run), self.acc, dst, self.lanes, origin,
        )  # fmt: skip
        packer.rows(first, fn.min(fn.add(first, height), side.rows))
        self.keep(fn)
        return fn.symbol, copies * blocks

    def _pack_b(self, number: int, g: Grid) -> tuple[str, int]:
        """Panels of B, each stored as k rows of its columns. Panels need not start where a run does."""
        fn = self.start(f"{self.prefix}_pack_b{number}", "ptr %bufs, i64 %u")
        pointers = kernel_pointers(fn, self.op)
        down = self.b.last_stride(2) == 1 and self.b.last_stride(1) != 1
        run = self.b.run(2) if down else self.b.run(1)
        height = unit_rows(run, self.k) if down else _PACK_ROWS
        blocks = -(-self.k // height)
        # panels first: a few rows of memory are then read from end to end
        panel = fn.mod("%u", g.panels)
        rest = fn.div("%u", g.panels)
        first = fn.mul(fn.mod(rest, blocks), height)
        batch = fn.div(rest, blocks) if self.b_batch > 1 else 0
        dst = self._packed_b(fn, self.scratch_of(fn), number, batch, panel)
        last = fn.min(fn.add(first, height), self.k)
        for packer in self.panel_packers(fn, g, pointers, batch, g.col(fn, panel), dst):
            packer.rows(first, last)
        self.keep(fn)
        return fn.symbol, self.b_batch * g.panels * blocks

    def panel_packers(
        self, fn: Code, g: Grid, pointers: Mapping[Value, str], batch: Ix, col0: Ix, dst: str
    ) -> list[Packer]:
        """What writes a panel of B to ``dst``, row by row of k: columns from ``col0`` on of each group."""
        out = []
        for j in range(g.groups):
            at = fn.at(dst, j * g.cols * self.acc.itemsize)
            out.append(self._packer(fn, g, pointers, batch, fn.add(col0, j * self.columns.width), at))
        return out

    def _packer(
        self, fn: Code, g: Grid, pointers: Mapping[Value, str], batch: Ix, col0: Ix, dst: str
    ) -> Packer:
        down = self.b.last_stride(2) == 1 and self.b.last_stride(1) != 1
        run, width = self.b.run(2) if down else self.b.run(1), g.cols

        def source(r: Region, row: Coord, col: Coord) -> str:
            return element_of(r, self.b, pointers, batch, r.plus(col, Coord(col0)), row)

        origin = None
        if down and self.b.in_registers:
            step = (self.b.row_stride or 0) * self.acc.itemsize
            origin = (fn.at(self.b.base(fn, pointers, batch), fn.mul(col0, step)), step)
        return Packer(
            fn, lambda mask: Region(fn, self.graph, self.lanes, pointers, mask), source,
            Packing(
                self.k, g.partial or width, g.tile.cols, down, run if down else width, bool(g.partial)
            ),
            self.acc, dst, self.lanes, origin,
        )  # fmt: skip

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
        scratch = self.scratch_of(fn)
        table = self.folds.begin(fn, scratch, 0, batch, Span((row, 0), (row, fn.add(row, 1)), (0, self.n)))
        emit_combine(fn, scratch, partial, self.epilogue.symbol, self.acc, self.lanes, self.n,
                     fn.mul("%u", self.n), (batch, row), self.folds_at(table))  # fmt: skip
        self.keep(fn)
        return fn.symbol, self.batch * self.m

    def _describe(self) -> str:
        lines = [f"contract {self.batch} x [{self.m}, {self.k}] x [{self.k}, {self.n}] {self.acc.name}"]
        lines.append(f"  {self.plan}")
        for name, packed in (("a", self.pack_a), ("b", self.pack_b)):
            ready = name == "b" and self.panelled
            lines.append(f"  {name}: {'packed' if packed else 'in panels' if ready else 'in place'}")
        for g in self.grids:
            lines.append(
                f"  grid: columns {g.start}.., {g.panels} panels x {g.tiles} tiles "
                f"of {g.tile.rows} x {g.tile.cols}, {g.per_unit[0]} x {g.per_unit[1]} per unit"
                + (f", {g.groups} groups" if g.groups > 1 else "")
            )
        lines.append(f"  k: {self.chunks} blocks of {self.chunk}, {self.splits} parts")
        return "\n".join([*lines, *self.folds.describe()])
