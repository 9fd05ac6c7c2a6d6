"""The memory plan, carried out in numpy on poisoned memory, gives what the interpreter gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from weft.ir import prims as P
from weft.ir.graph import Graph, Op, Value
from weft.ir.interp import run
from weft.ir.prims.base import Kind, trace
from weft.ir.types import TensorType, f32, f64, i64
from weft.passes.plan import ALIGN, Place, Plan, is_constant, is_free_view, plan_memory

T = TensorType((8,), f32)
POISON = 0xA5


class Memory:
    """Parameters, results and an arena of raw bytes, and the views on them that a plan asks for."""

    def __init__(self, plan: Plan, arrays: Sequence[np.ndarray]) -> None:
        self.plan = plan
        self.params = [np.array(a, order="C") for a in arrays]
        self.results = [np.full(r.type.nbytes, POISON, np.uint8) for r in plan.graph.results]
        self.arena = np.full(plan.arena_bytes, POISON, np.uint8)
        self.constants = [np.asarray(op.attrs["value"]) for op in plan.graph.ops if is_constant(op)]

    def raw(self, place: Place, nbytes: int) -> np.ndarray:
        if place.kind == "arena":
            assert place.index % ALIGN == 0 and place.index + nbytes <= len(self.arena)
            return self.arena[place.index : place.index + nbytes]
        bases = {"param": self.params, "result": self.results, "const": self.constants}[place.kind]
        return np.atleast_1d(bases[place.index]).reshape(-1).view(np.uint8)

    def read(self, v: Value) -> np.ndarray:
        raw = self.raw(self.plan.places[v], v.type.nbytes)
        return raw.view(v.type.dtype.np).reshape(v.type.shape)


def simulate(plan: Plan, arrays: Sequence[np.ndarray], scratch: Mapping[int, int]) -> list[np.ndarray]:
    """Run every operation on the places of its values; its scratch memory is overwritten before."""
    m = Memory(plan, arrays)
    for i, op in enumerate(plan.graph.ops):
        if is_free_view(op) or is_constant(op):
            continue
        for v in op.operands:
            if v not in plan.graph.params:
                assert not np.may_share_memory(m.read(v), _scratch(m, plan, scratch, i))
        _scratch(m, plan, scratch, i)[...] = POISON
        out = [np.array(o) for o in op.prim.evaluate([m.read(v) for v in op.operands], op.attrs, op.regions)]
        for r, value in zip(op.results, out, strict=True):
            m.read(r)[...] = value
    for c in plan.copies:
        m.raw(c.target, c.nbytes)[...] = m.raw(c.source, c.nbytes)
    return [
        m.params[plan.donated[i]]
        if i in plan.donated
        else m.results[i].view(r.type.dtype.np).reshape(r.type.shape)
        for i, r in enumerate(plan.graph.results)
    ]


def _scratch(m: Memory, plan: Plan, scratch: Mapping[int, int], i: int) -> np.ndarray:
    return m.arena[plan.scratch[i] : plan.scratch[i] + scratch[i]] if i in plan.scratch else m.arena[:0]


def check(graph: Graph, donate: Mapping[int, int] | None = None, scratch: Mapping[int, int] | None = None,
          inplace: Mapping[int, set[tuple[int, int]]] | None = None, seed: int = 0) -> Plan:  # fmt: skip
    rng = np.random.default_rng(seed)
    arrays = [np.asarray(rng.integers(-4, 5, p.type.shape)).astype(p.type.dtype.np) for p in graph.params]
    want = [np.array(w) for w in run(graph, [a.copy() for a in arrays])]
    plan = plan_memory(graph, donate, scratch, inplace)
    got = simulate(plan, arrays, scratch or {})
    for g, w in zip(got, want, strict=True):
        np.testing.assert_array_equal(g, w)
    return plan


def kernel(fn, *xs):
    """``fn`` on these values as one kernel."""
    region = trace(fn, *(x.type for x in xs))
    return P.kernel_p.bind(*xs, form="none", name="k", regions=(region,))


def everything_inplace(graph: Graph) -> dict[int, set[tuple[int, int]]]:
    """All pairs of equal types of kernels: legal in the simulation, which reads before it writes."""

    def pairs(op: Op) -> set[tuple[int, int]]:
        both = [(k, j) for k in range(len(op.operands)) for j in range(len(op.results))]
        return {(k, j) for k, j in both if op.operands[k].type == op.results[j].type}

    return {i: pairs(op) for i, op in enumerate(graph.ops) if op.prim.kind is Kind.KERNEL}


def chain(n: int) -> Graph:
    def fn(x, y):
        for _ in range(n):
            x = kernel(lambda a, b: (a + b) * b, x, y)
        return x + y

    return trace(fn, T, T)


def test_a_chain_uses_two_buffers():
    plan = check(chain(10))
    assert plan.arena_bytes == 2 * ALIGN and plan.temporary_bytes == 10 * T.nbytes


def test_a_chain_in_place_uses_one_buffer():
    g = chain(10)
    plan = check(g, inplace=everything_inplace(g))
    assert plan.arena_bytes == ALIGN and len(plan.inplace) == 9


def test_in_place_not_while_the_operand_is_needed():
    def fn(x):
        a = kernel(lambda v: v + v, x)
        b = kernel(lambda v: v * v, a)
        return kernel(lambda u, v: u + v, a, b) + a

    g = trace(fn, T)
    plan = check(g, inplace=everything_inplace(g))
    assert list(plan.inplace.values()) == [g.ops[1].result]


def test_in_place_needs_every_position_of_the_operand():
    def fn(x):
        a = kernel(lambda v: v + v, x)
        return kernel(lambda u, v: u * v, a, a) + x

    g = trace(fn, T)
    assert not check(g, inplace={1: {(0, 0)}}).inplace
    assert check(g, inplace={1: {(0, 0), (1, 0)}}).inplace


def test_two_results_do_not_take_the_same_operand():
    def fn(x):
        a = kernel(lambda v: v + v, x)
        b, c = kernel(lambda v: (v * v, v - v), a)
        return b + c

    g = trace(fn, T)
    plan = check(g, inplace=everything_inplace(g))
    assert len(plan.inplace) == 1


def test_views_share_memory_and_keep_it_alive():
    def fn(x):
        a = x + x
        v = P.reshape_p.bind(a, shape=(2, 4))
        b = x * x
        w = P.reshape_p.bind(v, shape=(8,))
        return b - x, w * b

    plan = check(trace(fn, T))
    assert plan.arena_bytes == 2 * ALIGN


def test_results_are_written_in_place_of_an_arena():
    assert check(trace(lambda x: (x + x, (x + x) * x), T)).arena_bytes == ALIGN


def test_results_that_share_are_copied():
    def fn(x, y):
        s = x + y
        return x, s, P.reshape_p.bind(s, shape=(4, 2)), s, x, P.constant_p.bind(value=np.array(3.0))

    plan = check(trace(fn, T, T))
    assert len(plan.copies) == 5


def test_donation_straight_into_the_parameter():
    g = trace(lambda p, d: kernel(lambda a, b: a - b, p, d), T, T)
    plan = check(g, {0: 0}, inplace=everything_inplace(g))
    assert plan.places[g.results[0]] == Place("param", 0)
    assert not plan.copies and not plan.arena_bytes


def test_donation_through_a_temporary_where_the_kernel_may_not_overwrite():
    g = trace(lambda p, d: kernel(lambda a, b: a - b, p, d), T, T)
    plan = check(g, {0: 0})
    assert plan.places[g.results[0]].kind == "arena" and len(plan.copies) == 1


def test_donation_where_the_old_value_is_read_later():
    g = trace(lambda p, d: (p - d, (p - d) * d + p), T, T)
    plan = check(g, {0: 0})
    assert plan.places[g.results[0]].kind == "arena"


def test_donation_after_the_last_read_is_straight():
    g = trace(lambda p, d: (p * p + d) * d, T, T)
    plan = check(g, {0: 0})
    assert plan.places[g.results[0]] == Place("param", 0)


def test_donation_of_a_swap():
    check(trace(lambda a, b: (b, a), T, T), {0: 0, 1: 1})
    check(trace(lambda a, b, c: (b, c, a), T, T, T), {0: 0, 1: 1, 2: 2})
    check(trace(lambda a, b: (b, a, a, b + a), T, T), {0: 0, 1: 1})
    assert not check(trace(lambda a, b: (a, b + a), T, T), {0: 0}).copies


def test_donation_of_one_value_twice_and_of_a_view():
    def fn(a, b):
        s = a + b
        return s, s, P.reshape_p.bind(s, shape=(2, 4))

    check(trace(fn, T, T), {0: 0, 1: 1})
    check(trace(fn, T, T), {1: 0})


@pytest.mark.parametrize(("donate", "message"), [
    ({0: 5}, "no param 5"), ({3: 0}, "no result 3"), ({1: 0}, "result 1 is f64"),
    ({0: 0, 2: 0}, "two results"),
])  # fmt: skip
def test_donation_is_checked(donate, message):
    g = trace(lambda a, b: (a + a, b + b, a), T, TensorType((8,), f64))
    with pytest.raises(ValueError, match=message):
        plan_memory(g, donate)


def test_scratch_overlaps_nothing_that_lives():
    def fn(x):
        a = x + x
        b = a * x
        return b - a

    g = trace(fn, T)
    plan = check(g, scratch={1: 1000, 2: 64})
    assert plan.arena_bytes >= 2 * ALIGN + 1000


def test_text():
    text = str(check(chain(2)))
    assert text.splitlines()[0] == "arena 128 bytes, temporaries 64 bytes"
    assert "at arena+0 live 0-1" in text and "at result 0" in text


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs(seed):
    rng = np.random.default_rng(seed)
    types = [TensorType(s, d) for s in [(8,), (2, 4), (3,), (0,), ()] for d in (f32, i64)]

    def fn(*params):
        values = list(params)
        for _ in range(rng.integers(3, 25)):
            x = values[rng.integers(len(values))]
            same = [v for v in values if v.type == x.type]
            y = same[rng.integers(len(same))]
            choice = rng.integers(5)
            if choice == 0 and x.type.size == 8:
                values.append(P.reshape_p.bind(x, shape=(2, 4) if x.type.ndim == 1 else (8,)))
            elif choice == 1:
                values.extend(kernel(lambda a, b: (a + b, a * b), x, y))
            elif choice == 2:
                values.append(P.constant_p.bind(value=np.ones(x.type.shape, x.type.dtype.np)))
            else:
                values.append(kernel(lambda a, b: (a - b) * b, x, y))
        return [values[k] for k in rng.integers(0, len(values), rng.integers(1, 8))]

    g = trace(fn, *(types[k] for k in rng.integers(0, len(types), 5)))
    donate: dict[int, int] = {}
    for i, r in enumerate(g.results):
        fits = [j for j, p in enumerate(g.params) if p.type == r.type and j not in donate.values()]
        if fits and rng.integers(2):
            donate[i] = fits[0]
    scratch = {i: int(rng.integers(1, 300)) for i in range(len(g.ops)) if rng.integers(3) == 0}
    check(g, donate, scratch, everything_inplace(g) if seed % 2 else None, seed)
