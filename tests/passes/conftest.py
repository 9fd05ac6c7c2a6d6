"""Random graphs for the tests of passes: small shapes, every structural kind, special values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from weft.ir import prims as P
from weft.ir.graph import Graph, GraphBuilder, Value
from weft.ir.interp import run
from weft.ir.prims.base import PRIMITIVES
from weft.ir.types import TensorType, bool_, f32, f64, i32, i64

CONSTANTS = (0.0, -0.0, 1.0, -1.0, 2.0, 0.5, 3.0, float("inf"), float("nan"))
EXACT_UNARY = ("neg", "abs", "floor", "sign", "rint")
SMOOTH_UNARY = ("neg", "exp", "tanh", "sin", "sqrt", "abs", "log1p")
EXACT_BINARY = ("add", "sub", "maximum", "minimum")
SMOOTH_BINARY = ("add", "sub", "mul", "div", "maximum")


class GraphMaker:
    """Makes a random graph. ``exact``: only operations without rounding, so that results compare to the bit;
    otherwise only continuous ones, so that they compare within a tolerance.
    """

    def __init__(self, seed: int, exact: bool, n_ops: int = 18) -> None:
        self.rng = np.random.default_rng(seed)
        self.exact = exact
        self.b = GraphBuilder()
        self.values: list[Value] = []
        self.products = 0
        for _ in range(self.pick((2, 3, 4))):
            self.values.append(self.b.param(TensorType(self.shape(), self.pick((f64, f64, f32, i64)))))
        steps = [getattr(self, name) for name in dir(self) if name.startswith("make_")]
        while len(self.b.ops) < n_ops:
            self.pick(steps)()
        results = [self.pick(self.values) for _ in range(self.pick((1, 2, 3)))]
        self.graph = self.b.finish([*results, self.values[-1]])

    def pick(self, choices: Sequence[Any]) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def shape(self) -> tuple[int, ...]:
        return tuple(int(self.pick((1, 2, 3, 4))) for _ in range(self.pick((0, 1, 2, 2, 3))))

    def value(self, accept: Callable[[TensorType], bool] = lambda t: True) -> Value | None:
        """A random earlier value, the recent ones more often."""
        fitting = [v for v in self.values if accept(v.type) and v.type.size <= 400]
        return (
            self.pick(fitting[-4:] if fitting and self.rng.random() < 0.6 else fitting) if fitting else None
        )

    def add(self, name: str, *operands: Value, **attrs: Any) -> Value:
        out = self.b.add(PRIMITIVES[name], operands, attrs, loc=f"user.py:{len(self.b.ops)}")
        self.values.append(out[0])
        return out[0]

    def full(self, t: TensorType, value: Any) -> Value:
        return self.b.add(P.full_p, (), {"shape": t.shape, "dtype": t.dtype, "value": value})[0]

    def partner(self, x: Value) -> Value:
        """A value of the same type: another one, a constant, a spread scalar."""
        t = x.type
        kind = self.rng.random()
        if kind < 0.4:
            return self.value(lambda other: other == t) or x
        number = self.pick(CONSTANTS) if t.dtype.is_floating_point else int(self.pick((0, 1, -1, 2, 5)))
        number = bool(number) if t.dtype is bool_ else number
        if kind < 0.8:
            return self.full(t, number)
        scalar = self.value(lambda other: other.shape == () and other.dtype is t.dtype)
        scalar = scalar or self.full(t.with_(shape=()), number)
        return self.b.add(P.broadcast_p, (scalar,), {"shape": t.shape, "axes": ()})[0]

    def make_unary(self) -> None:
        x = self.value(lambda t: t.dtype is not bool_ and (self.exact or t.dtype.is_floating_point))
        if x is not None:
            self.add(self.pick(EXACT_UNARY if self.exact else SMOOTH_UNARY), x)

    make_unary_again = make_unary

    def make_binary(self) -> None:
        x = self.value(lambda t: t.dtype is not bool_ and (self.exact or t.dtype.is_floating_point))
        if x is not None:
            pair = [x, self.partner(x)]
            self.add(self.pick(EXACT_BINARY if self.exact else SMOOTH_BINARY), *pair[:: self.pick((1, -1))])

    make_binary_again = make_binary

    def make_mul(self) -> None:
        """At most three true products: exact results stay exact."""
        x = self.value(lambda t: t.dtype is not bool_)
        if x is None or (self.exact and self.products >= 3):
            return
        self.products += 1
        self.add("mul", x, self.partner(x))

    def make_scaled(self) -> None:
        x = self.value(lambda t: t.dtype.is_floating_point)
        if x is not None:
            self.add(self.pick(("mul", "div")), x, self.full(x.type, self.pick((1.0, -1.0, 2.0, 0.5, -4.0))))

    def make_power(self) -> None:
        x = self.value(lambda t: t.dtype.is_floating_point)
        if x is not None and self.products < 3:
            self.products += 1
            self.add(
                "pow", x, self.full(x.type, self.pick((0.0, 1.0, 2.0) if self.exact else (1.0, 2.0, 3.0)))
            )

    def make_compare(self) -> None:
        x = self.value()
        if x is not None and self.exact:
            self.add(self.pick(("eq", "ne", "lt", "le", "gt", "ge")), x, self.partner(x))

    def make_logic(self) -> None:
        x = self.value(lambda t: t.dtype is bool_)
        if x is not None:
            self.add(self.pick(("bit_and", "bit_or", "bit_xor")), x, self.partner(x))
            self.add("bit_not", self.value(lambda t: t.dtype is bool_))  # type: ignore[arg-type]

    def make_where(self) -> None:
        x = self.value()
        if x is None or not self.exact:
            return
        t = x.type.with_(dtype=bool_)
        c = self.value(lambda other: other == t) or self.add("ne", x, self.partner(x))
        self.add("where", c, *(x, self.partner(x))[:: self.pick((1, -1))])

    def make_convert(self) -> None:
        x = self.value(lambda t: t.dtype.is_floating_point or self.exact)
        if x is not None:
            self.add("convert", x, dtype=self.pick((f64, f32, i64, i32, bool_) if self.exact else (f64, f32)))

    def make_reshape(self) -> None:
        x = self.value()
        if x is None:
            return
        long = [d for d in x.type.shape if d != 1]
        shape = self.pick(
            ([x.type.size], long, [1, *long], [*long, 1], [*x.type.shape[:1], 1, *x.type.shape[1:]])
        )
        self.add("reshape", x, shape=tuple(shape))

    def make_permute(self) -> None:
        x = self.value(lambda t: t.ndim > 1)
        if x is not None:
            self.add("permute", x, perm=tuple(int(p) for p in self.rng.permutation(x.type.ndim)))

    make_permute_again = make_permute

    def make_broadcast(self) -> None:
        x = self.value(lambda t: t.ndim < 3)
        if x is None:
            return
        n = x.type.ndim + self.pick((0, 1, 2))
        axes = tuple(sorted(int(a) for a in self.rng.choice(n, x.type.ndim, replace=False)))
        shape = [int(self.pick((1, 2, 4, 3))) for _ in range(n)]
        for d, a in zip(x.type.shape, axes, strict=True):
            shape[a] = d if d != 1 else shape[a]
        self.add("broadcast", x, shape=tuple(shape), axes=axes)

    make_broadcast_again = make_broadcast

    def make_slice(self) -> None:
        x = self.value()
        if x is None:
            return
        start = tuple(
            int(self.rng.integers(0, d + 1)) if self.rng.random() < 0.3 else 0 for d in x.type.shape
        )
        stop = tuple(int(self.rng.integers(a, d + 1)) if self.rng.random() < 0.3 else d
                     for a, d in zip(start, x.type.shape, strict=True))  # fmt: skip
        self.add("slice", x, start=start, stop=stop, step=tuple(int(self.pick((1, 1, 2))) for _ in start))

    make_slice_again = make_slice

    def make_pad(self) -> None:
        x = self.value()
        if x is None:
            return
        interior = tuple(int(self.pick((0, 0, 1))) for _ in x.type.shape)
        sizes = [d and (d - 1) * (m + 1) + 1 for d, m in zip(x.type.shape, interior, strict=True)]
        lo = tuple(int(self.rng.integers(-min(1, n), 3)) for n in sizes)
        hi = tuple(int(self.rng.integers(-max(0, min(1, n + a)), 3)) for n, a in zip(sizes, lo, strict=True))
        value = self.full(x.type.with_(shape=()), x.type.dtype.np.type(self.pick((0, 0, 1))).item())
        self.add("pad", x, value, lo=lo, hi=hi, interior=interior)

    def make_flip(self) -> None:
        x = self.value(lambda t: t.ndim > 0)
        if x is not None:
            axes = tuple(a for a in range(x.type.ndim) if self.rng.random() < 0.5)
            self.add("flip", x, axes=axes)

    def make_concatenate(self) -> None:
        x = self.value(lambda t: t.ndim > 0)
        if x is not None:
            self.add("concatenate", x, self.partner(x), axis=int(self.rng.integers(x.type.ndim)))

    def make_update(self) -> None:
        x = self.value(lambda t: t.ndim > 0 and t.size > 0)
        if x is None:
            return
        start = tuple(int(self.rng.integers(0, d)) for d in x.type.shape)
        part = self.add("slice", x, start=start, stop=x.type.shape, step=(1,) * x.type.ndim)
        out = self.add("update_slice", x, self.partner(part), start=start, step=(1,) * x.type.ndim)
        self.add("slice", out, start=start, stop=x.type.shape, step=(1,) * x.type.ndim)

    def make_sum(self) -> None:
        x = self.value(lambda t: t.dtype is not bool_ and (self.exact or t.dtype.is_floating_point))
        if x is not None:
            self.add("sum", x, axes=self.axes(x))

    make_sum_again = make_sum

    def axes(self, x: Value) -> tuple[int, ...]:
        return tuple(a for a in range(x.type.ndim) if self.rng.random() < 0.6)

    def make_extreme(self) -> None:
        x = self.value(lambda t: t.size > 0)
        if x is not None:
            self.add(self.pick(("reduce_max", "reduce_min")), x, axes=self.axes(x))

    def make_any(self) -> None:
        x = self.value(lambda t: t.dtype is bool_)
        if x is not None:
            self.add(self.pick(("any", "all")), x, axes=self.axes(x))

    def make_argmax(self) -> None:
        x = self.value(lambda t: t.ndim > 0 and t.size > 0)
        if x is not None and self.exact:
            self.add("argmax", x, axis=int(self.rng.integers(x.type.ndim)))

    def make_cumsum(self) -> None:
        x = self.value(lambda t: t.ndim > 0 and t.dtype.is_floating_point)
        if x is not None:
            self.add("cumsum", x, axis=int(self.rng.integers(x.type.ndim)))

    def make_topk(self) -> None:
        x = self.value(lambda t: t.ndim > 0 and t.size > 0)
        if x is not None and self.exact:
            axis = int(self.rng.integers(x.type.ndim))
            self.add("topk", x, axis=axis, k=int(self.rng.integers(x.type.shape[axis] + 1)))

    def make_dot(self) -> None:
        x = self.value(lambda t: 0 < t.ndim < 4 and t.dtype is f64)
        if x is None or self.products >= 3:
            return
        self.products += 1
        axis = int(self.rng.integers(x.type.ndim))
        y = self.value(lambda t: t.dtype is f64 and x.type.shape[axis] in t.shape and t.size < 50) or x
        other = y.type.shape.index(x.type.shape[axis])
        batched = self.rng.random() < 0.3
        pair = ((axis,), (other,))
        attrs = {"contract": ((), ()), "batch": pair} if batched else {"contract": pair, "batch": ((), ())}
        out = self.add("dot_general", x, y, **attrs)
        if self.rng.random() < 0.5:
            n = out.type.ndim
            free = x.type.ndim - 1
            lead = int(batched)
            perm = (*range(lead), *range(lead + free, n), *range(lead, lead + free))
            self.add("permute", out, perm=perm)

    def make_gather(self) -> None:
        x = self.value(lambda t: t.ndim > 0 and t.size > 0)
        if x is None:
            return
        axis = int(self.rng.integers(x.type.ndim))
        count = int(self.pick((1, 2, 0)))
        index = self.rng.integers(0, x.type.shape[axis], (count, 1))
        idx = self.b.add(P.constant_p, (), {"value": index})[0]
        self.add("gather", x, idx, axes=(axis,))

    def make_copy(self) -> None:
        x = self.value()
        if x is not None:
            self.add("copy", x)

    def arguments(self) -> list[np.ndarray]:
        out = []
        for p in self.graph.params:
            if self.exact or not p.type.dtype.is_floating_point:
                a = self.rng.integers(-3, 4, p.type.shape).astype(p.type.dtype.np)
            else:
                a = self.rng.normal(size=p.type.shape).astype(p.type.dtype.np)
            if p.type.dtype.is_floating_point and a.size and self.rng.random() < 0.7:
                flat = a.reshape(-1)
                flat[int(self.rng.integers(a.size))] = self.pick((np.nan, np.inf, -np.inf, -0.0, 0.0))
            out.append(a)
        return out


def check_same(graph: Graph, other: Graph, arguments: list[np.ndarray], exact: bool) -> None:
    """Both graphs give the same results: to the bit, or within rounding."""
    with np.errstate(all="ignore"):
        wanted, got = run(graph, arguments), run(other, arguments)
    assert [v.type for v in graph.results] == [v.type for v in other.results]
    signs = exact and not any(op.prim.name in ("sum", "dot_general", "cumsum") for op in graph.ops)
    for a, b in zip(wanted, got, strict=True):
        if a.dtype.kind == "V":  # bf16: numpy's comparisons do not know its NaN
            a, b = a.astype(np.float32), b.astype(np.float32)
        if a.dtype.kind == "f" and not exact:
            tolerance = 1e-4 if any(v.type.dtype is f32 for op in graph.ops for v in op.results) else 1e-9
            np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance)
        else:
            np.testing.assert_array_equal(b, a)
        if a.dtype.kind == "f" and signs:
            ok = ~np.isnan(a)
            np.testing.assert_array_equal(np.signbit(b[ok]), np.signbit(a[ok]))


@pytest.fixture
def random_graph() -> Callable[..., GraphMaker]:
    return GraphMaker


@pytest.fixture
def same() -> Callable[..., None]:
    return check_same
