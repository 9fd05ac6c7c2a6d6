"""The native entry of a graph: one function that runs every step of a plan over one block of pointers.

``void @entry(ptr %block)``, where block = inputs, outputs, arena, status (i64), context. Kernels go through
``@weft_parallel_for(ptr fn, ptr bufs, i64 units, i64 grain, i64 ns)`` or are called at once where the work is
small (``ns`` is what it would take one thread);
operations without native code go through
``@weft_host(ptr context, i64 index, ptr bufs, ptr status)``, which may set the status.
Regions of control operations are entries themselves, called with blocks of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from weft.codegen.kernel import Phase
from weft.codegen.steps import STATUS, Branch, Host, Launch, Loc, Move, Program, Scan, While
from weft.codegen.target import CHUNK_NS, INLINE_NS, Target

_FILL = """\
  br label %filling
filling:
  %fill.k = phi i64 [ 0, %start ], [ %fill.k1, %filling ]
  %fill.s.at = getelementptr i64, ptr TABLE0, i64 %fill.k
  %fill.o.at = getelementptr i64, ptr TABLE1, i64 %fill.k
  %fill.s = load i64, ptr %fill.s.at
  %fill.o = load i64, ptr %fill.o.at
  %fill.base.at = getelementptr ptr, ptr %block, i64 %fill.s
  %fill.base = load ptr, ptr %fill.base.at
  %fill.p = getelementptr i8, ptr %fill.base, i64 %fill.o
  %fill.to = getelementptr ptr, ptr %bufs, i64 %fill.k
  store ptr %fill.p, ptr %fill.to
  %fill.k1 = add i64 %fill.k, 1
  %fill.more = icmp slt i64 %fill.k1, COUNT
  br i1 %fill.more, label %filling, label %filled
filled:
"""

DECLARES = frozenset({
    "declare void @weft_parallel_for(ptr, ptr, i64, i64, i64)",
    "declare void @weft_host(ptr, i64, ptr, ptr)",
    "declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)",
})


def profile_globals(kernels: int) -> str:
    """What the entries of a profiled module share: the clock and the times."""
    return f"@weft_times = global [{max(kernels, 1)} x i64] zeroinitializer\n{_CLOCK}"


_CLOCK = """\
declare i32 @clock_gettime(i32, ptr)
define internal i64 @weft_clock() noinline {
  %t = alloca [2 x i64], align 8
  %r = call i32 @clock_gettime(i32 1, ptr %t)
  %s = load i64, ptr %t
  %n.at = getelementptr i64, ptr %t, i64 1
  %n = load i64, ptr %n.at
  %s.n = mul i64 %s, 1000000000
  %all = add i64 %s.n, %n
  ret i64 %all
}
"""


def emit_entry(program: Program) -> str:
    """The LLVM functions and constants of one program."""
    return EntryEmitter(program).run()


def module_text(target: Target, parts: Sequence[str], declares: Iterable[str]) -> str:
    """A module for ``target`` from function texts and the module-level lines they need."""
    head = f'target triple = "{target.triple}"'
    lines = sorted({*declares, *DECLARES, target.attributes})
    return "\n".join([head, "", *parts, "", *lines, ""])


class EntryEmitter:
    """Writes one function; ``line`` appends an instruction, ``name`` makes a fresh register.

    ``tail`` names what stands in the block behind inputs and outputs; nested entries get the same. Emitters
    for other devices say how to launch, copy, read a flag and address a constant.
    """

    tail: tuple[str, ...] = ("arena", "status", "context")

    def __init__(self, program: Program) -> None:
        self.program = program
        self.allocas: list[str] = []
        self.lines: list[str] = []
        self.count = 0
        self.block = "steps"
        self.cached: dict[Loc, str] = {}
        self.table: list[Loc] = []
        self.globals: list[str] = []
        self.steps: dict[type, Callable[..., None]] = {
            Launch: self._launch, Host: self.host, Move: self._move,
            Branch: self._branch, While: self._while, Scan: self._scan,
        }  # fmt: skip

    def run(self) -> str:
        p = self.program
        self.held = {name: self._slot(p.n_in + p.n_out + k) for k, name in enumerate(self.tail)}
        self.arena, self.status, self.context = (self.held[n] for n in ("arena", "status", "context"))
        head = self.prologue()
        self.lines = []
        for step in p.steps:
            self.cached = {k: v for k, v in self.cached.items() if k.kind in ("in", "out")}
            self.steps[type(step)](step)
        self.allocas.append(f"  %bufs = alloca [{max(len(self.table), 1)} x ptr], align 16")
        lines = [*self.allocas, *self.filling(), "  br label %steps", "steps:", *self.top(head), *self.lines]
        body = "\n".join([*lines, "  br label %exit", "exit:", "  ret void"])
        # optnone: the time of the entry is that of what it calls, so it may as well compile fast
        text = f"define void @{p.symbol}(ptr %block) noinline optnone #0 {{\nstart:\n{body}\n}}\n"
        return "\n".join([*self.constants(), *self.globals, text])

    def prologue(self) -> list[str]:
        """What comes before all steps."""
        return self.lines

    def constants(self) -> list[str]:
        """The module lines with the literal data of the program."""
        return [self._constant(k, c) for k, c in enumerate(self.program.constants)]

    def top(self, head: list[str]) -> list[str]:
        """The pointers of inputs and outputs, loaded once."""
        loads = []
        for loc, reg in self.cached.items():
            if loc.kind in ("in", "out"):
                at = loc.index + (self.program.n_in if loc.kind == "out" else 0)
                loads.append(f"  {reg}.a = getelementptr ptr, ptr %block, i64 {at}")
                loads.append(f"  {reg} = load ptr, ptr {reg}.a")
        return head + loads

    def name(self) -> str:
        self.count += 1
        return f"%v{self.count}"

    def line(self, text: str) -> None:
        self.lines.append("  " + text)

    def label(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def start(self, label: str) -> None:
        self.lines.append(f"{label}:")
        self.block = label

    def _constant(self, k: int, data: bytes) -> str:
        text = "".join(f"\\{b:02x}" for b in data)
        return f'@{self.program.symbol}.c{k} = internal constant [{len(data)} x i8] c"{text}", align 64'

    def _slot(self, index: int) -> str:
        """The pointer at ``index`` of the block."""
        at, out = self.name(), self.name()
        self.line(f"{at} = getelementptr ptr, ptr %block, i64 {index}")
        self.line(f"{out} = load ptr, ptr {at}")
        return out

    def pointer(self, loc: Loc) -> str:
        """A register (or symbol) with the address of a buffer."""
        if loc.kind == "const":
            return self.constant(loc.index)
        found = self.cached.get(loc)
        if found is None:
            found = self.cached[loc] = self.name()
            if loc.kind == "arena":
                self.line(f"{found} = getelementptr i8, ptr {self.arena}, i64 {loc.index}")
        return found

    def constant(self, index: int) -> str:
        """The address of a constant."""
        return f"@{self.program.symbol}.c{index}"

    def array(self, n: int) -> str:
        """Room on the stack for ``n`` pointers."""
        reg = self.name()
        self.allocas.append(f"  {reg} = alloca [{max(n, 1)} x ptr], align 16")
        return reg

    def reserve(self, locs: Sequence[Loc]) -> str:
        """The address of an array with the addresses of these buffers, which the table fills at the start."""
        reg = self.name()
        self.line(f"{reg} = getelementptr ptr, ptr %bufs, i64 {len(self.table)}")
        self.table += locs
        return reg

    def filling(self) -> list[str]:
        """Compute all addresses of the table in one loop: it compiles faster than a store for each."""
        n = len(self.table)
        if not n:
            return []
        slots, offsets = zip(*map(self.slot_of, self.table), strict=True)
        symbol = f"@{self.program.symbol}.t"
        for k, values in enumerate((slots, offsets)):
            data = ", ".join(f"i64 {v}" for v in values)
            self.globals.append(f"{symbol}{k} = internal constant [{n} x i64] [{data}]")
        out = _FILL.replace("TABLE", symbol).replace("COUNT", str(n)).splitlines()
        return out + self.constant_entries()

    def constant_entries(self) -> list[str]:
        """Put the addresses of constants, which have no base in the block, into the table."""
        out = []
        for k, loc in enumerate(self.table):
            if loc.kind == "const":
                out.append(f"  %const{k} = getelementptr ptr, ptr %bufs, i64 {k}")
                out.append(f"  store ptr {self.constant(loc.index)}, ptr %const{k}")
        return out

    def slot_of(self, loc: Loc) -> tuple[int, int]:
        """Where the block holds the base of a buffer, and the offset from it."""
        p = self.program
        if loc.kind == "in":
            return loc.index, 0
        if loc.kind == "out":
            return p.n_in + loc.index, 0
        return (p.n_in + p.n_out, loc.index) if loc.kind == "arena" else (p.n_in + p.n_out + 1, 0)

    def fill(self, array: str, pointers: Sequence[str]) -> None:
        for k, pointer in enumerate(pointers):
            at = self.name()
            self.line(f"{at} = getelementptr ptr, ptr {array}, i64 {k}")
            self.line(f"store ptr {pointer}, ptr {at}")

    def pointers(self, locs: Sequence[Loc]) -> list[str]:
        return [self.pointer(loc) for loc in locs]

    def _launch(self, step: Launch) -> None:
        bufs = self.reserve([*step.operands, *step.results, step.scratch or STATUS, STATUS])
        start = self._clock()
        for phase in step.phases:
            self._phase(phase, bufs)
        if start:
            end, took, at, old, new = self._clock(), *(self.name() for _ in range(4))
            self.line(f"{took} = sub i64 {end}, {start}")
            self.line(f"{at} = getelementptr i64, ptr @weft_times, i64 {step.kernel}")
            self.line(f"{old} = load i64, ptr {at}")
            self.line(f"{new} = add i64 {old}, {took}")
            self.line(f"store i64 {new}, ptr {at}")

    def _clock(self) -> str:
        """A register with the time in nanoseconds, where the program is profiled."""
        if not self.program.profile:
            return ""
        now = self.name()
        self.line(f"{now} = call i64 @weft_clock()")
        return now

    def _phase(self, phase: Phase, bufs: str) -> None:
        total = phase.units * phase.cost_ns
        grain = max(1, -int(-CHUNK_NS // max(phase.cost_ns, 1e-3)))
        if not phase.parallel or phase.units <= grain or total < INLINE_NS:
            self.line(f"call void @{phase.symbol}(ptr {bufs}, i64 0, i64 {phase.units}, i64 0)")
        else:
            work = f"ptr @{phase.symbol}, ptr {bufs}, i64 {phase.units}, i64 {grain}, i64 {int(total)}"
            self.line(f"call void @weft_parallel_for({work})")

    def host(self, step: Host) -> None:
        bufs = self.reserve([*step.operands, *step.results])
        where = f"ptr {self.context}, i64 {step.index}, ptr {bufs}, ptr {self.status}"
        self.line(f"call void @weft_host({where})")
        self.stop_if(self.failed())

    def failed(self) -> str:
        status, bad = self.name(), self.name()
        self.line(f"{status} = load i64, ptr {self.status}")
        self.line(f"{bad} = icmp ne i64 {status}, 0")
        return bad

    def stop_if(self, condition: str, target: str = "exit") -> None:
        go_on = self.label("on")
        self.line(f"br i1 {condition}, label %{target}, label %{go_on}")
        self.start(go_on)

    def copy(self, target: str, source: str, nbytes: int) -> None:
        if nbytes and target != source:
            self.line(f"call void @llvm.memcpy.p0.p0.i64(ptr {target}, ptr {source}, i64 {nbytes}, i1 false)")

    def _move(self, step: Move) -> None:
        self.copy(self.pointer(step.target), self.pointer(step.source), step.nbytes)

    def call(self, symbol: str, ins: Sequence[str], outs: Sequence[str], arena: str) -> None:
        """Call a nested entry with a block of its own."""
        tail = [arena, *(reg for name, reg in self.held.items() if name != "arena")]
        block = self.array(len(ins) + len(outs) + len(tail))
        self.fill(block, [*ins, *outs, *tail])
        self.line(f"call void @{symbol}(ptr {block})")

    def read_flag(self, pointer: str) -> str:
        """A register with the byte of a bool."""
        raw = self.name()
        self.line(f"{raw} = load i8, ptr {pointer}")
        return raw

    def _branch(self, step: Branch) -> None:
        ins, outs, arena = self.pointers(step.operands), self.pointers(step.results), self.pointer(step.arena)
        raw, flag = self.read_flag(self.pointer(step.predicate)), self.name()
        self.line(f"{flag} = icmp ne i8 {raw}, 0")
        yes, no, join = self.label("yes"), self.label("no"), self.label("join")
        self.line(f"br i1 {flag}, label %{yes}, label %{no}")
        for label, symbol in zip((yes, no), step.entries, strict=True):
            self.start(label)
            self.call(symbol, ins, outs, arena)
            self.line(f"br label %{join}")
        self.start(join)
        self.stop_if(self.failed())

    def _alternate(self, swap: str, a: Sequence[str], b: Sequence[str]) -> list[str]:
        """``b`` where the flag holds, else ``a``."""
        out = []
        for x, y in zip(a, b, strict=True):
            reg = self.name()
            self.line(f"{reg} = select i1 {swap}, ptr {y}, ptr {x}")
            out.append(reg)
        return out

    def _bring_home(
        self, swap: str, results: Sequence[str], spare: Sequence[str], sizes: Sequence[int]
    ) -> None:
        """Where the last carry lies in the spare buffers, copy it to the results."""
        move, join = self.label("home"), self.label("join")
        self.line(f"br i1 {swap}, label %{move}, label %{join}")
        self.start(move)
        for r, s, n in zip(results, spare, sizes, strict=True):
            self.copy(r, s, n)
        self.line(f"br label %{join}")
        self.start(join)
        self.stop_if(self.failed())

    def _while(self, step: While) -> None:
        results, spare = self.pointers(step.results), self.pointers(step.spare)
        arena = self.pointer(step.arena)
        flag_at = self.pointer(step.flag)
        for r, o, n in zip(results, self.pointers(step.operands), step.sizes, strict=True):
            self.copy(r, o, n)
        head, body, done, before = self.label("head"), self.label("body"), self.label("done"), self.block
        swap, swapped = self.name(), self.name()
        self.line(f"br label %{head}")
        self.start(head)
        self.line(f"{swap} = phi i1 [ false, %{before} ], [ {swapped}, %{body} ]")
        now = self._alternate(swap, results, spare)
        self.call(step.condition, now, [flag_at], arena)
        raw, ended, bad, stop = self.read_flag(flag_at), self.name(), self.failed(), self.name()
        self.line(f"{ended} = icmp eq i8 {raw}, 0")
        self.line(f"{stop} = or i1 {ended}, {bad}")
        self.line(f"br i1 {stop}, label %{done}, label %{body}")
        self.start(body)
        self.call(step.body, now, self._alternate(swap, spare, results), arena)
        self.line(f"{swapped} = xor i1 {swap}, true")
        self.line(f"br label %{head}")
        self.start(done)
        self._bring_home(swap, results, spare, step.sizes)

    def _scan(self, step: Scan) -> None:
        n = len(step.spare)
        results, spare = self.pointers(step.results), self.pointers(step.spare)
        arena = self.pointer(step.arena)
        operands, consts = self.pointers(step.operands), self.pointers(step.consts)
        for r, o, size in zip(results, operands, step.sizes, strict=False):
            self.copy(r, o, size)
        head, body, done, before = self.label("head"), self.label("body"), self.label("done"), self.block
        i, after, swap, swapped, stop = (self.name() for _ in range(5))
        self.line(f"br label %{head}")
        self.start(head)
        self.line(f"{i} = phi i64 [ 0, %{before} ], [ {after}, %{body} ]")
        self.line(f"{swap} = phi i1 [ false, %{before} ], [ {swapped}, %{body} ]")
        bad, ended = self.failed(), self.name()
        self.line(f"{ended} = icmp sge i64 {i}, {step.length}")
        self.line(f"{stop} = or i1 {ended}, {bad}")
        self.line(f"br i1 {stop}, label %{done}, label %{body}")
        self.start(body)
        at = i
        if step.reverse:
            at = self.name()
            self.line(f"{at} = sub i64 {step.length - 1}, {i}")
        carried = self._alternate(swap, results[:n], spare)
        inputs = self._slices(operands[n:], step.in_strides, at)
        outputs = self._slices(results[n:], step.out_strides, at)
        outs = self._alternate(swap, spare, results[:n])
        self.scan_body(step, consts + carried, inputs, outs, outputs, arena)
        self.line(f"{after} = add i64 {i}, 1")
        self.line(f"{swapped} = xor i1 {swap}, true")
        self.line(f"br label %{head}")
        self.start(done)
        self._bring_home(swap, results[:n], spare, step.sizes)

    def scan_body(
        self, step: Scan, ins: list[str], inputs: list[str], outs: list[str], outputs: list[str], arena: str
    ) -> None:
        """One call of the body of a scan; ``inputs`` and ``outputs`` are the slices."""
        self.call(step.body, [*ins, *inputs], [*outs, *outputs], arena)

    def _slices(self, bases: Sequence[str], strides: Sequence[int], at: str) -> list[str]:
        out = []
        for base, stride in zip(bases, strides, strict=True):
            offset, reg = self.name(), self.name()
            self.line(f"{offset} = mul i64 {at}, {stride}")
            self.line(f"{reg} = getelementptr i8, ptr {base}, i64 {offset}")
            out.append(reg)
        return out
