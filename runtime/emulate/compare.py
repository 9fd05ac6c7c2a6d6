"""setp, set, selp, slct."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from weft.runtime.emulate.program import Decoder, Step, Unknown, instruction
from weft.runtime.emulate.ptx_ast import SIZES, Instruction, Not, Operand, Pair, Reg
from weft.runtime.emulate.steps import assign, elementwise

Array = Any
Relation = Callable[[Array, Array], Array]
_ORDERED: dict[str, Relation] = {
    "eq": np.equal,
    "ne": lambda a, b: (a < b) | (a > b),
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
_INTEGER: dict[str, Relation] = {
    **_ORDERED,
    "ne": np.not_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
_BOOL: dict[str, Callable[[Array, Array], Array]] = {
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
}
_FLOATS = ("f32", "f64", "f16", "bf16", "f16x2", "bf16x2")


def relation(name: str, floating: bool) -> Relation:
    """The comparison of a PTX name on arrays. KeyError for an unknown one."""
    if not floating:
        return _INTEGER[name]
    if name == "num":
        return lambda a, b: (a == a) & (b == b)
    if name == "nan":
        return lambda a, b: (a != a) | (b != b)
    if name in _ORDERED:
        return _ORDERED[name]
    inverse = {"equ": "ne", "neu": "eq", "ltu": "ge", "leu": "gt", "gtu": "le", "geu": "lt"}[name]
    base = _ORDERED[inverse]
    return lambda a, b: ~base(a, b)


def _flushed(fn: Relation) -> Relation:
    from weft.runtime.emulate.floating import flush

    return lambda a, b: fn(flush(a), flush(b))


def _parts(ins: Instruction, types: int) -> tuple[Relation, str | None, str]:
    """The relation, the boolean operation, the type compared."""
    kind = ins.mods[-1]
    words = [w for w in ins.mods[: len(ins.mods) - types] if w != "ftz"]
    fn = relation(words[0], kind in _FLOATS)
    return (_flushed(fn) if "ftz" in ins.mods else fn), (words[1] if len(words) > 1 else None), kind


@instruction("setp")
def _setp(d: Decoder, ins: Instruction) -> Step:
    fn, combine, kind = _parts(ins, 1)
    dst, a, b, *rest = ins.operands
    if kind in ("f16x2", "bf16x2"):
        return _setp_pair(d, dst, a, b, fn, kind)
    if not isinstance(dst, Pair) and not rest:
        return elementwise(d, fn, "pred", dst, (a, kind), (b, kind))
    first, second = (dst.first, dst.second) if isinstance(dst, Pair) else (dst, None)
    p = d.dest(first, "pred") if not _ignored(first) else None
    q = d.dest(second, "pred") if second is not None and not _ignored(second) else None
    scratch = Reg("compare.scratch", "pred")
    base = elementwise(d, fn, "pred", scratch, (a, kind), (b, kind))
    at = d.dest(scratch)
    other, invert = _predicate(d, rest[0]) if rest else (None, False)
    join = _BOOL[combine] if combine else None

    def run(R: Any, m: Any) -> None:
        base(R, None)
        value, inverse = R[at], ~R[at]
        if join is not None and other is not None:
            c = ~R[other] if invert else R[other]
            value, inverse = join(value, c), join(inverse, c)
        if p is not None:
            assign(R, m, p, value)
        if q is not None:
            assign(R, m, q, inverse)

    return run


def _ignored(operand: Operand) -> bool:
    return getattr(operand, "name", "") == "_"


def _predicate(d: Decoder, operand: Operand) -> tuple[int, bool]:
    if isinstance(operand, Not):
        return d.register(operand.of, "pred"), True
    return d.slot(operand, "pred"), False


def _setp_pair(d: Decoder, dst: Operand, a: Operand, b: Operand, fn: Relation, kind: str) -> Step:
    from weft.runtime.emulate.half import split

    if not isinstance(dst, Pair):
        raise Unknown("a comparison of pairs with one result")
    p, q = d.dest(dst.first, "pred"), d.dest(dst.second, "pred")
    x, y = d.slot(a, "b32"), d.slot(b, "b32")

    def run(R: Any, m: Any) -> None:
        xl, xh = split(R[x], kind)
        yl, yh = split(R[y], kind)
        low, high = fn(xl, yl), fn(xh, yh)
        assign(R, m, p, low)
        assign(R, m, q, high)

    return run


@instruction("set")
def _set(d: Decoder, ins: Instruction) -> Step:
    fn, combine, kind = _parts(ins, 2)
    result = ins.mods[-2]
    dst, a, b, *rest = ins.operands
    if result in ("f16x2", "bf16x2") or kind in ("f16x2", "bf16x2"):
        raise Unknown("set of pairs")
    scratch = Reg("compare.scratch", "pred")
    base = elementwise(d, fn, "pred", scratch, (a, kind), (b, kind))
    at, target = d.dest(scratch), d.dest(dst, result)
    other, invert = _predicate(d, rest[0]) if rest else (None, False)
    join = _BOOL[combine] if combine else None
    bits = {"f32": 0x3F800000, "f16": 0x3C00, "bf16": 0x3F80}.get(result, (1 << 8 * SIZES[result]) - 1)
    true = np.dtype(f"u{SIZES[result]}").type(bits)

    def run(R: Any, m: Any) -> None:
        base(R, None)
        value = R[at]
        if join is not None and other is not None:
            value = join(value, ~R[other] if invert else R[other])
        assign(R, m, target, np.where(value, true, true.dtype.type(0)))

    return run


@instruction("selp")
def _selp(d: Decoder, ins: Instruction) -> Step:
    kind = f"b{SIZES[ins.mods[-1]] * 8}"
    dst, a, b, c = ins.operands
    target, x, y = d.dest(dst, kind), d.slot(a, ins.mods[-1]), d.slot(b, ins.mods[-1])
    p, negated = _predicate(d, c)
    if negated:
        x, y = y, x

    def run(R: Any, m: Any) -> None:
        value = np.where(R[p], R[x], R[y])
        R[target] = value if m is None else np.where(m.bits, value, R[target])

    return run


@instruction("slct")
def _slct(d: Decoder, ins: Instruction) -> Step:
    """The first where the third is not negative (-0 is not, NaN is)."""
    flushed = "ftz" in ins.mods
    kind, by = f"b{SIZES[ins.mods[-2]] * 8}", ins.mods[-1]
    dst, a, b, c = ins.operands

    def fn(x: Array, y: Array, z: Array) -> Array:
        if flushed:
            from weft.runtime.emulate.floating import flush

            z = flush(z)
        return np.where(z >= 0, x, y)

    return elementwise(d, fn, kind, dst, (a, kind), (b, kind), (c, by))
