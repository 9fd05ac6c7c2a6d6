"""Functions of a GPU kernel being written: special registers, shared memory, barriers, shuffles."""

from __future__ import annotations

from collections.abc import Callable

from weft.codegen.blocks import Code
from weft.codegen.emit import Reg, VectorBuilder
from weft.codegen.gpu.target import WARP
from weft.codegen.llvm import reg_type
from weft.ir import types as T
from weft.ir.types import DType


class DeviceFunction(Code):
    """A kernel ``void @symbol(ptr %a0, ptr %a1, ...)`` for blocks of ``threads`` threads."""

    def __init__(self, symbol: str, pointers: int, threads: int, blocks_per_sm: int = 0) -> None:
        params = ", ".join(f"ptr align 16 %a{i}" for i in range(pointers))
        bounds = f'"nvvm.maxntid"="{threads}"'
        if blocks_per_sm:
            bounds += f' "nvvm.minctasm"="{blocks_per_sm}"'
        super().__init__(symbol, params, attributes=f"#0 {bounds}", linkage="ptx_kernel")
        self.threads = threads
        self._shared = 0
        self.shared_bytes = 0

    def special(self, name: str) -> str:
        """A special register (``tid.x``, ``ctaid.x``) as i32."""
        full = f"llvm.nvvm.read.ptx.sreg.{name}"
        self.declares.add(f"declare i32 @{full}()")
        return self.op(f"call i32 @{full}()")

    def index(self, name: str) -> Reg:
        """The same as i64."""
        return Reg(self.op(f"zext i32 {self.special(name)} to i64"), T.i64, 0, self.depth)

    def shared(self, nbytes: int) -> str:
        """Shared memory of the block, as a generic pointer."""
        name = f"@{self.symbol}_shared{self._shared}"
        self._shared += 1
        self.shared_bytes += -(-nbytes // 16) * 16
        self.declares.add(f"{name} = internal addrspace(3) global [{nbytes} x i8] undef, align 16")
        return f"addrspacecast (ptr addrspace(3) {name} to ptr)"

    def barrier(self) -> None:
        """All threads of the block come here before any goes on."""
        self.declares.add("declare void @llvm.nvvm.barrier.cta.sync.aligned.all(i32)")
        self.do("call void @llvm.nvvm.barrier.cta.sync.aligned.all(i32 0)")

    def warp_barrier(self, members: str = "-1") -> None:
        """The same for the threads of a warp (a mask)."""
        self.declares.add("declare void @llvm.nvvm.bar.warp.sync(i32)")
        self.do(f"call void @llvm.nvvm.bar.warp.sync(i32 {members})")

    def exchanged(self, b: VectorBuilder, x: Reg, distance: int, members: str = "-1") -> Reg:
        """The value that the thread whose number differs in ``distance`` (a power of two) has."""
        return _by_words(b, x, lambda word: self._shuffle("bfly", word, distance, members))

    def from_below(self, b: VectorBuilder, x: Reg, distance: int, members: str = "-1") -> Reg:
        """The value of the thread ``distance`` before; in the first ones their own."""
        return _by_words(b, x, lambda word: self._shuffle("up", word, distance, members))

    def _shuffle(self, kind: str, word: str, distance: int, members: str) -> str:
        clamp = 0 if kind == "up" else WARP - 1
        args = f"i32 {members}, i32 {word}, i32 {distance}, i32 {clamp}"
        return self.call(f"llvm.nvvm.shfl.sync.{kind}.i32", "i32", args)


def _by_words(b: VectorBuilder, x: Reg, move: Callable[[str], str]) -> Reg:
    """A value moved between threads in words of 32 bits."""
    fn, t = b.fn, reg_type(x.dtype)
    bits = {"i1": 1, "i8": 8, "i16": 16, "i32": 32, "float": 32, "i64": 64, "double": 64}[t]
    text = x.text
    if bits == 64:
        whole = fn.op(f"bitcast double {text} to i64") if t == "double" else text
        low = move(fn.op(f"trunc i64 {whole} to i32"))
        high = move(fn.op(f"trunc i64 {fn.op(f'lshr i64 {whole}, 32')} to i32"))
        wide = [fn.op(f"zext i32 {w} to i64") for w in (low, high)]
        out = fn.op(f"or i64 {wide[0]}, {fn.op(f'shl i64 {wide[1]}, 32')}")
        return b.reg(fn.op(f"bitcast i64 {out} to double") if t == "double" else out, x.dtype)
    if t == "float":
        got = move(fn.op(f"bitcast float {text} to i32"))
        return b.reg(fn.op(f"bitcast i32 {got} to float"), x.dtype)
    got = move(text if bits == 32 else fn.op(f"zext {t} {text} to i32"))
    return b.reg(got if bits == 32 else fn.op(f"trunc i32 {got} to {t}"), x.dtype)


def narrow_divmod(b: VectorBuilder, x: Reg, k: int, bound: int) -> tuple[Reg, Reg]:
    """x // k and x % k of an i64 known to lie in 0..bound-1, in 32 bits where they suffice."""
    if k == 1:
        return x, b.const(0, T.i64)
    if bound <= k:
        return b.const(0, T.i64), x
    dtype: DType = T.u32 if bound <= 1 << 31 else T.u64
    n, d = b.convert(b.bitcast(x, T.u64), dtype), b.const(k, dtype)
    return tuple(  # type: ignore[return-value]
        b.bitcast(b.convert(b.simple(op, dtype, n, d), T.u64), T.i64) for op in ("udiv", "urem")
    )
