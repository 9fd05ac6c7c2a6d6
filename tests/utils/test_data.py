"""Datasets, samplers and the loader, with and without workers."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
import pytest
import weft
from weft.utils.data import (
    BatchSampler,
    ChainDataset,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
    get_worker_info,
    random_split,
)


class Squares(Dataset[Any]):
    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return weft.tensor([float(i), float(i * i)]), i


class Broken(Squares):
    def __getitem__(self, i: int) -> tuple[Any, int]:
        if i == 5:
            raise ValueError("sample 5 is broken")
        return super().__getitem__(i)


class Counting(IterableDataset[int]):
    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Iterator[int]:
        info = get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        return iter(range(first, self.n, step))


def numbers(loader: DataLoader) -> list[list[int]]:
    return [labels.tolist() for _, labels in loader]


def test_tensor_dataset_gives_rows() -> None:
    x, y = weft.arange(6.0).reshape(3, 2), weft.arange(3)
    data = TensorDataset(x, y)
    assert len(data) == 3
    row, label = data[1]
    assert row.tolist() == [2.0, 3.0] and label.item() == 1
    with pytest.raises(AssertionError, match="Size mismatch between tensors"):
        TensorDataset(x, weft.arange(4))


def test_concat_chain_and_subset() -> None:
    both = Squares(3) + Squares(2)
    assert isinstance(both, ConcatDataset) and len(both) == 5
    assert [both[i][1] for i in range(5)] == [0, 1, 2, 0, 1]
    assert both[-1][1] == 1
    with pytest.raises(ValueError, match="should not exceed dataset length"):
        both[-6]
    assert list(ChainDataset([Counting(2), Counting(3)])) == [0, 1, 0, 1, 2]
    assert [Subset(Squares(9), [8, 2])[i][1] for i in range(2)] == [8, 2]


def test_random_split_parts_are_disjoint_and_follow_the_seed() -> None:
    first = random_split(Squares(10), [0.65, 0.35], generator=weft.Generator().manual_seed(3))
    again = random_split(Squares(10), [7, 3], generator=weft.Generator().manual_seed(3))
    assert [len(p) for p in first] == [7, 3]
    assert [list(p.indices) for p in first] == [list(p.indices) for p in again]
    assert sorted(i for p in first for i in p.indices) == list(range(10))
    with pytest.raises(ValueError, match="does not equal the length"):
        random_split(Squares(10), [7, 4])


def test_samplers() -> None:
    data = Squares(6)
    assert list(SequentialSampler(data)) == list(range(6))
    assert sorted(RandomSampler(data)) == list(range(6))
    drawn = list(RandomSampler(data, replacement=True, num_samples=50))
    assert len(drawn) == 50 and set(drawn) <= set(range(6))
    assert sorted(SubsetRandomSampler([4, 1, 9])) == [1, 4, 9]
    assert list(BatchSampler(range(7), 3, False)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(BatchSampler(range(7), 3, True)) == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ValueError, match="batch_size should be a positive integer"):
        BatchSampler(range(7), 0, False)


def test_weighted_sampler_follows_the_weights() -> None:
    weft.manual_seed(0)
    counts = np.bincount(list(WeightedRandomSampler([0.0, 1.0, 3.0], 4000)), minlength=3)
    assert counts[0] == 0 and 2.5 < counts[2] / counts[1] < 3.6
    assert sorted(WeightedRandomSampler([1.0, 2.0, 3.0], 3, replacement=False)) == [0, 1, 2]


def test_batches_in_order_and_the_last_one() -> None:
    loader = DataLoader(Squares(7), batch_size=3)
    assert numbers(loader) == [[0, 1, 2], [3, 4, 5], [6]] and len(loader) == 3
    assert numbers(DataLoader(Squares(7), batch_size=3, drop_last=True)) == [[0, 1, 2], [3, 4, 5]]
    x, _ = next(iter(loader))
    assert x.shape == (3, 2) and x.dtype is weft.float32


def test_shuffle_follows_the_seed_and_changes_between_epochs() -> None:
    loader = DataLoader(Squares(20), batch_size=6, shuffle=True)
    weft.manual_seed(7)
    first, second = numbers(loader), numbers(loader)
    weft.manual_seed(7)
    assert numbers(loader) == first and first != second
    assert sorted(chain(*first)) == list(range(20))


def test_samples_without_batches() -> None:
    assert [label for _, label in DataLoader(Squares(3), batch_size=None)] == [0, 1, 2]


def test_options_that_exclude_each_other() -> None:
    data = Squares(3)
    with pytest.raises(ValueError, match="mutually exclusive with shuffle"):
        DataLoader(data, shuffle=True, sampler=[0])
    with pytest.raises(ValueError, match="mutually exclusive with batch_size"):
        DataLoader(data, batch_size=2, batch_sampler=[[0]])
    with pytest.raises(ValueError, match="mutually exclusive with drop_last"):
        DataLoader(data, batch_size=None, drop_last=True)
    with pytest.raises(ValueError, match="IterableDataset"):
        DataLoader(Counting(3), shuffle=True)
    with pytest.raises(ValueError, match="non-negative"):
        DataLoader(data, num_workers=-1)


def test_collating_nested_samples() -> None:
    Point = namedtuple("Point", "x y")
    batch = default_collate([{"a": np.ones(2), "b": (1, 2.5), "c": "u", "p": Point(1, 2)} for _ in range(3)])
    assert batch["a"].shape == (3, 2) and batch["a"].dtype is weft.float64
    assert batch["b"][0].dtype is weft.int64 and batch["b"][1].dtype is weft.float64
    assert batch["c"] == ["u", "u", "u"] and batch["p"].y.tolist() == [2, 2, 2]
    with pytest.raises(TypeError, match="default_collate"):
        default_collate([object()])
    with pytest.raises(RuntimeError, match="equal size"):
        default_collate([[1], [1, 2]])


def test_streams() -> None:
    assert [b.tolist() for b in DataLoader(Counting(5), batch_size=2)] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_give_the_same_batches(workers: int) -> None:
    plain = list(DataLoader(Squares(11), batch_size=2))
    made = list(DataLoader(Squares(11), batch_size=2, num_workers=workers))
    assert [b[1].tolist() for b in made] == [b[1].tolist() for b in plain]
    assert all((a[0] == b[0]).all().item() for a, b in zip(made, plain, strict=True))


def test_workers_share_a_stream() -> None:
    batches = [b.tolist() for b in DataLoader(Counting(9), batch_size=2, num_workers=2)]
    assert sorted(chain(*batches)) == list(range(9))


def test_an_error_of_a_worker_reaches_the_caller() -> None:
    with pytest.raises(ValueError, match="Caught ValueError in DataLoader worker process"):
        list(DataLoader(Broken(8), batch_size=2, num_workers=2))


def test_leaving_a_loop_early_stops_the_workers() -> None:
    batches = iter(DataLoader(Squares(50), batch_size=2, num_workers=2))
    assert next(batches)[1].tolist() == [0, 1]
    batches.close()  # type: ignore[attr-defined]
    assert list(batches) == []


def test_batches_of_tensors_are_gathered_at_once_and_are_the_same() -> None:
    class Doubled(TensorDataset):
        def __getitem__(self, index: int) -> tuple[weft.Tensor, ...]:
            return tuple(t * 2 for t in super().__getitem__(index))

    x, y = weft.randn(10, 3), weft.arange(10)
    data = TensorDataset(x, y)
    single = default_collate([data[i] for i in (3, 1)])
    assert all(weft.equal(a, b) for a, b in zip(data.gather([3, 1]) or (), single, strict=True))
    part = Subset(data, [9, 8, 7])
    assert [b[1].tolist() for b in DataLoader(part, batch_size=2)] == [[9, 8], [7]]
    assert [b[1].tolist() for b in DataLoader(Doubled(x, y), batch_size=5)] == [
        [0, 2, 4, 6, 8],
        [10, 12, 14, 16, 18],
    ]
    assert DataLoader(data, batch_size=2, collate_fn=len).__iter__().__next__() == 2
