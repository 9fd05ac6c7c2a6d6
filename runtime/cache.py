"""The disk cache: object code and what is needed to run it, one file per entry.

The name of an entry is a hash of everything that determines its code. A file is written under a temporary
name and renamed, so two processes may fill one cache; it carries its key and a checksum, and one that
does not match is thrown away and compiled again, never loaded. The folder must belong to the user and be
closed to everyone else, because what lies in it is executed; otherwise it is not used. ``WEFT_CACHE_DIR``
names another folder, ``WEFT_CACHE=0`` turns the cache off, ``WEFT_CACHE_SIZE`` limits it in megabytes
(1024); least recently used entries go first.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

from weft.codegen.target import Target
from weft.runtime import jit, stats
from weft.runtime.digest import SIZE, digest

_MAGIC = b"WEFTCACHE2\n"
_SUFFIX = ".weft"
_SCAN_EVERY = 32  # writes between two looks at the total size
_STALE_SECONDS = 3600.0
_serial = itertools.count()


def key_of(*parts: str) -> str:
    """The name of an entry that is determined by these texts, this build of weft and this LLVM."""
    return digest("\0".join((build_stamp(), *parts)).encode()).hex()


@cache
def build_stamp() -> str:
    """Names this compiler: its sources (by size and time of change), Python, numpy, llvmlite and LLVM."""
    import llvmlite
    import numpy as np
    import weft.codegen
    import weft.ir.prims
    import weft.passes
    import weft.runtime

    sources = stamp_of(weft.codegen, weft.ir, weft.ir.prims, weft.passes, weft.runtime)
    llvm = _library(os.path.dirname(llvmlite.__file__))
    python = sys.implementation.cache_tag
    return f"{python} numpy {np.__version__} llvmlite {llvmlite.__version__} llvm {llvm} {sources}"


def _library(folder: str) -> str:
    """Names the LLVM that llvmlite would load, without loading it: the size of its library and its time of
    change; its version where the library is not where we look."""
    with contextlib.suppress(OSError), os.scandir(os.path.join(folder, "binding")) as entries:
        for e in sorted(entries, key=lambda e: e.name):
            if e.name.startswith(("libllvmlite", "llvmlite.")):
                s = e.stat()
                return f"{s.st_size}:{s.st_mtime_ns}"
    import llvmlite.binding

    return ".".join(map(str, llvmlite.binding.llvm_version_info))


def stamp_of(*packages: ModuleType) -> str:
    """Names the sources of packages, without those below them."""
    return ";".join(sorted(_sources(packages)))


def _sources(packages: Sequence[ModuleType]) -> Iterator[str]:
    for package in packages:
        for folder in package.__path__:
            with os.scandir(folder) as entries:
                for e in entries:
                    if e.name.endswith(".py"):
                        s = e.stat()
                        yield f"{package.__name__}.{e.name}:{s.st_size}:{s.st_mtime_ns}"


class DiskCache:
    """Entries in one folder. Every failure of the file system means no cache, never an error."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit = folder, limit_bytes
        self._writes = 0

    def load(self, key: str) -> bytes | None:
        """The payload stored under ``key``, or None; a damaged entry is removed."""
        path = self.folder / (key + _SUFFIX)
        try:
            data = path.read_bytes()
        except OSError:
            stats.count("cache_disk_misses")
            return None
        payload = _open(data, key)
        if payload is None:
            self.discard(key)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return payload

    def discard(self, key: str) -> None:
        """Remove a damaged entry."""
        stats.count("cache_disk_damaged")
        with contextlib.suppress(OSError):
            (self.folder / (key + _SUFFIX)).unlink()

    def store(self, key: str, payload: bytes) -> None:
        """Write an entry: temporary name, then rename."""
        temporary = None
        try:
            temporary = self.folder / f"{key[:16]}.{os.getpid()}.{next(_serial)}.tmp"
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
                f.write(_MAGIC + key.encode() + digest(payload) + payload)
            os.replace(temporary, self.folder / (key + _SUFFIX))
        except OSError as e:
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
            _warn(f"weft: cannot write to the kernel cache {self.folder}: {e.strerror}")
            return
        stats.count("cache_disk_writes")
        self._writes += 1
        if self._writes % _SCAN_EVERY == 1:
            self.evict()

    def evict(self) -> None:
        """Remove what was used least recently until the cache is within its limit, and stale temporaries."""
        entries, now = [], time.time()
        with contextlib.suppress(OSError), os.scandir(self.folder) as found:
            for e in found:
                with contextlib.suppress(OSError):
                    s = e.stat(follow_symlinks=False)
                    if e.name.endswith(_SUFFIX):
                        entries.append((s.st_mtime, s.st_size, e.path))
                    elif e.name.endswith(".tmp") and now - s.st_mtime > _STALE_SECONDS:
                        os.unlink(e.path)
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self.limit:
                break
            with contextlib.suppress(OSError):
                os.unlink(path)
            total -= size


def _open(data: bytes, key: str) -> bytes | None:
    """The payload of an entry's bytes; None where anything about it is wrong."""
    head = len(_MAGIC) + len(key)
    if data[:head] != _MAGIC + key.encode():
        return None
    payload = data[head + SIZE :]
    return payload if digest(payload) == data[head : head + SIZE] else None


@cache
def disk_cache() -> DiskCache | None:
    """The cache this process uses, decided at first use; None where it is off or its folder is not safe."""
    if os.environ.get("WEFT_CACHE", "1") in ("0", "off", "no"):
        return None
    folder = _folder()
    why = _unsafe(folder)
    if why:
        _warn(f"weft: the kernel cache {folder} is not used: {why}")
        return None
    megabytes = os.environ.get("WEFT_CACHE_SIZE", "")
    return DiskCache(folder, (int(megabytes) if megabytes.isdigit() else 1024) << 20)


def _folder() -> Path:
    named = os.environ.get("WEFT_CACHE_DIR")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "weft"


def _unsafe(folder: Path) -> str | None:
    """Why a folder must not hold code that we run; makes the folder where there is none."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        s = folder.lstat()
    except OSError as e:
        return e.strerror or "it cannot be made"
    if not stat.S_ISDIR(s.st_mode):
        return "it is not a folder"
    if hasattr(os, "getuid") and s.st_uid != os.getuid():
        return "it belongs to another user"
    if s.st_mode & 0o077:
        return f"others may enter it (mode {stat.S_IMODE(s.st_mode):04o}; 0700 is expected)"
    return None


_warned: set[str] = set()


def _warn(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=3)


def object_for(text: str, target: Target, level: int = 1) -> bytes:
    """The object code of a module of our own, from the cache where it is there."""
    store = disk_cache()
    key = key_of("module", str(level), repr(target), text)
    found = store.load(key) if store else None
    if found is not None:
        return found
    image = jit.compile_object(text, target, level)
    if store:
        store.store(key, image)
    return image
