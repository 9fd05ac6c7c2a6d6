"""Capture pitfalls: values asked for, control flow, arguments, lazy regions.

Whatever a function does, compiled it gives what it gives eagerly.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import types
from collections import OrderedDict, namedtuple
from typing import Any

import numpy as np
import pytest
import weft
from weft.capture import CaptureError
from weft.runtime import stats
from weft.testing import assert_close, assert_equivalent
from weft.testing import assert_same_story as check


def graphs_made() -> int:
    """Graphs that were compiled, or whose code came from the disk cache."""
    now = stats.snapshot()
    return now.get("compiles", 0) + now.get("cache_disk_hits", 0)


def x3() -> weft.Tensor:
    return weft.tensor([1.0, -2.0, 3.0])


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
        CaptureError, match=r"test_pitfalls_values.py:\d+: if y.sum\(\) > 0:  # the line of the break"
    ):
        f(x3())


def test_fullgraph_names_side_effects() -> None:
    @weft.compile(fullgraph=True)
    def prints(x: weft.Tensor) -> weft.Tensor:
        print("hello")
        return x + 1

    with pytest.raises(CaptureError, match=r"calls print\(\), at .*test_pitfalls_values.py:\d+: print"):
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


def test_a_thread_inside_that_calls_the_same_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weft.capture.compiled.PATIENCE", 0.05)

    @weft.compile
    def f(x: weft.Tensor, depth: int) -> weft.Tensor:
        if depth == 0:
            return x * 2
        out: list[weft.Tensor] = []
        t = threading.Thread(target=lambda: out.append(f(x3(), 0)))
        t.start()
        t.join()
        return x + out[0]

    for _ in range(2):
        assert_close(f(x3(), 1), x3() * 3)


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
    def run() -> weft.Tensor:
        with weft.lazy():
            return ((x3() * 2 + 1).tanh() - 3).exp()

    run()
    before = graphs_made()
    assert_close(run(), ((x3() * 2 + 1).tanh() - 3).exp())
    assert graphs_made() == before


def test_lazy_region_with_an_exception() -> None:
    x = x3()
    with pytest.raises(KeyError), weft.lazy():
        x.add_(1)
        raise KeyError("k")
    assert_close(x, x3() + 1)


def test_numbers_read_from_tensors_do_not_compile_anew() -> None:
    f = weft.compile(lambda x: x * x.sum().item())
    for k in range(6):
        f(x3() * k)
    before = graphs_made()
    for k in range(6, 12):
        assert_close(f(x3() * k), (x3() * k) * (x3() * k).sum().item())
    assert graphs_made() == before


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
