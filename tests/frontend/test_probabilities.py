"""Errors for numbers that are no probabilities: binary cross entropy and multinomial, in torch's words."""

from __future__ import annotations

from typing import Any

import pytest
import weft

INF, NAN = float("inf"), float("nan")
LOSS = "all elements of {} should be between 0 and 1"
RACE = "probability tensor contains either `inf`, `nan` or element < 0"
ENTRY = "invalid multinomial distribution (encountering probability entry {})"
EMPTY = "invalid multinomial distribution (sum of probabilities <= 0)"

LOSSES = [
    ([0.5, 1.5], [1.0, 0.0], LOSS.format("input")),
    ([0.5, -0.1], [1.0, 0.0], LOSS.format("input")),
    ([0.5, NAN], [1.0, 0.0], LOSS.format("input")),
    ([0.5, 0.2], [1.0, 7.0], LOSS.format("target")),
    ([0.5, 0.2], [1.0, NAN], LOSS.format("target")),
]
DRAWS = [
    ([-1.0, 2.0], 1, False, RACE),
    ([-1.0, 2.0], 1, True, RACE),
    ([NAN, 1.0], 1, False, RACE),
    ([INF, 1.0], 1, False, RACE),
    ([-1.0, 2.0], 3, True, ENTRY.format("< 0")),
    ([NAN, 2.0], 3, True, ENTRY.format("< 0")),
    ([INF, 2.0], 3, True, ENTRY.format("= infinity or NaN")),
    ([0.0, 0.0], 1, False, EMPTY),
    ([[1.0, 2.0], [0.0, 0.0]], 2, True, EMPTY),
    ([1, 0], 1, False, "multinomial only supports floating-point dtypes for input, got: Long"),
    (1.0, 1, False, "prob_dist must be 1 or 2 dim"),
]


def message(fn: Any) -> str:
    with pytest.raises(RuntimeError) as info:
        fn()
    return str(info.value)


@pytest.mark.parametrize(("p", "t", "words"), LOSSES)
def test_binary_cross_entropy(p: Any, t: Any, words: str) -> None:
    loss = weft.nn.functional.binary_cross_entropy
    assert message(lambda: loss(weft.tensor(p), weft.tensor(t))) == words


def test_the_ends_are_probabilities() -> None:
    x = weft.tensor([0.0, 1.0], requires_grad=True)
    loss = weft.nn.functional.binary_cross_entropy(x, weft.tensor([0.0, 1.0]))
    loss.backward()
    assert loss.item() == 0.0
    assert weft.nn.functional.binary_cross_entropy(weft.zeros(0), weft.zeros(0)).isnan()


@pytest.mark.parametrize(("p", "n", "replacement", "words"), DRAWS)
def test_multinomial(p: Any, n: int, replacement: bool, words: str) -> None:
    assert message(lambda: weft.multinomial(weft.tensor(p), n, replacement)) == words


def test_multinomial_of_good_weights() -> None:
    assert sorted(weft.multinomial(weft.tensor([1.0, 0.0, 0.0]), 2).tolist())[0] == 0
    assert weft.multinomial(weft.ones(0, 3), 1).shape == (0, 1)
    assert set(weft.multinomial(weft.tensor([[0.0, 2.0], [3.0, 0.0]]), 5, True).flatten().tolist()) == {0, 1}


@pytest.mark.parity
def test_as_torch() -> None:
    torch = pytest.importorskip("torch")
    for p, t, words in LOSSES:
        loss = torch.nn.functional.binary_cross_entropy
        assert message(lambda p=p, t=t, loss=loss: loss(torch.tensor(p), torch.tensor(t))) == words
    for p, n, replacement, words in DRAWS:
        draw = torch.multinomial
        assert message(lambda p=p, n=n, r=replacement, f=draw: f(torch.tensor(p), n, r)) == words
