"""Loads at a small constant distance, as of one member of an array of records: whole vectors, permuted.

A gather takes a micro-operation or more per lane. Instead all vectors that hold the records of the lanes are
loaded, once for all members, and the lanes of a member are drawn together by two-operand permutations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from weft.codegen.emit import Reg, memory_form
from weft.codegen.llvm import reg_type
from weft.ir.loops import Index, Load

if TYPE_CHECKING:
    from weft.codegen.loop_memory import MemoryEmitter

MOST_INTERLEAVED = 4  # members of a record up to which loading all of them is better than a gather


def interleaved(e: MemoryEmitter, s: Load, step: int, k: int) -> Reg | None:
    """Instance k of the load ``s``, whose lanes lie ``step`` elements apart; None where whole records might
    end behind the buffer.
    """
    member = _member(e, s.index, step, e.buffers[s.buffer].size if s.buffer in e.buffers else 0)
    if member is None or s.buffer not in e.constant:
        return None
    f, dtype = e.frame, e.types[s.buffer]
    form = memory_form(dtype)
    first, _ = e.offset(Index(s.index.terms, s.index.const - member), f.var)
    at = e.add(first, e.times(f.bases[k], step))
    t = reg_type(form, f.lanes)
    parts = []
    for i in range(step):
        p = e.address(s.buffer, e.add(at, e.i64(i * f.lanes)))
        parts.append(_load(e, f"load {t}, ptr {p.text}, align {dtype.itemsize}"))
    return e.b.widen(Reg(_draw(e, t, parts, member, step), form, f.lanes, e.fn.depth), dtype)


def _load(e: MemoryEmitter, text: str) -> str:
    """A load from a constant buffer, once for the members of a record in one scope."""
    memo = e.fn.memos[-1]
    if text not in memo:
        memo[text] = e.fn.op(text)
    return memo[text]


def _member(e: MemoryEmitter, index: Index, step: int, size: int) -> int | None:
    """Which member of its record an index names, where all records that the loops reach lie in the buffer."""
    known, last = index.const, 0
    for name, c in index.terms:
        regs = e.env.get(name)
        value = regs[0].value if regs and name != e.frame.var else None
        if value is not None:
            known += c * value
        elif name in e.extents and c > 0:
            last += c * (e.extents[name] - 1)
        else:
            return None
    member = known % step
    return member if known >= 0 and last + known - member + step <= size else None


def _draw(e: MemoryEmitter, t: str, parts: Sequence[str], member: int, step: int) -> str:
    """Lane i is element ``step i + member`` of the parts laid end to end."""
    w = e.frame.lanes
    out, filled = parts[0], [i * step + member if i * step + member < w else -1 for i in range(w)]
    for number, part in enumerate(parts[1:], 1):
        order = []
        for i in range(w):
            source = i * step + member - number * w
            if 0 <= source < w:
                order.append(w + source)
            else:
                order.append((filled[i] if number == 1 else i) if source < 0 else -1)
        mask = ", ".join(f"i32 {o}" if o >= 0 else "i32 poison" for o in order)
        out = e.fn.op(f"shufflevector {t} {out}, {t} {part}, <{w} x i32> <{mask}>")
    return out
