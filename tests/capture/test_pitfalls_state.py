"""Capture pitfalls: Python state that changes between calls, and state that functions change.

Whatever a function does, compiled it gives what it gives eagerly.
"""

from __future__ import annotations

import contextvars
import functools
import itertools
import logging
import os
import random
import threading
import time
import types
from collections import deque
from typing import Any

import numpy as np
import pytest
import weft
from weft.testing import assert_close
from weft.testing import assert_same_story as check


def x3() -> weft.Tensor:
    return weft.tensor([1.0, -2.0, 3.0])


# -- Python state that changes between calls


def test_closure_value_changed() -> None:
    def scenario(decorate: Any) -> Any:
        factor = 2.0

        @decorate
        def f(x: weft.Tensor) -> weft.Tensor:
            return x * factor

        out = [f(x3())]
        factor = 5.0
        out.append(f(x3()))
        factor = 2.0
        return [*out, f(x3())]

    check(scenario)


GLOBAL = 3.0
MADE_BY_A_CALL = 5
GLOBAL_TENSOR = weft.tensor([1.0, 2.0, 3.0])


def uses_global(x: weft.Tensor) -> weft.Tensor:
    return x * GLOBAL + GLOBAL_TENSOR


def test_global_changed() -> None:
    def scenario(decorate: Any) -> Any:
        global GLOBAL, GLOBAL_TENSOR
        f = decorate(uses_global)
        out = [f(x3())]
        GLOBAL = 7.0
        out.append(f(x3()))
        GLOBAL_TENSOR = weft.tensor([4.0, 4.0, 4.0])
        out.append(f(x3()))
        GLOBAL_TENSOR.add_(1)
        out.append(f(x3()))
        GLOBAL, GLOBAL_TENSOR = 3.0, weft.tensor([1.0, 2.0, 3.0])
        return out

    check(scenario)


def test_another_tensor_in_a_global_needs_no_new_version() -> None:
    global GLOBAL_TENSOR
    f = weft.compile(uses_global, fullgraph=True)
    f(x3())
    GLOBAL_TENSOR = weft.tensor([9.0, 9.0, 9.0])
    try:
        assert_close(f(x3()), uses_global(x3()))
        assert len(f.entries) == 1
    finally:
        GLOBAL_TENSOR = weft.tensor([1.0, 2.0, 3.0])


def test_list_mutated() -> None:
    def scenario(decorate: Any) -> Any:
        factors = [1.0, 2.0]

        @decorate
        def f(x: weft.Tensor) -> weft.Tensor:
            for factor in factors:
                x = x * factor
            return x

        out = [f(x3())]
        factors.append(3.0)
        out.append(f(x3()))
        factors[0] = 10.0
        out.append(f(x3()))
        factors.clear()
        return [*out, f(x3())]

    check(scenario)


def test_dict_set_and_deque_mutated() -> None:
    def scenario(decorate: Any) -> Any:
        scale, flags, queue = {"a": 2.0}, {"double"}, deque([1.0])

        @decorate
        def f(x: weft.Tensor) -> weft.Tensor:
            for v in scale.values():
                x = x * v
            if "double" in flags:
                x = x * 2
            return x + queue[0]

        out = [f(x3())]
        scale["b"] = 5.0
        out.append(f(x3()))
        flags.discard("double")
        out.append(f(x3()))
        queue.appendleft(9.0)
        out.append(f(x3()))
        del scale["a"]
        return [*out, f(x3())]

    check(scenario)


def test_nested_container_mutated() -> None:
    def scenario(decorate: Any) -> Any:
        config = {"layers": [{"scale": 1.0}, {"scale": 2.0}]}

        @decorate
        def f(x: weft.Tensor) -> weft.Tensor:
            for layer in config["layers"]:
                x = x * layer["scale"]
            return x

        out = [f(x3())]
        config["layers"][1]["scale"] = 4.0
        return [*out, f(x3())]

    check(scenario)


class Settings:
    scale = 2.0
    bias = 0.0


def test_attribute_of_a_plain_object_and_of_its_class_changed() -> None:
    def scenario(decorate: Any) -> Any:
        s = Settings()

        @decorate
        def f(x: weft.Tensor) -> weft.Tensor:
            return x * s.scale + s.bias

        out = [f(x3())]
        s.scale = 5.0
        out.append(f(x3()))
        Settings.bias = 1.0
        out.append(f(x3()))
        del s.scale
        out.append(f(x3()))
        Settings.bias = 0.0
        return out

    check(scenario)


def test_method_replaced_on_a_class() -> None:
    class Op:
        def run(self, x: weft.Tensor) -> weft.Tensor:
            return x * 2

    def scenario(decorate: Any) -> Any:
        op = Op()

        @decorate
        def f(x: weft.Tensor) -> weft.Tensor:
            return op.run(x)

        first, old = f(x3()), Op.run
        Op.run = lambda self, x: x * 100  # type: ignore[method-assign]
        second = f(x3())
        Op.run = old  # type: ignore[method-assign]
        return [first, second]

    check(scenario)


def test_mutable_default_argument() -> None:
    def scenario(decorate: Any) -> Any:
        def f(x: weft.Tensor, scales: list[float] = [2.0]) -> weft.Tensor:  # noqa: B006
            return x * scales[0]

        g = decorate(f)
        out = [g(x3())]
        f.__defaults__[0][0] = 5.0  # type: ignore[index]
        return [*out, g(x3())]

    check(scenario)


def test_function_in_a_closure_replaced() -> None:
    def scenario(decorate: Any) -> Any:
        activation = weft.relu

        @decorate
        def f(x: weft.Tensor) -> weft.Tensor:
            return activation(x)

        out = [f(x3())]
        activation = weft.tanh
        return [*out, f(x3())]

    check(scenario)


def test_partial_and_wrapped_functions() -> None:
    def scenario(decorate: Any) -> Any:
        def base(x: weft.Tensor, a: float, b: float = 0.0) -> weft.Tensor:
            return x * a + b

        @functools.wraps(base)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return base(*args, **kwargs)

        return [decorate(functools.partial(base, a=2.0))(x3()), decorate(wrapped)(x3(), 3.0, b=1.0)]

    check(scenario)


def test_small_numpy_array_in_a_closure_mutated() -> None:
    def scenario(decorate: Any) -> Any:
        table = np.array([1.0, 2.0], np.float32)

        @decorate
        def f(x: weft.Tensor) -> weft.Tensor:
            return x * float(table[0])

        out = [f(x3())]
        table[0] = 6.0
        return [*out, f(x3())]

    check(scenario)


def test_large_numpy_array_in_a_closure_mutated() -> None:
    def scenario(decorate: Any) -> Any:
        table = np.ones(1000, np.float32)

        @decorate
        def f(x: weft.Tensor) -> weft.Tensor:
            return x + weft.tensor(table).sum()

        out = [f(x3())]
        table[3] = 6.0
        return [*out, f(x3())]

    check(scenario)


def test_generator_object_in_a_closure() -> None:
    def scenario(decorate: Any) -> Any:
        counter = itertools.count(1)

        @decorate
        def f(x: weft.Tensor) -> weft.Tensor:
            return x * next(counter)

        return [f(x3()) for _ in range(4)]

    check(scenario)


def test_environment_variables_are_read_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    @weft.compile
    def f(x: weft.Tensor) -> weft.Tensor:
        return x * float(os.environ["WEFT_TEST_SCALE"])

    for k in range(1, 6):
        monkeypatch.setenv("WEFT_TEST_SCALE", str(k))
        assert_close(f(x3()), x3() * k)


def test_globals_by_name() -> None:
    def scenario(decorate: Any) -> Any:
        global GLOBAL
        f = decorate(lambda x: x * globals()["GLOB" + "AL"])
        out = [f(x3())]
        GLOBAL = 11.0
        out.append(f(x3()))
        GLOBAL = 3.0
        return out

    check(scenario)


LOGGER = logging.getLogger("tests.capture")


def test_a_silent_logger_is_no_break_and_a_loud_one_logs(caplog: pytest.LogCaptureFixture) -> None:
    def f(x: weft.Tensor) -> weft.Tensor:
        LOGGER.debug("called")
        return x + 1

    silent = weft.compile(f, fullgraph=True)
    LOGGER.setLevel(logging.WARNING)
    assert_close(silent(x3()), x3() + 1)
    loud = weft.compile(f)
    for _ in range(2):
        loud(x3())
    with caplog.at_level(logging.DEBUG, "tests.capture"):
        for _ in range(4):
            loud(x3())
    assert caplog.text.count("called") == 4


def test_simple_namespaces_and_bound_builtin_methods() -> None:
    def scenario(decorate: Any) -> Any:
        config, seen = types.SimpleNamespace(scale=2.0), []
        note = seen.append

        @decorate
        def f(x: weft.Tensor) -> weft.Tensor:
            return x * config.scale

        @decorate
        def g(x: weft.Tensor) -> weft.Tensor:
            note(1)
            return x

        out = [f(x3()), g(x3())]
        config.scale = 5.0
        return [*out, f(x3()), g(x3()), g(x3()), len(seen)]

    check(scenario)


def test_thread_locals_and_context_variables() -> None:
    local, context = threading.local(), contextvars.ContextVar("scale", default=1.0)

    @weft.compile
    def f(x: weft.Tensor) -> weft.Tensor:
        return x * local.scale + context.get()

    for k in range(5):
        local.scale = float(k)
        context.set(k * 2.0)
        assert_close(f(x3()), x3() * k + k * 2.0)


# -- side effects on Python objects


def test_attribute_set_on_self() -> None:
    class Counter:
        def __init__(self) -> None:
            self.calls, self.last = 0, None

        def run(self, x: weft.Tensor) -> weft.Tensor:
            self.calls += 1
            self.last = x * self.calls
            return self.last + 1

    def scenario(decorate: Any) -> Any:
        c = Counter()
        f = decorate(c.run)
        out = [f(x3()) for _ in range(6)]
        return [*out, c.calls, c.last]

    check(scenario)


def test_new_attributes_and_new_globals() -> None:
    class Holder:
        pass

    def scenario(decorate: Any) -> Any:
        global MADE_BY_A_CALL
        h, k = Holder(), Holder()
        globals().pop("MADE_BY_A_CALL")

        @decorate
        def f(x: weft.Tensor) -> weft.Tensor:
            global MADE_BY_A_CALL
            h.flag = True  # type: ignore[attr-defined]
            MADE_BY_A_CALL = 5
            return x * (2 if hasattr(k, "double") else 1)

        out = [f(x3()), h.flag, MADE_BY_A_CALL]  # type: ignore[attr-defined]
        for i in range(4):
            del h.flag
            globals().pop("MADE_BY_A_CALL")
            if i == 2:
                k.double = True  # type: ignore[attr-defined]
            out += [f(x3()), h.flag, MADE_BY_A_CALL]
        return out

    check(scenario)


def test_an_attribute_that_appears() -> None:
    class Holder:
        pass

    k = Holder()
    f = weft.compile(lambda x: x * getattr(k, "scale", 1.0), fullgraph=True)
    assert_close(f(x3()), x3())
    k.scale = 4.0  # type: ignore[attr-defined]
    assert_close(f(x3()), x3() * 4)


def test_tensor_stored_in_a_list_outside() -> None:
    def scenario(decorate: Any) -> Any:
        seen: list[weft.Tensor] = []

        @decorate
        def f(x: weft.Tensor) -> weft.Tensor:
            y = x * 2
            seen.append(y)
            return y + 1

        out = [f(x3() * i) for i in range(5)]
        return [*out, *seen]

    check(scenario)


def test_tensor_kept_by_a_cache() -> None:
    def scenario(decorate: Any) -> Any:
        @functools.lru_cache
        def table(n: int) -> weft.Tensor:
            return weft.arange(n) * 2.0

        @decorate
        def f(x: weft.Tensor) -> weft.Tensor:
            return x + table(3)

        out = [f(x3()) for _ in range(4)]
        return [*out, table(3)]

    check(scenario)


def test_lazily_made_attribute_settles_into_one_graph() -> None:
    class Model:
        mask: Any = None

        def run(self, x: weft.Tensor) -> weft.Tensor:
            if self.mask is None:
                self.mask = weft.ones(3) * 2
            return x * self.mask

    m = Model()
    f = weft.compile(m.run)
    outs = [f(x3()) for _ in range(4)]
    for out in outs:
        assert_close(out, x3() * 2)
    assert len(f.breaks) == 1 and len(f.entries) == 1


def test_nonlocal_and_global_written() -> None:
    def scenario(decorate: Any) -> Any:
        global GLOBAL
        total = 0

        @decorate
        def f(x: weft.Tensor) -> weft.Tensor:
            nonlocal total
            global GLOBAL
            total += 1
            GLOBAL = GLOBAL + 1
            return x * total

        out = [f(x3()) for _ in range(4)]
        result = [*out, total, GLOBAL]
        GLOBAL = 3.0
        return result

    check(scenario)


def test_argument_containers_mutated() -> None:
    def scenario(decorate: Any) -> Any:
        @decorate
        def f(xs: list[weft.Tensor], d: dict[str, Any]) -> weft.Tensor:
            xs.append(xs[0] * 2)
            d["n"] = d.get("n", 0) + 1
            return xs[-1] + 1

        out = []
        for _ in range(3):
            xs, d = [x3()], {"n": 1}
            out += [f(xs, d), xs, d]
        return out

    check(scenario)


def test_print(capsys: pytest.CaptureFixture[str]) -> None:
    def f(x: weft.Tensor) -> weft.Tensor:
        y = x * 2
        print("value", y)
        return y + 1

    compiled = weft.compile(f)
    for _ in range(4):
        f(x3())
        eager = capsys.readouterr().out
        assert_close(compiled(x3()), x3() * 2 + 1)
        assert capsys.readouterr().out == eager


def test_print_without_tensors(capsys: pytest.CaptureFixture[str]) -> None:
    @weft.compile
    def f(x: weft.Tensor) -> weft.Tensor:
        print("called")
        return x + 1

    for _ in range(5):
        f(x3())
    assert capsys.readouterr().out == "called\n" * 5


def test_time_is_read_at_each_call() -> None:
    @weft.compile
    def f(x: weft.Tensor) -> tuple[weft.Tensor, float]:
        return x + 1, time.perf_counter()

    assert f(x3())[1] < f(x3())[1]


def test_random_numbers_of_python_numpy_and_weft() -> None:
    def scenario(decorate: Any) -> Any:
        rng = np.random.default_rng(0)

        @decorate
        def python(x: weft.Tensor) -> weft.Tensor:
            return x * random.random()

        @decorate
        def gauss(x: weft.Tensor) -> weft.Tensor:
            return x * random.gauss(0.0, 1.0)

        @decorate
        def numpy(x: weft.Tensor) -> weft.Tensor:
            return x * float(np.random.rand())

        @decorate
        def numpy_generator(x: weft.Tensor) -> weft.Tensor:
            return x * float(rng.normal())

        @decorate
        def own(x: weft.Tensor) -> weft.Tensor:
            return x * weft.rand(3) + weft.randn(3)

        return [f(x3()) for _ in range(4) for f in (python, gauss, numpy, numpy_generator, own)]

    check(scenario)


def test_random_bits_are_equal_compiled_and_one_version_is_enough() -> None:
    f = weft.compile(lambda x: x + weft.rand(3), fullgraph=True)
    weft.manual_seed(3)
    compiled = [f(x3()) for _ in range(3)]
    weft.manual_seed(3)
    eager = [x3() + weft.rand(3) for _ in range(3)]
    for a, b in zip(compiled, eager, strict=True):
        assert_close(a, b, rtol=0, atol=0)
    assert len(f.entries) == 1
