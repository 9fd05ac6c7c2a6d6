"""The caching allocator: alignment, recycling, and no reuse of memory that something still holds."""

from __future__ import annotations

import gc
import os
import threading

import numpy as np
import pytest
import runtime_graphs as G
from weft.ir import prims as P
from weft.ir.prims.base import trace
from weft.ir.types import DTYPES, TensorType, f32, u8
from weft.runtime import buffers, compile_graph, stats


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shape_dtype_alignment(dtype):
    for shape in [(), (0,), (3, 4), (100, 100), (300, 1000)]:
        a = buffers.empty(shape, dtype)
        assert a.shape == shape and a.dtype == dtype.np and a.flags.c_contiguous and a.flags.writeable
        if a.nbytes >= buffers.SMALL:
            assert a.ctypes.data % buffers.ALIGN == 0


@pytest.mark.parametrize("n", [1, 63, 64, 65, 4096, 4097, 100_000, (1 << 20) + 1, 123_456_789])
def test_size_class(n):
    size = buffers.size_class(n)
    assert size >= n and size % buffers.ALIGN == 0 and buffers.size_class(size) == size
    assert size - n <= max(buffers.ALIGN, n // 8)


def test_memory_comes_back():
    stats.reset()
    seen = set()
    for _ in range(20):
        a = buffers.empty((1 << 20,), u8)
        seen.add(a.ctypes.data)
        del a
    assert len(seen) == 1 and stats.snapshot()["blocks_allocated"] <= 1


def test_a_view_keeps_the_memory():
    a = buffers.empty((100_000,), u8)
    view, address = a[5:10], a.ctypes.data
    view[:] = 7
    del a
    b = buffers.empty((100_000,), u8)
    assert b.ctypes.data != address
    b[:] = 1
    assert (view == 7).all()
    m = memoryview(view)
    del view
    c = buffers.empty((100_000,), u8)
    assert c.ctypes.data != address and bytes(m) == b"\7" * 5


def test_empty_cache_and_limit():
    buffers.empty_cache()
    assert buffers.POOL.cached == 0
    a = buffers.empty((1 << 16,), u8)
    del a
    gc.collect()
    assert buffers.POOL.cached > 0
    buffers.empty_cache()
    assert buffers.POOL.cached == 0


def test_empty_cache_takes_back_arenas():
    t = TensorType((300, 300), f32)

    def fn(x):
        return P.cumsum_p.bind(P.cumsum_p.bind(x, axis=0), axis=1)

    g = trace(fn, t)
    exe = compile_graph(g)
    assert exe.artifact.arena_bytes > 0
    first = exe.runner(*G.samples(g))[0].copy()
    buffers.empty_cache()
    assert buffers.POOL.cached == 0
    np.testing.assert_array_equal(exe.runner(*G.samples(g))[0], first)


def test_over_the_limit_other_sizes_are_let_go():
    pool = buffers.Pool(limit=300_000)
    few, many = [pool.take(50_000)], [pool.take(120_000) for _ in range(4)]
    for b in few + many:
        pool.give_back(b)
    assert 0 < pool.cached <= 300_000 and not pool.free_list(buffers.size_class(50_000))
    pool.give_back(pool.take(1_000_000))
    assert pool.cached <= buffers.size_class(1_000_000)


def test_threads_never_share_a_block():
    wrong = []

    def work(k):
        for _ in range(300):
            a = buffers.empty((5000,), u8)
            a[:] = k
            b = buffers.empty((5000,), u8)
            b[:] = k + 100
            if not ((a == k).all() and (b == k + 100).all()):
                wrong.append(k)

    ts = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for t in ts:
        t.start()
    for t in ts:
        t.join()
    assert not wrong


def test_steady_state_allocates_nothing():
    t = TensorType((200, 300), f32)

    def fn(x, y):
        return P.sum_p.bind(P.exp_p.bind(x) * y, axes=(1,)), P.cumsum_p.bind(x, axis=0) + y

    g = trace(fn, t, t)
    exe = compile_graph(g)
    x, y = G.samples(g)
    for _ in range(3):
        outs = exe.runner(x, y)
    stats.reset()
    for _ in range(50):
        outs = exe.runner(x, y)
    assert stats.snapshot()["blocks_allocated"] == 0
    assert np.isfinite(outs[0]).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
@pytest.mark.parametrize("n", [5000, 3 << 20])
def test_a_child_after_fork_has_memory_of_its_own(n):
    a = buffers.empty((n,), u8)
    a[:] = 1
    pid = os.fork()
    if not pid:
        a[:] = 2
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert a.min() == a.max() == 1
