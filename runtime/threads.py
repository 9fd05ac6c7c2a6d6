"""The native thread pool."""

from __future__ import annotations

import os
from functools import cache

from weft.codegen.target import host_target
from weft.runtime import jit


def available_cpus() -> int:
    """CPUs this process may use: its affinity mask, cut by the cgroup's quota."""
    try:
        n = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        n = os.cpu_count() or 1
    return max(1, min(n, _cgroup_quota() or n))


def _cgroup_quota() -> int | None:
    """The CPU quota of the cgroup in whole CPUs, rounded up; None without a quota."""
    try:
        with open("/sys/fs/cgroup/cpu.max") as f:
            quota, period = f.read().split()[:2]
        return None if quota == "max" else -(-int(quota) // int(period))
    except (OSError, ValueError):
        pass
    try:
        base = "/sys/fs/cgroup/cpu/cpu.cfs_"
        with open(base + "quota_us") as f, open(base + "period_us") as g:
            n = int(f.read())
            return -(-n // int(g.read())) if n > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


_wanted: int | None = None


def get_num_threads() -> int:
    """Threads that a parallel kernel uses, the calling one included."""
    global _wanted
    if _wanted is None:
        text = os.environ.get("WEFT_NUM_THREADS", "")
        _wanted = max(1, int(text)) if text.isdigit() else available_cpus()
    return _wanted


def set_num_threads(n: int) -> None:
    """Use ``n`` threads from now on. Results do not depend on it."""
    global _wanted
    if not isinstance(n, int) or isinstance(n, bool):
        raise TypeError(f"set_num_threads expects an int, but got {type(n).__name__}")
    if n < 1:
        raise RuntimeError("set_num_threads expects a positive integer")
    _wanted = n


_PARALLEL_FOR = """
define void @weft_parallel_for(ptr %fn, ptr %bufs, i64 %units, i64 %grain) {
  call void %fn(ptr %bufs, i64 0, i64 %units, i64 0)
  ret void
}
"""


@cache
def parallel_for_address() -> int:
    """The address of ``weft_parallel_for``."""
    image = jit.compile_object(_PARALLEL_FOR, host_target())
    return jit.link(image, ("weft_parallel_for",), {})["weft_parallel_for"]
