"""Work beside the main path: LLVM gives up Python's lock while it generates code, so a second thread compiles
what is written already while the first one writes the rest.

A thread lives as long as there is work, and no longer: a fork finds none at rest, and at its end the
interpreter waits for those at work. Whoever wants the result of a task that nobody has begun does it himself;
so nothing waits for a thread that cannot be had, and with one CPU everything runs in order on one thread.
"""

from __future__ import annotations

import os
import threading
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
        self._process = os.getpid()

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
        if self._process != os.getpid() and not self.done:
            self.__init__(self._fn, self._args)  # a fork has left the thread behind that made it
        self.run()
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._result


_queue: deque[Task[Any]] = deque()
_threads: set[threading.Thread] = set()
_lock = threading.Lock()


def _renew() -> None:
    """In the child of a fork: the threads are gone, and their tasks with whoever asks for them."""
    global _lock
    _lock = threading.Lock()
    _queue.clear()
    _threads.clear()


os.register_at_fork(after_in_child=_renew)


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
    return task


def finished(result: R) -> Task[R]:
    """A task that is done."""
    task = Task(lambda: result, ())
    task.run()
    return task


def _work() -> None:
    while True:
        with _lock:
            if not _queue:
                _threads.discard(threading.current_thread())
                return
            task = _queue.popleft()
        task.run()
