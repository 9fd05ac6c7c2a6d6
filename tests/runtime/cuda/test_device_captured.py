"""Captured graphs: recorded launches run again on the same addresses."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import runtime_graphs as G
from device_graphs import on_device
from weft.ir.interp import run
from weft.runtime import compile_graph, stats
from weft.runtime.cuda.array import empty, from_host
from weft.runtime.cuda.device import device_state
from weft.runtime.cuda.graphs import CUDAGraph
from weft.runtime.cuda.stream import Event, Stream, current_stream

pytestmark = pytest.mark.gpu


def test_replays_read_the_arguments_anew():
    made = compile_graph(on_device(G.running(False, 3)))
    arrays = G.samples(G.running(False, 3))
    given = [from_host(a) for a in arrays]
    made.runner(*given)
    graph = CUDAGraph()
    with graph.capture():
        outs = made.runner(*given)
    for scale in (1, 2):
        given[2].copy_from_host(arrays[2] * scale)
        stats.reset()
        graph.replay()
        seen = stats.snapshot()
        assert (seen["device_graph_launches"], seen["device_launches"]) == (1, 0)
        want = run(G.running(False, 3), [*arrays[:2], arrays[2] * scale])
        for o, w in zip(outs, want, strict=True):
            np.testing.assert_allclose(o.copy_to_host(), w)


def test_its_memory_is_nobody_elses():
    made = compile_graph(on_device(G.tiny()))
    x, y = (from_host(a) for a in G.samples(G.tiny()))
    graph = CUDAGraph()
    with graph.capture():
        made.runner(x, y)  # a result that nobody holds
    gc.collect()
    allocator = device_state(0).allocator
    allocator.empty_cache()
    reserved = allocator.reserved()
    assert reserved >= 2 << 20
    graph.replay()
    current_stream().synchronize()
    del graph
    gc.collect()
    allocator.empty_cache()
    assert allocator.reserved() < reserved


def test_what_cannot_be_captured():
    x = from_host(np.zeros(8, np.float32))
    graph = CUDAGraph()
    with pytest.raises(RuntimeError, match="cannot wait for a stream"), graph.capture():
        x.copy_to_host()
    step = compile_graph(on_device(G.doubling()))
    with pytest.raises(RuntimeError, match=r"argument 0 of .* comes from the host"), graph.capture():
        step.runner(1, 2)
    with pytest.raises(RuntimeError, match="CAPTURE_UNSUPPORTED"), graph.capture():
        step.runner(from_host(np.array(1)), from_host(np.array(2)))
    with pytest.raises(RuntimeError, match="nothing was captured"):
        graph.replay()


def test_one_capture_a_graph():
    graph = CUDAGraph()
    x = from_host(np.ones(8, np.float32))
    with graph.capture():
        out = x.copy()
    with pytest.raises(RuntimeError, match="holds a capture already"), graph.capture():
        pass
    graph.replay()
    np.testing.assert_array_equal(out.copy_to_host(), np.ones(8))
    graph.reset()
    with graph.capture():
        x.copy()


def test_memory_may_be_taken_from_the_driver_while_capturing():
    graph = CUDAGraph()
    allocator = device_state(0).allocator
    with graph.capture():
        reserved = allocator.reserved()
        kept = empty((8 << 20,), np.dtype(np.float32))  # 32 MiB: a segment of its own
    assert kept.nbytes == 32 << 20 and allocator.reserved() > reserved


def test_the_host_cannot_ask_about_an_event_in_a_graph():
    graph, event = CUDAGraph(), Event()
    with graph.capture():
        event.record()
    with pytest.raises(RuntimeError, match="CAPTURED_EVENT"):
        event.query()
    event.record()
    assert event.query()


def test_other_modes_of_capture_refuse_what_waits():
    state = device_state(0)
    stream = Stream()
    state.activate()
    state.driver.call("cuStreamBeginCapture_v2", stream.cuda_stream, 1)  # of this thread
    try:
        with pytest.raises(RuntimeError, match="CAPTURE_UNSUPPORTED"):
            state.driver.malloc(512)
    finally:
        state.driver.call("cuGraphDestroy", state.driver.word("cuStreamEndCapture", stream.cuda_stream))
