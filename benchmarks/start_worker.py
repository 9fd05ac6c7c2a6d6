"""Measures the start of one program in a process of its own and prints one line of JSON.

Run: ``python -m benchmarks.start_worker ROW [--stages]``. Seconds of ``import weft``, of the preparation of
the program (models, arrays, ``weft.compile``), of its first call and of its second; and of the stages of the
first, each without the stages inside it, and what no stage claims as ``rest``. What other threads do
meanwhile is in none of them.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import json
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

# stage -> functions, as module:attribute, named where they are called
STAGES: dict[str, tuple[str, ...]] = {
    "trace": ("weft.capture.compiled:trace",),
    "call code": ("weft.capture.plan:Planner.build", "weft.capture.compiled:Compiled._checked_entry"),
    "fingerprint": ("weft.runtime.compile:fingerprint",),
    "target": ("weft.runtime.compile:host_target",),
    "passes": ("weft.runtime.build:lower",),
    "emit text": ("weft.runtime.build:build",),
    "LLVM init": ("weft.codegen.libllvm:Direct.__init__", "weft.codegen.libllvm:Direct.machine"),
    "LLVM codegen": ("weft.runtime.jit:compile_object",),
    "link": ("weft.runtime.jit:link",),
    "cache read": ("weft.runtime.cache:DiskCache.load", "weft.runtime.cache:build_stamp",
                   "weft.runtime.compile:_load"),
    "cache write": ("weft.runtime.cache:DiskCache.store", "weft.runtime.executable:Artifact.to_bytes"),
    "call path": ("weft.runtime.executable:Executable._load",),
    "thread pool": ("weft.runtime.threads:parallel_for_address",),
}  # fmt: skip


class Clock:
    """Time of the main thread by stage, exclusive of the stages inside."""

    def __init__(self) -> None:
        self.spent: defaultdict[str, float] = defaultdict(float)
        self._stack: list[str] = []
        self._last = 0.0

    def _turn(self) -> None:
        now = time.perf_counter()
        if self._stack:
            self.spent[self._stack[-1]] += now - self._last
        self._last = now

    def push(self, stage: str) -> None:
        self._turn()
        self._stack.append(stage)

    def pop(self) -> None:
        self._turn()
        self._stack.pop()

    def timed(self, stage: str, fn: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(fn)
        def run(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                return fn(*args, **kwargs)
            self.push(stage)
            try:
                return fn(*args, **kwargs)
            finally:
                self.pop()

        return run


class Patches:
    """Puts the clock around the functions of the stages as soon as their modules are there, and around
    imports."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.waiting = [(stage, *name.split(":")) for stage, names in STAGES.items() for name in names]
        self.missing: list[str] = []
        self.depth = 0

    def start(self) -> None:
        self.plain = builtins.__import__, importlib.import_module
        self._watch_imports()
        self._patch()

    def _watch_imports(self) -> None:
        find, find_module = self.plain
        builtins.__import__, importlib.import_module = self._importing(find), self._importing(find_module)

    def _without_imports(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """``fn`` with imports as they were: a trace takes our functions for the user's."""

        def run(*args: Any, **kwargs: Any) -> Any:
            builtins.__import__, importlib.import_module = self.plain
            try:
                return fn(*args, **kwargs)
            finally:
                self._watch_imports()

        return run

    def _importing(self, find: Callable[..., Any]) -> Callable[..., Any]:
        def run(name: str, *args: Any, **kwargs: Any) -> Any:
            if self.depth or threading.current_thread() is not threading.main_thread():
                return find(name, *args, **kwargs)
            self.depth += 1
            self.clock.push("imports")
            try:
                return find(name, *args, **kwargs)
            finally:
                self.clock.pop()
                self.depth -= 1
                self._patch()

        return run

    def _patch(self) -> None:
        for item in [w for w in self.waiting if w[1] in sys.modules]:
            stage, module, path = item
            owner: Any = sys.modules[module]
            if getattr(getattr(owner, "__spec__", None), "_initializing", False):
                continue
            self.waiting.remove(item)
            *outer, name = path.split(".")
            for part in outer:
                owner = getattr(owner, part, None)
            if not hasattr(owner, name):
                self.missing.append(f"{module}:{path}")
                continue
            fn = self.clock.timed(stage, getattr(owner, name))
            setattr(owner, name, self._without_imports(fn) if stage == "trace" else fn)


def measure(name: str) -> dict[str, Any]:
    begun = time.perf_counter()
    import weft

    imported = time.perf_counter()
    from benchmarks.workloads import ROWS

    clock = Clock()
    if "--stages" in sys.argv:
        patches = Patches(clock)
        patches.start()
    ready = time.perf_counter()
    clock.push("prepare")
    call = ROWS[name].build(weft, weft.compile)
    prepared = time.perf_counter()
    prepare_stages = dict(clock.spent)
    clock.push("rest")
    call()
    clock.pop()
    first = time.perf_counter()
    call()
    second = time.perf_counter()
    stages = {k: v - prepare_stages.get(k, 0.0) for k, v in clock.spent.items() if k != "prepare"}
    out = {"import": imported - begun, "prepare": prepared - ready, "first": first - prepared,
           "second": second - first, "stages": stages}  # fmt: skip
    return out | {"missing": patches.missing} if "--stages" in sys.argv else out


def main() -> None:
    print(json.dumps(measure(sys.argv[1])))


if __name__ == "__main__":
    main()
