"""The matrix: every primitive, each check. The rows are in opinfo.py and opinfo_structural.py."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import opinfo_attention  # noqa: F401  (fills the table)
import opinfo_indexed  # noqa: F401
import opinfo_structural  # noqa: F401
from opinfo import ROWS, Case, Point
from weft.codegen.target import named_target
from weft.ir import prims  # noqa: F401
from weft.ir.graph import Graph, GraphBuilder, Value
from weft.ir.interp import run
from weft.ir.prims.base import (
    PRIMITIVES,
    GraphInterpreter,
    Kind,
    Primitive,
    interpreting,
    type_of,
)
from weft.ir.text import parse_graph, print_graph
from weft.ir.types import TensorType, dtype_of_numpy
from weft.ir.verify import verify
from weft.passes.autodiff import gradient_graph
from weft.runtime import compile_graph, compile_only

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::numpy.exceptions.ComplexWarning")
NAMES = sorted(ROWS)
DIFFERENTIABLE = [n for n in NAMES if any(True for _ in ROWS[n].points())]


@pytest.fixture(autouse=True)
def no_disk_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_CACHE", "0")


# --- comparing -----------------------------------------------------------------------------------


def ordered_bits(x: np.ndarray) -> np.ndarray:
    """The float's place among all floats of its dtype, as f64 (exact but for f64, where it need not be)."""
    bits = x.view(f"i{x.dtype.itemsize}").astype(np.int64)
    low = np.int64(-(2 ** (8 * x.dtype.itemsize - 1)))
    return np.where(bits < 0, low - bits, bits).astype(np.float64)


def differing(got: np.ndarray, want: np.ndarray, ulp: float, atol: float) -> np.ndarray:
    """Where (flat index) two arrays of one dtype differ by more than ``ulp`` and more than ``atol``."""
    g, w = np.ascontiguousarray(got).reshape(-1), np.ascontiguousarray(want).reshape(-1)
    dtype = dtype_of_numpy(g.dtype)
    same = g == w
    with np.errstate(all="ignore"):
        if dtype.is_complex:
            same |= np.abs(g - w) <= np.maximum(ulp * np.finfo(g.dtype).eps * np.abs(w), atol)
        elif dtype.is_floating_point:
            same = g.view(f"i{g.dtype.itemsize}") == w.view(f"i{w.dtype.itemsize}")  # zeros have signs
            if ulp or atol:
                same |= np.abs(ordered_bits(g) - ordered_bits(w)) <= ulp
                same |= np.abs(g.astype(np.float64) - w.astype(np.float64)) <= atol
    return np.flatnonzero(~(same | ((g != g) & (w != w))))


def assert_close(got: Any, want: Any, case: Any, ulp: float = 0, atol: float = 0) -> None:
    got, want = np.asarray(got), np.asarray(want)
    assert (got.dtype, got.shape) == (want.dtype, want.shape), (
        f"{case}: {got.dtype}{got.shape}, {want.dtype}{want.shape}"
    )
    bad = differing(got, want, ulp, atol)
    if bad.size:
        i = bad[0]
        inputs = [a.reshape(-1)[i] for a in getattr(case, "arrays", ()) if a.size == got.size]
        raise AssertionError(
            f"{case}: {bad.size} of {got.size} differ, first at {i}: got {got.reshape(-1)[i]!r},"
            f" want {want.reshape(-1)[i]!r}, from {inputs}"
        )


def tupled(out: Any) -> tuple[Any, ...]:
    return out if isinstance(out, tuple) else (out,)


# --- graphs of many cases ------------------------------------------------------------------------


def batch(prim: Primitive, cases: Sequence[Case | Point]) -> Graph:
    """One graph that applies the primitive to each case's operands."""
    b = GraphBuilder(prim.name)
    results: list[Value] = []
    for case in cases:
        operands = [b.param(type_of(a)) for a in case.arrays]
        results += b.add(prim, operands, case.attrs, case.regions)
    return b.finish(results)


def operands_of(cases: Iterable[Case | Point]) -> list[np.ndarray]:
    return [a for case in cases for a in case.arrays]


def groups(values: Sequence[Any], cases: Sequence[Case]) -> Iterable[tuple[Case, Sequence[Any]]]:
    """The values dealt out to the cases that they are results of."""
    at = 0
    for case in cases:
        yield case, values[at : at + len(case.want)]
        at += len(case.want)
    assert at == len(values)


def evaluated(prim: Primitive, case: Case | Point) -> tuple[np.ndarray, ...]:
    with np.errstate(all="ignore"):
        return prim.evaluate(case.arrays, prim.normalize_attrs(case.attrs), case.regions)


# --- the registry --------------------------------------------------------------------------------


def test_every_primitive_has_a_row() -> None:
    assert set(ROWS) == set(PRIMITIVES)


@pytest.mark.parametrize("name", sorted(PRIMITIVES))
def test_every_primitive_is_complete(name: str) -> None:
    """eval, a lowering (a scalar rule, a structural kind, or an explicit host tag), a gradient, dtypes."""
    prim = PRIMITIVES[name]
    assert callable(prim.eval) and callable(prim.infer)
    assert prim.dtypes, "no dtypes"
    if prim.kind is Kind.MAP:
        assert callable(prim.scalar) or prim.tags.get("host"), "neither a scalar rule nor a host tag"
    if prim.kind is Kind.RANDOM:
        assert callable(prim.scalar)
    assert callable(prim.vjp) != prim.nondifferentiable, (
        "a gradient rule, or nondifferentiable, and not both"
    )
    assert any(True for _ in ROWS[name].cases()), "no cases"
    if prim.vjp is not None and name not in ("while_loop", "kernel"):  # whose rules say why there is none
        assert name in DIFFERENTIABLE, "a gradient rule without points to check it at"


def test_an_incomplete_primitive_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    table = dict(PRIMITIVES)
    monkeypatch.setattr("weft.ir.prims.base.PRIMITIVES", table)
    bare = Primitive("bare", Kind.MAP, infer=lambda x: x, eval=np.exp)
    assert set(ROWS) != set(table)
    with pytest.raises(AssertionError):
        assert callable(bare.scalar) or bare.tags.get("host")
    with pytest.raises(AssertionError):
        assert callable(bare.vjp) != bare.nondifferentiable


@pytest.mark.parametrize("name", NAMES)
def test_cases_cover_the_dtypes(name: str) -> None:
    """Some case takes each dtype that the primitive declares for its first operand (or result)."""
    prim = PRIMITIVES[name]
    structural = {"cond", "scan", "host_call", "kernel", "conv", "topk"} | {n for n in NAMES if "window" in n}
    seen = {dtype_of_numpy(a.dtype) for c in ROWS[name].cases() for a in (*c.arrays[:1], *c.want[:1])}
    if name in structural:
        assert len(seen) >= 2 or name == "kernel"
    elif name != "while_loop":  # whose first operand is a counter
        assert set(prim.dtypes) <= seen


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_eval_against_numpy(name: str) -> None:
    prim = PRIMITIVES[name]
    for case in ROWS[name].cases():
        given = [a.copy() for a in case.arrays]
        out = evaluated(prim, case)
        assert len(out) == len(case.want), str(case)
        for got, want in zip(out, case.want, strict=True):
            assert_close(got, want, case, case.ulp, case.atol)
        for a, kept in zip(case.arrays, given, strict=True):
            assert_close(a, kept, case)  # operands are not written


@pytest.mark.parametrize("name", NAMES)
def test_interpreted_against_eval(name: str) -> None:
    """Through a graph, its text form and back; the types are those inferred."""
    prim, cases = PRIMITIVES[name], list(ROWS[name].cases())
    graph = verify(batch(prim, cases))
    again = verify(parse_graph(print_graph(graph)))
    assert print_graph(again) == print_graph(graph)
    for case, out in groups(run(again, operands_of(cases)), cases):
        for got, want in zip(out, evaluated(prim, case), strict=True):
            assert_close(got, want, case)


@pytest.mark.parametrize("name", NAMES)
def test_compiled_against_eval(name: str) -> None:
    prim, cases = PRIMITIVES[name], list(ROWS[name].cases())
    executable = compile_graph(batch(prim, cases), name=f"matrix_{name}")
    for case, out in groups(executable.call(operands_of(cases)), cases):
        for got, want in zip(out, evaluated(prim, case), strict=True):
            assert_close(got, want, case, case.drift, case.atol)


def hostless(prim: Primitive, case: Case) -> bool:
    """Whether compiled code must run the case without calling Python."""
    if prim.kind in (Kind.HOST, Kind.CONTROL) or prim.tags.get("host"):
        return False
    if not all(a.size for a in (*case.arrays, *case.want)):
        return False  # nothing to compute
    return not any(a.dtype.kind == "c" for a in (*case.arrays, *case.want))


@pytest.mark.parametrize("name", NAMES)
def test_compiled_code_is_native(name: str) -> None:
    """No primitive but the host ones, no dtype but the complex ones, no size but 0 goes back to numpy."""
    prim = PRIMITIVES[name]
    cases = [c for c in ROWS[name].cases() if hostless(prim, c)]
    if cases:
        executable = compile_graph(batch(prim, cases), name=f"native_{name}")
        hosts = [str(getattr(h, "why", h)) for h in executable.artifact.hosts]
        assert hosts == []


def by_signature(cases: Iterable[Case]) -> list[Case]:
    """One case per combination of dtypes and attributes."""
    found: dict[tuple[Any, ...], Case] = {}
    for case in cases:
        if case.arrays and case.arrays[0].size > 8:
            found.setdefault((*(a.dtype for a in case.arrays), str(case.attrs)), case)
    return list(found.values())


@pytest.mark.parametrize("target", ["haswell", "skylake-avx512"])
@pytest.mark.parametrize("name", [n for n in NAMES if PRIMITIVES[n].kind in (Kind.MAP, Kind.RANDOM)])
def test_code_calls_no_library(name: str, target: str) -> None:
    """On AVX2 and AVX-512 no instruction was replaced by a call of libm or of LLVM's helpers."""
    prim = PRIMITIVES[name]
    cases = by_signature(c for c in ROWS[name].cases() if hostless(prim, c))
    if prim.kind is Kind.MAP and not prim.tags.get("host"):
        assert cases
    asm = compile_only(batch(prim, cases), named_target(target)).asm()
    defined = set(re.findall(r"^([\w.$]+):", asm, re.M)) | {"weft_parallel_for", "weft_host"}
    called = {c.removesuffix("@PLT") for c in re.findall(r"\bcallq?\s+([\w.$@]+)", asm)}
    assert called <= defined


# --- gradients -----------------------------------------------------------------------------------


def varied(graph: Graph) -> list[int]:
    return [i for i, p in enumerate(graph.params) if p.type.dtype.is_inexact]


def inexact_results(graph: Graph) -> list[int]:
    return [i for i, r in enumerate(graph.results) if r.type.dtype.is_inexact]


def random_like(t: TensorType, r: np.random.Generator) -> np.ndarray:
    out = r.normal(size=t.shape) + (1j * r.normal(size=t.shape) if t.dtype.is_complex else 0)
    return np.asarray(out).astype(t.dtype.np)


def inner(
    graph: Graph, arrays: Sequence[np.ndarray], outputs: Sequence[int], cts: Sequence[np.ndarray]
) -> float:
    out = run(graph, arrays)
    return sum(float(np.sum((np.conj(ct) * out[o]).real)) for o, ct in zip(outputs, cts, strict=True))


def central(
    graph: Graph,
    arrays: list[np.ndarray],
    i: int,
    outputs: Sequence[int],
    cts: Sequence[np.ndarray],
    step: float = 1e-6,
) -> np.ndarray:
    """Central differences of the inner product by operand ``i``: d/dre + i d/dim for a complex one."""
    grad = np.zeros(arrays[i].shape, arrays[i].dtype)
    for j in np.ndindex(arrays[i].shape):
        for unit in (1, 1j) if grad.dtype.kind == "c" else (1,):
            values = []
            for sign in (1, -1):
                moved = [a.copy() for a in arrays]
                moved[i][j] += sign * step * unit
                values.append(inner(graph, moved, outputs, cts))
            grad[j] += unit * (values[0] - values[1]) / (2 * step)
    return grad


def check_gradient(graph: Graph, arrays: list[np.ndarray], order: int, tolerance: float, seed: int) -> None:
    wrt, outputs = varied(graph), inexact_results(graph)
    gradient = verify(gradient_graph(graph, wrt, outputs))
    r = np.random.default_rng(seed)
    cts = [random_like(graph.results[o].type, r) for o in outputs]
    found = run(gradient, [*arrays, *cts])
    for i, got in zip(wrt, found, strict=True):
        want = central(graph, arrays, i, outputs, cts)
        np.testing.assert_allclose(
            got, want, rtol=tolerance, atol=tolerance, err_msg=f"operand {i}, order {order}"
        )
    if order > 1:
        check_gradient(gradient, [*arrays, *cts], order - 1, 10 * tolerance, seed + 1)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradient_against_differences(name: str) -> None:
    """First and second derivatives, f64."""
    prim = PRIMITIVES[name]
    for point in ROWS[name].points():
        graph = verify(batch(prim, [point]))
        check_gradient(graph, [np.array(a) for a in point.arrays], point.order, 2e-6, 1)


def gradients(name: str) -> tuple[Graph, list[np.ndarray]]:
    """The gradient graph of all points of a row, and its arguments."""
    prim, points = PRIMITIVES[name], list(ROWS[name].points())
    graph = batch(prim, points)
    outputs = inexact_results(graph)
    r = np.random.default_rng(4)
    cts = [random_like(graph.results[o].type, r) for o in outputs]
    return verify(gradient_graph(graph, varied(graph), outputs)), [*operands_of(points), *cts]


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_compiled_gradient_against_eager(name: str) -> None:
    """The rules run at once on arrays, interpreted in a graph, and compiled."""
    graph, arguments = gradients(name)
    interpreted = run(graph, arguments)
    for got, want in zip(
        compile_graph(graph, name=f"gradient_{name}").call(arguments), interpreted, strict=True
    ):
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in DIFFERENTIABLE if PRIMITIVES[n].kind is not Kind.CONTROL])
def test_eager_gradient_against_graph(name: str) -> None:
    prim = PRIMITIVES[name]
    assert prim.vjp is not None
    for point in ROWS[name].points():
        graph = batch(prim, [point])
        outputs, wrt = inexact_results(graph), varied(graph)
        r = np.random.default_rng(9)
        cts = {o: random_like(graph.results[o].type, r) for o in outputs}
        out = evaluated(prim, point)
        attrs = prim.normalize_attrs(point.attrs)
        single = prim.n_results == 1 and len(out) == 1
        ct: Any = cts[0] if single else tuple(cts.get(i) for i in range(len(out)))
        with np.errstate(all="ignore"):
            eager = prim.vjp(ct, out[0] if single else out, *point.arrays, **attrs)
        want = run(gradient_graph(graph, wrt, outputs), [*point.arrays, *cts.values()])
        for i, w in zip(wrt, want, strict=True):
            np.testing.assert_allclose(eager[i], w, rtol=1e-12, atol=1e-13)


def rule_graph(prim: Primitive, case: Case | Point) -> tuple[Graph, dict[Value, str]]:
    """The rule on symbolic values, and which parameter stands for what (an operand's digit, o, or ct)."""
    b = GraphBuilder(f"{prim.name}_vjp")
    attrs = prim.normalize_attrs(case.attrs)
    types = prim.infer_types([type_of(a) for a in case.arrays], attrs, case.regions)
    operands = [b.param(type_of(a)) for a in case.arrays]
    outs, cts = [b.param(t) for t in types], [b.param(t) for t in types]
    if prim.n_results > 1 or len(types) > 1:
        ct: Any = tuple(c if t.dtype.is_inexact else None for c, t in zip(cts, types, strict=True))
        out: Any = tuple(outs)
    else:
        ct, out = cts[0], outs[0]
    assert prim.vjp is not None
    with interpreting(GraphInterpreter(b)):
        grads = prim.vjp(ct, out, *operands, **attrs)
    names = (
        {v: str(i) for i, v in enumerate(operands)} | dict.fromkeys(outs, "o") | dict.fromkeys(cts, "ct")
    )
    for g, operand in zip(grads, operands, strict=True):
        assert g is None or g.type == operand.type, (
            f"{case}: cotangent {g.type} of an operand {operand.type}"
        )
    return b.finish([g for g in grads if g is not None]), names


def read_by(graph: Graph, names: dict[Value, str]) -> set[str]:
    """What the results of a rule depend on by value."""
    needed, found = list(graph.results), set()
    producers, seen = graph.producers(), set()
    while needed:
        v = needed.pop()
        if v in seen:
            continue
        seen.add(v)
        if v in names:
            found.add(names[v])
        elif v in producers:
            needed += producers[v].operands
    return found - {"ct"}


def with_rules() -> list[str]:
    return [n for n in DIFFERENTIABLE if PRIMITIVES[n].kind not in (Kind.CONTROL, Kind.HOST)]


@pytest.mark.parametrize("name", with_rules())
def test_needs_is_truthful(name: str) -> None:
    """What the rule reads is declared; what is declared is read, at one point or another."""
    prim = PRIMITIVES[name]
    read: set[str] = set()
    for point in ROWS[name].points():
        read |= read_by(*rule_graph(prim, point))
    if prim.needs == "*":
        return
    declared = set(prim.needs)
    assert read == declared, f"reads {sorted(read)}, declares {sorted(declared)}"


@pytest.mark.parametrize("name", with_rules())
def test_rules_keep_the_dtype(name: str) -> None:
    """In every float dtype, half precision too, each cotangent has the type of its operand."""
    prim = PRIMITIVES[name]
    checked = 0
    for case in ROWS[name].cases():
        if all(dtype_of_numpy(w.dtype).is_inexact for w in case.want[:1]):
            graph, _ = rule_graph(prim, case)
            checked += len(graph.results) >= 0
    assert checked
