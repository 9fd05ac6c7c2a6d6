"""Descriptions of the machines that code is generated for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Protocol

from weft.codegen.libllvm import library
from weft.ir.record import record, replace

# What cores do, measured on Zen 4 at 3.6 GHz and rounded down; other cores of the last ten years lie within
# a factor of two. Mixed arithmetic takes two cycles for three operations of 512 bits, half that for narrower.
WIDE_PER_NS = 4.5  # vector operations of 512 bits
NARROW_PER_NS = 8.0  # of 256 bits and less
CACHE_BYTES_PER_NS = (100.0, 80.0, 40.0)  # from the first, second and third cache
MEMORY_BYTES_PER_NS = 20.0
# Fork and join with workers that still spin cost 500 to 700 ns, waking a worker that sleeps 20 to 40 us
# (which the pool weighs for itself). benchmarks/choices.py shows what the two thresholds cost and gain.
INLINE_NS = 3_000.0  # shorter work stays on the calling thread
CHUNK_NS = 1_000.0  # least work in one chunk of a parallel region
# Threads that work is cut for (results may not depend on how many there are), and how much each counts.
SHARERS = ((2, 0.5), (4, 0.3), (8, 0.2))
# A slot is the time of one vector fma at full rate, the unit in which contractions are estimated.
_SLOT_NS = 0.28  # of 512 bits, on one core of Zen 4
_LATENCY_NS = 1.4  # until the result of an fma can be added to again


class Machine(Protocol):
    """What builders of scalar code ask of a target, be it a CPU or a GPU."""

    @property
    def architecture(self) -> str: ...

    @property
    def features(self) -> str: ...

    @property
    def masked(self) -> bool: ...

    @property
    def nan_extrema(self) -> bool: ...

    @property
    def bf16_rounding(self) -> bool: ...


@record(frozen=True)
class Target:
    """A CPU as LLVM names it, and what the schedules need to know of it.

    ``features`` is LLVM's feature string (``"+avx2,+fma"``), ``vector_bits`` the width of the vectors that
    kernels use, ``registers`` the number of vector registers, ``l1_bytes`` and ``l2_bytes`` a core's caches,
    ``l3_bytes`` the one that cores share, ``line_bytes`` the line in which they are filled.
    """

    triple: str
    cpu: str
    features: str
    vector_bits: int = 256
    registers: int = 16
    l1_bytes: int = 32 << 10
    l2_bytes: int = 512 << 10
    l3_bytes: int = 8 << 20
    line_bytes: int = 64

    nan_extrema = False  # no instruction for a maximum that passes NaN on
    bf16_rounding = False  # vcvtneps2bf16 takes subnormals for zero

    @property
    def architecture(self) -> str:
        return self.triple.split("-")[0]

    @property
    def masked(self) -> bool:
        """True where masked loads and stores of every element size are one instruction (AVX-512)."""
        return self.vector_bits == 512

    def lanes(self, bits: int) -> int:
        """Elements of ``bits`` bits in one vector."""
        return max(1, self.vector_bits // max(bits, 8))

    def operations_per_ns(self, bits: int) -> float:
        """Simple operations on elements of ``bits`` bits in a nanosecond of one core."""
        return self.lanes(bits) * (WIDE_PER_NS if self.masked else NARROW_PER_NS)

    @property
    def x86(self) -> bool:
        return self.triple.startswith("x86_64")

    def bytes_per_ns(self, footprint: int) -> float:
        """What one core reads and writes in a nanosecond where its data fit the caches of ``footprint``."""
        for size, rate in zip((self.l1_bytes, self.l2_bytes, self.l3_bytes), CACHE_BYTES_PER_NS, strict=True):
            if footprint <= size:
                return rate
        return MEMORY_BYTES_PER_NS

    @property
    def slot_ns(self) -> float:
        """The time of one vector fma at full rate, in nanoseconds of one core."""
        return _SLOT_NS * self.vector_bits / 512

    @property
    def latency_slots(self) -> float:
        """Slots until a sum can be added to again: so many sums keep the unit busy."""
        return _LATENCY_NS / self.slot_ns

    @property
    def attributes(self) -> str:
        """The module line that defines ``#0``, the attributes of every kernel function."""
        width = f'"prefer-vector-width"="{self.vector_bits}" "min-legal-vector-width"="{self.vector_bits}"'
        cpu = f'"target-cpu"="{self.cpu}" "target-features"="{self.features}"'
        return f"attributes #0 = {{ nounwind {width} {cpu} }}"


_emitting: ContextVar[Machine | None] = ContextVar("emitting", default=None)


@contextmanager
def emitting_for(target: Machine) -> Iterator[None]:
    """Kernels emitted inside are for ``target``: builders deep inside them ask :func:`current_target`."""
    token = _emitting.set(target)
    try:
        yield
    finally:
        _emitting.reset(token)


def current_target() -> Machine | None:
    """The target of the kernel that is being emitted, if one is."""
    return _emitting.get()


_HASWELL = (
    "+64bit,+aes,+avx,+avx2,+bmi,+bmi2,+cmov,+cx16,+cx8,+f16c,+fma,+fsgsbase,+fxsr,+lzcnt,+mmx,+movbe,+pclmul,"
    "+popcnt,+rdrnd,+sahf,+sse,+sse2,+sse3,+sse4.1,+sse4.2,+ssse3,+xsave,+xsaveopt"
)
_SKYLAKE = _HASWELL + ",+adx,+avx512bw,+avx512cd,+avx512dq,+avx512f,+avx512vl"
_ARM = "+aes,+crc,+dotprod,+fp-armv8,+fullfp16,+lse,+neon,+rcpc,+rdm,+sha2,+v8.2a"
_NAMED = {
    "haswell": ("x86_64", "haswell", _HASWELL, 256, 16, 32 << 10, 256 << 10),
    "skylake-avx512": ("x86_64", "skylake-avx512", _SKYLAKE, 512, 32, 32 << 10, 1 << 20),
    "neoverse-n1": ("aarch64", "neoverse-n1", _ARM, 128, 32, 64 << 10, 1 << 20),
}


def named_target(name: str) -> Target:
    """A target by name: ``haswell`` (AVX2), ``skylake-avx512``, ``neoverse-n1`` (NEON). KeyError for others.

    >>> named_target("haswell").vector_bits
    256
    """
    architecture, cpu, features, bits, registers, l1, l2 = _NAMED[name]
    own, _, _ = library().host()
    triple = own if own.split("-")[0] == architecture else f"{architecture}-unknown-linux-gnu"
    return Target(triple, cpu, features, bits, registers, l1, l2)


@cache
def host_target() -> Target:
    """The CPU that this process runs on: 512-bit vectors where it has AVX-512 BW, DQ and VL, else 256.

    The environment variable ``WEFT_CPU`` names another to build for (see :func:`named_target`), which this
    one must be able to run.
    """
    wanted = os.environ.get("WEFT_CPU")
    if wanted:
        l1, l2, l3, line = cache_sizes()
        return replace(named_target(wanted), l1_bytes=l1, l2_bytes=l2, l3_bytes=l3, line_bytes=line)

    triple, cpu, found = library().host()
    features = ",".join(("+" if on else "-") + name for name, on in sorted(found.items()))
    wide = all(found.get(f) for f in ("avx512f", "avx512bw", "avx512dq", "avx512vl"))
    bits = 512 if wide else 256 if found.get("avx2") else 128
    return Target(triple, cpu, features, bits, 32 if wide else 16, *cache_sizes())


def cache_sizes() -> tuple[int, int, int, int]:
    """Bytes of a core's first and second level data caches, of the third that cores share, and of a line."""
    line = _cache_bytes(0, 64, "coherency_line_size")
    return _cache_bytes(0, 32 << 10), _cache_bytes(2, 512 << 10), _cache_bytes(3, 8 << 20), line


def _cache_bytes(index: int, otherwise: int, what: str = "size") -> int:
    """What Linux tells of a data cache of CPU 0."""
    try:
        with open(f"/sys/devices/system/cpu/cpu0/cache/index{index}/{what}") as f:
            text = f.read().strip()
    except OSError:
        return otherwise
    scale = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
    digits = text.rstrip("KM")
    return int(digits) * scale if digits.isdigit() else otherwise
