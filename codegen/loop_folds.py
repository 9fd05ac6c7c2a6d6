"""Folds in registers: their state, one step, merging of states, folding over lanes."""

from __future__ import annotations

from typing import Protocol

from weft.codegen.emit import Reg, VectorBuilder
from weft.codegen.llvm import Function, reg_type
from weft.codegen.loop_body import BodyEmitter, combine
from weft.ir import types as T
from weft.ir.loops import IDENTITIES, Fold


class Emitting(Protocol):
    """What folding over lanes needs of an emitter."""

    @property
    def b(self) -> VectorBuilder: ...

    @property
    def fn(self) -> Function: ...


State = list[Reg]  # of one fold in one instance: the value, and the position for argmax and argmin


def start(e: BodyEmitter, fold: Fold, lanes: int) -> State:
    """The identity of a fold, spread over the lanes as a literal."""
    out = [_spread(e.b.const(IDENTITIES[fold.op](fold.dtype), fold.dtype), lanes)]
    return [*out, _spread(e.i64(0), lanes)] if fold.index else out


def _spread(x: Reg, lanes: int) -> Reg:
    return Reg(f"splat ({reg_type(x.dtype)} {x.text})", x.dtype, lanes, 0) if lanes else x


def state_types(fold: Fold, lanes: int) -> list[str]:
    """LLVM types of a state."""
    out = [reg_type(fold.dtype, lanes)]
    return [*out, reg_type(T.i64, lanes)] if fold.index else out


def step(e: BodyEmitter, fold: Fold, state: State, k: int, mask: Reg | None) -> State:
    """Fold instance k of the source into a state; lanes where the mask fails count as the identity."""
    b = e.b
    x = e.pick(e.env[fold.source], k)
    if mask is not None:
        x = b.select(mask, x, b.const(IDENTITIES[fold.op](fold.dtype), fold.dtype))
    if fold.index is None:
        return [combine(b, fold.op, x, state[0])]
    i = e.pick(e.env[fold.index], k)
    better = _better(b, fold.op, x, state[0])
    return [b.select(better, x, state[0]), b.select(better, i, state[1])]


def _better(b: VectorBuilder, op: str, x: Reg, y: Reg) -> Reg:
    """x strictly beats y; NaN beats all but NaN."""
    better = b.compare("gt" if op == "argmax" else "lt", x, y)
    if not x.dtype.is_floating_point:
        return better
    only_x = b.binary("and", b.simple("fcmp uno", T.bool_, x, x), b.simple("fcmp ord", T.bool_, y, y))
    return b.binary("or", better, only_x)


def merge(b: VectorBuilder, fold: Fold, x: State, y: State) -> State:
    """The fold of two states (in order where the order matters)."""
    if fold.index is None:
        return [combine(b, fold.op, y[0], x[0])]
    same = b.compare("eq", x[0], y[0])
    if x[0].dtype.is_floating_point:
        nans = b.binary(
            "and", b.simple("fcmp uno", T.bool_, x[0], x[0]), b.simple("fcmp uno", T.bool_, y[0], y[0])
        )
        same = b.binary("or", same, nans)
    earlier = b.binary("and", same, b.compare("lt", y[1], x[1]))
    take = b.binary("or", _better(b, fold.op, y[0], x[0]), earlier)
    return [b.select(take, y[0], x[0]), b.select(take, y[1], x[1])]


def across(e: Emitting, fold: Fold, state: State) -> State:
    """A vector state folded over its lanes to a scalar one."""
    w = state[0].lanes
    if not w:
        return state
    if fold.op == "sum" and fold.dtype.is_floating_point:
        t, s = reg_type(fold.dtype, w), reg_type(fold.dtype)
        suffix = "f32" if s == "float" else "f64"
        name = f"llvm.vector.reduce.fadd.v{w}{suffix}"
        zero = e.b.const(-0.0, fold.dtype).text
        text = e.fn.call(name, s, f"{s} {zero}, {t} {state[0].text}", flags="reassoc ")
        return [Reg(text, fold.dtype, 0, e.fn.depth)]
    if fold.index is None and not fold.dtype.is_floating_point:
        return [_across_integers(e, fold, state[0])]
    before = state[0]
    extreme = fold.op in ("max", "min") and fold.dtype.is_floating_point
    half = w // 2
    while half:
        order = ", ".join(f"i32 {i + half if i < half else i}" for i in range(w))
        other = []
        for r in state:
            t = reg_type(r.dtype, w)
            name = e.fn.op(f"shufflevector {t} {r.text}, {t} poison, <{w} x i32> <{order}>")
            other.append(Reg(name, r.dtype, w, e.fn.depth))
        state = [e.b.binary("f" + fold.op, state[0], other[0])] if extreme else merge(e.b, fold, state, other)
        half //= 2
    out = []
    for r in state:
        t = reg_type(r.dtype, w)
        out.append(Reg(e.fn.op(f"extractelement {t} {r.text}, i64 0"), r.dtype, 0, e.fn.depth))
    return [_or_nan(e, before, out[0])] if extreme else out


def _across_integers(e: Emitting, fold: Fold, lanes: Reg) -> Reg:
    """By an intrinsic: LLVM 22 loses lanes of a minimum that is written as comparisons of shuffled halves."""
    w, t = lanes.lanes, reg_type(fold.dtype)
    sign = "s" if fold.dtype.is_signed else "u"
    name = {"sum": "add", "prod": "mul", "any": "or", "all": "and"}.get(fold.op, sign + fold.op)
    if fold.dtype is T.bool_:
        name = {"max": "or", "min": "and"}.get(fold.op, name)
    text = e.fn.call(f"llvm.vector.reduce.{name}.v{w}{t}", t, f"{reg_type(fold.dtype, w)} {lanes.text}")
    return Reg(text, fold.dtype, 0, e.fn.depth)


def _or_nan(e: Emitting, lanes: Reg, extreme: Reg) -> Reg:
    """NaN if any lane was NaN, else the extreme that plain comparisons found."""
    w = lanes.lanes
    odd = e.b.simple("fcmp uno", T.bool_, lanes, lanes)
    any_odd = e.fn.call(f"llvm.vector.reduce.or.v{w}i1", "i1", f"<{w} x i1> {odd.text}")
    nan = e.b.const(float("nan"), lanes.dtype)
    return e.b.select(Reg(any_odd, T.bool_, 0, e.fn.depth), nan, extreme)


def publish(e: BodyEmitter, fold: Fold, states: list[State]) -> None:
    """Make the result of a fold known: the value, or the position."""
    e.env[fold.name] = [s[-1] for s in states]
