"""The runtime: buffers, threads, the just-in-time linker, executables and the kernel cache."""

from __future__ import annotations

from weft.runtime import buffers, stats
from weft.runtime.compile import compile_graph, compile_only
from weft.runtime.executable import Executable
from weft.runtime.threads import get_num_threads, set_num_threads

__all__ = [
    "Executable", "buffers", "compile_graph", "compile_only", "get_num_threads", "set_num_threads", "stats",
]  # fmt: skip
