"""What a graph is compiled to: one native entry and what is needed to call it and to look into it."""

from __future__ import annotations

import ctypes
import io
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from weft.codegen.target import Target
from weft.ir.graph import Graph
from weft.ir.record import record
from weft.ir.types import TensorType
from weft.runtime import buffers, callpath, hostcall, jit, shared, stats, threads
from weft.runtime.jit import ENTRY

if TYPE_CHECKING:
    from weft.runtime.build import Built, KernelInfo

RELEASE_GIL_NS = 30_000.0  # shorter calls keep the interpreter lock: giving it up costs more


@record(frozen=True, eq=False)
class Artifact:
    """The part of a compiled graph that is kept on disk: enough to run it without any pass."""

    image: bytes
    arena_bytes: int
    hosts: tuple[hostcall.HostOp, ...]
    n_kernels: int
    n_native: int
    cost_ns: float
    target: str
    shared: dict[str, str]
    pieces: tuple[bytes, ...] = ()  # the objects that ``image`` calls

    @staticmethod
    def of(built: Built, image: bytes, pieces: tuple[bytes, ...], target: str) -> Artifact:
        n, native = len(built.kernels), sum(k.native for k in built.kernels)
        return Artifact(image, built.arena_bytes, built.hosts, n, native, built.cost_ns, target,
                        built.shared, pieces)

    def to_bytes(self) -> bytes:
        return pickled(self)

    @staticmethod
    def from_bytes(data: bytes) -> Artifact:
        """The artifact of ``to_bytes``; TypeError for anything else."""
        found = pickle.loads(data)
        if not isinstance(found, Artifact):
            raise TypeError("not an artifact")
        return found


def pickled(artifact: Any) -> bytes:
    """An artifact as bytes."""
    out = io.BytesIO()
    _Pickler(out, 5).dump(artifact)
    return out.getvalue()


class _Pickler(pickle.Pickler):
    """Also takes the read-only attribute mappings of operations."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, MappingProxyType):
            return _read_only, (dict(obj),)
        return NotImplemented


def _read_only(attrs: dict[str, Any]) -> MappingProxyType[str, Any]:
    return MappingProxyType(attrs)  # the type itself has no name that pickle finds


class Compiled(ABC):
    """What executables on any device can tell of themselves: the products of the passes, worked out when
    asked for where the code came from the disk cache."""

    def _describe(
        self, graph: Graph, donate: Mapping[int, int], target: Any, name: str, artifact: Any, built: Any
    ) -> None:
        self.graph, self.name, self.target = graph, name, target
        self.donate = dict(donate)
        self.in_types: tuple[TensorType, ...] = tuple(p.type for p in graph.params)
        self.out_types: tuple[TensorType, ...] = tuple(r.type for r in graph.results)
        self.artifact = artifact
        self.n_kernels: int = artifact.n_kernels
        self._built = built

    @property
    @abstractmethod
    def built(self) -> Any:
        """The passes' products."""

    @property
    def stages(self) -> list[tuple[str, Graph]]:
        """(name, graph) after each pass."""
        return self.built.stages

    @property
    def kernels(self) -> list[KernelInfo]:
        """The kernels in order."""
        return self.built.kernels

    @property
    def plan(self) -> Any:
        """The memory plan."""
        return self.built.plan

    def llvm(self) -> str:
        """The LLVM IR of all kernels."""
        return self.built.llvm

    @abstractmethod
    def asm(self) -> str:
        """The assembly of all kernels; on a GPU the PTX."""


class Executable(Compiled):
    """A compiled graph.

    ``call(arrays)`` checks its arguments and copies those that are not contiguous; ``runner(*arrays)`` is
    the fast path. Both give a list of new arrays (a donated result is the parameter's array) and may be
    called by several threads at once. ``stages``, ``kernels``, ``plan``, ``llvm()`` and ``asm()`` show how
    it was made; where the code came from the disk cache they are worked out again when asked for. """

    def __init__(
        self, graph: Graph, donate: Mapping[int, int], target: Target, name: str, artifact: Artifact,
        built: Built | None = None, compile_only: bool = False,
    ) -> None:  # fmt: skip
        self._describe(graph, donate, target, name, artifact, built)
        self.runner: Callable[..., list[np.ndarray]] = self._refuse
        if not compile_only:
            self._load()

    def _refuse(self, *arrays: Any) -> list[np.ndarray]:
        raise RuntimeError(f"{self.name} was compiled for {self.target.cpu}, not to run here")

    def _load(self) -> None:
        imports = {"weft_parallel_for": threads.parallel_for_address,
                   "weft_host": hostcall.callback_address,
                   **shared.addresses(self.artifact.shared, self.target)}  # fmt: skip
        for piece in self.artifact.pieces:
            imports |= jit.link(piece, jit.defined_symbols(piece), imports)
        self.address = jit.link(self.artifact.image, (ENTRY,), imports)[ENTRY]
        self._context = hostcall.register(self.artifact.hosts) if self.artifact.hosts else 0
        self._entry = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.address)
        self.runner = self.native_runner(self._general) or self._general

    def native_runner(self, slow: Callable[..., Any]) -> Callable[..., Any] | None:
        """A native call that turns to ``slow(*arrays)`` where the arrays are not as expected;
        None where native calls cannot be used."""
        a = self.artifact
        return callpath.native_runner(
            self.in_types, self.out_types, self.donate, self.address, a.arena_bytes, self._context,
            a.cost_ns >= RELEASE_GIL_NS, a.n_native, slow,
        )  # fmt: skip

    @cached_property
    def built(self) -> Built:
        from weft.runtime.build import build  # with all passes: a warm start does without

        return self._built or build(self.graph, self.target, self.donate)

    def asm(self) -> str:
        return jit.assembly(self.llvm(), self.target)

    def call(self, arrays: Sequence[Any]) -> list[np.ndarray]:
        """Run on arrays of the right shapes and dtypes; TypeError or ValueError names one that is wrong."""
        return self._general(*arrays)

    def kernel_seconds(self, arrays: Sequence[Any], repeats: int = 5) -> list[float]:
        """The time of each of ``kernels`` within a call on these arrays: the least of ``repeats`` calls, with
        clocks between the kernels. Nothing is donated. Kernels that run in Python count as 0.
        """
        from weft.runtime.profile import kernel_seconds

        return kernel_seconds(self, arrays, repeats)

    def _general(self, *arrays: Any) -> list[np.ndarray]:
        """The path that takes everything: other layouts, numbers, wrong arguments, more calls than arenas."""
        if len(arrays) != len(self.in_types):
            raise TypeError(f"{self.name} takes {len(self.in_types)} arrays, but got {len(arrays)}")
        given = [self._array(i, a, t) for i, (a, t) in enumerate(zip(arrays, self.in_types, strict=True))]
        packed = [_packed(a, i in self.donate.values()) for i, a in enumerate(given)]
        _separate(packed, self.donate)
        outs = self._run(*packed)
        for i, j in self.donate.items():
            if packed[j] is not given[j]:
                given[j][...] = packed[j]
                outs[i] = given[j]
        return outs

    def argument(self, i: int, a: Any) -> np.ndarray:
        """Argument ``i`` as a contiguous array of the type of param ``i``; a Python number becomes one."""
        return _packed(self._array(i, a, self.in_types[i]), False)

    def _array(self, i: int, a: Any, t: TensorType) -> np.ndarray:
        """Argument ``i`` as an array of type ``t``; a Python number becomes one."""
        out = np.asarray(a, t.dtype.np) if isinstance(a, (bool, int, float)) else np.asarray(a)
        if out.dtype != t.dtype.np:
            raise TypeError(f"argument {i} of {self.name}: expected {t.dtype.name}, got {out.dtype}")
        if out.shape != t.shape:
            raise ValueError(f"argument {i} of {self.name}: expected shape {t.shape}, got {out.shape}")
        return out

    def _run(self, *ins: np.ndarray) -> list[np.ndarray]:
        """Call the entry through ctypes."""
        stats.count("kernels_launched", self.artifact.n_native)
        outs = [
            ins[self.donate[i]] if i in self.donate else buffers.empty(t.shape, t.dtype)
            for i, t in enumerate(self.out_types)
        ]
        self.enter(self._entry, ins, outs, self.artifact.arena_bytes, self._context)
        return outs

    @staticmethod
    def enter(
        entry: Any, ins: Sequence[np.ndarray], outs: Sequence[np.ndarray], arena_bytes: int, context: int
    ) -> None:
        """Call a native entry on these arrays; raises what its status word stands for."""
        held, arena = buffers.lease(arena_bytes) if arena_bytes else (None, 0)
        status = ctypes.c_int64(0)
        at = ctypes.addressof(status)
        pointers = [a.ctypes.data for a in (*ins, *outs)]
        block = (ctypes.c_void_p * (len(pointers) + 3))(*pointers, arena, at, context)
        entry(ctypes.addressof(block))
        del held
        if status.value:
            hostcall.raise_status(status.value, at)


def _separate(packed: list[np.ndarray], donate: Mapping[int, int]) -> None:
    """Copy arguments that share memory with a donated one: they keep their values while it is overwritten."""
    for j in donate.values():
        for i, a in enumerate(packed):
            if i != j and np.may_share_memory(a, packed[j]):
                packed[i] = a.copy()


def _packed(a: np.ndarray, donated: bool) -> np.ndarray:
    if donated and not a.flags.writeable:
        raise ValueError("a donated array is read-only")
    return a if a.flags.c_contiguous and a.flags.aligned else np.ascontiguousarray(a).reshape(a.shape)
