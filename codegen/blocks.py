"""Loops, conditionals and integer arithmetic that folds, for kernels written by hand rather than from loop
IR.

An index is a Python int where it is known while emitting, or the name of an i64 value; arithmetic on known
indices happens in Python, so one emitter serves static and dynamic sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from weft.codegen.llvm import Function, mem_type
from weft.ir.types import DType

Ix = int | str  # an i64: known now, or an SSA name


class Turn:
    """A loop being emitted: the index ``i``, the carried values ``vars``, and what they become (``next``).

    After the loop ``out`` holds the final carried values.
    """

    def __init__(self, i: Ix, vars: list[str]) -> None:
        self.i, self.vars = i, vars
        self.next = list(vars)
        self.stop = "true"
        self.out: list[str] = []


class Code(Function):
    """A function with folding index arithmetic. Kernel phases use the default parameters."""

    @contextmanager
    def range(
        self, begin: Ix, end: Ix, step: Ix = 1, carried: Sequence[tuple[str, str]] = (), runs: bool = False
    ) -> Iterator[Turn]:
        """for i in range(begin, end, step), carrying (type, initial value) pairs. One turn makes no loop."""
        if isinstance(begin, int) and isinstance(end, int):
            if isinstance(step, int) and begin < end <= begin + step:
                turn = Turn(begin, [v for _, v in carried])
                yield turn
                turn.out = list(turn.next)
                return
            runs = runs or begin < end
        with self.loop(str(begin), str(end), str(step), list(carried), runs) as scope:
            turn = Turn(scope.var, [p.name for p in scope.phis])
            yield turn
            for p, value in zip(scope.phis, turn.next, strict=True):
                scope.update(p.name, value)
        turn.out = scope.results

    @contextmanager
    def repeat(self, carried: Sequence[tuple[str, str]]) -> Iterator[Turn]:
        """A loop that runs at least once and ends when the i1 put in ``turn.stop`` holds; no index."""
        head, done, before = self.new_label("again"), self.new_label("enough"), self.block
        self.br(head)
        self.label(head)
        phis = [self.phi(t) for t, _ in carried]
        turn = Turn(0, [p.name for p in phis])
        yield turn
        for p, (_, init), value in zip(phis, carried, turn.next, strict=True):
            p.add(init, before)
            p.add(value, self.block)
        self.cond_br(turn.stop, done, head)
        self.label(done)
        turn.out = list(turn.next)

    def arg(self, index: int) -> str:
        """The pointer number ``index`` of the kernel's argument block."""
        slot = self.op(f"getelementptr ptr, ptr %bufs, i64 {index}")
        return self.op(f"load ptr, ptr {slot}, align 8")

    # i64 arithmetic

    def add(self, a: Ix, b: Ix) -> Ix:
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        if a == 0:
            return b
        return a if b == 0 else self.op(f"add i64 {a}, {b}")

    def sub(self, a: Ix, b: Ix) -> Ix:
        if isinstance(a, int) and isinstance(b, int):
            return a - b
        return a if b == 0 else self.op(f"sub i64 {a}, {b}")

    def mul(self, a: Ix, b: Ix) -> Ix:
        if isinstance(a, int) and isinstance(b, int):
            return a * b
        if a == 0 or b == 0:
            return 0
        if a == 1:
            return b
        return a if b == 1 else self.op(f"mul i64 {a}, {b}")

    def div(self, a: Ix, b: int) -> Ix:
        """a // b of a non-negative a."""
        if isinstance(a, int):
            return a // b
        return a if b == 1 else self.op(f"udiv i64 {a}, {b}")

    def mod(self, a: Ix, b: int) -> Ix:
        """a % b of a non-negative a."""
        if isinstance(a, int):
            return a % b
        return 0 if b == 1 else self.op(f"urem i64 {a}, {b}")

    def min(self, a: Ix, b: Ix) -> Ix:
        if isinstance(a, int) and isinstance(b, int):
            return min(a, b)
        return self.call("llvm.smin.i64", "i64", f"i64 {a}, i64 {b}")

    def max(self, a: Ix, b: Ix) -> Ix:
        if isinstance(a, int) and isinstance(b, int):
            return max(a, b)
        return self.call("llvm.smax.i64", "i64", f"i64 {a}, i64 {b}")

    def split(self, flat: Ix, dims: Sequence[int]) -> list[Ix]:
        """The coordinates of a row-major flat index over ``dims``."""
        out: list[Ix] = []
        for d in reversed(dims[1:]):
            out.append(self.mod(flat, d))
            flat = self.div(flat, d)
        return [flat, *reversed(out)] if dims else []

    def dot(self, coords: Sequence[Ix], strides: Sequence[int], offset: Ix = 0) -> Ix:
        """offset + sum of coordinate * stride."""
        for c, s in zip(coords, strides, strict=True):
            offset = self.add(offset, self.mul(c, s))
        return offset

    # memory

    def at(self, base: str, index: Ix, ty: str = "i8") -> str:
        """The address of element ``index`` of type ``ty``."""
        return base if index == 0 else self.op(f"getelementptr {ty}, ptr {base}, i64 {index}")

    def load(self, ty: str, ptr: str, align: int) -> str:
        return self.op(f"load {ty}, ptr {ptr}, align {align}")

    def store(self, ty: str, value: str, ptr: str, align: int) -> None:
        self.do(f"store {ty} {value}, ptr {ptr}, align {align}")

    def splat(self, ty: str, value: str, lanes: int) -> str:
        """A vector of ``lanes`` times ``value``."""
        v = f"<{lanes} x {ty}>"
        one = self.op(f"insertelement {v} poison, {ty} {value}, i64 0")
        return self.op(f"shufflevector {v} {one}, {v} poison, <{lanes} x i32> zeroinitializer")

    def finish(self) -> str:
        """Return from a void function and give its text."""
        self.ret()
        return self.text()


def iota(ty: str, lanes: int, step: int = 1) -> str:
    """The constant vector 0, step, 2 step ..."""
    return "<" + ", ".join(f"{ty} {i * step}" for i in range(lanes)) + ">"


def element(dtype: DType) -> str:
    """The LLVM type of one element in memory."""
    return mem_type(dtype)
