"""The LLVM side of the scalar vocabulary: one builder for scalars and vectors of elements.

Handles are :class:`Reg`. Operations are remembered per scope (so a repeated one costs nothing) and placed in
the outermost scope in which their operands are known.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from math import frexp, inf
from typing import Any

import numpy as np
from weft.codegen import splats, tables
from weft.codegen.llvm import Function, mem_type, reg_type, vec
from weft.codegen.target import Machine, current_target
from weft.ir import types as T
from weft.ir.scalarmath import ScalarMath
from weft.ir.types import DType


class Reg:
    """A value in registers: ``text`` (a name or a literal), dtype, lanes (0 for a scalar), depth of its
    scope.

    ``value`` is the Python value of a constant, else None.
    """

    __slots__ = ("depth", "dtype", "lanes", "text", "value")

    def __init__(self, text: str, dtype: DType, lanes: int, depth: int, value: Any = None) -> None:
        self.text, self.dtype, self.lanes, self.depth, self.value = text, dtype, lanes, depth, value

    def __repr__(self) -> str:
        return f"Reg({self.text}: {self.dtype.name}x{self.lanes})"


_COMPARE_FLOAT = {"eq": "oeq", "ne": "une", "lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge"}
_BITS = {"and", "or", "xor"}
_ROUND = {
    "floor": "floor",
    "ceil": "ceil",
    "trunc": "trunc",
    "rint": "roundeven",
    "sqrt": "sqrt",
    "abs": "fabs",
}


def literal(value: Any, dtype: DType) -> str:
    """A scalar constant as LLVM writes it, in the register type of ``dtype``."""
    if dtype.name == "bool":
        return "true" if value else "false"
    if dtype.is_integer:
        return str(
            int(np.array(int(value)).astype(dtype.np, casting="unsafe"))
            if abs(int(value)) < 1 << 63
            else int(value) & ((1 << dtype.bits) - 1)
        )
    with np.errstate(all="ignore"):
        x = float(np.asarray(value).astype(dtype.np).astype(np.float64))
    return "0x" + struct.pack(">d", x).hex().upper()


def memory_literal(value: Any, dtype: DType) -> str:
    """A scalar constant in the form in which memory holds it."""
    if dtype is T.bool_:
        return str(int(value))
    if dtype.is_floating_point and dtype.bits == 16:
        return str(int(np.asarray(value).astype(dtype.np).view(np.uint16)))
    return literal(value, dtype)


class VectorBuilder(ScalarMath):
    """Emits the base vocabulary into a :class:`Function`; vectors have ``lanes`` elements."""

    def __init__(self, fn: Function, lanes: int, target: Machine | None = None) -> None:
        self.fn, self.lanes = fn, lanes
        self.target: Machine | None = target or current_target()
        self.halves: dict[str, tuple[Reg, Reg]] = {}  # products by a power of two: their factors

    # -- plumbing

    def reg(self, text: str, dtype: DType, lanes: int = 0, depth: int | None = None) -> Reg:
        """A handle for a name emitted by hand."""
        return Reg(text, dtype, lanes, self.fn.depth if depth is None else depth)

    def emit(self, text: str, dtype: DType, lanes: int, depth: int) -> Reg:
        """``text`` as an instruction of that depth, or what the same text gave before."""
        fn = self.fn
        depth = min(depth, fn.depth)
        memo = fn.memos[depth]
        key = (text, dtype.name)
        found = memo.get(key)
        if found is None:
            found = memo[key] = Reg(fn.op(text, depth), dtype, lanes, depth)
        return found

    def intrinsic(self, name: str, result: DType, args: list[Reg], lanes: int, extra: str = "") -> Reg:
        """Call an overloaded intrinsic on operands of equal lanes."""
        t = reg_type(result, lanes)
        text = ", ".join(f"{reg_type(a.dtype, lanes)} {self.text(a, lanes)}" for a in args) + extra
        types = ", ".join(reg_type(a.dtype, lanes) for a in args) + (", i1" if extra else "")
        suffix = (f"v{lanes}" if lanes else "") + _suffix(result)
        self.fn.declares.add(f"declare {t} @{name}.{suffix}({types})")
        return self.emit(f"call {t} @{name}.{suffix}({text})", result, lanes, _depth(args))

    def text(self, x: Reg, lanes: int) -> str:
        """``x`` as an operand of ``lanes`` lanes: a scalar is spread over them."""
        if x.lanes == lanes:
            return x.text
        if x.value is not None:
            return splats.whole_vector(self, x, lanes) or f"splat ({reg_type(x.dtype)} {x.text})"
        return self.splat(x, lanes).text

    def splat(self, x: Reg, lanes: int) -> Reg:
        """A scalar spread over a vector, next to where the scalar was made."""
        t, v = reg_type(x.dtype), reg_type(x.dtype, lanes)
        one = self.emit(f"insertelement {v} poison, {t} {x.text}, i64 0", x.dtype, lanes, x.depth)
        return self.emit(
            f"shufflevector {v} {one.text}, {v} poison, <{lanes} x i32> zeroinitializer",
            x.dtype,
            lanes,
            x.depth,
        )

    def simple(self, instruction: str, result: DType, x: Reg, y: Reg) -> Reg:
        """A two-operand instruction over operands of one dtype."""
        w = x.lanes or y.lanes
        text = f"{instruction} {reg_type(x.dtype, w)} {self.text(x, w)}, {self.text(y, w)}"
        return self.emit(text, result, w, x.depth if x.depth > y.depth else y.depth)

    def cast(self, instruction: str, x: Reg, dtype: DType) -> Reg:
        if x.value is not None and not x.lanes:
            x = Reg(x.text, x.dtype, 0, 0)
        text = f"{instruction} {reg_type(x.dtype, x.lanes)} {x.text} to {reg_type(dtype, x.lanes)}"
        return self.emit(text, dtype, x.lanes, x.depth)

    # -- the vocabulary

    def dtype(self, x: Any) -> DType:
        return x.dtype

    def const(self, value: complex, dtype: DType) -> Reg:
        v = bool(value) if dtype is T.bool_ else value
        return Reg(literal(v, dtype), dtype, 0, 0, v)

    def unary(self, op: str, x: Reg) -> Reg:
        d = x.dtype
        if op == "neg":
            if not d.is_floating_point:
                return self.simple("sub", d, self.const(0, d), x)
            return self.emit(f"fneg {reg_type(d, x.lanes)} {x.text}", d, x.lanes, x.depth)
        if op == "not":
            return self.simple("xor", d, x, self.const(1 if d is T.bool_ else -1, d))
        if not d.is_floating_point:
            return self._int_abs(x) if op == "abs" else x
        return self.intrinsic(f"llvm.{_ROUND[op]}", d, [x], x.lanes)

    def _int_abs(self, x: Reg) -> Reg:
        return self.intrinsic("llvm.abs", x.dtype, [x], x.lanes, ", i1 false") if x.dtype.is_signed else x

    def binary(self, op: str, x: Reg, y: Reg) -> Reg:
        d = x.dtype
        if op in _BITS:
            return self.simple(op, d, x, y)
        if op in ("min", "max", "fmin", "fmax"):
            return self._extremum(op, x, y)
        if op in ("shl", "shr"):
            return self._shift(op, x, y)
        if d.is_floating_point:
            if op == "copysign":
                return self.intrinsic("llvm.copysign", d, [x, y], x.lanes or y.lanes)
            if op == "div":
                return self.divide(x, y)
            return self._scaled_sum(op, x, y) or self.simple("f" + op, d, x, y)
        if op in ("idiv", "irem"):
            return self._integer_division(op, x, y)
        if d is T.bool_:
            return self.simple({"add": "or", "mul": "and", "sub": "xor"}[op], d, x, y)
        return self.simple(op, d, x, y)

    def _scaled_sum(self, op: str, x: Reg, y: Reg) -> Reg | None:
        """c v + z by one fma for a power of two c of at most 1 and a constant z: the product is exact, or so
        small that it does not change the sum, so the result is that of two operations.
        """
        if op == "mul":
            for v, c in ((x, y), (y, x)):
                size = abs(c.value or 0.0)
                if v.value is None and size <= 1 and frexp(size)[0] == 0.5:
                    out = self.simple("fmul", x.dtype, x, y)
                    self.halves[out.text] = v, c
                    return out
        if op not in ("add", "sub"):
            return None
        for scaled, z, left in ((x, y, True), (y, x, False)):
            if scaled.text in self.halves and z.value is not None and 2.0**-100 <= abs(z.value) < inf:
                v, c = self.halves[scaled.text]
                if op == "sub":
                    turned = self.const(-(z if left else c).value, x.dtype)
                    z, c = (turned, c) if left else (z, turned)
                return self.fma(v, c, z)
        return None

    def divide(self, x: Reg, y: Reg) -> Reg:
        """A quotient of floats."""
        if x.lanes * x.dtype.bits == 512 and not y.lanes:
            return self._divide_by_one(x, y)
        return self.simple("fdiv", x.dtype, x, y)

    def _divide_by_one(self, x: Reg, y: Reg) -> Reg:
        """A vector divided by one number for all lanes: by its reciprocal and one correction, which is four
        times as fast as the division and as exact (Markstein 1990) where quotient and remainder are normal
        numbers.
        """
        d = x.dtype
        if (
            y.value is None or abs(y.value) < 2.0**-100
        ):  # a tiny divisor and the dividend are scaled up together
            tiny = self.compare("lt", self.unary("abs", y), self.const(2.0**-100, d))
            up = self.select(tiny, self.const(2.0**100, d), self.const(1.0, d))
            x, y = self.simple("fmul", d, x, up), self.simple("fmul", d, y, up)
        r = self.simple("fdiv", d, self.const(1.0, d), y)
        q = self.simple("fmul", d, x, r)
        rest = self.fma(self.unary("neg", q), y, x)
        better = self.fma(rest, r, q)
        # zero, subnormal, infinite or NaN quotients stay as they are
        name = f"llvm.is.fpclass.v{x.lanes}{_suffix(d)}"
        t = reg_type(d, x.lanes)
        self.fn.declares.add(f"declare <{x.lanes} x i1> @{name}({t}, i32 immarg)")
        odd = self.emit(f"call <{x.lanes} x i1> @{name}({t} {q.text}, i32 759)", T.bool_, x.lanes, q.depth)
        return self.select(odd, q, better)

    def _extremum(self, op: str, x: Reg, y: Reg) -> Reg:
        d = x.dtype
        if d is T.bool_:
            return self.simple("and" if op.endswith("min") else "or", d, x, y)
        if d is T.f32 and op[0] != "f" and self.target is not None and self.target.nan_extrema:
            name = "llvm.maximum" if op == "max" else "llvm.minimum"
            return self.intrinsic(name, d, [x, y], x.lanes or y.lanes)
        picked = self.select(self.compare("lt" if op.endswith("min") else "gt", x, y), x, y)
        if op[0] == "f" or not d.is_floating_point:
            return picked
        # the comparison fails for a NaN, which leaves y: right if y is the NaN; else x is
        return self.select(self.simple("fcmp uno", T.bool_, x, x), x, picked)

    def _shift(self, op: str, x: Reg, y: Reg) -> Reg:
        d, bits = x.dtype, x.dtype.bits
        name = "shl" if op == "shl" else "ashr" if d.is_signed else "lshr"
        if y.value is not None and 0 <= int(y.value) < bits:
            return self.simple(name, d, x, y)
        fits = self.compare("lt", self.bitcast(y, _unsigned(d)), self.const(bits, _unsigned(d)))
        if name == "ashr":
            return self.simple(name, d, x, self.select(fits, y, self.const(bits - 1, d)))
        return self.select(
            fits, self.simple(name, d, x, self.select(fits, y, self.const(0, d))), self.const(0, d)
        )

    def _integer_division(self, op: str, x: Reg, y: Reg) -> Reg:
        d = x.dtype
        name = ("s" if d.is_signed else "u") + op[1:]
        if y.value is not None and int(y.value) not in (0, -1):
            return self.simple(name, d, x, y)
        bad = self.compare("eq", y, self.const(0, d))
        if d.is_signed:
            least = self.compare("eq", x, self.const(-(1 << (d.bits - 1)), d))
            bad = self.simple(
                "or",
                T.bool_,
                bad,
                self.simple("and", T.bool_, least, self.compare("eq", y, self.const(-1, d))),
            )
        return self.select(
            bad, self.const(0, d), self.simple(name, d, x, self.select(bad, self.const(1, d), y))
        )

    def fma(self, x: Reg, y: Reg, z: Reg) -> Reg:
        return self.intrinsic("llvm.fma", x.dtype, [x, y, z], x.lanes or y.lanes or z.lanes)

    def compare(self, op: str, x: Reg, y: Reg) -> Reg:
        d = x.dtype
        if d.is_floating_point:
            return self.simple(f"fcmp {_COMPARE_FLOAT[op]}", T.bool_, x, y)
        sign = "" if op in ("eq", "ne") else "s" if d.is_signed else "u"
        return self.simple(f"icmp {sign}{op}", T.bool_, x, y)

    def select(self, c: Reg, x: Reg, y: Reg) -> Reg:
        if c.value is not None:
            return x if c.value else y
        w = c.lanes or x.lanes or y.lanes
        t = reg_type(x.dtype, w)
        cond = f"{reg_type(T.bool_, c.lanes)} {c.text}"
        return self.emit(
            f"select {cond}, {t} {self.text(x, w)}, {t} {self.text(y, w)}", x.dtype, w, _depth((c, x, y))
        )

    def rare(
        self, condition: Reg, usual: tuple[Reg, ...], slow: Callable[[], tuple[Reg, ...]]
    ) -> tuple[Reg, ...]:
        """A block of its own for ``slow``, entered where the condition holds in any lane."""
        fn, w = self.fn, max(r.lanes for r in (condition, *usual))
        if max(r.depth for r in (condition, *usual)) < fn.depth:  # invariant: it may be hoisted
            return super().rare(condition, usual, slow)
        some = condition.text
        if condition.lanes:
            some = fn.call(f"llvm.vector.reduce.or.v{w}i1", "i1", f"<{w} x i1> {some}")
        kept, before = [self.text(u, w) for u in usual], fn.block
        with fn.when(some):
            merged = [self.select(condition, s, u) for s, u in zip(slow(), usual, strict=True)]
            found, inside = [self.text(m, w) for m in merged], fn.block
        out = []
        for u, k, f in zip(usual, kept, found, strict=True):
            phi = fn.phi(reg_type(u.dtype, w))
            phi.add(k, before)
            phi.add(f, inside)
            out.append(Reg(phi.name, u.dtype, w, fn.depth))
        return tuple(out)

    def table(self, values: tuple[float, ...], index: Reg, dtype: DType) -> Reg:
        bits = [literal(v, dtype) for v in values]
        return tables.lookup(self, bits, Reg(index.text, T.i32, index.lanes, index.depth), dtype)

    def _whole(self, x: Reg) -> bool:
        """True for a vector that fills a register of AVX-512."""
        return self.target is not None and self.target.masked and x.lanes * x.dtype.bits == 512

    def scale2(self, p: Reg, n: Reg) -> Reg:
        if not (self._whole(p) and self._whole(n)):
            return super().scale2(p, n)
        return self._avx512("scalef", p, [p, n])

    def normalise(self, x: Reg) -> tuple[Reg, Reg]:
        if not self._whole(x):
            return super().normalise(x)
        # mantissa in [1, 2), NaN for negative operands
        return self._avx512("getexp", x, [x]), self._avx512("getmant", x, [x], "i32 8")

    def _avx512(self, name: str, like: Reg, args: list[Reg], immediate: str = "") -> Reg:
        """An instruction that llvm has only under a mask, all lanes of it."""
        w, t = like.lanes, reg_type(like.dtype, like.lanes)
        full = f"llvm.x86.avx512.mask.{name}.p{'s' if like.dtype is T.f32 else 'd'}.512"
        given = [f"{t} {a.text}" for a in args] + [immediate] * bool(immediate)
        types = [t] * len(args) + ["i32 immarg"] * bool(immediate)
        self.fn.declares.add(f"declare {t} @{full}({', '.join(types)}, {t}, i{w}, i32 immarg)")
        text = f"call {t} @{full}({', '.join(given)}, {t} poison, i{w} -1, i32 4)"
        return self.emit(text, like.dtype, w, _depth(args))

    def convert(self, x: Reg, dtype: DType) -> Reg:
        d = x.dtype
        if d is dtype:
            return x
        if x.value is not None and not x.lanes and not (dtype.is_integer and d.is_floating_point):
            return self.const(x.value, dtype)
        if dtype is T.bool_:
            return self.compare("ne", x, self.const(0, d))
        if dtype.bits == 16 and dtype.is_floating_point:
            return self._round_to(
                self.convert(x, T.f32) if d.bits != 16 or not d.is_floating_point else x, dtype
            )
        if d.is_floating_point:
            return self._from_float(x, dtype)
        if d is T.bool_:
            return self.select(x, self.const(1, dtype), self.const(0, dtype))
        if dtype.is_floating_point:
            return self.cast("sitofp" if d.is_signed else "uitofp", x, dtype)
        if d.bits == dtype.bits:
            return Reg(x.text, dtype, x.lanes, x.depth)
        return self.cast("trunc" if d.bits > dtype.bits else "sext" if d.is_signed else "zext", x, dtype)

    def _from_float(self, x: Reg, dtype: DType) -> Reg:
        if dtype.is_floating_point:
            if x.dtype is T.f64:
                return self.cast("fptrunc", x, dtype)
            return self.cast("fpext", x, dtype) if dtype is T.f64 else Reg(x.text, dtype, x.lanes, x.depth)
        w = x.lanes
        r, a = reg_type(dtype, w), reg_type(x.dtype, w)
        v = f"v{w}" if w else ""
        name = f"llvm.fpto{'s' if dtype.is_signed else 'u'}i.sat.{v}{_suffix(dtype)}.{v}{_suffix(x.dtype)}"
        self.fn.declares.add(f"declare {r} @{name}({a})")
        return self.emit(f"call {r} @{name}({a} {x.text})", dtype, w, x.depth)

    def _round_to(self, x: Reg, dtype: DType) -> Reg:
        """A float rounded to the precision of a 16-bit dtype, still held as float."""
        if dtype is T.bf16:
            return self._round_to_bf16(x)
        return self.widen(self.narrow(Reg(x.text, dtype, x.lanes, x.depth)), dtype)

    def _round_to_bf16(self, x: Reg) -> Reg:
        """To nearest, ties to even; where no instruction does it as IEEE 754 asks, by integer arithmetic."""
        wide = Reg(x.text, T.f32, x.lanes, x.depth)
        if self.target is not None and self.target.bf16_rounding:
            w, d = x.lanes, x.depth
            short = self.emit(f"fptrunc {reg_type(T.f32, w)} {x.text} to {vec('bfloat', w)}", T.bf16, w, d)
            bits = self.emit(f"bitcast {vec('bfloat', w)} {short.text} to {vec('i16', w)}", T.u16, w, d)
            return self.widen(bits, T.bf16)
        bits = self.bitcast(wide, T.u32)
        odd = self.binary("and", self.binary("shr", bits, self.const(16, T.u32)), self.const(1, T.u32))
        up = self.binary("add", self.binary("add", bits, self.const(0x7FFF, T.u32)), odd)
        quiet = self.binary("or", bits, self.const(0x400000, T.u32))
        kept = self.select(self.simple("fcmp uno", T.bool_, wide, wide), quiet, up)
        out = self.bitcast(self.binary("and", kept, self.const(0xFFFF0000, T.u32)), T.f32)
        return Reg(out.text, T.bf16, out.lanes, out.depth)

    # -- between registers and memory

    def narrow(self, x: Reg) -> Reg:
        """The memory form of a value: i8 for bool, 16 bits for the half types; others unchanged.

        The half types come back with dtype u16 (the bits); a bf16 value is held rounded, so its bits are the
        high ones.
        """
        d, w = x.dtype, x.lanes
        if d is T.bool_:
            return self.cast("zext", x, T.u8)
        if d is T.f16:
            half = self.emit(f"fptrunc {reg_type(d, w)} {x.text} to {mem_type(d, w)}", d, w, x.depth)
            return self.emit(f"bitcast {mem_type(d, w)} {half.text} to {vec('i16', w)}", T.u16, w, x.depth)
        if d is T.bf16:
            bits = self.bitcast(Reg(x.text, T.f32, w, x.depth), T.u32)
            return self.convert(self.binary("shr", bits, self.const(16, T.u32)), T.u16)
        return x

    def widen(self, x: Reg, dtype: DType) -> Reg:
        """The register form of what :meth:`narrow` gave or a load brought."""
        w = x.lanes
        if dtype is T.bool_:
            return self.compare("ne", x, self.const(0, T.u8))
        if dtype is T.f16:
            half = self.emit(f"bitcast {vec('i16', w)} {x.text} to {mem_type(dtype, w)}", dtype, w, x.depth)
            return self.emit(
                f"fpext {mem_type(dtype, w)} {half.text} to {reg_type(dtype, w)}", dtype, w, x.depth
            )
        if dtype is T.bf16:
            high = self.binary("shl", self.convert(x, T.u32), self.const(16, T.u32))
            back = self.bitcast(high, T.f32)
            return Reg(back.text, dtype, back.lanes, back.depth)
        return x

    def bitcast(self, x: Reg, dtype: DType) -> Reg:
        if dtype is x.dtype:
            return x
        if x.dtype.bits == 16 and x.dtype.is_floating_point:
            x = self.narrow(x)
        if dtype.bits == 16 and dtype.is_floating_point:
            return self.widen(x, dtype)
        if reg_type(x.dtype) == reg_type(dtype):
            return Reg(x.text, dtype, x.lanes, x.depth)
        if x.dtype is T.bool_ or dtype is T.bool_:
            return self.convert(x, dtype)
        return self.cast("bitcast", x, dtype)


def memory_form(dtype: DType) -> DType:
    """The dtype whose register type is the memory type of ``dtype`` (see :meth:`VectorBuilder.narrow`)."""
    return T.u8 if dtype is T.bool_ else T.u16 if dtype in (T.f16, T.bf16) else dtype


def _depth(args: Any) -> int:
    return max(a.depth for a in args)


def _suffix(dtype: DType) -> str:
    t = reg_type(dtype)
    return {"float": "f32", "double": "f64"}.get(t, t)


def _unsigned(dtype: DType) -> DType:
    return {1: T.bool_, 8: T.u8, 16: T.u16, 32: T.u32, 64: T.u64}[dtype.bits]
