"""Kernels of form ``loop``: schedule the region into kernel IR, emit each phase."""

from __future__ import annotations

from collections import Counter
from typing import Any

from weft.codegen.emit import Reg, memory_form, memory_literal
from weft.codegen.kernel import KernelCode, Phase
from weft.codegen.lanes import fence_streams
from weft.codegen.llvm import Function, mem_type
from weft.codegen.loop_body import BodyEmitter
from weft.codegen.loop_loops import fits_groups, lanes_range
from weft.codegen.loop_traffic import (
    further_on,
    inplace_pairs,
    lanes_for,
    nest_cost,
    next_rows,
    operations,
    streamable,
    used_buffers,
)
from weft.codegen.nest_key import nest_key
from weft.codegen.schedule import schedule
from weft.codegen.target import Target
from weft.ir import types as T
from weft.ir.graph import Op
from weft.ir.loops import IDENTITIES, Kernel, Loop, Nest, statements


def emit(op: Op, target: Target, symbol_prefix: str) -> KernelCode:
    """The code of a ``kernel`` op of form ``loop``."""
    name = op.attrs.get("name") or "loop"
    kernel = schedule(op.regions[0], name)
    return emit_loops(kernel, target, symbol_prefix)


def emit_loops(kernel: Kernel, target: Target, symbol_prefix: str) -> KernelCode:
    """LLVM IR of a kernel."""
    functions: list[str] = []
    declares: set[str] = set()
    phases = []
    layout, scratch = _layout(kernel)
    shared = _Shared(kernel)
    for k, nests in enumerate(kernel.phases):
        symbol = f"{symbol_prefix}_{k}"
        bodies = []
        for j, nest in enumerate(nests):
            inner = symbol if len(nests) == 1 else f"{symbol}_{j}"
            names = shared.buffers(nest) if len(nests) > 1 else None
            known = shared.symbol(nest, inner) if names is not None else None
            if known is None:
                place = layout if names is None else local_layout(names)
                for fn in _nest_functions(kernel, nest, target, inner, place, internal=len(nests) > 1):
                    functions.append(fn.text())
                    declares |= fn.declares
            block = [layout[n] for n in [*names, "status"]] if names is not None else []
            bodies.append((known or inner, nest.units, block))
        if len(nests) > 1:
            functions.append(_dispatch(symbol, bodies))
        units = sum(n.units for n in nests)
        total = sum(nest_cost(kernel, n, target) for n in nests)
        phases.append(Phase(symbol, units, total / max(units, 1), units > 1))
    moved = sum(b.size * b.dtype.itemsize for b in kernel.buffers if b.role != "scratch")
    flops = sum(int(operations(n)) for nests in kernel.phases for n in nests)
    return KernelCode(
        kernel.name,
        "".join(functions),
        frozenset(declares),
        tuple(phases),
        scratch,
        str(kernel),
        moved,
        flops,
        inplace_pairs(kernel),
    )


def _layout(kernel: Kernel) -> tuple[dict[str, tuple[int, int]], int]:
    """Where each buffer is found: (slot in bufs, byte offset); and the bytes of scratch."""
    place: dict[str, tuple[int, int]] = {}
    outside = [b for b in kernel.buffers if b.role != "scratch"]
    for i, b in enumerate(outside):
        place[b.name] = (i, 0)
    scratch = 0
    for b in kernel.buffers:
        if b.role == "scratch":
            place[b.name] = (len(outside), scratch)
            scratch += -(-b.size * b.dtype.itemsize // 64) * 64
    place["status"] = (len(outside) + 1, 0)
    return place, scratch


class _Shared:
    """Nests that are the same code on different buffers have one function."""

    def __init__(self, kernel: Kernel) -> None:
        buffers = {b.name: b for b in kernel.buffers}
        nests = [nest for phase in kernel.phases for nest in phase]
        self.keys = {id(n): nest_key(n, buffers) for n in nests} if len(nests) > 1 else {}
        self.counts = Counter(key for key, _ in self.keys.values())
        self.symbols: dict[Any, str] = {}

    def buffers(self, nest: Nest) -> list[str] | None:
        """The buffers of a repeated nest, in the order of its function; None for the others."""
        key, names = self.keys.get(id(nest), (None, []))
        return names if self.counts[key] > 1 else None

    def symbol(self, nest: Nest, symbol: str) -> str | None:
        """The function that an earlier nest of this code has; None for the first, whose it will be."""
        key, _ = self.keys[id(nest)]
        found = self.symbols.setdefault(key, symbol)
        return None if found == symbol else found


def local_layout(names: list[str]) -> dict[str, tuple[int, int]]:
    """Where a shared nest finds its buffers: one after the other in a block of its own, then the status."""
    return {n: (i, 0) for i, n in enumerate([*names, "status"])}


def _dispatch(symbol: str, parts: list[tuple[str, int, list[tuple[int, int]]]]) -> str:
    """A phase of several nests: their units lie one after the other."""
    fn = Function(symbol)
    offset = 0
    longest = max(len(block) for _, _, block in parts)
    local = fn.alloca(8 * longest, 8) if longest else ""
    for inner, units, block in parts:
        stop = offset + units
        lo = fn.op(f"call i64 @llvm.smax.i64(i64 %begin, i64 {offset})")
        hi = fn.op(f"call i64 @llvm.smin.i64(i64 %end, i64 {stop})")
        with fn.when(fn.op(f"icmp slt i64 {lo}, {hi}")):
            a = fn.op(f"sub i64 {lo}, {offset}")
            b = fn.op(f"sub i64 {hi}, {offset}")
            for i, place in enumerate(block):
                at = fn.op(f"getelementptr ptr, ptr {local}, i64 {i}")
                fn.do(f"store ptr {_pointer(fn, *place)}, ptr {at}, align 8")
            given = local if block else "%bufs"
            fn.do(f"call void @{inner}(ptr {given}, i64 {a}, i64 {b}, i64 %thread)")
        offset = stop
    fn.ret()
    return fn.text()


def _nest_functions(
    kernel: Kernel,
    nest: Nest,
    target: Target,
    symbol: str,
    layout: dict[str, tuple[int, int]],
    internal: bool,
) -> list[Function]:
    """The function of a nest; where results are large, another that streams aligned stores."""
    streamed = streamable(kernel, nest, target)
    if not streamed:
        return [_nest_function(kernel, nest, target, symbol, layout, internal, set())]
    plain = _nest_function(kernel, nest, target, f"{symbol}_cached", layout, True, set())
    fast = _nest_function(kernel, nest, target, f"{symbol}_streamed", layout, True, streamed)
    fn = Function(symbol, linkage="internal" if internal else "")
    bits = [fn.op(f"ptrtoint ptr {_pointer(fn, *layout[name])} to i64") for name in sorted(streamed)]
    union = bits[0]
    for b in bits[1:]:
        union = fn.op(f"or i64 {union}, {b}")
    low = fn.op(f"and i64 {union}, {target.vector_bits // 8 - 1}")
    yes, no = fn.new_label("aligned"), fn.new_label("unaligned")
    fn.cond_br(fn.op(f"icmp eq i64 {low}, 0"), yes, no)
    for label, callee in ((yes, fast), (no, plain)):
        fn.label(label)
        fn.do(f"call void @{callee.symbol}(ptr %bufs, i64 %begin, i64 %end, i64 %thread)")
        fn.ret()
    return [plain, fast, fn]


def _nest_function(
    kernel: Kernel,
    nest: Nest,
    target: Target,
    symbol: str,
    layout: dict[str, tuple[int, int]],
    internal: bool,
    streamed: set[str],
) -> Function:
    fn = Function(symbol, linkage="internal" if internal else "")
    buffers = {b.name: b for b in kernel.buffers}
    e = BodyEmitter(fn, target, buffers, lanes_for(kernel, nest, target))
    for name in used_buffers(nest):
        if name in layout:
            e.pointers[name] = _pointer(fn, *layout[name])
    e.status = _pointer(fn, *layout["status"])
    e.streamed = streamed
    loops = [x for x in statements(nest.body) if isinstance(x, Loop)]
    e.extents = dict(axis for axes in [nest.axes, *(x.axes for x in loops)] for axis in axes)
    e.ahead = next_rows(nest, buffers) if nest.kind == "rows" else further_on(nest, buffers)
    (_rows if nest.kind == "rows" else _lanes)(e, nest)
    if streamed:
        fence_streams(fn, target)
    fn.ret()
    return fn


def _pointer(fn: Function, slot: int, offset: int) -> str:
    at = fn.op(f"getelementptr ptr, ptr %bufs, i64 {slot}")
    p = fn.op(f"load ptr, ptr {at}, align 8")
    return fn.op(f"getelementptr i8, ptr {p}, i64 {offset}") if offset else p


def _decode(e: BodyEmitter, axes: list[tuple[str, int]], point: Reg) -> None:
    """Set the variables of the axes from the number of a point."""
    rest = point
    for var, extent in reversed(axes[1:]):
        e.env[var] = [e.b.simple("urem", T.i64, rest, e.i64(extent))]
        rest = e.b.simple("udiv", T.i64, rest, e.i64(extent))
    if axes:
        e.env[axes[0][0]] = [rest]


def _rows(e: BodyEmitter, nest: Nest) -> None:
    fn = e.fn
    if not nest.partials and nest.chunk == 1:
        with fn.loop("%begin", "%end", 1) as scope:
            _decode(e, nest.axes, Reg(scope.var, T.i64, 0, fn.depth))
            e.run(nest.body)
        return
    with fn.loop("%begin", "%end", 1) as units:
        u = Reg(units.var, T.i64, 0, fn.depth)
        e.env["u"] = [u]
        for p in nest.partials:
            _clear(e, p, u)
        first = e.times(u, nest.chunk)
        after = e.add(first, e.i64(nest.chunk))
        last = e.b.select(e.b.compare("lt", after, e.i64(nest.points)), after, e.i64(nest.points))
        with fn.loop(first.text, last.text, 1) as rows:
            _decode(e, nest.axes, Reg(rows.var, T.i64, 0, fn.depth))
            e.run(nest.body)


def _clear(e: BodyEmitter, p: Any, u: Reg) -> None:
    """Start a unit's partial results at the identity."""
    x = memory_literal(IDENTITIES[p.op](p.dtype), p.dtype)
    t, w = mem_type(memory_form(p.dtype)), e.lanes
    base = e.address(p.buffer, e.times(u, p.size)).text
    main = p.size // w * w
    if main:
        with e.fn.loop("0", str(main), w, runs=True) as scope:
            at = e.fn.op(f"getelementptr {t}, ptr {base}, i64 {scope.var}")
            e.fn.do(f"store <{w} x {t}> splat ({t} {x}), ptr {at}, align {p.dtype.itemsize}")
    for i in range(main, p.size):
        at = e.fn.op(f"getelementptr {t}, ptr {base}, i64 {i}")
        e.fn.do(f"store {t} {x}, ptr {at}, align {p.dtype.itemsize}")


def _lanes(e: BodyEmitter, nest: Nest) -> None:
    """Vectors along the last axis; a unit is a piece of it for one point of the other axes."""
    fn = e.fn
    (var, extent), outer = nest.axes[-1], nest.axes[:-1]
    pieces = -(-extent // nest.chunk)
    exact = nest.chunk % (4 * e.lanes) == 0
    if not outer and not (pieces == 1 and fits_groups(e, nest.body, var, extent)):
        start = fn.op(f"mul nuw nsw i64 %begin, {nest.chunk}")
        end = _least(fn, fn.op(f"mul nuw nsw i64 %end, {nest.chunk}"), extent)
        lanes_range(e, nest.body, var, extent, start, end, exact)
        return
    with fn.loop("%begin", "%end", 1) as scope:
        unit = Reg(scope.var, T.i64, 0, fn.depth)
        if pieces == 1:
            _decode(e, outer, unit)
            e.run([Loop([(var, extent)], "vector", nest.body)])
            return
        _decode(e, outer, e.b.simple("udiv", T.i64, unit, e.i64(pieces)))
        piece = e.b.simple("urem", T.i64, unit, e.i64(pieces))
        start = e.times(piece, nest.chunk)
        end = _least(fn, e.add(start, e.i64(nest.chunk)).text, extent)
        lanes_range(e, nest.body, var, extent, start.text, end, exact)


def _least(fn: Function, x: str, bound: int) -> str:
    c = fn.op(f"icmp slt i64 {x}, {bound}")
    return fn.op(f"select i1 {c}, i64 {x}, i64 {bound}")
