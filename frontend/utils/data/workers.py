"""Worker processes of a loader.

Each worker is forked where the platform can (spawned elsewhere), gets numbered tasks on its own queue and
answers on a shared one; the main process hands the batches out in order. A worker's exception is raised in
the main process with the worker's traceback. Tensors travel as numpy arrays.
"""

from __future__ import annotations

import multiprocessing
import queue
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from weft.tensor import Tensor
from weft.utils.data import dataloader

if TYPE_CHECKING:
    from weft.utils.data.dataloader import DataLoader

_STOP, _END = "stop", "end"
_POLL = 1.0  # seconds between looks at whether a silent worker is still alive


class _Failure:
    """An exception of a worker, as text and as the object if it can travel."""

    def __init__(self, error: BaseException, worker: int) -> None:
        self.text = (
            f"Caught {type(error).__name__} in DataLoader worker process {worker}.\n" + traceback.format_exc()
        )
        self.kind = type(error)

    def raise_(self) -> None:
        try:
            error = self.kind(self.text)
        except TypeError:  # a constructor of other arguments
            error = RuntimeError(self.text)
        raise error


class _Packed:
    """A tensor on its way between processes."""

    def __init__(self, t: Tensor) -> None:
        self.array, self.requires_grad = (
            np.ascontiguousarray(t.detach().numpy()).reshape(t.shape),
            t.requires_grad,
        )

    def tensor(self) -> Tensor:
        from weft.creation import from_numpy

        return from_numpy(self.array).requires_grad_(self.requires_grad)


def _map(fn: Any, x: Any) -> Any:
    """``fn`` on the leaves of nested dicts, tuples and lists."""
    if isinstance(x, dict):
        return {k: _map(fn, v) for k, v in x.items()}
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*(_map(fn, v) for v in x))
    if isinstance(x, (tuple, list)):
        return type(x)(_map(fn, v) for v in x)
    return fn(x)


def pack(x: Any) -> Any:
    return _map(lambda v: _Packed(v) if isinstance(v, Tensor) else v, x)


def unpack(x: Any) -> Any:
    return _map(lambda v: v.tensor() if isinstance(v, _Packed) else v, x)


def _work(loader: DataLoader, worker: int, seed: int, tasks: Any, answers: Any) -> None:
    """The life of a worker."""
    from weft.random import manual_seed

    manual_seed(seed)
    dataloader._worker_info = dataloader.WorkerInfo(worker, loader.num_workers, seed, loader.dataset)
    stream: Iterator[Any] | None = None
    try:
        if loader.worker_init_fn is not None:
            loader.worker_init_fn(worker)
        stream = loader.stream() if loader.is_iterable else None
    except Exception as error:
        answers.put((None, _Failure(error, worker)))
        return
    while (task := tasks.get()) != _STOP:
        number, index = task
        try:
            answer = next(stream) if stream is not None else loader.fetch(index)
            answers.put((number, pack(answer)))
        except StopIteration:
            answers.put((number, _END))
        except Exception as error:
            answers.put((number, _Failure(error, worker)))


class _Pool:
    """The workers of one pass over the data."""

    def __init__(self, loader: DataLoader) -> None:
        from weft.random import randint

        methods = multiprocessing.get_all_start_methods()
        context = loader.multiprocessing_context or ("fork" if "fork" in methods else "spawn")
        how: Any = multiprocessing.get_context(context) if isinstance(context, str) else context
        seed = int(randint(0, 2**62, (), generator=loader.generator).item())
        self.loader = loader
        self.answers = how.Queue()
        self.tasks = [how.Queue() for _ in range(loader.num_workers)]
        self.processes = [
            how.Process(target=_work, args=(loader, i, seed + i, q, self.answers), daemon=True)
            for i, q in enumerate(self.tasks)
        ]
        self.arrived: dict[int, Any] = {}
        for p in self.processes:
            p.start()

    def send(self, number: int, worker: int, index: Any) -> None:
        self.tasks[worker].put((number, index))

    def receive(self, number: int) -> Any:
        """The answer to task ``number``, whenever it comes."""
        waited = 0.0
        while number not in self.arrived:
            try:
                key, answer = self.answers.get(timeout=_POLL)
            except queue.Empty:
                waited += _POLL
                self._check(waited)
                continue
            if isinstance(answer, _Failure):
                answer.raise_()
            self.arrived[key] = answer
        return self.arrived.pop(number)

    def _check(self, waited: float) -> None:
        if self.loader.timeout and waited >= self.loader.timeout:
            raise RuntimeError(f"DataLoader timed out after {self.loader.timeout} seconds")
        dead = [p.pid for p in self.processes if not p.is_alive()]
        if dead:
            raise RuntimeError(f"DataLoader worker (pid(s) {', '.join(map(str, dead))}) exited unexpectedly")

    def close(self) -> None:
        for q in self.tasks:
            q.put(_STOP)
        for p in self.processes:
            p.join(timeout=_POLL)
            if p.is_alive():
                p.terminate()
                p.join()


def load_with_workers(loader: DataLoader) -> Iterator[Any]:
    """The batches of a loader in order, made by its workers."""
    pool = _Pool(loader)
    try:
        yield from _streams(loader, pool) if loader.is_iterable else _batches(loader, pool)
    finally:
        pool.close()


def _batches(loader: DataLoader, pool: _Pool) -> Iterator[Any]:
    """Tasks go round the workers, some ahead of the batch that is wanted."""
    ahead = loader.num_workers * loader.prefetch_factor
    sent = 0
    indices = loader.indices()
    done = 0
    while True:
        while sent - done < ahead:
            try:
                pool.send(sent, sent % loader.num_workers, next(indices))
            except StopIteration:
                break
            sent += 1
        if done == sent:
            return
        yield unpack(pool.receive(done))
        done += 1


def _streams(loader: DataLoader, pool: _Pool) -> Iterator[Any]:
    """Each worker has a stream of its own; they take turns until all have ended."""
    live = list(range(loader.num_workers))
    pending: list[tuple[int, int]] = []
    sent = 0
    for _ in range(loader.prefetch_factor):
        for worker in live:
            pool.send(sent, worker, None)
            pending.append((sent, worker))
            sent += 1
    while pending:
        number, worker = pending.pop(0)
        answer = pool.receive(number)
        if isinstance(answer, str) and answer == _END:
            live = [w for w in live if w != worker]
            continue
        if worker in live:
            pool.send(sent, worker, None)
            pending.append((sent, worker))
            sent += 1
        yield unpack(answer)
