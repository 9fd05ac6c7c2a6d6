"""A small builder of LLVM IR text: functions, blocks, SSA names, loops with carried values.

Strings only. Instructions go to the innermost open scope, or (``at``) to the preheader of an enclosing loop,
so that invariant code is hoisted as it is emitted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from weft.codegen.target import Target
from weft.ir.types import DType

_SCALARS = {
    "bool": "i1", "u8": "i8", "i8": "i8", "u16": "i16", "i16": "i16", "u32": "i32", "i32": "i32",
    "u64": "i64", "i64": "i64", "f16": "float", "bf16": "float", "f32": "float", "f64": "double",
}  # fmt: skip
_MEMORY = {**_SCALARS, "bool": "i8", "f16": "half", "bf16": "i16"}


def reg_type(dtype: DType, lanes: int = 0) -> str:
    """The LLVM type of a value in registers (f16 and bf16 are held as float); ``lanes`` 0 means a scalar."""
    t = _SCALARS[dtype.name]
    return f"<{lanes} x {t}>" if lanes else t


def mem_type(dtype: DType, lanes: int = 0) -> str:
    """The LLVM type of an element in memory."""
    t = _MEMORY[dtype.name]
    return f"<{lanes} x {t}>" if lanes else t


def vec(t: str, lanes: int) -> str:
    return f"<{lanes} x {t}>" if lanes else t


class Phi:
    """A phi node whose incoming values are added as they become known; rendered at the end."""

    __slots__ = ("incoming", "name", "type")

    def __init__(self, name: str, type: str) -> None:
        self.name, self.type = name, type
        self.incoming: list[tuple[str, str]] = []

    def add(self, value: str, block: str) -> None:
        self.incoming.append((value, block))

    def __str__(self) -> str:
        pairs = ", ".join(f"[ {v}, %{b} ]" for v, b in self.incoming)
        return f"  {self.name} = phi {self.type} {pairs}"


class LoopScope:
    """An open loop: its induction variable and carried values (``carry`` before, ``update`` in the body)."""

    def __init__(self, fn: Function, var: str, entry: str, head: list[Any]) -> None:
        self.fn, self.var, self._entry, self._head = fn, var, entry, head
        self.phis: list[Phi] = []
        self.carried: list[tuple[str, str]] = []
        self.next: dict[str, str] = {}
        self.results: list[str] = []

    def carry(self, type: str, init: str) -> Phi:
        """Another carried value, whose initial value is known before the loop."""
        p = Phi(self.fn.name("p"), type)
        p.add(init, self._entry)
        self._head.append(p)
        self.phis.append(p)
        self.carried.append((type, init))
        return p

    def update(self, phi: str, value: str) -> None:
        """Give a carried value its value for the next iteration."""
        self.next[phi] = value


class Function:
    """One function being written. ``declares`` collects the external declarations it needs."""

    def __init__(
        self,
        symbol: str,
        params: str = "ptr %bufs, i64 %begin, i64 %end, i64 %thread",
        result: str = "void",
        attributes: str = "#0",
        linkage: str = "",
    ) -> None:
        self.symbol = symbol
        self.head = f"define {linkage + ' ' if linkage else ''}{result} @{symbol}({params}) {attributes} {{"
        self.declares: set[str] = set()
        self.metadata: dict[str, str] = {}
        self._n = 0
        self._allocas: list[Any] = []
        self._body: list[Any] = ["entry:", self._allocas]
        self._current = self._body
        self._pre: list[list[Any]] = []  # preheader lists of the open loops, outermost first
        self.memos: list[dict[Any, Any]] = [{}]  # what builders remember, per depth; dropped with the scope
        self.block = "entry"

    # -- names, instructions, blocks

    def name(self, stem: str = "v") -> str:
        self._n += 1
        return f"%{stem}{self._n}"

    @property
    def depth(self) -> int:
        """Number of open loops."""
        return len(self._pre)

    def op(self, text: str, at: int | None = None) -> str:
        """Append ``%new = text`` and return the name. ``at`` < depth puts it before that enclosing loop."""
        self._n += 1
        n = f"%v{self._n}"
        into = self._current if at is None or at >= len(self._pre) else self._pre[at]
        into.append(f"  {n} = {text}")
        return n

    def do(self, text: str) -> None:
        """Append an instruction without a result."""
        self._current.append("  " + text)

    def label(self, name: str) -> None:
        """Start a block. The one before must have been ended by ``br`` or ``ret``."""
        self._current.append(f"{name}:")
        self.block = name

    def new_label(self, stem: str = "b") -> str:
        self._n += 1
        return f"{stem}{self._n}"

    def br(self, label: str) -> None:
        self.do(f"br label %{label}")

    def cond_br(self, cond: str, yes: str, no: str) -> None:
        self.do(f"br i1 {cond}, label %{yes}, label %{no}")

    def ret(self, value: str = "void") -> None:
        self.do(f"ret {value}")

    def phi(self, type: str) -> Phi:
        self._n += 1
        p = Phi(f"%p{self._n}", type)
        self._current.append(p)
        return p

    def alloca(self, bytes: int, align: int = 64) -> str:
        """Stack memory, allocated once at entry."""
        self._n += 1
        self._allocas.append(f"  %a{self._n} = alloca [{bytes} x i8], align {align}")
        return f"%a{self._n}"

    def declare(self, line: str) -> None:
        self.declares.add(line)

    def call(self, name: str, result: str, args: str, at: int | None = None, flags: str = "") -> str:
        """Call a function or intrinsic, declared once from the argument types."""
        types = ", ".join(_argument_types(args))
        self.declares.add(f"declare {result} @{name}({types})")
        return self.op(f"call {flags}{result} @{name}({args})", at)

    # -- structured control flow

    @contextmanager
    def loop(
        self,
        start: str,
        stop: str,
        step: str | int,
        carried: list[tuple[str, str]] | None = None,
        runs: bool = False,
    ) -> Iterator[LoopScope]:
        """``for (var = start; var < stop; var += step)`` over i64 with carried (type, initial value) pairs.

        ``runs`` promises at least one iteration. After the block ``scope.results`` names the last carried
        values.
        """
        pre: list[Any] = []
        phis: list[Any] = []
        self._current.append(pre)
        head, done = self.new_label("loop"), self.new_label("done")
        if runs:
            entry = self.block
            self.br(head)
        else:
            entry = self.block
            c = self.op(f"icmp slt i64 {start}, {stop}")
            self.cond_br(c, head, done)
        self._pre.append(pre)
        self.memos.append({})
        self.label(head)
        iv = self.phi("i64")
        iv.add(start, entry)
        self._current.append(phis)
        scope = LoopScope(self, iv.name, entry, phis)
        for t, init in carried or ():
            scope.carry(t, init)
        yield scope
        after = self.op(f"add nuw nsw i64 {iv.name}, {step}")
        again = self.op(f"icmp slt i64 {after}, {stop}")
        latch = self.block
        iv.add(after, latch)
        for p in scope.phis:
            p.add(scope.next.get(p.name, p.name), latch)
        self.cond_br(again, head, done)
        self._pre.pop()
        self.memos.pop()
        self.label(done)
        for p, (t, init) in zip(scope.phis, scope.carried, strict=True):
            if runs:
                scope.results.append(scope.next.get(p.name, p.name))
                continue
            end = self.phi(t)
            end.add(init, entry)
            end.add(scope.next.get(p.name, p.name), latch)
            scope.results.append(end.name)

    @contextmanager
    def when(self, cond: str) -> Iterator[None]:
        """Run the block if the i1 holds. Names defined inside must not be used after it."""
        yes, done = self.new_label("then"), self.new_label("fi")
        self.cond_br(cond, yes, done)
        self.label(yes)
        outside = self.memos[-1]
        self.memos[-1] = dict(outside)
        yield
        self.memos[-1] = outside
        self.br(done)
        self.label(done)

    @contextmanager
    def apart(self) -> Iterator[list[Any]]:
        """The body of a loop by itself: what is emitted inside, as a list. What of it does not change in the
        loop is emitted here. Names of the body must not be used after it.
        """
        before: list[Any] = []
        body: list[Any] = []
        self._current.append(before)
        outside, block, self._current = self._current, self.block, body
        self._pre.append(before)
        self.memos.append({})
        yield body
        self.memos.pop()
        self._pre.pop()
        self._current, self.block = outside, block

    def include(self, lines: list[Any]) -> None:
        """Lines that will be written here."""
        self._current.append(lines)

    def text(self) -> str:
        """The function as text; call once, after the last ``ret``."""
        out: list[str] = [self.head]
        _render(self._body, out)
        out.append("}")
        return "\n".join(out) + "\n"


def _render(lines: list[Any], out: list[str]) -> None:
    for line in lines:
        if isinstance(line, list):
            _render(line, out)
        else:
            out.append(line if isinstance(line, str) else str(line))


def _argument_types(args: str) -> list[str]:
    """Types of a textual argument list: split at top-level commas, drop the value after the type."""
    out, depth, start = [], 0, 0
    for i, ch in enumerate(args + ","):
        if ch in "<({[":
            depth += 1
        elif ch in ">)}]":
            depth -= 1
        elif ch == "," and depth == 0:
            out.append(_leading_type(args[start:i].strip()))
            start = i + 1
    return [t for t in out if t]


def _leading_type(arg: str) -> str:
    if arg.startswith("<"):
        return arg[: arg.index(">") + 1]
    return arg.split(" ", 1)[0]


def module_text(target: Target, functions: list[str], declares: frozenset[str] | set[str]) -> str:
    """A whole module: declarations, functions, the attributes ``#0``."""
    head = f'target triple = "{target.triple}"\n\n'
    return head + "".join(functions) + "\n" + "\n".join(sorted(set(declares) | {target.attributes})) + "\n"
