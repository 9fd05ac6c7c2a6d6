"""Functions of blocks of threads: thread indices, barriers, shared memory, and what is known of alignment.

Indices into arrays are i64, as everywhere; positions in shared memory are i32. For every index the largest
power of two known to divide it is kept, from which the alignment of accesses follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from weft.codegen.blocks import Code, Ix
from weft.codegen.gpu.target import GpuTarget

SHARED = "weft_shared"
_SHARED_LINE = f"@{SHARED} = external addrspace(3) global [0 x i8], align 16"
_WHOLE = 1 << 30  # divides nothing less than zero


def power_of_two(n: int) -> int:
    """The largest power of two that divides ``n``."""
    return (n & -n) if n else _WHOLE


class BlockCode(Code):
    """A kernel function of a fixed number of threads per block; ``pointers`` generic pointers %arg0, ..."""

    def __init__(
        self, symbol: str, pointers: int, threads: int, blocks_per_sm: int = 1, small: bool = True
    ) -> None:
        params = ", ".join(f"ptr %arg{i}" for i in range(pointers))
        bounds = f'"nvvm.maxntid"="{threads}" "nvvm.minctasm"="{blocks_per_sm}"'
        super().__init__(symbol, params, "void", f"#0 {bounds}", linkage="ptx_kernel")
        self.threads, self.small = threads, small
        self._divisors: dict[str, int] = {}
        self._special: dict[str, str] = {}

    # -- what divides an index

    def divisor(self, x: Ix) -> int:
        return power_of_two(x) if isinstance(x, int) else self._divisors.get(x, 1)

    def known(self, x: Ix, divisor: int) -> Ix:
        """Note that ``divisor`` divides ``x``."""
        if isinstance(x, str) and divisor > 1:
            self._divisors[x] = max(divisor, self._divisors.get(x, 1))
        return x

    def add(self, a: Ix, b: Ix) -> Ix:
        return self.known(super().add(a, b), min(self.divisor(a), self.divisor(b)))

    def sub(self, a: Ix, b: Ix) -> Ix:
        return self.known(super().sub(a, b), min(self.divisor(a), self.divisor(b)))

    def mul(self, a: Ix, b: Ix) -> Ix:
        return self.known(super().mul(a, b), min(_WHOLE, self.divisor(a) * self.divisor(b)))

    def div(self, a: Ix, b: int) -> Ix:
        """a // b, by 32-bit arithmetic where all indices are small: the other is ten times slower."""
        if isinstance(a, int) or b == 1 or not self.small or b >= 1 << 32:
            out = super().div(a, b)
        else:
            out = self._wide(self.op(f"udiv i32 {self.int32(a)}, {b}"))
        return self.known(out, self.divisor(a) // b if power_of_two(b) == b else 1)

    def mod(self, a: Ix, b: int) -> Ix:
        if isinstance(a, int) or b == 1 or not self.small or b >= 1 << 32:
            out = super().mod(a, b)
        else:
            out = self._wide(self.op(f"urem i32 {self.int32(a)}, {b}"))
        return self.known(out, min(self.divisor(a), power_of_two(b)))

    def _wide(self, x: str) -> str:
        return self.op(f"zext i32 {x} to i64")

    # -- i32 arithmetic, for shared memory

    def int32(self, x: Ix) -> Ix:
        """An i64 index as an i32."""
        return x if isinstance(x, int) else self.op(f"trunc i64 {x} to i32")

    def i32(self, op: str, a: Ix, b: Ix) -> Ix:
        """An i32 operation (add, mul, and, xor, shl, lshr, udiv, urem) that folds."""
        if isinstance(a, int) and isinstance(b, int):
            return _FOLD[op](a, b)
        if b == 0 and op in ("add", "xor", "shl", "lshr", "or"):
            return a
        if a == 0 and op in ("add", "xor", "or"):
            return b
        if (b == 1 and op in ("mul", "udiv")) or (a == 1 and op == "mul"):
            return a if b == 1 else b
        if (b == 1 and op == "urem") or (op in ("mul", "and") and 0 in (a, b)):
            return 0
        return self.op(f"{op} i32 {a}, {b}")

    def index(self, x: Ix, divisor: int = 1) -> Ix:
        """A non-negative i32 as an index."""
        return x if isinstance(x, int) else self.known(self._wide(x), divisor)

    # -- threads

    def special(self, name: str) -> str:
        """A special register of the thread, as an i32: ``tid.x``, ``ctaid.y`` ..."""
        found = self._special.get(name)
        if found is None:
            full = f"llvm.nvvm.read.ptx.sreg.{name}"
            self.declare(f"declare i32 @{full}()")
            self._n += 1
            found = self._special[name] = f"%{name.replace('.', '_')}{self._n}"
            self._allocas.append(f"  {found} = call i32 @{full}()")  # at entry, where all may use it
        return found

    @property
    def thread(self) -> str:
        return self.special("tid.x")

    def block_index(self, axis: str) -> Ix:
        return self.index(self.special(f"ctaid.{axis}"))

    def barrier(self) -> None:
        self.declare("declare void @llvm.nvvm.barrier.cta.sync.aligned.all(i32)")
        self.do("call void @llvm.nvvm.barrier.cta.sync.aligned.all(i32 0)")

    def shuffle_xor(self, x: str, distance: int) -> str:
        """The float of the lane whose number differs in the bits of ``distance``."""
        args = f"i32 -1, float {x}, i32 {distance}, i32 31"
        return self.call("llvm.nvvm.shfl.sync.bfly.f32", "float", args)

    # -- shared memory

    def shared(self, offset: Ix) -> str:
        """The address of byte ``offset`` (i32) of the block's dynamic shared memory."""
        self.declare(_SHARED_LINE)
        return self.op(f"getelementptr i8, ptr addrspace(3) @{SHARED}, i32 {offset}")

    def load_shared(self, ty: str, offset: Ix, align: int) -> str:
        return self.op(f"load {ty}, ptr addrspace(3) {self.shared(offset)}, align {align}")

    def store_shared(self, ty: str, value: str, offset: Ix, align: int) -> None:
        self.do(f"store {ty} {value}, ptr addrspace(3) {self.shared(offset)}, align {align}")

    def copy_async(self, offset: Ix, source: str, size: int, valid: str | None) -> None:
        """Start a copy of ``size`` bytes (4, 8 or 16) to shared memory; zeros where the i1 does not hold."""
        name = f"llvm.nvvm.cp.async.{'cg' if size == 16 else 'ca'}.shared.global.{size}"
        to, source = self.shared(offset), self.op(f"addrspacecast ptr {source} to ptr addrspace(1)")
        args = f"ptr addrspace(3) {to}, ptr addrspace(1) {source}"
        if valid is not None:
            name += ".s"
            args += f", i32 {self.op(f'select i1 {valid}, i32 {size}, i32 0')}"
        types = "ptr addrspace(3), ptr addrspace(1)" + (", i32" if valid is not None else "")
        self.declare(f"declare void @{name}({types})")
        self.do(f"call void @{name}({args})")

    def commit_copies(self) -> None:
        self.declare("declare void @llvm.nvvm.cp.async.commit.group()")
        self.do("call void @llvm.nvvm.cp.async.commit.group()")

    def wait_copies(self, pending: int) -> None:
        """Wait until at most ``pending`` groups of copies are under way."""
        self.declare("declare void @llvm.nvvm.cp.async.wait.group(i32 immarg)")
        self.do(f"call void @llvm.nvvm.cp.async.wait.group(i32 {pending})")

    # -- predicates

    @contextmanager
    def only(self, condition: str | None) -> Iterator[None]:
        """The block where the i1 holds; None: always."""
        if condition is None:
            yield
            return
        with self.when(condition):
            yield

    def replaced(
        self, condition: str | None, values: list[str], ty: str, make: Callable[[], list[str]]
    ) -> list[str]:
        """``values``, or what ``make`` gives where the i1 holds; None: it does not."""
        if condition is None:
            return values
        before = self.block
        with self.when(condition):
            made, inside = make(), self.block
        out = []
        for x, y in zip(values, made, strict=True):
            phi = self.phi(ty)
            phi.add(x, before)
            phi.add(y, inside)
            out.append(phi.name)
        return out

    def both(self, a: str | None, b: str | None) -> str | None:
        """The i1 of two conditions, of which None always holds."""
        if a is None or b is None:
            return a or b
        return self.op(f"and i1 {a}, {b}")

    def below(self, x: Ix, limit: Ix) -> str | None:
        """x < limit for non-negative i64; None where that is known to hold."""
        if isinstance(x, int) and isinstance(limit, int):
            return None if x < limit else "false"
        return self.op(f"icmp ult i64 {x}, {limit}")

    def select(self, condition: str | None, x: Ix, y: Ix) -> Ix:
        """An i64 by condition."""
        if condition is None or x == y:
            return x
        divisor = min(self.divisor(x), self.divisor(y))
        return self.known(self.op(f"select i1 {condition}, i64 {x}, i64 {y}"), divisor)

    def split(self, flat: Ix, dims: Sequence[int]) -> list[Ix]:
        out: list[Ix] = []
        for d in reversed(dims[1:]):
            out.append(self.mod(flat, d))
            flat = self.div(flat, d)
        return [flat, *reversed(out)] if dims else []


_FOLD = {
    "add": lambda a, b: a + b, "mul": lambda a, b: a * b, "and": lambda a, b: a & b,
    "or": lambda a, b: a | b, "xor": lambda a, b: a ^ b, "shl": lambda a, b: a << b,
    "lshr": lambda a, b: a >> b, "udiv": lambda a, b: a // b, "urem": lambda a, b: a % b,
    "sub": lambda a, b: a - b,
}  # fmt: skip


def supports_async(target: GpuTarget) -> bool:
    """True where copies to shared memory run beside the arithmetic."""
    return target.capability >= (8, 0)
