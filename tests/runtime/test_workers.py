"""Tasks beside the main path: run once, by whoever comes first, through errors, forks and the end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
from weft.runtime import threads, workers


@pytest.fixture(params=[1, 2, 4])
def cpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(threads, "_wanted", request.param)
    return request.param


def test_results_in_any_order(cpus: int) -> None:
    tasks = [workers.begin(pow, k, 2) for k in range(50)]
    assert [t.result() for t in reversed(tasks)] == [k * k for k in reversed(range(50))]
    assert [t.result() for t in tasks] == [k * k for k in range(50)]


def test_every_call_is_made_once(cpus: int) -> None:
    seen: list[int] = []
    tasks = [workers.begin(seen.append, k) for k in range(50)]
    askers = [threading.Thread(target=lambda: [t.result() for t in tasks]) for _ in range(3)]
    for a in askers:
        a.start()
    for a in askers:
        a.join()
    assert sorted(seen) == list(range(50))


def test_errors_are_raised_where_the_result_is_wanted(cpus: int) -> None:
    task = workers.begin(int, "x")
    for _ in range(2):
        with pytest.raises(ValueError, match="invalid literal"):
            task.result()
    assert task.done and workers.begin(int, "7").result() == 7


def test_one_cpu_runs_in_order_on_the_asking_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_wanted", 1)
    tasks = [workers.begin(threading.get_ident) for _ in range(3)]
    assert not any(t.done for t in tasks)
    assert {t.result() for t in tasks} == {threading.get_ident()}


def test_no_more_threads_than_cpus_and_none_left(cpus: int) -> None:
    gate, running, most = threading.Event(), [0], [0]
    lock = threading.Lock()

    def work() -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        gate.wait(0.02)
        with lock:
            running[0] -= 1

    tasks = [workers.begin(work) for _ in range(8)]
    gate.set()
    for t in tasks:
        t.result()
    assert 1 <= most[0] <= cpus
    for thread in list(workers._threads):
        thread.join(10)
    assert not workers._threads and not workers._queue


def test_an_interrupted_task_can_be_asked_for_again() -> None:
    calls: list[int] = []

    def work() -> int:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return len(calls)

    task = workers.Task(work, ())
    with pytest.raises(KeyboardInterrupt):
        task.result()
    assert not task.done and task.result() == 2


FORK = """
import os, threading, time
from weft.runtime import threads, workers
threads._wanted = 2
began, gate = threading.Event(), threading.Event()
def work():
    began.set()
    time.sleep(0.2)
    return os.getpid()
parent = os.getpid()
tasks = [workers.begin(work) for _ in range(3)]
began.wait(20)
child = os.fork()  # waits for the one at work
if child == 0:
    ok = [t.result() == parent for t in tasks] == [True, False, False]
    os._exit(0 if ok and workers.begin(pow, 2, 3).result() == 8 else 1)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), {t.result() for t in tasks} == {parent})
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_waits_for_what_is_at_work_and_leaves_the_rest_to_both() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "0 True", done.stderr


EXIT = """
import atexit, time
from weft.runtime import threads, workers
threads._wanted = 2
atexit.register(lambda: print(workers.begin(pow, 2, 5).result()))
def work():
    time.sleep(0.2)
    print("finished")
workers.begin(work)
"""


def test_the_end_of_the_process_waits_for_work() -> None:
    done = subprocess.run([sys.executable, "-c", EXIT], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["finished", "32"] and not done.stderr
