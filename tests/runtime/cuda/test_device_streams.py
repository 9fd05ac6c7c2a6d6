"""Streams and events, and the current stream of each thread."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
import runtime_graphs as G
from device_graphs import device_arrays, on_device
from weft.ir.interp import run
from weft.runtime import compile_graph
from weft.runtime.cuda.array import empty
from weft.runtime.cuda.device import current_device, device_state, set_device
from weft.runtime.cuda.stream import (
    Event,
    Stream,
    current_stream,
    default_stream,
    synchronize,
    using_stream,
)

pytestmark = pytest.mark.gpu


def test_the_current_stream_is_the_default_one_at_first():
    assert current_stream() == default_stream() and current_stream().cuda_stream == 0
    with using_stream(Stream()) as _:
        assert current_stream().cuda_stream != 0
    with using_stream(None):
        assert current_stream().cuda_stream == 0


def test_each_thread_has_its_own():
    seen = []
    with using_stream(Stream()):
        t = threading.Thread(target=lambda: seen.append(current_stream().cuda_stream))
        t.start()
        t.join()
    assert seen == [0]


def test_work_goes_to_the_current_stream():
    stream = Stream()
    made, given = compile_graph(on_device(G.tiny())), device_arrays(G.samples(G.tiny()))
    with using_stream(stream):
        out = made.runner(*given)[0]
        assert out.owner.block.stream == stream.cuda_stream
        stream.synchronize()
        np.testing.assert_allclose(out.copy_to_host(), run(G.tiny(), G.samples(G.tiny()))[0], rtol=1e-6)
    assert stream.query()


def test_events():
    start, end = Event(enable_timing=True), Event(enable_timing=True)
    with pytest.raises(RuntimeError, match="must be recorded"):
        start.elapsed_time(end)
    start.record()
    end.record()
    end.synchronize()
    assert end.query() and start.elapsed_time(end) >= 0
    with pytest.raises(RuntimeError, match="enable_timing=True"):
        start.elapsed_time(Event())
    other = Stream()
    other.wait_event(end)
    current_stream().wait_stream(other)
    synchronize()


def test_an_event_stays_on_its_device():
    event = default_stream(0).record_event()
    with pytest.raises(RuntimeError, match="of the device"):
        event.record(default_stream(1))


def test_the_current_device():
    assert current_device() == 0
    set_device(1)
    try:
        assert empty((2,), np.dtype(np.float32)).device.index == 1
        assert Stream().device_index == 1
    finally:
        set_device(0)
    with pytest.raises(RuntimeError, match="invalid device ordinal: cuda:99"):
        set_device(99)


def test_the_handle_of_a_dead_stream_is_taken_again():
    first = Stream()
    handle = first.cuda_stream
    assert Stream().cuda_stream != handle
    del first
    gc.collect()
    assert handle in device_state(0).idle_streams[0]
    assert Stream(priority=-1).cuda_stream != handle  # which has another priority
    held = [Stream() for _ in range(1 + len(device_state(0).idle_streams[0]))]
    assert handle in [s.cuda_stream for s in held]
