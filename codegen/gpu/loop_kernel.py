"""Kernels of form ``loop`` on a GPU: the nests of the CPU's schedule, laid over blocks and threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from weft.codegen.emit import Reg, memory_form, memory_literal
from weft.codegen.gpu.body import DeviceBody
from weft.codegen.gpu.device import DeviceFunction, narrow_divmod
from weft.codegen.gpu.few_rows import schedule_waves, starved
from weft.codegen.gpu.hoist import hoist_uniforms, reads
from weft.codegen.gpu.kernel import DeviceCode, DeviceLaunch
from weft.codegen.gpu.mapping import Mapping, map_nest, team_loops
from weft.codegen.gpu.target import WARP, GpuTarget
from weft.codegen.gpu.team import Columns, Row
from weft.codegen.gpu.turned import emit_turned, turned
from weft.codegen.llvm import mem_type
from weft.codegen.loop_body import Frame
from weft.codegen.loop_traffic import inplace_pairs, operations, used_buffers
from weft.codegen.nest_key import nest_key
from weft.codegen.schedule import schedule
from weft.codegen.shape import gpu_shape
from weft.ir import types as T
from weft.ir.graph import Op
from weft.ir.loops import (
    IDENTITIES,
    Accumulate,
    Buffer,
    Check,
    Fold,
    Kernel,
    Load,
    Loop,
    Nest,
    Store,
    Tile,
    statements,
)

TILES = 128 << 10  # bytes of a row's values that are kept, where registers take them
SHARED_TILES = 40 << 10  # the same in shared memory


def emit(op: Op, target: GpuTarget, symbol_prefix: str) -> DeviceCode:
    """The code of a ``kernel`` op of form ``loop``."""
    name = op.attrs.get("name") or "loop"
    for tiles in (TILES, SHARED_TILES, 0):
        kernel = hoist_uniforms(schedule(op.regions[0], name, gpu_shape(target.multiprocessors, tiles)))
        if not tiles or _fits(kernel, target):
            break
    if starved(kernel, target):
        waves = schedule_waves(op.regions[0], name, gpu_shape(target.multiprocessors, 0), target)
        return replace(emit_loops(waves, target, symbol_prefix), inplace=frozenset())
    return emit_loops(kernel, target, symbol_prefix)


def _fits(kernel: Kernel, target: GpuTarget) -> bool:
    buffers = {b.name: b for b in kernel.buffers}
    for nests in kernel.phases:
        for nest in nests:
            _, nbytes = places(nest, map_nest(nest, buffers, target, _common(nests)))
            if nbytes > SHARED_TILES:
                return False
    return True


def _common(nests: list[Nest]) -> int | None:
    """The threads of a block, where nests of different kinds share a launch."""
    return 256 if len(nests) > 1 else None


def emit_loops(kernel: Kernel, target: GpuTarget, symbol_prefix: str) -> DeviceCode:
    """The functions of a kernel and their launches: one for each phase."""
    writer = _Writer(kernel, target, symbol_prefix)
    for nests in kernel.phases:
        live = [n for n in nests if n.points]
        if live:
            writer.phase(live)
    moved = sum(b.size * b.dtype.itemsize for b in kernel.buffers if b.role != "scratch")
    flops = sum(int(operations(n)) for nests in kernel.phases for n in nests)
    return DeviceCode(
        kernel.name, "".join(writer.functions), frozenset(writer.declares), tuple(writer.launches),
        writer.scratch, str(kernel), moved, flops, inplace_pairs(kernel),
    )  # fmt: skip


class _Writer:
    """Collects the functions of a kernel."""

    def __init__(self, kernel: Kernel, target: GpuTarget, prefix: str) -> None:
        self.kernel, self.target, self.prefix = kernel, target, prefix
        self.buffers = {b.name: b for b in kernel.buffers}
        self.functions: list[str] = []
        self.declares: set[str] = set()
        self.launches: list[DeviceLaunch] = []
        self.place: dict[str, tuple[int, int]] = {}  # slot and byte offset of each buffer
        outside = [b for b in kernel.buffers if b.role != "scratch"]
        self.place.update((b.name, (i, 0)) for i, b in enumerate(outside))
        self.scratch = 0
        for b in kernel.buffers:
            if b.role == "scratch":
                self.place[b.name] = (len(outside), self.scratch)
                self.scratch += -(-b.size * b.dtype.itemsize // 256) * 256
        self.place["status"] = (len(outside) + 1, 0)

    def phase(self, nests: list[Nest]) -> None:
        """One launch for all nests of a phase; several where they have more pointers than a launch takes."""
        most = self.target.parameter_bytes // 8
        rest = nests
        while rest:
            count, slots = 0, set[int]()
            for nest in rest:
                more = slots | {self.place[n][0] for n in self._names(nest)}
                if count and len(more) > most:
                    break
                count, slots = count + 1, more
            self._launch(rest[:count], sorted(slots))
            rest = rest[count:]

    def _names(self, nest: Nest) -> list[str]:
        """The buffers that a nest needs pointers of."""
        names = [n for n in used_buffers(nest) if n in self.place]
        return [*names, "status"] if any(isinstance(s, Check) for s in statements(nest.body)) else names

    def _launch(self, nests: list[Nest], slots: list[int]) -> None:
        maps = [map_nest(n, self.buffers, self.target, _common(nests)) for n in nests]
        symbol = f"{self.prefix}_{len(self.launches)}"
        fn = DeviceFunction(symbol, len(slots), maps[0].threads)
        pointers = {slot: f"%a{i}" for i, slot in enumerate(slots)}
        block = fn.index("ctaid.x")
        tid = fn.index("tid.x")
        offset = 0
        for group in self._alike(nests, maps):
            first, m = nests[group[0]], maps[group[0]]
            stop = offset + len(group) * m.blocks
            with _part(fn, block, offset, stop, len(group) < len(nests)):
                names = self._names(first)
                chosen, own = self._choose(fn, group, nests, m, block, offset, pointers)
                given = dict(zip(names, chosen, strict=True))
                _Nest(fn, self.target, self.buffers, first, m, given).emit(own, tid)
            offset = stop
        fn.ret()
        self.functions.append(fn.text())
        self.declares |= fn.declares
        self.launches.append(DeviceLaunch(symbol, (offset, 1, 1), (maps[0].threads, 1, 1), tuple(slots)))

    def _alike(self, nests: list[Nest], maps: list[Mapping]) -> list[list[int]]:
        """The nests by their code: those of one group differ in the buffers only."""
        groups: dict[Any, list[int]] = {}
        for i, nest in enumerate(nests):
            key = nest_key(nest, self.buffers)[0] if len(nests) > 1 else i
            groups.setdefault(key, []).append(i)
        return list(groups.values())

    def _choose(
        self, fn: DeviceFunction, group: list[int], nests: list[Nest], m: Mapping, block: Reg, offset: int,
        pointers: dict[int, str],
    ) -> tuple[list[str], Reg]:  # fmt: skip
        """The pointers of the nest whose block this is, and the number of the block within it."""
        rows = [[self._pointer(fn, n, pointers) for n in self._names(nests[i])] for i in group]
        b = fn.op(f"sub i64 {block.text}, {offset}") if offset else block.text
        if len(group) == 1:
            return rows[0], Reg(b, T.i64, 0, fn.depth)
        number = fn.op(f"udiv i64 {b}, {m.blocks}") if m.blocks > 1 else b
        own = fn.op(f"urem i64 {b}, {m.blocks}") if m.blocks > 1 else "0"
        done = fn.new_label("chosen")
        leaves: list[tuple[str, list[str]]] = []

        def descend(lo: int, hi: int) -> None:
            if hi - lo == 1:
                leaves.append((fn.block, rows[lo]))
                fn.br(done)
                return
            middle = (lo + hi) // 2
            left, right = fn.new_label("low"), fn.new_label("high")
            fn.cond_br(fn.op(f"icmp ult i64 {number}, {middle}"), left, right)
            for label, a, z in ((left, lo, middle), (right, middle, hi)):
                fn.label(label)
                descend(a, z)

        descend(0, len(group))
        fn.label(done)
        phis = [fn.phi("ptr") for _ in rows[0]]
        for label, row in leaves:
            for phi, p in zip(phis, row, strict=True):
                phi.add(p, label)
        return [p.name for p in phis], Reg(own, T.i64, 0, fn.depth)

    def _pointer(self, fn: DeviceFunction, name: str, pointers: dict[int, str]) -> str:
        slot, offset = self.place[name]
        p = pointers[slot]
        return fn.op(f"getelementptr i8, ptr {p}, i64 {offset}") if offset else p


@contextmanager
def _part(fn: DeviceFunction, block: Reg, begin: int, end: int, several: bool) -> Iterator[None]:
    """Code for the blocks begin..end-1."""
    if not several:
        yield
        return
    own = fn.op(f"sub i64 {block.text}, {begin}")
    with fn.when(fn.op(f"icmp ult i64 {own}, {end - begin}")):
        yield


def places(nest: Nest, m: Mapping) -> tuple[set[str], int]:
    """The arrays of a row that registers can hold, and the bytes of shared memory that the others take."""
    tiles = {s.name: s for s in nest.body if isinstance(s, Tile)}
    if not tiles:
        return set(), 0
    loops = team_loops(nest)
    held = set(tiles)
    met: dict[str, Any] = {}  # where each is met: by the thread that made an element, if always at one index
    for loop in loops:
        points = 1
        for _, n in loop.axes:
            points *= n
        steps = -(-points // (m.lanes * m.team))
        variables = {v for v, _ in loop.axes} | {v for v, _ in nest.axes}
        direct = {id(s) for s in loop.body}
        for s in statements(loop.body):
            if isinstance(s, (Load, Store)) and s.buffer in tiles:
                plain = id(s) in direct and s.mask is None and set(s.index.names()) <= variables
                plain &= met.setdefault(s.buffer, (tuple(loop.axes), s.index)) == (tuple(loop.axes), s.index)
                if not plain or steps * m.lanes > 32:
                    held.discard(s.buffer)
    for s in nest.body:
        if isinstance(s, (Load, Store)) and s.buffer in tiles:
            held.discard(s.buffer)
    rows = m.threads // m.team
    others = [t.size * t.dtype.itemsize for n, t in tiles.items() if n not in held]
    return held, sum(-(-n // 16) * 16 * rows for n in others)


class _Nest:
    """The code of one nest for the block number ``own`` of its blocks."""

    def __init__(
        self, fn: DeviceFunction, target: GpuTarget, buffers: dict[str, Buffer], nest: Nest, m: Mapping,
        pointers: dict[str, str],
    ) -> None:  # fmt: skip
        self.fn, self.nest, self.map = fn, nest, m
        self.e = DeviceBody(fn, target, buffers, m.lanes)
        self.e.pointers.update(pointers)
        self.e.status = pointers.get("status", "")
        loops = [s for s in statements(nest.body) if isinstance(s, Loop)]
        self.e.walked = {v for axes in [nest.axes, *(s.axes for s in loops)] for v, _ in axes}

    def emit(self, own: Reg, tid: Reg) -> None:
        across = turned(self.nest)
        if self.nest.kind == "rows" or not self.nest.axes:
            self._rows(own, tid)
        elif across is not None:
            emit_turned(self.e, self.nest, across, own, tid)
        elif self.map.team > 1:
            self._columns(own, tid)
        else:
            self._lanes(own, tid)

    # -- rows

    def _rows(self, own: Reg, tid: Reg) -> None:
        e, fn, m, nest = self.e, self.fn, self.map, self.nest
        per = m.threads // m.team
        rank, unit, members = tid, own, "-1"
        if per > 1:
            in_block, rank = narrow_divmod(e.b, tid, m.team, m.threads)
            unit = e.add(e.times(own, per), in_block)
            members = self._members(tid)
        leader = e.b.compare("eq", rank, e.i64(0)).text if m.team > 1 else None
        repeats = nest.chunk > 1 and bool(nest.partials)
        e.team = Row(m.team, rank, leader, members, repeats)
        self._tiles(tid)
        if nest.units % per:
            with fn.when(e.b.compare("lt", unit, e.i64(nest.units)).text):
                self._unit(unit)
        else:
            self._unit(unit)

    def _members(self, tid: Reg) -> str:
        """The threads of this team, which go through the rows of a unit together, as a mask of the warp's."""
        m, fn = self.map, self.fn
        if m.team >= WARP:
            return "-1"
        first = fn.op(f"and i64 {tid.text}, {WARP - m.team}")
        return fn.op(f"shl i32 {(1 << m.team) - 1}, {fn.op(f'trunc i64 {first} to i32')}")

    def _tiles(self, tid: Reg) -> None:
        e, m = self.e, self.map
        e.in_registers, _ = places(self.nest, m)
        for s in self.nest.body:
            if isinstance(s, Tile) and s.name not in e.in_registers:
                nbytes = -(-s.size * s.dtype.itemsize // 16) * 16
                rows = m.threads // m.team
                base = self.fn.shared(nbytes * rows)
                at = self.fn.op(f"udiv i64 {tid.text}, {m.team}")
                at = self.fn.op(f"mul i64 {at}, {nbytes}")
                e.pointers[s.name] = self.fn.op(f"getelementptr i8, ptr {base}, i64 {at}")
                e.shared_tiles.add(s.name)

    def _unit(self, unit: Reg) -> None:
        e, fn, nest = self.e, self.fn, self.nest
        e.env["u"] = [unit]
        if not nest.partials and nest.chunk == 1:
            self._decode(nest.axes, unit, nest.points)
            e.run(nest.body)
            return
        self._late()
        for p in nest.partials:
            if not self._carried_alone(p.buffer):
                self._clear(p, unit)
        first = e.times(unit, nest.chunk)
        after = e.add(first, e.i64(nest.chunk))
        last = e.b.select(e.b.compare("lt", after, e.i64(nest.points)), after, e.i64(nest.points))
        with fn.loop(first.text, last.text, 1, runs=True) as rows:
            e.rows = rows, fn.depth - 1
            self._decode(nest.axes, Reg(rows.var, T.i64, 0, fn.depth), nest.points)
            e.run(nest.body)
        self._finish(rows)

    def _late(self) -> None:
        """Folds of a row that nothing but partial results of the same kind use."""
        users: dict[str, list[Any]] = {}
        for s in statements(self.nest.body):
            for n in reads(s):
                users.setdefault(n, []).append(s)
        for loop in team_loops(self.nest):
            for f in loop.folds:
                mine = users.get(f.name, [])
                if f.index is None and mine and all(self._adds_up(s, f.op) for s in mine):
                    self.e.late[f.name] = (f, [])

    def _adds_up(self, s: Any, op: str) -> bool:
        """True for an addition to the same partial result in every row."""
        rows = {v for v, _ in self.nest.axes}
        return isinstance(s, Accumulate) and s.op == op and not rows & set(s.index.names())

    def _carried_alone(self, buffer: str) -> bool:
        """True where every partial result of a buffer is carried in registers and written at the end."""
        e, m = self.e, self.map
        rows = {v for v, _ in self.nest.axes}
        for s in statements(self.nest.body):
            if isinstance(s, Accumulate) and s.buffer == buffer and rows & set(s.index.names()):
                return False
        for s in self.nest.body:
            if isinstance(s, Loop):
                deep = [x for x in statements(s.body) if isinstance(x, Accumulate) and x.buffer == buffer]
                direct = all(any(x is y for y in s.body) for x in deep)
                points = 1
                for _, n in s.axes:
                    points *= n
                steps = -(-points // (m.lanes * m.team))
                if deep and (s.kind != "vector" or not direct or steps * m.lanes > e.words):
                    return False
        return True

    def _clear(self, p: Any, unit: Reg) -> None:
        """Start a unit's partial results at the identity."""
        e, fn = self.e, self.fn
        assert e.team is not None
        x = memory_literal(IDENTITIES[p.op](p.dtype), p.dtype)
        t = mem_type(memory_form(p.dtype))
        base = e.address(p.buffer, e.times(unit, p.size)).text
        with fn.loop(e.team.rank.text, str(p.size), e.team.size) as scope:
            at = fn.op(f"getelementptr {t}, ptr {base}, i64 {scope.var}")
            fn.do(f"store {t} {x}, ptr {at}, align {p.dtype.itemsize}")
        e.team.barrier(e)

    def _finish(self, rows: Any) -> None:
        """Write what the threads carried through all rows of the unit."""
        e, fn = self.e, self.fn
        values = dict(zip((p.name for p in rows.phis), rows.results, strict=True))
        parts: dict[str, list[Any]] = {}
        for s in e.sums.values():
            parts.setdefault(s.address.text, []).append(s)
        for same in parts.values():
            s = same[0]
            states = [[Reg(values[x.phi.name], x.dtype, 0, fn.depth)] for x in same]
            guard = s.guard
            if s.team:
                assert e.team is not None
                (got,) = e.team.fold(e, Fold("", s.op, "", s.dtype), states)
                x, guard = got[0], e.team.leader
            else:
                x = states[0][0]
            x = e.b.narrow(x)
            size = s.dtype.itemsize
            with e.only(guard):
                fn.do(f"store {mem_type(x.dtype)} {x.text}, ptr {s.address.text}, align {size}")

    # -- lanes

    def _decode(self, axes: list[tuple[str, int]], point: Reg, bound: int) -> None:
        """Set the variables of the axes from the number of a point."""
        rest = point
        for var, extent in reversed(axes[1:]):
            rest, here = narrow_divmod(self.e.b, rest, extent, bound)
            self.e.env[var] = [here]
            bound = -(-bound // extent)
        if axes:
            self.e.env[axes[0][0]] = [rest]

    def _lanes(self, own: Reg, tid: Reg) -> None:
        e, fn, m, nest = self.e, self.fn, self.map, self.nest
        (var, extent), outer = nest.axes[-1], nest.axes[:-1]
        pieces = -(-extent // m.lanes)
        points = nest.points // extent
        number = e.add(e.times(own, m.threads), tid)
        with self._existing(number, points * pieces):
            row, piece = narrow_divmod(e.b, number, pieces, m.blocks * m.threads)
            if not outer:
                piece = number
            self._decode(outer, row, points)
            at = e.times(piece, m.lanes)
            if extent % m.lanes == 0:
                self._at(var, at, m.lanes)
                return
            whole = extent // m.lanes
            if whole:
                with fn.when(e.b.compare("lt", piece, e.i64(whole)).text):
                    known = dict(e.env)
                    self._at(var, at, m.lanes)
                    e.env = known
            with fn.when(e.b.compare("eq", piece, e.i64(whole)).text), fn.range(0, extent % m.lanes) as turn:
                i = e.i64(turn.i) if isinstance(turn.i, int) else Reg(turn.i, T.i64, 0, fn.depth)
                self._at(var, e.add(at, i), 1)

    def _at(self, var: str, at: Reg, lanes: int) -> None:
        e = self.e
        e.frame = Frame(var, 0, [e.add(at, e.i64(k)) for k in range(lanes)])
        e.run(self.nest.body)

    @contextmanager
    def _existing(self, number: Reg, count: int) -> Iterator[None]:
        """Only the threads that have something to do."""
        if count % self.map.threads == 0:
            yield
            return
        with self.fn.when(self.e.b.compare("lt", number, self.e.i64(count)).text):
            yield

    def _columns(self, own: Reg, tid: Reg) -> None:
        """Teams below each other; those past the last column do what the last one does, and write nothing."""
        e, m, nest = self.e, self.map, self.nest
        (var, extent), outer = nest.axes[-1], nest.axes[:-1]
        pieces = extent // m.lanes
        points = nest.points // extent
        rank, column = narrow_divmod(e.b, tid, m.across, m.threads)
        number = e.add(e.times(own, m.across), column)
        first = e.b.compare("eq", rank, e.i64(0))
        mask = None
        if points * pieces % m.across:
            mask = e.b.compare("lt", number, e.i64(points * pieces))
            number = e.b.select(mask, number, e.i64(points * pieces - 1))
        e.team = Columns(m.team, rank, first.text, m.across, column)
        row, piece = narrow_divmod(e.b, number, pieces, points * pieces)
        self._decode(outer, row, points)
        at = e.times(piece, m.lanes)
        e.frame = Frame(var, 0, [e.add(at, e.i64(k)) for k in range(m.lanes)], [mask])
        e.run(nest.body)
