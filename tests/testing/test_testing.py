"""``assert_close``, ``assert_equivalent`` and the pytest plugin."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import weft
from weft.testing import assert_close, assert_equivalent

pytest_plugins = ["pytester"]


def test_close_and_not_close() -> None:
    assert_close(weft.ones(3), weft.ones(3) + 1e-7)
    assert_close([1.0, {"a": weft.ones(2)}], [1.0, {"a": weft.ones(2)}])
    assert_close(np.ones(2), np.ones(2))
    with pytest.raises(AssertionError, match=r"Mismatched elements: 1 / 3") as error:
        assert_close(weft.tensor([1.0, 2.0, 4.0]), weft.tensor([1.0, 2.0, 3.0]))
    assert "4.0 is not 3.0 at index (2,)" in str(error.value)


@pytest.mark.parametrize("a,b,message", [
    (weft.ones(3), weft.ones(4), "'shape' do not match"),
    (weft.ones(3), weft.ones(3).double(), "'dtype' do not match"),
    ([1.0], [1.0, 2.0], "length of the sequences mismatch: 1 != 2"),
    ({"a": 1.0}, {"b": 1.0}, "keys of the mappings do not match"),
    (weft.tensor(1), weft.tensor(2), "Scalars are not equal"),
    ({"a": [weft.ones(1)]}, {"a": [weft.zeros(1)]}, r"^\['a'\]\[0\]: "),
    ("x", "y", "'x' is not 'y'"),
])  # fmt: skip
def test_messages(a: Any, b: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_close(a, b)


def test_nan_tolerances_and_messages() -> None:
    nan = weft.tensor([float("nan"), float("inf")])
    assert_close(nan, nan.clone(), equal_nan=True)
    with pytest.raises(AssertionError):
        assert_close(nan, nan.clone())
    assert_close(weft.tensor(1.0), weft.tensor(1.5), rtol=0.5, atol=0.0)
    with pytest.raises(ValueError, match="Both"):
        assert_close(1.0, 1.0, rtol=0.1)
    with pytest.raises(AssertionError, match="mine"):
        assert_close(1.0, 2.0, msg="mine")
    big = weft.tensor([2**62 + 1], dtype=weft.int64)
    with pytest.raises(AssertionError):
        assert_close(big, big - 1)


def test_equivalent_functions() -> None:
    x = weft.randn(3, 4, requires_grad=True)
    assert_equivalent(lambda x: (x.softmax(-1) * 2).sum(), x, fullgraph=True)
    assert_equivalent(lambda x, k: {"y": [x.sin() * k]}, x, k=2.5)
    assert x.grad is None


class Differs:
    """Gives another result, gradient, dtype, mutation or error when captured."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __call__(self, x: weft.Tensor, y: weft.Tensor) -> weft.Tensor:
        if not weft.capture.is_compiling():
            return x * 2
        if self.what == "value":
            return x * 2 + weft.tensor([0.0, 0.0, 0.5])
        if self.what == "gradient":
            return x * 2 + (x - x.detach())
        if self.what == "dtype":
            return (x * 2).double()
        if self.what == "input":
            y.add_(1)
        if self.what == "error":
            raise KeyError("only compiled")
        return (x * 2).detach() if self.what == "grad" else x * 2


@pytest.mark.parametrize("what,message", [
    ("value", r"compiled, call 1: output: .*First difference: .* at index \(2,\)"),
    ("gradient", "compiled, call 1: gradient"),
    ("dtype", "'dtype' do not match"),
    ("input", "inputs afterwards args"),
    ("error", "raised KeyError"),
    ("grad", "gradient|requires_grad"),
])  # fmt: skip
def test_what_differs_is_reported(what: str, message: str) -> None:
    with pytest.raises(AssertionError) as error:
        assert_equivalent(Differs(what), weft.ones(3, requires_grad=True), weft.zeros(3))
    import re

    assert re.search(message, str(error.value), re.DOTALL), str(error.value)


def test_wrong_kernels_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that gives wrong numbers fails the compiled way, not the interpreter's."""
    from weft import runtime
    from weft.testing.equivalence import ReferenceExecutable

    class Wrong(ReferenceExecutable):
        def runner(self, *arrays: Any) -> list[np.ndarray]:
            return [o + 1 for o in super().runner(*arrays)]

    monkeypatch.setattr(
        runtime, "compile_graph", lambda graph, donate=None, **k: Wrong(graph, dict(donate or {}))
    )
    with pytest.raises(AssertionError, match="compiled, call 1: output"):
        assert_equivalent(lambda x: x * 2, weft.ones(3))


@dataclasses.dataclass
class Pair:
    a: weft.Tensor
    b: weft.Tensor


def test_structured_arguments_and_random_numbers() -> None:
    def f(p: Pair) -> Pair:
        return Pair(p.a + weft.rand(3), p.b * 2)

    assert_equivalent(f, Pair(weft.ones(3), weft.ones(2, requires_grad=True)))
    state = weft.get_rng_state()
    assert_equivalent(lambda x: x + weft.rand(3), weft.ones(3))
    assert not np.array_equal(state.numpy(), weft.get_rng_state().numpy())


def test_the_plugin_imports_no_weft() -> None:
    code = (
        "import sys, weft.testing.plugin;"
        "print([m for m in ('weft.codegen', 'weft.nn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_fixture_runs_a_test_both_ways(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest, weft

        def test_with_fixture(compiled_mode, request):
            f = compiled_mode(lambda x: x * 2)
            assert f(weft.ones(2)).sum().item() == 4.0
            compiled = "compiled" in request.node.name
            assert hasattr(f, "entries") == compiled

        @pytest.mark.weft_compiled
        def test_marked(request):
            assert weft.capture.is_compiling() == ("compiled" in request.node.name)
            x = weft.ones(3)
            y = (x + 1).sum()
            assert y.item() == 6.0

        @pytest.mark.weft_compiled
        @pytest.mark.parametrize("k", [1, 2])
        def test_marked_and_parametrized(k):
            assert (weft.ones(k) * k).sum().item() == k * k

        def test_equivalence(assert_equivalent):
            assert_equivalent(lambda x: x.exp(), weft.ones(2))
        """
    )
    result = pytester.runpytest_inprocess("-p", "weft.testing.plugin") if not _plugged(pytester) else (
        pytester.runpytest_inprocess())  # fmt: skip
    result.assert_outcomes(passed=9)


def _plugged(pytester: pytest.Pytester) -> bool:
    from importlib.metadata import entry_points

    return any(e.value == "weft.testing.plugin" for e in entry_points(group="pytest11"))
