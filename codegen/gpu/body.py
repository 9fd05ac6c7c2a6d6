"""Statements of the kernel IR on a GPU: each thread holds a few elements side by side, as scalars.

The elements of a thread are the *instances* of a frame without lanes; what lies contiguous and aligned in
memory is moved by one access of up to 16 bytes. Everything else is the CPU emitter's.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from weft.codegen.emit import Reg, memory_form
from weft.codegen.gpu.builder import DeviceBuilder
from weft.codegen.gpu.device import DeviceFunction
from weft.codegen.gpu.target import GpuTarget
from weft.codegen.gpu.team import Team, memory_of
from weft.codegen.kernel import Unsupported
from weft.codegen.llvm import reg_type
from weft.codegen.loop_body import BodyEmitter, combine
from weft.codegen.loop_memory import Regs
from weft.codegen.loop_serial import serial, unrolled
from weft.ir import types as T
from weft.ir.loops import IDENTITIES, Accumulate, Buffer, Compute, Fold, Load, Loop, Store, Tile
from weft.ir.prims.base import PRIMITIVES
from weft.ir.types import DType

ACCESS = 16  # bytes of the widest access


class Sum:
    """Partial results that a thread carries from row to row in registers."""

    def __init__(self, op: str, dtype: DType, phi: Any, address: Reg, guard: str | None, team: bool) -> None:
        self.op, self.dtype, self.phi, self.address, self.guard = op, dtype, phi, address, guard
        self.team = team  # each thread of the team has a part of it


class DeviceBody(BodyEmitter):
    """Emits the bodies of one nest."""

    fn: DeviceFunction
    target: GpuTarget  # type: ignore[assignment]

    def __init__(
        self, fn: DeviceFunction, target: GpuTarget, buffers: dict[str, Buffer], lanes: int
    ) -> None:
        super().__init__(fn, target, buffers, lanes)  # type: ignore[arg-type]
        self.b = DeviceBuilder(fn, 0, target)
        self.team: Team | None = None
        self.point: Any = None  # the step of a team's loop that is written out, the same in all loops
        self.inside = 0  # open loops that the team shares
        self.kept: dict[Any, Regs] = {}  # elements that this thread has read, or put into an array of the row
        self.in_registers: set[str] = set()  # arrays of the row that are nothing else
        self.shared_tiles: set[str] = set()  # those in shared memory
        self.rows: Any = None  # the loop over the rows of a unit, its depth, and what it carries
        self.sums: dict[Any, Sum] = {}
        self.late: dict[str, tuple[Fold, list[list[Reg]]]] = {}  # folds that are only added up
        self.walked: set[str] = set()  # variables of loops
        self.words = 32  # most elements of a thread in a loop that is written out

    # -- shared memory

    def shared_array(self, like: Reg, count: int) -> tuple[str, str, int]:
        t, size = memory_of(like)
        return self.fn.shared(count * size), t, size

    def put(self, array: tuple[str, str, int], at: str, x: Reg) -> None:
        p, t, size = array
        text = self.fn.op(f"zext i1 {x.text} to i8") if x.dtype is T.bool_ else x.text
        self.fn.store(t, text, self.fn.at(p, at, t), size)

    def get(self, array: tuple[str, str, int], at: str, dtype: DType) -> Reg:
        p, t, size = array
        raw = self.fn.load(t, self.fn.at(p, at, t), size)
        if dtype is T.bool_:
            raw = self.fn.op(f"icmp ne i8 {raw}, 0")
        return self.b.reg(raw, dtype)

    # -- arithmetic

    def compute(self, s: Compute) -> None:
        prim = PRIMITIVES[s.prim]
        if prim.scalar is None:
            raise Unsupported(f"{s.prim} has no scalar rule")
        args = [self.env[a] for a in s.args]
        if "words" in prim.tags and self._four_in_line(s.args[2]):
            self.env[s.name] = self._random_words(prim.tags["words"], *args)
            return
        n = max((len(a) for a in args), default=1)
        self.env[s.name] = [
            prim.scalar(self.b, *(self.pick(a, k) for a in args), **s.attrs) for k in range(n)
        ]

    def _four_in_line(self, position: str) -> bool:
        f, index = self.frame, self.affines.get(position)
        return index is not None and f.instances % 4 == 0 and self._aligned(index, f.var, 4)

    def _random_words(self, words: Any, seed: Regs, offset: Regs, position: Regs) -> Regs:
        """A block of Philox gives four words in line."""
        b, out = self.b, []
        for first in position[::4]:
            block = b.convert(b.binary("shr", first, b.const(2, T.i64)), T.u64)
            got = words(b, seed[0], b.binary("add", offset[0], block))
            out += [b.convert(x, T.u32) for x in got]
        return out

    def _report(self, bad: Reg, status: int) -> None:
        mask = self.frame.masks[0]
        if mask is not None:
            bad = self.b.binary("and", bad, mask)
        with self.fn.when(bad.text):
            self.fn.op(f"atomicrmw or ptr {self.status}, i64 {status} monotonic")

    # -- memory

    def _aligned(self, index: Any, var: str | None, n: int) -> bool:
        """True where an index is a multiple of n at every multiple of n of ``var``."""
        if index.coefficient(var or "") != 1 or index.const % n:
            return False
        return all(c % n == 0 for name, c in index.terms if name != var)

    def _whole(self, s: Any) -> bool:
        """True where the instances are one aligned piece of memory."""
        f, n = self.frame, self.frame.instances
        if n == 1 or n & (n - 1) or not self._aligned(s.index, f.var, n):
            return False
        differ = [n for n in s.index.names() if n != f.var and len(self.env[n]) > 1]
        return not differ and (getattr(s, "mask", None) is None or len(self.env[s.mask]) == 1)

    def load(self, s: Load) -> None:
        key = self._key(s)
        if key is not None and key in self.kept:
            self.env[s.name] = self.kept[key]
            return
        if self._whole(s):
            scalar, _ = self.offset(s.index, self.frame.var)
            p = self.address(s.buffer, self.add(scalar, self.frame.bases[0]))
            self.env[s.name] = self._pieces(s.buffer, p, self.mask(0, s.mask))
        else:
            super().load(s)
        if key is not None and s.buffer in self.constant:
            self.kept[key] = self.env[s.name]

    def _key(self, s: Any) -> Any:
        """Names what a step of a team's loop reads, where the same step of another loop finds it again."""
        if self.point is None or getattr(s, "mask", None) is not None:
            return None
        if not all(n == self.frame.var or n in self.walked for n in s.index.names()):
            return None
        return s.buffer, s.index, self.point

    def _pieces(self, buffer: str, p: Reg, mask: Reg | None) -> Regs:
        """Contiguous elements in as few accesses as possible; zero under a mask that does not hold."""
        f, dtype = self.frame, self.types[buffer]
        if mask is not None:
            p = self._somewhere(buffer, p, mask)
        form, per = memory_form(dtype), min(f.instances, ACCESS // dtype.itemsize)
        depth = p.depth if buffer in self.constant else self.fn.depth
        out: Regs = []
        for k in range(0, f.instances, per):
            t = reg_type(form, per)
            at = self.fn.op(f"getelementptr {reg_type(form)}, ptr {p.text}, i64 {k}", depth) if k else p.text
            raw = self.fn.op(f"load {t}, ptr {at}, align {per * dtype.itemsize}", depth)
            for i in range(per):
                one = self.fn.op(f"extractelement {t} {raw}, i64 {i}", depth)
                x = self.b.widen(Reg(one, form, 0, depth), dtype)
                out.append(x if mask is None else self.b.select(mask, x, self.b.const(0, dtype)))
        return out

    def _somewhere(self, buffer: str, p: Reg, mask: Reg) -> Reg:
        """The address, or where the mask does not hold the start of the buffer, which may always be read."""
        base = self.pointers[buffer]
        return self.b.emit(
            f"select i1 {mask.text}, ptr {p.text}, ptr {base}", T.u64, 0, max(p.depth, mask.depth)
        )

    def load_one(self, buffer: str, at: Reg, mask: Reg | None) -> Reg:
        piece = self.frame.masks[0]
        if piece is not None:
            mask = piece if mask is None else self.b.binary("and", mask, piece)
        dtype = self.types[buffer]
        form = memory_form(dtype)
        p = self.address(buffer, at)
        if mask is not None:
            p = self._somewhere(buffer, p, mask)
        depth = p.depth if buffer in self.constant else self.fn.depth
        raw = self.fn.op(f"load {reg_type(form)}, ptr {p.text}, align {dtype.itemsize}", depth)
        out = self.b.widen(Reg(raw, form, 0, depth), dtype)
        return out if mask is None else self.b.select(mask, out, self.b.const(0, dtype))

    def store(self, s: Store) -> None:
        if s.buffer in self.in_registers:
            self.kept[self._key(s)] = self.env[s.source]
            return
        guard = self._guard(s.mask)
        if guard is None:
            self._store_all(s)
            return
        with self.fn.when(guard):
            self._store_all(s)

    def _guard(self, mask: str | None) -> str | None:
        """Which threads write: all inside a loop that the team shares, one of them outside."""
        out = self.frame.masks[0].text if self.frame.masks[0] is not None else None
        if self.team is not None and not self.inside and self.team.leader is not None:
            out = self.team.leader if out is None else self.fn.op(f"and i1 {out}, {self.team.leader}")
        if mask is not None:
            assert len(self.env[mask]) == 1
            given = self.env[mask][0].text
            out = given if out is None else self.fn.op(f"and i1 {out}, {given}")
        return out

    def _store_all(self, s: Store) -> None:
        f = self.frame
        c = s.index.coefficient(f.var) if f.var else 0
        scalar, vectors = self.offset(s.index, f.var)
        regs = self.env[s.source]
        if self._whole(s):
            p = self.address(s.buffer, self.add(scalar, f.bases[0]))
            self._store_pieces(s.buffer, p, [self.pick(regs, k) for k in range(f.instances)])
            return
        for k in range(f.instances if c or vectors else 1):
            at = self.add(scalar, self.times(f.bases[k], c)) if c else scalar
            for more, coefficient in vectors:
                at = self.add(at, self.times(self.pick(more, k), coefficient))
            x = self.b.narrow(self.pick(regs, k))
            p = self.address(s.buffer, at).text
            self.fn.do(f"store {reg_type(x.dtype)} {x.text}, ptr {p}, align {self.types[s.buffer].itemsize}")

    def _store_pieces(self, buffer: str, p: Reg, regs: Sequence[Reg]) -> None:
        size = self.types[buffer].itemsize
        per = min(len(regs), ACCESS // size)
        for k in range(0, len(regs), per):
            whole, t, form = "poison", "", ""
            for i, x in enumerate(regs[k : k + per]):
                x = self.b.narrow(x)
                form, t = reg_type(x.dtype), reg_type(x.dtype, per)
                whole = self.fn.op(f"insertelement {t} {whole}, {form} {x.text}, i64 {i}")
            at = self.fn.op(f"getelementptr {form}, ptr {p.text}, i64 {k}") if k else p.text
            self.fn.do(f"store {t} {whole}, ptr {at}, align {per * size}")

    def tile(self, s: Tile) -> None:
        """An array of the row: registers where its elements are only met by the thread that made them."""
        self.types[s.name] = s.dtype
        if s.name not in self.in_registers and s.name not in self.pointers:
            raise Unsupported("an array of the row without a place")

    # -- partial results

    def accumulate(self, s: Accumulate) -> None:
        f = self.frame
        c = s.index.coefficient(f.var) if f.var else 0
        scalar, vectors = self.offset(s.index, f.var)
        if vectors:
            raise Unsupported("partial results at places that are computed")
        if s.source in self.late:
            self._carry_parts(s, self.address(s.buffer, scalar))
            return
        for k in range(f.instances if c else 1):
            at = self.add(scalar, self.times(f.bases[k], c)) if c else scalar
            self._accumulate_one(s, self.address(s.buffer, at), self.pick(self.env[s.source], k))

    def _accumulate_one(self, s: Accumulate, p: Reg, x: Reg) -> None:
        dtype = self.types[s.buffer]
        if self.fn.depth == self.rows[1] + 1 and p.depth <= self.rows[1]:
            found = self._carried(s, p, dtype, self._guard(None), False)
            identity = self.b.const(IDENTITIES[s.op](dtype), dtype)
            if self.frame.masks[0] is not None:
                x = self.b.select(self.frame.masks[0], x, identity)
            self._add(s.op, found, x)
            return
        with self.only(self._guard(None)):
            form, size = memory_form(dtype), dtype.itemsize
            raw = self.fn.load(reg_type(form), p.text, size)
            old = self.b.widen(Reg(raw, form, 0, self.fn.depth), dtype)
            new = self.b.narrow(combine(self.b, s.op, x, old))
            self.fn.do(f"store {reg_type(new.dtype)} {new.text}, ptr {p.text}, align {size}")

    def only(self, guard: str | None) -> Any:
        """Code for the threads for which the i1 holds; for all where there is none."""
        return nullcontext() if guard is None else self.fn.when(guard)

    def _carry_parts(self, s: Accumulate, p: Reg) -> None:
        """A fold of the row that is only added up: each thread keeps its part until the last row."""
        fold, states = self.late[s.source]
        for k, (x, *_) in enumerate(states):
            found = self._carried(s, p, fold.dtype, None, True, k)
            self._add(s.op, found, x)

    def _carried(
        self, s: Accumulate, p: Reg, dtype: DType, guard: str | None, team: bool, part: int = 0
    ) -> Sum:
        key = (s.buffer, p.text, part)
        found = self.sums.get(key)
        if found is None:
            scope, _ = self.rows
            identity = self.b.const(IDENTITIES[s.op](dtype), dtype)
            phi = scope.carry(reg_type(dtype), identity.text)
            found = self.sums[key] = Sum(s.op, dtype, phi, p, guard, team)
        return found

    def _add(self, op: str, found: Sum, x: Reg) -> None:
        scope, depth = self.rows
        before = scope.next.get(found.phi.name, found.phi.name)
        total = combine(self.b, op, x, Reg(before, found.dtype, 0, depth + 1))
        scope.update(found.phi.name, total.text)

    # -- loops

    def loop(self, s: Loop) -> None:
        from weft.codegen.gpu.team_loop import is_shared, team_loop

        if is_shared(self, s):
            team_loop(self, s)
            return
        point, self.point = self.point, None  # steps of inner loops are not told apart
        if s.kind == "unroll":
            unrolled(self, s)
        else:
            serial(self, s)
        self.point = point
