"""Python functions called from native code: their exceptions, their copies, several threads."""

from __future__ import annotations

import threading
import traceback

import numpy as np
import pytest
from weft.ir import prims as P
from weft.ir.prims.base import trace
from weft.ir.prims.host import HOST_FUNCTIONS, register_host
from weft.ir.types import TensorType, f32
from weft.runtime import compile_graph

T = TensorType((4,), f32)
KEPT: list[np.ndarray] = []


class Refused(Exception):
    pass


def picky(x):
    if (x < 0).any():
        raise Refused(f"negative: {x.min()}")
    return np.sqrt(x)


def keeping(x):
    KEPT.append(x)
    return x + 1


def interrupting(x):
    raise KeyboardInterrupt


for _name, _fn in {"picky": picky, "keeping": keeping, "interrupting": interrupting,
                   "misshapen": lambda x: x[:2]}.items():  # fmt: skip
    if "test." + _name not in HOST_FUNCTIONS:
        register_host("test." + _name, infer=lambda t: t, eval=_fn)


def calling(name):
    return trace(lambda x: P.host_call_p.bind(x + x, fn="test." + name) + x, T)


def test_result():
    x = np.float32([0, 2, 8, 18])
    np.testing.assert_array_equal(compile_graph(calling("picky")).runner(x)[0], [0, 4, 12, 24])


def test_exception_reaches_the_caller_with_its_traceback():
    exe = compile_graph(calling("picky"))
    with pytest.raises(Refused, match="negative: -2") as caught:
        exe.runner(np.float32([1, -1, 2, 3]))
    assert "picky" in [f.name for f in traceback.extract_tb(caught.value.__traceback__)]
    np.testing.assert_array_equal(exe.runner(np.float32([0, 2, 0, 2]))[0], [0, 4, 0, 4])


def test_keyboard_interrupt_reaches_the_caller():
    with pytest.raises(KeyboardInterrupt):
        compile_graph(calling("interrupting")).runner(np.zeros(4, np.float32))


def test_wrong_shape_is_an_error():
    with pytest.raises(RuntimeError, match="shape"):
        compile_graph(calling("misshapen")).runner(np.zeros(4, np.float32))


def test_function_may_keep_its_argument():
    KEPT.clear()
    exe = compile_graph(calling("keeping"))
    for k in range(5):
        exe.runner(np.full(4, k, np.float32))
    assert [float(a[0]) for a in KEPT] == [0, 2, 4, 6, 8]


def test_exception_inside_a_loop_stops_it():
    step = trace(lambda s, x: (P.host_call_p.bind(s + x, fn="test.picky"),), T, T)

    def fn(s, xs):
        return P.scan_p.bind(s, xs, n_carry=1, length=6, regions=(step,))

    exe = compile_graph(trace(fn, T, TensorType((6, 4), f32)))
    rows = np.ones((6, 4), np.float32)
    assert np.isfinite(exe.runner(np.ones(4, np.float32), rows)[0]).all()
    rows[3] = -100
    with pytest.raises(Refused):
        exe.runner(np.ones(4, np.float32), rows)


def test_exceptions_of_several_threads_do_not_mix():
    exe = compile_graph(calling("picky"))
    wrong = []

    def work(k):
        for _ in range(50):
            try:
                exe.runner(np.full(4, -k, np.float32))
            except Refused as e:
                if str(e) != f"negative: {-2.0 * k}":
                    wrong.append(str(e))
            else:
                wrong.append("no exception")

    ts = [threading.Thread(target=work, args=(k,)) for k in range(1, 6)]
    for t in ts:
        t.start()
    for t in ts:
        t.join()
    assert not wrong


def test_function_may_run_another_executable():
    t = TensorType((40, 40), f32)

    def fn(x):
        return P.cumsum_p.bind(P.cumsum_p.bind(x, axis=0), axis=1)

    inner = compile_graph(trace(fn, t))
    if "test.nested" not in HOST_FUNCTIONS:
        register_host("test.nested", infer=lambda t: t, eval=lambda x: inner.runner(x)[0])
    outer = trace(lambda x: fn(P.host_call_p.bind(fn(x), fn="test.nested")), t)
    x = np.random.default_rng(0).standard_normal((40, 40)).astype(np.float32)
    want = x
    for _ in range(3):
        want = np.cumsum(np.cumsum(want, axis=0), axis=1)
    for _ in range(3):
        np.testing.assert_allclose(compile_graph(outer).runner(x)[0], want, rtol=1e-3)
