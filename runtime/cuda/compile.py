"""From a graph of a GPU to an executable, through the disk cache."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import cache

from weft.codegen.gpu.target import GpuTarget
from weft.ir.errors import CompilerError
from weft.ir.graph import Graph
from weft.ir.types import Device
from weft.runtime import jit, stats
from weft.runtime.cache import DiskCache, disk_cache, key_of, stamp_of
from weft.runtime.cuda.device import DeviceState, device_state, index_of
from weft.runtime.cuda.driver import CudaError
from weft.runtime.cuda.executable import DeviceArtifact, DeviceExecutable
from weft.runtime.host import host_target
from weft.runtime.pause import collection_paused
from weft.runtime.precision import switches


def compile_for_device(
    graph: Graph, key: str, donate: dict[int, int], device: Device | None, target: GpuTarget | None, name: str
) -> DeviceExecutable:
    """The executable of a graph of ``device``; for another ``target`` it is compiled only."""
    state = device_state(index_of(device)) if device is not None and target is None else None
    if target is None:
        assert state is not None
        target = allowed(state.target)
    store = disk_cache()
    kind = state.driver.kind if state else "none"
    stamp = f"{target!r} {kind} {host_target()!r}"
    entry = gpu_key("graph", stamp, key)
    if store:
        found = _load(store, entry, stamp)
        if found is not None:
            with contextlib.suppress(CompilerError, CudaError):  # what cannot be loaded is made again
                made = DeviceExecutable(graph, donate, target, state, name, found)
                stats.count("cache_disk_hits")
                return made
            store.discard(entry)
    made = _make(graph, donate, target, state, name, stamp)
    if store:
        store.store(entry, made.artifact.to_bytes())
    return made


def allowed(target: GpuTarget) -> GpuTarget:
    """The target with the precision that the switches of the moment ask for, if it has the instructions."""
    if target.capability < (8, 0):
        return target
    return replace(target, tf32=switches.now.matmul_tf32, conv_tf32=switches.now.conv_tf32)


def gpu_key(*parts: str) -> str:
    """The name of a disk cache entry that this build of the GPU's code generation determines, too."""
    return key_of("gpu", _stamp(), *parts)


@cache
def _stamp() -> str:
    import weft.codegen.gpu
    import weft.runtime.cuda

    return stamp_of(weft.codegen.gpu, weft.runtime.cuda)


def _make(
    graph: Graph, donate: dict[int, int], target: GpuTarget, state: DeviceState | None, name: str, stamp: str
) -> DeviceExecutable:
    from weft.runtime.cuda.build import build_for_device  # with all passes: a warm start does without

    stats.count("compiles")
    try:
        with collection_paused():
            built = build_for_device(graph, target, host_target(), donate)
        image = jit.compile_object(built.entry, host_target(), level=0)
        cubin = _cubin(built.ptx, target, state) if built.functions else b""
    except CompilerError as e:
        e.graph = graph  # the whole, as a reproducer
        raise
    artifact = DeviceArtifact.of(built, image, cubin, stamp)
    return DeviceExecutable(graph, donate, target, state, name, artifact, built)


def _cubin(ptx: str, target: GpuTarget, state: DeviceState | None) -> bytes:
    """Machine code of the device by ``ptxas``; empty where the driver is to compile the PTX."""
    if state is None:
        return b""
    from weft.runtime.cuda.assembler import assemble, find_ptxas, knows

    ptxas = find_ptxas()
    if ptxas is None or not knows(ptxas, target) or not _runs(ptxas, target, state):
        return b""
    stats.count("cubins_assembled")
    return assemble(ptx, target.name)[0]


def _runs(ptxas: str, target: GpuTarget, state: DeviceState) -> bool:
    """Whether driver and device of a state take machine code for a target by this ``ptxas``."""
    native = target.machine_code_runs_on(state.properties.capability)
    return native and state.driver.runs_cubins_of(ptxas)


def _load(store: DiskCache, entry: str, stamp: str) -> DeviceArtifact | None:
    """The artifact of an entry; None where there is none, or it is not what its name promises."""
    payload = store.load(entry)
    if payload is None:
        return None
    try:
        artifact = DeviceArtifact.from_bytes(payload)
    except Exception:  # whatever unpickling stumbles over, the entry is of no use
        artifact = None
    if artifact is None or artifact.target != stamp:
        store.discard(entry)
        return None
    return artifact
