"""Work beside the main path: LLVM gives up Python's lock while it generates code, so a second thread compiles
what is written already while the first one writes the rest.

A thread lives as long as there is work, and no longer. A fork waits until none is at work, since what a
thread holds inside LLVM would stay held in the child; so does the end of the interpreter. Whoever wants the
result of a task that nobody has begun does it himself; so nothing waits for a thread that cannot be had, and
with one CPU everything runs in order on one thread.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from weft.runtime.threads import get_num_threads

R = TypeVar("R")


class Task(Generic[R]):
    """A call that some thread makes, once."""

    def __init__(self, fn: Callable[..., R], args: tuple[Any, ...]) -> None:
        self._fn, self._args = fn, args
        self._claim = threading.Lock()  # held by who makes the call, for good
        self._done = threading.Event()
        self._result: R
        self._error: BaseException | None = None

    def run(self) -> None:
        """Make the call, unless somebody does so already."""
        if not self._claim.acquire(blocking=False):
            return
        try:
            self._result = self._fn(*self._args)
        except Exception as e:
            self._error = e
        except BaseException:  # interrupted: whoever asks next begins again
            self._claim.release()
            raise
        self._done.set()

    @property
    def done(self) -> bool:
        return self._done.is_set()

    def result(self) -> R:
        """What the call returned, or raised; waits for it where another thread makes it."""
        self.run()
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._result


_queue: deque[Task[Any]] = deque()
_threads: set[threading.Thread] = set()
_lock = threading.Lock()  # of the two above
_at_work = threading.Condition(threading.Lock())
_busy: set[threading.Thread] = set()  # threads that run a task now
_forking: set[threading.Thread] = set()  # threads that wait to fork: nothing is begun until they have


def _before_fork() -> None:
    me = threading.current_thread()
    _at_work.acquire()
    _forking.add(me)
    while _busy - {me}:
        _at_work.wait()
    _lock.acquire()


def _after_fork() -> None:
    _forking.discard(threading.current_thread())
    _at_work.notify_all()
    _lock.release()
    _at_work.release()


def _in_child() -> None:
    """The threads are gone, and the tasks are left to whoever asks for them."""
    global _lock, _at_work
    _lock, _at_work = threading.Lock(), threading.Condition(threading.Lock())
    for found in (_queue, _threads, _busy, _forking):
        found.clear()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)


def begin(fn: Callable[..., R], *args: Any) -> Task[R]:
    """Have ``fn(*args)`` called by another thread, if there is a CPU for it."""
    task = Task(fn, args)
    with _lock:
        if len(_threads) < get_num_threads() - 1:
            thread = threading.Thread(target=_work, name="weft-compile")
            _threads.add(thread)
            try:
                thread.start()
            except RuntimeError:  # no more threads, or the interpreter is about to end
                _threads.discard(thread)
        if _threads:
            _queue.append(task)
    time.sleep(0)  # it gets to LLVM now, not when Python would next change threads, in 5 ms
    return task


def finished(result: R) -> Task[R]:
    """A task that is done."""
    task = Task(lambda: result, ())
    task.run()
    return task


def _next() -> Task[Any] | None:
    """The task that this thread makes its own; None where there is none, and the thread ends."""
    me = threading.current_thread()
    with _at_work:
        while _forking:
            _at_work.wait()
        with _lock:
            if not _queue:
                _threads.discard(me)
                return None
            _busy.add(me)
            return _queue.popleft()


def _work() -> None:
    while (task := _next()) is not None:
        task.run()
        with _at_work:
            _busy.discard(threading.current_thread())
            _at_work.notify_all()
