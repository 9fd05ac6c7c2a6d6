"""What a nest asks of the machine: lanes, streams, fetching ahead, time, memory it may share."""

from __future__ import annotations

from typing import Any

from weft.codegen.loop_memory import PREFETCHED
from weft.codegen.loop_transpose import WIDEST, has_turned
from weft.codegen.target import Target
from weft.ir.loops import Accumulate, Buffer, Compute, Kernel, Load, Loop, Nest, Store, statements
from weft.ir.scalarcost import cost_by_name

AHEAD_BYTES = 6144  # past the end of a page, where the streams of the processor stop
DOWN_ROWS = 32  # rows of a column that are asked for ahead
STREAM_BYTES = 16 << 20  # a result of this size will not be found in a cache again


def used_buffers(nest: Nest) -> list[str]:
    """Names of buffers that a nest touches, in order of first use."""
    seen: dict[str, None] = {p.buffer: None for p in nest.partials}
    for s in statements(nest.body):
        if isinstance(s, (Load, Store, Accumulate)):
            seen.setdefault(s.buffer)
    return list(seen)


def lanes_for(kernel: Kernel, nest: Nest, target: Target) -> int:
    """Lanes of the vectors of a nest, by the narrowest type of 32 or 64 bits in its work."""
    sizes: list[int] = []
    types = {b.name: b.dtype for b in kernel.buffers}
    for s in statements(nest.body):
        if isinstance(s, Compute):
            sizes.append(32 if s.dtype.is_floating_point and s.dtype.bits == 16 else s.dtype.bits)
        elif isinstance(s, (Load, Store)) and s.buffer in types:
            d = types[s.buffer]
            sizes.append(32 if d.is_floating_point and d.bits == 16 else max(8, d.bits))
    floats = [b for b in sizes if b >= 32]
    bits = min(floats) if floats else max(sizes, default=32)
    lanes = target.lanes(max(bits, 8))
    turned = nest.kind == "lanes" and nest.axes and has_turned(nest.body, nest.axes[-1][0])
    return min(lanes, WIDEST) if turned else lanes


def streamable(kernel: Kernel, nest: Nest, target: Target) -> set[str]:
    """Large results whose vector stores are aligned if the result is: they can bypass the caches."""
    large = {
        b.name
        for b in kernel.buffers
        if b.role == "out" and b.size * b.dtype.itemsize >= STREAM_BYTES and b.dtype.itemsize >= 4
    }
    lanes = lanes_for(kernel, nest, target)
    for s in statements(nest.body):
        if isinstance(s, Load):
            large.discard(s.buffer)
        elif isinstance(s, Store) and s.buffer in large:
            steps = sorted(abs(c) for _, c in s.index.terms)
            whole = all(c == 1 or c % lanes == 0 for c in steps) and steps[:1] == [1] and steps.count(1) == 1
            if (
                not whole
                or s.index.const % lanes
                or kernel_itemsize(kernel, s.buffer) * lanes * 8 % target.vector_bits
            ):
                large.discard(s.buffer)
    return large


def kernel_itemsize(kernel: Kernel, buffer: str) -> int:
    return next(b.dtype.itemsize for b in kernel.buffers if b.name == buffer)


def next_rows(nest: Nest, buffers: dict[str, Buffer]) -> dict[int, int]:
    """Loads that walk a row for the second time: memory has nothing to do then but to fetch the next row."""
    out: dict[int, int] = {}
    if not nest.axes:
        return out
    row = nest.axes[-1][0]
    seen: set[Any] = set()
    for number, loop in enumerate(s for s in nest.body if isinstance(s, Loop) and s.kind == "vector"):
        here = [s for s in loop.body if isinstance(s, Load) and s.buffer in buffers]
        for s in here:
            b = buffers[s.buffer]
            if b.role == "in" and b.size * b.dtype.itemsize >= PREFETCHED and (s.buffer, s.index) in seen:
                step = s.index.coefficient(row)
                if step and s.mask is None and (s.buffer, "done") not in seen:
                    out[id(s)] = step
        if number:
            seen.update((s.buffer, "done") for s in here if id(s) in out)
        seen.update((s.buffer, s.index) for s in here)
    return out


def further_on(nest: Nest, buffers: dict[str, Buffer]) -> dict[int, int]:
    """Loads of large operands along the lanes. Long arithmetic fills the processor's window, so that it sees
    the next loads too late to hide their misses: they are asked for ahead. So are the next rows of columns,
    which no stream of the processor follows from page to page.
    """
    lane = nest.axes[-1][0]
    out: dict[int, int] = {}
    for s in nest.body:
        if isinstance(s, Load) and _large(s, buffers) and s.index.coefficient(lane) == 1:
            out[id(s)] = AHEAD_BYTES // buffers[s.buffer].dtype.itemsize
        elif isinstance(s, Loop) and s.kind == "serial":
            out |= _down(s, lane, buffers)
    return out


def _large(s: Load, buffers: dict[str, Buffer]) -> bool:
    b = buffers.get(s.buffer)
    return b is not None and b.role == "in" and b.size * b.dtype.itemsize >= PREFETCHED


def _down(loop: Loop, lane: str, buffers: dict[str, Buffer]) -> dict[int, int]:
    """Loads of a walk down columns: the elements to a row some way further down."""
    var, extent = loop.axes[-1]
    loads = [s for s in loop.body if isinstance(s, Load) and _large(s, buffers)]
    return {
        id(s): DOWN_ROWS * s.index.coefficient(var)
        for s in loads
        if s.index.coefficient(lane) == 1 and extent > DOWN_ROWS and s.index.coefficient(var) > 0
    }


def operations(nest: Nest) -> float:
    """Simple element operations of a nest."""
    return nest.points * _body_cost(nest.body)


def _body_cost(body: list[Any]) -> float:
    total = 0.0
    for s in body:
        if isinstance(s, Loop):
            n = 1
            for _, extent in s.axes:
                n *= extent
            total += n * (_body_cost(s.body) + len(s.folds))
        elif isinstance(s, Compute):
            total += cost_by_name(s.prim)
        elif isinstance(s, (Load, Store)):
            total += 0.5
    return total


def nest_cost(kernel: Kernel, nest: Nest, target: Target) -> float:
    """Estimated nanoseconds of a nest on one core: the larger of arithmetic, and of moving each buffer once
    from where all of them fit.
    """
    sizes: dict[str, Buffer] = {b.name: b for b in kernel.buffers}
    moved = sum(sizes[n].size * sizes[n].dtype.itemsize for n in used_buffers(nest) if n in sizes)
    bits = target.vector_bits // lanes_for(kernel, nest, target)
    return max(operations(nest) / target.operations_per_ns(bits), moved / target.bytes_per_ns(moved))


def inplace_pairs(kernel: Kernel) -> frozenset[tuple[int, int]]:
    """Operands that a result may overwrite: read only at the index that is stored, in one nest, not later."""
    reads: dict[str, list[tuple[int, Any, int]]] = {}
    writes: dict[str, list[tuple[int, Any, int]]] = {}
    order = 0
    for n, nest in enumerate(x for phase in kernel.phases for x in phase):
        simple = not any(isinstance(s, Loop) for s in nest.body)
        for s in statements(nest.body):
            order += 1
            if isinstance(s, Load):
                reads.setdefault(s.buffer, []).append((n, s.index, order))
            elif isinstance(s, Store):
                writes.setdefault(s.buffer, []).append((n, s.index, order if simple else -1))
    operands = [b for b in kernel.buffers if b.role == "in"]
    results = [b for b in kernel.buffers if b.role == "out"]
    pairs = set()
    for i, x in enumerate(operands):
        for j, y in enumerate(results):
            if x.size != y.size or x.dtype.itemsize != y.dtype.itemsize or len(writes.get(y.name, ())) != 1:
                continue
            n, index, when = writes[y.name][0]
            if all(m == n and at == index and o < when for m, at, o in reads.get(x.name, [(n, index, 0)])):
                pairs.add((i, j))
    return frozenset(pairs)
