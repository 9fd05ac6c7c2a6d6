"""Linking: what is wrong is refused with an error; what kernels share is compiled once."""

from __future__ import annotations

import ctypes

import pytest
import runtime_graphs as G
from weft.codegen.target import host_target, named_target
from weft.ir import prims as P
from weft.ir.errors import CompilerError
from weft.ir.prims.base import trace
from weft.ir.types import TensorType, f32
from weft.runtime import callpath, compile_graph, jit, shared, stats

HELPER = """define internal void @weft_helper(ptr noalias %a, i64 %n) #0 {
start:
  store i64 %n, ptr %a
  ret void
}
"""
CALLER = """define internal void @weft_caller(ptr %a) #0 {
start:
  call void @weft_helper(ptr %a, i64 42)
  ret void
}
"""


def test_text_that_is_not_llvm():
    with pytest.raises(CompilerError, match="refused"):
        jit.compile_object("define nonsense", host_target())


def test_module_that_does_not_verify():
    text = "define i32 @f() {\nstart:\n  %x = add i32 %y, 1\n  %y = add i32 %x, 1\n  ret i32 %x\n}\n"
    with pytest.raises(CompilerError, match="refused"):
        jit.compile_object(text, host_target())


def test_unknown_symbol_is_refused():
    image = jit.compile_object(
        "declare double @exp(double)\ndefine double @f(double %x) {\n"
        "  %y = call double @exp(double %x)\n  ret double %y\n}\n",
        host_target(),
    )
    assert jit.undefined_symbols(image) == {"exp"}
    with pytest.raises(CompilerError, match="does not provide: exp"):
        jit.link(image, ("f",), {})


@pytest.mark.parametrize("image", [b"", b"\x7fELF", b"MZ" + bytes(200), b"\x7fELF\x02\x01" + b"\xff" * 300])
def test_damaged_object_is_refused(image):
    with pytest.raises(CompilerError):
        jit.link(image, ("f",), {})


def test_object_for_another_machine():
    image = jit.compile_object("define void @f() {\n  ret void\n}\n", named_target("haswell"))
    assert image.startswith(b"\x7fELF") and jit.undefined_symbols(image) == set()


def test_shared_functions_are_linked_once_and_may_call_one_another():
    target = host_target()
    lines = [HELPER, CALLER, "declare float @llvm.fabs.f32(float)"]
    functions, rest = shared.split(lines)
    assert set(functions) == {"weft_helper", "weft_caller"} and rest == lines[2:]
    assert shared.declaration(HELPER) == "declare void @weft_helper(ptr noalias , i64 )"
    found = shared.addresses(shared.modules(functions, rest, target), target)
    out = ctypes.c_int64(0)
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(found["weft_caller"])(ctypes.addressof(out))
    assert out.value == 42
    stats.reset()
    assert shared.addresses(shared.modules(functions, rest, target), target) == found
    assert stats.snapshot()["objects_compiled"] == 0


def test_two_contractions_share_their_inner_loops():
    def dot(a, b):
        return P.dot_general_p.bind(a, b, contract=((1,), (0,)), batch=((), ()))

    square = TensorType((96, 96), f32)
    first = compile_graph(trace(lambda a, b: dot(a, b) + a, square, square))
    second = compile_graph(trace(lambda a, b: dot(a, b) - b, square, square))
    both = first.artifact.shared.keys() & second.artifact.shared.keys()
    assert both and all("define internal void @" + name in first.llvm() for name in both)


def test_without_the_native_call_path(monkeypatch):
    monkeypatch.setattr(callpath, "native_runner", lambda *args: None)
    g = trace(lambda x, y: x - y * y, G.F8, G.F8)
    exe = compile_graph(g)
    x, y = G.samples(g)
    assert exe.runner == exe._general
    assert (exe.runner(x, y)[0] == x - y * y).all()
