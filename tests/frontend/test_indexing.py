"""Indexing and assignment against numpy, on many generated keys, and the errors."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import weft as torch


def _key(rng: random.Random, rs: np.random.RandomState, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """A key that fits ``shape``: arrays as numpy arrays."""
    key: list[Any] = []
    for n in shape[: rng.randint(0, len(shape))]:
        if rng.random() < 0.15:
            key.append(None)
        kind = rng.choice(["int", "slice", "array", "mask", "full", "grid"])
        if kind == "int":
            key.append(rng.randint(-n, n - 1))
        elif kind == "full":
            key.append(slice(None))
        elif kind == "slice":
            ends = [None, *range(-n - 1, n + 2)]
            key.append(slice(rng.choice(ends), rng.choice(ends), rng.choice([None, 1, 2, 3])))
        elif kind == "array":
            key.append(rs.randint(-n, n, (3,)))
        elif kind == "grid":
            key.append(rs.randint(-n, n, (2, 3)))
        else:
            key.append(rs.rand(n) > 0.5)
    if rng.random() < 0.2:
        key.append(Ellipsis)
    if any(isinstance(k, np.ndarray) for k in key):  # numpy, unlike torch, counts ints among the arrays then
        key = [slice(k, k + 1 or None) if isinstance(k, int) else k for k in key]
    return tuple(key)


def _as_tensors(key: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(torch.from_numpy(k) if isinstance(k, np.ndarray) else k for k in key)


@pytest.mark.parametrize("seed", range(300))
def test_generated_keys(seed: int) -> None:
    rng, rs = random.Random(seed), np.random.RandomState(seed)
    shape = tuple(rng.randint(1, 5) for _ in range(rng.randint(1, 4)))
    a, key = rs.randn(*shape), _key(rng, rs, shape)
    x = torch.from_numpy(a.copy()).requires_grad_()
    try:
        want = a[key]
    except IndexError:
        with pytest.raises(IndexError):
            x[_as_tensors(key)]
        return
    got = x[_as_tensors(key)]
    np.testing.assert_array_equal(got.detach().numpy(), want)
    if not got.numel():
        return
    weights = np.asarray(rs.randn(*want.shape))
    (got * torch.from_numpy(weights)).sum().backward()
    gradient = np.zeros(shape)
    np.add.at(gradient, key, weights)
    np.testing.assert_allclose(x.grad.numpy(), gradient)
    y, b = torch.from_numpy(a.copy()), a.copy()
    y[_as_tensors(key)] = 2.5
    b[key] = 2.5
    np.testing.assert_array_equal(y.numpy(), b)


def test_basic_keys_are_views_and_arrays_are_copies() -> None:
    x = torch.arange(12).reshape(3, 4)
    assert x[1]._is_view() and x[:, 1:]._is_view() and x[...]._is_view() and x[None]._is_view()
    assert not x[[0, 1]]._is_view() and not x[x > 3]._is_view()


def test_lists_bools_and_scalars() -> None:
    x = torch.arange(6).reshape(2, 3)
    assert x[[0, 1], [2, 0]].tolist() == [2, 3]
    assert x[True].shape == (1, 2, 3) and x[False].shape == (0, 2, 3)
    assert x[torch.tensor(1)].tolist() == [3, 4, 5]
    assert x[np.int64(1), torch.tensor(2)].item() == 5
    assert x[[True, False]].tolist() == [[0, 1, 2]]
    assert x[range(1)].tolist() == [[0, 1, 2]]


def test_assignment_broadcasts() -> None:
    x = torch.zeros(2, 3)
    x[:, 1] = torch.tensor([5.0, 6.0])
    x[0] = 1
    x[..., 2] = torch.tensor([[[9.0]]])[0]
    assert x.tolist() == [[1, 1, 9], [0, 6, 9]]
    x[x > 5] = torch.tensor([1.0, 2.0, 3.0])
    assert x.tolist() == [[1, 1, 1], [0, 2, 3]]
    x[x > 1] = -1
    assert x.min().item() == -1
    i = torch.zeros(3, dtype=torch.int64)
    i[1] = 2.7
    assert i.tolist() == [0, 2, 0]


def test_gradient_of_assignment() -> None:
    x = torch.ones(3, requires_grad=True)
    v = torch.tensor([2.0, 3.0], requires_grad=True)
    y = x * 4
    y[[0, 2]] = v * 5
    (y * y).sum().backward()
    assert x.grad.tolist() == [0, 32, 0] and v.grad.tolist() == [100, 150]


def test_index_put_accumulates() -> None:
    x = torch.zeros(3)
    x.index_put_((torch.tensor([0, 0, 2]),), torch.tensor([1.0, 2.0, 3.0]), accumulate=True)
    assert x.tolist() == [3, 0, 3]
    assert torch.index_put(x, (torch.tensor([1]),), torch.tensor(7.0)).tolist() == [3, 7, 3]
    assert x.tolist() == [3, 0, 3]


ERRORS: list[tuple[Any, type[Exception], str]] = [
    (5, IndexError, "index 5 is out of bounds for dimension 0 with size 2"),
    ((0, 0, 0), IndexError, "too many indices for tensor of dimension 2"),
    (slice(None, None, -1), ValueError, "step must be greater than zero"),
    ([0, 5], IndexError, "index 5 is out of bounds for dimension 0 with size 2"),
    ([0.5], IndexError, "tensors used as indices must be long, int, byte or bool tensors"),
    ([True, False, True], IndexError, "The shape of the mask"),
    (([0, 1], [0, 1, 2]), IndexError, "shape mismatch: indexing tensors could not be broadcast"),
    ((Ellipsis, 0, Ellipsis), IndexError, "single ellipsis"),
    ("a", TypeError, "only integers, slices"),
    (1.5, IndexError, "only integers, slices"),
]


@pytest.mark.parametrize(("key", "kind", "text"), ERRORS, ids=lambda v: str(v)[:20])
def test_errors(key: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        torch.zeros(2, 3)[key]


def test_assignment_errors() -> None:
    with pytest.raises(RuntimeError, match="The expanded size of the tensor"):
        torch.zeros(2, 3)[0] = torch.ones(2)
    with pytest.raises(RuntimeError, match="shape mismatch: value tensor of shape"):
        torch.zeros(2, 3)[[0, 1]] = torch.ones(4)
    with pytest.raises(IndexError, match="0-dim tensor"):
        torch.tensor(1.0)[0]
