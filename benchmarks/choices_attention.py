"""Where the cost model does not choose the best tiles, blocks or parts of an attention.

    python -m benchmarks.choices --family attention [--cases "gpt"] [--save] [--all]

Every case is compiled, forward and backward, with the plans that are estimated to be worth it, and run on all
threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from weft.codegen import attention_unit
from weft.codegen.attention_grad_kernel import Backward
from weft.codegen.attention_kernel import Forward
from weft.codegen.attention_plan import AttentionPlan
from weft.codegen.standalone import kernel_op
from weft.codegen.target import emitting_for, host_target
from weft.ir import prims as P
from weft.ir.graph import Graph
from weft.ir.prims.base import trace
from weft.ir.types import TensorType, f32

from benchmarks.choices_loops import setting
from benchmarks.choices_table import Choice, choice, compare, plans_of


@dataclass(frozen=True)
class Heads:
    """``heads`` queries of [rows, width] by ``kv`` heads of ``keys``."""

    name: str
    batch: int
    heads: int
    rows: int
    width: int
    keys: int = 0
    kv: int = 0
    causal: bool = False
    mask: bool = False
    grad: bool = True

    def graphs(self) -> Iterator[tuple[str, Graph]]:
        """Both directions."""
        keys, kv = self.keys or self.rows, self.kv or self.heads
        q = TensorType((self.batch, self.heads, self.rows, self.width), f32)
        k = TensorType((self.batch, kv, keys, self.width), f32)
        lse = TensorType(q.shape[:3], f32)
        masks = [TensorType((1, 1, self.rows, keys), f32)] if self.mask else []
        how = {"scale": self.width**-0.5, "causal": self.causal, "dropout": 0.0, "nan_rows": False}
        yield "forward", trace(partial(P.attention_p.bind, **how, heads_inside=False), q, k, k, *masks)
        if self.grad:
            del how["nan_rows"]
            grad = partial(P.attention_grad_p.bind, **how, heads_inside=(False,) * 3)
            yield "backward", trace(grad, q, k, k, q, lse, lse, *masks)


CASES = (
    Heads("gpt2 1024", 1, 12, 1024, 64, causal=True),
    Heads("bert 512", 4, 12, 512, 64),
    Heads("llama 1024", 2, 16, 1024, 128, causal=True),
    Heads("vit 197", 1, 8, 197, 64),
    Heads("small 64", 8, 4, 64, 32),
    Heads("small gpt 128", 8, 6, 128, 32, causal=True),
    Heads("grouped 640", 1, 16, 640, 80, kv=4, causal=True),
    Heads("long 2003", 1, 4, 2003, 64, causal=True),
    Heads("cross 77", 1, 8, 1024, 40, keys=77),
    Heads("masked 300", 2, 6, 300, 48, mask=True),
    Heads("masked 256", 2, 8, 256, 64, mask=True),
    Heads("decode 4096", 1, 32, 1, 128, keys=4096, kv=8, grad=False),
    Heads("decode 512 by 8", 8, 12, 1, 64, keys=512, grad=False),
    Heads("few queries 16", 1, 16, 16, 64, keys=2048),
)


def measured(graph: Graph, most: int, everything: bool) -> Choice:
    """Times of the plans of one kernel."""
    target, op = host_target(), kernel_op(graph, "attention")
    kernel = Backward if any(o.prim.name == "attention_grad" for o in graph.ops) else Forward
    with emitting_for(target):
        made = kernel(op, target, "k0")
    plans, cost = attention_unit.ways(kernel.gradient)
    costs = {plan: cost(made.the_problem, plan, target) for plan in plans(made.the_problem, target)}
    ranked = sorted(costs, key=costs.__getitem__)
    half = most // 2
    kept = [*ranked[:half], *ranked[half :: max(1, len(ranked) // half)], made.plan]

    def forced(plan: AttentionPlan):
        return setting(attention_unit, choose=lambda problem, target, gradient: plan)

    alone = Graph(list(op.operands), [op], list(op.results))
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=p.type.shape).astype(np.float32) for p in alone.params]
    times = compare(alone, arrays, {str(plan): partial(forced, plan) for plan in dict.fromkeys(kept)})
    if everything:
        ns = {str(plan): costs[plan] * target.slot_ns for plan in kept}
        for name in sorted(times, key=times.__getitem__):
            took = f"{times[name] * 1e6:9.1f} us (estimate {ns[name] / 1e3:9.1f} of one thread)"
            print(f"    {name:50s} {took}")
    return choice(times, str(made.plan))


def main(arguments: list[str]) -> None:
    """Print a line per kernel."""
    plans_of("attention", __doc__, CASES, measured, arguments)
