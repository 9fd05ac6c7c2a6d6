"""``ptxas`` takes every kernel for every architecture, and the kernels of the benchmark spill nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import weft

sys.path.insert(0, str(Path(__file__).parent.parent.parent.parent))

from weft.codegen.gpu.kernel import emit_device_kernel
from weft.codegen.gpu.module import device_module
from weft.codegen.gpu.target import gpu_target
from weft.ir import prims as P
from weft.ir.errors import CompilerError
from weft.nn import functional as F
from weft.runtime.cuda.assembler import (
    Resources,
    assemble,
    assembled,
    find_ptxas,
    parse_resources,
    with_room,
)
from weft.runtime.cuda.ptx import compile_ptx

from benchmarks.ptx_kernels import Module, graph_of, kernels_of, row, rows, runs
from benchmarks.workloads import ROWS

needs_ptxas = pytest.mark.skipif(find_ptxas() is None, reason="ptxas is not installed")
ARCHITECTURES = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_90a", "sm_100", "sm_120"]
SAID = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'k1' for 'sm_80'
ptxas info    : Function properties for k1
    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 2048 bytes smem, 368 bytes cmem[0]
ptxas info    : Compiling entry function 'k2' for 'sm_80'
ptxas info    : Function properties for k2
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, 360 bytes cmem[0]
"""


def test_what_ptxas_says_is_read():
    first, second = parse_resources(SAID)
    assert (first.kernel, first.registers, first.shared_bytes) == ("k1", 40, 2048)
    assert (first.spill_bytes, first.stack_bytes, first.barriers) == (28, 8, 1)
    assert (second.kernel, second.registers, second.shared_bytes, second.spill_bytes) == ("k2", 8, 0, 0)


@needs_ptxas
def test_a_fault_in_the_text_is_an_error_of_the_compiler():
    with pytest.raises(CompilerError, match="does not take"):
        assemble(".version 8.1\n.target sm_80\n.address_size 64\n.entry k() { foo; }", "sm_80")


def many_live_values(count, bounds):
    """A kernel that reads so many values one after the other, and then adds them in the opposite order."""
    regs = [f"%f{i}" for i in range(count)]
    loads = [f"ld.volatile.global.f32 {r}, [%rd2+{4 * i}];" for i, r in enumerate(regs)]
    adds = [f"add.rn.f32 %s, %s, {r};" for r in reversed(regs)]
    begin = ["ld.param.b64 %rd1, [p];", "cvta.to.global.u64 %rd2, %rd1;", *loads, "mov.b32 %s, 0f00000000;"]
    body = "\n".join([*begin, *adds, "st.global.f32 [%rd2], %s;", "ret;"])
    declared = f".reg .b64 %rd<3>;\n.reg .b32 %s;\n.reg .b32 %f<{count}>;\n"
    head = ".version 8.1\n.target sm_80\n.address_size 64\n\n.visible .entry k(\n\t.param .u64 p\n)\n"
    return f"{head}{bounds}{{\n{declared}{body}\n}}\n"


@needs_ptxas
def test_what_spills_for_want_of_registers_gets_more():
    text = many_live_values(60, ".maxntid 512\n.minnctapersm 4\n")
    (tight,) = assembled(text, "sm_80", 3)[1]
    assert tight.registers <= 32 and tight.spill_bytes > 0
    (roomy,) = assemble(text, "sm_80")[1]
    assert roomy.registers > 60 and roomy.spill_bytes == 0
    (full,) = assemble(many_live_values(400, ".maxntid 128\n.minnctapersm 2\n"), "sm_80")[1]
    assert full.registers == 255 and full.spill_bytes > 0  # as few as there can be


def test_room_is_made_for_those_that_spill_alone():
    entries = [f".visible .entry {k}(\n)\n.maxntid 128\n.minnctapersm 4\n{{\n}}\n" for k in ("k", "k1")]
    text = "".join(entries)
    assert with_room(text, [Resources("k", 128, 0, 0, 0), Resources("k1", 128, 0, 0, 8)]) == text
    fewer = entries[0].replace("sm 4", "sm 3")
    some = [Resources("k", 128, 0, 8, 8), Resources("k1", 128, 0, 0, 0)]
    assert with_room(text, some) == fewer + entries[1]
    fewer = entries[1].replace("sm 4", "sm 1")
    assert with_room(text, [Resources("k1", 255, 0, 8, 8)]) == entries[0] + fewer
    assert with_room(fewer, [Resources("k1", 255, 0, 8, 8)]) == fewer  # all that a thread can have


def shapes_of_the_benchmark():
    """The fused workloads of the table, with as long rows and fewer of them."""
    x, w, row = weft.randn(8, 4096), weft.randn(4096), weft.randn(8, 1024)
    g, n = weft.randn(1024), weft.randn(4096)
    yield lambda x, w, b: F.gelu(x * w + b) * 0.5 + x, (x, w, n)
    yield lambda x: weft.softmax(x, -1), (x,)
    yield lambda x, r, w, b: F.layer_norm(x + r, (1024,), w, b), (row, row * 2, g, g + 1)
    yield lambda x, y: weft.exp(-x) * weft.erf(y) + weft.log(x * x + 1), (x, x + 1)
    yield lambda x: (-((x[:, None] - x[None]) ** 2).sum(-1)).exp().sum(-1), (weft.randn(64, 3),)
    yield lambda x, y: F.cross_entropy(x, y), (weft.randn(8, 1000), weft.randint(0, 1000, (8,)))


def gradients():
    """Forward and backward in one graph."""
    shapes = (8, 1024), (1024,), (1024,)
    xs = [weft.randn(*s, requires_grad=True) for s in shapes]

    def step(x, w, b):
        (F.layer_norm(x, (1024,), w, b) ** 2).sum().backward()
        return x.grad, w.grad, b.grad

    yield step, tuple(xs)


def codes(fn, args, target):
    compiled = weft.compile(fn)
    compiled(*args)
    graph = compiled.stages()[-1][1]
    ops = [op for op in graph.ops if op.prim.name == "kernel"]
    return [emit_device_kernel(op, target, f"k{i}") for i, op in enumerate(ops)]


@needs_ptxas
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_of_the_benchmark_spill_nothing(architecture):
    target = gpu_target(architecture)
    found = []
    for i, (fn, args) in enumerate([*shapes_of_the_benchmark(), *gradients()]):
        for code in codes(fn, args, target):
            ptx = compile_ptx(device_module(target, [code]), target)
            assert ".local" not in ptx, i
            binary, resources = assemble(ptx, architecture, 1 if architecture != "sm_80" else 3)
            assert binary[:4] == b"\x7fELF"
            found += resources
    assert len(found) >= 8
    assert [r for r in found if r.spill_bytes or r.stack_bytes] == []
    assert max(r.registers for r in found) <= 168


def convolutions(T, compile):
    """Few channels in bfloat16, and images that do not lie channels-last: elements are read one by one."""
    images = T.empty(2, 30, 15, 15, dtype=T.bfloat16), T.empty(4, 3, 32, 32)
    weights = T.empty(50, 30, 3, 3, dtype=T.bfloat16), T.empty(16, 3, 7, 7)
    xs = [x.requires_grad_() for x in (*images, *weights)]

    def step(x, y, v, w):
        loss = F.conv2d(x, v, padding=1).float().square().sum() + F.conv2d(y, w, stride=2).square().sum()
        return weft.autograd.grad(loss, [x, v, w])

    made = compile(step)
    return lambda: made(*xs)


@needs_ptxas
@pytest.mark.parametrize("architecture", ["sm_90", "sm_120"])
def test_convolutions_and_cells_spill_nothing(architecture):
    """Those of the report (make ptx-report) whose registers are scarcest."""
    builds = [ROWS["CNN training step, batch 64"].build, ROWS["LSTM 128 to 256, 32x64"].build, convolutions]
    made = [row(k, architecture) for b in builds for k in kernels_of(graph_of(b), b.__name__)]
    assert [r.problem or r.unsupported for r in made if r.problem or r.unsupported] == []
    assert {r.kernel.form for r in made} >= {"conv", "contract", "loop", "window"}
    assert [(r.kernel.name, f) for r in made for _, f in r.functions if f.spill_bytes] == []


@needs_ptxas
def test_a_report_has_a_row_for_each_kernel_and_architecture():
    (kernel,) = kernels_of(graph_of(ROWS["softmax 4096x4096"].build), "softmax")
    module = Module("strided", "sm_80", many_live_values(8, ".maxntid 128\n"))
    found = list(rows([kernel, module], ["sm_75", "sm_80", "sm_120"]))
    assert [(r.kernel.where, r.architecture) for r in found] == [
        ("softmax", "sm_75"), ("softmax", "sm_80"), ("softmax", "sm_120"),
        ("strided", "sm_80"), ("strided", "sm_120"),
    ]  # fmt: skip
    assert all(len(r.functions) == 1 and not r.problem for r in found)
    refused = row(Module("strided", "sm_80", module.ptx.replace("add.rn.f32", "add.odd.f32")), "sm_80")
    assert "does not take the module" in refused.problem and refused.functions == ()
    assert not runs(Module("", "sm_90a", ""), "sm_120") and runs(Module("", "sm_90a", ""), "sm_90a")


@needs_ptxas
def test_lines_and_indices_assemble():
    from weft.codegen.standalone import kernel_op
    from weft.ir.prims.base import trace
    from weft.ir.types import TensorType, f32, f64, i64

    x, index = TensorType((64, 3000), f32), TensorType((40, 1), i64)
    forms = {
        "sort": (lambda x: P.sort_p.bind(x, axis=1, descending=False), x),
        "sort by digits": (lambda x: P.sort_p.bind(x, axis=1, descending=True), TensorType((2, 100000), f64)),
        "cumulative": (lambda x: P.cumsum_p.bind(x, axis=1, reverse=False), x),
        "gather": (lambda x, i: P.gather_p.bind(x, i, axes=(0,)), x, index),
        "scatter": (
            lambda x, i, u: P.scatter_p.bind(x, i, u, axes=(0,), mode="add"), x, index,
            TensorType((40, 3000), f32),
        ),
    }  # fmt: skip
    target = gpu_target("sm_80")
    made = [
        emit_device_kernel(kernel_op(trace(fn, *types), name.split()[0]), target, f"k{i}")
        for i, (name, (fn, *types)) in enumerate(forms.items())
    ]
    _, resources = assemble(compile_ptx(device_module(target, made), target), "sm_80")
    assert len(resources) == sum(len(c.launches) for c in made)
    assert [r for r in resources if r.spill_bytes] == []
