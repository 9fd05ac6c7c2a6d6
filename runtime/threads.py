"""The native thread pool: how many threads it has, and its life through forks and the end of the process."""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
from functools import cache
from typing import TYPE_CHECKING

from weft.runtime import cache as disk
from weft.runtime import jit, pool_ir
from weft.runtime.host import host_target

if TYPE_CHECKING:
    from weft.runtime.workers import Task


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
_lock = threading.Lock()


def get_num_threads() -> int:
    """Threads that a parallel kernel uses, the calling one included."""
    global _wanted
    if _wanted is None:
        text = os.environ.get("WEFT_NUM_THREADS", "")
        _wanted = max(1, int(text)) if text.isdigit() else available_cpus()
    return min(_wanted, pool_ir.MAX_WORKERS + 1)


def set_num_threads(n: int) -> None:
    """Use ``n`` threads from now on. Results do not depend on it. RuntimeError unless ``n`` >= 1."""
    global _wanted
    if not isinstance(n, int) or isinstance(n, bool):
        raise TypeError(f"set_num_threads expects an int, but got {type(n).__name__}")
    if n < 1:
        raise RuntimeError("set_num_threads expects a positive integer")
    with _lock:
        _wanted = n
        if _pool.cache_info().currsize:
            _resize()


def parallel_for_address() -> int:
    """The address of ``weft_parallel_for``. The workers start when the first parallel kernel runs."""
    return _pool()["weft_parallel_for"]


def begin() -> None:
    """Begin to compile the pool in another thread: a graph that needs it is being compiled, too."""
    if not _pool.cache_info().currsize:
        _begun()


@cache
def _begun() -> Task[bytes]:
    from weft.runtime import workers  # which asks here how many threads there may be

    return workers.begin(_image)


def _image() -> bytes:
    target = host_target()
    return disk.object_for(pool_ir.module(target.triple), target, level=0)


@cache
def _pool() -> dict[str, int]:
    image = _begun().result() if _begun.cache_info().currsize else _image()
    found = jit.link(image, pool_ir.EXPORTS, {}, pool_ir.LIBC)
    ctypes.CFUNCTYPE(None, ctypes.c_int64)(found["weft_pool_resize"])(get_num_threads() - 1)
    os.register_at_fork(after_in_child=ctypes.CFUNCTYPE(None)(found["weft_pool_reset"]))
    atexit.register(ctypes.CFUNCTYPE(None)(found["weft_pool_stop"]))
    return found


def _resize() -> None:
    ctypes.CFUNCTYPE(None, ctypes.c_int64)(_pool()["weft_pool_resize"])(get_num_threads() - 1)
