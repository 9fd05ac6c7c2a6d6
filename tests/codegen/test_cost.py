"""The cost model: relative costs that choices rest on, and the facts of the machine it uses."""

from __future__ import annotations

import pytest
from weft.codegen.loop_traffic import nest_cost
from weft.codegen.schedule import schedule
from weft.codegen.target import host_target, named_target
from weft.ir import prims as P
from weft.ir.prims.base import trace
from weft.ir.record import replace
from weft.ir.scalarcost import cost_by_name
from weft.ir.types import DType, TensorType, f32, f64


def estimate(fn, n: int, dtype: DType = f32, target=None) -> float:  # type: ignore[no-untyped-def]
    kernel = schedule(trace(fn, TensorType((n,), dtype)), "k")
    return sum(nest_cost(kernel, nest, target or host_target()) for phase in kernel.phases for nest in phase)


def test_code_that_hardly_ever_runs_costs_nothing() -> None:
    """The reduction of huge arguments stands in a block of its own."""
    assert cost_by_name("sin") < 3 * cost_by_name("exp")


def test_order_of_costs() -> None:
    names = ["neg", "add", "div", "sqrt", "pow", "lgamma"]
    costs = [cost_by_name(n) for n in names]
    assert costs == sorted(costs) and costs[0] > 0
    assert cost_by_name("exp", f64) > cost_by_name("exp", f32)


def test_arithmetic_grows_with_the_width_of_elements_and_work() -> None:
    def dear(x):  # type: ignore[no-untyped-def]
        return P.pow_p.bind(x, x)

    assert estimate(dear, 2048, f64) == pytest.approx(2 * estimate(dear, 2048, f32), rel=0.01)
    assert estimate(dear, 4096) == pytest.approx(2 * estimate(dear, 2048))


def test_bytes_cost_more_the_farther_they_come_from() -> None:
    target = replace(named_target("haswell"), l1_bytes=1 << 15, l2_bytes=1 << 19, l3_bytes=1 << 23)
    sizes = [1 << 12, 1 << 15, 1 << 19, 1 << 22]
    per_element = [estimate(lambda x: x + x, n, target=target) / n for n in sizes]
    assert per_element == sorted(per_element) and len(set(per_element)) == 4


def test_caches_are_read_from_the_machine() -> None:
    target = host_target()
    assert 0 < target.l1_bytes < target.l2_bytes <= target.l3_bytes
