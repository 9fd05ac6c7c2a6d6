"""Vectors of elements between memory and registers: loads, stores, gathers, under an optional lane mask.

Registers follow :func:`weft.codegen.llvm.reg_type`: f16 and bf16 are held as float, bool as i1.
"""

from __future__ import annotations

from collections.abc import Sequence

from weft.codegen.blocks import Code, iota
from weft.codegen.llvm import Function, mem_type, reg_type
from weft.codegen.target import Target
from weft.ir.types import DType, bf16, bool_, f16

_SUFFIX = {"float": "f32", "double": "f64", "half": "f16"}


def mangled(ty: str, lanes: int) -> str:
    """The suffix that an intrinsic carries for a vector type, as ``v16f32``."""
    return f"v{lanes}{_SUFFIX.get(ty, ty)}"


def to_register(fn: Code, raw: str, dtype: DType, lanes: int) -> str:
    """A value as loaded from memory, in the form in which registers hold it."""
    mem, reg = mem_type(dtype, lanes), reg_type(dtype, lanes)
    if mem == reg:
        return raw
    if dtype is bool_:
        return fn.op(f"icmp ne {mem} {raw}, zeroinitializer" if lanes else f"icmp ne {mem} {raw}, 0")
    if dtype is f16:
        return fn.op(f"fpext {mem} {raw} to {reg}")
    wide = f"<{lanes} x i32>" if lanes else "i32"
    z = fn.op(f"zext {mem} {raw} to {wide}")
    sixteen = fn.splat("i32", "16", lanes) if lanes else "16"
    return fn.op(f"bitcast {wide} {fn.op(f'shl {wide} {z}, {sixteen}')} to {reg}")


def to_memory(fn: Code, value: str, dtype: DType, lanes: int) -> str:
    """The inverse of :func:`to_register`; f16 and bf16 values are already rounded."""
    mem, reg = mem_type(dtype, lanes), reg_type(dtype, lanes)
    if mem == reg:
        return value
    if dtype is bool_:
        return fn.op(f"zext {reg} {value} to {mem}")
    if dtype is f16:
        return fn.op(f"fptrunc {reg} {value} to {mem}")
    assert dtype is bf16
    wide = f"<{lanes} x i32>" if lanes else "i32"
    bits = fn.op(f"bitcast {reg} {value} to {wide}")
    sixteen = fn.splat("i32", "16", lanes) if lanes else "16"
    return fn.op(f"trunc {wide} {fn.op(f'lshr {wide} {bits}, {sixteen}')} to {mem}")


def load_raw(fn: Code, ptr: str, dtype: DType, lanes: int, mask: str | None = None) -> str:
    """Contiguous elements at ``ptr`` as they lie in memory; masked lanes read as 0."""
    elem, mem = mem_type(dtype), mem_type(dtype, lanes)
    if mask is None or not lanes:
        return fn.load(mem, ptr, dtype.itemsize)
    name = f"llvm.masked.load.{mangled(elem, lanes)}.p0"
    fn.declare(f"declare {mem} @{name}(ptr, <{lanes} x i1>, {mem})")
    return fn.op(
        f"call {mem} @{name}(ptr align {dtype.itemsize} {ptr}, <{lanes} x i1> {mask}, {mem} zeroinitializer)"
    )


def load_lanes(fn: Code, ptr: str, dtype: DType, lanes: int, mask: str | None = None) -> str:
    """Contiguous elements at ``ptr`` in registers."""
    return to_register(fn, load_raw(fn, ptr, dtype, lanes, mask), dtype, lanes)


def stream_lanes(fn: Code, value: str, ptr: str, dtype: DType, lanes: int) -> None:
    """Store a vector past the caches; it is aligned."""
    raw, mem = to_memory(fn, value, dtype, lanes), mem_type(dtype, lanes)
    fn.do(f"store {mem} {raw}, ptr {ptr}, align {lanes * dtype.itemsize}, !nontemporal !{{i32 1}}")


def fence_streams(fn: Function, target: Target) -> None:
    """Order streamed stores before what follows: on x86 the release at the end of a parallel region does
    not."""
    if target.x86:
        fn.declare("declare void @llvm.x86.sse.sfence()")
        fn.do("call void @llvm.x86.sse.sfence()")


def store_lanes(fn: Code, value: str, ptr: str, dtype: DType, lanes: int, mask: str | None = None) -> None:
    """Store a register vector to contiguous memory; masked lanes stay as they are."""
    elem, mem = mem_type(dtype), mem_type(dtype, lanes)
    raw = to_memory(fn, value, dtype, lanes)
    if mask is None or not lanes:
        fn.store(mem, raw, ptr, dtype.itemsize)
        return
    name = f"llvm.masked.store.{mangled(elem, lanes)}.p0"
    fn.declare(f"declare void @{name}({mem}, ptr, <{lanes} x i1>)")
    fn.do(f"call void @{name}({mem} {raw}, ptr align {dtype.itemsize} {ptr}, <{lanes} x i1> {mask})")


def gather_lanes(fn: Code, base: str, index: str, dtype: DType, lanes: int, mask: str | None = None) -> str:
    """Elements number ``index`` (a vector of i64) after ``base`` in registers."""
    elem, mem = mem_type(dtype), mem_type(dtype, lanes)
    ptrs = fn.op(f"getelementptr {elem}, ptr {base}, <{lanes} x i64> {index}")
    name = f"llvm.masked.gather.{mangled(elem, lanes)}.v{lanes}p0"
    fn.declare(f"declare {mem} @{name}(<{lanes} x ptr>, <{lanes} x i1>, {mem})")
    mask = mask or fn.splat("i1", "true", lanes)
    raw = fn.op(
        f"call {mem} @{name}(<{lanes} x ptr> align {dtype.itemsize} {ptrs}, <{lanes} x i1> {mask}, "
        f"{mem} zeroinitializer)"
    )
    return to_register(fn, raw, dtype, lanes)


def tail_mask(fn: Code, count: int | str, lanes: int) -> str:
    """Lanes 0 .. count-1 (an i64; any value)."""
    if count == 1:  # LLVM stores too many bytes for a truncated value under a constant mask of one lane
        count = fn.op('call i64 asm "", "=r,0"(i64 1)')
    if isinstance(count, int):
        return "<" + ", ".join(f"i1 {'true' if i < count else 'false'}" for i in range(lanes)) + ">"
    n = fn.splat("i32", fn.op(f"trunc i64 {count} to i32"), lanes)
    return fn.op(f"icmp slt <{lanes} x i32> {iota('i32', lanes)}, {n}")


def drawn(fn: Code, t: str, lanes: int, parts: Sequence[str], member: int) -> str:
    """Every so manieth element of ``parts`` laid end to end, from number ``member`` on."""
    out = parts[0]
    for number in range(1, len(parts)):
        order: list[str] = []
        for lane in range(lanes):
            part, place = divmod(lane * len(parts) + member, lanes)
            if part == number:
                order.append(str(lanes + place))
            elif part < number:
                order.append(str(place if number == 1 else lane))
            else:
                order.append("poison")
        picked = ", ".join(f"i32 {o}" for o in order)
        out = fn.op(f"shufflevector {t} {out}, {t} {parts[number]}, <{lanes} x i32> <{picked}>")
    return out
