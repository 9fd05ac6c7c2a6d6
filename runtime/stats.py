"""Counters of what the runtime did. Tests assert on them; ``weft.explain`` prints them.

>>> reset()
>>> count("compiles")
>>> snapshot()["compiles"]
1
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

_counters: Counter[str] = Counter()
_sources: dict[str, tuple[Callable[[], int], int]] = {}  # kept by native code, and where they began

NAMES = (
    "compiles",  # graphs lowered, emitted and compiled
    "objects_compiled",  # modules that went through LLVM's code generation
    "cache_memory_hits",
    "cache_disk_hits",
    "cache_disk_misses",
    "cache_disk_writes",
    "cache_disk_damaged",  # entries thrown away: checksum, format or load error
    "host_calls",  # operations run by Python from a native entry
    "eager_kernels",  # graphs compiled for operations of eager mode
    "kernels_launched",
    "bytes_allocated",  # fresh memory taken from the system by the caching allocator
    "blocks_allocated",
    "device_launches",  # kernels launched on GPUs
    "device_graph_launches",  # captured graphs issued again
    "device_allocations",  # segments taken from the driver by the caching allocator
    "device_bytes_allocated",
    "device_synchronisations",  # times that the host waited for a stream
    "cubins_assembled",  # modules that went through ptxas
)


def count(name: str, by: int = 1) -> None:
    """Add ``by`` to the counter ``name``."""
    _counters[name] += by


def add_source(name: str, read: Callable[[], int]) -> None:
    """Add what native code counts to the counter ``name``."""
    _sources[name] = (read, 0)


def snapshot() -> dict[str, int]:
    """All counters, zeros included."""
    out = dict.fromkeys(NAMES, 0) | dict(_counters)
    for name, (read, start) in _sources.items():
        out[name] += read() - start
    return out


def reset() -> None:
    """Set every counter to zero."""
    _counters.clear()
    for name, (read, _) in _sources.items():
        _sources[name] = (read, read())
