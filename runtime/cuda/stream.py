"""Streams and events, with PyTorch's meaning: each thread has a current stream per device, at first the
default one; work on one stream runs in order, and streams wait for one another by events."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from weft.runtime.cuda.device import DeviceState, current_device, device_state


class Stream:
    """A queue of work on a device, which runs in order. ``Stream()`` is one of the current device that nobody
    else holds; work on streams of a lower ``priority`` number goes first.

    ``cuda_stream`` is its handle; 0 is the default stream."""

    def __init__(
        self, device: int | None = None, priority: int = 0, handle: int | None = None,
        state: DeviceState | None = None,
    ) -> None:  # fmt: skip
        self._state = state or device_state(current_device() if device is None else device)
        self.device_index = self._state.index
        self.priority = priority
        self._owned = handle is None
        self.cuda_stream = self._state.take_stream(priority) if handle is None else handle

    def __del__(self) -> None:
        if getattr(self, "cuda_stream", 0) and self._owned:
            self._state.idle_streams[self.priority].append(self.cuda_stream)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Stream):
            return NotImplemented
        return (other.cuda_stream, other.device_index) == (self.cuda_stream, self.device_index)

    def __hash__(self) -> int:
        return hash((self.cuda_stream, self.device_index))

    def __repr__(self) -> str:
        return f"<Stream device=cuda:{self.device_index} cuda_stream={self.cuda_stream:#x}>"

    def synchronize(self) -> None:
        """Wait for all work on the stream. IndexError for an index that a kernel found out of range."""
        self._state.synchronize(self.cuda_stream)

    def query(self) -> bool:
        """Whether all work on the stream is done."""
        self._state.activate()
        return self._state.driver.is_ready("cuStreamQuery", self.cuda_stream)

    def record_event(self, event: Event | None = None) -> Event:
        """An event (a new one if none is given) recorded on this stream."""
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        """Let later work on this stream wait for an event."""
        event.wait(self)

    def wait_stream(self, stream: Stream) -> None:
        """Let later work on this stream wait for what is on the other one now."""
        self.wait_event(stream.record_event())


class Event:
    """A point in the work of a stream. With ``enable_timing`` the time between two can be asked for."""

    def __init__(self, enable_timing: bool = False) -> None:
        self._timing = enable_timing
        self._state: Any = None
        self._handle = 0

    def __del__(self) -> None:
        if getattr(self, "_handle", 0):
            _destroy(self._state, self._handle)

    def record(self, stream: Stream | None = None) -> None:
        """Set the event to what is on the stream (the current one) now. RuntimeError on another device than
        before."""
        stream = stream or current_stream()
        state = device_state(stream.device_index)
        if self._state is not None and self._state is not state:
            raise RuntimeError("an event is of the device on which it was first recorded")
        state.activate()
        if not self._handle:
            self._state, self._handle = state, state.driver.event_create(self._timing)
        state.driver.call("cuEventRecord", self._handle, stream.cuda_stream)

    def wait(self, stream: Stream | None = None) -> None:
        """Let later work on the stream (the current one) wait for the event."""
        if self._handle:
            stream = stream or current_stream()
            device_state(stream.device_index).activate()
            self._state.driver.call("cuStreamWaitEvent", stream.cuda_stream, self._handle, 0)

    def query(self) -> bool:
        """Whether the work before the event is done."""
        return not self._handle or self._state.driver.is_ready("cuEventQuery", self._handle)

    def synchronize(self) -> None:
        """Wait for the work before the event."""
        if self._handle:
            self._state.activate()
            self._state.driver.call("cuEventSynchronize", self._handle)

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds from this event to ``end``. RuntimeError unless both were recorded with timing."""
        if not (self._timing and end._timing):
            raise RuntimeError("both events must be made with enable_timing=True")
        if not (self._handle and end._handle):
            raise RuntimeError("both events must be recorded before their times are compared")
        return self._state.driver.event_elapsed(self._handle, end._handle)


def _destroy(state: Any, event: int) -> None:
    if not sys.is_finalizing():
        with contextlib.suppress(Exception):  # the driver may be gone before the last object
            state.activate()
            state.driver.call("cuEventDestroy_v2", event)


_tls = threading.local()


def _streams() -> dict[DeviceState, Stream]:
    found = getattr(_tls, "streams", None)
    if found is None:
        found = _tls.streams = {}
    return found


def default_stream(device: int | None = None) -> Stream:
    """The stream that work goes to where no other was chosen."""
    return Stream(device, handle=0)


def current_stream(device: int | None = None) -> Stream:
    """The stream that the calling thread's work on a device goes to."""
    return stream_of(device_state(current_device() if device is None else device))


def stream_of(state: DeviceState) -> Stream:
    """The same for a device whose state is at hand: each driver's devices have streams of their own, and to
    find the driver of this moment costs more than all else of a call."""
    found = _streams().get(state)
    if found is None:
        found = _streams()[state] = Stream(handle=0, state=state)
    return found


def set_stream(stream: Stream) -> None:
    """Make ``stream`` the calling thread's current stream of its device."""
    _streams()[stream._state] = stream
    stream._state.current.handle = stream.cuda_stream


@contextmanager
def using_stream(stream: Stream | None) -> Iterator[None]:
    """Make a stream current inside the block; None changes nothing."""
    if stream is None:
        yield
        return
    before = current_stream(stream.device_index)
    set_stream(stream)
    try:
        yield
    finally:
        set_stream(before)


def synchronize(device: int | None = None) -> None:
    """Wait for all work on a device. IndexError for an index that a kernel found out of range."""
    device_state(current_device() if device is None else device).synchronize_all()
