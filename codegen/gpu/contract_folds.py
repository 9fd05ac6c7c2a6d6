"""Reductions in the epilogue of a product on a GPU.

The threads of a block leave in shared memory what they folded of the finished tile; after a barrier some of
them fold that, in order, to partial results of the tile's rows, columns or all of it. A last launch folds the
partial results of all tiles in the order of their numbers and runs what follows. Nothing depends on the order
in which blocks run.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

from weft.codegen.blocks import Ix
from weft.codegen.emit import Reg, VectorBuilder
from weft.codegen.gpu.contract_code import BlockCode
from weft.codegen.gpu.contract_region import DeviceRegion, elements, load_aligned, store_aligned, uniforms
from weft.codegen.lanes import to_memory, to_register
from weft.codegen.llvm import mem_type, reg_type
from weft.codegen.loop_body import combine
from weft.codegen.places import Coord, Place, Region
from weft.codegen.tile_folds import Folds, TileFold, Units
from weft.ir.prims.base import Kind
from weft.ir.types import DType

if TYPE_CHECKING:
    from weft.codegen.gpu.contract_plan import Plan
    from weft.codegen.gpu.contract_tiles import Kernel, Product

_THREADS = 128  # of a block of the last launch
_ALONE = 64  # partial results that one thread folds by itself
_ENOUGH = 4096  # results that fill the machine with a thread each


def folds_of(p: Product, tiles: Units, at: int) -> Folds | None:
    """The reductions of a kernel, whose partial results lie from byte ``at`` of the scratch memory on."""
    if p.output is None or all(op.prim.kind is not Kind.REDUCE for op in p.graph.ops):
        return None
    return Folds(p.graph, p.main, p.output, [tiles], 1, at)


class Spots:
    """Where the threads of a block keep what they folded of a tile: offsets in its shared memory.

    What a vector of a row gives lies over the vector itself, if there is room: nobody else reads it.
    """

    def __init__(self, plan: Plan, folds: Sequence[TileFold], lanes: int, acc: DType, base: int) -> None:
        self.plan, self.lanes = plan, lanes
        self.vectors = plan.n // lanes
        ld = (plan.n + plan.pad(acc)) * acc.itemsize
        room, own = lanes * acc.itemsize, 0
        self.at: list[
            tuple[int, int, int]
        ] = []  # of each fold: offset, bytes from row to row, from vector on
        end = base
        for f in folds:
            size = f.dtype.itemsize
            own = -(-own // size) * size
            if not f.by_row:
                self.at.append((end, plan.n * size, lanes * size))
                end += -(-plan.threads * (1 if f.whole else lanes) * size // 16) * 16
            elif own + size <= room:
                self.at.append((own, ld, lanes * acc.itemsize))
                own += size
            else:
                self.at.append((end, self.vectors * size, size))
                end += -(-plan.m * self.vectors * size // 16) * 16
        self.end = end


class TileFolds:
    """The reductions of one product."""

    def __init__(self, kernel: Kernel, p: Product, tiles: Units, lanes: int) -> None:
        self.kernel, self.p, self.lanes = kernel, p, lanes
        at = kernel.scratch_bytes
        self.folds = folds_of(p, tiles, at)
        if self.folds is not None:
            kernel.reserve(self.folds.end - at)

    @property
    def list(self) -> list[TileFold]:
        return [] if self.folds is None else self.folds.list

    # -- inside a block

    def clear(self, fn: BlockCode, spots: Spots) -> None:
        """The identity in what a thread adds to."""
        for f, (at, _, _) in zip(self.list, spots.at, strict=True):
            if not f.by_row:
                self._put(fn, f, self._identity(fn, f, self._width(f)), self._own(fn, f, at), self._width(f))

    def _width(self, f: TileFold) -> int:
        """Lanes of what a thread keeps of a fold."""
        return self.lanes if "cols" not in f.over and self.lanes > 1 else 0

    def _own(self, fn: BlockCode, f: TileFold, at: int) -> Ix:
        return fn.i32("add", at, fn.i32("mul", fn.thread, max(1, self._width(f)) * f.dtype.itemsize))

    def _identity(self, fn: BlockCode, f: TileFold, lanes: int) -> Reg:
        return VectorBuilder(fn, lanes).reg(f.identity(VectorBuilder(fn, lanes), lanes), f.dtype, lanes)

    def absent(self, fn: BlockCode, spots: Spots, r: Ix, v: Ix) -> None:
        """The identity where a vector of a row may lie outside the result."""
        for f, where in zip(self.list, spots.at, strict=True):
            if f.by_row:
                self._put(fn, f, self._identity(fn, f, 0), self._spot(fn, where, r, v), 0)

    def _spot(self, fn: BlockCode, where: tuple[int, int, int], r: Ix, v: Ix) -> Ix:
        at, row, vector = where
        return fn.int32(fn.add(at, fn.add(fn.mul(r, row), fn.mul(v, vector))))

    def take(self, fn: BlockCode, spots: Spots, region: Region, place: Place, r: Ix, v: Ix) -> None:
        """Fold the values of vector ``v`` of row ``r`` of the tile."""
        found = [self.vector(fn, f, region, place) for f in self.list]
        for f, where, x in zip(self.list, spots.at, found, strict=True):
            lanes = self._width(f)
            if not lanes:
                x = self.over_lanes(fn, f, x)
            if f.by_row:
                self._put(fn, f, x, self._spot(fn, where, r, v), 0)
                continue
            own = self._own(fn, f, where[0])
            old = self._get(fn, f, own, lanes)
            self._put(fn, f, combine(VectorBuilder(fn, lanes), f.name, x, old), own, lanes)

    def vector(self, fn: BlockCode, f: TileFold, region: Region, place: Place) -> Reg:
        """The values that a reduction reads at a place."""
        b = region.builder
        x = b.convert(region.value(f.op.operands[0], place), f.dtype)
        return b.reg(region.wide(x), f.dtype, region.lanes)

    def over_lanes(self, fn: BlockCode, f: TileFold, x: Reg) -> Reg:
        """A vector folded to a scalar, from left to right."""
        b = VectorBuilder(fn, 0)
        first, *rest = [
            b.reg(t, f.dtype) for t in elements(fn, x.text, reg_type(f.dtype), x.lanes)
        ]  # fmt: skip
        for other in rest:
            first = combine(b, f.name, other, first)
        return first

    def _put(self, fn: BlockCode, f: TileFold, x: Reg, at: Ix, lanes: int) -> None:
        align = min(16, max(1, lanes) * f.dtype.itemsize)
        fn.store_shared(mem_type(f.dtype, lanes), to_memory(fn, x.text, f.dtype, lanes), at, align)

    def _get(self, fn: BlockCode, f: TileFold, at: Ix, lanes: int = 0) -> Reg:
        align = min(16, max(1, lanes) * f.dtype.itemsize)
        raw = fn.load_shared(mem_type(f.dtype, lanes), at, align)
        return VectorBuilder(fn, lanes).reg(to_register(fn, raw, f.dtype, lanes), f.dtype, lanes)

    def finish_tile(
        self, fn: BlockCode, spots: Spots, batch: Ix, number: tuple[Ix, Ix], corner: tuple[Ix, Ix]
    ) -> None:
        """Write the partial results of a tile."""
        if self.folds is None:
            return
        fn.barrier()
        for f, where in zip(self.list, spots.at, strict=True):
            base = self.folds.array(fn, self.kernel.scratch, f, 0, batch, number)
            if f.whole:
                self._tree(fn, f, where[0], spots.plan.threads)
                with fn.when(fn.op(f"icmp eq i32 {fn.thread}, 0")):
                    store_aligned(fn, self._get(fn, f, where[0]).text, base, 0, f.dtype, 0)
                continue
            line = spots.plan.m if f.by_row else spots.plan.n
            steps = spots.vectors if f.by_row else spots.plan.threads // spots.vectors
            first, limit = (corner[0], self.p.m) if f.by_row else (corner[1], self.p.n)
            with fn.range(fn.index(fn.thread), line, spots.plan.threads) as c:
                total = self._line(fn, f, where, c.i, steps)
                at = fn.add(first, c.i)
                with fn.only(fn.below(at, limit)):
                    store_aligned(fn, total, base, at, f.dtype, 0)

    def _line(self, fn: BlockCode, f: TileFold, where: tuple[int, int, int], i: Ix, steps: int) -> str:
        """The fold of a row of the tile, or of a column."""
        at, row, vector = where
        start = fn.add(at, fn.mul(i, row if f.by_row else f.dtype.itemsize))
        init = self._identity(fn, f, 0).text
        with fn.range(0, steps, 1, [(reg_type(f.dtype), init)]) as s:
            b = VectorBuilder(fn, 0)
            x = self._get(fn, f, fn.int32(fn.add(start, fn.mul(s.i, vector if f.by_row else row))))
            s.next[0] = combine(b, f.name, x, b.reg(s.vars[0], f.dtype)).text
        return s.out[0]

    def _tree(self, fn: BlockCode, f: TileFold, at: int, threads: int) -> None:
        """Fold what the threads of a block hold into the place of the first."""
        half, size = threads // 2, f.dtype.itemsize
        mine = fn.i32("add", at, fn.i32("mul", fn.thread, size))
        while half:
            with fn.when(fn.op(f"icmp ult i32 {fn.thread}, {half}")):
                x = self._get(fn, f, fn.i32("add", mine, half * size))
                old = self._get(fn, f, mine)
                self._put(fn, f, combine(VectorBuilder(fn, 0), f.name, x, old), mine, 0)
            fn.barrier()
            half //= 2

    # -- where parts of k are added up, a thread for each vector

    def store_vector(self, fn: BlockCode, region: Region, place: Place, batch: Ix, row: Ix, col: Ix) -> None:
        """Write what one vector of the result gives, as partial results of its own."""
        if self.folds is None:
            return
        number = row, fn.div(col, self.lanes)
        for f in self.list:
            base = self.folds.array(fn, self.kernel.scratch, f, 0, batch, number)
            x = self.vector(fn, f, region, place)
            if "cols" not in f.over:
                store_aligned(fn, x.text, base, col, f.dtype, x.lanes)
                continue
            at = row if f.by_row else 0
            store_aligned(fn, self.over_lanes(fn, f, x).text, base, at, f.dtype, 0)

    # -- the last launch

    def finish(self) -> None:
        """Fold the partial results, one launch for each shape of results."""
        if self.folds is None:
            return
        folded = [v for v in self.p.graph.results if v in self.folds.folded]
        for i, shape in enumerate(dict.fromkeys(v.type.shape for v in folded)):
            self._finish(i, shape)

    def _finish(self, number: int, shape: tuple[int, ...]) -> None:
        folds = [f for f in self.list if f.op.result.type.shape == shape]
        size = prod(shape)
        slots = max(f.slots for f in folds)
        fn = self.kernel.start(f"fold{number}", _THREADS)
        together = slots > _ALONE and size < _ENOUGH
        if together:  # a block for each result
            element = fn.block_index("x")
            found = [self._by_block(fn, f, element) for f in folds]
            inside = fn.op(f"icmp eq i32 {fn.thread}, 0")
        else:
            element = fn.add(fn.mul(fn.block_index("x"), _THREADS), fn.index(fn.thread))
            inside, found = fn.below(element, size), []
        with fn.only(inside):
            if not together:
                found = [self._serial(fn, f, element, 0, 1) for f in folds]
            self._store(fn, shape, element, folds, found)
        self.kernel.keep(fn, size if together else -(-size // _THREADS), 16 * _THREADS if together else 0)

    def _serial(self, fn: BlockCode, f: TileFold, element: Ix, first: Ix, step: int) -> Reg:
        base = fn.at(self.kernel.scratch, f.at)
        with fn.range(first, f.slots, step, [(reg_type(f.dtype), self._identity(fn, f, 0).text)]) as s:
            b = VectorBuilder(fn, 0)
            text = load_aligned(fn, base, fn.add(fn.mul(s.i, f.kept), element), f.dtype, 0)
            s.next[0] = combine(b, f.name, b.reg(text, f.dtype), b.reg(s.vars[0], f.dtype)).text
        return VectorBuilder(fn, 0).reg(s.out[0], f.dtype)

    def _by_block(self, fn: BlockCode, f: TileFold, element: Ix) -> Reg:
        mine = self._serial(fn, f, element, fn.index(fn.thread), _THREADS)
        fn.barrier()  # the fold before this one has been read
        self._put(fn, f, mine, fn.i32("mul", fn.thread, f.dtype.itemsize), 0)
        fn.barrier()
        self._tree(fn, f, 0, _THREADS)
        return self._get(fn, f, 0)

    def _store(
        self,
        fn: BlockCode,
        shape: tuple[int, ...],
        element: Ix,
        folds: Sequence[TileFold],
        found: Sequence[Reg],
    ) -> None:
        kernel, graph = self.kernel, self.p.graph
        uniform = uniforms(fn, self.p.op, self.p.main, kernel.pointers())
        region = DeviceRegion(fn, graph, 1, kernel.pointers(), None, uniform)
        place = Place(shape, linear=lambda: Coord(element))
        for f, x in zip(folds, found, strict=True):
            value = region.builder.convert(x, f.op.result.type.dtype)
            region.given[(f.op.result, id(place))] = value
        assert self.folds is not None
        wanted = [
            (v, base)
            for v, base in zip(graph.results, kernel.results(), strict=True)
            if v in self.folds.folded and v.type.shape == shape
        ]
        texts = [region.wide(region.value(v, place)) for v, _ in wanted]
        for (v, base), text in zip(wanted, texts, strict=True):
            store_aligned(fn, text, base, element, v.type.dtype, 1)
