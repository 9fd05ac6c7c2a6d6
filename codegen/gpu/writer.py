"""What hand-written GPU kernels share: functions, launches, threads numbered through a launch, raw memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from weft.codegen.blocks import Ix
from weft.codegen.emit import Reg, VectorBuilder
from weft.codegen.gpu.builder import DeviceBuilder
from weft.codegen.gpu.device import DeviceFunction
from weft.codegen.gpu.kernel import DeviceCode, DeviceLaunch
from weft.codegen.gpu.target import GpuTarget
from weft.codegen.lanes import to_memory, to_register
from weft.codegen.llvm import mem_type
from weft.ir.graph import Op, Value
from weft.ir.types import DType

THREADS = 256
ACCESS = 16  # bytes


class DeviceWriter:
    """Collects the functions and launches of one kernel."""

    def __init__(self, op: Op, target: GpuTarget, prefix: str) -> None:
        self.op, self.target, self.prefix = op, target, prefix
        self.graph = op.regions[0]
        self.functions: list[str] = []
        self.declares: set[str] = set()
        self.launches: list[DeviceLaunch] = []
        self.scratch_bytes = 0

    # -- memory

    def operand(self, v: Value) -> int:
        """The slot of a parameter of the region."""
        return self.graph.params.index(v)

    def result(self, i: int) -> int:
        return len(self.op.operands) + i

    @property
    def scratch(self) -> int:
        return len(self.op.operands) + len(self.op.results)

    @property
    def status(self) -> int:
        return self.scratch + 1

    def room(self, nbytes: int) -> int:
        """Reserve scratch memory; its first byte."""
        at = self.scratch_bytes
        self.scratch_bytes += -(-nbytes // 256) * 256
        return at

    # -- functions

    def builder(self, fn: DeviceFunction) -> DeviceBuilder:
        """Writes scalar rules into a function."""
        return DeviceBuilder(fn, 0, self.target)

    @contextmanager
    def launch(self, slots: tuple[int, ...], blocks: int, threads: int = THREADS) -> Iterator[DeviceFunction]:
        """Write a function for pointers ``%a0 ...`` to these slots, launched with so many blocks."""
        fn = DeviceFunction(f"{self.prefix}_{len(self.launches)}", len(slots), threads)
        yield fn
        self.functions.append(fn.finish())
        self.declares |= fn.declares
        self.launches.append(DeviceLaunch(fn.symbol, (blocks, 1, 1), (threads, 1, 1), slots))

    @contextmanager
    def each(self, slots: tuple[int, ...], count: int) -> Iterator[tuple[DeviceFunction, Ix]]:
        """Write a function that runs for each number below ``count``, in a thread of its own."""
        blocks = -(-count // THREADS)
        with self.launch(slots, blocks) as fn:
            number = thread_number(fn)
            if count % THREADS:
                with fn.when(fn.op(f"icmp ult i64 {number}, {count}")):
                    yield fn, number
            else:
                yield fn, number

    def code(self, loops: str) -> DeviceCode:
        """The finished kernel."""
        nbytes = sum(v.type.nbytes for v in (*self.op.operands, *self.op.results))
        return DeviceCode(
            self.op.attrs.get("name") or self.prefix, "".join(self.functions), frozenset(self.declares),
            tuple(self.launches), self.scratch_bytes, loops, nbytes,
        )  # fmt: skip


def thread_number(fn: DeviceFunction) -> str:
    """The number of the thread in its launch."""
    block, tid = fn.index("ctaid.x").text, fn.index("tid.x").text
    return str(fn.add(fn.mul(block, fn.threads), tid))


def report(fn: DeviceFunction, status: str) -> None:
    """Set the status word."""
    fn.op(f"atomicrmw or ptr {status}, i64 1 monotonic")


def load_value(fn: DeviceFunction, b: VectorBuilder, pointer: str, at: Ix, dtype: DType) -> Reg:
    """An element in registers."""
    t = mem_type(dtype)
    return b.reg(to_register(fn, fn.load(t, fn.at(pointer, at, t), dtype.itemsize), dtype, 0), dtype)


def store_value(fn: DeviceFunction, x: Reg, pointer: str, at: Ix, dtype: DType) -> None:
    t = mem_type(dtype)
    fn.store(t, to_memory(fn, x.text, dtype, 0), fn.at(pointer, at, t), dtype.itemsize)


def move(fn: DeviceFunction, source: str, target: str, count: int, itemsize: int) -> None:
    """Copy ``count`` elements at once: a power of two of bytes, aligned to itself."""
    nbytes = count * itemsize
    t = {1: "i8", 2: "i16", 4: "i32", 8: "i64", 16: "<2 x i64>"}[nbytes]
    fn.store(t, fn.load(t, source, nbytes), target, nbytes)


def widest(itemsize: int, *steps: int) -> int:
    """Elements of one access: as many as fill 16 bytes and divide all these steps."""
    lanes = ACCESS // itemsize
    while lanes > 1 and any(s % lanes for s in steps):
        lanes //= 2
    return lanes
