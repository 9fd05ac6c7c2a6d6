"""Views alias; writes go through; version counters; in-place operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import weft as torch

VIEWS: dict[str, Callable[[Any], Any]] = {
    "view": lambda x: x.view(-1),
    "reshape": lambda x: x.reshape(4, 3),
    "t": lambda x: x.t(),
    "permute": lambda x: x.permute(1, 0),
    "slice": lambda x: x[1:, ::2],
    "select": lambda x: x[1],
    "unsqueeze": lambda x: x.unsqueeze(0),
    "squeeze": lambda x: x[:1].squeeze(),
    "narrow": lambda x: x.narrow(1, 1, 2),
    "diagonal": lambda x: x.diagonal(),
    "diagonal_offset": lambda x: x.diagonal(1),
    "unbind": lambda x: x.unbind(1)[2],
    "split": lambda x: x.split(2, 1)[1],
    "chunk": lambda x: x.chunk(2, 0)[0],
    "flatten": lambda x: x.flatten(),
    "movedim": lambda x: x.movedim(0, 1),
    "none": lambda x: x[None, :, None],
    "detach": lambda x: x.detach(),
    "data": lambda x: x.data,
    "T": lambda x: x.T,
    "mT": lambda x: x.mT,
    "nested": lambda x: x[1:].t()[1:, 0],
    "bits": lambda x: x.view(torch.int32),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_alias(name: str) -> None:
    x = torch.arange(12.0).reshape(3, 4).clone()
    v = VIEWS[name](x)
    before = x.clone()
    v.fill_(77)
    assert not torch.equal(x, before)
    x.fill_(5)
    assert (v == (5 if v.dtype is torch.float32 else 0x40A00000)).all()


def test_base_and_versions() -> None:
    x = torch.zeros(2, 3)
    v = x[0]
    w = v[1:]
    assert v._base is x and w._base is x and w._is_view() and not x._is_view()
    w.add_(1)
    v.mul_(2)
    assert x._version == v._version == w._version == 2
    assert x.tolist() == [[0, 2, 2], [0, 0, 0]]


def test_copies_do_not_alias() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    for y in (
        x.clone(),
        x[[0, 1]],
        x.flip(0),
        x.roll(1, 0),
        x.repeat(1, 1),
        torch.cat([x]),
        torch.stack([x])[0],
        x.floor(),
        x.tril(5),
        x.sum(()) if x.ndim == 0 else x.sort().values,
        x.contiguous().clone(),
        +x * 1,
        torch.tensor(x),
        x.t().contiguous(),
        torch.where(x > -1, x, x),
        x.clamp(-100, 100),
    ):
        y.fill_(-1)
        assert (x >= 0).all()


def test_expanded_memory_cannot_be_written() -> None:
    x = torch.zeros(1, 3).expand(4, 3)
    with pytest.raises(
        RuntimeError, match="more than one element of the written-to tensor refers to a single"
    ):
        x.add_(1)
    y = torch.zeros(3)
    y.expand(1, 3).add_(1)
    assert y.tolist() == [1, 1, 1]


def test_strides_and_contiguity() -> None:
    x = torch.zeros(2, 3, 4)
    assert x.stride() == (12, 4, 1) and x.is_contiguous()
    y = x.permute(2, 0, 1)
    assert y.stride() == (1, 12, 4) and not y.is_contiguous() and y.contiguous().is_contiguous()
    assert x[1, 1:].storage_offset() == 16 and x[:, ::2].stride(1) == 8
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        y.view(-1)


@pytest.mark.parametrize("name", ["add_", "sub_", "mul_", "div_", "pow_", "maximum", "clamp_min_"])
def test_in_place_arithmetic(name: str) -> None:
    x = torch.tensor([1.0, 4.0, 9.0])
    if not name.endswith("_"):
        return_value = getattr(x, name)(torch.tensor(2.0))
        assert return_value is not x
        return
    expected = getattr(x, name[:-1])(2.0)
    same = getattr(x, name)(2.0)
    assert same is x and torch.equal(x, expected)


def test_augmented_assignment_keeps_identity() -> None:
    x = torch.ones(3)
    y = x
    x += 1
    x *= 3
    x -= 1
    x /= 5
    x **= 2
    assert y is x and x.tolist() == [1, 1, 1]


def test_in_place_dtype_and_shape_errors() -> None:
    i = torch.ones(2, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="result type Float can't be cast to the desired output type Long"):
        i.add_(1.5)
    i.add_(2)
    assert i.dtype is torch.int64
    with pytest.raises(
        RuntimeError, match=r"output with shape \[2\] doesn't match the broadcast shape \[3, 2\]"
    ):
        torch.ones(2).add_(torch.ones(3, 2))


def test_copy_converts_and_broadcasts() -> None:
    x = torch.zeros(2, 2)
    x.copy_(torch.tensor([1, 2]))
    assert x.tolist() == [[1, 2], [1, 2]]
    with pytest.raises(RuntimeError, match="The expanded size of the tensor"):
        x.copy_(torch.ones(3))


def test_overlapping_copy() -> None:
    x = torch.arange(5.0)
    x[1:] = x[:-1]
    assert x.tolist() == [0, 0, 1, 2, 3]


def test_several_views_at_once_refuse_tracked_writes() -> None:
    x = torch.ones(2, 2, requires_grad=True) * 1
    a, _ = x.unbind(0)
    with pytest.raises(RuntimeError, match="is the output of a function that returns multiple views"):
        a.add_(1)


def test_shape_changing_in_place() -> None:
    x = torch.zeros(2, 3)
    x.unsqueeze_(0)
    assert x.shape == (1, 2, 3)
    x.squeeze_(0).t_()
    assert x.shape == (3, 2)


def test_data_assignment() -> None:
    x = torch.ones(2, requires_grad=True)
    x.data = torch.zeros(3)
    assert x.tolist() == [0, 0, 0] and x.requires_grad and x.is_leaf
    x.data.add_(4)
    assert x.tolist() == [4, 4, 4]


def test_numpy_memory_is_shared_both_ways() -> None:
    a = np.zeros(3)
    t = torch.from_numpy(a)
    t[0] = 1
    a[1] = 2
    assert a.tolist() == [1, 2, 0] and t.tolist() == [1, 2, 0] and np.shares_memory(t.numpy(), a)


@pytest.mark.parametrize("turn", [lambda x: x.t(), lambda x: x[:, ::2], lambda x: x[0].expand(3, 4)])
def test_the_diagonal_of_any_layout_is_a_view_compiled_too(turn: object) -> None:
    """No reshape could show the diagonal of memory that is not contiguous."""

    def fn(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = x * 2
        return y, turn(y).diagonal(1)  # type: ignore[operator]

    x = torch.arange(16.0).reshape(4, 4)
    base, view = torch.compile(fn)(x)
    want_base, want = fn(x)
    assert torch.equal(base, want_base) and torch.equal(view, want)
    assert view.data_ptr() - base.data_ptr() == want.data_ptr() - want_base.data_ptr()
    base.fill_(7)
    assert (view == 7).all()


def test_writing_through_a_diagonal_compiled() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        y = x + 0
        y.permute(2, 0, 1).diagonal(-1, 1, 2).fill_(9)
        return y

    x = torch.arange(24.0).reshape(3, 4, 2)
    assert torch.equal(torch.compile(fn, fullgraph=True)(x), fn(x))
