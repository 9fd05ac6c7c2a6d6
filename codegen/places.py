"""Values of a fused region at a place: the vector of elements that starts at given coordinates.

A kernel that is not made of loop IR (a contraction's packing and epilogue, a scatter ...) asks for the value
of a graph :class:`Value` at a :class:`Place`; maps are applied through their scalar rules, moves change the
place, and kernel operands are loaded: contiguous, spread or gathered, whatever the coordinates of the lanes
demand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from weft.codegen.blocks import Code, Ix, iota
from weft.codegen.emit import Reg, VectorBuilder
from weft.codegen.kernel import Unsupported
from weft.codegen.lanes import gather_lanes, load_lanes
from weft.codegen.llvm import mem_type, reg_type
from weft.codegen.outline import apply_rule
from weft.ir.graph import Graph, Op, Value
from weft.ir.prims.base import Kind
from weft.ir.record import record
from weft.ir.types import DType, bool_, i64, u64

_LARGEST_CONSTANT = 1 << 20  # bytes of an array constant that go into the module


@record(frozen=True, eq=False)
class Coord:
    """An index per lane: ``base + lane * step``, or a vector of i64 where that is no affine map of the lane.

    ``block`` promises that all lanes lie in one aligned block of that many indices (0: nothing is known).
    """

    base: Ix = 0
    step: int = 0
    vec: str | None = None
    block: int = 0


class Place:
    """Where a value of ``shape`` is wanted: coordinates and row-major index, made when asked for."""

    def __init__(
        self,
        shape: Sequence[int],
        coords: Callable[[], Sequence[Coord]] | None = None,
        linear: Callable[[], Coord] | None = None,
    ) -> None:
        self.shape = tuple(shape)
        self._coords, self._linear = coords, linear
        self.seen_coords: tuple[Coord, ...] | None = None
        self.seen_linear: Coord | None = None


class Region:
    """Evaluates values of ``graph`` on ``lanes`` lanes. ``pointers`` holds the base address of each
    parameter.

    ``given`` holds registers of values at the root place; ``mask`` limits which lanes may touch memory;
    ``uniform`` holds registers of values that are the same wherever they are asked for.
    """

    make_builder: type[VectorBuilder] = VectorBuilder  # what writes the rules of maps

    def __init__(
        self,
        fn: Code,
        graph: Graph,
        lanes: int,
        pointers: Mapping[Value, str],
        mask: str | None = None,
        uniform: Mapping[Value, Reg] | None = None,
    ) -> None:
        self.fn, self.graph, self.lanes, self.pointers, self.mask = fn, graph, lanes, pointers, mask
        self.builder = self.make_builder(fn, lanes)
        self.producers = graph.producers()
        self.given: dict[tuple[Value, int], Reg] = {}
        self.uniform: Mapping[Value, Reg] = uniform or {}
        self._alive: list[Place] = []

    # places

    def coords(self, place: Place) -> tuple[Coord, ...]:
        if place.seen_coords is None:
            if place._coords is not None:
                place.seen_coords = tuple(place._coords())
            else:
                place.seen_coords = tuple(self.split(self.linear(place), place.shape))
        return place.seen_coords

    def linear(self, place: Place) -> Coord:
        if place.seen_linear is None:
            if place._linear is not None:
                place.seen_linear = place._linear()
            else:
                place.seen_linear = self.flat(self.coords(place), place.shape)
        return place.seen_linear

    def flat(self, coords: Sequence[Coord], shape: Sequence[int]) -> Coord:
        out, stride = Coord(), prod(shape)
        for c, d in zip(coords, shape, strict=True):
            stride //= max(d, 1)
            out = self.plus(out, self.times(c, stride))
        return out

    def at(self, shape: Sequence[int], coords: Sequence[Ix | Coord]) -> Place:
        """A place from explicit coordinates."""
        cs = tuple(c if isinstance(c, Coord) else Coord(c) for c in coords)
        return Place(shape, lambda: cs)

    # arithmetic of coordinates

    def vector(self, c: Coord) -> str:
        """The coordinate as a vector of i64."""
        if c.vec is not None:
            return c.vec
        v = f"<{self.lanes} x i64>"
        base = self.fn.splat("i64", str(c.base), self.lanes)
        return base if c.step == 0 else self.fn.op(f"add {v} {base}, {iota('i64', self.lanes, c.step)}")

    def plus(self, a: Coord, b: Coord) -> Coord:
        if a.vec is None and b.vec is None:
            if a.step == 0 and a.base == 0:
                return b
            if b.step == 0 and b.base == 0:
                return a
            return Coord(self.fn.add(a.base, b.base), a.step + b.step)
        return Coord(vec=self.fn.op(f"add <{self.lanes} x i64> {self.vector(a)}, {self.vector(b)}"))

    def times(self, a: Coord, k: int) -> Coord:
        if k == 1:
            return a
        if a.vec is None:
            return Coord(self.fn.mul(a.base, k), a.step * k)
        return Coord(vec=self.fn.op(f"mul <{self.lanes} x i64> {a.vec}, splat (i64 {k})"))

    def divmod(self, a: Coord, d: int, extent: int) -> tuple[Coord, Coord]:
        """Quotient and remainder by ``d`` of a coordinate in 0..extent."""
        if d == 1:
            return a, Coord()
        if a.vec is None and a.step == 0:
            return Coord(self.fn.div(a.base, d)), Coord(self.fn.mod(a.base, d))
        if a.vec is None and a.step == 1 and a.block and d % a.block == 0:
            return Coord(self.fn.div(a.base, d)), Coord(self.fn.mod(a.base, d), 1, block=a.block)
        v, n, x = f"<{self.lanes} x i64>", f"<{self.lanes} x i32>", self.vector(a)
        if extent >= 1 << 31:
            quotient = self.fn.op(f"udiv {v} {x}, splat (i64 {d})")
        else:  # vectors of i32 divide by a constant much faster
            small = self.fn.op(f"trunc {v} {x} to {n}")
            quotient = self.fn.op(f"zext {n} {self.fn.op(f'udiv {n} {small}, splat (i32 {d})')} to {v}")
        whole = self.fn.op(f"mul {v} {quotient}, splat (i64 {d})")
        return Coord(vec=quotient), Coord(vec=self.fn.op(f"sub {v} {x}, {whole}"))

    def split(self, c: Coord, dims: Sequence[int]) -> list[Coord]:
        out: list[Coord] = []
        extent = prod(dims)
        for d in reversed(dims[1:]):
            c, r = self.divmod(c, d, extent) if d != 1 else (c, Coord())
            out.append(r)
        return [c, *reversed(out)] if dims else []

    def inside(self, c: Coord, extent: int) -> str:
        """The i1 vector of lanes whose coordinate is in 0..extent."""
        v = f"<{self.lanes} x i64>"
        return self.fn.op(f"icmp ult {v} {self.vector(c)}, splat (i64 {extent})")

    # values

    def value(self, v: Value, place: Place) -> Reg:
        """The registers of ``v`` at ``place``."""
        key = (v, id(place))
        found = self.uniform.get(v) or self.given.get(key)
        if found is None:
            self._alive.append(place)  # so that its id stays its own
            found = self.given[key] = self._make(v, place)
        return found

    def _make(self, v: Value, place: Place) -> Reg:
        op = self.producers.get(v)
        if op is None:
            return self.load(self.pointers[v], v.type.dtype, self.linear(place), v.type.size)
        kind = op.prim.kind
        if kind is Kind.MAP:
            if op.prim.scalar is None or v.type.dtype.is_complex:
                raise Unsupported(f"{op.prim.name} has no scalar rule")
            return apply_rule(self.builder, op.prim, [self.value(x, place) for x in op.operands], op.attrs)
        if kind is Kind.MOVE and op.prim.name in _MOVES:
            return _MOVES[op.prim.name](self, op, place)
        if kind is Kind.SOURCE:
            return self._source(op, place)
        if kind is Kind.RANDOM and op.prim.scalar is not None:
            return self._random(op, place)
        raise Unsupported(f"{op.prim.name} cannot be computed at a place")

    def load(self, base: str, dtype: DType, linear: Coord, size: int) -> Reg:
        """Elements number ``linear`` of the array at ``base``."""
        fn, elem = self.fn, mem_type(dtype)
        if linear.vec is None and linear.step == 0:
            text = load_lanes(fn, fn.at(base, linear.base, elem), dtype, 0)
            return self.builder.reg(text, dtype)
        if linear.vec is None and linear.step == 1:
            text = load_lanes(fn, fn.at(base, linear.base, elem), dtype, self.lanes, self.mask)
        elif linear.vec is None and linear.step == -1:
            first = fn.at(base, fn.sub(linear.base, self.lanes - 1), elem)
            mask = None if self.mask is None else self.reversed(self.mask, "i1")
            text = self.reversed(load_lanes(fn, first, dtype, self.lanes, mask), reg_type(dtype))
        else:
            text = gather_lanes(fn, base, self.vector(linear), dtype, self.lanes, self.mask)
        return self.builder.reg(text, dtype, self.lanes)

    def reversed(self, x: str, ty: str) -> str:
        """A vector with its lanes in opposite order."""
        v = f"<{self.lanes} x {ty}>"
        pick = ", ".join(f"i32 {i}" for i in reversed(range(self.lanes)))
        return self.fn.op(f"shufflevector {v} {x}, {v} poison, <{self.lanes} x i32> <{pick}>")

    def wide(self, x: Reg) -> str:
        """The text of ``x`` as a full vector."""
        return self.builder.text(x, self.lanes)

    def _random(self, op: Op, place: Place) -> Reg:
        b, state = self.builder, op.operands[0]
        seed, offset = (b.bitcast(self.value(state, Place((2,), linear=_fixed(i))), u64) for i in range(2))
        index = b.reg(self.vector(self.linear(place)), u64, self.lanes)
        return op.prim.scalar(b, seed, offset, index, **op.attrs)  # type: ignore[misc]

    def _source(self, op: Op, place: Place) -> Reg:
        b, dtype = self.builder, op.result.type.dtype
        if "axis" in op.attrs:
            c = self.coords(place)[op.attrs["axis"]]
            if c.vec is None and c.step == 0:
                index = b.const(c.base, i64) if isinstance(c.base, int) else b.reg(c.base, i64)
            else:
                index = b.reg(self.vector(c), i64, self.lanes)
            return b.convert(index, dtype)
        value = op.attrs["value"]
        if not isinstance(value, np.ndarray):
            return b.const(value, dtype)
        if value.size == 1 and dtype is bool_:
            return b.const(bool(value.reshape(())), dtype)
        return self.load(constant(self.fn, value), dtype, self.linear(place), value.size)


def _fixed(i: int) -> Callable[[], Coord]:
    return lambda: Coord(i)


def constant(fn: Code, array: np.ndarray) -> str:
    """The address of an array constant of the module."""
    if array.nbytes > _LARGEST_CONSTANT:
        raise Unsupported(f"a constant of {array.nbytes} bytes is no part of the code")
    data = np.ascontiguousarray(array).tobytes()
    name = "weft_data_" + hashlib.sha256(data).hexdigest()[:24]
    text = "".join(f"\\{byte:02x}" for byte in data)
    fn.declare(f'@{name} = private unnamed_addr constant [{len(data)} x i8] c"{text}", align 64')
    return f"@{name}"


# moves


def _permute(r: Region, op: Op, place: Place) -> Reg:
    perm = op.attrs["perm"]

    def coords() -> list[Coord]:
        outer = r.coords(place)
        return [outer[perm.index(i)] for i in range(len(perm))]

    return r.value(op.operands[0], Place(op.operands[0].type.shape, coords))


def _broadcast(r: Region, op: Op, place: Place) -> Reg:
    x = op.operands[0]
    shape, axes = x.type.shape, op.attrs["axes"]
    if all(d == 1 for d in shape):
        return r.value(x, Place(shape, lambda: [Coord()] * len(shape), Coord))

    def coords() -> list[Coord]:
        outer = r.coords(place)
        return [Coord() if d == 1 else outer[a] for d, a in zip(shape, axes, strict=True)]

    return r.value(x, Place(shape, coords))


def _reshape(r: Region, op: Op, place: Place) -> Reg:
    shape = op.operands[0].type.shape
    return r.value(
        op.operands[0],
        Place(shape, lambda: _regroup(r, r.coords(place), place.shape, shape), lambda: r.linear(place)),
    )


def _regroup(r: Region, coords: Sequence[Coord], old: Sequence[int], new: Sequence[int]) -> list[Coord]:
    """Coordinates in another shape of the same size; groups of dimensions of equal product stay apart."""
    out: list[Coord] = []
    i = j = 0
    while j < len(new):
        i0, j0 = i, j
        a, b = (old[i] if i < len(old) else 1), new[j]
        i, j = min(i + 1, len(old)), j + 1
        while a != b:
            if a < b:
                a, i = a * old[i], i + 1
            else:
                b, j = b * new[j], j + 1
        group = r.flat(coords[i0:i], old[i0:i])
        out.extend(r.split(group, new[j0:j]))
    return out


def _slice(r: Region, op: Op, place: Place) -> Reg:
    start, step = op.attrs["start"], op.attrs["step"]

    def coords() -> list[Coord]:
        return [r.plus(r.times(c, s), Coord(a)) for c, a, s in zip(r.coords(place), start, step, strict=True)]

    return r.value(op.operands[0], Place(op.operands[0].type.shape, coords))


def _flip(r: Region, op: Op, place: Place) -> Reg:
    shape, axes = op.result.type.shape, op.attrs["axes"]

    def coords() -> list[Coord]:
        return [
            r.plus(r.times(c, -1), Coord(d - 1)) if i in axes else c
            for i, (c, d) in enumerate(zip(r.coords(place), shape, strict=True))
        ]

    return r.value(op.operands[0], Place(shape, coords))


def _copy(r: Region, op: Op, place: Place) -> Reg:
    return r.value(op.operands[0], place)


def _pad(r: Region, op: Op, place: Place) -> Reg:
    """Lanes in the padding read nothing and take the padding value."""
    x, fill = op.operands
    fn, v = r.fn, f"<{r.lanes} x i1>"
    keep: str | None = None
    coords: list[Coord] = []
    attrs = zip(op.attrs["lo"], op.attrs["hi"], op.attrs["interior"], strict=True)
    for c, d, (lo, hi, gap) in zip(r.coords(place), x.type.shape, attrs, strict=True):
        if (lo, hi, gap) == (0, 0, 0):
            coords.append(c)
            continue
        c = r.plus(c, Coord(-lo))
        test = r.inside(c, (d - 1) * (gap + 1) + 1 if d else 0)
        if gap:
            # lanes outside are masked below, so that the division may see garbage there
            c, rest = r.divmod(Coord(vec=r.vector(c)), gap + 1, 1 << 62)
            whole = fn.op(f"icmp eq <{r.lanes} x i64> {rest.vec}, zeroinitializer")
            test = fn.op(f"and {v} {test}, {whole}")
        keep = test if keep is None else fn.op(f"and {v} {keep}, {test}")
        coords.append(c if c.step or c.vec else Coord(vec=r.vector(c)))
    if keep is None:
        return r.value(x, Place(x.type.shape, lambda: coords))
    mask = keep if r.mask is None else fn.op(f"and {v} {keep}, {r.mask}")
    inner = type(r)(fn, r.graph, r.lanes, r.pointers, mask, r.uniform)
    got = inner.value(x, Place(x.type.shape, lambda: coords))
    other = r.value(fill, Place((), lambda: (), Coord))
    return r.builder.select(r.builder.reg(keep, bool_, r.lanes), got, other)


_MOVES: dict[str, Callable[[Region, Op, Place], Any]] = {
    "permute": _permute, "broadcast": _broadcast, "reshape": _reshape, "slice": _slice, "flip": _flip,
    "copy": _copy, "pad": _pad,
}  # fmt: skip
