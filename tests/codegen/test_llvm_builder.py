"""The LLVM text builder, the vocabulary on it, and targets."""

from __future__ import annotations

import llvmlite.binding as llvm
import numpy as np
import pytest
from weft.codegen.emit import Reg, VectorBuilder, literal, memory_literal
from weft.codegen.kernel import Unsupported, emitter_of
from weft.codegen.llvm import Function, module_text
from weft.codegen.target import host_target, named_target
from weft.ir.types import bf16, bool_, f16, f32, f64, i8, i32, u64


def verified(fn: Function) -> str:
    """The function's text, after LLVM has accepted it."""
    text = fn.text()
    llvm.parse_assembly(module_text(host_target(), [text], fn.declares)).verify()
    return text


def test_a_loop_carries_values():
    fn = Function("f", "i64 %n", "i64")
    with fn.loop("0", "%n", 2, [("i64", "1")]) as loop:
        loop.update(loop.phis[0].name, fn.op(f"add i64 {loop.phis[0].name}, {loop.var}"))
    fn.ret(f"i64 {loop.results[0]}")
    text = verified(fn)
    assert text.count("= phi i64") == 3


def test_invariant_code_goes_before_the_loop():
    fn = Function("f", "i64 %n, float %x")
    b = VectorBuilder(fn, 8)
    x = Reg("%x", f32, 0, 0)
    with fn.loop("0", "%n", 1):
        first = b.unary("sqrt", x)
        assert b.unary("sqrt", x) is first
        wide = b.splat(first, 8)
        assert (first.depth, wide.depth, wide.lanes) == (0, 0, 8)
    fn.ret()
    text = verified(fn)
    assert text.count("call float @llvm.sqrt.f32") == 1
    assert text.index("sqrt") < text.index("loop1:")


def test_what_a_branch_defines_is_forgotten_after_it():
    fn = Function("f", "i1 %c, float %x")
    b = VectorBuilder(fn, 8)
    x = Reg("%x", f32, 0, 0)
    with fn.when("%c"):
        inside = b.unary("neg", x)
    assert b.unary("neg", x) is not inside
    fn.ret()
    assert verified(fn).count("fneg") == 2


@pytest.mark.parametrize(
    ("value", "dtype", "text"),
    [
        (1.0, f32, "0x3FF0000000000000"),
        (0.1, f32, "0x3FB99999A0000000"),
        (float("nan"), f64, "0x7FF8000000000000"),
        (-3, i32, "-3"),
        (300, i8, "44"),
        (2**64 - 1, u64, "18446744073709551615"),
        (True, bool_, "true"),
    ],
)
def test_literals(value, dtype, text):
    with np.errstate(all="ignore"):
        assert literal(value, dtype) == text


def test_literals_in_memory():
    assert memory_literal(1.0, bf16) == str(0x3F80)
    assert memory_literal(1.0, f16) == str(0x3C00)
    assert memory_literal(True, bool_) == "1"


def test_named_targets():
    haswell = named_target("haswell")
    assert (haswell.vector_bits, haswell.registers, haswell.masked, haswell.lanes(32)) == (256, 16, False, 8)
    assert named_target("skylake-avx512").lanes(64) == 8
    with pytest.raises(KeyError):
        named_target("z80")


def test_the_host_is_a_target_of_its_own():
    host = host_target()
    assert host is host_target()
    assert host.vector_bits in (128, 256, 512)
    assert host.cpu in host.attributes


def test_unknown_forms_are_unsupported():
    with pytest.raises(Unsupported, match="form 'poem'"):
        emitter_of("poem")


def test_what_was_emitted_apart_and_dropped_leaves_no_names_behind():
    fn = Function("f", "ptr %p")
    with fn.apart():
        same = fn.op("add i64 1, 2", at=0)  # does not change in the loop: it stays
        with fn.when("true"):
            fn.op("add i64 3, 4")
    assert fn.block == "entry" and len(fn.memos) == 1
    fn.op(f"add i64 {same}, 1")
    fn.ret()
    llvm.parse_assembly(fn.text().replace("#0 ", "")).verify()
