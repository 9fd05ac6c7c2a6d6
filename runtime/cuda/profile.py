"""The time of each kernel within a call on a GPU: a build of the graph records events around its kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from weft.runtime import jit
from weft.runtime.cuda.array import DeviceArray, empty, from_host
from weft.runtime.cuda.build import build_for_device
from weft.runtime.cuda.device import DeviceState
from weft.runtime.cuda.executable import DeviceArtifact, DeviceExecutable
from weft.runtime.cuda.stream import Event, Stream, stream_of
from weft.runtime.host import host_target

_FIRST = 256  # events of a call there is room for at first


class Marks:
    """Events that native code records, two for each run of a kernel, with the number of the kernel. In
    memory: how many there were, how many there is room for, then (kernel, event)."""

    def __init__(self, state: DeviceState, room: int) -> None:
        self.state, self.room = state, room
        state.activate()
        self.events = [state.driver.event_create(timing=True) for _ in range(room)]
        self.words = (ctypes.c_int64 * (2 + 2 * room))(0, room)
        self.words[3::2] = self.events
        self.address = ctypes.addressof(self.words)

    @property
    def count(self) -> int:
        return self.words[0]

    def clear(self) -> None:
        self.words[0] = 0

    def seconds(self, kernels: int) -> np.ndarray:
        """The time of each kernel, all its runs together."""
        out = np.zeros(kernels)
        for k in range(0, self.count, 2):
            elapsed = self.state.driver.event_elapsed(self.events[k], self.events[k + 1])
            out[self.words[2 + 2 * k]] += elapsed * 1e-3
        return out

    def close(self) -> None:
        for event in self.events:
            self.state.driver.call("cuEventDestroy_v2", event)


def kernel_seconds(executable: DeviceExecutable, arrays: Sequence[Any], repeats: int) -> list[float]:
    """Seconds of each kernel of ``executable`` on ``arrays``, the least of ``repeats`` calls. Each of these
    is issued behind another, so that the device is busy until all of it is there."""
    state = executable.state
    if state is None:
        raise RuntimeError(f"{executable.name} was compiled for {executable.target.name}, not to run here")
    built = build_for_device(executable.graph, executable.target, host_target(), {}, profile=True)
    image = jit.compile_object(built.entry, host_target(), level=0)
    artifact = DeviceArtifact.of(built, image, executable.artifact.cubin, executable.artifact.target)
    found, room = None, _FIRST
    while found is None:
        marks = Marks(state, room)
        try:
            profiled = DeviceExecutable(
                executable.graph, {}, executable.target, state, executable.name, artifact, built,
                marks.address,
            )  # fmt: skip
            found = _measured(profiled, marks, arrays, repeats)
            room = marks.count
        finally:
            marks.close()
    return found


def _measured(
    profiled: DeviceExecutable, marks: Marks, arrays: Sequence[Any], repeats: int
) -> list[float] | None:
    """Seconds of each kernel; None where there is no room for all events of a call."""
    assert profiled.state is not None
    given = [profiled.argument(i, a) for i, a in enumerate(arrays)]
    best = np.full(profiled.n_kernels, np.inf)
    for _ in range(max(repeats, 1)):
        profiled.runner(*given)
        marks.clear()
        profiled.runner(*given)
        profiled.state.synchronize(stream_of(profiled.state).cuda_stream)
        if marks.count > marks.room:
            return None
        best = np.minimum(best, marks.seconds(len(best)))
    return [float(s) for s in best]


@lru_cache
def limits(state: DeviceState) -> dict[str, float]:
    """``bytes`` per second of a large copy, and ``flops`` per second of a product of matrices of float32,
    measured once for each device."""
    from weft.runtime import compile_graph

    emulated = state.driver.kind == "emulate"  # which takes seconds for what a GPU does in microseconds
    n, size = (64, 1 << 20) if emulated else (4096, 1 << 28)
    source, target = (empty((size,), np.dtype(np.uint8), state.index) for _ in range(2))
    source.fill_zero()
    a = from_host(np.ones((n, n), np.float32), state.index)
    product = compile_graph(_product(a), name="measured_product").runner
    copied = _best(state, lambda: target.copy_from(source))
    return {"bytes": 2 * size / copied, "flops": 2 * n**3 / _best(state, lambda: product(a, a))}


def _product(a: DeviceArray) -> Any:
    from weft.ir import prims as P
    from weft.ir.graph import GraphBuilder

    b = GraphBuilder("product")
    x, y = b.param(a.type), b.param(a.type)
    return b.finish(b.add(P.dot_general_p, (x, y), {"contract": ((1,), (0,)), "batch": ((), ())}))


def _best(state: DeviceState, work: Any, repeats: int = 5) -> float:
    """Seconds of the fastest of some runs."""
    stream = Stream(handle=stream_of(state).cuda_stream, state=state)
    times = []
    for _ in range(repeats):
        start, end = Event(enable_timing=True), Event(enable_timing=True)
        work()
        start.record(stream)
        work()
        end.record(stream)
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e-3)
    return max(min(times), 1e-9)
