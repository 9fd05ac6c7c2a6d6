"""CUDA graphs: the launches of some calls recorded once, and issued again by one call of the driver.

As PyTorch's ``CUDAGraph``: what is captured runs on the same addresses at each replay, so its arguments are
arrays that stay, and new values are copied into them first. Memory for what it computes comes from a stream
of its own, and is nobody else's until the graph dies.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from weft.runtime import stats
from weft.runtime.cuda import api
from weft.runtime.cuda.device import current_device, device_state
from weft.runtime.cuda.stream import Stream, set_stream, stream_of


class CUDAGraph:
    """Captured work of a device; ``replay`` issues it on the current stream.

    Only launches and copies of the device can be captured: what waits for the device, takes numbers from the
    host or computes there raises RuntimeError.
    """

    def __init__(self, device: int | None = None) -> None:
        self._state = device_state(current_device() if device is None else device)
        self._stream = Stream(self._state.index)
        self._state.allocator.private.add(self._stream.cuda_stream)
        self._graph = 0
        self._before: Stream | None = None  # the current stream outside of a capture

    def __del__(self) -> None:
        if not sys.is_finalizing() and hasattr(self, "_stream"):
            with contextlib.suppress(Exception):  # the driver may be gone before the last object
                self.reset()
                self._state.driver.call("cuCtxSynchronize")  # replays may be under way on any stream
                self._state.allocator.end_private(self._stream.cuda_stream)

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Record what is issued inside the block, which is not run. RuntimeError where it cannot be."""
        self.capture_begin()
        try:
            yield
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is what matters
                self.capture_end()
                self.reset()
            raise
        self.capture_end()

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
        """Record what the calling thread issues from now on. Memory is always the graph's own, and other
        threads are not disturbed, whatever ``pool`` and ``capture_error_mode`` say."""
        if self._graph:
            raise RuntimeError("this graph holds a capture already; reset it first")
        if self._before is not None:
            raise RuntimeError("this graph is being captured already")
        handle = self._stream.cuda_stream
        before = stream_of(self._state)
        self._stream.wait_stream(before)
        self._state.activate()
        self._state.driver.call("cuStreamBeginCapture_v2", handle, api.CAPTURE_RELAXED)
        self._state.capturing.add(handle)
        self._before = before
        set_stream(self._stream)

    def capture_end(self) -> None:
        """End the recording. RuntimeError where there was none, or something in it could not be recorded."""
        if self._before is None:
            raise RuntimeError("no capture was begun")
        set_stream(self._before)
        self._before = None
        driver, handle = self._state.driver, self._stream.cuda_stream
        self._state.capturing.discard(handle)
        found = driver.word("cuStreamEndCapture", handle)
        self._graph = driver.instantiate(found)
        driver.call("cuGraphDestroy", found)

    def replay(self) -> None:
        """Issue the captured work on the current stream. RuntimeError where nothing was captured."""
        if not self._graph:
            raise RuntimeError("nothing was captured in this graph")
        self._state.activate()
        stats.count("device_graph_launches")
        stream = stream_of(self._state).cuda_stream
        self._state.driver.call("cuGraphLaunch", self._graph, stream)

    def reset(self) -> None:
        """Forget what was captured."""
        if self._graph:
            self._state.activate()
            self._state.driver.call("cuGraphExecDestroy", self._graph)
            self._graph = 0
