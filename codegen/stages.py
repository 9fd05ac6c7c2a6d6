"""Long bodies of vector loops in stages (software pipelining; Lam 1988): while one vector is in its last
stage, the next is in the stage before it, and so on.

A processor looks a hundred and fifty instructions ahead. A body of that length whose instructions wait for
each other leaves its units idle: the next vector comes into view too late. Cut in stages, a round of the loop
holds instructions of several vectors that need nothing of each other, with the code of one and hardly more
registers. What a later stage needs is carried to it; addresses are computed, and operands loaded, in each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import ceil, inf
from typing import Any

from weft.codegen.llvm import Function

STAGE_CYCLES = 36.0  # of waiting in one stage
WINDOW = 150.0  # instructions that a processor looks ahead
PER_CYCLE = 1.5  # vector instructions that it finishes in a cycle

# Cycles from operand to result (Zen 4; others are much the same), by the first that is found in the text.
_LATENCY = (
    ("fdiv ", 11), ("llvm.sqrt", 21), ("llvm.fma", 4), (".scalef", 6), (".getexp", 3), (".getmant", 3),
    (".perm", 5), (".tbl4", 4), ("shufflevector ", 4), ("load ", 7), ("fadd ", 3), ("fsub ", 3), ("fmul ", 3),
    ("llvm.copysign", 1), ("llvm.fabs", 1), ("fneg ", 1), ("bitcast ", 0), ("fcmp ", 4), ("select ", 2),
    (" = call ", 4), (" = mul ", 4), (" to ", 4),
)  # fmt: skip
_NAME = re.compile(r"%[\w.]+")
_TYPE = re.compile(r"<\d+ x \w+>|\b(?:float|double|half|i\d+|ptr)\b")
_TYPED = re.compile(
    r"(load|call|f?(add|sub|mul|div|neg)|and|or|xor|shl|[la]shr|bitcast|select|[if]cmp|[zs]ext|trunc"
    r"|fpext|fptrunc|[su]itofp|insertelement) "
)


class _Line:
    """An instruction of the body: the lines that it reads and that read it, its stage.

    ``again``: a result that every stage which needs it computes for itself.
    """

    def __init__(self, text: str, reads: list[int], again: bool) -> None:
        self.text, self.reads, self.again = text, reads, again
        self.name = text.split(" = ", 1)[0].strip() if " = " in text else ""
        self.stores = text.startswith("  store ")
        self.readers: list[int] = []
        self.late = self.time = 0.0
        self.stage = 0

    def cycles(self) -> float:
        return next((c for key, c in _LATENCY if key in self.text), 1)

    def type(self) -> str:
        """The type of the result."""
        rest = self.text.split(" = ", 1)[1]
        types = _TYPE.findall(rest.rsplit(" to ", 1)[-1])
        if rest[1:4] == "cmp":
            return re.sub(r"x \w+", "x i1", types[0]) if types[0][0] == "<" else "i1"
        return types[1] if rest.startswith("select ") else types[0]


class Stages:
    """A body that was emitted for ``width`` elements at ``position``, cut in ``count`` stages."""

    def __init__(self, lines: list[str], position: str, width: int) -> None:
        self.position, self.width = position, width
        self.lines = _read(lines)
        self.count = self._cut()

    def _cut(self) -> int:
        """Give each line its stage, by the latest time at which it may start; the number of stages."""
        for x in reversed(self.lines):
            x.late = min((self.lines[k].late for k in x.readers), default=0.0) - x.cycles()
        chain = -min(x.late for x in self.lines)
        count = ceil(chain / STAGE_CYCLES)
        for x in self.lines:
            start = x.late + chain
            x.stage = min(int(start * count / chain), count - 1)
            x.time = start - x.stage * chain / count
            if not x.name:  # what asks for operands ahead belongs to the first stage
                x.stage, x.time = (count - 1 if x.stores else 0), inf
        work = sum(1 for x in self.lines if "<" in x.text)
        return count if work >= WINDOW / 2 and chain / WINDOW > 1 / PER_CYCLE else 1

    def emit(self, fn: Function, begin: str, end: str) -> None:
        """The loop over positions begin..end, a whole number of vectors. Rounds in which a stage has no
        vector repeat one of the ends, and store it nowhere.
        """
        nowhere = fn.alloca(64)
        lag = (self.count - 1) * self.width
        with fn.when(fn.op(f"icmp slt i64 {begin}, {end}")):
            last = fn.op(f"sub i64 {end}, {self.width}")
            stop = fn.op(f"add i64 {end}, {lag}")
            entry = fn.block
            with fn.loop(begin, stop, self.width, runs=True) as scope:
                phis: list[Any] = []
                fn.include(phis)
                finished = fn.op(f"sub i64 {scope.var}, {lag}")
                storing = fn.op(f"icmp sge i64 {finished}, {begin}")
                at = [_between(fn, scope.var, q * self.width, begin, last) for q in range(self.count)]
                turn = _Round(self, fn, at, storing, nowhere)
                for k in sorted(range(len(self.lines)), key=lambda k: (self.lines[k].time, k)):
                    if not self.lines[k].again:
                        turn.write(k, self.lines[k].stage)
                phis += turn.phis(entry, fn.block)


class _Round:
    """One round of the loop being written."""

    def __init__(self, stages: Stages, fn: Function, at: list[str], storing: str, nowhere: str) -> None:
        self.stages, self.fn, self.at, self.storing, self.nowhere = stages, fn, at, storing, nowhere
        self.places = {x.name: k for k, x in enumerate(stages.lines) if x.name}
        self.written: set[tuple[int, int]] = set()
        self.until: dict[int, int] = {}  # the last stage to which a line's result is carried

    def write(self, k: int, stage: int) -> None:
        """Line ``k`` for the vector that is in a stage, after what it reads of that stage's own."""
        if (k, stage) in self.written:
            return
        self.written.add((k, stage))
        x = self.stages.lines[k]
        for read in x.reads:
            if self.stages.lines[read].again:
                self.write(read, stage)
        text = _NAME.sub(lambda m: self._name(m[0], stage), x.text)
        if x.stores:
            value, pointer, rest = re.split(r", ptr (%[\w.]+)", text, maxsplit=1)
            kept = self.fn.op(f"select i1 {self.storing}, ptr {pointer}, ptr {self.nowhere}")
            text = f"{value}, ptr {kept}{rest}"
        self.fn.do(text.strip())

    def _name(self, name: str, stage: int) -> str:
        """What a name of the body is called in a stage."""
        if name == self.stages.position:
            return self.at[stage]
        k = self.places.get(name)
        if k is None:
            return name
        x = self.stages.lines[k]
        if x.again or x.stage == stage:
            return f"{name}.s{stage}"
        self.until[k] = max(self.until.get(k, 0), stage)
        return f"{name}.c{stage}"

    def phis(self, entry: str, latch: str) -> Iterable[str]:
        """What is carried from each round to the next."""
        for k, until in self.until.items():
            x = self.stages.lines[k]
            now = f"{x.name}.s{x.stage}"
            for stage in range(x.stage + 1, until + 1):
                then = f"{x.name}.c{stage}"
                first = f"[ zeroinitializer, %{entry} ]"
                yield f"  {then} = phi {x.type()} {first}, [ {now}, %{latch} ]"
                now = then


def _between(fn: Function, position: str, behind: int, begin: str, last: str) -> str:
    """``position - behind``, but not outside ``begin`` .. ``last``."""
    x = fn.op(f"sub i64 {position}, {behind}")
    x = fn.op(f"call i64 @llvm.smin.i64(i64 {x}, i64 {last})")
    return fn.op(f"call i64 @llvm.smax.i64(i64 {x}, i64 {begin})")


def _read(lines: list[str]) -> list[_Line]:
    """The lines with what they read of each other."""
    out: list[_Line] = []
    places: dict[str, int] = {}
    for text in lines:
        reads = [places[n] for n in dict.fromkeys(_NAME.findall(text.split(" = ", 1)[-1])) if n in places]
        addresses = "<" not in text or " = load " in text
        again = " = " in text and addresses and all(out[k].again for k in reads)
        line = _Line(text, reads, again)
        for k in reads:
            out[k].readers.append(len(out))
        if line.name:
            places[line.name] = len(out)
        out.append(line)
    return out


def straight(lines: list[Any]) -> bool:
    """True for lines that can be cut: one block that computes, loads, and stores whole vectors."""
    for x in lines:
        if not isinstance(x, str) or not x.startswith("  "):
            return False
        if " = " in x:
            rest = x.split(" = ", 1)[1]
            if not rest.startswith("getelementptr ") and not _TYPED.match(rest):
                return False
        elif not x.startswith(("  store <", "  call void @llvm.prefetch.")):
            return False
    return any(x.startswith("  store <") for x in lines)
