"""From a graph to an executable, through the caches."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Set
from functools import partial
from typing import Any

from weft.codegen import libllvm
from weft.codegen.target import Target
from weft.ir.errors import CompilerError
from weft.ir.graph import Graph, devices_of
from weft.ir.types import Device
from weft.runtime import jit, stats, threads, workers
from weft.runtime.cache import DiskCache, disk_cache, key_of
from weft.runtime.dump import dump, wanted
from weft.runtime.executable import Artifact, Executable
from weft.runtime.fingerprint import fingerprint
from weft.runtime.host import host_target
from weft.runtime.pause import collection_paused
from weft.runtime.precision import switches

_MEMORY_LIMIT = 1024  # executables kept for graphs that come again
_memory: OrderedDict[tuple[str, Any], Any] = OrderedDict()
_lock = threading.RLock()


def _renew_lock() -> None:
    """In the child of a fork: the thread that may have held the lock is gone."""
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)


def compile_graph(
    graph: Graph, *, donate: Mapping[int, int] | None, target: Target | None, name: str | None
) -> Executable:
    """See :func:`weft.runtime.compile_graph`."""
    donate = dict(donate or {})
    key = fingerprint(graph) + repr(sorted(donate.items())) + repr(target)
    devices = _gpus(graph)
    place = key, _driver_of(devices, target)
    with _lock:
        found = _memory.get(place)
        if found is not None:
            _memory.move_to_end(place)
            stats.count("cache_memory_hits")
            return found
        made = _compile(graph, key, donate, target, name or graph.name, devices)
        _memory[place] = made
        if len(_memory) > _MEMORY_LIMIT:
            _memory.popitem(last=False)
    kinds = wanted()
    if kinds:
        dump(made, key, kinds)
    return made


def _compile(
    graph: Graph,
    key: str,
    donate: dict[int, int],
    target: Target | None,
    name: str,
    devices: Set[Device] = frozenset(),
) -> Executable:
    if devices or not (target is None or isinstance(target, Target)):
        return _compile_for_gpu(graph, key, donate, target, devices, name)
    machine = target or host_target()
    store = disk_cache()
    entry = key_of("graph", repr(machine), key)
    foreign = (target is not None and target != host_target()) or _on_null_device(graph)
    if store:
        found = _load(store, entry, machine)
        if found is not None:
            with contextlib.suppress(CompilerError):  # an object the linker refuses is made again
                made = Executable(graph, donate, machine, name, found, compile_only=foreign)
                stats.count("cache_disk_hits")
                return made
            store.discard(entry)
    if not libllvm.loaded():
        workers.begin(libllvm.library)  # beside the passes
    from weft.runtime.build import build  # with all passes: a warm start does without
    from weft.runtime.pieces import Pieces

    stats.count("compiles")
    try:
        with collection_paused():
            pieces = None if foreign else Pieces(machine)
            built = build(graph, machine, donate, pieces=pieces)
        if pieces is None:
            image, before = jit.compile_object(built.llvm, machine), ()
        else:
            if any("@weft_parallel_for(" in text for text in built.entries):
                threads.begin()
            image, before = pieces.finish(built.entries)
    except CompilerError as e:
        e.graph = graph  # the whole, as a reproducer
        raise
    artifact = Artifact.of(built, image, before, repr(machine))
    if store:
        store.store(entry, artifact.to_bytes())
    return Executable(graph, donate, machine, name, artifact, built, compile_only=foreign)


def _gpus(graph: Graph) -> set[Device]:
    """The GPUs that values of a graph live on."""
    return {d for d in devices_of(graph) if d.type == "cuda"}


def _driver_of(devices: Set[Device], target: Any) -> Any:
    """What an executable is bound to besides its code, where it runs on a GPU: the driver, and how exact its
    products are."""
    if target is not None or not devices:
        return None
    from weft.runtime.cuda.driver import driver

    return driver(), switches.now


def _compile_for_gpu(
    graph: Graph, key: str, donate: dict[int, int], target: Any, devices: Set[Device], name: str
) -> Any:
    """A graph of one GPU; RuntimeError where there are several."""
    if len(devices) > 1:
        names = " and ".join(sorted(map(str, devices)))
        raise RuntimeError(f"expected all tensors of {name} to be on one device, found {names}")
    from weft.runtime.cuda.compile import compile_for_device
    from weft.runtime.cuda.mixed import MixedExecutable, is_mixed

    if target is None and is_mixed(graph):
        return MixedExecutable(graph, donate, name, partial(compile_graph, target=None))
    return compile_for_device(graph, key, donate, next(iter(devices), None), target, name)


def _on_null_device(graph: Graph) -> bool:
    """Whether the graph is for ``null``, the device that runs nothing. RuntimeError for one not there."""
    kinds = {v.type.device.type for v in (*graph.params, *graph.results)}
    for kind in kinds - {"cpu", "null"}:
        raise RuntimeError(f"weft cannot compile for device type {kind!r}; it knows cpu, cuda and null")
    return "null" in kinds


def _load(store: DiskCache, entry: str, machine: Target) -> Artifact | None:
    """The artifact of an entry; None where there is none, or it is not what its name promises."""
    payload = store.load(entry)
    if payload is None:
        return None
    try:
        artifact = Artifact.from_bytes(payload)
    except Exception:  # whatever unpickling stumbles over, the entry is of no use
        artifact = None
    if artifact is None or artifact.target != repr(machine):
        store.discard(entry)
        return None
    return artifact
