"""The kernel of tiles: operands through shared memory, sums in registers, results through the epilogue.

What is multiplied is a :class:`Product`, which dot_general and conv both come to. Tiles of the operands are
copied some steps ahead, by asynchronous copies where memory holds them as they are, else through registers.
A finished tile goes through shared memory, so that the epilogue runs on whole vectors of the results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from weft.codegen.blocks import Ix
from weft.codegen.epilogue import Output, rounded_result
from weft.codegen.gpu.contract_code import BlockCode, supports_async
from weft.codegen.gpu.contract_double import Doubles
from weft.codegen.gpu.contract_folds import Spots, TileFolds, folds_of
from weft.codegen.gpu.contract_load import Side, TileLoader
from weft.codegen.gpu.contract_mma import Tensor
from weft.codegen.gpu.contract_plan import DOUBLE, Plan, Problem, choose, part_of
from weft.codegen.gpu.contract_region import (
    DeviceRegion,
    lanes_within,
    load_aligned,
    store_aligned,
    uniforms,
)
from weft.codegen.gpu.contract_simt import Simt
from weft.codegen.gpu.kernel import DeviceCode, DeviceLaunch
from weft.codegen.gpu.target import GpuTarget
from weft.codegen.llvm import reg_type
from weft.codegen.microkernel import accumulator
from weft.codegen.places import Coord, Place, Region
from weft.codegen.tile_folds import Units
from weft.ir import prims as P
from weft.ir.contraction import folded_values
from weft.ir.graph import Graph, Op, Value

_RASTER = 8  # rows of tiles that blocks of neighbouring numbers share, so that operands stay in the cache
_SMALL = 1 << 31
_COMBINE_THREADS = 128


@dataclass(frozen=True)
class Product:
    """``batch`` products of ``a`` [m, k] by ``b`` [n, k], each ``side(most elements of a vector)``.

    ``root`` is the value that the sums become, of which ``place(region, batch, row, col)`` is where an
    element is wanted; ``cols`` are the dimensions that columns run through, the last one contiguous.
    """

    op: Op
    main: Op
    root: Value
    batch: int
    m: int
    n: int
    k: int
    a: Callable[[int], Side]
    b: Callable[[int], Side]
    cols: tuple[int, ...]
    place: Callable[[Region, Ix, Ix, Coord], Place]
    title: str
    output: Output | None = None

    @property
    def graph(self) -> Graph:
        return self.op.regions[0]


class Kernel:
    """What the kernels of one operation have in common: pointers, scratch memory, launches."""

    def __init__(self, op: Op, target: GpuTarget, prefix: str) -> None:
        self.op, self.target, self.prefix = op, target, prefix
        self.graph = op.regions[0]
        self.inputs, self.outputs = len(op.operands), len(op.results)
        self.functions: list[str] = []
        self.declares: set[str] = set()
        self.launches: list[DeviceLaunch] = []
        self.scratch_bytes = 0
        self.small = all(v.type.size < _SMALL for v in _values(self.graph))

    def start(self, name: str, threads: int, blocks_per_sm: int = 1) -> BlockCode:
        """A function of pointers to the operands, the results and, behind them, the scratch memory."""
        count = self.inputs + self.outputs + 1
        return BlockCode(f"{self.prefix}_{name}", count, threads, blocks_per_sm, self.small)

    def reserve(self, nbytes: int) -> int:
        """Where so much of the scratch memory begins."""
        at = self.scratch_bytes
        self.scratch_bytes += -(-nbytes // 256) * 256
        return at

    def pointers(self) -> dict[Value, str]:
        return {v: f"%arg{i}" for i, v in enumerate(self.graph.params)}

    def results(self) -> list[str]:
        return [f"%arg{self.inputs + i}" for i in range(self.outputs)]

    @property
    def scratch(self) -> str:
        return f"%arg{self.inputs + self.outputs}"

    def keep(self, fn: BlockCode, blocks: int, shared_bytes: int = 0) -> None:
        """Finish a function and launch it with so many blocks."""
        self.functions.append(fn.finish())
        self.declares |= fn.declares
        count = self.inputs + self.outputs + (1 if self.scratch_bytes else 0)
        buffers = tuple(range(count)) + (() if self.scratch_bytes else (0,))
        self.launches.append(
            DeviceLaunch(fn.symbol, (blocks, 1, 1), (fn.threads, 1, 1), buffers, shared_bytes)
        )

    def code(self, loops: str, flops: int, inplace: frozenset[tuple[int, int]] = frozenset()) -> DeviceCode:
        moved = sum(v.type.size * v.type.dtype.itemsize for v in (*self.graph.params, *self.graph.results))
        return DeviceCode(
            self.op.attrs.get("name", self.op.attrs["form"]), "\n".join(self.functions),
            frozenset(self.declares), tuple(self.launches), self.scratch_bytes, loops, moved, flops, inplace,
        )  # fmt: skip


def _values(graph: Graph) -> list[Value]:
    return [*graph.params, *(v for op in graph.ops for v in op.results)]


class Epilogue:
    """From vectors of sums to the results, by all threads of a block."""

    def __init__(self, kernel: Kernel, p: Product) -> None:
        self.kernel, self.p = kernel, p
        self.dtype = p.main.result.type.dtype
        self.acc = accumulator(self.dtype)
        widest = max((v.type.dtype.itemsize for v in p.graph.results), default=4)
        self.lanes = lanes_within(p.cols, 16 // max(widest, 2))
        folded = folded_values(p.graph.ops)
        results = zip(p.graph.results, kernel.results(), strict=True)
        self.results = [(v, base) for v, base in results if v not in folded]

    def begin(self, fn: BlockCode) -> None:
        self.uniform = uniforms(fn, self.p.op, self.p.main, self.kernel.pointers())

    def store(self, fn: BlockCode, sums: str, batch: Ix, row: Ix, col: Ix) -> tuple[Region, Place]:
        """The results from (row, col) on, of a vector of sums; returns where to ask for other values."""
        p, lanes = self.p, self.lanes
        region = DeviceRegion(fn, p.graph, lanes, self.kernel.pointers(), None, self.uniform)
        step = Coord(col, 1, block=lanes) if lanes > 1 else Coord(col)
        place = p.place(region, batch, row, step)
        region.given[(p.root, id(place))] = rounded_result(region, sums, self.acc, self.dtype)
        # all values before the first store: a result may lie over an operand
        found = [region.wide(region.value(v, place)) for v, _ in self.results]
        for (v, base), got in zip(self.results, found, strict=True):
            store_aligned(fn, got, base, region.linear(place).base, v.type.dtype, lanes)
        return region, place

    def load(self, fn: BlockCode, at: Ix) -> str:
        """A vector of sums at byte ``at`` (i32) of shared memory."""
        nbytes = self.lanes * self.acc.itemsize
        return fn.load_shared(reg_type(self.acc, self.lanes), at, min(16, nbytes))


class Tiles:
    """Emits the launches of one product."""

    def __init__(self, kernel: Kernel, p: Product, plan: Plan | None = None) -> None:
        self.kernel, self.p, self.target = kernel, p, kernel.target
        self.dtype = p.main.operands[0].type.dtype
        self.acc = accumulator(self.dtype)
        loose = any(side(16 // self.dtype.itemsize).vector == 1 for side in (p.a, p.b))
        tf32 = self.target.conv_tf32 if p.main.prim is P.conv_p else self.target.tf32
        self.problem = Problem(p.batch, p.m, p.n, p.k, self.dtype, tf32, loose)
        self.epilogue = Epilogue(kernel, p)
        self.plan = plan or choose(self.problem, self.target, self._fold_bytes)
        self.part = part_of(self.problem, self.plan)
        self.splits = -(-p.k // self.part)
        kind = "narrow" if self.plan.narrow else "wide"
        most = (
            16
            // (
                self.dtype if self.plan.narrow else max(self.dtype, self.acc, key=lambda d: d.itemsize)
            ).itemsize
        )
        pad = self.plan.operand_pad(self.acc)
        self.a, self.b = (
            TileLoader(
                side(most), extent, self.plan.k, self.plan.threads, kind, pad, supports_async(self.target)
            )
            for side, extent in ((p.a, self.plan.m), (p.b, self.plan.n))
        )
        self.ld = self.plan.n + self.plan.pad(self.acc)
        self.partial_bytes = p.batch * p.m * p.n * self.acc.itemsize
        self.partial_at = kernel.reserve(self.splits * self.partial_bytes) if self.splits > 1 else 0
        self.folds = TileFolds(kernel, p, self._units(), self.epilogue.lanes)

    def _units(self) -> Units:
        """What gives partial results of its own: a tile, or a vector where parts of k are added up."""
        p, plan = self.p, self.plan
        if self.splits > 1:
            return Units(p.m, p.n // self.epilogue.lanes)
        return Units(-(-p.m // plan.m), -(-p.n // plan.n))

    def _spots(self, plan: Plan) -> Spots:
        folds = folds_of(self.p, Units(1, 1), 0)
        base = plan.shared_bytes(self.dtype)
        return Spots(plan, folds.list if folds is not None else [], self.epilogue.lanes, self.acc, base)

    def _fold_bytes(self, plan: Plan) -> int:
        """Shared memory for reductions, beside that of the tile."""
        return self._spots(plan).end - plan.shared_bytes(self.dtype)

    def emit(self) -> None:
        self._main()
        if self.splits > 1:
            self._combine()
        self.folds.finish()

    # -- the tiles

    def _main(self) -> None:
        plan, p = self.plan, self.p
        fn = self.kernel.start("tiles", plan.threads, plan.blocks_per_sm(self.problem, self.target))
        down, across = -(-p.m // plan.m), -(-p.n // plan.n)
        block = fn.block_index("x")
        tile, rest = fn.mod(block, down * across), fn.div(block, down * across)
        split, batch = fn.mod(rest, self.splits), fn.div(rest, self.splits)
        batch = batch if p.batch > 1 else 0
        i, j = self._raster(fn, tile, down, across)
        row0, col0 = fn.mul(i, plan.m), fn.mul(j, plan.n)
        begin = fn.mul(split, self.part)
        stop = p.k if self.splits == 1 else fn.min(p.k, fn.add(begin, self.part))
        sums = self._products(fn, batch, (row0, col0), (begin, stop))
        self._finish(fn, sums, (batch, split), (row0, col0), (i, j))
        blocks = p.batch * self.splits * down * across
        spare = self._fold_bytes(plan) if self.splits == 1 else 0
        self.kernel.keep(fn, blocks, plan.shared_bytes(self.dtype) + spare)

    def _raster(self, fn: BlockCode, tile: Ix, down: int, across: int) -> tuple[Ix, Ix]:
        """Row and column of a tile: bands of some rows of tiles, walked column by column."""
        high = max(h for h in range(1, _RASTER + 1) if down % h == 0)
        if high == 1:
            return fn.div(tile, across), fn.mod(tile, across)
        band, inside = fn.div(tile, high * across), fn.mod(tile, high * across)
        return fn.add(fn.mul(band, high), fn.mod(inside, high)), fn.div(inside, high)

    def _products(self, fn: BlockCode, batch: Ix, corner: tuple[Ix, Ix], ks: tuple[Ix, Ix]) -> list[str]:
        plan, (begin, stop) = self.plan, ks
        compute = self.compute = self._instructions()
        for loader, first in zip((self.a, self.b), corner, strict=True):
            loader.begin(fn, self.kernel.pointers(), batch, first)
        compute.begin(fn)
        stage, ahead = plan.stage_bytes(self.dtype), plan.stages - 1
        for s in range(ahead):
            k, slot = fn.add(begin, s * plan.k), s * stage
            self._copy(fn, k, stop, slot)
            self._place(fn, self._fetch(fn, k, stop), slot)
        steps = fn.div(fn.add(fn.sub(stop, begin), plan.k - 1), plan.k)
        carried = [*compute.zeros(), ("i32", "0"), ("i32", str(ahead * stage))]
        with fn.range(0, steps, 1, carried, runs=True) as t:
            *sums, read, write = t.vars
            if self._async:
                fn.wait_copies(ahead - 1)
            fn.barrier()
            k = fn.add(begin, fn.mul(fn.add(t.i, ahead), plan.k))
            self._copy(fn, k, stop, write)
            staged = self._fetch(fn, k, stop)
            sums = compute.step(fn, read, sums)
            self._place(fn, staged, write)
            t.next = [*sums, self._after(fn, read), self._after(fn, write)]
        if self._async:
            fn.wait_copies(0)
        fn.barrier()
        return t.out[:-2]

    def _instructions(self) -> Tensor | Doubles | Simt:
        if self.plan.family == DOUBLE:
            return Doubles(self.plan, self.a, self.b)
        if self.plan.tensor:
            return Tensor(self.plan, self.dtype, self.a, self.b)
        return Simt(self.plan, self.acc, (self.a.ld, self.b.ld), self.a.bytes)

    def _after(self, fn: BlockCode, slot: str) -> str:
        """The slot behind another, round and round."""
        stage = self.plan.stage_bytes(self.dtype)
        moved = fn.i32("add", slot, stage)
        over = fn.op(f"icmp eq i32 {moved}, {self.plan.stages * stage}")
        return fn.op(f"select i1 {over}, i32 0, i32 {moved}")

    @property
    def _async(self) -> bool:
        return self.a.asynchronous or self.b.asynchronous

    def _copy(self, fn: BlockCode, k: Ix, stop: Ix, slot: Ix) -> None:
        for loader, at in self._slots(fn, slot, True):
            loader.copy(fn, k, stop, at)
        if self._async:
            fn.commit_copies()

    def _fetch(self, fn: BlockCode, k: Ix, stop: Ix) -> list[list[str]]:
        return [loader.load(fn, k, stop) for loader, _ in self._slots(fn, 0, False)]

    def _place(self, fn: BlockCode, vectors: list[list[str]], slot: Ix) -> None:
        for (loader, at), got in zip(self._slots(fn, slot, False), vectors, strict=True):
            loader.store(fn, got, at)

    def _slots(self, fn: BlockCode, slot: Ix, asynchronous: bool) -> list[tuple[TileLoader, Ix]]:
        both = ((self.a, 0), (self.b, self.a.bytes))
        return [(x, fn.i32("add", slot, at)) for x, at in both if x.asynchronous == asynchronous]

    # -- from sums to results

    def _finish(
        self,
        fn: BlockCode,
        sums: list[str],
        numbers: tuple[Ix, Ix],
        corner: tuple[Ix, Ix],
        tile: tuple[Ix, Ix],
    ) -> None:
        p, plan, (batch, split) = self.p, self.plan, numbers
        folds, spots = (self.folds, self._spots(plan)) if self.splits == 1 else (None, None)
        self.compute.spill(fn, sums, self.ld)
        self.epilogue.begin(fn)
        if folds is not None and spots is not None:
            folds.clear(fn, spots)
        fn.barrier()
        lanes = self.epilogue.lanes
        vectors, threads = plan.n // lanes, plan.threads
        start, count = fn.index(fn.thread), plan.m * vectors
        with fn.range(start, count, threads, runs=count >= threads) as c:
            r, v = fn.div(c.i, vectors), fn.mul(fn.mod(c.i, vectors), lanes)
            row, col = fn.add(corner[0], r), fn.add(corner[1], v)
            inside = fn.both(fn.below(row, p.m), fn.below(col, p.n))
            with fn.only(inside):
                at = fn.int32(fn.mul(fn.add(fn.mul(r, self.ld), v), self.acc.itemsize))
                got = self.epilogue.load(fn, at)
                if folds is not None and spots is not None:
                    seen = self.epilogue.store(fn, got, batch, row, col)
                    folds.take(fn, spots, *seen, r, fn.mod(c.i, vectors))
                else:
                    index = self._partial(fn, fn.add(fn.mul(split, p.batch), batch), row, col)
                    store_aligned(fn, got, self._parts(fn), index, self.acc, lanes)
            if folds is not None and spots is not None and inside is not None:
                outside = fn.op(f"xor i1 {inside}, true")
                with fn.when(outside):
                    folds.absent(fn, spots, r, fn.mod(c.i, vectors))
        if folds is not None and spots is not None:
            folds.finish_tile(fn, spots, batch, tile, corner)

    def _parts(self, fn: BlockCode) -> str:
        """The address of the sums of the parts."""
        return fn.at(self.kernel.scratch, self.partial_at)

    def _partial(self, fn: BlockCode, number: Ix, row: Ix, col: Ix) -> Ix:
        """The index of an element of the sums of a part."""
        return fn.add(fn.mul(fn.add(fn.mul(number, self.p.m), row), self.p.n), col)

    def _combine(self) -> None:
        """Add the sums of the parts, always in the same order, and run the epilogue on them."""
        p, lanes = self.p, self.epilogue.lanes
        fn = self.kernel.start("combine", _COMBINE_THREADS)
        count = p.batch * p.m * p.n // lanes
        c = fn.add(fn.mul(fn.block_index("x"), _COMBINE_THREADS), fn.index(fn.thread))
        with fn.only(fn.below(c, count)):
            self.epilogue.begin(fn)
            vectors = p.n // lanes
            rest, col = fn.div(c, vectors), fn.mul(fn.mod(c, vectors), lanes)
            batch, row = (fn.div(rest, p.m) if p.batch > 1 else 0), fn.mod(rest, p.m)
            t = reg_type(self.acc, lanes)
            total = ""
            for s in range(self.splits):
                index = self._partial(fn, fn.add(s * p.batch, batch), row, col)
                x = load_aligned(fn, self._parts(fn), index, self.acc, lanes)
                plus = "fadd" if self.acc.is_floating_point else "add"
                total = fn.op(f"{plus} {t} {total}, {x}") if total else x
            seen = self.epilogue.store(fn, total, batch, row, col)
            self.folds.store_vector(fn, *seen, batch, row, col)
        self.kernel.keep(fn, -(-count // _COMBINE_THREADS))

    def describe(self) -> str:
        p = self.p
        lines = [p.title, f"  {self.plan}"]
        for name, side in (("a", self.a), ("b", self.b)):
            how = "asynchronous copies" if side.asynchronous else "through registers"
            lines.append(f"  {name}: vectors of {side.vector} along {side.side.along}, {how}")
        return "\n".join(lines)
