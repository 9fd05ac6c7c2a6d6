"""The machine that this process runs on, remembered on disk: asking LLVM for it means to load LLVM."""

from __future__ import annotations

import ast
import os
import threading
from functools import cache

from weft.codegen import target
from weft.codegen.target import Target
from weft.ir.record import fields
from weft.runtime.cache import DiskCache, disk_cache, key_of

_VOLATILE = frozenset({
    "processor", "cpu MHz", "bogomips", "BogoMIPS", "physical id", "core id", "apicid", "initial apicid"
})  # fmt: skip


_lock = threading.Lock()


def _renew_lock() -> None:
    """In the child of a fork: the thread that may have held the lock is gone."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def host_target() -> Target:
    """As :func:`weft.codegen.target.host_target`."""
    with _lock:
        return _host_target()


@cache
def _host_target() -> Target:
    found, (store, key) = remembered(), _place()
    if found is None:
        found = target.host_target()
        if store is not None:
            store.store(key, _to_text(found))
    return found


@cache
def remembered() -> Target | None:
    """The target of :func:`host_target` where it can be told without LLVM."""
    store, key = _place()
    return _from_text(store.load(key) or b"") if store is not None else None


@cache
def _place() -> tuple[DiskCache | None, str]:
    """Where in which cache the description stands."""
    described, store = _description(), disk_cache()
    return (store, key_of("host", described)) if described and store else (None, "")


def _description() -> str:
    """What tells this machine's processor from others: the first one's lines in ``/proc/cpuinfo``, and the
    sizes of its caches; nothing where the system does not say."""
    try:
        with open("/proc/cpuinfo", "rb", buffering=0) as f:
            text = f.read(8192).decode("ascii", "replace")
    except OSError:
        return ""
    first, end, _ = text.partition("\n\n")
    lines = [line for line in first.splitlines() if line.partition("\t")[0].strip() not in _VOLATILE]
    return "\n".join([*lines, *map(str, target.cache_sizes())]) if end else ""


def _to_text(t: Target) -> bytes:
    return repr(tuple(getattr(t, name) for name in fields(t))).encode()


def _from_text(data: bytes) -> Target | None:
    """The target of ``_to_text``; None for anything else."""
    try:
        return Target(*ast.literal_eval(data.decode()))
    except (ValueError, TypeError, SyntaxError):
        return None
