"""Graphs that compute on a GPU and, with small values, on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
from device_graphs import GPU
from weft.ir import prims as P
from weft.ir.prims.base import trace
from weft.ir.types import CPU, TensorType, f32, i64
from weft.runtime import compile_graph, stats
from weft.runtime.cuda.array import DeviceArray, from_host

pytestmark = pytest.mark.gpu
ROW, STEP = TensorType((8,), f32, GPU), TensorType((), i64)
X = np.arange(8, dtype=np.float32)


def spread(value):
    return P.broadcast_p.bind(value, shape=(8,), axes=())


def step(w, count):
    """An optimizer's step: the count of steps stays on the CPU, the rate that follows from it is used on the
    GPU."""
    count = count + 1
    rate = P.transfer_p.bind(P.convert_p.bind(count, dtype=f32), device=GPU)
    return w * spread(rate), count


def test_both_sides_give_their_results():
    made = compile_graph(trace(step, ROW, STEP))
    w, count = from_host(X), np.array(2)
    for expected in (3, 4):
        stats.reset()
        w, count = made.runner(w, count)
        assert isinstance(w, DeviceArray) and isinstance(count, np.ndarray)
        assert stats.snapshot()["device_synchronisations"] == 0
        assert count == expected
    np.testing.assert_array_equal(w.copy_to_host(), X * 12)
    assert made.out_types[0].device == GPU and made.out_types[1].device == CPU


def test_donations_go_to_their_sides():
    made = compile_graph(trace(step, ROW, STEP), donate={0: 0, 1: 1})
    w, count = from_host(X), np.array(2)
    outs = made.runner(w, count)
    assert outs[0] is w and outs[1] is count and count == 3
    np.testing.assert_array_equal(w.copy_to_host(), X * 3)


def test_arrays_of_any_size_may_cross():
    t = TensorType((300,), f32)
    there = TensorType((300,), f32, GPU)
    made = compile_graph(trace(lambda a, b: P.transfer_p.bind(a, device=GPU) + b, t, there))
    a = np.linspace(0, 1, 300, dtype=np.float32)
    np.testing.assert_array_equal(made.runner(a, from_host(a))[0].copy_to_host(), a + a)


def test_results_may_be_fetched():
    made = compile_graph(trace(lambda x: (P.transfer_p.bind(x + x, device=CPU), x * x), ROW))
    fetched, square = made.runner(from_host(X))
    assert isinstance(fetched, np.ndarray)
    np.testing.assert_array_equal(fetched, X + X)
    np.testing.assert_array_equal(square.copy_to_host(), X * X)


def test_the_cpu_cannot_go_on_with_what_the_gpu_made():
    def fn(x):
        back = P.transfer_p.bind(x + x, device=CPU)
        return back * back

    with pytest.raises(RuntimeError, match="mul on the CPU reads what the same graph computes on a GPU"):
        compile_graph(trace(fn, ROW))


def test_a_value_crosses_once():
    def fn(c):
        a, b = (P.transfer_p.bind(c, device=GPU) for _ in range(2))
        return spread(a) * spread(b)

    made = compile_graph(trace(fn, TensorType((), f32)))
    assert len(made._device.in_types) == 1
    np.testing.assert_array_equal(made.runner(np.float32(3))[0].copy_to_host(), np.full(8, 9))


def test_what_is_broadcast_crosses_as_a_number():
    def fn(w, count):
        scale = P.broadcast_p.bind(P.convert_p.bind(count + 1, dtype=f32), shape=(8,), axes=())
        half = P.full_p.bind(shape=(8,), dtype=f32, value=0.5)
        return w * P.transfer_p.bind(scale, device=GPU) * P.transfer_p.bind(half, device=GPU)

    made = compile_graph(trace(fn, ROW, STEP))
    assert [str(t) for t in made._device.in_types] == ["f32[8]@cuda:0", "i64[]@cuda:0"]
    stats.reset()
    out = made.runner(from_host(X), np.array(3))[0]
    assert stats.snapshot()["kernels_launched"] == 0 and stats.snapshot()["device_launches"] == 1
    np.testing.assert_array_equal(out.copy_to_host(), X * 2)


def test_operands_of_both_sides_do_not_mix():
    with pytest.raises(TypeError, match="operands on different devices"):
        trace(lambda a, b: a + b, ROW, TensorType((8,), f32))
