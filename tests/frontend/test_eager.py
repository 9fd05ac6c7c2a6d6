"""Eager operations by generated kernels: the same results, gradients, errors and aliasing as numpy's."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import weft
from weft import composite
from weft.eager import LEAST_BYTES, switch
from weft.ir.prims.base import PRIMITIVES, Kind, type_of
from weft.nn import functional as F
from weft.runtime import executable as executable_module
from weft.runtime import layouts as layouts_module
from weft.runtime import oneop, stats

sys.path.insert(0, str(Path(__file__).parent.parent))

import opinfo_indexed  # noqa: F401  (fills the table)
import opinfo_structural  # noqa: F401
from opinfo import ROWS

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
KINDS = {Kind.MAP, Kind.REDUCE, Kind.SCAN, Kind.CONTRACT, Kind.MOVE, Kind.GATHER, Kind.SCATTER, Kind.SORT,
         Kind.WINDOW}  # fmt: skip
NAMES = sorted(n for n in ROWS if PRIMITIVES[n].kind in KINDS)
DTYPES = {"float32", "int64", "bool"}


@pytest.fixture
def eager_by_numpy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """Runs a function with kernels off."""

    def run(fn: Callable[[], Any]) -> Any:
        with monkeypatch.context() as m:
            m.setattr(switch, "on", False)
            return fn()

    yield run


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every size is worth a kernel."""

    def worth(prim: Any, arrays: Any, attrs: Any) -> bool:
        return all(a.size and a.dtype.kind != "c" for a in arrays)

    monkeypatch.setattr(oneop, "_worth", worth)
    monkeypatch.setattr(oneop, "_vjp_is_worth", lambda prim, attrs, slots, operands: worth(
        prim, [x for x in slots if type(x) is np.ndarray], attrs))  # fmt: skip
    monkeypatch.setattr(oneop, "FREE_LAYOUTS", 1 << 30)


def compiled() -> int:
    return stats.snapshot()["eager_kernels"]


def assert_same(got: Any, want: Any, ulp: float = 0, atol: float = 0) -> None:
    got, want = np.asarray(got), np.asarray(want)
    assert got.dtype == want.dtype and got.shape == want.shape
    if got.dtype.kind == "V":  # bfloat16
        got, want, ulp = got.astype(np.float32), want.astype(np.float32), ulp * 2.0**16
    if got.dtype.kind != "f":
        np.testing.assert_array_equal(got, want)
        return
    eps = float(np.finfo(got.dtype).eps)
    np.testing.assert_allclose(got, want, rtol=max(ulp, 1) * eps, atol=atol)


# -- single operations --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_computes_what_the_rule_computes(name: str, everything: None) -> None:
    prim, seen = PRIMITIVES[name], set()
    for case in ROWS[name].cases():
        kinds = {a.dtype.name for a in case.arrays}
        key = (*sorted(kinds), *(a.shape for a in case.arrays), str(case.attrs))
        if case.regions or not kinds <= DTYPES or key in seen:
            continue
        seen.add(key)
        attrs = prim.normalize_attrs(case.attrs)
        got = oneop.run(prim, case.arrays, attrs)
        if got is None:
            continue
        results = got if isinstance(got, tuple) else (got,)
        for g, w in zip(results, prim.evaluate(case.arrays, attrs), strict=True):
            assert_same(g, w, max(case.drift, case.ulp, 4), max(case.atol, 1e-6))


@pytest.mark.parametrize("name", [n for n in NAMES if any(True for _ in ROWS[n].points())])
def test_a_gradient_by_a_kernel_is_the_rule_s(name: str, everything: None) -> None:
    prim = PRIMITIVES[name]
    rng = np.random.default_rng(0)
    for point in ROWS[name].points():
        if point.regions or any(a.dtype.kind == "c" for a in point.arrays):
            continue
        attrs = prim.normalize_attrs(point.attrs)
        outs = prim.evaluate(point.arrays, attrs)
        cts = tuple(rng.standard_normal(o.shape) if o.dtype.kind == "f" else None for o in outs)
        ct, out = (cts[0], outs[0]) if len(outs) == 1 else (cts, outs)
        wanted = tuple(i for i, a in enumerate(point.arrays) if a.dtype.kind == "f")
        got = oneop.vjp(prim, attrs, ct, out, point.arrays, wanted)
        want = prim.vjp(ct, out, *point.arrays, **attrs)  # type: ignore[misc]
        for i in wanted if got is not None else ():
            assert (got[i] is None) == (want[i] is None)
            if got[i] is not None:
                assert type_of(got[i]).shape == point.arrays[i].shape
                np.testing.assert_allclose(got[i], want[i], rtol=1e-9, atol=1e-9)


def layouts(rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Arrays of shape (6, 8, 10) that lie in memory in different ways."""
    yield rng.standard_normal((6, 8, 10), np.float32)
    yield rng.standard_normal((10, 6, 8), np.float32).transpose(1, 2, 0)
    yield np.broadcast_to(rng.standard_normal((8, 1), np.float32), (6, 8, 10))
    yield np.broadcast_to(rng.standard_normal((10, 6), np.float32).T[:, None], (6, 8, 10))
    yield rng.standard_normal((12, 8, 30), np.float32)[::2, :, 5:25:2]
    yield rng.standard_normal((6, 8, 10), np.float32)[:, ::-1]


def test_views_go_in_as_they_lie(everything: None) -> None:
    rng = np.random.default_rng(1)
    for a in layouts(rng):
        for b in layouts(rng):
            assert_same(oneop.run(PRIMITIVES["sub"], [a, b], {}), a - b)
        got = oneop.run(PRIMITIVES["sum"], [a], {"axes": (1,)})
        np.testing.assert_allclose(got, a.sum(1, dtype=np.float64), rtol=1e-5, atol=1e-5)


def test_equal_layouts_are_compiled_once_and_small_ones_never() -> None:
    x, small = weft.randn(300, 1201), weft.randn(10)
    before = compiled()
    outs = []
    for _ in range(6):
        weft.atan(small)
        outs.append(weft.asinh(x).numpy())
    assert compiled() == before + 2  # for any size, then for this one
    assert all(np.array_equal(o, outs[0]) for o in outs)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int64, np.int8, np.bool_])
def test_maps_of_any_size(dtype: Any) -> None:
    rng = np.random.default_rng(2)
    ops = [("add", 2), ("mul", 2), ("maximum", 2), ("eq", 2)] + [("exp", 1)] * (np.dtype(dtype).kind == "f")
    for name, arity in ops:
        prim = PRIMITIVES[name]
        for shape in ((oneop.blocks.BLOCK,), (3, 4801), (7, 1, 2000)):
            full = [(rng.standard_normal(shape) * 3).astype(dtype) for _ in range(arity)]
            scalars = [np.array(2, dtype), np.broadcast_to(np.array(1, dtype), shape)]
            for arrays in (full, [full[0], scalars[0]][:arity], [scalars[1], full[0]][-arity:]):
                assert oneop.blocks.fits(arrays)
                run = oneop._any_size(prim, arrays, {})
                assert_same(run(*arrays)[0], prim.eval(*arrays), 4, 1e-6)


def test_new_sizes_of_a_map_compile_nothing() -> None:
    weft.cosh(weft.zeros(9000))
    before = compiled()
    for n in range(5000, 5020):
        assert weft.cosh(weft.zeros(n)).sum().item() == n
    assert compiled() == before


def test_random_words_are_the_same_bits(eager_by_numpy: Any) -> None:
    n = 2 * oneop.RANDOM_WORDS + 77

    def draw() -> list[Any]:
        weft.manual_seed(7)
        return [weft.rand(3, 5), weft.rand(n), weft.randint(0, 1000, (n,)), weft.rand(4)]

    for g, w in zip(draw(), eager_by_numpy(draw), strict=True):
        assert np.array_equal(g.numpy(), w.numpy())


def test_many_layouts_of_one_primitive_wait_for_their_second_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oneop, "FREE_LAYOUTS", 2)
    monkeypatch.setattr(oneop, "KERNELS", oneop.Kernels())
    before = compiled()
    for n in range(6):
        weft.zeros(20_000 + n).sum()
    assert compiled() == before + 2
    weft.zeros(20_005).sum()
    assert compiled() == before + 3


def test_the_switch(eager_by_numpy: Any) -> None:
    x = weft.randn(100, 333)
    before = compiled()
    eager_by_numpy(lambda: F.softmax(x.acosh(), -1))
    assert compiled() == before
    code = "import weft; from weft.eager import switch; print(switch.on)"
    env = {**__import__("os").environ, "WEFT_EAGER": "numpy"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert out.stdout.strip() == "False"


def test_errors_stay(eager_by_numpy: Any) -> None:
    x = weft.zeros(100, 100)
    table, far = weft.zeros(1000, 50), weft.full((5000,), 1000)
    calls: list[Callable[[], Any]] = [
        lambda: x + weft.zeros(99, 100),
        lambda: x @ weft.zeros(99, 100),
        lambda: F.linear(x, weft.zeros(7, 99)),
        lambda: F.layer_norm(x, (99,)),
        lambda: F.embedding(far, table),
        lambda: F.cross_entropy(x, weft.full((100,), 100)),
        lambda: F.cross_entropy(x, weft.zeros(99, dtype=weft.int64)),
        lambda: F.softmax(weft.zeros(9000, dtype=weft.int64), 0),
        lambda: F.softmax(x, 5),
    ]
    for call in calls:
        with pytest.raises(Exception) as by_kernel:
            call()
        with pytest.raises(Exception) as by_numpy:
            eager_by_numpy(call)
        assert by_kernel.type is by_numpy.type and str(by_kernel.value) == str(by_numpy.value)


def test_results_have_memory_of_their_own() -> None:
    x = weft.ones(200, 200)
    for y in (x.clone(), x + 0, x.abs(), x.float().exp(), x.T.contiguous()):
        before = x.sum().item()
        y.add_(1)
        assert x.sum().item() == before
    v = x.reshape(-1)
    v.mul_(2)
    assert x[0, 0].item() == 2


def test_gradients_of_two_leaves_share_no_memory() -> None:
    a, b = weft.ones(5, requires_grad=True), weft.ones(5, requires_grad=True)
    seed = weft.ones(5)
    (a + b).backward(seed)
    a.grad.add_(1)
    assert b.grad.tolist() == seed.tolist() == [1.0] * 5


# -- compositions -------------------------------------------------------------------------------------------

N = 96
FUNCTIONS: dict[str, Callable[..., weft.Tensor]] = {
    "softmax": lambda x, w, b: F.softmax(x, -1),
    "log_softmax": lambda x, w, b: F.log_softmax(x, 0),
    "gelu": lambda x, w, b: F.gelu(x),
    "gelu tanh": lambda x, w, b: F.gelu(x, approximate="tanh"),
    "silu": lambda x, w, b: F.silu(x),
    "elu": lambda x, w, b: F.elu(x, 0.7),
    "softplus": lambda x, w, b: F.softplus(x, 2.0),
    "leaky_relu": lambda x, w, b: F.leaky_relu(x, 0.2),
    "sigmoid": lambda x, w, b: x.sigmoid(),
    "layer_norm": lambda x, w, b: F.layer_norm(x, (N,), w[0], b),
    "rms_norm": lambda x, w, b: F.rms_norm(x, (N,), b),
    "group_norm": lambda x, w, b: F.group_norm(x, 8, b),
    "batch_norm": lambda x, w, b: F.batch_norm(x, None, None, b, w[1], True),
    "linear": lambda x, w, b: F.linear(x, w, b),
    "linear of a view": lambda x, w, b: F.linear(x.T, w.T, b),
    "attention": lambda x, w, b: F.scaled_dot_product_attention(
        x.view(1, N, 4, 24).transpose(1, 2), w.view(1, N, 4, 24).transpose(1, 2),
        x.view(1, N, 4, 24).transpose(1, 2), is_causal=True),
    "cross_entropy": lambda x, w, b: F.cross_entropy(x, weft.arange(N), label_smoothing=0.1),
    "mse_loss": lambda x, w, b: F.mse_loss(x, w),
    "bce": lambda x, w, b: F.binary_cross_entropy_with_logits(x, w.sigmoid().detach()),
    "cosine": lambda x, w, b: F.cosine_similarity(x, w),
}  # fmt: skip


def leaves() -> list[weft.Tensor]:
    weft.manual_seed(3)
    return [weft.randn(*s, dtype=weft.float64).requires_grad_() for s in ((N, N), (N, N), (N,))]


def values(fn: Callable[..., weft.Tensor]) -> list[np.ndarray]:
    """The result, its gradients and the gradients of those."""
    xs = leaves()
    y = fn(*xs)
    weft.manual_seed(4)
    seed = weft.randn(*y.shape, dtype=y.dtype)
    first = weft.autograd.grad(y, xs, seed, create_graph=True, allow_unused=True)
    used = [g for g in first if g is not None]
    total = sum((g * g.detach().cos()).sum() for g in used)
    second = weft.autograd.grad(total, xs, allow_unused=True) if total.requires_grad else ()
    out = [y, *used, *(g for g in second if g is not None)]
    z = fn(*xs)
    z.sum().backward()  # the compiled backward graph
    return [t.detach().numpy() for t in (*out, *(x.grad for x in xs if x.grad is not None))]


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_a_composition_as_one_graph(name: str, eager_by_numpy: Any) -> None:
    got = values(FUNCTIONS[name])
    want = eager_by_numpy(lambda: values(FUNCTIONS[name]))
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-9, atol=1e-10)


def test_one_node_on_the_tape_and_two_compilations() -> None:
    x = weft.randn(64, 129, requires_grad=True)
    before = compiled()
    for _ in range(3):
        y = F.softmax(x, -1)
        assert y.grad_fn.name() == "SoftmaxBackward0"
        assert y.grad_fn.next_functions[0][0].variable is x
        y.backward(weft.ones(64, 129))
    assert compiled() == before + 2
    with weft.no_grad():
        assert F.softmax(x, -1).grad_fn is None


def test_small_operands_are_compiled_when_they_keep_coming() -> None:
    x = weft.randn(3, 7)
    before = compiled()
    for _ in range(composite.PATIENCE - 1):
        F.rms_norm(x, (7,))
    assert compiled() == before
    last = [F.rms_norm(x, (7,)) for _ in range(3)]
    assert compiled() == before + 1
    assert weft.equal(last[0], last[2])


def test_what_the_gradient_reads_is_watched_and_the_rest_is_not() -> None:
    x, label = weft.randn(64, 128, requires_grad=True), weft.arange(64)
    for fn in (F.softmax, F.log_softmax, lambda h, d: h.sigmoid(), lambda h, d: F.cross_entropy(h, label)):
        h = x * 1
        y = fn(h, -1)
        h.add_(1)  # these gradients read the result alone
        y.sum().backward()
    h = x * 1
    z = F.gelu(h)
    h.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_in_place_forms() -> None:
    x = weft.randn(64, 128)
    y = x.clone()
    F.silu(y, inplace=True)
    np.testing.assert_allclose(y.numpy(), F.silu(x).numpy())
    leaf = weft.randn(64, 128, requires_grad=True)
    h = leaf * 1
    F.silu(h, inplace=True)
    h.sum().backward()
    other = leaf.detach().requires_grad_()
    F.silu(other).sum().backward()
    np.testing.assert_allclose(leaf.grad.numpy(), other.grad.numpy(), rtol=1e-6)


def test_a_freed_graph_and_a_retained_one() -> None:
    x = weft.randn(64, 128, requires_grad=True)
    y = F.gelu(x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert weft.isfinite(x.grad).all()
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def test_a_tape_made_outside_walked_inside_a_compiled_function() -> None:
    x = weft.randn(64, 128, requires_grad=True)
    y = F.layer_norm(x, (128,)).square().sum()

    @weft.compile
    def walk() -> weft.Tensor:
        return weft.autograd.grad(y, x, retain_graph=True)[0] * 2

    (want,) = weft.autograd.grad(y, x, retain_graph=True)
    np.testing.assert_allclose(walk().numpy(), 2 * want.numpy(), rtol=1e-5, atol=1e-6)


def test_compiled_functions_trace_through() -> None:
    @weft.compile(fullgraph=True)
    def f(x: weft.Tensor) -> weft.Tensor:
        return F.softmax(F.gelu(x), -1)

    x = weft.randn(64, 128)
    np.testing.assert_allclose(f(x).numpy(), F.softmax(F.gelu(x), -1).numpy(), rtol=1e-5, atol=1e-7)
    assert [op.prim.name for op in f.graph.ops].count("erf") == 1


def test_empty_and_zero_dimensional_operands() -> None:
    assert F.softmax(weft.zeros(0, 5), -1).shape == (0, 5)
    assert F.softmax(weft.tensor(2.0), 0).item() == 1.0
    assert F.layer_norm(weft.zeros(0, 5), (5,)).shape == (0, 5)


def test_running_statistics_are_updated(eager_by_numpy: Any) -> None:
    def run() -> list[Any]:
        weft.manual_seed(0)
        norm = weft.nn.BatchNorm2d(6)
        out = norm(weft.randn(4, 6, 16, 16))
        norm.eval()
        return [out, norm(out), norm.running_mean, norm.running_var]

    for g, w in zip(run(), eager_by_numpy(run), strict=True):
        np.testing.assert_allclose(g.detach().numpy(), w.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_threads_meet_a_new_combination_at_once() -> None:
    x = weft.randn(70, 131)
    outs: list[Any] = [None] * 8

    def work(i: int) -> None:
        outs[i] = F.log_softmax(x.sinh(), -1).numpy()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(np.array_equal(o, outs[0]) for o in outs)


# -- optimizers ---------------------------------------------------------------------------------------------

OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    ("Adam", {}), ("Adam", {"maximize": True}), ("AdamW", {"weight_decay": 0.1, "amsgrad": True}),
    ("SGD", {"lr": 0.1}), ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
    ("RMSprop", {"centered": True, "momentum": 0.5}), ("Adagrad", {"lr_decay": 0.1}),
]  # fmt: skip


def train(name: str, options: dict[str, Any], steps: int = 6) -> list[np.ndarray]:
    weft.manual_seed(0)
    params = [weft.randn(40, 500, dtype=weft.float64).requires_grad_(), weft.ones(7, dtype=weft.float64)]
    params[1].requires_grad_()
    optimizer = getattr(weft.optim, name)(params, **options)
    versions = [p._version for p in params]
    for i in range(steps):
        optimizer.zero_grad()
        (params[0].square().sum() + params[1].sin().sum()).backward()
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] *= 0.5 if i == 2 else 1.0
    assert all(p._version > v for p, v in zip(params, versions, strict=True))
    return [p.detach().numpy() for p in params]


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_the_step_of_a_group_is_one_kernel(name: str, options: dict[str, Any], eager_by_numpy: Any) -> None:
    got = train(name, options)
    want = eager_by_numpy(lambda: train(name, options))
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-9, atol=1e-12)


def test_an_update_of_a_subclass_runs_as_it_is_written() -> None:
    seen: list[int] = []

    class Counting(weft.optim.SGD):
        def update(self, p: Any, grad: Any, state: Any, options: Any) -> None:
            seen.append(1)
            super().update(p, grad, state, options)

    p = weft.ones(200, 200).requires_grad_()
    optimizer = Counting([p], lr=0.1)
    for _ in range(4):
        p.grad = weft.ones(200, 200)
        optimizer.step()
    assert len(seen) == 4 and abs(p[0, 0].item() - 0.6) < 1e-6


def test_parameters_on_one_memory_are_updated_one_by_one() -> None:
    base = weft.ones(2, 100, 200)
    whole, part = weft.nn.Parameter(base), weft.nn.Parameter(base[0])
    optimizer = weft.optim.SGD([whole, part], lr=1.0)
    for _ in range(3):
        whole.grad, part.grad = weft.ones(2, 100, 200), weft.ones(100, 200)
        optimizer.step()
    assert whole[0, 0, 0].item() == 1 - 6 and whole[1, 0, 0].item() == 1 - 3


def test_the_threshold_is_what_it_says() -> None:
    n = LEAST_BYTES // 4
    x, y = weft.randn(n - 1), weft.randn(n)
    before = compiled()
    x.atanh()
    assert compiled() == before
    y.atanh()
    assert compiled() == before + 1


# -- how operands lie ---------------------------------------------------------------------------------------


def self_attention(x: weft.Tensor) -> weft.Tensor:
    b, t, c = 4, 64, 96
    qkv = x.view(b, t, 3, 6, c // 6).permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], is_causal=True)
    return out.transpose(1, 2).reshape(b, t, c)


def test_attention_reads_its_operands_in_place(monkeypatch: pytest.MonkeyPatch, eager_by_numpy: Any) -> None:
    x = weft.randn(4, 64, 288, requires_grad=True)
    ct = weft.randn(4, 64, 96)

    def both() -> tuple[np.ndarray, np.ndarray]:
        x.grad = None
        out = self_attention(x)
        out.backward(ct)
        return out.detach().numpy().copy(), x.grad.numpy().copy()

    want = eager_by_numpy(both)
    both()
    copies: list[Any] = []
    monkeypatch.setattr(layouts_module.np, "copyto", lambda out, a: copies.append(a.shape))
    monkeypatch.setattr(executable_module, "_packed", lambda a, donated: copies.append(a.shape))
    got = both()
    assert copies == []
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=2e-5, atol=2e-6)


def test_a_write_to_the_base_of_a_saved_window_is_noticed() -> None:
    x = weft.randn(4, 64, 288)
    w = weft.randn(4, 6, 64, 16, requires_grad=True)
    k = x.view(4, 64, 3, 6, 16).permute(2, 0, 3, 1, 4)[1]
    out = F.scaled_dot_product_attention(w, k, k)
    x.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_cotangents_that_lie_in_many_ways() -> None:
    layer = weft.nn.Linear(64, 64)
    x = weft.randn(8, 16, 64)
    for perm in [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)] * 2:
        layer.zero_grad()
        out = layer(x)
        ct = weft.ones(*[out.shape[i] for i in perm]).permute(*np.argsort(perm).tolist())
        out.backward(ct)
        assert layer.bias.grad.tolist() == [128.0] * 64
