"""``ptxas`` takes every kernel for every architecture, and the kernels of the benchmark spill nothing."""

from __future__ import annotations

import pytest
import weft
from weft.codegen.gpu.kernel import emit_device_kernel
from weft.codegen.gpu.module import device_module
from weft.codegen.gpu.target import gpu_target
from weft.ir import prims as P
from weft.ir.errors import CompilerError
from weft.nn import functional as F
from weft.runtime.cuda.assembler import assemble, find_ptxas, parse_resources
from weft.runtime.cuda.ptx import compile_ptx

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
