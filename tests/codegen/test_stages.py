"""Long elementwise bodies in stages, constants as whole vectors, sums of exact products by one fma."""

from __future__ import annotations

import ctypes
import re

import llvmlite.binding as llvm
import numpy as np
import pytest
from weft.codegen import loop_loops
from weft.codegen.emit import Reg, VectorBuilder
from weft.codegen.llvm import Function, module_text
from weft.codegen.stages import Stages, straight
from weft.codegen.standalone import compile_function
from weft.codegen.target import host_target, named_target
from weft.ir import prims as P
from weft.ir.types import TensorType, f32, f64

WIDE = host_target().masked  # the host has vectors of 512 bits and 32 registers
needs_wide = pytest.mark.skipif(not WIDE, reason="the host has no vectors of 512 bits")


def price(s, k, t):
    """Much arithmetic whose parts wait for each other, two results."""
    root = P.sqrt_p.bind(t)
    d = P.div_p.bind(P.add_p.bind(P.log_p.bind(P.div_p.bind(s, k)), t), root)
    n = P.erf_p.bind(P.sub_p.bind(d, root))
    m = P.mul_p.bind(P.erf_p.bind(d), P.exp_p.bind(P.neg_p.bind(t)))
    call = P.sub_p.bind(P.mul_p.bind(s, m), P.mul_p.bind(k, n))
    return call, P.sub_p.bind(call, s)


def operands(n):
    r = np.random.default_rng(n)
    arrays = [(r.random(n) * 3 + 0.1).astype(np.float32) for _ in range(3)]
    arrays[0][::97], arrays[2][5::101], arrays[1][7::89] = np.inf, -1.0, 0.0
    arrays[0][3::113] = np.nan
    return arrays


def compiled(n, target=None):
    return compile_function(price, *[TensorType((n,), f32)] * 3, form="loop", target=target)


def stages_of(kernel):
    """Values that a loop of the kernel carries from stage to stage."""
    return len(re.findall(r"\.c\d+ = phi <", kernel.llvm))


@needs_wide
@pytest.mark.parametrize("n", [1024, 1025, 4096, 4100, 16384, 50_001])
@pytest.mark.parametrize("chunks", [1, 3])
def test_stages_change_no_bit(n, chunks, monkeypatch):
    staged = compiled(n)
    assert stages_of(staged) > 0
    monkeypatch.setattr(loop_loops, "LONG_BODY", float("inf"))
    plain = compiled(n)
    assert stages_of(plain) == 0
    xs = operands(n)
    for got, want in zip(staged(*xs, chunks=chunks), plain(*xs), strict=True):
        np.testing.assert_array_equal(got, want)
    with np.errstate(all="ignore"):
        exact = price(*(x.astype(np.float64) for x in xs))
    np.testing.assert_allclose(staged(*xs)[0], exact[0], rtol=1e-4, atol=1e-4)


@needs_wide
def test_results_may_overwrite_operands():
    n = 4096 + 40
    kernel, xs = compiled(n), operands(n)
    want = kernel(*xs)
    status = np.zeros(1, np.int64)
    kernel.run(kernel.block(xs, [xs[0], xs[1]], status), 2)
    np.testing.assert_array_equal(xs[0], want[0])
    np.testing.assert_array_equal(xs[1], want[1])


def test_short_loops_and_few_registers_are_not_cut():
    assert stages_of(compiled(512)) == 0
    n = 4096
    narrow, xs = compiled(n, named_target("haswell")), operands(n)
    assert stages_of(narrow) == 0
    np.testing.assert_allclose(narrow(*xs)[0], compiled(n)(*xs)[0], rtol=1e-5, atol=1e-5)


def test_blocks_are_not_straight():
    store = "  store <16 x float> %v, ptr %p, align 4"
    assert straight(["  %v = fadd <16 x float> %a, %b", store])
    assert not straight(["  br label %x", store])
    assert not straight(["then1:", store])
    assert not straight(["  %v = phi i64 [ 0, %entry ]", store])
    assert not straight(["  call void @llvm.masked.store.v16f32.p0(<16 x float> %v, ptr %p, <16 x i1> %m)"])
    assert not straight(["  %v = fadd <16 x float> %a, %b"])


def test_a_chain_is_cut_by_the_time_it_takes():
    def chain(n):
        lines = ["  %v0 = load <16 x float>, ptr %p, align 4"]
        lines += [f"  %v{i} = fadd <16 x float> %v{i - 1}, %v{i - 1}" for i in range(1, n)]
        return [*lines, f"  store <16 x float> %v{n - 1}, ptr %p, align 4"]

    assert Stages(chain(20), "%at", 16).count == 1
    cut = Stages(chain(120), "%at", 16)
    assert cut.count == 11  # 7 + 119 * 3 + 1 cycles, 36 in a stage
    stages = [x.stage for x in cut.lines]
    assert stages == sorted(stages) and set(stages) == set(range(11))


@needs_wide
def test_constants_are_not_broadcast_in_loops():
    def fn(x):
        return P.erf_p.bind(P.exp_p.bind(x))

    kernel = compile_function(fn, TensorType((4096,), f32), form="loop")
    loop = kernel.asm().split("jl\t")[0]
    assert loop.count("vbroadcastss") <= 1  # the bits but the sign, which LLVM makes itself
    assert "weft_splat_float_" in loop


SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 1e-38, 1.5, -2.75, 3e38, -3e38, np.inf, -np.inf, np.nan, 1.0000001]


@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("factor", [0.5, -0.5, 1.0, 2.0**-20, -(2.0**-126)])
@pytest.mark.parametrize("z", [0.5, -1.0, 3e38, 2.0**-90])
@pytest.mark.parametrize("form", ["x+z", "z+x", "x-z", "z-x"])
def test_a_halved_sum_is_one_operation_and_exact(dtype, factor, z, form):
    t = "float" if dtype is f32 else "double"
    fn = Function("f", f"{t} %x", t)
    b = VectorBuilder(fn, 0, host_target())
    product = b.binary("mul", Reg("%x", dtype, 0, 0), b.const(factor, dtype))
    pair = (product, b.const(z, dtype)) if form[0] == "x" else (b.const(z, dtype), product)
    out = b.binary("add" if form[1] == "+" else "sub", *pair)
    fn.ret(f"{t} {out.text}")
    assert "llvm.fma" in fn.text()
    xs = np.array([*SPECIAL, *np.random.default_rng(0).normal(size=50)]).astype(dtype.np)

    with np.errstate(all="ignore"):
        f, c = dtype.np.type(factor), dtype.np.type(z)
        scaled = xs * f
        want = {"x+z": scaled + c, "z+x": c + scaled, "x-z": scaled - c, "z-x": c - scaled}[form]
    got = _run(fn, xs, dtype)
    np.testing.assert_array_equal(got, want)


def _run(fn, xs, dtype):
    number = ctypes.c_float if dtype is f32 else ctypes.c_double
    target = host_target()
    machine = llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=1, codemodel="small", reloc="pic"
    )
    jit = llvm.create_lljit_compiler(machine)
    text = module_text(target, [fn.text()], fn.declares)
    library = llvm.JITLibraryBuilder().add_ir(text).export_symbol("f").link(jit, "f")
    call = ctypes.CFUNCTYPE(number, number)(library["f"])
    return np.array([call(float(x)) for x in xs]).astype(dtype.np)


def test_what_does_not_change_in_a_loop_stays_where_its_body_is_not_used():
    fn = Function("f", "i64 %n, float %x", "float")
    b = VectorBuilder(fn, 0, host_target())
    x = Reg("%x", f32, 0, 0)
    with fn.loop("0", "%n", 1):
        with fn.apart() as lines:
            inside = b.binary("add", Reg("%y", f32, 0, fn.depth), b.unary("sqrt", x))
        assert len(lines) == 1 and inside.text in lines[0]
        again = b.unary("sqrt", x)
    fn.ret(f"float {again.text}")
    llvm.parse_assembly(module_text(host_target(), [fn.text()], fn.declares)).verify()
    assert fn.text().count("llvm.sqrt") == 1 and inside.text not in fn.text()


@pytest.mark.parametrize("n", [1024, 4100, 50_001])
def test_long_bodies_with_branches_are_whole(n):
    def fn(x, y):
        return P.sin_p.bind(P.mul_p.bind(P.pow_p.bind(x, y), P.erf_p.bind(P.cos_p.bind(y))))

    kernel = compile_function(fn, *[TensorType((n,), f32)] * 2, form="loop")
    assert stages_of(kernel) == 0
    r = np.random.default_rng(0)
    x, y = r.random(n).astype(np.float32) + 0.5, r.standard_normal(n).astype(np.float32)
    np.testing.assert_allclose(kernel(x, y)[0], fn(x, y), rtol=1e-4, atol=1e-6)
