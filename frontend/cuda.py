"""``weft.cuda``: GPUs, their memory, streams and events.

A GPU is driven through pycuda (``pip install weft[cuda]``); ``WEFT_CUDA=emulate`` in the environment gives an
emulated one, which executes the generated PTX in numpy. Nothing here loads either before it is needed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from weft.devices import cuda as _cuda
from weft.dtypes import device as _device
from weft.ir.types import Device
from weft.random import default_generator_of
from weft.tensor import Tensor


def is_available() -> bool:
    """Whether there is a GPU to run on (or an emulated one). Never raises."""
    return device_count() > 0


def device_count() -> int:
    """The number of GPUs. Never raises."""
    return _cuda.driver.device_count()


def is_initialized() -> bool:
    """Whether anything has used a GPU."""
    return "device" in _cuda.__dict__ and bool(_cuda.device._states)


def init() -> None:
    """Load the driver. RuntimeError, which says what to install, where there is none."""
    _cuda.device.device_state(_cuda.device.current_device())


def _index(device: Any) -> int:
    """The index of a device given as a number, a name, a Device or None (the current one). ValueError for
    one that is no GPU."""
    if device is None:
        return _cuda.device.current_device()
    found: Any = _device(device)
    if found.type != "cuda":
        raise ValueError(f"Expected a cuda device, but got: {found}")
    return _cuda.device.index_of(found)


def current_device() -> int:
    """The index of the calling thread's GPU. RuntimeError where there is none."""
    init()
    return _cuda.device.current_device()


def set_device(device: Any) -> None:
    """Make a GPU the calling thread's. RuntimeError for one that is not there."""
    _cuda.device.set_device(_index(device))


class device(contextlib.ContextDecorator):
    """Makes a GPU the current one inside the block."""

    def __init__(self, device: Any) -> None:
        self.index = _index(device)

    def __enter__(self) -> None:
        self.before = _cuda.device.current_device()
        _cuda.device.set_device(self.index)

    def __exit__(self, *exc: Any) -> None:
        _cuda.device.set_device(self.before)


class device_of(device):
    """Makes the GPU of a tensor the current one inside the block."""

    def __init__(self, obj: Tensor) -> None:
        super().__init__(obj.device if obj.is_cuda else None)


def _state(device: Any) -> Any:
    return _cuda.device.device_state(_index(device))


def get_device_name(device: Any = None) -> str:
    """The name of a GPU."""
    return _state(device).properties.name


def get_device_capability(device: Any = None) -> tuple[int, int]:
    """The compute capability of a GPU, as (major, minor)."""
    return _state(device).properties.capability


def get_device_properties(device: Any = None) -> Any:
    """What is known of a GPU: ``name``, ``major``, ``minor``, ``total_memory``, ``multi_processor_count``."""
    return _state(device).properties


def is_bf16_supported(including_emulation: bool = True) -> bool:
    """True: bfloat16 is computed on every GPU, on tensor cores from compute capability 8.0 on."""
    return is_available()


def synchronize(device: Any = None) -> None:
    """Wait for all work on a GPU. IndexError for an index that a kernel found out of range."""
    if device is not None or is_initialized():
        _cuda.stream.synchronize(_index(device))


# -- streams ------------------------------------------------------------------------------------------------


def current_stream(device: Any = None) -> Any:
    """The stream that the calling thread's work goes to."""
    return _cuda.stream.current_stream(_index(device))


def default_stream(device: Any = None) -> Any:
    """The stream that work goes to where no other was chosen."""
    return _cuda.stream.default_stream(_index(device))


def set_stream(stream: Any) -> None:
    """Make a stream the calling thread's. None changes nothing."""
    if stream is not None:
        _cuda.stream.set_stream(stream)


@contextlib.contextmanager
def stream(stream: Any) -> Iterator[None]:
    """Makes a stream the current one inside the block."""
    with _cuda.stream.using_stream(stream):
        yield


def is_current_stream_capturing() -> bool:
    """Whether the work of the calling thread is being recorded in a graph."""
    if not is_initialized():
        return False
    return _cuda.stream.current_stream().cuda_stream in _state(None).capturing


class graph:
    """Records the work inside the block in a :class:`CUDAGraph`, on a stream of the graph's own, not run.

    What is computed keeps its memory, at the same addresses in each replay: copy new inputs into the tensors
    that the block read, call ``replay``, and read the tensors that it made. RuntimeError for work that needs
    the host.
    """

    def __init__(
        self, cuda_graph: Any, pool: Any = None, stream: Any = None, capture_error_mode: str = "global"
    ) -> None:
        self.cuda_graph, self._arguments = cuda_graph, (pool, capture_error_mode)

    def __enter__(self) -> None:
        synchronize()
        self._block = self.cuda_graph.capture()
        self._block.__enter__()

    def __exit__(self, *exc: Any) -> None:
        self._block.__exit__(*exc)


_ELSEWHERE = {"Stream": "stream", "Event": "stream", "OutOfMemoryError": "memory", "CUDAGraph": "graphs",
              "CudaError": "driver"}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _ELSEWHERE:
        return getattr(getattr(_cuda, _ELSEWHERE[name]), name)
    raise AttributeError(f"module 'weft.cuda' has no attribute {name!r}")


# -- memory -------------------------------------------------------------------------------------------------


def _allocator(device: Any) -> Any:
    return _state(device).allocator if is_initialized() else None


def memory_allocated(device: Any = None) -> int:
    """Bytes of tensors on a GPU."""
    found = _allocator(device)
    return 0 if found is None else found.allocated()


def max_memory_allocated(device: Any = None) -> int:
    """The most bytes of tensors since the start, or since :func:`reset_peak_memory_stats`."""
    found = _allocator(device)
    return 0 if found is None else found.max_allocated()


def memory_reserved(device: Any = None) -> int:
    """Bytes that the allocator holds, for tensors and for later."""
    found = _allocator(device)
    return 0 if found is None else found.reserved()


def max_memory_reserved(device: Any = None) -> int:
    """The most bytes that the allocator held."""
    found = _allocator(device)
    return 0 if found is None else found.max_reserved()


def memory_stats(device: Any = None) -> dict[str, int]:
    """Bytes of tensors and bytes held, now and at most, by PyTorch's names."""
    return {
        "allocated_bytes.all.current": memory_allocated(device),
        "allocated_bytes.all.peak": max_memory_allocated(device),
        "reserved_bytes.all.current": memory_reserved(device),
        "reserved_bytes.all.peak": max_memory_reserved(device),
    }


def reset_peak_memory_stats(device: Any = None) -> None:
    """Start again to look for the most bytes."""
    found = _allocator(device)
    if found is not None:
        found.reset_peak()


def empty_cache() -> None:
    """Give memory that the allocators hold for later back to the driver."""
    if is_initialized():
        for index in range(device_count()):
            _state(index).allocator.empty_cache()


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """Bytes of a GPU that are free, and all its bytes."""
    state = _state(device)
    state.activate()
    return state.driver.memory_info()


# -- random numbers -----------------------------------------------------------------------------------------


def _generator(device: Any) -> Any:
    return default_generator_of(Device("cuda", _index(device)))


def manual_seed(seed: int) -> None:
    """Seed the generator of the current GPU; nothing where there is none."""
    if is_available():
        _generator(None).manual_seed(seed)


def manual_seed_all(seed: int) -> None:
    """Seed the generators of all GPUs; nothing where there are none."""
    for index in range(device_count()):
        _generator(index).manual_seed(seed)


def seed_all() -> None:
    """Seed the generators of all GPUs from the operating system."""
    for index in range(device_count()):
        _generator(index).seed()


def seed() -> None:
    """Seed the generator of the current GPU from the operating system."""
    _generator(None).seed()


def initial_seed() -> int:
    """The seed of the generator of the current GPU."""
    return _generator(None).initial_seed()


def get_rng_state(device: Any = "cuda") -> Tensor:
    """The state of the generator of a GPU."""
    return _generator(device).get_state()


def set_rng_state(new_state: Tensor, device: Any = "cuda") -> None:
    """Set the state of the generator of a GPU."""
    _generator(device).set_state(new_state)


def get_rng_state_all() -> list[Tensor]:
    """The states of the generators of all GPUs."""
    return [get_rng_state(index) for index in range(device_count())]


def set_rng_state_all(new_states: Iterable[Tensor]) -> None:
    """Set the states of the generators of all GPUs."""
    for index, state in enumerate(new_states):
        set_rng_state(state, index)
