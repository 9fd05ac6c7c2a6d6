"""What a graph of a GPU is compiled to: a module of kernels, and a native entry that launches them."""

from __future__ import annotations

import ctypes
import pickle
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from weft.codegen.gpu.entry import FRAME, HOST, IMPORTS
from weft.codegen.gpu.target import GpuTarget
from weft.ir.graph import Graph
from weft.ir.record import record
from weft.ir.types import TensorType
from weft.runtime import jit, stats
from weft.runtime.cuda import hostcall
from weft.runtime.cuda.array import WIDE, DeviceArray, dense_of, from_host, new
from weft.runtime.cuda.callcode import call_of, form_of
from weft.runtime.cuda.device import DeviceState
from weft.runtime.cuda.driver import CudaError
from weft.runtime.cuda.memory import round_size
from weft.runtime.cuda.stream import stream_of
from weft.runtime.executable import Compiled, pickled
from weft.runtime.jit import ENTRY

if TYPE_CHECKING:
    from weft.runtime.cuda.build import DeviceBuilt

SCALAR_BYTES = 64  # an argument up to this size may come from the host, with the call
_TAIL = 4  # arena, status, context, constants
_CUDA, _STREAM, _ERROR, _HOSTS, _FUNCTIONS, _SCALARS, _N, _AT, _FLAG, _COUNTERS, _MARKS = range(len(FRAME))
_counters = (ctypes.c_int64 * 2)()  # of all calls: launches, times that the host waited
stats.add_source("device_launches", lambda: _counters[0])
stats.add_source("device_synchronisations", lambda: _counters[1])


@record(frozen=True, eq=False)
class DeviceArtifact:
    """The part of a compiled graph that is kept on disk: enough to run it without any pass, without LLVM and
    without ``ptxas``. ``image`` is machine code of the host, ``cubin`` that of the device (empty: the driver
    compiles the PTX)."""

    image: bytes
    ptx: str
    cubin: bytes
    functions: tuple[tuple[str, int], ...]
    constants: bytes
    arena_bytes: int
    uses_status: bool
    hosts: tuple[Any, ...]
    n_kernels: int
    n_native: int
    target: str

    @staticmethod
    def of(built: DeviceBuilt, image: bytes, cubin: bytes, target: str) -> DeviceArtifact:
        n, native = len(built.kernels), sum(k.native for k in built.kernels)
        return DeviceArtifact(
            image, built.ptx, cubin, built.functions, built.constants, built.arena_bytes,
            built.uses_status, built.hosts, n, native, target,
        )  # fmt: skip

    def to_bytes(self) -> bytes:
        return pickled(self)

    @staticmethod
    def from_bytes(data: bytes) -> DeviceArtifact:
        """The artifact of ``to_bytes``; TypeError for anything else."""
        found = pickle.loads(data)
        if not isinstance(found, DeviceArtifact):
            raise TypeError("not an artifact")
        return found


class _Parameter:
    """What a parameter wants of its argument. ``scalar_at`` is where its value goes among those that come
    with the call; -1 where it may not."""

    __slots__ = ("donated", "dtype", "scalar_at", "shape", "type")

    def __init__(self, t: TensorType, donated: bool, scalar_at: int) -> None:
        self.type, self.donated, self.scalar_at = t, donated, scalar_at
        self.shape, self.dtype = t.shape, t.dtype.np


class DeviceExecutable(Compiled):
    """A compiled graph of a GPU, with the interface of :class:`weft.runtime.executable.Executable`.

    ``runner(*arrays)`` takes a DeviceArray for each parameter, or, where the parameter is small (a Python
    number used as data, a learning rate, the state of a generator), a number or a numpy array, which travels
    with the call. It issues all work on the current stream and waits for nothing; results are DeviceArrays.
    Without ``state`` the code can be read but not run.
    """

    def __init__(
        self, graph: Graph, donate: Mapping[int, int], target: GpuTarget, state: DeviceState | None,
        name: str, artifact: DeviceArtifact, built: DeviceBuilt | None = None, marks: int = 0,
    ) -> None:  # fmt: skip
        self._marks = marks  # address of the marks of a profile
        self._describe(graph, donate, target, name, artifact, built)
        self.state = state
        self.runner: Callable[..., list[Any]] = self._refuse
        if state is not None:
            self._load(state)
            self.runner = self.native_runner(self._run) or self._run

    def _refuse(self, *arrays: Any) -> list[Any]:
        raise RuntimeError(f"{self.name} was compiled for {self.target.name}, not to run here")

    def _load(self, state: DeviceState) -> None:
        a, driver = self.artifact, state.driver
        state.activate()
        self._module = driver.load(a.cubin or a.ptx.encode()) if a.functions else 0
        handles = [driver.function(self._module, name, shared) for name, shared in a.functions]
        self._functions = (ctypes.c_uint64 * max(len(handles), 1))(*handles)
        addresses = driver.addresses
        imports = {n: addresses[n] for n in IMPORTS} | {HOST: hostcall.callback_address()}
        self.address = jit.link(a.image, (ENTRY,), imports)[ENTRY]
        self._entry = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.address)
        self._hosts = hostcall.register(state, a.hosts) if a.hosts else 0
        self._constants = self._upload(state)
        self._word = state.status.word(self.name) if a.uses_status else -1
        self._lay_out()

    def _upload(self, state: DeviceState) -> DeviceArray | None:
        """Put the constants into the memory of the device, for good and before anything else runs."""
        if not self.artifact.constants:
            return None
        out = from_host(np.frombuffer(self.artifact.constants, np.uint8), state.index)
        stream_of(state).synchronize()
        return out

    def _lay_out(self) -> None:
        """Decide where the values stand in the block of a call."""
        donated = set(self.donate.values())
        self._parameters: list[_Parameter] = []
        nbytes = 0
        for i, t in enumerate(self.in_types):
            small = 0 < t.nbytes <= SCALAR_BYTES and i not in donated
            self._parameters.append(_Parameter(t, i in donated, nbytes if small else -1))
            nbytes += -(-t.nbytes // WIDE) * WIDE if small else 0
        self._scalars_at = self.artifact.arena_bytes
        self._arena_bytes = self._scalars_at + nbytes
        self._n = len(self.in_types) + len(self.out_types)
        self._frame = self._n + _TAIL
        self._values = self._frame + len(FRAME) + 1  # behind the frame: a flag, the scalars
        self._words = ctypes.c_uint64 * (self._values + nbytes // 8)
        self._blocks: list[Any] = []  # of calls that are over
        self._outs = [(t.shape, t.dtype.np, self.donate.get(i)) for i, t in enumerate(self.out_types)]

    # -- how it was made --------------------------------------------------------------------------------
    @cached_property
    def built(self) -> DeviceBuilt:
        from weft.runtime.cuda.build import build_for_device  # with all passes: a warm start does without
        from weft.runtime.host import host_target

        return self._built or build_for_device(self.graph, self.target, host_target(), self.donate)

    def ptx(self) -> str:
        """The PTX of the kernels."""
        return self.artifact.ptx

    asm = ptx

    # -- calls ------------------------------------------------------------------------------------------
    def native_runner(self, slow: Callable[..., Any]) -> Callable[..., Any] | None:
        """The call written for this graph, which turns to ``slow(*arrays)`` where these are unusual."""
        state, f = self.state, self._frame
        if state is None:
            return None
        places = [p.scalar_at for p in self._parameters]
        numbers = self._arena_bytes > self._scalars_at
        form = form_of(
            self.in_types, places, len(self.out_types), self.donate, self._scalars_at > 0, self._word >= 0
        )
        space: dict[str, Any] = {
            "general": slow, "current": state.current, "capturing": state.capturing, "blocks": self._blocks,
            "block": self._new_block, "freed": state.allocator.freed, "take": state.allocator.take_block,
            "ARENA": round_size(self._arena_bytes), "apart": [None], "clash": self._clash,
            "entry": self._entry, "ran": state.status.ran, "WORD": self._word, "failed": self._failed,
            "STREAM": f + _STREAM, "ERROR": f + _ERROR, "N": f + _N, "AT": f + _AT,
            "SCALARS": self._scalars_at, "BYTES": self._arena_bytes - self._scalars_at if numbers else 0,
        }  # fmt: skip
        for i, (t, at) in enumerate(zip(self.in_types, places, strict=True)):
            space[f"D{i}"], space[f"T{i}"] = dense_of(state, t.shape, t.dtype.np), t.dtype.np
            space[f"W{i}"], space[f"S{i}"] = 8 * self._values + at, self._scalars_at + at
        for k, t in enumerate(self.out_types):
            space[f"new{k}"] = dense_of(state, t.shape, t.dtype.np).new
        return call_of(form, space)

    def _clash(self, addresses: Sequence[int]) -> bool:
        """Whether an argument at these addresses shares memory with a donated one."""
        spans = [(a, a + t.nbytes) for a, t in zip(addresses, self.in_types, strict=True)]
        return any(
            i != j and start < spans[j][1] and spans[j][0] < end
            for j in self.donate.values()
            for i, (start, end) in enumerate(spans)
        )

    def call(self, arrays: Sequence[Any]) -> list[Any]:
        """As ``runner``, on a sequence; numpy arrays of any size are copied to the device first."""
        if len(arrays) == len(self.in_types):
            arrays = [self.argument(i, a) for i, a in enumerate(arrays)]
        return self.runner(*arrays)

    def kernel_seconds(self, arrays: Sequence[Any], repeats: int = 5) -> list[float]:
        """The time of each of ``kernels`` within a call on these arrays, by events: the least of ``repeats``
        calls. Nothing is donated. Operations that run on the host count as 0."""
        from weft.runtime.cuda.profile import kernel_seconds

        return kernel_seconds(self, arrays, repeats)

    def argument(self, i: int, a: Any) -> Any:
        """Argument ``i`` as the runner takes it: numpy arrays that do not go with the call are copied to the
        device."""
        if isinstance(a, np.ndarray) and self._parameters[i].scalar_at < 0 and self.state is not None:
            return from_host(a, self.state.index)
        return a

    def _run(self, *arrays: Any) -> list[Any]:
        state: Any = self.state
        if len(arrays) != len(self._parameters):
            raise TypeError(f"{self.name} takes {len(self._parameters)} arrays, but got {len(arrays)}")
        stream = stream_of(state).cuda_stream
        allocator, late = state.allocator, []
        words, base = self._blocks.pop() if self._blocks else self._new_block()
        arena = allocator.take(self._arena_bytes, stream) if self._scalars_at else None
        try:
            scalars, held = 0, []
            for i, (a, p) in enumerate(zip(arrays, self._parameters, strict=True)):
                if type(a) is not DeviceArray:
                    if arena is None:
                        arena = allocator.take(self._arena_bytes, stream)
                    words[i] = arena.address + self._scalars_at + p.scalar_at
                    scalars = max(scalars, self._scalar(words, i, a, p))
                    continue
                if a.shape != p.shape or a.dtype != p.dtype or a.state is not state:
                    self._complain(i, a, p)
                if a.dense is None:
                    packed = a.copy()
                    held.append(packed)  # until everything is issued
                    late += [(a, packed)] if p.donated else []
                    a = packed
                words[i] = a.address
            if self.donate:
                self._separate(arrays, words, held)
            outs = self._results(arrays, words, stream)
            self._fill(words, arena.address if arena else 0, stream, scalars)
            self._entry(base)
            if self._word >= 0:
                state.status.ran(stream, self._word)
            if words[self._frame + _ERROR]:
                self._failed(words, base)
        finally:
            if arena:
                allocator.freed.append(arena)
            self._blocks.append((words, base))
        for a, packed in late:
            a.copy_from(packed)
        return outs

    def _new_block(self) -> tuple[Any, int]:
        """A block of words, and its address."""
        words = self._words()
        self._fill_for_good(words, ctypes.addressof(words))
        return words, ctypes.addressof(words)

    def _scalar(self, words: Any, i: int, a: Any, p: _Parameter) -> int:
        """Put a value of the host among those that come with the call; the bytes up to its end."""
        state: Any = self.state
        if state.capturing and stream_of(state).cuda_stream in state.capturing:
            raise CudaError(
                f"argument {i} of {self.name} comes from the host, which a captured graph cannot "
                "read again; put it on the device first"
            )
        value = np.asarray(a, p.dtype) if isinstance(a, (bool, int, float, complex)) else np.asarray(a)
        if value.dtype != p.dtype or value.shape != p.shape or p.scalar_at < 0:
            self._complain(i, value, p)
        at = ctypes.addressof(words) + 8 * self._values + p.scalar_at
        ctypes.memmove(at, value.tobytes(), value.nbytes)
        return p.scalar_at + value.nbytes

    def _complain(self, i: int, a: Any, p: _Parameter) -> None:
        what, t = f"argument {i} of {self.name}", p.type
        if a.dtype != p.dtype:
            raise TypeError(f"{what}: expected {t.dtype.name}, got {a.dtype}")
        if a.shape != p.shape:
            raise ValueError(f"{what}: expected shape {t.shape}, got {a.shape}")
        where, here = a.device if isinstance(a, DeviceArray) else "cpu", self.state and self.state.device
        raise RuntimeError(f"{what}: expected an array on {here}, got one on {where}")

    def _separate(self, arrays: Sequence[Any], words: Any, held: list[Any]) -> None:
        """Copy arguments that share memory with a donated one: they keep their values while it is
        overwritten."""
        for j in self.donate.values():
            low = words[j]
            high = low + self.in_types[j].nbytes
            for i, t in enumerate(self.in_types):
                if i != j and t.nbytes and words[i] < high and low < words[i] + t.nbytes:
                    held.append(arrays[i].copy())
                    words[i] = held[-1].address

    def _results(self, arrays: Sequence[Any], words: Any, stream: int) -> list[Any]:
        state: Any = self.state
        outs, k = [], len(self._parameters)
        for shape, dtype, donated in self._outs:
            if donated is None:
                outs.append(new(state, shape, dtype, stream))
                words[k] = outs[-1].address
            else:
                outs.append(arrays[donated])
                words[k] = words[donated]
            k += 1
        return outs

    def _fill_for_good(self, words: Any, base: int) -> None:
        """What is the same in every call with this block."""
        state, n, f = self.state, self._n, self._frame
        assert state is not None
        words[n + 1] = state.status.address(self._word) if self._word >= 0 else 0
        words[n + 2] = base + 8 * f
        words[n + 3] = self._constants.address if self._constants else 0
        words[f + _CUDA], words[f + _HOSTS] = state.context, self._hosts
        words[f + _COUNTERS], words[f + _MARKS] = ctypes.addressof(_counters), self._marks
        words[f + _FUNCTIONS] = ctypes.addressof(self._functions)
        words[f + _SCALARS], words[f + _FLAG] = base + 8 * self._values, base + 8 * (f + len(FRAME))

    def _fill(self, words: Any, arena: int, stream: int, scalars: int) -> None:
        """What follows the addresses of inputs and outputs."""
        f = self._frame
        words[self._n] = arena
        words[f + _STREAM], words[f + _N] = stream, scalars
        if scalars:
            words[f + _AT] = arena + self._scalars_at

    def _failed(self, words: Any, base: int) -> None:
        """Raise what went wrong."""
        state, f = self.state, self._frame
        assert state is not None
        code, words[f + _ERROR] = words[f + _ERROR], 0
        if code == (1 << 64) + hostcall.FAILED:
            raise hostcall.error_of(base + 8 * f)
        raise CudaError(state.driver.explain(f"running {self.name}", code), code)
