"""The time of each kernel within a call, from a build of the graph with clocks between its kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from weft.runtime import buffers, hostcall, jit, shared, threads
from weft.runtime.build import build
from weft.runtime.executable import Executable
from weft.runtime.jit import ENTRY

_TIMES = "weft_times"
_CLOCK = jit.LIBC | {"clock_gettime"}


def kernel_seconds(executable: Executable, arrays: Sequence[Any], repeats: int) -> list[float]:
    """Seconds of each kernel of ``executable`` on ``arrays``, the least of ``repeats`` calls."""
    built = build(executable.graph, executable.target, {}, profile=True)
    image = jit.compile_object(built.module, executable.target)
    imports = {
        "weft_parallel_for": threads.parallel_for_address(),
        "weft_host": hostcall.callback_address(),
        **shared.addresses(built.shared, executable.target),
    }
    found = jit.link(image, (ENTRY, _TIMES), imports, _CLOCK)
    times = (ctypes.c_int64 * max(len(built.kernels), 1)).from_address(found[_TIMES])
    entry = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(found[ENTRY])
    context = hostcall.register(built.hosts) if built.hosts else 0
    ins = [executable.argument(i, a) for i, a in enumerate(arrays)]
    outs = [buffers.empty(t.shape, t.dtype) for t in executable.out_types]
    best = np.full(len(built.kernels), np.iinfo(np.int64).max)
    for _ in range(max(repeats, 1)):
        ctypes.memset(times, 0, ctypes.sizeof(times))
        executable.enter(entry, ins, outs, built.arena_bytes, context)
        best = np.minimum(best, np.array(times[: len(best)], np.int64))
    return [float(ns) * 1e-9 for ns in best]
