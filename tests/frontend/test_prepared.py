"""Plans of library functions on small operands: what the function itself gives, at every call."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import weft
from weft import composite, prepared
from weft.ir.calls import as_function
from weft.ir.graph import GraphBuilder
from weft.ir.prims.base import PRIMITIVES, GraphInterpreter, Kind, interpreting
from weft.ir.types import CPU, TensorType, dtype_of_numpy
from weft.runtime import stats

sys.path.insert(0, str(Path(__file__).parent.parent))

import opinfo_indexed  # noqa: F401  (fills the table)
import opinfo_structural  # noqa: F401
from opinfo import ROWS, Case

INF, NAN = float("inf"), float("nan")

# Functions of float matrices x, y of one shape, a mask m and indices i.
FLOATS: dict[str, Callable[..., Any]] = {
    "add alpha": lambda x, y, m, i: weft.add(x, y, alpha=0.5),
    "div floor": lambda x, y, m, i: weft.div(x, y, rounding_mode="floor"),
    "remainder": lambda x, y, m, i: x % y,
    "floor divide": lambda x, y, m, i: x // 2,
    "pow": lambda x, y, m, i: weft.pow(x.abs(), y),
    "reciprocal": lambda x, y, m, i: x.reciprocal(),
    "sign": lambda x, y, m, i: x.sign(),
    "round": lambda x, y, m, i: x.round(decimals=1),
    "isfinite": lambda x, y, m, i: x.isfinite(),
    "isnan": lambda x, y, m, i: x.isnan(),
    "signbit": lambda x, y, m, i: weft.signbit(x),
    "hypot": lambda x, y, m, i: weft.hypot(x, y),
    "xlogy": lambda x, y, m, i: weft.xlogy(x, y.abs()),
    "logaddexp": lambda x, y, m, i: weft.logaddexp(x, y),
    "lerp": lambda x, y, m, i: weft.lerp(x, y, 0.25),
    "addcmul": lambda x, y, m, i: weft.addcmul(x, y, y, value=0.5),
    "isclose": lambda x, y, m, i: weft.isclose(x, y, equal_nan=True),
    "where": lambda x, y, m, i: weft.where(m, x, y),
    "where number": lambda x, y, m, i: weft.where(m, x, -0.0),
    "clamp": lambda x, y, m, i: x.clamp(-1, 1),
    "clamp zero": lambda x, y, m, i: x.clamp(min=-0.0),
    "clamp tensors": lambda x, y, m, i: x.clamp(max=y),
    "nan_to_num": lambda x, y, m, i: x.nan_to_num(),
    "masked_fill": lambda x, y, m, i: x.masked_fill(m, 7),
    "sum": lambda x, y, m, i: x.sum(),
    "sum dim": lambda x, y, m, i: x.sum(dim=1, keepdim=True),
    "sum dims": lambda x, y, m, i: x.sum((0, -1)),
    "sum as": lambda x, y, m, i: x.sum(0, dtype=weft.float64),
    "prod": lambda x, y, m, i: x.prod(1),
    "mean": lambda x, y, m, i: x.mean(-1),
    "var": lambda x, y, m, i: x.var(1),
    "std": lambda x, y, m, i: x.std(),
    "var_mean": lambda x, y, m, i: weft.var_mean(x, 0),
    "norm": lambda x, y, m, i: x.norm(),
    "logsumexp": lambda x, y, m, i: x.logsumexp(1),
    "amax": lambda x, y, m, i: x.amax(1),
    "max": lambda x, y, m, i: x.max(),
    "max dim": lambda x, y, m, i: x.max(1),
    "min dim": lambda x, y, m, i: x.min(dim=0, keepdim=True),
    "argmax": lambda x, y, m, i: x.argmax(),
    "argmin": lambda x, y, m, i: x.argmin(1, keepdim=True),
    "aminmax": lambda x, y, m, i: x.aminmax(dim=1),
    "any": lambda x, y, m, i: x.any(1),
    "count_nonzero": lambda x, y, m, i: x.count_nonzero(),
    "cumsum": lambda x, y, m, i: x.cumsum(1),
    "cummax": lambda x, y, m, i: x.cummax(0),
    "diff": lambda x, y, m, i: x.diff(),
    "cat": lambda x, y, m, i: weft.cat([x, y], 1),
    "cat mixed": lambda x, y, m, i: weft.cat((x, y.double())),
    "cat one": lambda x, y, m, i: weft.cat([x]),
    "stack": lambda x, y, m, i: weft.stack([x, y], -1),
    "hstack": lambda x, y, m, i: weft.hstack([x, y]),
    "flip": lambda x, y, m, i: x.flip(0),
    "roll": lambda x, y, m, i: x.roll(1, 0),
    "repeat": lambda x, y, m, i: x.repeat(2, 1),
    "repeat once": lambda x, y, m, i: x.repeat(1, 1),
    "tile": lambda x, y, m, i: x.tile((2,)),
    "repeat_interleave": lambda x, y, m, i: x.repeat_interleave(2, 1),
    "tril": lambda x, y, m, i: x.tril(),
    "triu": lambda x, y, m, i: x.triu(1),
    "index_select": lambda x, y, m, i: x.index_select(0, i),
    "take": lambda x, y, m, i: x.take(i - 1),
    "gather": lambda x, y, m, i: x.gather(0, i.reshape(1, -1)),
    "scatter_add": lambda x, y, m, i: x.scatter_add(0, i.reshape(1, -1), y),
    "index_add": lambda x, y, m, i: x.index_add(0, i[:1], y[:1]),
    "matmul": lambda x, y, m, i: x @ y.t(),
    "mv": lambda x, y, m, i: x @ y[0],
    "dot": lambda x, y, m, i: x[0] @ y[0],
    "bmm": lambda x, y, m, i: weft.bmm(x.unsqueeze(0), y.t().unsqueeze(0)),
    "outer": lambda x, y, m, i: weft.outer(x[0], y[1]),
    "addmm": lambda x, y, m, i: weft.addmm(x[:, :1], x, y.t(), beta=0.5),
    "sort": lambda x, y, m, i: x.sort(1, descending=True),
    "topk": lambda x, y, m, i: x.topk(2, 1),
    "mixed": lambda x, y, m, i: x + y.double(),
    "bounds": lambda x, y, m, i: x.index_select(0, i + 5),
    "negative": lambda x, y, m, i: x.index_select(0, i - 5),
    "shapes": lambda x, y, m, i: weft.cat([x, y[0]]),
}
DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "bool", "complex64")


def operands(dtype: str) -> tuple[Any, ...]:
    x = weft.tensor([[1.5, -0.0, NAN], [INF, -2.5, 3.0]])
    y = weft.tensor([[0.5, -3.0, 2.0], [2.0, -INF, 3.0]])
    if not getattr(weft, dtype).is_floating_point:
        x, y = x.nan_to_num(7.0, 5.0), y.nan_to_num(7.0, 4.0, -4.0)
    kind = getattr(weft, dtype)
    return x.to(kind), y.to(kind), weft.tensor([[True, False, True], [False] * 3]), weft.tensor([1, 0, 1])


def described(out: Any) -> Any:
    if isinstance(out, tuple):
        return type(out).__name__, *(described(o) for o in out)
    if not isinstance(out, weft.Tensor):
        return out
    a = out.detach().numpy()
    return out.dtype, tuple(out.shape), out.requires_grad, a.tobytes()


def outcome(fn: Callable[..., Any], *args: Any) -> Any:
    """The bits of the result and all that is known of it, or the error."""
    try:
        return described(fn(*args))
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as e:
        return type(e), str(e)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FLOATS)
def test_a_plan_gives_what_the_function_gives(name: str, dtype: str) -> None:
    args, fn = operands(dtype), FLOATS[name]
    first = outcome(fn, *args)
    assert [outcome(fn, *args) for _ in range(3)] == [first] * 3
    views = [weft.cat([a, a]).chunk(2)[1] if a.ndim == 2 else a for a in args]
    assert outcome(fn, *views) == first


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", FLOATS)
def test_gradients_of_a_plan(name: str) -> None:
    m, i = operands("float64")[2:]

    def run() -> Any:
        x = weft.tensor([[1.5, -0.5, 0.25], [4.0, -2.5, 3.0]], dtype=weft.float64, requires_grad=True)
        y = weft.tensor([[0.5, -3.0, 2.0], [2.0, 1.0, 3.0]], dtype=weft.float64, requires_grad=True)
        try:
            out = FLOATS[name](x, y, m, i)
        except (RuntimeError, IndexError) as e:
            return str(e)
        for o in out if isinstance(out, tuple) else (out,):
            if o.requires_grad:
                (o * o).sum().backward(retain_graph=True)
        return [None if t.grad is None else t.grad.numpy().copy() for t in (x, y)], described(out)

    first = run()
    for _ in range(3):
        again = run()
        if isinstance(first, str):
            assert again == first
            continue
        assert again[1][:3] == first[1][:3]
        for a, b in zip(first[0], again[0], strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                np.testing.assert_allclose(b, a, rtol=1e-13)


@pytest.mark.parametrize("name", FLOATS)
def test_results_have_memory_of_their_own(name: str) -> None:
    args = operands("float32")
    kept: list[np.ndarray] = [a.numpy() for a in args]
    for _ in range(4):
        try:
            out = FLOATS[name](*args)
        except (RuntimeError, IndexError):
            return
        for o in out if isinstance(out, tuple) else (out,):
            a = o.numpy()
            assert a.flags.writeable and not any(np.shares_memory(a, b) for b in kept)
            kept.append(a)


def test_twice_the_same_signature_makes_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    plan = prepared._plan
    monkeypatch.setattr(prepared, "_plan", lambda fn, *rest: made.append(fn.__name__) or plan(fn, *rest))
    x = weft.randn(3, 7)
    for _ in range(4):
        x.clamp(-0.125, 0.75)
    assert made == ["clamp"]
    wide = weft.randn(3, 7, dtype=weft.float64)
    for _ in range(4):
        wide.clamp(-0.125, 0.75)
    assert made == ["clamp", "clamp"]


@pytest.mark.parametrize("dtype", ["float32", "int64"])
@pytest.mark.parametrize(
    ("name", "kernels"),
    [("floor divide", 1), ("remainder", 1), ("sort", 1), ("topk", 1), ("clamp", 0), ("argmin", 0)],
)
def test_dear_plans_are_compiled_in_time(name: str, kernels: int, dtype: str) -> None:
    kind, size = getattr(weft, dtype), (16, 65 if dtype == "int64" else 66)
    x, y = (weft.randn(*size) * 9).to(kind), ((weft.rand(*size) + 1) * 3).to(kind)
    first = outcome(FLOATS[name], x, y, None, None)
    before = stats.snapshot()["eager_kernels"]
    for _ in range(prepared.PATIENCE + 3):
        assert outcome(FLOATS[name], x, y, None, None) == first
    assert stats.snapshot()["eager_kernels"] - before == kernels
    assert outcome(FLOATS[name], x.t().contiguous().t(), y, None, None) == first


def test_several_operations_on_large_operands_become_one_kernel() -> None:
    x = weft.randn(300, 333)
    want = x.numpy().clip(-1, 1)
    before = stats.snapshot()["eager_kernels"]
    for _ in range(composite.LARGE_PATIENCE - 1):
        assert np.array_equal(x.clamp(-1, 1).numpy(), want)
    general = stats.snapshot()["eager_kernels"] - before
    for _ in range(3):
        assert np.array_equal(x.clamp(-1, 1).numpy(), want)
    assert stats.snapshot()["eager_kernels"] - before == general + 1
    x.requires_grad_()
    for _ in range(composite.LARGE_PATIENCE + 1):
        x.grad = None
        x.clamp(-1, 1).sum().backward()
        assert np.array_equal(x.grad.numpy(), (np.abs(x.detach().numpy()) <= 1).astype(np.float32))


def test_what_decides_is_part_of_the_signature() -> None:
    x, i = weft.tensor([1.0, -2.0]), weft.tensor([1, -2])
    for _ in range(3):
        assert weft.signbit(x.clamp(min=0.0)).tolist() == weft.signbit(x.clamp(0.0)).tolist()
        assert i.clamp(max=0).dtype is weft.int64 and i.clamp(max=0.0).dtype is weft.float32
        assert i.mul(True).dtype is weft.int64
        assert weft.where(x > 0, x, 0.0).sign().tolist() == [1.0, 0.0]
        assert weft.signbit(weft.where(x > 0, x, -0.0)).tolist() == [False, True]
        assert weft.signbit(weft.where(x > 0, x, 0.0)).tolist() == [False, False]
    for dtype in (weft.float64, weft.float32):
        weft.set_default_dtype(dtype)
        try:
            assert all(i.div(2).dtype is dtype for _ in range(3))
        finally:
            weft.set_default_dtype(weft.float32)


def test_writing_to_what_a_plan_saved_is_noticed() -> None:
    x = weft.tensor([1.0, 2.0], requires_grad=True)
    for _ in range(4):
        h = x * 1.0
        out = weft.addcmul(h, h, h).sum()
        h.add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.backward()


def test_second_derivatives_through_plans() -> None:
    x = weft.tensor([1.0, 2.0, 4.0], dtype=weft.float64, requires_grad=True)
    for _ in range(4):
        (g,) = weft.autograd.grad(x.prod(), x, create_graph=True)
        (h,) = weft.autograd.grad(g.sum(), x)
        assert g.tolist() == [8.0, 4.0, 2.0] and h.tolist() == [6.0, 5.0, 3.0]


def test_hooks_run_once_in_second_derivatives() -> None:
    for _ in range(4):
        seen: list[float] = []
        x = weft.tensor([1.0, 2.0], dtype=weft.float64, requires_grad=True)
        y = x * x
        y.retain_grad()
        y.register_hook(lambda g, seen=seen: seen.append(g.sum().item()))
        (g,) = weft.autograd.grad((y * y).prod(), x, create_graph=True)
        assert len(seen) == 1 and g.tolist() == [64.0, 32.0]
        (g * y).sum().backward()
        assert len(seen) == 2 and x.grad.tolist() == [832.0, 448.0]


def test_no_plan_in_a_capture_and_for_other_modes() -> None:
    x = weft.randn(2, 3)
    fn = weft.compile(lambda x: x.clamp(-1, 1).sum(1))
    for _ in range(3):
        assert fn(x).tolist() == pytest.approx(x.clamp(-1, 1).sum(1).tolist(), rel=1e-6)
        with weft.inference_mode():
            assert x.clamp(-1, 1).is_inference() and x.max(1)[0].is_inference()
        assert not x.clamp(-1, 1).is_inference()
        p = weft.nn.Parameter(weft.ones(2))
        assert p.sum().requires_grad and not p.detach().sum().requires_grad
        with weft.no_grad():
            assert not p.sum().requires_grad


def test_plans_in_threads() -> None:
    x, wrong = weft.randn(4, 5), []
    want = pytest.approx(x.std(1).tolist(), rel=1e-5)

    def work() -> None:
        for _ in range(300):
            if x.std(1).tolist() != want:
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


CASES = [
    pytest.param(name, case, id=f"{name} {case}")
    for name, row in ROWS.items()
    if PRIMITIVES[name].kind not in (Kind.CONTROL, Kind.RANDOM, Kind.HOST)
    for case in row.cases()
    if not case.regions and case.arrays
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("name", "case"), CASES)
def test_a_call_is_the_primitives_rule(name: str, case: Case) -> None:
    prim = PRIMITIVES[name]
    b = GraphBuilder(name)
    params = [b.param(TensorType(a.shape, dtype_of_numpy(a.dtype), CPU)) for a in case.arrays]
    with interpreting(GraphInterpreter(b)):
        out = prim.bind(*params, **case.attrs)
    call = as_function(b.finish(list(out) if isinstance(out, tuple) else [out]))
    with np.errstate(all="ignore"):
        found = call(*case.arrays)
        want = prim.evaluate(case.arrays, prim.normalize_attrs(case.attrs))
    for a, w in zip(found if isinstance(found, tuple) else (found,), want, strict=True):
        a = np.asarray(a)
        assert a.dtype == w.dtype and a.shape == w.shape
        if prim.kind is Kind.CONTRACT:
            np.testing.assert_allclose(a, w, rtol=1e-5, atol=1e-6)
        else:
            assert a.tobytes() == w.tobytes() or np.array_equal(a, w, equal_nan=True)
