"""Compiled graphs give what the interpreter gives: operations, control flow, donation, errors."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest
import runtime_graphs as G
from weft.ir import prims as P
from weft.ir.interp import run
from weft.ir.prims.base import trace
from weft.ir.types import TensorType, bool_, c64, f32, f64, i64
from weft.runtime import compile as compiling
from weft.runtime import compile_graph, stats


def same(graph, *arrays, **kwargs):
    want = [np.array(w) for w in run(graph, [np.array(a) for a in arrays])]
    got = compile_graph(graph, **kwargs).call(list(arrays))
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert g.dtype == w.dtype and g.shape == w.shape
        np.testing.assert_allclose(g, w, rtol=1e-6, atol=1e-7)
    return got


def test_two_tensor_expression():
    g = G.tiny()
    same(g, *G.samples(g))


def test_several_results_and_views():
    reshape = P.reshape_p.bind
    g = trace(lambda x: (reshape(x + x, shape=(2, 4)), x * x, reshape(x, shape=(4, 2))), G.F8)
    same(g, *G.samples(g))


def test_result_that_is_a_param_is_a_copy():
    g = trace(lambda x, y: (x, y, x, x + y), G.F8, G.F8)
    x, y = G.samples(g)
    got = same(g, x, y)
    for i, a in enumerate(got):
        assert not any(np.shares_memory(a, b) for b in [x, y, *got[:i]])


def test_constants_and_empty_values():
    c = np.arange(6, dtype=np.float64).reshape(2, 3)
    t = TensorType((2, 3), f64)

    def fn(x, e):
        k = P.constant_p.bind(value=c)
        return x + k, k, e + e, P.sum_p.bind(e, axes=(0, 1))

    g = trace(fn, t, TensorType((0, 3), f32))
    same(g, *G.samples(g))


def test_complex_runs_in_python():
    t = TensorType((4,), c64)
    g = trace(lambda x, y: x * y + x, t, t)
    stats.reset()
    same(g, np.complex64([1, 2j, 3 + 1j, -1]), np.full(4, 2 - 1j, np.complex64))
    assert stats.snapshot()["host_calls"] > 0


@pytest.mark.parametrize("flag", [True, False])
def test_cond(flag):
    same(G.either(), np.array(flag), G.sample(G.F8))


@pytest.mark.parametrize("n", [0, 1, 2, 3, 17, 1000])
def test_while_loop(n):
    same(G.doubling(), np.int64(1), np.int64(n))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [0, 1, 2, 5])
def test_scan(reverse, length):
    g = G.running(reverse, length)
    same(g, *G.samples(g))


def test_scan_inside_while_inside_cond():
    row, rows = TensorType((3,), f64), TensorType((4, 3), f64)
    step = trace(lambda s, x: (s + x, s * x), row, row)
    three = np.array(3)
    test = trace(lambda s, k, xs: P.lt_p.bind(k, P.constant_p.bind(value=three)), row, G.I0, rows)

    def body(s, k, xs):
        s2, ys = P.scan_p.bind(s, xs, n_carry=1, length=4, regions=(step,))
        return s2, k + 1, ys

    loop = trace(body, row, G.I0, rows)

    def many(s, xs):
        zero = P.full_p.bind(shape=(), dtype=i64, value=0)
        return P.while_loop_p.bind(s, zero, xs, regions=(test, loop))[0]

    yes = trace(many, row, rows)
    no = trace(lambda s, xs: s * s, row, rows)
    g = trace(lambda p, s, xs: P.cond_p.bind(p, s, xs, regions=(yes, no)), TensorType((), bool_), row, rows)
    s, xs = np.arange(3) / 7, np.arange(12).reshape(4, 3) / 9
    same(g, np.array(True), s, xs)
    same(g, np.array(False), s, xs)


def test_donation_writes_into_the_parameter():
    g = trace(lambda p, g: p - g * g, G.F8, G.F8)
    p, d = G.samples(g)
    want = run(g, [p, d])[0]
    (out,) = compile_graph(g, donate={0: 0}).runner(p, d)
    assert out is p
    np.testing.assert_allclose(p, want, rtol=1e-6)


def test_donation_of_a_swap_and_of_an_old_value():
    g = trace(lambda a, b: (b, a, a + b), G.F8, G.F8)
    a, b = G.samples(g)
    a0, b0 = a.copy(), b.copy()
    outs = compile_graph(g, donate={0: 0, 1: 1}).runner(a, b)
    np.testing.assert_array_equal(a, b0)
    np.testing.assert_array_equal(b, a0)
    np.testing.assert_array_equal(outs[2], a0 + b0)


def test_donation_to_a_non_contiguous_argument():
    g = trace(lambda p: p + p, TensorType((4,), f32))
    base = np.arange(8, dtype=np.float32)
    compile_graph(g, donate={0: 0}).call([base[::2]])
    np.testing.assert_array_equal(base, [0, 1, 4, 3, 8, 5, 12, 7])


def test_argument_that_shares_memory_with_a_donated_one():
    t = TensorType((8,), f32)

    def fn(p, q):
        first = p + q
        return first, first * q

    exe = compile_graph(trace(fn, t, t), donate={0: 0})
    base = np.arange(16, dtype=np.float32)
    for p, q in [(base[:8], base[8:]), (base[:8], base[4:12]), (base[:8], base[:8]), (base[:8], base[8:])]:
        for call in (exe.runner, lambda *a: exe.call(list(a))):
            p0, q0 = p.copy(), q.copy()
            outs = call(p, q)
            np.testing.assert_array_equal(p, p0 + q0)
            np.testing.assert_array_equal(outs[1], (p0 + q0) * q0)


def test_general_path_gives_the_same():
    g = trace(lambda p, q: (p + q, P.exp_p.bind(q), p * q), G.F8, G.F8)
    exe = compile_graph(g, donate={0: 0})
    p, q = G.samples(g)
    p2 = p.copy()
    for a, b in zip(exe.runner(p, q), exe._general(p2, q), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(p, p2)


def test_read_only_array_cannot_be_donated():
    g = trace(lambda p, q: p + q, G.F8, G.F8)
    p, q = G.samples(g)
    p.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        compile_graph(g, donate={0: 0}).runner(p, q)


def test_donation_is_checked():
    g = trace(lambda p, q: (p + p, q), G.F8, TensorType((4,), f32))
    with pytest.raises(ValueError, match="result 1"):
        compile_graph(g, donate={1: 0})
    with pytest.raises(ValueError, match="two results"):
        compile_graph(trace(lambda p: (p + p, p * p), G.F8), donate={0: 0, 1: 0})


def test_call_checks_its_arguments():
    exe = compile_graph(G.tiny(), name="tiny")
    x = G.sample(G.F8)
    with pytest.raises(TypeError, match="takes 2 arrays, but got 1"):
        exe.call([x])
    with pytest.raises(TypeError, match="argument 1"):
        exe.call([x, x.astype(np.float64)])
    with pytest.raises(ValueError, match="argument 0"):
        exe.call([x[:4], x])


def test_call_takes_any_layout():
    g = trace(lambda x, y: x + y, TensorType((3, 4), f32), TensorType((3, 4), f32))
    x = np.asfortranarray(G.sample(g.params[0].type))
    y = np.arange(48, dtype=np.float32).reshape(6, 8)[::2, ::-2]
    same(g, x, y)


def test_python_numbers_as_scalars():
    t = TensorType((), f64)
    types = t, t, G.I0, TensorType((), bool_)
    g = trace(lambda x, lr, k, p: (x * lr, k + k, P.where_p.bind(p, x, lr)), *types)
    exe = compile_graph(g)
    for k in (7, -3, 2**40):
        got = exe.runner(np.array(2.0), 0.5, k, True)
        assert [float(got[0]), int(got[1]), float(got[2])] == [1.0, 2 * k, 2.0]
    assert float(exe.runner(np.array(2.0), 0.25, 1, False)[2]) == 0.25


def test_same_graph_compiles_once():
    stats.reset()
    t = TensorType((11,), f32)
    first = compile_graph(trace(lambda x: P.exp_p.bind(x) + x, t))
    again = compile_graph(trace(lambda x: P.exp_p.bind(x) + x, t))
    assert first is again and stats.snapshot()["cache_memory_hits"] == 1


def test_index_out_of_range_raises():
    t = TensorType((5, 2), f32)
    g = trace(lambda x, i: P.gather_p.bind(x, i, axes=(0,)), t, TensorType((3, 1), i64))
    x = G.sample(t)
    same(g, x, np.array([[0], [4], [2]]))
    with pytest.raises(IndexError):
        compile_graph(g).runner(x, np.array([[0], [5], [2]]))
    same(g, x, np.array([[1], [1], [3]]))


def test_threads_may_share_an_executable():
    t = TensorType((50, 40), f32)
    g = trace(lambda x, y: P.exp_p.bind(x - y) * x + P.sqrt_p.bind(P.abs_p.bind(y)), t, t)
    exe = compile_graph(g)
    wrong = []

    def work(seed):
        x, y = G.sample(t, seed), G.sample(t, seed + 100)
        want = exe.runner(x, y)[0].copy()
        for _ in range(50):
            (got,) = exe.runner(x, y)
            if not np.array_equal(got, want):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for th in threads:
        th.start()
    for th in threads:
        th.join()
    assert not wrong


def test_executables_can_be_freed_and_runners_live_on_their_own():
    exe = compile_graph(trace(lambda x: x * x - x, TensorType((13,), f32)))
    runner, gone = exe.runner, weakref.ref(exe)
    compiling._memory.clear()
    del exe
    gc.collect()
    x = np.arange(13, dtype=np.float32)
    np.testing.assert_array_equal(runner(x)[0], x * x - x)
    np.testing.assert_array_equal(runner(x[::-1])[0], (x * x - x)[::-1])  # by way of the general path
    del runner
    gc.collect()
    assert gone() is None


def test_no_params_no_results_unused_params():
    def fill():
        return P.full_p.bind(shape=(3,), dtype=f32, value=2.0), P.iota_p.bind(shape=(4,), dtype=i64, axis=0)

    a, b = compile_graph(trace(fill)).runner()
    assert a.tolist() == [2, 2, 2] and b.tolist() == [0, 1, 2, 3]
    assert compile_graph(trace(lambda x: [], G.F8)).runner(G.sample(G.F8)) == []
    unused = trace(lambda x, y: x + x, G.F8, TensorType((3, 0), f32))
    same(unused, G.sample(G.F8), np.empty((3, 0), np.float32))


def test_more_calls_at_once_than_arenas():
    t = TensorType((60, 60), f32)
    exe = compile_graph(trace(lambda x: P.cumsum_p.bind(P.cumsum_p.bind(x, axis=0), axis=1), t))
    x = G.sample(t)
    want = exe.runner(x)[0].copy()
    wrong = []

    def work():
        for _ in range(20):
            if not np.array_equal(exe.runner(x)[0], want):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(40)]
    for th in threads:
        th.start()
    for th in threads:
        th.join()
    assert not wrong
