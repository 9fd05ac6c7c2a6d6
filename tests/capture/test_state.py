"""Traced numbers, the pause of a capture, the mutation epoch."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import weft
from weft.capture import state
from weft.capture.state import ScalarLog, TracedScalar, hidden_scalar, paused


def traced(value: float) -> tuple[TracedScalar, ScalarLog]:
    log = ScalarLog()
    return TracedScalar(value, ("leaf", 0), log), log


def test_a_traced_number_passes_as_the_number() -> None:
    a, log = traced(2.5)
    assert isinstance(a, float) and not isinstance(a, int) and type(a) is TracedScalar
    assert isinstance(traced(3)[0], int)
    assert log.guards == {}


@pytest.mark.parametrize("op", [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow,
                                operator.floordiv, operator.mod])  # fmt: skip
def test_arithmetic_builds_expressions_and_guards_nothing(op: Callable[..., Any]) -> None:
    a, log = traced(2.5)
    for out, want in ((op(a, 3), op(2.5, 3)), (op(3, a), op(3, 2.5)), (op(a, a), op(2.5, 2.5))):
        assert type(out) is TracedScalar and out._weft_value == want
    assert all(key[0] == "type_is" for key in log.guards)


def test_comparisons_guard_on_their_outcome() -> None:
    a, log = traced(2.5)
    assert a > 2 and not a * 2 < 1 and a
    assert log.guards == {
        ("gt", ("leaf", 0), ("const", "int", 2)): True,
        ("lt", ("mul", ("leaf", 0), ("const", "int", 2)), ("const", "int", 1)): False,
        ("ne", ("leaf", 0), ("const", "int", 0)): True,
    }


ASKS: list[Callable[[Any], Any]] = [
    float, int, str, hash, math.sqrt, round,
    lambda a: f"{a:.1f}",
    lambda a: a.is_integer(),
    lambda a: np.asarray(a) * 1,
    lambda a: {2.5: 1}[a],
]  # fmt: skip


@pytest.mark.parametrize("ask", ASKS)
def test_asking_for_the_value_guards_on_it(ask: Callable[[Any], Any]) -> None:
    a, log = traced(2.5)
    assert ask(a) == ask(2.5)
    assert log.guards[("leaf", 0)] == 2.5


def test_ints_index_and_repeat() -> None:
    n, log = traced(3)
    assert list(range(n)) == [0, 1, 2] and [7] * n == [7, 7, 7] and "abcd"[n] == "d"
    assert log.guards == {("leaf", 0): 3}
    assert traced(6)[0] & 3 == 2 and traced(1)[0] << 3 == 8


def test_a_number_whose_trace_has_ended_is_plain() -> None:
    a, log = traced(2.0)
    log.closed = True
    assert type(a + 1) is float and a + 1 == 3.0 and not a.is_live and log.guards == {}


def test_unknown_attributes_and_foreign_operands() -> None:
    a, _ = traced(2.0)
    with pytest.raises(AttributeError, match="'float' object has no attribute 'shape'"):
        _ = a.shape  # type: ignore[attr-defined]
    with pytest.raises(TypeError):
        _ = a + "text"
    with pytest.raises(ZeroDivisionError):
        _ = a / 0
    np.testing.assert_array_equal(a * np.ones(2), [2.0, 2.0])


def test_hidden_scalars_are_plain_outside_a_capture() -> None:
    group = {"lr": 0.5, "name": "g"}
    assert hidden_scalar(group, "lr") == 0.5 and type(hidden_scalar(group, "lr")) is float

    @weft.compile(fullgraph=True)
    def f(x: weft.Tensor) -> weft.Tensor:
        assert type(hidden_scalar(group, "lr")) is TracedScalar and hidden_scalar(group, "name") == "g"
        return x * hidden_scalar(group, "lr")

    for lr in (0.5, 0.25):
        group["lr"] = lr
        assert f(weft.ones(1)).item() == lr


def test_the_pause_makes_ordinary_tensors() -> None:
    seen = []

    def f(x: weft.Tensor) -> weft.Tensor:
        with paused():
            seen.append((state.is_capturing(), weft.ones(2).tolist()))
        return x + 1

    with weft.lazy():
        assert state.is_capturing()
        y = f(weft.ones(1))
    assert seen == [(False, [1.0, 1.0])] and y.item() == 2.0 and not state.is_capturing()


def test_the_epoch_moves() -> None:
    before = state.EPOCH[0]
    weft.nn.Linear(1, 1).eval()
    assert state.EPOCH[0] > before
