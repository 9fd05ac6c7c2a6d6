"""Statements of the kernel IR to LLVM: one element, one vector, or several vectors (*instances*) at once."""

from __future__ import annotations

from typing import Any

from weft.codegen.emit import Reg, VectorBuilder
from weft.codegen.kernel import Unsupported
from weft.codegen.llvm import reg_type
from weft.codegen.loop_memory import Frame, MemoryEmitter, Regs
from weft.codegen.outline import apply_rule
from weft.ir import types as T
from weft.ir.errors import DIVISION_BY_ZERO, INDEX_OUT_OF_RANGE
from weft.ir.loops import Accumulate, Affine, Check, Compute, Load, Loop, Number, Store, Tile
from weft.ir.prims.base import PRIMITIVES

__all__ = ["BodyEmitter", "Frame", "combine", "mark", "varying"]


class BodyEmitter(MemoryEmitter):
    """Emits bodies."""

    def run(self, body: list[Any]) -> None:
        for s in body:
            getattr(self, EMIT[type(s)])(s)

    def number(self, s: Number) -> None:
        self.env[s.name] = [self.b.const(s.value, s.dtype)]

    def affine(self, s: Affine) -> None:
        self.affines[s.name] = s.index
        self.env[s.name] = self.index_regs(s.index)

    def compute(self, s: Compute) -> None:
        prim = PRIMITIVES[s.prim]
        if prim.scalar is None:
            raise Unsupported(f"{s.prim} has no scalar rule")
        args = [self.env[a] for a in s.args]
        if "words" in prim.tags and self._whole_blocks(s.args[2]):
            self.env[s.name] = self._random_blocks(prim.tags["words"], *args)
            return
        n = max((len(a) for a in args), default=1)
        self.env[s.name] = [
            apply_rule(self.b, prim, [self.pick(a, k) for a in args], s.attrs) for k in range(n)
        ]

    def _whole_blocks(self, position: str) -> bool:
        """True where the instances together are consecutive numbers from a multiple of four on."""
        f, index = self.frame, self.affines.get(position)
        if index is None or not f.lanes or f.lanes % 4 or index.coefficient(f.var or "") != 1:
            return False
        return index.const % 4 == 0 and all(c % 4 == 0 for n, c in index.terms if n != f.var)

    def _random_blocks(self, words: Any, seed: Regs, offset: Regs, position: Regs) -> Regs:
        """Random words of all instances: each block of four once, then interleaved."""
        w, n = self.frame.lanes, self.frame.instances
        b, blocks = self.b, w * n // 4
        first = position[0]
        # signed: in a padded or joined place the position of the first lanes may be negative
        start = Reg(
            self.fn.op(f"extractelement {reg_type(T.i64, w)} {first.text}, i64 0"), T.i64, 0, self.fn.depth
        )
        block = b.binary("add", offset[0], b.convert(b.binary("shr", start, b.const(2, T.i64)), T.u64))
        steps = Reg("<" + ", ".join(f"i64 {i}" for i in range(blocks)) + ">", T.u64, blocks, 0)
        c = [b.convert(x, T.u32) for x in words(b, seed[0], b.binary("add", block, steps))]
        t, both = f"<{blocks} x i32>", f"<{2 * blocks} x i32>"
        order = ", ".join(f"i32 {i}" for i in range(2 * blocks))
        halves = [
            self.fn.op(f"shufflevector {t} {c[k].text}, {t} {c[k + 1].text}, <{2 * blocks} x i32> <{order}>")
            for k in (0, 2)
        ]
        out = []
        for k in range(n):
            pick = ", ".join(f"i32 {(j % 4) * blocks + k * w // 4 + j // 4}" for j in range(w))
            name = self.fn.op(f"shufflevector {both} {halves[0]}, {both} {halves[1]}, <{w} x i32> <{pick}>")
            out.append(Reg(name, T.u32, w, self.fn.depth))
        return out

    def check(self, s: Check) -> None:
        regs = self.env[s.source]
        out = []
        for k, r in enumerate(regs):
            if s.size is None:
                bad = self.b.compare("eq", r, self.b.const(0, r.dtype))
                out.append(self.b.select(bad, self.b.const(1, r.dtype), r))
            else:
                bad = self.b.simple("icmp uge", T.bool_, r, self.i64(s.size))
                out.append(self.b.select(bad, self.i64(0), r))
            mask = self.mask(k, s.mask, tail=bool(r.lanes))
            report = DIVISION_BY_ZERO if s.size is None else INDEX_OUT_OF_RANGE
            self._report(bad if mask is None else self.b.binary("and", bad, mask), report)
        self.env[s.name] = out

    def _report(self, bad: Reg, status: int) -> None:
        """Set the status where any lane is bad."""
        any_bad = bad.text
        if bad.lanes:
            w = bad.lanes
            any_bad = self.fn.call(f"llvm.vector.reduce.or.v{w}i1", "i1", f"<{w} x i1> {bad.text}")
        with self.fn.when(any_bad):
            self.fn.do(f"store i64 {status}, ptr {self.status}")

    def accumulate(self, s: Accumulate) -> None:
        f = self.frame
        c = s.index.coefficient(f.var) if f.var else 0
        scalar, _ = self.offset(s.index, f.var)
        dtype = self.types[s.buffer]
        if f.lanes and c != 1:
            raise Unsupported("partial results must lie along the vector axis")
        for k in range(f.instances):
            x = self.pick(self.env[s.source], k)
            if not f.lanes:
                at = self.add(scalar, self.times(f.bases[k], c)) if c else scalar
                old = self.load_one(s.buffer, at, None)
                new = self.b.narrow(combine(self.b, s.op, x, old))
                p = self.address(s.buffer, at).text
                self.fn.do(f"store {reg_type(new.dtype)} {new.text}, ptr {p}, align {dtype.itemsize}")
                continue
            mask = self.mask(k, None)
            p = self._instance_address(s.buffer, scalar, k)
            new = self.b.narrow(combine(self.b, s.op, x, self.load_vector(p, dtype, mask)))
            t = reg_type(new.dtype, f.lanes)
            self._store_vector(s.buffer, t, self.b.text(new, f.lanes), p, mask, dtype.itemsize)

    def tile(self, s: Tile) -> None:
        """An array of the row; where rows run along the lanes, an array of vectors for all of them."""
        f = self.frame
        abreast = max(1, f.lanes) * f.instances if f.var is not None else 1
        nbytes = -(-s.size * abreast * s.dtype.itemsize // 64) * 64 + 64
        self.types[s.name] = s.dtype
        if f.var is not None:
            self.abreast[s.name] = abreast
        if self.reserved.get(s.name, 0) < nbytes:
            self.pointers[s.name] = self.fn.alloca(nbytes)
            self.reserved[s.name] = nbytes

    def loop(self, s: Loop) -> None:
        from weft.codegen.loop_loops import emit_loop

        emit_loop(self, s)


def combine(b: VectorBuilder, op: str, new: Reg, old: Reg) -> Reg:
    """One step of a fold: ``op(old, new)``."""
    if op in ("max", "min"):
        return b.binary(op, new, old)
    if op in ("any", "all"):
        return b.binary("or" if op == "any" else "and", old, new)
    return b.binary({"sum": "add", "prod": "mul"}[op], old, new)


def varying(body: list[Any], var: str) -> set[str]:
    """Names in a body that differ between iterations of ``var``."""
    out = {var}
    for s in body:
        mark(s, out)
    return out


def mark(s: Any, out: set[str]) -> None:
    if isinstance(s, Loop):
        for inner in s.body:
            mark(inner, out)
        out.update(f.name for f in s.folds if f.source in out or f.index in out)
        return
    names: tuple[str, ...] = ()
    if isinstance(s, (Load, Affine)):
        names = s.index.names() + ((s.mask,) if isinstance(s, Load) and s.mask else ())
    elif isinstance(s, Compute):
        names = s.args
    elif isinstance(s, Check):
        names = (s.source, s.mask or "")
    if any(n in out for n in names):
        out.add(s.name)


EMIT: dict[type, str] = {
    Number: "number", Affine: "affine", Load: "load", Compute: "compute", Check: "check", Store: "store",
    Accumulate: "accumulate", Tile: "tile", Loop: "loop",
}  # fmt: skip
