"""Descriptions of the GPUs that code is generated for."""

from __future__ import annotations

from dataclasses import dataclass

WARP = 32
_KIB = 1 << 10


@dataclass(frozen=True)
class GpuTarget:
    """A GPU architecture as LLVM and ``ptxas`` name it, and what the schedules need to know of it.

    ``name`` is the architecture (``"sm_80"``), ``capability`` its compute capability, ``ptx`` the version of
    the PTX language (``73`` for 7.3). ``shared_bytes`` is what one block may have at most,
    ``sm_shared_bytes`` and ``sm_threads`` what a multiprocessor has, ``multiprocessors`` how many there
    are, ``parameter_bytes`` the room for the parameters of one kernel. ``tf32`` allows matrix products of f32
    on tensor cores, which round the factors to 10 bits of mantissa, as torch's
    ``backends.cuda.matmul.allow_tf32`` does, ``conv_tf32`` convolutions, as ``backends.cudnn.allow_tf32``.
    """

    name: str
    capability: tuple[int, int]
    ptx: int
    shared_bytes: int
    sm_shared_bytes: int
    sm_threads: int
    multiprocessors: int
    parameter_bytes: int = 4096
    sm_registers: int = 65536
    block_threads: int = 1024
    tf32: bool = False
    conv_tf32: bool = False

    triple = "nvptx64-nvidia-cuda"
    architecture = "nvptx64"
    vector_bits = 128  # the widest access of one thread
    masked = False  # builders ask: there are no instructions under a mask of lanes

    @property
    def cpu(self) -> str:
        """The architecture as LLVM takes it."""
        return self.name

    @property
    def nan_extrema(self) -> bool:
        """True where ``max`` and ``min`` of f32 that pass NaN on are one instruction."""
        return self.capability >= (8, 0)

    @property
    def bf16_rounding(self) -> bool:
        """True where f32 is rounded to bf16 by one instruction, subnormals and NaN included."""
        return self.capability >= (8, 0)

    @property
    def features(self) -> str:
        return f"+ptx{self.ptx}"

    def machine_code_runs_on(self, capability: tuple[int, int]) -> bool:
        """Whether a device runs machine code for this architecture: one of its generation, and no older one.

        Later generations compile the PTX themselves. CUDA C++ Programming Guide, "Application Compatibility".
        """
        if self.name[-1] == "a":
            return capability == self.capability
        return capability[0] == self.capability[0] and capability >= self.capability

    def lanes(self, bits: int) -> int:
        """Elements of ``bits`` bits in one access of 16 bytes."""
        return max(1, self.vector_bits // max(bits, 8))

    @property
    def attributes(self) -> str:
        """The module line that defines ``#0``, the attributes of every function."""
        machine = f'"target-cpu"="{self.name}" "target-features"="{self.features}"'
        return f"attributes #0 = {{ nounwind {machine} }}"


def _target(name: str, capability: tuple[int, int], ptx: int, block: int, sm: int, threads: int, sms: int,
            parameters: int = 4096) -> GpuTarget:  # fmt: skip
    return GpuTarget(name, capability, ptx, block * _KIB, sm * _KIB, threads, sms, parameters)


# Shared memory, threads: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability". The
# number of multiprocessors is that of a common product; where a device is at hand its own is taken.
# Parameters of 32764 bytes need PTX 8.1.
_TARGETS = {
    t.name: t
    for t in (
        _target("sm_75", (7, 5), 65, 64, 64, 1024, 40),
        _target("sm_80", (8, 0), 81, 163, 164, 2048, 108, 32764),
        _target("sm_86", (8, 6), 81, 99, 100, 1536, 84, 32764),
        _target("sm_87", (8, 7), 81, 163, 164, 1536, 16, 32764),
        _target("sm_89", (8, 9), 81, 99, 100, 1536, 128, 32764),
        _target("sm_90", (9, 0), 81, 227, 228, 2048, 132, 32764),
        _target("sm_90a", (9, 0), 81, 227, 228, 2048, 132, 32764),
        _target("sm_100", (10, 0), 86, 227, 228, 2048, 148, 32764),
        _target("sm_103", (10, 3), 88, 227, 228, 2048, 160, 32764),
        _target("sm_110", (11, 0), 90, 227, 228, 1536, 20, 32764),
        _target("sm_120", (12, 0), 87, 99, 100, 1536, 170, 32764),
        _target("sm_121", (12, 1), 88, 99, 100, 1536, 48, 32764),
    )
}


def gpu_target(name: str) -> GpuTarget:
    """A target by the name of its architecture. ValueError, with the names, for one that weft does not know.

    >>> gpu_target("sm_80").capability
    (8, 0)
    """
    found = _TARGETS.get(name)
    if found is None:
        plain = name.rstrip("af")
        less = f" ({plain} is: nothing that {name} adds is used)" if plain in _TARGETS else ""
        raise ValueError(f"unknown GPU architecture {name!r}{less}; known: {', '.join(_TARGETS)}")
    return found


def target_of(capability: tuple[int, int]) -> GpuTarget:
    """The architecture to generate code for on a device of this compute capability: its own where weft knows
    it, else the newest older one, whose PTX it runs. ValueError for devices older than all known ones.

    >>> target_of((8, 8)).name, target_of((9, 0)).name, target_of((13, 0)).name
    ('sm_87', 'sm_90a', 'sm_121')
    """
    exact = [t for t in _TARGETS.values() if t.capability == capability]
    if exact:
        return exact[-1]
    older = [t for t in _TARGETS.values() if t.capability < capability and t.name[-1] != "a"]
    if not older:
        raise ValueError("weft needs a GPU of compute capability 7.5 or later, this one has "
                         + ".".join(map(str, capability)))
    return max(older, key=lambda t: t.capability)
