"""The call that is written for a graph of a GPU: what it takes itself, what it leaves to the general path."""

from __future__ import annotations

import numpy as np
import pytest
import runtime_graphs as G
from device_graphs import fetched, on_device
from weft.ir import prims as P
from weft.ir.graph import Graph
from weft.ir.prims.base import trace
from weft.ir.types import TensorType, bf16, bool_, f16, f32, f64, i32, i64
from weft.runtime import compile_graph, stats
from weft.runtime.cuda import callcode, profile
from weft.runtime.cuda.array import DeviceArray, dense_of, from_host
from weft.runtime.cuda.device import device_state
from weft.runtime.cuda.driver import CudaError
from weft.runtime.cuda.executable import DeviceExecutable

pytestmark = pytest.mark.gpu

ROW = TensorType((8,), f32)


def scaled(dtype=f64) -> Graph:
    """x * k for a number k."""

    def fn(x, k):
        factor = P.broadcast_p.bind(P.convert_p.bind(k, dtype=f32), shape=(8,), axes=())
        return x * factor

    return trace(fn, ROW, TensorType((), dtype))


def watched(graph: Graph, donate=None):
    """The call of a graph, and a list of the argument lists that went to the general path."""
    made = compile_graph(on_device(graph), donate=donate)
    assert isinstance(made, DeviceExecutable)
    seen = []

    def slow(*arrays):
        seen.append(arrays)
        return made._run(*arrays)

    return made.native_runner(slow), seen


def row(value=1.0) -> DeviceArray:
    return from_host(np.full(8, value, np.float32))


def test_dense_arrays_of_one_kind_share_it():
    a, b = row(), row(2.0)
    assert a.dense is b.dense is dense_of(a.state, (8,), np.dtype(np.float32))
    assert a[::2].dense is None and a[1:].dense is None  # with gaps, and misaligned
    assert a[4:].dense is dense_of(a.state, (4,), np.dtype(np.float32))
    assert a.view(np.int32).dense is dense_of(a.state, (8,), np.dtype(np.int32))
    assert a.reshape((2, 4)).dense.strides == (16, 4)


def test_dense_arrays_go_straight_and_others_the_general_way():
    call, seen = watched(trace(lambda x, y: x + y, ROW, ROW))
    np.testing.assert_array_equal(fetched(call(row(), row(2.0)))[0], np.full(8, 3.0))
    assert not seen
    wide = from_host(np.arange(16, dtype=np.float32))
    np.testing.assert_array_equal(fetched(call(wide[::2], row()))[0], np.arange(0, 16, 2) + 1.0)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("dtype", "value"), [(f64, 0.5), (i64, 3), (bool_, True)], ids=lambda x: getattr(x, "name", None)
)
def test_python_numbers_travel_with_the_call(dtype, value):
    call, seen = watched(scaled(dtype))
    np.testing.assert_array_equal(fetched(call(row(4.0), value))[0], np.full(8, 4.0 * value))
    other = from_host(np.full((), value, dtype.np))
    np.testing.assert_array_equal(fetched(call(row(4.0), other))[0], np.full(8, 4.0 * value))
    assert not seen


@pytest.mark.parametrize("dtype", [f32, f16, i32], ids=lambda d: d.name)
def test_numbers_in_numpy_arrays_travel_with_the_call(dtype):
    call, seen = watched(scaled(dtype))
    np.testing.assert_array_equal(fetched(call(row(4.0), np.array(3, dtype.np)))[0], np.full(8, 12.0))
    assert not seen


def test_special_values_of_numbers_arrive_as_they_are():
    call, seen = watched(scaled(f32))
    for value in (np.inf, -np.inf, np.nan, -0.0, 1e-45):
        expected = np.float32(value) * np.ones(8, np.float32)
        np.testing.assert_array_equal(fetched(call(row(), np.array(value, np.float32)))[0], expected)
    assert not seen


def test_numbers_that_the_call_cannot_pack_go_the_general_way():
    call, seen = watched(scaled(bf16))
    np.testing.assert_array_equal(fetched(call(row(4.0), np.array(2, bf16.np)))[0], np.full(8, 8.0))
    assert len(seen) == 1


def test_donated_memory_is_written_and_what_shares_it_keeps_its_value():
    call, seen = watched(trace(lambda x, y: x + y, ROW, ROW), donate={0: 0})
    x = row(1.0)
    (out,) = call(x, row(2.0))
    assert out is x and not seen
    np.testing.assert_array_equal(fetched([x])[0], np.full(8, 3.0))
    call(x, x)
    assert len(seen) == 1
    np.testing.assert_array_equal(fetched([x])[0], np.full(8, 6.0))


def test_wrong_numbers_of_arguments_go_the_general_way():
    call, seen = watched(trace(lambda x, y: x + y, ROW, ROW))
    for given in ((), (row(),), (row(), row(), row())):
        with pytest.raises(TypeError, match=f"takes 2 arrays, but got {len(given)}"):
            call(*given)
    assert [len(s) for s in seen] == [0, 1, 3]


def test_a_second_call_takes_no_memory_from_the_driver_and_waits_for_nothing():
    call, _ = watched(trace(lambda x, y: P.tanh_p.bind(x * y), ROW, ROW))
    x, y = row(), row(2.0)
    call(x, y)
    stats.reset()
    for _ in range(3):
        call(x, y)
    seen = stats.snapshot()
    assert (seen["device_launches"], seen["device_allocations"], seen["device_synchronisations"]) == (3, 0, 0)


def test_errors_of_the_driver_are_raised_once_and_leave_the_call_usable():
    call, _ = watched(trace(lambda x: P.tanh_p.bind(x), ROW))
    state = device_state(0)
    bad = DeviceArray(state, 16, (8,), np.dtype(np.float32))  # nobody's memory
    assert bad.dense is not None
    if state.driver.kind == "emulate":
        with pytest.raises(CudaError, match="running"):
            call(bad)
    np.testing.assert_allclose(fetched(call(row(0.0)))[0], np.zeros(8))


def test_graphs_of_one_form_share_the_text():
    first, second = (trace(lambda x, y: x + y, t, t) for t in (ROW, TensorType((3, 5), f64)))
    watched(first)
    before = callcode.code_of.cache_info().misses
    watched(second)
    assert callcode.code_of.cache_info().misses == before


def test_seconds_of_kernels():
    def fn(x, y):
        return P.sum_p.bind(P.tanh_p.bind(x * y), axes=(0,)), P.cumsum_p.bind(x, axis=0)

    made = compile_graph(on_device(trace(fn, ROW, ROW)))
    seconds = made.kernel_seconds([np.ones(8, np.float32)] * 2, repeats=2)
    assert len(seconds) == len(made.kernels) == 2
    assert all(0 < s < 60 for s in seconds)


def test_seconds_of_kernels_in_a_loop_are_those_of_all_rounds(monkeypatch):
    made = compile_graph(on_device(G.running(False)))
    plain = made.kernel_seconds(G.samples(made.graph), repeats=1)
    monkeypatch.setattr(profile, "_FIRST", 2)  # fewer events than the call records
    again = made.kernel_seconds(G.samples(made.graph), repeats=1)
    assert len(plain) == len(again) == len(made.kernels)
    assert any(s > 0 for s in again)
