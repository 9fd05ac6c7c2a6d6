"""Random graphs over all kinds of primitives, for comparing compiled code with the reference interpreter.

Values are kept of order one, and nothing that jumps (floor, comparisons, sorting, argmax) is applied to
computed floats, so that results agree closely however operations are grouped.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
from weft.ir import prims as P
from weft.ir.graph import Graph, GraphBuilder, Value
from weft.ir.prims.base import GraphInterpreter, full_like, interpreting, scale, trace
from weft.ir.types import DType, TensorType, bf16, bool_, f16, f32, f64, i32, i64, u8

SIZES = (1, 2, 3, 4, 7, 8, 16, 17, 33, 64)


class Program:
    """A graph being made, by a seeded generator."""

    def __init__(
        self, seed: int, length: int = 14, largest: int = 40_000, sizes: tuple[int, ...] = SIZES
    ) -> None:
        self.r = random.Random(seed)
        self.largest, self.sizes = largest, sizes
        self.b = GraphBuilder(f"random{seed}")
        self.exact: set[Value] = set()  # values that are the same to the bit everywhere
        self.values: list[Value] = []
        with interpreting(GraphInterpreter(self.b)):
            self.parameters()
            for _ in range(length):
                self.step()
            floats = [v for v in self.values if v.type.dtype.is_floating_point]
            chosen = self.r.sample(self.values, min(3, len(self.values))) + floats[-1:]
        self.graph: Graph = self.b.finish(dict.fromkeys(chosen))

    # -- making values

    def shape(self) -> tuple[int, ...]:
        while True:
            out = tuple(self.r.choice(self.sizes) for _ in range(self.r.choice((0, 1, 2, 2, 2, 3, 4))))
            if np.prod(out, dtype=np.int64) <= self.largest:
                return out

    def parameters(self) -> None:
        self.base = self.shape()
        for dtype in self.r.choices(
            (f32, f32, f32, f64, i32, bf16, f16, bool_, u8, i64), k=self.r.randint(2, 4)
        ):
            self.add(self.b.param(TensorType(self.base, dtype)), exact=True)
        self.add(self.b.param(TensorType(self.shape(), f32)), exact=True)

    def add(self, v: Value, exact: bool = False) -> Value:
        self.values.append(v)
        if exact:
            self.exact.add(v)
        return v

    def pick(self, wanted: Callable[[Value], bool] = lambda v: True) -> Value | None:
        found = [v for v in self.values[-8:] if wanted(v)] or [v for v in self.values if wanted(v)]
        return self.r.choice(found) if found else None

    def tame(self, v: Value) -> Value:
        """Of order one again."""
        return P.tanh_p.bind(v) if v.type.dtype.is_floating_point else v

    def step(self) -> None:
        kind = self.r.choice(
            (
                *[self.unary] * 2,
                *[self.binary] * 3,
                *[self.reduce] * 2,
                *[self.move] * 2,
                self.norm,
                self.broadcast,
            )
            + (
                self.join,
                self.dot,
                self.gather,
                self.scatter,
                self.scan,
                self.convert,
                self.select,
                self.window,
            )
            + (self.random, self.source, self.conv, self.along, self.bits, self.loop)
        )
        kind()

    # -- steps; each does nothing where no value fits

    def unary(self) -> None:
        v = self.pick(lambda v: v.type.dtype is not bool_)
        if v is None:
            return
        if v.type.dtype.is_floating_point:
            name = self.r.choice(("tanh", "sin", "cos", "erf", "neg", "abs", "atan", "asinh"))
            if name in ("abs", "atan") and self.r.random() < 0.5:
                self.add(P.exp_p.bind(-P.abs_p.bind(v)))
            else:
                self.add(getattr(P, name + "_p").bind(v))
        else:
            self.add(P.abs_p.bind(v) if self.r.random() < 0.5 else P.bit_not_p.bind(v), v in self.exact)

    def binary(self) -> None:
        x = self.pick()
        y = self.pick(lambda v: x is not None and v.type == x.type)
        if x is None or y is None:
            return
        name = self.r.choice(("add", "mul", "sub", "maximum", "minimum"))
        if x.type.dtype is bool_:
            name = self.r.choice(("bit_and", "bit_or", "bit_xor"))
        out = getattr(P, name + "_p").bind(x, y)
        exact = x in self.exact and y in self.exact and not x.type.dtype.is_floating_point
        self.add(self.tame(out) if self.r.random() < 0.4 else out, exact)

    def axes(self, v: Value) -> tuple[int, ...]:
        return tuple(i for i in range(v.type.ndim) if self.r.random() < 0.5)

    def reduce(self) -> None:
        v = self.pick(lambda v: v.type.ndim > 0 and v.type.dtype is not bool_)
        if v is None:
            return
        axes = self.axes(v)
        if v.type.dtype.is_floating_point:
            name = self.r.choice(("sum", "sum", "reduce_max", "reduce_min"))
            out = getattr(P, name + "_p").bind(v, axes=axes)
            self.add(self.tame(scale(out, 0.25)) if name == "sum" else out)
        else:
            self.add(getattr(P, self.r.choice(("sum_p", "reduce_max_p", "prod_p"))).bind(v, axes=axes))
        if v in self.exact and self.r.random() < 0.3:
            self.add(P.argmax_p.bind(v, axis=self.r.randrange(v.type.ndim)))

    def norm(self) -> None:
        """Softmax or layer norm along an axis."""
        v = self.pick(lambda v: v.type.ndim > 0 and v.type.dtype in (f32, f64, bf16))
        if v is None:
            return
        axis = self.r.randrange(v.type.ndim) if self.r.random() < 0.3 else v.type.ndim - 1
        kept = tuple(i for i in range(v.type.ndim) if i != axis)

        def spread(x: Any) -> Any:
            return P.broadcast_p.bind(x, shape=v.type.shape, axes=kept)

        if self.r.random() < 0.5:
            e = P.exp_p.bind(v - spread(P.reduce_max_p.bind(v, axes=(axis,))))
            self.add(e / spread(P.sum_p.bind(e, axes=(axis,))))
            return
        n = 1.0 / v.type.shape[axis]
        centred = v - spread(scale(P.sum_p.bind(v, axes=(axis,)), n))
        variance = scale(P.sum_p.bind(centred * centred, axes=(axis,)), n)
        self.add(centred * spread(P.rsqrt_p.bind(variance + full_like(variance, 0.5))))

    def broadcast(self) -> None:
        v = self.pick(lambda v: v.type.ndim < 4)
        if v is None:
            return
        shape, axes = [], []
        for d in v.type.shape:
            if self.r.random() < 0.3 and len(shape) < 3:
                shape.append(self.r.choice(self.sizes))
            axes.append(len(shape))
            shape.append(self.r.choice(self.sizes) if d == 1 and self.r.random() < 0.5 else d)
        if self.r.random() < 0.5:
            shape.append(self.r.choice(self.sizes))
        if np.prod(shape, dtype=np.int64) <= self.largest:
            self.add(P.broadcast_p.bind(v, shape=tuple(shape), axes=tuple(axes)), v in self.exact)

    def move(self) -> None:
        v = self.pick(lambda v: v.type.ndim > 0)
        if v is None:
            return
        n, shape = v.type.ndim, v.type.shape
        kind = self.r.choice(("permute", "reshape", "slice", "flip", "pad", "copy"))
        if kind == "permute":
            out = P.permute_p.bind(v, perm=tuple(self.r.sample(range(n), n)))
        elif kind == "reshape":
            cut = self.r.randrange(n)
            merged = int(np.prod(shape[cut:], dtype=np.int64))
            split = next((d for d in (8, 4, 3, 2) if merged % d == 0 and self.r.random() < 0.6), 1)
            out = P.reshape_p.bind(v, shape=(*shape[:cut], split, merged // split))
        elif kind == "slice":
            start = tuple(self.r.randrange(d) for d in shape)
            stop = tuple(self.r.randint(a + 1, d) for a, d in zip(start, shape, strict=True))
            step = tuple(self.r.choice((1, 1, 2, 3)) for _ in shape)
            out = P.slice_p.bind(v, start=start, stop=stop, step=step)
        elif kind == "flip":
            out = P.flip_p.bind(v, axes=self.axes(v))
        elif kind == "pad":
            value = P.full_p.bind(shape=(), dtype=v.type.dtype, value=1)
            lo = tuple(self.r.choice((0, 0, 1, 2, -1 if d > 2 else 0)) for d in shape)
            hi = tuple(self.r.choice((0, 0, 1, 3)) for _ in shape)
            interior = tuple(self.r.choice((0, 0, 0, 1)) for _ in shape)
            out = P.pad_p.bind(v, value, lo=lo, hi=hi, interior=interior)
        else:
            out = P.copy_p.bind(v)
        if out.type.size <= self.largest:
            self.add(out, v in self.exact)

    def join(self) -> None:
        x = self.pick(lambda v: v.type.ndim > 0)
        if x is None:
            return
        axis = self.r.randrange(x.type.ndim)

        def fits(v: Value) -> bool:
            alike = v.type.dtype is x.type.dtype and v.type.ndim == x.type.ndim
            return alike and all(v.type.shape[i] == d for i, d in enumerate(x.type.shape) if i != axis)

        y = self.pick(fits)
        if y is None:
            return
        exact = x in self.exact and y in self.exact
        if self.r.random() < 0.5:
            self.add(P.concatenate_p.bind(x, y, axis=axis), exact)
        elif y.type.shape[axis] <= x.type.shape[axis]:
            room = x.type.shape[axis] - y.type.shape[axis]
            start = tuple(self.r.randint(0, room) if i == axis else 0 for i in range(x.type.ndim))
            self.add(P.update_slice_p.bind(x, y, start=start, step=(1,) * x.type.ndim), exact)

    def dot(self) -> None:
        x = self.pick(lambda v: v.type.ndim == 2 and v.type.dtype in (f32, f64, bf16))
        if x is None:
            return
        y = self.pick(
            lambda v: v.type.ndim == 2 and v.type.dtype is x.type.dtype and x.type.shape[1] in v.type.shape
        )
        if y is None:
            return
        axis = y.type.shape.index(x.type.shape[1])
        if x.type.shape[0] * y.type.shape[1 - axis] > self.largest:
            return
        out = P.dot_general_p.bind(x, y, contract=((1,), (axis,)), batch=((), ()))
        out = scale(out, 0.25)
        if self.r.random() < 0.6:  # an epilogue
            out = self.tame(out + full_like(out, 0.1))
        self.add(self.tame(out))

    def indices(self, count: int, size: int) -> Value:
        ramp = P.iota_p.bind(shape=(count, 1), dtype=i64, axis=0)
        return P.rem_p.bind(scale(ramp, self.r.choice((1, 3, 5))), full_like(ramp, size))

    def gather(self) -> None:
        v = self.pick(lambda v: v.type.ndim > 0)
        if v is None:
            return
        axis, count = self.r.randrange(v.type.ndim), self.r.choice(self.sizes)
        out = P.gather_p.bind(v, self.indices(count, v.type.shape[axis]), axes=(axis,))
        if out.type.size <= self.largest:
            self.add(out, v in self.exact)

    def scatter(self) -> None:
        v = self.pick(lambda v: v.type.ndim > 0 and v.type.dtype in (f32, f64, i32))
        if v is None:
            return
        count = v.type.shape[0]
        idx = self.indices(count, count)
        mode = self.r.choice(("add", "set"))
        if mode == "set":
            idx = P.iota_p.bind(shape=(count, 1), dtype=i64, axis=0)
        self.add(P.scatter_p.bind(full_like(v, 0), idx, v, axes=(0,), mode=mode))

    def scan(self) -> None:
        v = self.pick(lambda v: v.type.ndim > 0 and v.type.dtype in (f32, f64, i32))
        if v is None:
            return
        axis, reverse = self.r.randrange(v.type.ndim), self.r.random() < 0.3
        if v in self.exact and self.r.random() < 0.5:
            values, order = P.sort_p.bind(v, axis=axis, descending=reverse)
            self.add(values, True)
            self.add(order, True)
            return
        out = P.cumsum_p.bind(v, axis=axis, reverse=reverse)
        self.add(self.tame(scale(out, 0.1)) if v.type.dtype.is_floating_point else out)

    def convert(self) -> None:
        v = self.pick()
        if v is None:
            return
        targets: tuple[DType, ...] = (f32, f64, bf16, f16)
        if v in self.exact:
            targets += (i32, i64, bool_, f32)
        dtype = self.r.choice(targets)
        exact = v in self.exact
        self.add(P.convert_p.bind(v, dtype=dtype), exact)

    def select(self) -> None:
        x = self.pick()
        y = self.pick(lambda v: x is not None and v.type == x.type)
        c = self.pick(lambda v: x is not None and v.type.shape == x.type.shape and v in self.exact)
        if x is None or y is None or c is None:
            return
        if c.type.dtype is not bool_:
            c = P.gt_p.bind(c, full_like(c, 0))
        self.add(P.where_p.bind(c, x, y), x in self.exact and y in self.exact)

    def window(self) -> None:
        v = self.pick(lambda v: v.type.ndim == 2 and v.type.dtype is f32 and min(v.type.shape) >= 3)
        if v is None:
            return
        how = {"window": (2, 3), "stride": (1, 2), "padding": ((0, 1), (1, 1)), "dilation": (1, 1)}
        # which of two nearly equal values is the larger one decides the gradient of an extreme
        op = self.r.choice(("max", "sum", "min")) if v in self.exact else "sum"
        self.add(self.tame(P.reduce_window_p.bind(v, op=op, **how)))

    def conv(self) -> None:
        v = self.pick(
            lambda v: v.type.ndim in (3, 4) and v.type.dtype in (f32, f64) and v.type.size <= 5000
        )
        if v is None or min(v.type.shape) == 0:
            return
        rank, channels = v.type.ndim - 2, v.type.shape[1]
        groups = self.r.choice([g for g in (1, 1, 2, channels) if channels % g == 0])
        outs = groups * self.r.choice((1, 2, 3))
        kernel = tuple(self.r.choice((1, 2, 3)) for _ in range(rank))
        padding = tuple((self.r.choice((0, 1, 2)), self.r.choice((0, 1, -1))) for _ in range(rank))
        how = {"stride": tuple(self.r.choice((1, 1, 2)) for _ in range(rank)), "padding": padding,
               "lhs_dilation": tuple(self.r.choice((1, 1, 1, 2)) for _ in range(rank)),
               "rhs_dilation": tuple(self.r.choice((1, 1, 2)) for _ in range(rank))}  # fmt: skip
        shape = (outs, channels // groups, *kernel)
        ramp = P.iota_p.bind(shape=shape, dtype=v.type.dtype, axis=self.r.randrange(len(shape)))
        w = P.sin_p.bind(ramp + full_like(ramp, 1.0))
        out = P.conv_p.bind(v, w, groups=groups, **how)
        if 0 < out.type.size <= self.largest:
            self.add(self.tame(out + full_like(out, 0.1)) if self.r.random() < 0.6 else self.tame(out))

    def along(self) -> None:
        """Reads along sorted orders; running extremes; the largest few."""
        v = self.pick(lambda v: v.type.ndim > 0 and v in self.exact and v.type.dtype in (f32, f64, i32))
        if v is None:
            return
        axis = self.r.randrange(v.type.ndim)
        kind = self.r.choice(("take", "topk", "cummax", "put"))
        if kind == "cummax":
            self.add(P.cummax_p.bind(v, axis=axis, reverse=self.r.random() < 0.5), True)
            return
        _, order = P.sort_p.bind(v, axis=axis, descending=False)
        if kind == "take":
            self.add(P.take_along_p.bind(v, order, axis=axis), True)
        elif kind == "put":
            self.add(P.scatter_along_p.bind(v, order, v, axis=axis, mode=self.r.choice(("set", "add"))))
        else:
            k = self.r.randint(1, v.type.shape[axis])
            values, places = P.topk_p.bind(v, k=k, axis=axis, largest=self.r.random() < 0.5)
            self.add(values, True)
            self.add(places, True)

    def bits(self) -> None:
        v = self.pick(lambda v: v.type.dtype.is_integer and v in self.exact)
        if v is None:
            return
        three = full_like(v, 3)
        name = self.r.choice(("shl", "shr", "bit_xor", "div", "rem", "pow"))
        self.add(getattr(P, name + "_p").bind(v, three), True)
        self.add(P.lt_p.bind(v, three), True)

    def loop(self) -> None:
        """A scan whose step is a map."""
        v = self.pick(lambda v: v.type.ndim > 0 and v.type.dtype in (f32, f64))
        if v is None or self.r.random() < 0.5:
            return
        t = v.type.with_(shape=v.type.shape[1:])
        step = trace(lambda h, x: [P.tanh_p.bind(h + x), P.mul_p.bind(h, x)], t, t, name="step")
        start = P.full_p.bind(shape=t.shape, dtype=t.dtype, value=0.5)
        how = {"n_carry": 1, "length": v.type.shape[0], "reverse": self.r.random() < 0.5}
        last, ys = P.scan_p.bind(start, v, regions=(step,), **how)
        self.add(last)
        self.add(ys)

    def random(self) -> None:
        state = P.full_p.bind(shape=(2,), dtype=i64, value=self.r.randint(0, 1000))
        bits = P.random_bits_p.bind(state, shape=self.base)
        self.add(scale(P.convert_p.bind(P.shr_p.bind(bits, full_like(bits, 8)), dtype=f32), 2.0**-24), True)

    def source(self) -> None:
        if self.base:
            ramp = P.iota_p.bind(shape=self.base, dtype=f32, axis=self.r.randrange(len(self.base)))
            self.add(scale(ramp, 0.03125), True)
        else:
            self.add(P.full_p.bind(shape=self.base, dtype=f32, value=0.5), True)


def arguments(graph: Graph, seed: int) -> list[np.ndarray]:
    """Values of order one for the parameters."""
    r = np.random.default_rng(seed)
    out = []
    for p in graph.params:
        t = p.type
        if t.dtype is bool_:
            out.append(r.integers(0, 2, t.shape).astype(np.bool_))
        elif t.dtype.is_integer:
            out.append(r.integers(0, 9, t.shape).astype(t.dtype.np))
        else:
            out.append(np.asarray(r.normal(size=t.shape)).astype(t.dtype.np))
    return out


_TOLERANCES = {f64: 1e-9, f32: 2e-4, f16: 6e-3, bf16: 5e-2}


def tolerances(graph: Graph) -> dict[Value, float]:
    """How far each value may be off: by the coarsest float dtype that it was computed through."""
    out = {p: _TOLERANCES.get(p.type.dtype, 0.0) for p in graph.params}
    for op in graph.ops:
        found = max((out[v] for v in op.operands), default=0.0)
        for r in op.results:
            out[r] = max(found, _TOLERANCES.get(r.type.dtype, 0.0))
    return out


def agree(got: np.ndarray, want: np.ndarray, tolerance: float) -> bool:
    if got.dtype != want.dtype or got.shape != want.shape:
        return False
    if got.dtype.kind in "biu":
        return np.array_equal(got, want)
    return np.allclose(
        got.astype(np.float64), want.astype(np.float64), tolerance, tolerance, equal_nan=True
    )
