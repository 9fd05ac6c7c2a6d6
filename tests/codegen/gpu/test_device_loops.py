"""How loop kernels lie over a GPU: accesses, bytes, launches, and what sm_75 lacks. Their results are tested
with those of the CPU, in tests/codegen/test_loop_kernel.py."""

from __future__ import annotations

import numpy as np
import pytest
import weft
from on_device import on_device
from weft import nn
from weft.codegen.gpu.kernel import emit_device_kernel
from weft.codegen.gpu.target import gpu_target
from weft.ir import prims as P
from weft.ir.graph import Op
from weft.ir.prims.base import trace
from weft.ir.types import TensorType, bf16, bool_, f16, f32, f64, i64
from weft.nn import functional as F
from weft.passes.pipeline import lower
from weft.runtime.cuda.standalone import DeviceStandalone, compile_function, compile_primitive, run_region

SM80 = gpu_target("sm_80")
rng = np.random.default_rng(5)


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def kernels(fn, *args: weft.Tensor) -> list[Op]:
    compiled = weft.compile(fn, fullgraph=True)
    compiled(*args)
    graph = compiled.stages()[-1][1]
    return [op for op in graph.ops if op.prim.name == "kernel"]


def only(fn, *args: weft.Tensor) -> Op:
    (op,) = kernels(fn, *args)
    return op


def accesses(kernel: DeviceStandalone, what: str) -> list[str]:
    return [line.split()[0] for line in kernel.ptx.splitlines() if line.strip().startswith(what)]


@pytest.mark.parametrize(
    ("dtype", "lanes"),
    [(f32, "v4.b32"), (f64, "v2.b64"), (f16, "v4.b32"), (bf16, "v4.b32")],
    ids=["f32", "f64", "f16", "bf16"],
)
def test_a_thread_moves_sixteen_bytes_at_once(dtype, lanes):
    t = TensorType((1024,), dtype)
    kernel = compile_function(lambda x, y: x + y, t, t, form="loop", target=SM80)
    assert accesses(kernel, "ld.global") == [f"ld.global.{lanes}"] * 2
    assert accesses(kernel, "st.global") == [f"st.global.{lanes}"]


def test_eight_truth_values_are_one_access():
    t = TensorType((1024,), bool_)
    kernel = compile_function(lambda x, y: P.bit_and_p.bind(x, y), t, t, form="loop", target=SM80)
    assert accesses(kernel, "st.global") == ["st.global.v2.b32"]


@pytest.mark.parametrize("n", [1, 3, 5, 1023, 1025])
def test_what_sixteen_bytes_leave_goes_one_by_one(n):
    t = TensorType((n,), f32)
    kernel = compile_function(lambda x: P.exp_p.bind(x) * 2.0, t, form="loop", target=SM80)
    x = normal(n)
    np.testing.assert_allclose(kernel(x)[0], np.exp(x) * 2, rtol=1e-6)


def traffic(op: Op, *arrays: np.ndarray) -> tuple[int, int]:
    kernel = DeviceStandalone(op, SM80)
    kernel(*arrays)
    assert not any(s.local_bytes for s in kernel.statistics)
    return sum(s.global_read for s in kernel.statistics), sum(s.global_written for s in kernel.statistics)


@pytest.mark.parametrize("shape", [(3, 64), (70, 1024), (4, 4096), (2, 9000)])
def test_softmax_reads_and_writes_once(shape):
    op = only(lambda x: F.softmax(x, -1), weft.randn(*shape))
    x = normal(*shape)
    kernel = DeviceStandalone(op, SM80)
    kernel(x)
    (s,) = kernel.statistics
    operand = [t for t in s.lines.values() if t.instruction.startswith("ld.global.v4")]
    assert s.global_written == x.nbytes
    # threads past the end of a row all read one sector
    assert x.nbytes <= 32 * sum(t.sectors for t in operand) <= 1.05 * x.nbytes
    assert all(t.sectors == t.ideal for t in operand)


def test_layer_norm_reads_its_operands_once():
    x, r, w, b = weft.randn(16, 1024), weft.randn(16, 1024), weft.randn(1024), weft.randn(1024)
    op = only(lambda x, r, w, b: F.layer_norm(x + r, (1024,), w, b), x, r, w, b)
    arrays = [normal(*v.type.shape) for v in op.operands]
    read, written = traffic(op, *arrays)
    assert written == 16 * 1024 * 4
    assert read == 2 * 16 * 1024 * 4 + 2 * 16 * 1024 * 4  # weight and bias once for each row


def test_cross_entropy_reads_the_scores_once():
    op = only(lambda x, y: F.cross_entropy(x, y), weft.randn(40, 512), weft.randint(0, 512, (40,)))
    x, y = normal(40, 512), rng.integers(0, 512, 40)
    kernel = DeviceStandalone(op, SM80)
    (got,) = kernel(*[x if v.type.dtype is f32 else y for v in op.operands])
    lines = [t for s in kernel.statistics for t in s.lines.values()]
    wide = [t for t in lines if t.instruction.startswith("ld.global.v4")]
    assert sum(t.bytes for t in wide) == x.nbytes
    scores = x.astype(np.float64)
    want = np.log(np.exp(scores).sum(1)) - scores[np.arange(40), y]
    np.testing.assert_allclose(got, want.mean(), rtol=1e-5)


@pytest.mark.parametrize("shape", [(64, 64), (50, 70), (33, 100)])
def test_a_transposed_operand_meets_no_bank_twice(shape):
    n, m = shape
    kernel = compile_function(
        lambda x, y: x + P.permute_p.bind(y, perm=(1, 0)), TensorType((n, m), f32), TensorType((m, n), f32),
        form="loop", target=SM80,
    )  # fmt: skip
    x, y = normal(n, m), normal(m, n)
    np.testing.assert_array_equal(kernel(x, y)[0], x + y.T)
    (s,) = kernel.statistics
    assert s.bank_conflicts == 0
    assert s.shared_written == s.shared_read == x.nbytes
    if m % 32 == 0 and n % 32 == 0:
        assert s.sectors == s.ideal_sectors


def test_an_optimizer_step_is_one_launch():
    parameters = [nn.Parameter(weft.randn(3 + i, 2 + i % 4)) for i in range(20)]
    for p in parameters:
        p.grad = weft.randn(*p.shape)
    optimizer = weft.optim.Adam(parameters, lr=1e-2)
    op = only(lambda: optimizer.step())
    code = emit_device_kernel(op, SM80, "k")
    assert len(code.launches) == 1
    assert len(emit_device_kernel(op, gpu_target("sm_75"), "k").launches) == 1


def test_more_pointers_than_a_launch_takes_are_several_launches():
    xs = [TensorType((4,), f32)] * 600

    def double(*vs):
        return [v * 2.0 for v in vs]

    kernel = compile_function(double, *xs, form="loop", target=gpu_target("sm_75"))
    assert [len(s.buffers) for s in kernel.code.launches] == [512, 512, 176]
    arrays = [np.full(4, i, np.float32) for i in range(600)]
    for x, y in zip(arrays, kernel(*arrays), strict=True):
        np.testing.assert_array_equal(y, 2 * x)


@pytest.mark.parametrize("architecture", ["sm_75", "sm_80"])
def test_nan_wins_on_every_architecture(architecture):
    t = TensorType((5,), f32)
    x = np.array([1, np.nan, 3, np.inf, -2], np.float32)
    y = np.array([np.nan, 2, -3, np.nan, -1], np.float32)
    kernel = compile_primitive(P.maximum_p, t, t, form="loop", target=gpu_target(architecture))
    np.testing.assert_array_equal(kernel(x, y)[0], np.maximum(x, y))
    assert ("max.NaN" in kernel.ptx) == (architecture == "sm_80")


def test_an_index_out_of_range_sets_the_status():
    table, index = TensorType((50, 8), f32), TensorType((3, 1), i64)
    kernel = compile_function(
        lambda t, i: P.gather_p.bind(t, i, axes=(0,)) * 2.0, table, index, form="loop", target=SM80
    )
    kernel(normal(50, 8), np.array([[3], [50], [-1]]))
    assert kernel.status == 1
    kernel(normal(50, 8), np.array([[3], [49], [0]]))
    assert kernel.status == 0
    with pytest.raises(IndexError):
        run_region(kernel.op, [normal(50, 8), np.array([[3], [50], [-1]])], SM80)


def test_sums_are_the_same_in_every_run():
    t = TensorType((300, 77), f32)
    kernel = compile_function(
        lambda x: (P.sum_p.bind(x, axes=(0,)), P.sum_p.bind(x, axes=(0, 1))), t, form="loop", target=SM80
    )
    x = normal(300, 77)
    first, second = kernel(x), kernel(x)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(first[1], x.astype(np.float64).sum(), rtol=1e-5)
    assert not any(s.atomics for s in kernel.statistics)


def test_the_step_size_of_a_large_step_is_computed_once():
    """The powers of Adam's corrections are in a launch of their own, a block for each parameter."""
    parameters = [nn.Parameter(weft.randn(100, 96)) for _ in range(3)]
    for p in parameters:
        p.grad = weft.randn(*p.shape)
    optimizer = weft.optim.Adam(parameters, lr=1e-2)
    op = only(lambda: optimizer.step())
    kernel = DeviceStandalone(op, SM80)
    first, second = kernel.code.launches
    assert first.grid == (3, 1, 1)
    whole = "".join(kernel.ptx.split(f".entry {second.symbol}(")[1:])
    assert "f64" not in whole.split(".entry")[0]
    types = [v.type for v in op.operands]
    arrays = [np.abs(rng.standard_normal(t.shape)).astype(t.dtype.np) for t in types]
    with np.errstate(all="ignore"):
        want = op.prim.evaluate(arrays, op.attrs, op.regions)
    for got, w in zip(kernel(*arrays), want, strict=True):
        np.testing.assert_allclose(got, w, rtol=2e-5, atol=1e-6)


def softmax_of_rows(x):
    shape = x.type.shape if hasattr(x, "type") else x.shape
    exponent = P.exp_p.bind(P.tanh_p.bind(x))
    total = P.broadcast_p.bind(P.sum_p.bind(exponent, axes=(1,)), shape=shape, axes=(0,))
    return exponent / total


@pytest.mark.parametrize("shape", [(6, 100), (3, 1000), (400, 24)])
def test_values_of_a_row_that_other_threads_read_are_shared(shape):
    """Reversed rows: an element is read by another thread than made it, after a barrier."""

    def f(x):
        y = softmax_of_rows(x)
        return y + P.flip_p.bind(y, axes=(1,)), P.sum_p.bind(y, axes=(0,))

    graph = lower(trace(f, TensorType(shape, f32))).graph
    x = normal(*shape)
    got, kernels = on_device(graph, [x], SM80)
    assert kernels == 1
    for a, b in zip(got, f(x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 20000), (1, 33333), (5, 8192)])
def test_rows_that_registers_do_not_hold(shape):
    graph = lower(trace(softmax_of_rows, TensorType(shape, f32))).graph
    x = normal(*shape)
    (got,), _ = on_device(graph, [x], SM80)
    np.testing.assert_allclose(got, softmax_of_rows(x), rtol=1e-5)


@pytest.mark.parametrize("shape", [(0,), (4, 0), ()])
def test_nothing_and_single_elements(shape):
    graph = lower(trace(lambda x: x * 2.0 + 1.0, TensorType(shape, f32))).graph
    x = normal(*shape)
    np.testing.assert_array_equal(on_device(graph, [np.asarray(x, np.float32)], SM80)[0][0], x * 2 + 1)
