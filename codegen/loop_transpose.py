"""Loads that stride along the lanes but are contiguous along a loop: blocks transposed in registers.

Gathering one element from each of many rows touches a cache line for each, and where the rows lie a power of
two apart the lines push each other out before their neighbours are read. A block reads whole vectors along
the rows instead, each line once, and turns them (butterflies of two-source shuffles, as in Eklundh, "A fast
computer method for matrix transposing", 1972).
"""

from __future__ import annotations

from typing import Any

from weft.codegen.emit import Reg, memory_form
from weft.codegen.llvm import reg_type
from weft.codegen.loop_memory import PREFETCHED, Frame, MemoryEmitter
from weft.ir import types as T
from weft.ir.loops import Load, Loop, Store, statements

WIDEST = 16  # lanes up to which a block of vectors fits the registers
STRIDED = 8  # elements between lanes from which a load counts as strided


def turned_loads(loop: Loop, lane: str | None) -> list[Load]:
    """The loads of a loop body that a transposed block serves."""
    if lane is None or loop.folds or len(loop.axes) != 1 or any(isinstance(s, Loop) for s in loop.body):
        return []
    var = loop.axes[0][0]
    found = [
        s
        for s in loop.body
        if isinstance(s, Load)
        and s.mask is None
        and s.index.coefficient(var) == 1
        and abs(s.index.coefficient(lane)) >= STRIDED
    ]
    return found if any(isinstance(s, Store) for s in loop.body) else []


def has_turned(body: list[Any], lane: str) -> bool:
    """True where a body along these lanes has a loop with transposed blocks."""
    return any(isinstance(s, Loop) and turned_loads(s, lane) for s in statements(body))


def can_turn(e: MemoryEmitter, loop: Loop, loads: list[Load]) -> bool:
    """True in a frame of one whole vector, where the rows of all loads are known before the loop."""
    f = e.frame
    if not loads or f.lanes not in (2, 4, 8, 16) or f.instances != 1 or f.masks[0] is not None:
        return False
    var = loop.axes[0][0]
    return all(
        name in (var, f.var) or (name in e.env and _scalar(e.env[name]))
        for s in loads
        for name in s.index.names()
    )


def _scalar(regs: list[Reg]) -> bool:
    return len(regs) == 1 and not regs[0].lanes


def emit_turned(e: Any, loop: Loop, loads: list[Load], end: Reg) -> Reg:
    """The whole blocks of a loop up to ``end``, their iterations written out; returns where they end."""
    var, lanes, known = loop.axes[0][0], e.frame.lanes, dict(e.env)
    whole = e.i64(end.value // lanes * lanes) if end.value is not None else _whole(e, end, lanes)
    others = [s for s in loop.body if all(s is not x for x in loads)]
    with e.fn.loop("0", whole.text, lanes) as scope:
        first = Reg(scope.var, T.i64, 0, e.fn.depth)
        blocks = [_block(e, s, var, first) for s in loads]
        for i in range(lanes):
            e.env[var] = [e.add(first, e.i64(i))]
            for s, regs in zip(loads, blocks, strict=True):
                e.env[s.name] = [regs[i]]
            e.run(others)
    e.env = known
    return whole


def _whole(e: MemoryEmitter, end: Reg, lanes: int) -> Reg:
    return e.b.simple("and", T.i64, end, e.i64(-lanes))


def _block(e: MemoryEmitter, s: Load, var: str, first: Reg) -> list[Reg]:
    """For each of the next iterations the vector of a load across the lanes."""
    f, dtype = e.frame, e.types[s.buffer]
    assert f.var is not None
    row = s.index.coefficient(f.var)
    scalar, _ = e.offset(s.index.without(f.var).without(var))
    base = e.add(e.add(scalar, e.times(f.bases[0], row)), first)
    start = e.address(s.buffer, base)
    outer, e.frame = e.frame, Frame(var, f.lanes, [e.i64(0)])
    m = reg_type(memory_form(dtype))
    far = e.buffers[s.buffer].size * dtype.itemsize >= PREFETCHED
    rows = []
    for i in range(f.lanes):
        at = e.fn.op(f"getelementptr {m}, ptr {start.text}, i64 {i * row}") if i else start.text
        if far:
            e.prefetch(at, f.lanes * row * dtype.itemsize)
        rows.append(e.load_vector(at, dtype, None))
    e.frame = outer
    return transpose(e, rows)


def transpose(e: MemoryEmitter, rows: list[Reg]) -> list[Reg]:
    """A square of vectors turned: element j of vector i becomes element i of vector j."""
    w = len(rows)
    t = reg_type(rows[0].dtype, w)
    texts = [r.text for r in rows]
    distance = w // 2
    while distance:
        low = [j if not j & distance else w + j - distance for j in range(w)]
        high = [j + distance if not j & distance else w + j for j in range(w)]
        for i in range(w):
            if not i & distance:
                a, b = texts[i], texts[i + distance]
                texts[i], texts[i + distance] = _pick(e, t, a, b, low), _pick(e, t, a, b, high)
        distance //= 2
    return [Reg(x, rows[0].dtype, w, e.fn.depth) for x in texts]


def _pick(e: MemoryEmitter, t: str, a: str, b: str, order: list[int]) -> str:
    mask = ", ".join(f"i32 {i}" for i in order)
    return e.fn.op(f"shufflevector {t} {a}, {t} {b}, <{len(order)} x i32> <{mask}>")
