"""Memory and registers of kernel IR: indices, masks, loads and stores of one element or of several
vectors."""

from __future__ import annotations

from typing import Any

from weft.codegen.emit import Reg, VectorBuilder, memory_form
from weft.codegen.interleave import MOST_INTERLEAVED, interleaved
from weft.codegen.llvm import Function, reg_type
from weft.codegen.target import Target
from weft.ir import types as T
from weft.ir.loops import Buffer, Index, Load, Store
from weft.ir.record import field, record
from weft.ir.types import DType

PREFETCHED = 1 << 20  # bytes of an operand from which what is read next is fetched ahead
Regs = list[Reg]  # one for a uniform value, else one per instance


@record(slots=True)
class Frame:
    """The vectorised axis: variable, lanes (0: one element at a time), start and mask of each instance."""

    var: str | None = None
    lanes: int = 0
    bases: Regs = field(default_factory=list)
    masks: list[Reg | None] = field(default_factory=lambda: [None])

    @property
    def instances(self) -> int:
        return max(1, len(self.bases))


class MemoryEmitter:
    """The state of an emitter: ``env`` maps names to registers, ``pointers`` buffers to addresses."""

    def __init__(self, fn: Function, target: Target, buffers: dict[str, Buffer], lanes: int) -> None:
        self.fn, self.target, self.buffers, self.lanes = fn, target, buffers, lanes
        self.b = VectorBuilder(fn, lanes, target)
        self.env: dict[str, Regs] = {}
        self.frame = Frame()
        self.pointers: dict[str, str] = {}
        self.types: dict[str, DType] = {n: x.dtype for n, x in buffers.items()}
        self.streamed: set[str] = set()
        self.constant = {n for n, x in buffers.items() if x.role == "in"}  # loads of these may be hoisted
        self.depths: dict[str, int] = {}  # of the scopes of pointers that a loop carries
        self.status = ""
        self.affines: dict[str, Index] = {}
        self.abreast: dict[str, int] = {}  # elements side by side in the arrays of rows that run along lanes
        self.reserved: dict[str, int] = {}  # bytes of the arrays of rows
        self.ahead: dict[int, int] = {}  # id of a load -> elements to the same place in the next row
        self.extents: dict[str, int] = {}  # of all loop variables

    # -- i64 arithmetic on indices

    def i64(self, value: int) -> Reg:
        return self.b.const(value, T.i64)

    def add(self, x: Reg, y: Reg) -> Reg:
        if x.value is not None and y.value is not None:
            return self.i64(x.value + y.value)
        if x.value == 0:
            return y
        return x if y.value == 0 else self.b.simple("add", T.i64, x, y)

    def times(self, x: Reg, k: int) -> Reg:
        if x.value is not None:
            return self.i64(x.value * k)
        return x if k == 1 else self.b.simple("mul", T.i64, x, self.i64(k))

    def offset(self, index: Index, skip: str | None = None) -> tuple[Reg, list[tuple[Regs, int]]]:
        """The scalar part of an index, outer scopes first, and its terms that differ between lanes."""
        scalar, vectors = [], []
        for name, c in index.terms:
            if name == skip:
                continue
            regs = self.env[name]
            if len(regs) == 1 and not regs[0].lanes:
                scalar.append((regs[0], c))
            else:
                vectors.append((regs, c))
        scalar.sort(key=lambda t: t[0].depth)
        out = self.i64(index.const)
        for r, c in scalar:
            out = self.add(out, self.times(r, c))
        return out, vectors

    def address(self, buffer: str, offset: Reg) -> Reg:
        """A pointer to an element (as a Reg whose dtype is not meaningful)."""
        p = self.pointers[buffer]
        m, depth = reg_type(memory_form(self.types[buffer])), self.depths.get(buffer, 0)
        if offset.value == 0:
            return Reg(p, T.u64, 0, depth)
        depth = max(depth, offset.depth)
        return self.b.emit(f"getelementptr {m}, ptr {p}, i64 {offset.text}", T.u64, 0, depth)

    # -- masks

    def mask(self, k: int, guard: str | None, tail: bool = True) -> Reg | None:
        """The combined mask of instance k: the guard of the statement and the tail of the loop."""
        m = self.frame.masks[min(k, len(self.frame.masks) - 1)] if tail else None
        if guard is None:
            return m
        g = self.pick(self.env[guard], k)
        return g if m is None else self.b.binary("and", m, g)

    @staticmethod
    def pick(regs: Regs, k: int) -> Reg:
        return regs[k] if len(regs) > 1 else regs[0]

    def index_regs(self, index: Index) -> Regs:
        """An index as i64 registers, one per instance where it differs between lanes."""
        f = self.frame
        c = index.coefficient(f.var) if f.var else 0
        scalar, vectors = self.offset(index, f.var)
        if not c and not vectors:
            return [scalar]
        out = []
        for k in range(f.instances):
            at = scalar
            if c:
                at = self.add(at, self.times(f.bases[k], c))
                if f.lanes:
                    at = self.add(at, self.iota(c))
            for regs, coefficient in vectors:
                at = self.add(at, self.times(self.pick(regs, k), coefficient))
            out.append(at)
        return out

    def iota(self, step: int) -> Reg:
        """<0, step, 2 step, ...> in i64."""
        w = self.frame.lanes
        text = "<" + ", ".join(f"i64 {i * step}" for i in range(w)) + ">"
        return Reg(text, T.i64, w, 0)

    # -- loads

    def load(self, s: Load) -> None:
        f = self.frame
        c = s.index.coefficient(f.var) if f.var else 0
        scalar, vectors = self.offset(s.index, f.var)
        if f.lanes and s.buffer in self.abreast:
            self.env[s.name] = [self._load_abreast(s, scalar, vectors, k) for k in range(f.instances)]
            return
        guard = self.env[s.mask] if s.mask else None
        varies = guard is not None and (len(guard) > 1 or bool(guard[0].lanes))
        count = f.instances if c or vectors or varies else 1
        self.env[s.name] = [self._load(s, c, scalar, vectors, k, varies) for k in range(count)]

    def _abreast(self, buffer: str, scalar: Reg, k: int) -> Reg:
        """Where the lanes of instance k lie in an array of rows side by side."""
        return self.add(self.times(scalar, self.abreast[buffer]), self.i64(k * self.frame.lanes))

    def _load_abreast(self, s: Load, scalar: Reg, vectors: Any, k: int) -> Reg:
        at, n = self._abreast(s.buffer, scalar, k), self.abreast[s.buffer]
        if not vectors:
            address = self.address(s.buffer, at).text
            return self.load_vector(address, self.types[s.buffer], self.mask(k, s.mask, tail=False))
        places = [(regs, coefficient * n) for regs, coefficient in vectors]
        return self._gather(s.buffer, 0, self.add(at, self.iota(1)), places, k, self.mask(k, s.mask))

    def _load(self, s: Load, c: int, scalar: Reg, vectors: Any, k: int, varies: bool) -> Reg:
        f, dtype = self.frame, self.types[s.buffer]
        if not f.lanes or not (c or vectors or varies):
            at = self.add(scalar, self.times(f.bases[k], c)) if c else scalar
            for regs, coefficient in vectors:
                at = self.add(at, self.times(self.pick(regs, k), coefficient))
            return self.load_one(s.buffer, at, self.mask(k, s.mask, tail=False))
        mask = self.mask(k, s.mask)
        if c == 1 and not vectors:
            address = self._instance_address(s.buffer, scalar, k)
            if id(s) in self.ahead:
                self.prefetch(address, self.ahead[id(s)] * dtype.itemsize)
            return self.load_vector(address, dtype, mask)
        if c == -1 and not vectors and mask is None:
            return self._load_reversed(s.buffer, scalar, k, dtype)
        if 1 < c <= MOST_INTERLEAVED and not vectors and mask is None:
            found = interleaved(self, s, c, k)
            if found is not None:
                return found
        return self._gather(s.buffer, c, scalar, vectors, k, mask)

    def _instance_address(self, buffer: str, scalar: Reg, k: int) -> str:
        """The address of instance k of a contiguous access: a constant distance from the first."""
        first = self.frame.bases[0]
        p = self.address(buffer, scalar)
        m = reg_type(memory_form(self.types[buffer]))
        if first.value != 0:
            p = self.b.emit(
                f"getelementptr {m}, ptr {p.text}, i64 {first.text}", T.u64, 0, max(first.depth, p.depth)
            )
        if not k:
            return p.text
        return self.b.emit(
            f"getelementptr {m}, ptr {p.text}, i64 {k * self.frame.lanes}", T.u64, 0, p.depth
        ).text

    def load_one(self, buffer: str, at: Reg, mask: Reg | None) -> Reg:
        dtype = self.types[buffer]
        form = memory_form(dtype)
        p = self.address(buffer, at)
        if mask is not None:
            p = self.b.emit(
                f"select i1 {mask.text}, ptr {p.text}, ptr %bufs", T.u64, 0, max(p.depth, mask.depth)
            )
        depth = p.depth if buffer in self.constant else self.fn.depth
        raw = self.fn.op(
            f"load {reg_type(form)}, ptr {p.text}, align {dtype.itemsize if mask is None else 1}", depth
        )
        out = self.b.widen(Reg(raw, form, 0, depth), dtype)
        return out if mask is None else self.b.select(mask, out, self.b.const(0, dtype))

    def prefetch(self, address: str, distance: int) -> None:
        """Ask for what lies ``distance`` bytes on (it need not exist)."""
        self.fn.declare("declare void @llvm.prefetch.p0(ptr, i32 immarg, i32 immarg, i32 immarg)")
        p = self.fn.op(f"getelementptr i8, ptr {address}, i64 {distance}")
        self.fn.do(f"call void @llvm.prefetch.p0(ptr {p}, i32 0, i32 2, i32 1)")

    def load_vector(self, address: str, dtype: DType, mask: Reg | None) -> Reg:
        form, w = memory_form(dtype), self.frame.lanes
        t = reg_type(form, w)
        if mask is None:
            raw = self.fn.op(f"load {t}, ptr {address}, align {dtype.itemsize}")
        else:
            raw = self.fn.call(
                f"llvm.masked.load.v{w}{_mangle(form)}.p0",
                t,
                f"ptr align {dtype.itemsize} {address}, {self.mask_text(mask)}, {t} zeroinitializer",
            )
        return self.b.widen(Reg(raw, form, w, self.fn.depth), dtype)

    def mask_text(self, mask: Reg) -> str:
        w = self.frame.lanes
        return f"<{w} x i1> {self.b.text(mask, w)}"

    def _load_reversed(self, buffer: str, scalar: Reg, k: int, dtype: DType) -> Reg:
        f, form = self.frame, memory_form(dtype)
        at = self.add(self.add(scalar, self.times(f.bases[k], -1)), self.i64(1 - f.lanes))
        t = reg_type(form, f.lanes)
        raw = self.fn.op(f"load {t}, ptr {self.address(buffer, at).text}, align {dtype.itemsize}")
        order = ", ".join(f"i32 {i}" for i in reversed(range(f.lanes)))
        turned = self.fn.op(f"shufflevector {t} {raw}, {t} poison, <{f.lanes} x i32> <{order}>")
        return self.b.widen(Reg(turned, form, f.lanes, self.fn.depth), dtype)

    def _pointers(self, buffer: str, c: int, scalar: Reg, vectors: Any, k: int) -> str:
        """A vector of pointers to the elements of instance k."""
        f = self.frame
        m, w = reg_type(memory_form(self.types[buffer])), f.lanes
        at = self.add(scalar, self.times(f.bases[k], c)) if c else scalar
        base = self.address(buffer, at).text
        if not vectors:
            t = "i32" if abs(c) * w < 1 << 31 else "i64"
            steps = ", ".join(f"{t} {i * c}" for i in range(w))
            return self.fn.op(f"getelementptr {m}, ptr {base}, <{w} x {t}> <{steps}>")
        lanes = self.iota(c) if c else self.i64(0)
        for regs, coefficient in vectors:
            lanes = self.add(lanes, self.times(self.pick(regs, k), coefficient))
        return self.fn.op(f"getelementptr {m}, ptr {base}, <{w} x i64> {self.b.text(lanes, w)}")

    def _gather(self, buffer: str, c: int, scalar: Reg, vectors: Any, k: int, mask: Reg | None) -> Reg:
        w, dtype = self.frame.lanes, self.types[buffer]
        form = memory_form(dtype)
        t = reg_type(form, w)
        ptrs = self._pointers(buffer, c, scalar, vectors, k)
        m = self.mask_text(mask) if mask is not None else f"<{w} x i1> splat (i1 true)"
        raw = self.fn.call(
            f"llvm.masked.gather.v{w}{_mangle(form)}.v{w}p0",
            t,
            f"<{w} x ptr> align {dtype.itemsize} {ptrs}, {m}, {t} zeroinitializer",
        )
        return self.b.widen(Reg(raw, form, w, self.fn.depth), dtype)

    # -- stores

    def store(self, s: Store) -> None:
        f = self.frame
        c = s.index.coefficient(f.var) if f.var else 0
        scalar, vectors = self.offset(s.index, f.var)
        regs = self.env[s.source]
        if f.lanes and s.buffer in self.abreast:
            for k in range(f.instances):
                x = self.b.narrow(self.pick(regs, k))
                p = self.address(s.buffer, self._abreast(s.buffer, scalar, k)).text
                t = reg_type(x.dtype, f.lanes)
                align = self.types[s.buffer].itemsize
                self.fn.do(f"store {t} {self.b.text(x, f.lanes)}, ptr {p}, align {align}")
            return
        for k in range(f.instances if c or vectors else 1):
            self._store(s, c, scalar, vectors, k, self.b.narrow(self.pick(regs, k)))

    def _store(self, s: Store, c: int, scalar: Reg, vectors: Any, k: int, x: Reg) -> None:
        f, size = self.frame, self.types[s.buffer].itemsize
        if not f.lanes or not (c or vectors):
            at = self.add(scalar, self.times(f.bases[k], c)) if c else scalar
            p = self.address(s.buffer, at)
            self.fn.do(f"store {reg_type(x.dtype)} {x.text}, ptr {p.text}, align {size}")
            return
        w = f.lanes
        t, text, mask = reg_type(x.dtype, w), self.b.text(x, w), self.mask(k, s.mask)
        if c == 1 and not vectors:
            p = self._instance_address(s.buffer, scalar, k)
            self._store_vector(s.buffer, t, text, p, mask, size)
            return
        ptrs = self._pointers(s.buffer, c, scalar, vectors, k)
        m = self.mask_text(mask) if mask is not None else f"<{w} x i1> splat (i1 true)"
        name = f"llvm.masked.scatter.v{w}{_mangle(x.dtype)}.v{w}p0"
        self.fn.declare(f"declare void @{name}({t}, <{w} x ptr>, <{w} x i1>)")
        self.fn.do(f"call void @{name}({t} {text}, <{w} x ptr> align {size} {ptrs}, {m})")

    def _store_vector(self, buffer: str, t: str, text: str, p: str, mask: Reg | None, size: int) -> None:
        w = self.frame.lanes
        if mask is None:
            stream = ", !nontemporal !{i32 1}" if buffer in self.streamed else ""
            align = self.target.vector_bits // 8 if stream else size
            self.fn.do(f"store {t} {text}, ptr {p}, align {align}{stream}")
            return
        name = f"llvm.masked.store.{_mangle_vector(t)}.p0"
        self.fn.declare(f"declare void @{name}({t}, ptr, <{w} x i1>)")
        self.fn.do(f"call void @{name}({t} {text}, ptr align {size} {p}, {self.mask_text(mask)})")


def _mangle(dtype: DType) -> str:
    t = reg_type(dtype)
    return {"float": "f32", "double": "f64"}.get(t, t)


def _mangle_vector(t: str) -> str:
    n, _, e = t[1:-1].partition(" x ")
    return f"v{n}" + {"float": "f32", "double": "f64"}.get(e, e)
