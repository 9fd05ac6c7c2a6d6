"""Where the cost model does not choose the best way, tile or units of work of a convolution.

    python -m benchmarks.choices --family convolution [--cases "resnet"] [--save] [--all]

Every case is a convolution as networks have it, images channels-last between convolutions, and the two
convolutions that are its gradients; each is compiled with the plans of every way of computing it that are
estimated to be worth it, and run on all threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from weft.codegen import conv_kernel
from weft.codegen.conv_writer import ConvWriter
from weft.codegen.standalone import kernel_op
from weft.codegen.target import Target, emitting_for, host_target
from weft.ir import prims as P
from weft.ir.graph import Graph, Op, Value
from weft.ir.prims.base import trace
from weft.ir.types import TensorType, f32
from weft.passes.dce import dce
from weft.passes.fuse import fuse
from weft.passes.pipeline import PASSES

from benchmarks.choices_loops import setting
from benchmarks.choices_table import Choice, choice, compare, plans_of

Ints = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """A convolution of [n, c, *size] by [o, c / groups, *kernel]; ``last``: images lie channels-last."""

    name: str
    x: Ints
    o: int
    kernel: Ints
    stride: int = 1
    padding: int = 0
    groups: int = 1
    dilation: int = 1
    last: bool = True

    def graphs(self) -> Iterator[tuple[str, Graph]]:
        """The layer and its gradients."""
        rank = len(self.kernel)
        how = {
            "stride": (self.stride,) * rank,
            "padding": ((self.padding, self.padding),) * rank,
            "lhs_dilation": (1,) * rank,
            "rhs_dilation": (self.dilation,) * rank,
            "groups": self.groups,
        }
        x, w = TensorType(self.x, f32), TensorType((self.o, self.x[1] // self.groups, *self.kernel), f32)
        y = P.conv_p.infer_types((x, w), how)[0]

        def gradient(number: int):
            return lambda ct, x, w: P.conv_p.vjp(ct, None, x, w, **how)[number]

        yield "forward", self._lying(trace(lambda x, w: P.conv_p.bind(x, w, **how), x, w))
        if self.x[1] > 4:
            yield "input", self._lying(trace(gradient(0), y, x, w))
        yield "weight", self._lying(trace(gradient(1), y, x, w))

    def _lying(self, graph: Graph) -> Graph:
        """The kernels of a graph whose images, but not its weights, lie channels-last if these do."""
        for name, run in PASSES:
            if name == "layout":
                break
            graph = run(graph, "cpu")
        rank = len(self.kernel)
        forth, back = (0, *range(2, rank + 2), 1), (0, rank + 1, *range(1, rank + 1))

        def image(v: Value) -> bool:
            return self.last and v.type.shape[0] == self.x[0] and v.type.shape[2:] != self.kernel

        def lying(t: TensorType) -> TensorType:
            return TensorType(tuple(t.shape[i] for i in forth), f32)

        def run_all(*values):
            at = dict(zip(graph.params, values, strict=True))
            at = {p: P.permute_p.bind(v, perm=back) if image(p) else v for p, v in at.items()}
            for op in graph.ops:
                at[op.result] = op.prim.bind(*(at[v] for v in op.operands), **op.attrs)
            (out,) = (at[v] for v in graph.results)
            return P.permute_p.bind(out, perm=forth) if image(graph.results[0]) else out

        return fuse(dce(trace(run_all, *(lying(p.type) if image(p) else p.type for p in graph.params))))


LAYERS = (
    Layer("resnet stem", (1, 3, 224, 224), 64, (7, 7), 2, 3),
    Layer("resnet 56", (1, 64, 56, 56), 64, (3, 3), 1, 1),
    Layer("resnet 28 strided", (1, 64, 56, 56), 128, (3, 3), 2, 1),
    Layer("resnet 14", (1, 256, 14, 14), 256, (3, 3), 1, 1),
    Layer("resnet 7", (1, 512, 7, 7), 512, (3, 3), 1, 1),
    Layer("resnet 7 by 8", (8, 512, 7, 7), 512, (3, 3), 1, 1),
    Layer("resnet 1x1", (1, 256, 56, 56), 64, (1, 1)),
    Layer("resnet 1x1 strided", (1, 256, 28, 28), 512, (1, 1), 2),
    Layer("cnn 14", (64, 32, 14, 14), 64, (3, 3), 1, 1, last=False),
    Layer("cnn 28", (64, 1, 28, 28), 32, (3, 3), 1, 1, last=False),
    Layer("mobilenet depthwise", (1, 144, 56, 56), 144, (3, 3), 1, 1, 144),
    Layer("mobilenet depthwise strided", (1, 96, 112, 112), 96, (3, 3), 2, 1, 96),
    Layer("mobilenet depthwise lines", (1, 96, 112, 112), 96, (3, 3), 1, 1, 96, last=False),
    Layer("mobilenet depthwise strided lines", (1, 96, 112, 112), 96, (3, 3), 2, 1, 96, last=False),
    Layer("mobilenet depthwise 5x5", (1, 576, 14, 14), 576, (5, 5), 1, 2, 576),
    Layer("mobilenet 1x1", (8, 96, 14, 14), 576, (1, 1)),
    Layer("resnext grouped", (1, 128, 28, 28), 128, (3, 3), 1, 1, 32),
    Layer("u-net 128", (1, 64, 128, 128), 64, (3, 3), 1, 1),
    Layer("u-net 64", (1, 128, 64, 64), 64, (3, 3), 1, 1),
    Layer("dilated odd", (4, 64, 33, 47), 48, (3, 3), 1, 2, dilation=2),
    Layer("audio stem", (1, 1, 16000), 64, (80,), 4, 38),
    Layer("audio dilated", (4, 64, 4000), 64, (3,), 1, 2, dilation=2),
    Layer("audio strided", (4, 128, 1000), 256, (7,), 2, 3),
    Layer("3d", (2, 16, 8, 28, 28), 32, (3, 3, 3), 1, 1),
)


def kernel_of(graph: Graph) -> Op:
    """The kernel that the convolution of a graph becomes."""
    (op,) = [op for op in graph.ops if op.prim.name == "kernel" and op.attrs["form"] == "conv"]
    return kernel_op(op.regions[0], "conv")


def candidates(op: Op, target: Target, most: int) -> tuple[list[ConvWriter], ConvWriter]:
    """The ways and plans of least estimated cost, some of each way; and the chosen one."""
    with emitting_for(target):
        kept = []
        for way in conv_kernel.ways(op, target, "k0"):
            ranked = sorted(way.plans(), key=way.estimate)
            half = most // 2
            some = ranked[:half] + ranked[half :: max(1, len(ranked) // half)]
            kept += [type(way)(op, target, "k0", plan) for plan in dict.fromkeys(some)]
        return kept, conv_kernel.chosen(op, target, "k0")


def measured(graph: Graph, most: int, everything: bool) -> Choice:
    """Times of the plans of one convolution."""
    target = host_target()
    op = kernel_of(graph)
    graph = Graph(list(op.operands), [op], list(op.results))
    ways, chosen = candidates(op, target, most)

    def made(way: ConvWriter):
        again = lambda op, target, prefix: type(way)(op, target, prefix, way.plan)  # noqa: E731
        return setting(conv_kernel, chosen=again)

    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=p.type.shape).astype(np.float32) for p in graph.params]
    times = compare(graph, arrays, {str(w.plan): partial(made, w) for w in [*ways, chosen]})
    if everything:
        costs = {str(w.plan): w.cost_ns for w in [*ways, chosen]}
        for name in sorted(times, key=times.__getitem__):
            took = f"{times[name] * 1e6:9.1f} us (estimate {costs[name] / 1e3:9.1f} of one thread)"
            print(f"    {name:50s} {took}")
    return choice(times, str(chosen.plan))


def main(arguments: list[str]) -> None:
    """Print a line per convolution."""
    plans_of("convolution", __doc__, LAYERS, measured, arguments)
