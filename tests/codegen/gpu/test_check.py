"""What NVPTX lacks is refused before LLVM sees it, which would end the process."""

from __future__ import annotations

import pytest
from weft.codegen.gpu.check import refusals
from weft.codegen.gpu.target import gpu_target
from weft.ir.errors import CompilerError
from weft.runtime.cuda.ptx import compile_ptx

SM80, SM75 = gpu_target("sm_80"), gpu_target("sm_75")


def module(declare: str, body: str) -> str:
    function = f"define ptx_kernel void @k(ptr %a) {{\n{body}\n ret void\n}}\n"
    return f'target triple = "nvptx64-nvidia-cuda"\n{declare}\n{function}'


@pytest.mark.parametrize("name", ["exp", "log", "pow", "sin", "cos", "exp2", "log2", "tan", "powi", "ldexp"])
def test_functions_without_an_instruction_are_refused(name):
    text = module(f"declare float @llvm.{name}.f32(float)", f" %v = call float @llvm.{name}.f32(float 1.0)")
    assert refusals(text, SM80) == [f"no instruction for @llvm.{name}.f32"]
    with pytest.raises(CompilerError, match="no instruction"):
        compile_ptx(text, SM80)


def test_calls_of_libraries_and_remainders_are_refused():
    assert refusals(module("declare float @expf(float)", ""), SM80)
    assert refusals(module("", " %v = frem float 1.0, 2.0"), SM80) == ["no instruction for frem"]


def test_what_only_newer_architectures_have():
    text = module(
        "declare float @llvm.maximum.f32(float, float)",
        " %v = call float @llvm.maximum.f32(float 1.0, float 2.0)",
    )
    assert not refusals(text, SM80)
    assert refusals(text, SM75)


def test_malformed_text_is_an_error_of_the_compiler():
    with pytest.raises(CompilerError, match="does not take"):
        compile_ptx(module("", " %v = add i32 1, 2.0"), SM80)


def test_functions_of_the_module_may_be_called():
    text = module("define internal void @f() {\n ret void\n}\n", " call void @f()")
    assert refusals(text, SM80) == []
    assert ".entry k" in compile_ptx(text, SM80)
