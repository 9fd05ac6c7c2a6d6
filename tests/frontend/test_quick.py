"""The short way of small eager operations: as few Python calls as promised, and the general way's results."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import weft
from weft import quick
from weft.autograd import engine, grad_mode
from weft.ir.prims.base import PRIMITIVES

INF, NAN = float("inf"), float("nan")


def calls(fn: Callable[[], Any]) -> int:
    """The Python functions that a call of ``fn`` enters, itself not counted."""
    for _ in range(3):
        fn()
    entered = 0

    def profile(frame: Any, event: str, arg: Any) -> None:
        nonlocal entered
        entered += event == "call"

    sys.setprofile(profile)
    try:
        fn()
    finally:
        sys.setprofile(None)
    return entered - 1


X, Y, ROW = weft.randn(2, 4), weft.randn(2, 4), weft.randn(4)
ONE_CALL: dict[str, Callable[[], Any]] = {
    "x + y": lambda: X + Y,
    "x - y": lambda: X - Y,
    "x * y": lambda: X * Y,
    "x / y": lambda: X / Y,
    "x < y": lambda: X < Y,
    "x == y": lambda: X == Y,
    "x + row": lambda: X + ROW,
    "x * 2.5": lambda: X * 2.5,
    "x + 1": lambda: X + 1,
    "1.5 - x": lambda: 1.5 - X,
    "-x": lambda: -X,
    "tanh": lambda: weft.tanh(X),
    "x.exp()": lambda: X.exp(),
    "mul": lambda: weft.mul(X, Y),
    "maximum": lambda: weft.maximum(X, Y),
    "relu": lambda: weft.relu(X),
}


@pytest.mark.parametrize("name", ONE_CALL)
def test_one_python_call_leads_to_numpy(name: str) -> None:
    assert calls(ONE_CALL[name]) == 1


def test_calls_with_a_tape() -> None:
    w = weft.randn(2, 4, requires_grad=True)
    h = w * 1.0
    assert calls(lambda: h * X) <= 5
    assert calls(lambda: weft.tanh(h)) <= 5


OPERANDS: dict[str, Callable[[], Any]] = {
    "float32": lambda: weft.tensor([[1.5, -0.0, NAN], [INF, -INF, 3e38]]),
    "float64": lambda: weft.tensor([[1.5, -0.0, NAN], [INF, -2.0, 1e300]], dtype=weft.float64),
    "float16": lambda: weft.tensor([1.5, -2.0, 6e4], dtype=weft.float16),
    "bfloat16": lambda: weft.tensor([1.5, -2.0, 6e4], dtype=weft.bfloat16),
    "int64": lambda: weft.tensor([1, -2, 7]),
    "bool": lambda: weft.tensor([True, False, True]),
    "0-d": lambda: weft.tensor(2.5),
    "0-d float64": lambda: weft.tensor(2.5, dtype=weft.float64),
    "empty": lambda: weft.zeros(0, 3),
    "view": lambda: weft.randn(3, 2).t(),
    "strided": lambda: weft.randn(2, 6)[:, ::2],
    "large": lambda: weft.randn(300, 3),
    "with grad": lambda: weft.randn(2, 3, requires_grad=True),
    "parameter": lambda: weft.nn.Parameter(weft.randn(3)),
    "0": lambda: 0,
    "-0.0": lambda: -0.0,
    "0.0": lambda: 0.0,
    "3": lambda: 3,
    "1e300": lambda: 1e300,
    "huge": lambda: 10**30,
    "True": lambda: True,
    "nan": lambda: NAN,
    "2j": lambda: 2j,
    "numpy": lambda: np.float64(1.5),
}
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "lt": lambda a, b: a < b,
    "eq": lambda a, b: a == b,
    "maximum": weft.maximum,
}


def outcome(fn: Callable[..., Any], *args: Any) -> Any:
    """The bits of the result and all that is known of it, or the error."""
    try:
        out = fn(*args)
    except (RuntimeError, TypeError, ValueError, OverflowError, NotImplementedError) as e:
        return type(e), str(e)
    if not isinstance(out, weft.Tensor):
        return out
    return out.dtype, tuple(out.shape), out.requires_grad, out.detach().numpy().tobytes()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("op", BINARY)
def test_the_general_way_gives_the_same(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fn, got, pairs = BINARY[op], [], []
    for a, left in OPERANDS.items():
        for b, right in OPERANDS.items():
            x, y = left(), right()
            if isinstance(x, weft.Tensor) or isinstance(y, weft.Tensor):
                pairs.append((a, b, x, y))
                got.append(outcome(fn, x, y))
    monkeypatch.setattr(quick, "SMALL", -1)
    for (a, b, x, y), found in zip(pairs, got, strict=True):
        assert found == outcome(fn, x, y), (a, b)


UFUNCS = [p for p in PRIMITIVES.values() if p.ufunc is not None]


@pytest.mark.parametrize("prim", UFUNCS, ids=lambda p: p.name)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_ufunc_of_a_primitive_is_its_rule(prim: Any, dtype: Any) -> None:
    if prim.name.startswith("bit_"):
        pytest.skip("takes no floats")
    values = [0.0, -0.0, 1.0, -1.5, 0.3, 2.5, 1e30, -1e-40, INF, -INF, NAN]
    grid = np.array([(a, b) for a in values for b in values], dtype).T
    operands = [np.ascontiguousarray(row) for row in grid[: prim.ufunc.nin]]
    with np.errstate(all="ignore"):
        want, got = np.asarray(prim.eval(*operands)), prim.ufunc(*operands)
    assert want.dtype == got.dtype and want.tobytes() == got.tobytes()


def test_nothing_is_warned_of_and_the_caller_s_settings_stay(recwarn: Any) -> None:
    before = np.geterr()
    assert (weft.tensor([1.0, -1.0]) / weft.zeros(2)).tolist() == [INF, -INF]
    assert weft.log(weft.tensor([-1.0])).isnan().all()
    assert np.geterr() == before and not recwarn.list


def test_errors_are_in_torch_s_words() -> None:
    with pytest.raises(RuntimeError, match=r"size of tensor a \(3\) must match the size of tensor b \(4\)"):
        weft.ones(3) + weft.ones(4)
    with pytest.raises(TypeError, match="unsupported operand"):
        weft.ones(3) + "x"
    with pytest.raises(TypeError, match="must be Tensor"):
        weft.tanh(3.0)


def test_who_could_want_a_gradient_is_recorded() -> None:
    w = weft.ones(3, requires_grad=True)
    assert (w + 1).grad_fn is not None and weft.tanh(w).grad_fn is not None
    base = weft.zeros(3)
    part = base[1:]
    base.mul_(w)
    out = part * 2.0  # a view of what has a history by now
    out.sum().backward()
    assert w.grad.tolist() == [0.0, 0.0, 0.0] and out.requires_grad


def test_results_in_inference_mode_are_marked() -> None:
    x = weft.ones(3)
    with weft.inference_mode():
        assert (x + x).is_inference() and weft.tanh(x).is_inference()
        assert not any(v.is_inference() for v in (x[1:], x.view(-1), x.reshape(3, 1), x[:, None]))
        assert (x + x).view(-1).is_inference()
        assert calls(lambda: x + x) == 1
        y = x * 1.0
    assert not (x + x).is_inference() and not grad_mode.inference.used
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
        weft.ones(3, requires_grad=True) * y
    with pytest.raises(ValueError, match="left"), weft.inference_mode():
        raise ValueError("left")
    assert not grad_mode.inference.used


def test_a_payload_that_is_no_array_takes_the_general_way() -> None:
    seen: list[Any] = []
    fn = quick.binary_function(PRIMITIVES["add"], lambda a, b: seen.append((a, b)))
    one = quick.unary_function(PRIMITIVES["tanh"], lambda a: seen.append(a))
    x, strange = weft.ones(3), weft.ones(3)
    strange._data = object()
    fn(strange, x), fn(x, strange), one(strange)
    assert len(seen) == 3


def test_in_a_compiled_function_operations_are_captured() -> None:
    fn = weft.compile(lambda x, y: weft.tanh(x + y) * y)
    x, y = weft.randn(8), weft.randn(8)
    np.testing.assert_allclose(fn(x, y).numpy(), (weft.tanh(x + y) * y).numpy(), rtol=1e-6)
    assert len(fn.graph.ops) == 3


def test_another_thread_in_the_context() -> None:
    x, out = weft.ones(3), []

    def inside(*_: Any) -> None:
        worker = threading.Thread(target=lambda: out.append((x + x).tolist()))
        worker.start()
        worker.join()

    quick.quietly(inside)
    assert out == [[2.0, 2.0, 2.0]]


def test_numbers_that_are_equal_and_not_the_same() -> None:
    x = weft.tensor([-1.0, 1.0])
    for _ in range(2):
        assert (x * 0.0).numpy().tobytes() == np.float32([-0.0, 0.0]).tobytes()
        assert (x * -0.0).numpy().tobytes() == np.float32([0.0, -0.0]).tobytes()
        assert (x * 0).numpy().tobytes() == np.float32([-0.0, 0.0]).tobytes()
    assert (x + True).dtype is weft.float32


def backward_calls(n: int) -> int:
    x = weft.randn(4, requires_grad=True)
    h = x
    for _ in range(n):
        h = h * 1.5
    loss = h.sum()
    return calls(lambda: loss.backward(retain_graph=True))


def test_calls_of_a_node_in_the_walk() -> None:
    assert backward_calls(40) - backward_calls(20) <= 20 * 7


def test_a_walk_over_arrays_and_the_general_one_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    w, b = weft.randn(3, 4, requires_grad=True), weft.randn(4, requires_grad=True)

    def gradients() -> list[bytes]:
        w.grad = b.grad = None
        h = weft.tanh(w * 2.0 + b) / (1.5 - b)
        top, at = h.max(1)
        (h.sum(0)[1:] * h[0, 1:] + top.mean() - h[:2].reshape(-1)[at].sum()).sum().backward()
        return [w.grad.numpy().tobytes(), b.grad.numpy().tobytes()]

    found = gradients()
    monkeypatch.setattr(engine, "is_plain", lambda nodes, leaves: False)
    assert found == gradients()


def test_a_gradient_that_comes_many_ways_is_summed() -> None:
    x = weft.tensor([1.0, 2.0], requires_grad=True)
    y = x * x + x * 3 + 2.0 * x - (1.0 - x) / x
    y.sum().backward()
    np.testing.assert_allclose(
        x.grad.numpy(), 2 * np.array([1.0, 2.0]) + 5 + 1 / np.array([1.0, 4.0]), rtol=1e-6
    )
