"""Scalar rules in the instructions of a GPU: exponentials, quotients and tables as its units do them best."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from weft.codegen.emit import Reg, VectorBuilder, literal
from weft.codegen.llvm import reg_type
from weft.ir import math_exponential
from weft.ir.math_tables import LOG2E_PARTS, family_of
from weft.ir.scalarexpr import Num
from weft.ir.types import DType, f32, i32, u64

_SHIFTED = 1.5 * 2.0**23 + 127  # adding it rounds, and leaves the exponent in the low bits
_LEAST, _MOST = -126, 127  # exponents of normal numbers


class DeviceBuilder(VectorBuilder):
    """Emits rules for one element of a thread, or for some next to one another."""

    def each(self, rule: Callable[[Reg], Reg], x: Reg) -> Reg:
        """A rule that gives f32 of one element, for all of them."""
        if not x.lanes:
            return rule(x)
        out, v = "poison", reg_type(x.dtype, x.lanes)
        for i in range(x.lanes):
            one = self.emit(f"extractelement {v} {x.text}, i32 {i}", x.dtype, 0, x.depth)
            put = f"insertelement <{x.lanes} x float> {out}, float {rule(one).text}, i32 {i}"
            out = self.emit(put, f32, x.lanes, x.depth).text
        return Reg(out, f32, x.lanes, x.depth)

    def unit(self, name: str, x: Reg) -> Reg:
        """A function of f32 that a unit of the hardware approximates."""
        self.fn.declares.add(f"declare float @{name}(float)")
        return self.each(lambda one: self.emit(f"call float @{name}(float {one.text})", f32, 0, one.depth), x)

    # -- exponentials

    def exp(self, x: Reg) -> Reg:
        if x.dtype is not f32:
            return math_exponential.exp(Num(self, x)).h
        high, low = LOG2E_PARTS
        return self._power(Num(self, x), high, low)

    def exp2(self, x: Reg) -> Reg:
        n = Num(self, x)
        return self._power(n, 1.0, 0.0) if x.dtype is f32 else math_exponential.exp2(n).h

    def _power(self, x: Num, high: float, low: float) -> Reg:
        """2^(x (high + low)) by the unit for powers of two, to 2 ULP.

        The exponent of what the unit does not take is one of a normal number, so that its product with what
        the unit gives is rounded once, to a subnormal number, too, or overflows where it should.
        """
        shifted = x.fma(high, _SHIFTED).at_least(_SHIFTED + _LEAST).at_most(_SHIFTED + _MOST)
        n = shifted - _SHIFTED
        rest = x.fma(high, -n)
        if low:
            rest = x.fma(low, rest)
        power = Num(self, self.unit("llvm.nvvm.ex2.approx.ftz.f", rest.h))
        return (power * (shifted.bits() << 23).as_float()).h

    # -- quotients

    def divide(self, x: Reg, y: Reg) -> Reg:
        """A quotient of f32 by an approximate reciprocal and two corrections (Markstein 1990), which leave
        the nearest number, or one within 2 ULP where dividend or quotient are next to the smallest: without
        the branch of ``div.rn``, and with what depends on the divisor shared by all that it divides.
        """
        if x.dtype is not f32:
            return super().divide(x, y)
        top, bottom = Num(self, x), Num(self, y)
        if y.value is not None and 2.0**-100 < abs(y.value) < 2.0**100:
            r = bottom.const(1 / float(y.value))
        else:  # reciprocals of the smallest and the largest numbers are no normal numbers
            scale = Num(self, self._scale_of(abs(bottom)))
            top, bottom = top * scale, bottom * scale
            r = Num(self, self.unit("llvm.nvvm.rcp.approx.ftz.f", bottom.h))
        first = top * r
        q = first
        for _ in range(2):
            q = (-q).fma(bottom, top).fma(r, q)
        # what is infinite, or divided by infinity or 0, is corrected to NaN, and a zero loses its sign
        return self.select(self.compare("eq", q.h, q.h), q.copysign(first).h, first.h)

    def _scale_of(self, size: Num) -> Reg:
        """A power of two that brings the size of a divisor next to 1."""
        far = self.select(size.gt(2.0**100).h, self.const(2.0**-100, f32), self.const(1.0, f32))
        return self.select(size.lt(2.0**-100).h, self.const(2.0**100, f32), far)

    # -- tables

    def table(self, values: tuple[float, ...], index: Any, dtype: DType) -> Reg:
        """A line of global memory: a warp reads one line of the first cache, whatever its threads ask for.
        Tables that are looked up at one index lie in one array, so that their addresses are one."""
        rows = family_of(values)
        data = ", ".join(f"float {literal(v, f32)}" for r in rows for v in r)
        name = "@weft_table_" + hashlib.sha256(data.encode()).hexdigest()[:16]
        array = f"[{16 * len(rows)} x float] [{data}]"
        self.fn.declares.add(f"{name} = internal addrspace(1) constant {array}, align 64")
        low = self.binary("and", Reg(index.text, i32, index.lanes, index.depth), self.const(15, i32))
        row = 64 * rows.index(values)

        def read(i: Reg) -> Reg:
            first = f"getelementptr float, ptr addrspace(1) {name}, i32 {i.text}"
            p = self.emit(first, u64, 0, i.depth)
            p = self.emit(f"getelementptr i8, ptr addrspace(1) {p.text}, i32 {row}", u64, 0, i.depth)
            load = f"load float, ptr addrspace(1) {p.text}, align 4, !invariant.load !{{}}"
            return self.emit(load, f32, 0, i.depth)

        return self.each(read, low)
