"""Exchanges within warps: shfl, vote, match, redux, activemask, elect, bar.warp.sync."""

from __future__ import annotations

from typing import Any

import numpy as np
from weft.runtime.emulate.masks import WARP, Mask, full
from weft.runtime.emulate.memory import Fault
from weft.runtime.emulate.program import Decoder, Step, Unknown, instruction
from weft.runtime.emulate.ptx_ast import Instruction, Not, Operand, Pair
from weft.runtime.emulate.steps import assign

Array = Any
_BITS = np.uint32(1) << np.arange(WARP, dtype=np.uint32)
_ALL = np.uint32(0xFFFFFFFF)


def members(R: Any, m: Mask | None, slot: int) -> None:
    """Check a mask of participants: the thread itself is one, and all that live and are named take part."""
    named = R[slot]
    chunk = R.chunk
    if m is None and named.shape[0] == 1 and named[0] == _ALL:
        return
    bits = chunk.live if m is None else m.bits
    wanted = full(R, named)
    running = _packed(bits)
    live = _packed(chunk.live)
    absent = (wanted & live & ~running) != 0
    lane_bit = np.tile(_BITS, chunk.warps)
    bad = bits & (absent | ((wanted & lane_bit) == 0))
    if bad.any():
        lane = int(np.argmax(bad))
        raise Fault("a warp-wide instruction that threads named in its mask do not execute", lane)


def _packed(bits: Array) -> Array:
    """For each thread the bits of its warp, as a number."""
    words = np.packbits(bits, bitorder="little").view("<u4")
    return np.repeat(words, WARP)


@instruction("shfl")
def _shfl(d: Decoder, ins: Instruction) -> Step:
    if "sync" not in ins.mods:
        raise Unknown("shfl without sync")
    mode = next(m for m in ins.mods if m in ("up", "down", "bfly", "idx"))
    dst, a, b, c, *who = ins.operands
    value, predicate = (dst.first, dst.second) if isinstance(dst, Pair) else (dst, None)
    target = d.dest(value, "b32")
    flag = d.dest(predicate, "pred") if predicate is not None else None
    source, lane, clamp, named = d.slot(a, "b32"), d.slot(b, "b32"), d.slot(c, "b32"), d.slot(who[0], "b32")

    def run(R: Any, m: Any) -> None:
        members(R, m, named)
        R.chunk.passed_warp_barrier(m)
        everyone = R.chunk.everyone
        self_lane = everyone % WARP
        valid, other = _source_lane(mode, self_lane, R[lane].astype(np.int64), R[clamp].astype(np.int64))
        other = np.where(valid, other, self_lane)
        _check_sources(R, m, named, everyone - self_lane + other, ins)
        assign(R, m, target, full(R, R[source])[everyone - self_lane + other])
        if flag is not None:
            assign(R, m, flag, np.broadcast_to(valid, everyone.shape))

    return run


def _check_sources(R: Any, m: Mask | None, named: int, sources: Array, ins: Instruction) -> None:
    """What a thread that takes no part would give is undefined."""
    chunk = R.chunk
    if m is None and chunk.live.all() and R[named].shape[0] == 1 and R[named][0] == _ALL:
        return
    bits = chunk.live if m is None else m.bits
    undefined = bits & ~(bits & _named_bits(R, named))[sources]
    if undefined.any():
        thread = chunk.thread(int(np.argmax(undefined)))
        text = "a value of a thread that takes no part"
        chunk.launch.find("undefined", ins, text, thread, int(np.count_nonzero(undefined)))


def _source_lane(mode: str, lane: Array, b: Array, c: Array) -> tuple[Array, Array]:
    b = b & 31
    clamp, segment = c & 31, (c >> 8) & 31
    highest = (lane & segment) | (clamp & ~segment & 31)
    lowest = lane & segment
    if mode == "up":
        other = lane - b
        return other >= highest, other
    if mode == "down":
        other = lane + b
    elif mode == "bfly":
        other = lane ^ b
    else:
        other = lowest | (b & ~segment & 31)
    return other <= highest, other


def _predicate(d: Decoder, operand: Operand) -> tuple[int, bool]:
    if isinstance(operand, Not):
        return d.register(operand.of, "pred"), True
    return d.slot(operand, "pred"), False


@instruction("vote")
def _vote(d: Decoder, ins: Instruction) -> Step:
    mode = next(m for m in ins.mods if m in ("all", "any", "uni", "ballot"))
    dst, a, *who = ins.operands
    if not who:
        raise Unknown("vote without sync")
    target = d.dest(dst, "b32" if mode == "ballot" else "pred")
    (slot, negated), named = _predicate(d, a), d.slot(who[0], "b32")

    def run(R: Any, m: Any) -> None:
        members(R, m, named)
        R.chunk.passed_warp_barrier(m)
        bits = full(R, R[slot])
        voting = (R.chunk.live if m is None else m.bits) & _named_bits(R, named)
        holds = _packed(voting & (~bits if negated else bits))
        fails = _packed(voting & (bits if negated else ~bits))
        value = {"ballot": holds, "any": holds != 0, "all": fails == 0}.get(mode, (holds == 0) | (fails == 0))
        assign(R, m, target, value)

    return run


def _named_bits(R: Any, slot: int) -> Array:
    return (full(R, R[slot]) & np.tile(_BITS, R.chunk.warps)) != 0


@instruction("activemask")
def _activemask(d: Decoder, ins: Instruction) -> Step:
    target = d.dest(ins.operands[0], "b32")
    return lambda R, m: assign(R, m, target, _packed(R.chunk.live if m is None else m.bits))


@instruction("elect")
def _elect(d: Decoder, ins: Instruction) -> Step:
    """The first of the named threads is the leader."""
    dst, who = ins.operands
    if not isinstance(dst, Pair):
        raise Unknown("elect with one result")
    named, flag = d.slot(who, "b32"), d.dest(dst.second, "pred")
    target = d.dest(dst.first) if getattr(dst.first, "name", "_") != "_" else None

    def run(R: Any, m: Any) -> None:
        members(R, m, named)
        running = _packed(R.chunk.live if m is None else m.bits) & full(R, R[named])
        lowest = running & (~running + np.uint32(1))
        leader = np.bitwise_count(lowest - np.uint32(1)).astype(np.uint32)
        assign(R, m, flag, leader == R.chunk.everyone % WARP)
        if target is not None:
            assign(R, m, target, leader)

    return run


_REDUCTIONS: dict[str, Any] = {
    "add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}  # fmt: skip


@instruction("redux")
def _redux(d: Decoder, ins: Instruction) -> Step:
    operation = next(m for m in ins.mods if m in _REDUCTIONS)
    dst, a, who = ins.operands
    kind = ins.mods[-1]
    if kind == "f32":
        raise Unknown("redux of f32")
    view = np.dtype(np.int32 if kind == "s32" else np.uint32)
    target, slot, named = d.dest(dst, "b32"), d.slot(a, "b32"), d.slot(who, "b32")
    fn = _REDUCTIONS[operation]
    info = np.iinfo(view)
    neutral = {"min": info.max, "max": info.min, "and": -1 if kind == "s32" else info.max}.get(operation, 0)

    def run(R: Any, m: Any) -> None:
        members(R, m, named)
        R.chunk.passed_warp_barrier(m)
        bits = (R.chunk.live if m is None else m.bits) & _named_bits(R, named)
        values = np.where(bits, full(R, R[slot]).view(view), view.type(neutral)).reshape(-1, WARP)
        total = fn.reduce(values, axis=1, dtype=view)
        assign(R, m, target, np.repeat(total, WARP).view(np.uint32))

    return run


@instruction("match")
def _match(d: Decoder, ins: Instruction) -> Step:
    every = "all" in ins.mods
    dst, a, who = ins.operands
    value, predicate = (dst.first, dst.second) if isinstance(dst, Pair) else (dst, None)
    target, kind = d.dest(value, "b32"), ins.mods[-1]
    flag = d.dest(predicate, "pred") if predicate is not None else None
    slot, named = d.slot(a, kind), d.slot(who, "b32")

    def run(R: Any, m: Any) -> None:
        members(R, m, named)
        R.chunk.passed_warp_barrier(m)
        bits = (R.chunk.live if m is None else m.bits) & _named_bits(R, named)
        values = full(R, R[slot]).reshape(-1, WARP)
        there = bits.reshape(-1, WARP)
        same = (values[:, :, None] == values[:, None, :]) & there[:, None, :]
        found = (same * _BITS).sum(axis=2, dtype=np.uint32).reshape(-1)
        if every:
            agree = found == _packed(bits)
            found = np.where(agree, found, np.uint32(0))
            if flag is not None:
                assign(R, m, flag, agree)
        assign(R, m, target, found)

    return run


@instruction("bar", "barrier")
def _warp_barrier(d: Decoder, ins: Instruction) -> Step:
    """bar.warp.sync; barriers of blocks end a block of code and never come here."""
    if "warp" not in ins.mods:
        raise Unknown("this form of barrier")
    named = d.slot(ins.operands[0], "b32")

    def run(R: Any, m: Any) -> None:
        members(R, m, named)
        R.chunk.passed_warp_barrier(m)

    return run
