"""One unit of work of a contraction: some panels of columns by some tiles of rows, over the blocks of k."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import TYPE_CHECKING

from weft.codegen.blocks import Code, Ix
from weft.codegen.contract_plan import stream_turns
from weft.codegen.epilogue import emit_partial_store, kernel_pointers
from weft.codegen.microkernel import Tile, inner_kernel, outer_kernel, stream_kernel
from weft.codegen.phases import aligned
from weft.codegen.tile_folds import Span
from weft.ir.record import record

if TYPE_CHECKING:
    from weft.codegen.contract_kernel import Contract

_TIME_TO_COME = 32  # of k, in which a line comes from memory


@record(frozen=True)
class Grid:
    """Tiles that cover some columns of the result. Panels are one tile wide; the last tile of a panel
    overlaps.

    ``start`` is the first column; ``per_unit`` the panels and tiles of one unit of work; ``inner`` chooses
    the kernel of inner products. ``partial`` is the number of columns where there are fewer than lanes, else
    0. Where columns come in ``groups``, a tile has the same ones of each, and columns are those of a group.
    """

    tile: Tile
    start: int
    panels: int
    tiles: int
    rows: int
    per_unit: tuple[int, int]
    inner: bool
    partial: int
    done: int = 0  # columns of the first panel that another grid has computed too
    groups: int = 1

    @property
    def cols(self) -> int:
        """Columns of a tile in each group."""
        return self.tile.cols // self.groups

    @property
    def blocks(self) -> tuple[int, int]:
        """Blocks of panels and of tiles."""
        return -(-self.panels // self.per_unit[0]), -(-self.tiles // self.per_unit[1])

    def row(self, fn: Code, t: Ix) -> Ix:
        """First row of tile number ``t``."""
        return fn.min(fn.mul(t, self.tile.rows), self.rows - self.tile.rows)

    def repeated(self, fn: Code, t: Ix) -> Ix:
        """How many rows at the start of tile ``t`` the tile before has computed too."""
        return 0 if self.rows % self.tile.rows == 0 else fn.sub(fn.mul(t, self.tile.rows), self.row(fn, t))

    def col(self, fn: Code, p: Ix) -> Ix:
        return fn.add(self.start, fn.mul(p, self.cols))


class ContractUnit:
    """The code of one unit of work: some panels by some tiles, over the blocks of k."""

    def __init__(self, c: Contract, fn: Code, number: int, g: Grid, batch: Ix, split: Ix) -> None:
        self.c, self.fn, self.number, self.g, self.batch, self.split = c, fn, number, g, batch, split
        self.pointers = kernel_pointers(fn, c.op)
        self.scratch = c.scratch_of(fn)
        self.blocked = c.chunks > c.splits or c.plan.kind == "stream"  # then tiles are added to
        # without an epilogue the registers go to the result at once
        self.direct = c.bare and c.plan.kind == "outer" and not self.blocked and not g.partial
        slots = 0 if self.direct else prod(g.per_unit) if self.blocked else 1
        self.folds = ""  # where the epilogue finds the partial results of reductions
        self.tiles = fn.alloca(slots * aligned(g.tile.bytes)) if slots else ""
        self.packed = fn.alloca(c.chunk * g.tile.row_bytes) if c.plan.fused else ""
        self.a_base = self._a_base()
        self.b_in_place = "" if c.pack_b else c.b.base(fn, self.pointers, batch)

    def _a_base(self) -> str:
        c, fn = self.c, self.fn
        if not c.pack_a:
            return c.a.base(fn, self.pointers, self.batch)
        batch = self.batch if c.a_batch > 1 else 0
        return fn.at(self.scratch, fn.add(c.a_at, fn.mul(batch, c.m * c.ld * c.acc.itemsize)))

    def emit(self, nb: Ix, mb: Ix) -> None:
        fn, g, c = self.fn, self.g, self.c
        broad, tall = g.per_unit
        p0, t0 = fn.mul(nb, broad), fn.mul(mb, tall)
        p1, t1 = fn.min(fn.add(p0, broad), g.panels), fn.min(fn.add(t0, tall), g.tiles)
        k0 = fn.div(fn.mul(self.split, c.chunks), c.splits)
        k1 = fn.div(fn.mul(fn.add(self.split, 1), c.chunks), c.splits)
        if c.splits == 1:
            span = self._span((nb, mb), (p0, p1), (t0, t1))
            self.folds = c.folds.begin(fn, self.scratch, self.number, self.batch, span)
        if self.blocked:
            nbytes = prod(g.per_unit) * aligned(g.tile.bytes)
            fn.declare("declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)")
            fn.do(f"call void @llvm.memset.p0.i64(ptr align 64 {self.tiles}, i8 0, i64 {nbytes}, i1 false)")
        with fn.range(k0, k1, runs=True) as chunk:
            start = fn.mul(chunk.i, c.chunk)
            count = fn.min(c.chunk, fn.sub(c.k, start))
            with fn.range(p0, p1, runs=True) as p:
                b = self._pack(p.i, start, count) if c.plan.fused else self._b_panel(p.i, start)
                with fn.range(t0, t1, runs=True) as t:
                    slot = fn.add(fn.mul(fn.sub(p.i, p0), tall), fn.sub(t.i, t0)) if self.blocked else 0
                    row, col = g.row(fn, t.i), g.col(fn, p.i)
                    tile = self._result(row, col) if self.direct else self._slot(slot)
                    if not self.blocked:
                        self._prefetch(row, col)
                    self._multiply(row, b, start, count, tile)
                    if not self.blocked and not self.direct:
                        self._finish(tile, t.i, col)
        if self.blocked:
            with fn.range(p0, p1, runs=True) as p, fn.range(t0, t1, runs=True) as t:
                slot = fn.add(fn.mul(fn.sub(p.i, p0), tall), fn.sub(t.i, t0))
                self._finish(self._slot(slot), t.i, g.col(fn, p.i))

    def _span(self, block: tuple[Ix, Ix], panels: tuple[Ix, Ix], tiles: tuple[Ix, Ix]) -> Span:
        """The rows and columns of the result that only this unit has."""
        fn, g, (nb, mb) = self.fn, self.g, block
        rows = fn.mul(tiles[0], g.tile.rows), fn.min(fn.mul(tiles[1], g.tile.rows), g.rows)
        last = fn.add(g.start, g.partial or fn.mul(panels[1], g.tile.cols))
        return Span((mb, nb), rows, (fn.add(g.col(fn, panels[0]), g.done), last))

    def _slot(self, slot: Ix) -> str:
        """The address of a tile of sums on the stack."""
        return self.fn.at(self.tiles, self.fn.mul(slot, aligned(self.g.tile.bytes)))

    def _result(self, row: Ix, col: Ix) -> str:
        """The address in the kernel's only result."""
        c, fn = self.c, self.fn
        index = fn.add(fn.mul(fn.add(fn.mul(self.batch, c.m), row), c.n), col)
        return fn.at(fn.arg(len(c.op.operands)), fn.mul(index, c.acc.itemsize))

    def _prefetch(self, row: Ix, col: Ix) -> None:
        """Ask for what is read beside the tile and for the lines that it is stored to, which lie in rows too
        far apart for the hardware to guess; the multiplication gives them time to come."""
        c = self.c
        if c.splits > 1 or c.swapped:
            return
        shape = c.dot.result.type.shape
        if not self.direct:
            beside = [v for v in c.graph.params if v.type.shape == shape and v not in c.dot.operands]
            for v in beside:
                self._fetch(self.pointers[v], v.type.dtype.itemsize, row, col, write=False)
        for i, v in enumerate(c.graph.results):
            if v.type.shape == shape and v.type.nbytes > c.target.l2_bytes // 2 and c.k >= _TIME_TO_COME:
                self._fetch(self.fn.arg(len(c.op.operands) + i), v.type.dtype.itemsize, row, col, write=True)

    def _fetch(self, base: str, size: int, row: Ix, col: Ix, *, write: bool) -> None:
        """Prefetch the rows of a tile from an array of the result's shape."""
        c, fn, g = self.c, self.fn, self.g
        fn.declare("declare void @llvm.prefetch.p0(ptr, i32 immarg, i32 immarg, i32 immarg)")
        for r, j in product(range(g.tile.rows), range(g.groups)):
            first = fn.add(col, j * c.columns.width)
            line = fn.mul(fn.add(fn.mul(fn.add(fn.mul(self.batch, c.m), fn.add(row, r)), c.n), first), size)
            at = fn.at(base, line)
            for k in range(0, (g.partial or g.cols) * size, c.target.line_bytes):
                fn.do(f"call void @llvm.prefetch.p0(ptr {fn.at(at, k)}, i32 {int(write)}, i32 3, i32 1)")

    def _b_panel(self, panel: Ix, start: Ix) -> str:
        """The address of a panel of B at k ``start``; for inner products, of its first row."""
        c, fn, size = self.c, self.fn, self.c.b.dtype.itemsize
        if c.pack_b:
            batch = self.batch if c.b_batch > 1 else 0
            if self.g.inner:
                index = fn.mul(fn.add(fn.mul(batch, c.n), self.g.col(fn, panel)), c.ld)
                at = fn.mul(fn.add(index, start), c.acc.itemsize)
                return fn.at(self.scratch, fn.add(c.b_at, at))
            base = c._packed_b(fn, self.scratch, self.number, batch, panel)
            return fn.at(base, fn.mul(start, self.g.tile.row_bytes))
        b, col = c.b, self.g.col(fn, panel)
        assert b.k_stride is not None
        coords = fn.split(col, [d for d, _ in b.groups(1)])  # of a column at which a tile may begin
        index = fn.dot(coords, [stride for _, stride in b.groups(1)], fn.mul(start, b.k_stride))
        return fn.at(self.b_in_place, fn.mul(index, size))

    def _pack(self, panel: Ix, start: Ix, count: Ix) -> str:
        """Pack ``count`` rows of k of a panel of B from ``start`` on; returns where they are."""
        fn, g = self.fn, self.g
        dst = fn.at(self.packed, fn.mul(start, -g.tile.row_bytes))  # the packer counts from row 0
        for packer in self.c.panel_packers(fn, g, self.pointers, self.batch, g.col(fn, panel), dst):
            packer.rows(start, fn.add(start, count))
        return self.packed

    def _multiply(self, row: Ix, b: str, start: Ix, count: Ix, tile: str) -> None:
        c, fn, g = self.c, self.fn, self.g
        row_stride, k_stride = (c.ld, 1) if c.pack_a else (c.a.row_stride or 0, c.a.k_stride or 0)
        size = c.acc.itemsize if c.pack_a else c.a.dtype.itemsize
        index = fn.add(fn.mul(row, row_stride), fn.mul(start, k_stride))
        a = fn.at(self.a_base, fn.mul(index, size))
        if g.inner:
            self._inner(a, row_stride * size, b, count, tile)
            return
        step = "k" if k_stride == 1 else "m" if row_stride == 1 else "any"
        b_step = g.tile.row_bytes if c.pack_b else (c.b.k_stride or 0) * c.b.dtype.itemsize
        if c.plan.kind == "stream":
            name = stream_kernel(fn, g.tile, stream_turns(c.target, c.m), step=step)
        else:
            masked = bool(g.partial) and not c.pack_b and not c.panelled
            name = outer_kernel(
                fn, g.tile, step=step, accumulate=self.blocked, masked=masked, strided=self.direct,
                operand=None if c.pack_b else c.b.dtype, offsets=() if c.pack_b else c.offsets(g.tile),
            )  # fmt: skip
        last = c.n * c.acc.itemsize if self.direct else g.partial
        fn.do(
            f"call void @{name}(ptr {a}, i64 {row_stride * size}, i64 {k_stride * size}, ptr {b}, "
            f"i64 {b_step}, i64 {count}, ptr {tile}, i64 {last})"
        )

    def _inner(self, a: str, a_step: int, b: str, count: Ix, tile: str) -> None:
        """Fill the tile from smaller ones of the inner-product kernel, which overlap at the edges."""
        c, fn, g = self.c, self.fn, self.g
        cols = g.partial or g.tile.cols
        high, broad = min(c.plan.rows, g.tile.rows), min(c.plan.cols, cols)
        b_step = c.ld * c.acc.itemsize if c.pack_b else (c.b.row_stride or 0) * c.b.dtype.itemsize
        operand = c.acc if c.pack_b else c.b.dtype
        name = inner_kernel(fn, high, broad, operand, g.tile.lanes)
        with fn.range(0, -(-cols // broad)) as j, fn.range(0, -(-g.tile.rows // high)) as i:
            r = fn.min(fn.mul(i.i, high), g.tile.rows - high)
            s = fn.min(fn.mul(j.i, broad), cols - broad)
            at = fn.add(fn.mul(r, g.tile.row_bytes), fn.mul(s, c.acc.itemsize))
            fn.do(
                f"call void @{name}(ptr {fn.at(a, fn.mul(r, a_step))}, i64 {a_step}, "
                f"ptr {fn.at(b, fn.mul(s, b_step))}, i64 {b_step}, i64 {count}, ptr {fn.at(tile, at)}, "
                f"i64 {g.tile.row_bytes})"
            )

    def _finish(self, tile: str, t: Ix, col: Ix) -> None:
        """Hand over the rows of tile ``t`` that no other has, to the epilogue or as partial sums."""
        c, fn, g = self.c, self.fn, self.g
        cols, row = g.partial or g.cols, g.row(fn, t)
        if c.splits == 1:
            done, left = g.repeated(fn, t), g.done if c.folds else 0
            fresh = fn.at(tile, fn.add(fn.mul(done, g.tile.row_bytes), left * c.acc.itemsize))
            epilogue = c.edge_epilogue if left else c.epilogue
            fn.do(
                f"call void @{epilogue.symbol}(ptr %bufs, ptr {fresh}, i64 {g.tile.row_bytes}, "
                f"i64 {self.batch}, i64 {fn.add(row, done)}, i64 {fn.sub(g.tile.rows, done)}, "
                f"i64 {fn.add(col, left)}, i64 {cols - left}{c.folds_at(self.folds)})"
            )
            return
        index = fn.add(fn.mul(fn.add(fn.mul(self.batch, c.m), row), c.n), col)
        at = fn.add(c.partial_at, fn.add(fn.mul(self.split, c.partial_bytes), fn.mul(index, c.acc.itemsize)))
        emit_partial_store(fn, tile, g.tile, fn.at(self.scratch, at), c.n, g.partial or g.tile.cols)
