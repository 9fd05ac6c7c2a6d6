"""Which tiles compute a contraction on a GPU, by which instructions: the cheapest of a few by estimate.

Counts from which the tiles follow, per step of 16 along k of a warp's tile of 64 x 64 on tensor cores: 4 + 4
``ldmatrix.x4`` (4096 bytes of shared memory) for 32 ``mma.m16n8k16`` (65536 multiply-adds). A multiprocessor
of compute capability 8.0 does 1024 such multiply-adds and reads 128 bytes of shared memory a cycle, so the
products take 64 cycles and the fragments 32. Of its registers a thread needs 128 for the sums, 16 + 16 for
fragments and about 40 for addresses, which leaves room for two blocks of 128 threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from weft.codegen.gpu.contract_code import supports_async
from weft.codegen.gpu.target import WARP, GpuTarget
from weft.codegen.microkernel import accumulator
from weft.ir.types import DType, bf16, f16, f32, f64

_L2_BYTES = 40.0  # a cycle, that one multiprocessor gets from the second-level cache
_START = 1500.0  # cycles of a block before its first product and after its last
_LAUNCH = 4000.0  # cycles of one more launch
_LATENCY = 700.0  # cycles until what was asked of memory is in shared memory
_WARPS = 8  # of a multiprocessor, that keep its multiply-adds busy
_MOST_PARTS = 32  # of k: one thread adds them up
_DRAIN = 0.9  # what overlapping blocks of one multiprocessor hide of that
_PAD_BYTES = 32
_ADDRESSES = 40  # registers for what a thread needs besides sums and fragments
_LOOSE = 6  # more of them for each element that it reads alone: its value, its address, where it goes
DOUBLE = "mma.m8n8k4.f64"


@dataclass(frozen=True)
class Problem:
    """``batch`` products of [m, k] by [k, n] of elements of ``dtype``.

    ``tf32`` allows products of f32 to be rounded to 10 bits of mantissa, as torch's
    ``backends.cuda.matmul.allow_tf32`` does; it is off by default there as well. ``loose``: elements of an
    operand are read one by one, each at an address of its own.
    """

    batch: int
    m: int
    n: int
    k: int
    dtype: DType
    tf32: bool = False
    loose: bool = False


@dataclass(frozen=True)
class Plan:
    """Tiles of ``m`` by ``n`` by ``k`` of a block; ``warps`` (down, across), each of (m, n) / warps.

    ``family`` names the instructions: "fma" (sums of a thread in ``thread`` rows and columns), "mma.m16n8k16"
    (f16 and bf16), "mma.m16n8k8" (f16 before 8.0), "mma.m16n8k8.tf32", "mma.m8n8k4.f64". Others (wgmma) may
    come beside them.
    ``stages`` tiles are in shared memory at a time, of which one is read; k is cut into ``splits`` parts.
    """

    family: str
    m: int
    n: int
    k: int
    warps: tuple[int, int]
    thread: tuple[int, int] = (1, 1)
    stages: int = 2
    splits: int = 1

    @property
    def threads(self) -> int:
        return self.warps[0] * self.warps[1] * WARP

    @property
    def tensor(self) -> bool:
        return self.family != "fma"

    @property
    def narrow(self) -> bool:
        """True where operands are multiplied in the form in which memory holds them, by ``ldmatrix``."""
        return self.tensor and self.family != DOUBLE

    def pad(self, acc: DType) -> int:
        """Elements between rows of the finished tile, so that stores of a warp fall into different banks."""
        return _PAD_BYTES // acc.itemsize * (2 if self.family == DOUBLE else 1)

    def operand_pad(self, acc: DType) -> int:
        """The same between k of an operand's tile."""
        return 0 if self.narrow else 4 if self.family == DOUBLE else 16 // acc.itemsize

    def sum_bytes(self, acc: DType) -> int:
        return self.m * (self.n + self.pad(acc)) * acc.itemsize

    def stage_bytes(self, dtype: DType) -> int:
        if self.narrow:
            return (self.m + self.n) * self.k * dtype.itemsize
        acc = accumulator(dtype)
        return (self.m + self.n + 2 * self.operand_pad(acc)) * self.k * acc.itemsize

    def shared_bytes(self, dtype: DType) -> int:
        return max(self.stages * self.stage_bytes(dtype), self.sum_bytes(accumulator(dtype)))

    def registers(self, p: Problem) -> int:
        """About how many registers a thread needs."""
        words = max(1, accumulator(p.dtype).itemsize // 4)
        sums = self.m * self.n // self.threads * words
        fragments = 32 if self.tensor else 2 * sum(self.thread) * words
        staged = -(-(self.m + self.n) * self.k // self.threads) * _LOOSE if p.loose else 0
        return min(255, sums + fragments + staged + _ADDRESSES)

    def blocks_per_sm(self, p: Problem, target: GpuTarget) -> int:
        """How many blocks a multiprocessor holds; the compiler is told not to take more registers."""
        by_shared = target.sm_shared_bytes // (self.shared_bytes(p.dtype) + 1024)
        by_registers = target.sm_registers // (self.registers(p) * self.threads)
        return max(1, min(by_shared, by_registers, target.sm_threads // self.threads, 4))

    def __str__(self) -> str:
        split = f", k in {self.splits} parts" if self.splits > 1 else ""
        shape = f"{self.m}x{self.n}x{self.k}"
        return f"{self.family} {shape}, {self.warps[0]}x{self.warps[1]} warps, {self.stages} stages{split}"


def rate(family: str, dtype: DType, target: GpuTarget) -> float:
    """Multiply-adds of one multiprocessor in a cycle."""
    if family == DOUBLE:
        return 128.0 if target.capability == (9, 0) else 64.0
    if family != "fma":
        small = target.capability < (8, 0) or target.capability in ((8, 6), (8, 9))
        return (512.0 if small else 1024.0) / (2 if family.endswith("tf32") else 1)
    if dtype is f64:
        return {(8, 0): 32.0, (9, 0): 64.0, (10, 0): 64.0}.get(target.capability, 2.0)
    return 64.0 if target.capability in ((7, 5), (8, 0)) else 128.0


def tensor_family(p: Problem, target: GpuTarget) -> str | None:
    """The tensor core instructions for a dtype, if there are any."""
    if p.tf32 and p.dtype is f32 and target.capability >= (8, 0):
        return "mma.m16n8k8.tf32"
    if target.capability >= (8, 0) and p.dtype in (f16, bf16):
        return "mma.m16n8k16"
    if p.dtype is f64 and target.capability in ((8, 0), (9, 0)):  # on others they gain nothing
        return DOUBLE
    return "mma.m16n8k8" if p.dtype is f16 and target.capability >= (7, 5) else None


def choose(p: Problem, target: GpuTarget, more: Callable[[Plan], int] | None = None) -> Plan:
    """The plan of least estimated time; ``more`` are bytes of shared memory that it needs beside its own."""
    spare = target.shared_bytes
    fitting = (x for x in plans(p, target) if more is None or x.shared_bytes(p.dtype) + more(x) <= spare)
    return min(fitting, key=lambda plan: cost(p, plan, target))


def plans(p: Problem, target: GpuTarget) -> Iterator[Plan]:
    """Every plan that fits the target and is worth an estimate."""
    for plan in _tiles(p, target):
        if plan.shared_bytes(p.dtype) <= target.shared_bytes:
            for splits in _splits(p, plan, target):
                yield replace(plan, splits=splits)


def _tiles(p: Problem, target: GpuTarget) -> Iterator[Plan]:
    family = tensor_family(p, target)
    if family == DOUBLE:
        yield Plan(family, 128, 64, 16, (4, 2))
        yield Plan(family, 64, 64, 16, (2, 2))
        yield Plan(family, 32, 64, 16, (2, 2))
        yield Plan(family, 64, 32, 16, (2, 2))
        yield Plan(family, 16, 64, 16, (1, 4))
        yield Plan(family, 64, 16, 16, (4, 1))
    elif family is not None and p.k >= 8:
        stages = 4 if supports_async(target) else 2
        if p.loose:
            yield Plan(family, 128, 64, 32, (4, 2), stages=2)
            yield Plan(family, 64, 128, 32, (2, 4), stages=2)
            yield Plan(family, 64, 64, 32, (2, 4), stages=2)
            yield Plan(family, 16, 128, 32, (1, 8), stages=2)
            yield Plan(family, 128, 16, 32, (8, 1), stages=2)
            return
        yield Plan(family, 128, 256, 32, (2, 4), stages=min(stages, 3))
        yield Plan(family, 128, 128, 32, (2, 2), stages=stages)
        yield Plan(family, 128, 64, 32, (2, 2), stages=stages)
        yield Plan(family, 64, 128, 32, (2, 2), stages=stages)
        yield Plan(family, 64, 64, 32, (2, 2), stages=stages)
        yield Plan(family, 32, 128, 32, (1, 4), stages=stages)
        yield Plan(family, 16, 128, 32, (1, 4), stages=stages)
        yield Plan(family, 128, 16, 32, (4, 1), stages=stages)
        return
    wide = accumulator(p.dtype).itemsize == 8
    if not wide:
        yield Plan("fma", 128, 128, 8, (2, 4), (8, 8))
    yield Plan("fma", 64, 64, 16, (2, 4), (4, 4))
    yield Plan("fma", 32, 64, 16, (2, 2), (4, 4))
    yield Plan("fma", 64, 32, 16, (2, 2), (4, 4))
    yield Plan("fma", 16, 128, 16, (1, 4), (4, 4))
    yield Plan("fma", 128, 16, 16, (1, 4), (4, 4))
    yield Plan("fma", 16, 32, 16, (1, 1), (4, 4))


def _splits(p: Problem, plan: Plan, target: GpuTarget) -> set[int]:
    """Parts of k: one, or as many as fill the machine once, each of eight steps at least."""
    tiles = p.batch * -(-p.m // plan.m) * -(-p.n // plan.n)
    slots = target.multiprocessors * plan.blocks_per_sm(p, target)
    most = min(slots // tiles, p.k // (8 * plan.k), _MOST_PARTS)
    return {1, most} if most > 1 else {1}


def part_of(p: Problem, plan: Plan) -> int:
    """The k of one part, a whole number of steps."""
    return -(-p.k // (plan.k * plan.splits)) * plan.k


def cost(p: Problem, plan: Plan, target: GpuTarget) -> float:
    """Cycles, as if every block of a wave took as long as the others."""
    size = p.dtype.itemsize
    per_sm = plan.blocks_per_sm(p, target)
    blocks = p.batch * plan.splits * -(-p.m // plan.m) * -(-p.n // plan.n)
    at_once = min(per_sm, -(-blocks // target.multiprocessors))
    rounds = -(-blocks // (target.multiprocessors * at_once))
    steps = -(-part_of(p, plan) // plan.k)
    products = plan.m * plan.n * plan.k / (rate(plan.family, p.dtype, target) * _filled(plan))
    copies = (plan.m + plan.n) * plan.k * size / _L2_BYTES
    if not plan.tensor:  # latencies of shared memory and of sums are hidden by other warps
        products *= max(1.0, _WARPS * WARP / (at_once * plan.threads))
    step = max(at_once * max(products, copies), _LATENCY / (plan.stages - 1))
    start = _START * (1 - _DRAIN * (at_once - 1) / at_once)
    total = rounds * (steps * step + at_once * start)
    if plan.splits > 1:
        moved = (plan.splits + 1) * p.batch * p.m * p.n * 4
        total += _LAUNCH + 2 * moved / (target.multiprocessors * 16.0)
    return total


def _filled(plan: Plan) -> float:
    """The share of a thread's instructions that are products: the others load their operands."""
    if plan.tensor:
        return 1.0
    rows, cols = plan.thread
    return rows * cols / (rows * cols + 2 * (rows + cols))
