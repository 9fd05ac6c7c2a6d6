"""A catalogue of capture pitfalls: whatever a function does, compiled it gives what it gives eagerly.

Each case is run eagerly and compiled side by side on equal fresh state, several calls long.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import random
import threading
import time
import types
from collections import OrderedDict, deque, namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import weft
from weft.capture import CaptureError
from weft.testing import assert_close, assert_equivalent


def both(make: Callable[[Callable[[Any], Any]], Any]) -> tuple[Any, Any]:
    """Run a scenario eagerly and compiled from one seed; ``make(decorate)`` returns what it observed."""
    weft.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    eager = make(lambda fn: fn)
    weft.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    return eager, make(weft.compile)


def check(make: Callable[[Callable[[Any], Any]], Any]) -> None:
    eager, compiled = both(make)
    assert_close(compiled, eager, rtol=1e-5, atol=1e-6)


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


# -- values asked for


def test_data_dependent_if() -> None:
    def f(x: weft.Tensor) -> weft.Tensor:
        if x.sum() > 0:
            return x * 2
        return x - 1

    g = weft.compile(f)
    for sign in (1, -1, 1, -1):
        assert_close(g(x3() * sign), f(x3() * sign))


def test_item_in_the_middle() -> None:
    def f(x: weft.Tensor) -> weft.Tensor:
        y = x * 2
        return y * y.sum().item() + 1

    g = weft.compile(f)
    for k in range(5):
        assert_close(g(x3() + k), f(x3() + k))


def test_numpy_inside() -> None:
    assert_equivalent(lambda x: weft.from_numpy(np.sort(x.numpy() * 2)) + x, x3())


def test_while_on_a_tensor() -> None:
    def f(x: weft.Tensor) -> weft.Tensor:
        while x.abs().max() > 0.1:
            x = x / 2
        return x

    assert_equivalent(f, x3())


def test_fullgraph_names_the_line() -> None:
    @weft.compile(fullgraph=True)
    def f(x: weft.Tensor) -> weft.Tensor:
        y = x * 2
        if y.sum() > 0:  # the line of the break
            return y
        return x

    with pytest.raises(
        CaptureError, match=r"test_pitfalls.py:\d+: if y.sum\(\) > 0:  # the line of the break"
    ):
        f(x3())


def test_fullgraph_names_side_effects() -> None:
    @weft.compile(fullgraph=True)
    def prints(x: weft.Tensor) -> weft.Tensor:
        print("hello")
        return x + 1

    with pytest.raises(CaptureError, match=r"calls print\(\), at .*test_pitfalls.py:\d+: print"):
        prints(x3())
    calls: list[int] = []

    @weft.compile(fullgraph=True)
    def appends(x: weft.Tensor) -> weft.Tensor:
        calls.append(1)
        return x + 1

    with pytest.raises(CaptureError, match="it changes closure variable `calls`"):
        appends(x3())


# -- control flow that tracing follows


def test_recursion_generator_and_early_return() -> None:
    def power(x: weft.Tensor, n: int) -> weft.Tensor:
        return x if n == 0 else power(x, n - 1) * 2

    def stages(x: weft.Tensor) -> Any:
        for k in range(3):
            yield x * k

    def f(x: weft.Tensor, n: int, stop: bool) -> weft.Tensor:
        if stop:
            return x
        return power(x, n) + sum(stages(x))

    assert_equivalent(f, x3(), 3, False, fullgraph=True)
    assert_equivalent(f, x3(), 3, True, fullgraph=True)


def test_comprehensions_lambdas_local_classes_and_match() -> None:
    def f(x: weft.Tensor, kind: str) -> Any:
        class Pair:
            def __init__(self, a: Any, b: Any) -> None:
                self.a, self.b = a, b

        pairs = [Pair(x * i, x + i) for i in range(3)]
        match kind:
            case "sum":
                return sum(p.a + p.b for p in pairs)
            case _:
                return max(pairs, key=lambda p: id(p) * 0).a

    assert_equivalent(f, x3(), "sum", fullgraph=True)
    assert_equivalent(f, x3(), "other", fullgraph=True)


def test_exception_inside() -> None:
    def f(x: weft.Tensor, y: weft.Tensor) -> weft.Tensor:
        y.add_(1)
        raise ValueError("stop here")

    g = weft.compile(f)
    for _ in range(3):
        a, b = x3(), x3()
        with pytest.raises(ValueError, match="stop here"):
            g(a, b)
        assert_close(b, x3() + 1)
    assert weft.capture.is_compiling() is False
    assert_close(weft.compile(lambda x: x + 1)(x3()), x3() + 1)


def test_exception_caught_inside() -> None:
    def f(x: weft.Tensor) -> weft.Tensor:
        try:
            return x + weft.ones(7)
        except RuntimeError:
            return x - 1

    assert_equivalent(f, x3(), fullgraph=True)


def test_wrong_arguments_raise_the_functions_own_error() -> None:
    @weft.compile
    def f(x: weft.Tensor) -> weft.Tensor:
        return x

    with pytest.raises(TypeError, match="positional argument"):
        f(x3(), x3())


def test_nested_compile() -> None:
    inner = weft.compile(lambda x: x * 2)
    outer = weft.compile(lambda x: inner(x) + inner(x + 1), fullgraph=True)
    assert_close(outer(x3()), x3() * 2 + (x3() + 1) * 2)
    assert len(inner.entries) == 0 and len(outer.entries) == 1
    assert_close(inner(x3()), x3() * 2)
    assert_close(outer(x3()), x3() * 2 + (x3() + 1) * 2)


def test_threads() -> None:
    f = weft.compile(lambda x, k: (x * k).sin().sum())
    wrong: list[int] = []

    def work(k: int) -> None:
        for _ in range(20):
            if abs(f(x3(), float(k)).item() - (x3() * k).sin().sum().item()) > 1e-5:
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong and len(f.entries) == 1


def test_thread_started_inside() -> None:
    @weft.compile
    def f(x: weft.Tensor) -> weft.Tensor:
        out: list[weft.Tensor] = []
        t = threading.Thread(target=lambda: out.append(weft.ones(3) * 5))
        t.start()
        t.join()
        return x + out[0]

    for _ in range(3):
        assert_close(f(x3()), x3() + 5)


# -- arguments


def test_python_float_as_data_is_one_version() -> None:
    f = weft.compile(lambda x, a: x * a + 2 * a**2 - a / 3, fullgraph=True)
    for k in range(20):
        a = 0.1 * k + 0.01
        assert_close(f(x3(), a), x3() * a + 2 * a**2 - a / 3)
    assert len(f.entries) == 1 and f.recompiles == []


def test_python_float_as_branch() -> None:
    def f(x: weft.Tensor, a: float) -> weft.Tensor:
        return x * a if a > 1 else x - a

    g = weft.compile(f, fullgraph=True)
    for a in (0.5, 2.0, 0.25, 7.0, 1.0):
        assert_close(g(x3(), a), f(x3(), a))
    assert len(g.entries) == 2
    assert g.recompiles == ["(a > 1) is no longer False"]


def test_python_float_errors_are_pythons() -> None:
    def f(x: weft.Tensor, a: float) -> weft.Tensor:
        return x * (1.0 / a)

    g = weft.compile(f, fullgraph=True)
    assert_close(g(x3(), 2.0), x3() / 2)
    with pytest.raises(ZeroDivisionError):
        g(x3(), 0.0)
    assert_close(g(x3(), 4.0), x3() / 4)


def test_float_functions_guard_on_the_value() -> None:
    def f(x: weft.Tensor, a: float) -> weft.Tensor:
        return x * math.sqrt(a)

    g = weft.compile(f, fullgraph=True)
    for a in (1.0, 4.0, 1.0, 9.0):
        assert_close(g(x3(), a), f(x3(), a))
    assert len(g.entries) == 3


def test_ints_become_inputs_when_they_change() -> None:
    g = weft.compile(lambda x, n: x * n, fullgraph=True)
    for n in range(10):
        assert_close(g(x3(), n), x3() * n)
    assert len(g.entries) == 2


def test_ints_as_shapes_stay_constants() -> None:
    def f(x: weft.Tensor, n: int) -> weft.Tensor:
        return x.repeat(n) + weft.zeros(3 * n)

    g = weft.compile(f, fullgraph=True)
    for n in (1, 2, 3, 2, 1):
        assert_close(g(x3(), n), f(x3(), n))


def test_type_of_a_number_is_what_it_is() -> None:
    def f(x: weft.Tensor, a: float) -> weft.Tensor:
        return x * 2 if type(a) is float else x

    g = weft.compile(f)
    assert_close(g(x3(), 1.0), x3() * 2)
    assert_close(g(x3(), 1), x3())


def test_shapes_dtypes_layouts() -> None:
    def f(x: weft.Tensor) -> weft.Tensor:
        return (x * 2).sum(0)

    g = weft.compile(f)
    inputs = [weft.ones(3, 4), weft.ones(4, 3), weft.ones(3, 4).double(), weft.arange(12).reshape(3, 4),
              weft.randn(4, 3).t(), weft.randn(6, 8)[::2, ::2], weft.ones(3, 4)]  # fmt: skip
    for x in inputs:
        assert_close(g(x), f(x))
    assert len(g.entries) == 5
    assert any("shape of x" in r for r in g.recompiles) and any("dtype of x" in r for r in g.recompiles)
    assert any("contiguous" in r for r in g.recompiles)


def test_requires_grad_changed() -> None:
    def scenario(decorate: Any) -> Any:
        f = decorate(lambda x: (x * x).sum())
        x = x3()
        first = f(x).requires_grad
        x.requires_grad_(True)
        y = f(x)
        y.backward()
        return [first, y.requires_grad, x.grad]

    check(scenario)


def test_no_grad_outside_and_inside() -> None:
    def scenario(decorate: Any) -> Any:
        def f(x: weft.Tensor) -> Any:
            with weft.no_grad():
                y = x * 2
            return x * y, y

        g = decorate(f)
        x = x3().requires_grad_(True)
        with weft.no_grad():
            a, b = g(x)
        c, d = g(x)
        c.sum().backward()
        return [a.requires_grad, b.requires_grad, c.requires_grad, d.requires_grad, x.grad]

    check(scenario)


def test_keyword_and_variadic_arguments() -> None:
    def f(*xs: weft.Tensor, scale: float = 1.0, **named: weft.Tensor) -> Any:
        return sum(xs) * scale, {k: v * 2 for k, v in named.items()}

    g = weft.compile(f, fullgraph=True)
    for args, kwargs in (
        ((x3(),), {}),
        ((x3(), x3()), {}),
        ((x3(),), {"scale": 3.0}),
        ((x3(),), {"b": x3(), "a": x3()}),
    ):
        assert_close(g(*args, **kwargs), f(*args, **kwargs))


Point = namedtuple("Point", ["x", "y"])


@dataclasses.dataclass
class Batch:
    inputs: weft.Tensor
    scale: float
    extra: dict[str, weft.Tensor]


def test_dataclasses_and_named_tuples() -> None:
    def f(b: Batch, p: Point) -> Any:
        return Batch(b.inputs * b.scale, b.scale, {"k": b.extra["k"] + p.x}), Point(p.x, p.y * 2)

    g = weft.compile(f, fullgraph=True)
    for k in (1.0, 1.0, 2.0):
        b, p = Batch(x3() * k, 2.0, {"k": x3()}), Point(x3(), x3() + k)
        got, want = g(b, p), f(b, p)
        assert isinstance(got[0], Batch) and isinstance(got[1], Point)
        assert_close(vars(got[0]), vars(want[0]))
        assert_close(list(got[1]), list(want[1]))
        assert got[1].x is p.x


def test_other_outputs() -> None:
    def f(x: weft.Tensor, a: float) -> Any:
        return x + 1, None, 3, "text", a * 2, (), [x], OrderedDict(), True, weft.float32, {1: (x, x * 2)}

    g = weft.compile(f)
    x = x3()
    for a in (0.5, 0.75):
        got, want = g(x, a), f(x, a)
        assert [type(o) for o in got] == [type(o) for o in want]
        assert_close(got[0], want[0])
        assert got[1:6] == want[1:6] and got[6][0] is x and got[10][1][0] is x


def test_output_containers_are_fresh() -> None:
    f = weft.compile(lambda x: [x + 1, {"a": 2}])
    first, second = f(x3()), f(x3())
    first[1]["a"] = 9
    first.append(1)
    assert len(second) == 2 and second[1] == {"a": 2} and f(x3())[1] == {"a": 2}


# -- aliasing and in-place


def test_input_aliasing_another_input() -> None:
    def scenario(decorate: Any) -> Any:
        @decorate
        def f(a: weft.Tensor, b: weft.Tensor) -> weft.Tensor:
            a.mul_(2)
            return a + b

        x, y, base = x3(), x3(), weft.arange(6.0)
        return [f(x, y), f(x, x), f(base[:3], base[2:5]), f(base[:3], base[3:]), base, x, f(x, y), x]

    check(scenario)


def test_the_same_tensor_twice() -> None:
    g = weft.compile(lambda a, b: (a * b).sum())
    x = x3().requires_grad_(True)
    g(x3(), x3())
    g(x, x).backward()
    assert_close(x.grad, 2 * x3())


def test_in_place_on_an_input_and_a_view() -> None:
    def f(x: weft.Tensor, y: weft.Tensor) -> weft.Tensor:
        x.add_(y)
        x[0] = 7.0
        x[1:].mul_(2)
        return x.sum()

    assert_equivalent(f, x3(), x3(), fullgraph=True)
    assert_equivalent(f, weft.randn(3, 4), weft.randn(3, 4), fullgraph=True)
    assert_equivalent(f, weft.randn(4, 3).t(), weft.randn(3, 4))


def test_in_place_keeps_the_memory() -> None:
    f = weft.compile(lambda x: x.mul_(2), fullgraph=True)
    x = x3()
    pointer, version = x.data_ptr(), x._version
    for _ in range(3):
        assert f(x) is x
    assert x.data_ptr() == pointer and x._version == version + 3
    assert_close(x, x3() * 8)


def test_a_view_made_outside_sees_writes() -> None:
    x = weft.zeros(4)
    v = x[1:3]
    f = weft.compile(lambda x: x.add_(1), fullgraph=True)
    for _ in range(2):
        f(x)
    assert_close(v, weft.tensor([2.0, 2.0]))


def test_writing_a_view_given_as_argument() -> None:
    def scenario(decorate: Any) -> Any:
        x = weft.zeros(4, 4)
        f = decorate(lambda v: v.add_(1))
        for v in (x[1:3], x[:, 0], x.t(), x[1:3]):
            f(v)
        return x

    check(scenario)


def test_base_and_view_as_hidden_inputs() -> None:
    def scenario(decorate: Any) -> Any:
        base = weft.zeros(4)
        view = base[:2]

        @decorate
        def f(x: weft.Tensor) -> weft.Tensor:
            base.add_(x)
            return view * 1

        return [f(weft.ones(4)), f(weft.ones(4)), base, view]

    check(scenario)


def test_returning_inputs_and_views() -> None:
    f = weft.compile(lambda x: (x, x[1], x.t(), x.detach(), x + 1), fullgraph=True)
    for _ in range(2):
        x = weft.randn(2, 3)
        same, row, transposed, detached, fresh = f(x)
        assert same is x
        row.fill_(5.0)
        assert_close(x[1], weft.full((3,), 5.0))
        transposed[0, 0] = 9.0
        assert x[0, 0].item() == 9.0
        detached.zero_()
        assert x.sum().item() == 0
        fresh.add_(1)
        assert x.sum().item() == 0


def test_in_place_on_a_returned_view_of_an_output() -> None:
    def scenario(decorate: Any) -> Any:
        def f(x: weft.Tensor) -> Any:
            y = x * 2
            return y, y[0]

        y, v = decorate(f)(weft.ones(2, 2))
        v.add_(10)
        return [y, v]

    check(scenario)


def test_outputs_are_fresh_memory() -> None:
    f = weft.compile(lambda x: (x + 1, x.clone(), x.contiguous()), fullgraph=True)
    x = x3()
    a, b, c = f(x)
    a2, b2, _ = f(x)
    a.zero_()
    b.zero_()
    assert c is x
    assert_close(a2, x3() + 1)
    assert_close(b2, x3())
    assert_close(x, x3())


def test_resized_and_replaced_data() -> None:
    def scenario(decorate: Any) -> Any:
        w = weft.ones(3)

        @decorate
        def f(x: weft.Tensor) -> weft.Tensor:
            return x * w

        out = [f(x3())]
        w.data = weft.full((3,), 4.0)
        out.append(f(x3()))
        w.data = weft.full((1,), 5.0)
        return [*out, f(x3())]

    check(scenario)


def test_views_of_one_buffer_that_do_not_overlap() -> None:
    def scenario(decorate: Any) -> Any:
        flat = weft.zeros(8)
        a, b, even, odd = flat[:2], flat[2:4], flat[4::2], flat[5::2]

        @decorate
        def f(x: weft.Tensor) -> weft.Tensor:
            a.add_(x)
            b.add_(a)
            even.add_(b)
            odd.sub_(even)
            return a + odd

        return [f(weft.ones(2)) for _ in range(3)], flat, getattr(f, "breaks", [])

    check(scenario)


# -- gradients across the boundary


def test_gradients_of_hidden_and_explicit_inputs() -> None:
    def scenario(decorate: Any) -> Any:
        w = weft.tensor([1.0, 2.0, 3.0], requires_grad=True)

        @decorate
        def f(x: weft.Tensor) -> weft.Tensor:
            return (x * w).exp()

        x = x3().requires_grad_(True)
        for _ in range(2):
            f(x * 0.1).sum().backward()  # the argument is not a leaf
        return [w.grad, x.grad]

    check(scenario)


def test_double_backward() -> None:
    def scenario(decorate: Any) -> Any:
        f = decorate(lambda x, y: (x**3 * y).sum() + (x * x.detach()).sum())
        x, y = x3().requires_grad_(True), x3().requires_grad_(True)
        (g,) = weft.autograd.grad(f(x, y), x, create_graph=True)
        (g * g).sum().backward()
        return [g, x.grad, y.grad]

    check(scenario)


def test_backward_twice_is_an_error_and_retain_graph_helps() -> None:
    f = weft.compile(lambda x: (x * x).sum())
    x = x3().requires_grad_(True)
    y = f(x)
    y.backward(retain_graph=True)
    y.backward()
    assert_close(x.grad, 4 * x3())
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def test_saved_values_modified_in_place_are_an_error() -> None:
    f = weft.compile(lambda x, w: (x * w).sum())
    x, w = x3().requires_grad_(True), x3()
    y = f(x, w)
    w.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_backward_inside() -> None:
    def f(x: weft.Tensor, w: weft.Tensor) -> weft.Tensor:
        loss = ((x * w) ** 2).sum()
        loss.backward()
        return loss.detach()

    assert_equivalent(f, x3(), x3().requires_grad_(True), fullgraph=True)


def test_gradients_accumulate_over_calls() -> None:
    def scenario(decorate: Any) -> Any:
        w = x3().requires_grad_(True)

        @decorate
        def f(x: weft.Tensor) -> None:
            (x * w).sum().backward()

        grads = []
        for k in range(4):
            f(x3() * k)
            grads.append(w.grad.clone())
        w.grad = None
        f(x3())
        return [*grads, w.grad]

    check(scenario)


def test_loss_returned_after_backward_cannot_be_walked_again() -> None:
    @weft.compile
    def f(x: weft.Tensor) -> weft.Tensor:
        loss = (x * x).sum()
        loss.backward()
        return loss

    x = x3().requires_grad_(True)
    for _ in range(2):
        loss = f(x)
        assert loss.requires_grad
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()


def test_autograd_grad_and_functions_inside() -> None:
    class Double(weft.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: weft.Tensor) -> weft.Tensor:
            ctx.save_for_backward(x)
            return x * 2

        @staticmethod
        def backward(ctx: Any, g: weft.Tensor) -> weft.Tensor:
            (x,) = ctx.saved_tensors
            return g * 100 + x * 0

    def f(x: weft.Tensor) -> Any:
        (g,) = weft.autograd.grad((x**3).sum(), x, create_graph=True)
        return g, Double.apply(x)

    assert_equivalent(f, x3().requires_grad_(True))


def test_in_place_on_a_non_leaf_argument() -> None:
    def scenario(decorate: Any) -> Any:
        f = decorate(lambda h: h.mul_(3))
        x = x3().requires_grad_(True)
        h = x * 2
        f(h)
        h.sum().backward()
        return [h, x.grad]

    check(scenario)


def test_leaf_in_place_error_is_the_same() -> None:
    assert_equivalent(lambda x: x.add_(1), x3().requires_grad_(True))


def test_hook_inside_and_outside() -> None:
    def scenario(decorate: Any) -> Any:
        f = decorate(lambda x: (x * x).sum())
        x = x3().requires_grad_(True)
        x.register_hook(lambda g: g * 10)
        f(x).backward()
        return x.grad

    check(scenario)


def test_hooks_inside_that_ask_for_values() -> None:
    def scenario(decorate: Any) -> Any:
        seen = []

        @decorate
        def f(x: weft.Tensor) -> weft.Tensor:
            h = x * 2
            h.register_hook(lambda g: seen.append(g.sum().item()))
            y = (h * h).sum()
            y.backward()
            return y.detach()

        xs = [(x3() * k).requires_grad_(True) for k in range(1, 5)]
        return [f(x) for x in xs], [x.grad for x in xs], seen

    check(scenario)


# -- lazy regions


def test_lazy_region() -> None:
    x = x3().requires_grad_(True)
    seen = []
    with weft.lazy():
        y = (x * 2).sin()
        z = y + 1
        seen.append(z.sum().item())
        w = x3()
        w.add_(z.detach())
    assert abs(seen[0] - ((x3() * 2).sin() + 1).sum().item()) < 1e-5
    assert_close(w, x3() + (x3() * 2).sin() + 1)
    y.sum().backward()
    assert_close(x.grad, 2 * (x3() * 2).cos())


def test_lazy_region_is_fused_and_cached() -> None:
    from weft.runtime import stats

    def run() -> weft.Tensor:
        with weft.lazy():
            return ((x3() * 2 + 1).tanh() - 3).exp()

    run()
    before = stats.snapshot()["compiles"]
    assert_close(run(), ((x3() * 2 + 1).tanh() - 3).exp())
    assert stats.snapshot()["compiles"] == before


def test_lazy_region_with_an_exception() -> None:
    x = x3()
    with pytest.raises(KeyError), weft.lazy():
        x.add_(1)
        raise KeyError("k")
    assert_close(x, x3() + 1)


def test_numbers_read_from_tensors_do_not_compile_anew() -> None:
    from weft.runtime import stats

    f = weft.compile(lambda x: x * x.sum().item())
    for k in range(6):
        f(x3() * k)
    before = stats.snapshot()["compiles"]
    for k in range(6, 12):
        assert_close(f(x3() * k), (x3() * k) * (x3() * k).sum().item())
    assert stats.snapshot()["compiles"] == before


def test_recompile_limit() -> None:
    f = weft.compile(lambda x: x.sum(), dynamic=False)
    with pytest.warns(UserWarning, match="was compiled 8 times"):
        for n in range(1, 12):
            assert_close(f(weft.ones(n)), weft.tensor(float(n)))
    assert len(f.entries) == 8
    for n in range(1, 12):
        assert_close(f(weft.ones(n)), weft.tensor(float(n)))


def test_module_namespace_attribute_changed() -> None:
    def scenario(decorate: Any) -> Any:
        config = types.ModuleType("config")
        config.__file__ = __file__
        config.scale = 2.0  # type: ignore[attr-defined]

        @decorate
        def f(x: weft.Tensor) -> weft.Tensor:
            return x * config.scale  # type: ignore[attr-defined]

        out = [f(x3())]
        config.scale = 3.0  # type: ignore[attr-defined]
        return [*out, f(x3())]

    check(scenario)
