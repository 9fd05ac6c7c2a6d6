"""The thread pool: every unit runs once, whatever the number of threads, callers, forks."""

from __future__ import annotations

import ctypes
import io
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from weft.codegen.target import host_target, named_target
from weft.ir import prims as P
from weft.ir.prims.base import trace
from weft.ir.types import TensorType, f32
from weft.runtime import compile_graph, get_num_threads, jit, pool_ir, set_num_threads, threads

# adds 1 to each element of its units, and the thread's number to a second array
KERNEL = """
define void @kernel(ptr %bufs, i64 %b, i64 %e, i64 %t) #0 {
start:
  %p = load ptr, ptr %bufs
  %q.at = getelementptr ptr, ptr %bufs, i64 1
  %q = load ptr, ptr %q.at
  br label %loop
loop:
  %i = phi i64 [ %b, %start ], [ %i1, %loop ]
  %a = getelementptr i64, ptr %p, i64 %i
  %old = load i64, ptr %a
  %new = add i64 %old, 1
  store i64 %new, ptr %a
  %w = getelementptr i64, ptr %q, i64 %i
  store i64 %t, ptr %w
  %i1 = add i64 %i, 1
  %more = icmp slt i64 %i1, %e
  br i1 %more, label %loop, label %done
done:
  ret void
}
declare void @weft_parallel_for(ptr, ptr, i64, i64, i64)
define void @many(ptr %bufs, i64 %units, i64 %grain, i64 %times, i64 %ns) #0 {
start:
  br label %loop
loop:
  %i = phi i64 [ 0, %start ], [ %i1, %loop ]
  call void @weft_parallel_for(ptr @kernel, ptr %bufs, i64 %units, i64 %grain, i64 %ns)
  %i1 = add i64 %i, 1
  %more = icmp slt i64 %i1, %times
  br i1 %more, label %loop, label %done
done:
  ret void
}
"""


@pytest.fixture(scope="module")
def many():
    target = host_target()
    image = jit.compile_object(KERNEL + target.attributes, target)
    found = jit.link(image, ("many",), {"weft_parallel_for": threads.parallel_for_address()})
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, *[ctypes.c_int64] * 4)(found["many"])

    def run(units, grain, times, ns=1 << 30):
        counts, who = np.zeros(units, np.int64), np.full(units, -1, np.int64)
        bufs = (ctypes.c_void_p * 2)(counts.ctypes.data, who.ctypes.data)
        call(ctypes.addressof(bufs), units, grain, times, ns)
        return counts, who

    return run


@pytest.fixture
def restore():
    before = get_num_threads()
    yield
    set_num_threads(before)


@pytest.mark.usefixtures("restore")
@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_every_unit_runs_once(many, n):
    set_num_threads(n)
    assert get_num_threads() == n
    for units, grain in [(1, 1), (2, 1), (7, 1), (1000, 1), (1000, 64), (1000, 5000), (65_537, 100)]:
        counts, who = many(units, grain, 50)
        assert (counts == 50).all()
        assert ((who >= 0) & (who < n)).all()


@pytest.mark.usefixtures("restore")
def test_several_callers_at_once(many):
    set_num_threads(3)
    wrong = []

    def work():
        for _ in range(20):
            counts, _ = many(5000, 10, 20)
            if not (counts == 20).all():
                wrong.append(counts)

    callers = [threading.Thread(target=work) for _ in range(5)]
    for c in callers:
        c.start()
    for c in callers:
        c.join()
    assert not wrong


@pytest.mark.usefixtures("restore")
def test_resizing_between_jobs(many):
    for k in range(30):
        set_num_threads(1 + k % 4)
        counts, _ = many(300, 1, 3)
        assert (counts == 3).all()


@pytest.mark.usefixtures("restore")
def test_child_of_a_fork_has_a_pool(many):
    set_num_threads(3)
    many(1000, 1, 5)
    pid = os.fork()
    if pid == 0:
        counts, _ = many(1000, 1, 50)
        os._exit(0 if (counts == 50).all() else 1)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    counts, _ = many(1000, 1, 5)
    assert (counts == 5).all()


@pytest.mark.parametrize("bad", [0, -1])
def test_set_num_threads_wants_a_positive_number(bad):
    with pytest.raises(RuntimeError, match="positive"):
        set_num_threads(bad)
    with pytest.raises(TypeError, match="expects an int"):
        set_num_threads(1.5)  # type: ignore[arg-type]


def test_other_systems_run_serially(many):
    assert "pthread_create" not in pool_ir.module("x86_64-pc-windows-msvc")
    assert pool_ir.supported("aarch64-unknown-linux-gnu") and not pool_ir.supported("arm64-apple-darwin")


@pytest.mark.parametrize("name", ["haswell", "neoverse-n1"])
def test_the_pool_is_built_for_other_processors(name):
    target = named_target(name)
    image = jit.compile_object(pool_ir.module(target.triple), target, 0)
    assert jit.undefined_symbols(image) <= pool_ir.LIBC | {"_GLOBAL_OFFSET_TABLE_"}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs an affinity mask")
def test_threads_that_share_one_core(many):
    """Who waits there holds the core that the others need."""
    allowed, before = os.sched_getaffinity(0), get_num_threads()
    try:
        set_num_threads(1)  # the next workers are started with the mask of one core
        os.sched_setaffinity(0, {min(allowed)})
        set_num_threads(3)
        counts, _ = many(1000, 1, 300)
        assert (counts == 300).all()
    finally:
        os.sched_setaffinity(0, allowed)
        set_num_threads(1)
        set_num_threads(before)


PROGRAM = """
import numpy as np, os, sys, threading
from weft.ir import prims as P
from weft.ir.prims.base import trace
from weft.ir.types import TensorType, f32
from weft.runtime import compile_graph, get_num_threads
t = TensorType((2000, 500), f32)
exe = compile_graph(trace(lambda x: P.exp_p.bind(x) * x, t))
x = np.ones((2000, 500), np.float32)
keep = exe.runner(x)
MORE
print(get_num_threads(), float(keep[0][0, 0]))
"""


def program(more: str, **env: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", PROGRAM.replace("MORE", more)], env={**os.environ, **env},
                          text=True, capture_output=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_exit_with_workers_and_live_arrays():
    assert float(program("")[1]) == pytest.approx(np.e, rel=1e-6)


def test_exit_while_a_daemon_thread_computes():
    loop = "threading.Thread(target=lambda: [exe.runner(x) for _ in range(100000)], daemon=True).start()"
    assert float(program(loop)[1]) == pytest.approx(np.e, rel=1e-6)


def test_number_of_threads_from_the_environment():
    assert program("", WEFT_NUM_THREADS="3")[0] == "3"
    assert program("", WEFT_NUM_THREADS="1")[0] == "1"


def test_affinity_limits_the_number_of_threads():
    assert threads.available_cpus() <= len(os.sched_getaffinity(0))


def test_child_of_a_fork_computes():
    fork = """
pid = os.fork()
if pid == 0:
    out = exe.runner(x)
    os._exit(0 if np.array_equal(out[0], keep[0]) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""
    assert float(program(fork)[1]) == pytest.approx(np.e, rel=1e-6)


def _dot(a, b):
    return P.dot_general_p.bind(a, b, contract=((1,), (0,)), batch=((), ()))


BIG, SQUARE = TensorType((300, 2000), f32), TensorType((257, 257), f32)
WORK = {
    "map": (lambda x: P.tanh_p.bind(x) * x, BIG),
    "rows": (lambda x: P.sum_p.bind(P.exp_p.bind(x), axes=(1,)), BIG),
    "columns": (lambda x: P.sum_p.bind(x * x, axes=(0,)), BIG),
    "everything": (lambda x: P.sum_p.bind(x, axes=(0, 1)), BIG),
    "dot": (lambda x: _dot(x, x), SQUARE),
    "sort": (lambda x: P.sort_p.bind(x, axis=1), BIG),
    "cumulative": (lambda x: P.cumsum_p.bind(x, axis=1), BIG),
}


@pytest.mark.usefixtures("restore")
@pytest.mark.parametrize("name", WORK)
def test_results_do_not_depend_on_the_number_of_threads(name):
    fn, t = WORK[name]
    exe = compile_graph(trace(fn, t))
    x = np.random.default_rng(0).standard_normal(t.shape).astype(np.float32)
    set_num_threads(1)
    want = [a.copy() for a in exe.runner(x)]
    for n in (2, 3, 7):
        set_num_threads(n)
        for _ in range(3):
            for a, b in zip(exe.runner(x), want, strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.usefixtures("restore")
def test_resizing_while_others_compute(many):
    """A caller that finds the pool busy with a resize does its work itself."""
    wrong, stop = [], threading.Event()

    def work():
        while not stop.is_set():
            counts, _ = many(3000, 10, 5)
            if not (counts == 5).all():
                wrong.append(counts)

    callers = [threading.Thread(target=work) for _ in range(3)]
    for c in callers:
        c.start()
    for k in range(20):
        set_num_threads(1 + k % 4)
    stop.set()
    for c in callers:
        c.join()
    assert not wrong


@pytest.mark.usefixtures("restore")
@pytest.mark.parametrize("ns", [0, 100, 20_000, 1 << 40])
def test_whether_sleepers_are_woken_changes_no_result(many, ns):
    set_num_threads(3)
    for _ in range(5):
        threading.Event().wait(0.02)  # long enough for the workers to fall asleep, mostly
        counts, _ = many(1000, 10, 3, ns)
        assert (counts == 3).all()


def _calls(elements: int) -> tuple[int, int]:
    """Parallel calls and direct ones of an elementwise kernel in the code of its entry."""
    t = TensorType((elements,), f32)
    text = compile_graph(trace(lambda x: P.exp_p.bind(x) * x, t)).llvm()
    entry = text[text.index("@weft_entry(") :]
    return entry.count("call void @weft_parallel_for("), entry.count("call void @k0")


def test_work_shorter_than_fork_and_join_stays_on_one_thread():
    assert _calls(4096) == (0, 1)
    assert _calls(1 << 20) == (1, 0)


V1 = "/sys/fs/cgroup/cpu/cpu.cfs_"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"/sys/fs/cgroup/cpu.max": "150000 100000"}, 2),
        ({"/sys/fs/cgroup/cpu.max": "100000 100000"}, 1),
        ({"/sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({V1 + "quota_us": "350000", V1 + "period_us": "100000"}, 4),
        ({V1 + "quota_us": "-1", V1 + "period_us": "100000"}, None),
        ({"/sys/fs/cgroup/cpu.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_quota_of_a_cgroup(monkeypatch, files, quota):
    def fake(path, *args):
        if path not in files:
            raise FileNotFoundError(path)
        return io.StringIO(files[path])

    monkeypatch.setattr(threads, "open", fake, raising=False)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: set(range(8)))
    assert threads._cgroup_quota() == quota
    assert threads.available_cpus() == (quota or 8)
