"""ld, ldu, st."""

from __future__ import annotations

from typing import Any

import numpy as np
from weft.runtime.emulate.access import Site, space_of
from weft.runtime.emulate.convert import widen_to
from weft.runtime.emulate.masks import Mask, active, scatter
from weft.runtime.emulate.program import Decoder, Step, Unknown, instruction, view_of
from weft.runtime.emulate.ptx_ast import SIZES, Address, Imm, Instruction, Operand, Reg, Sym
from weft.runtime.emulate.steps import no_effect

Array = Any
# accesses that order others: no races of their own
_STRONG = ("volatile", "relaxed", "acquire", "release", "mmio")


def _shape(ins: Instruction) -> tuple[str, int]:
    count = next((int(m[1:]) for m in ins.mods if m in ("v2", "v4", "v8")), 1)
    return ins.mods[-1], count


@instruction("ld", "ldu")
def _load(d: Decoder, ins: Instruction) -> Step:
    kind, count = _shape(ins)
    dst, address = ins.operands[:2]
    space = space_of(ins)
    items = d.vector(dst)
    if len(items) != count or kind not in SIZES:
        raise Unknown("this form of ld")
    if space == "param" and isinstance(address, Address) and isinstance(address.base, Sym):
        home, at = d.symbol(address.base)
        if home == "kernel":
            return _parameters(d, items, kind, at + address.offset)
    site = Site(d, ins, address, space, SIZES[kind], count)
    targets = [_target(d, item) for item in items]
    view, strong = view_of(kind), next((m for m in ins.mods if m in _STRONG), None)

    def run(R: Any, m: Any) -> None:
        if strong == "acquire":
            R.chunk.acquire(m)
        parts = site.parts(R, m)
        for where, flat, mask in parts:
            values = site.read(R, where, flat, mask, "strong" if strong else "plain")
            for i, target in enumerate(targets):
                if target is not None:
                    value = values if count == 1 else np.ascontiguousarray(values[:, i])
                    slot, size = target
                    _set(R, mask, slot, widen_to(value.view(view), size))

    return run


def _set(R: Any, mask: Mask | None, slot: int, value: Array) -> None:
    if mask is not None and value.shape[0] == 1:
        R[slot] = np.where(mask.bits, value, R[slot])
    else:
        scatter(R, mask, slot, value)


def _target(d: Decoder, item: Any) -> tuple[int, int] | None:
    if isinstance(item, Sym) and item.name == "_":
        return None
    if not isinstance(item, Reg):
        raise Unknown("a destination must be a register")
    return d.register(item), SIZES[item.type]


def _parameters(d: Decoder, items: tuple[Any, ...], kind: str, at: int) -> Step:
    """Parameters are the same for all threads: registers set before the launch."""
    moves: list[tuple[int, int]] = []
    for i, item in enumerate(items):
        target = _target(d, item)
        if target is None:
            continue
        source = d.new_slot(None)
        d.program.params.append((source, at + i * SIZES[kind], f"{kind}/{target[1]}"))
        moves.append((target[0], source))
    if not moves:
        return no_effect

    def run(R: Any, m: Any) -> None:
        for target, source in moves:
            R[target] = R[source] if m is None else np.where(m.bits, R[source], R[target])

    return run


@instruction("st")
def _store(d: Decoder, ins: Instruction) -> Step:
    kind, count = _shape(ins)
    address, source = ins.operands[:2]
    items = d.vector(source)
    if len(items) != count or kind not in SIZES:
        raise Unknown("this form of st")
    size = SIZES[kind]
    site = Site(d, ins, address, space_of(ins), size, count)
    slots = [_source(d, item, kind) for item in items]
    strong = next((m for m in ins.mods if m in _STRONG), None)
    unsigned = np.dtype(f"u{size}")

    def run(R: Any, m: Any) -> None:
        if strong == "release":
            R.chunk.release(m)
        for where, flat, mask in site.parts(R, m):
            columns = [active(R, mask, R[slot]).astype(unsigned, copy=False) for slot in slots]
            values = columns[0] if count == 1 else np.stack(columns, axis=1)
            site.write(R, where, flat, mask, values, strong is not None)

    return run


def _source(d: Decoder, operand: Operand, kind: str) -> int:
    if isinstance(operand, Imm) and operand.kind == "int":
        return d.constant(operand.value, SIZES[kind])
    return d.loose(operand, kind)
