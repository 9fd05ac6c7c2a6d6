"""Graphs compiled for a GPU give what the interpreter gives, and a second call does nothing but launch."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
import runtime_graphs as G
from device_graphs import GPU, agrees, device_arrays, fetched, on_device
from weft.codegen.gpu.target import gpu_target
from weft.ir import prims as P
from weft.ir.graph import Graph
from weft.ir.interp import run
from weft.ir.prims.base import trace
from weft.ir.types import Device, TensorType, bool_, c64, f32, f64, i64
from weft.runtime import compile_graph, compile_only, stats
from weft.runtime.cuda.array import empty, from_host
from weft.runtime.cuda.device import device_state
from weft.runtime.cuda.stream import current_stream

pytestmark = pytest.mark.gpu


def chain() -> Graph:
    """Several kernels with values between them."""
    t = TensorType((6, 40), f32)

    def fn(x, y):
        s = P.sum_p.bind(P.exp_p.bind(x) * y, axes=(0,))
        return P.broadcast_p.bind(s, shape=(6, 40), axes=(1,)) * x, P.sum_p.bind(x * y, axes=(0, 1))

    return trace(fn, t, t)


def test_an_expression():
    g = G.tiny()
    assert agrees(g, *G.samples(g)).n_kernels == 1


def test_several_results_and_views():
    reshape = P.reshape_p.bind
    g = trace(lambda x: (reshape(x + x, shape=(2, 4)), x * x, reshape(x, shape=(4, 2))), G.F8)
    agrees(g, *G.samples(g))


def test_results_never_share_memory():
    g = trace(lambda x, y: (x, y, x, x + y), G.F8, G.F8)
    given = device_arrays(G.samples(g))
    outs = compile_graph(on_device(g)).runner(*given)
    assert len({a.address for a in (*given, *outs)}) == 6


def test_constants_and_empty_values():
    c = np.arange(6, dtype=np.float64).reshape(2, 3)

    def fn(x, e):
        k = P.constant_p.bind(value=c)
        return x + k, k, e + e, P.sum_p.bind(e, axes=(0, 1))

    g = trace(fn, TensorType((2, 3), f64), TensorType((0, 3), f32))
    agrees(g, *G.samples(g))


def test_a_large_constant_is_uploaded_once():
    c = np.random.default_rng(0).normal(size=300).astype(np.float32)
    g = trace(lambda x: x * P.constant_p.bind(value=c), TensorType((300,), f32))
    made = agrees(g, *G.samples(g))
    assert len(made.artifact.constants) == 1280  # 1200 bytes, in multiples of 256
    again = fetched(made.runner(*device_arrays(G.samples(g))))
    np.testing.assert_allclose(again[0], G.samples(g)[0] * c, rtol=1e-6)


@pytest.mark.parametrize("start", [3, 200])
def test_while_loop(start):
    agrees(G.doubling(), np.int64(start), np.int64(100))


@pytest.mark.parametrize("flag", [True, False])
def test_cond(flag):
    agrees(G.either(), np.bool_(flag), np.arange(8, dtype=np.float32))


@pytest.mark.parametrize("length", [1, 4, 5])
@pytest.mark.parametrize("reverse", [False, True])
def test_scan_with_slices_that_lie_odd(reverse, length):
    """Rows of 24 bytes: every other one would not be aligned to 16."""
    g = G.running(reverse, length)
    agrees(g, *G.samples(g))


def test_a_second_call_allocates_and_waits_for_nothing():
    g = chain()
    made, given = compile_graph(on_device(g)), device_arrays(G.samples(g))
    made.runner(*given)
    gc.collect()
    stats.reset()
    outs = made.runner(*given)
    seen = stats.snapshot()
    for name in ("device_allocations", "device_synchronisations", "host_calls", "compiles"):
        assert seen[name] == 0, name
    assert seen["device_launches"] >= made.n_kernels
    for o, w in zip(fetched(outs), run(g, G.samples(g)), strict=True):
        np.testing.assert_allclose(o, w, rtol=1e-5)


def test_loops_launch_natively():
    g = G.running(False, 5)
    made, given = compile_graph(on_device(g)), device_arrays(G.samples(g))
    made.runner(*given)
    stats.reset()
    made.runner(*given)
    seen = stats.snapshot()
    assert (seen["device_launches"], seen["device_synchronisations"], seen["host_calls"]) == (5, 0, 0)


def test_numbers_and_small_arrays_travel_with_the_call():
    row, state = TensorType((8,), f32), TensorType((2,), i64)
    scalar = TensorType((), f64)

    def fn(x, lr, s):
        rate = P.convert_p.bind(lr, dtype=f32)
        return x * P.broadcast_p.bind(rate, shape=(8,), axes=()), s + s

    made = compile_graph(on_device(trace(fn, row, scalar, state)))
    x = from_host(np.arange(8, dtype=np.float32))
    for rate in (0.5, 2.0, np.float64(3)):
        stats.reset()
        scaled, doubled = made.runner(x, rate, np.array([1, 2]))
        assert stats.snapshot()["device_synchronisations"] == 0
        want = np.arange(8, dtype=np.float32) * np.float32(rate)
        np.testing.assert_array_equal(scaled.copy_to_host(), want)
        np.testing.assert_array_equal(doubled.copy_to_host(), [2, 4])


def test_donated_results_are_written_in_place():
    g = trace(lambda x, y: (x + y, x * y), G.F8, G.F8)
    made = compile_graph(on_device(g), donate={0: 0})
    x, y = (from_host(a) for a in G.samples(g))
    at = x.address
    out = made.runner(x, y)
    want = run(g, G.samples(g))
    assert out[0] is x and x.address == at
    for o, w in zip(fetched(out), want, strict=True):
        np.testing.assert_allclose(o, w, rtol=1e-6)


def test_a_donated_view_is_written_through():
    g = trace(lambda x: x + x, G.F8)
    base = from_host(np.arange(16, dtype=np.float32))
    view = base[::2]
    out = compile_graph(on_device(g), donate={0: 0}).runner(view)
    assert out[0] is view
    want = np.arange(16, dtype=np.float32)
    want[::2] *= 2
    np.testing.assert_array_equal(base.copy_to_host(), want)


def test_arguments_that_overlap_a_donated_one_keep_their_values():
    g = trace(lambda x, y: (x + y, y * y), G.F8, G.F8)
    base = from_host(np.arange(24, dtype=np.float32))
    x, y = base[0:8], base[4:12]
    want = run(g, [np.arange(8, dtype=np.float32), np.arange(4, 12, dtype=np.float32)])
    out = fetched(compile_graph(on_device(g), donate={0: 0}).runner(x, y))
    for o, w in zip(out, want, strict=True):
        np.testing.assert_array_equal(o, w)


def test_arguments_that_are_not_contiguous_or_lie_odd():
    g = trace(lambda x: x + x, TensorType((3, 4), f32))
    base = np.arange(40, dtype=np.float32)
    on = from_host(base)
    made = compile_graph(on_device(g))
    transposed = on[:12].reshape((4, 3)).transpose((1, 0))
    np.testing.assert_array_equal(made.runner(transposed)[0].copy_to_host(), 2 * base[:12].reshape(4, 3).T)
    odd = on[1:13].reshape((3, 4))
    assert odd.address % 16
    np.testing.assert_array_equal(made.runner(odd)[0].copy_to_host(), 2 * base[1:13].reshape(3, 4))


def test_wrong_arguments_are_named():
    made = compile_graph(on_device(G.tiny()))
    x = from_host(np.zeros(8, np.float32))
    with pytest.raises(TypeError, match="takes 2 arrays, but got 1"):
        made.runner(x)
    with pytest.raises(TypeError, match=r"argument 1 of .*expected f32, got float64"):
        made.runner(x, from_host(np.zeros(8)))
    with pytest.raises(ValueError, match=r"argument 0 of .*expected shape \(8,\), got \(7,\)"):
        made.runner(from_host(np.zeros(7, np.float32)), x)
    big = compile_graph(on_device(trace(lambda a: a + a, TensorType((99,), f32))))
    with pytest.raises(RuntimeError, match="expected an array on cuda:0, got one on cpu"):
        big.runner(np.zeros(99, np.float32))
    np.testing.assert_array_equal(big.call([np.ones(99, np.float32)])[0].copy_to_host(), np.full(99, 2))


def test_devices_do_not_mix():
    with pytest.raises(RuntimeError, match="one device, found cuda:0 and cuda:1"):
        a, b = on_device(G.tiny()), on_device(G.tiny(), Device("cuda", 1))
        compile_graph(Graph((*a.params, *b.params), (*a.ops, *b.ops), (*a.results, *b.results)))


def test_the_second_device():
    other = Device("cuda", 1)
    made = compile_graph(on_device(G.tiny(), other))
    x, y = G.samples(G.tiny())
    out = made.runner(from_host(x, 1), from_host(y, 1))[0]
    assert out.device == other
    np.testing.assert_allclose(out.copy_to_host(), run(G.tiny(), [x, y])[0], rtol=1e-6)
    with pytest.raises(RuntimeError, match="expected an array on cuda:1, got one on cuda:0"):
        made.runner(from_host(x, 0), from_host(y, 0))


def test_operations_without_kernels_run_on_the_host():
    t = TensorType((4,), c64)
    g = trace(lambda z: z * z, t)
    z = np.arange(4).astype(np.complex64) * (1 + 2j)
    stats.reset()
    agrees(g, z)
    assert stats.snapshot()["host_calls"] == 1
    unknown = G.as_kernel(trace(lambda x: x * x + x, G.F8))
    made = agrees(unknown, *G.samples(unknown))
    assert [k.native for k in made.kernels] == [False]
    assert "form" in made.kernels[0].why


def test_an_exception_of_the_host_comes_through():
    def fail(x):
        raise ValueError("not this one")

    from weft.ir.prims.host import HOST_FUNCTIONS, HostFunction

    HOST_FUNCTIONS["device_test_fails"] = HostFunction("device_test_fails", lambda t: t, fail)
    try:
        g = trace(lambda x: P.host_call_p.bind(x + x, fn="device_test_fails"), G.F8)
        made = compile_graph(on_device(g))
        with pytest.raises(ValueError, match="not this one"):
            made.runner(from_host(np.zeros(8, np.float32)))
    finally:
        del HOST_FUNCTIONS["device_test_fails"]


def test_callers_in_several_threads():
    g = chain()
    made, given = compile_graph(on_device(g)), device_arrays(G.samples(g))
    want = run(g, G.samples(g))
    bad: list[Exception] = []

    def work() -> None:
        try:
            for _ in range(3):
                for o, w in zip(fetched(made.runner(*given)), want, strict=True):
                    np.testing.assert_allclose(o, w, rtol=1e-5)
        except Exception as e:
            bad.append(e)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not bad


def test_the_same_graph_is_compiled_once():
    stats.reset()
    first, second = compile_graph(on_device(chain())), compile_graph(on_device(chain()))
    assert first is second


def test_what_was_made_can_be_read():
    made = compile_graph(on_device(G.tiny()))
    assert ".entry" in made.asm() and "ptx_kernel" in made.llvm()
    assert made.stages[0][0] == "captured" and made.kernels[0].native
    assert str(made.plan).startswith("arena")


def test_compiled_for_another_architecture_only():
    made = compile_only(G.tiny(), gpu_target("sm_90"))
    assert ".target sm_90" in made.asm()
    with pytest.raises(RuntimeError, match="compiled for sm_90, not to run here"):
        made.runner(1, 2)


def test_memory_goes_back():
    state = device_state(0)
    made = compile_graph(on_device(chain()))
    given = device_arrays(G.samples(chain()))
    before = state.allocator.allocated()
    outs = made.runner(*given)
    assert state.allocator.allocated() > before
    del outs
    assert state.allocator.allocated() == before


def test_bools():
    t = TensorType((5,), bool_)
    g = trace(lambda a, b: P.bit_and_p.bind(a, P.bit_not_p.bind(b)), t, t)
    agrees(g, [True, False, True, False, True], [False, True, True, False, False])


def test_an_index_out_of_range_is_raised_at_the_next_wait():
    rows, index = TensorType((5, 4), f32), TensorType((3, 1), i64)
    g = trace(lambda x, i: P.gather_p.bind(x, i, axes=(0,)), rows, index, name="lookup")
    made = compile_graph(on_device(g), name="lookup")
    x = from_host(np.arange(20, dtype=np.float32).reshape(5, 4))
    if not made.artifact.uses_status:
        pytest.skip("gathers have no kernel here")
    made.runner(x, from_host(np.array([[0], [7], [1]])))
    with pytest.raises(IndexError, match="lookup"):
        current_stream(0).synchronize()
    good = made.runner(x, from_host(np.array([[0], [4], [1]])))[0]
    np.testing.assert_array_equal(good.copy_to_host(), np.arange(20).reshape(5, 4)[[0, 4, 1]])


def test_empty_arrays_need_no_memory():
    e = empty((0, 3), np.dtype(np.float32), GPU.index)
    assert (e.address, e.nbytes, e.copy_to_host().shape) == (0, 0, (0, 3))
