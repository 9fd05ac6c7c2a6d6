"""The loader: batches of a dataset, made here or by worker processes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from weft.tensor import Tensor
from weft.utils.data.dataset import IterableDataset, Subset, TensorDataset
from weft.utils.data.sampler import BatchSampler, RandomSampler, SequentialSampler


def default_collate(batch: list[Any]) -> Any:
    """Samples as one batch: tensors and arrays stacked, numbers as a tensor, containers element by element.

    TypeError for what cannot be batched; strings stay a list.
    """
    from weft.creation import as_tensor, tensor
    from weft.ir.types import f64
    from weft.ops.shape import stack

    first = batch[0]
    if isinstance(first, Tensor):
        return stack(batch)
    if isinstance(first, (np.ndarray, np.generic)) and not isinstance(first, (np.str_, np.bytes_)):
        return as_tensor(np.stack(batch))
    if isinstance(first, float):
        return tensor(batch, dtype=f64)
    if isinstance(first, (bool, int)):
        return tensor(batch)
    if isinstance(first, (str, bytes)):
        return batch
    if isinstance(first, Mapping):
        merged = {key: default_collate([sample[key] for sample in batch]) for key in first}
        return merged if type(first) is dict else type(first)(merged)  # type: ignore[call-arg]
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*(default_collate(list(column)) for column in zip(*batch, strict=True)))
    if isinstance(first, (tuple, list)):
        if any(len(sample) != len(first) for sample in batch):
            raise RuntimeError("each element in list of batch should be of equal size")
        return [default_collate(list(column)) for column in zip(*batch, strict=True)]
    raise TypeError(
        f"default_collate: batch must contain tensors, numpy arrays, numbers, dicts or lists; "
        f"found {type(first)}"
    )


def default_convert(sample: Any) -> Any:
    """A sample that is not batched: arrays as tensors."""
    from weft.creation import as_tensor

    return as_tensor(sample) if isinstance(sample, np.ndarray) else sample


class WorkerInfo(NamedTuple):
    """What :func:`get_worker_info` tells inside a worker."""

    id: int
    num_workers: int
    seed: int
    dataset: Any


_worker_info: WorkerInfo | None = None


def get_worker_info() -> WorkerInfo | None:
    """Which worker this is; None in the main process. For streams that are to be shared among workers."""
    return _worker_info


def _has_gpu() -> bool:
    from weft import cuda

    return cuda.is_available()


def pinned(batch: Any) -> Any:
    """A batch with its tensors, nested ones too, in pinned memory; objects may have a ``pin_memory``."""
    if isinstance(batch, (str, bytes)):
        return batch
    if isinstance(batch, Mapping):
        return {k: pinned(v) for k, v in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*map(pinned, batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(map(pinned, batch))
    return batch.pin_memory() if hasattr(batch, "pin_memory") else batch


class DataLoader:
    """Batches of a dataset, with the arguments of ``torch.utils.data.DataLoader``.

    ``num_workers`` processes make batches ahead (``prefetch_factor`` each); in the same order as without.
    ``shuffle`` follows ``generator`` or ``manual_seed``. ``batch_size=None`` gives the samples as they are.

    >>> import weft
    >>> from weft.utils.data import TensorDataset
    >>> [x.tolist() for (x,) in DataLoader(TensorDataset(weft.arange(5)), batch_size=2)]
    [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Iterable[Any] | None = None,
        batch_sampler: Iterable[Any] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], Any] | None = None,
        multiprocessing_context: Any = None,
        generator: Any = None,
        *,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
    ) -> None:
        if num_workers < 0:
            raise ValueError(
                "num_workers option should be non-negative; use num_workers=0 to disable multiprocessing."
            )
        if num_workers == 0 and prefetch_factor is not None:
            raise ValueError(
                "prefetch_factor option could only be specified in multiprocessing. let num_workers > 0 "
                "to enable multiprocessing, otherwise set prefetch_factor to None."
            )
        self.dataset, self.num_workers, self.timeout = dataset, num_workers, timeout
        self.worker_init_fn, self.generator = worker_init_fn, generator
        self.multiprocessing_context = multiprocessing_context
        self.prefetch_factor = 2 if prefetch_factor is None else prefetch_factor
        self.pin_memory, self.persistent_workers = pin_memory, persistent_workers
        self.is_iterable = isinstance(dataset, IterableDataset)
        self._choose_samplers(batch_size, shuffle, sampler, batch_sampler, drop_last)
        default = (
            default_convert if self.batch_sampler is None and self.batch_size is None else default_collate
        )
        self.collate_fn = default if collate_fn is None else collate_fn

    def _choose_samplers(
        self, batch_size: int | None, shuffle: Any, sampler: Any, batch_sampler: Any, drop_last: bool
    ) -> None:
        if sampler is not None and shuffle:
            raise ValueError("sampler option is mutually exclusive with shuffle")
        if self.is_iterable and (shuffle or sampler is not None or batch_sampler is not None):
            raise ValueError(
                "DataLoader with IterableDataset: expected unspecified shuffle, sampler and batch_sampler "
                "options"
            )
        if batch_sampler is not None:
            if batch_size != 1 or shuffle or sampler is not None or drop_last:
                raise ValueError(
                    "batch_sampler option is mutually exclusive with batch_size, shuffle, sampler, and "
                    "drop_last"
                )
            batch_size = None
        elif batch_size is None and drop_last:
            raise ValueError(
                "batch_size=None option disables auto-batching and is mutually exclusive with drop_last"
            )
        if sampler is None and not self.is_iterable:
            random = RandomSampler(self.dataset, generator=self.generator) if shuffle else None
            sampler = random or SequentialSampler(self.dataset)
        if batch_size is not None and sampler is not None:
            batch_sampler = BatchSampler(sampler, batch_size, drop_last)
        self.batch_size, self.drop_last = batch_size, drop_last
        self.sampler, self.batch_sampler = sampler, batch_sampler

    def __len__(self) -> int:
        if self.is_iterable:
            n = len(self.dataset)
            if self.batch_size is None:
                return n
            return n // self.batch_size if self.drop_last else -(-n // self.batch_size)
        return len(self.sampler if self.batch_sampler is None else self.batch_sampler)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        batches = self._batches()
        if not self.pin_memory or not _has_gpu():
            return batches
        return map(pinned, batches)

    def _batches(self) -> Iterator[Any]:
        if self.num_workers:
            from weft.utils.data.workers import load_with_workers

            return load_with_workers(self)
        if self.is_iterable:
            return self.stream()
        return (self.fetch(index) for index in self.indices())

    def indices(self) -> Iterator[Any]:
        """What :meth:`fetch` takes, one per batch."""
        return iter(self.sampler if self.batch_sampler is None else self.batch_sampler)  # type: ignore[arg-type]

    def fetch(self, index: Any) -> Any:
        """The batch of some indices (of one, without batches)."""
        if self.batch_sampler is None:
            return self.collate_fn(self.dataset[index])
        if self.collate_fn is default_collate and isinstance(self.dataset, (TensorDataset, Subset)):
            batch = self.dataset.gather(index)
            if batch is not None:
                return batch
        many = getattr(self.dataset, "__getitems__", None)
        return self.collate_fn(many(index) if many is not None else [self.dataset[i] for i in index])

    def stream(self) -> Iterator[Any]:
        """The batches of an iterable dataset."""
        samples = iter(self.dataset)
        if self.batch_size is None:
            yield from map(self.collate_fn, samples)
            return
        while batch := list(itertools.islice(samples, self.batch_size)):
            if len(batch) == self.batch_size or not self.drop_last:
                yield self.collate_fn(batch)
