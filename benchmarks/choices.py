"""Where the cost model does not choose the best of what it could: contractions here, other families by name.

``python -m benchmarks.choices --family elementwise [...]`` runs :mod:`benchmarks.choices_loops`.
``python -m benchmarks.choices [--shapes 1x1024x4096,nt:64x784x128] [--cpu haswell] [--all]`` runs every
plan (kernel, tile, packing) of each shape as a kernel of its own on one thread, and prints the shapes where
another plan was faster by more than a tenth, with what was chosen and what was best. Shapes are
[form:][batch*]MxKxN, where the form says which operand is given transposed: nn (default), nt, tn, tt; np and
tp say that the second lies in panels, as frozen weights do.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from weft.codegen.contract_kernel import Contract
from weft.codegen.contract_plan import Plan, choose, cost, plans
from weft.codegen.standalone import Standalone, aligned, kernel_op
from weft.codegen.target import Target, host_target, named_target
from weft.ir import prims as P
from weft.ir.graph import Graph, GraphBuilder
from weft.ir.prims.base import trace
from weft.ir.types import DType, TensorType, bf16, f32, f64
from weft.passes.panels import from_panels

SHAPES = (
    "32x32x32,64x64x64,100x100x100,256x256x256,nt:256x256x256,tn:256x256x256,512x512x512,nt:512x512x512,"
    "1x784x128,1x1024x4096,2x1024x4096,4x1024x4096,8x1024x4096,17x1024x4096,33x1024x4096,48x1024x2048,"
    "64x1024x2048,nt:1x2048x2048,nt:2x2048x2048,nt:4x2048x2048,nt:8x2048x2048,nt:16x2048x2048,"
    "nt:33x2048x2048,nt:64x784x128,nt:64x128x10,1024x1024x2,1024x1024x4,1024x1024x8,1024x1024x10,"
    "1024x1024x16,1024x1024x24,nt:1024x1024x10,2048x2048x32,127x131x257,nt:127x131x257,tn:127x131x257,"
    "509x521x503,16*64x64x64,64*16x16x16,4*512x64x512,nt:4*512x64x512,4*512x512x64,64x8192x64"
)


@dataclass(frozen=True)
class Shape:
    """A product of a batch of matrices, [m, k] by [k, n], each possibly given transposed."""

    form: str
    batch: int
    m: int
    k: int
    n: int

    def __str__(self) -> str:
        many = f"{self.batch}*" if self.batch > 1 else ""
        return f"{self.form}:{many}{self.m}x{self.k}x{self.n}"

    def graph(self, dtype: DType) -> Graph:
        """The product as a graph."""
        lead = (self.batch,) if self.batch > 1 else ()
        a = (self.k, self.m) if self.form[0] == "t" else (self.m, self.k)
        b = (self.n, self.k) if self.form[1] == "t" else (self.k, self.n)
        at, batch = len(lead), tuple(range(len(lead)))
        contract = ((at + (self.form[0] == "n"),), (at + (self.form[1] == "t"),))
        types = TensorType(lead + a, dtype), TensorType(lead + b, dtype)
        if self.form[1] == "p":
            return self._over_panels(*types, contract, batch)
        return trace(lambda x, y: P.dot_general_p.bind(x, y, contract=contract, batch=(batch, batch)), *types)

    def _over_panels(
        self, a: TensorType, b: TensorType, contract: Sequence[tuple[int]], batch: tuple[int, ...]
    ) -> Graph:
        width, axes = min(64, self.n), (batch, (b.ndim - 1,), (b.ndim - 2,))
        g = GraphBuilder("over_panels")
        x = g.param(a)
        panels = g.param(TensorType((*b.shape[:-2], -(-self.n // width), self.k, width), b.dtype))
        attrs = {"contract": tuple(contract), "batch": (batch, batch)}
        return g.finish(list(g.add(P.dot_general_p, (x, from_panels(g, panels, b, axes)), attrs)))


def parsed(text: str) -> Shape:
    """The shape that ``[form:][batch*]MxKxN`` describes.

    >>> str(parsed("8*2x3x4"))
    'nn:8*2x3x4'
    """
    form, _, rest = text.rpartition(":")
    batch, _, sizes = rest.rpartition("*")
    m, k, n = map(int, sizes.split("x"))
    return Shape(form or "nn", int(batch or 1), m, k, n)


def seconds(kernel: Standalone, budget: float) -> float:
    """The least time of a call on one thread."""
    arrays = [aligned(v.type.nbytes).view(v.type.dtype.np).reshape(v.type.shape) for v in kernel.op.operands]
    results = [aligned(v.type.nbytes).view(v.type.dtype.np).reshape(v.type.shape) for v in kernel.op.results]
    for x in arrays + results:
        x[...] = 1
    block = kernel.block(arrays, results, np.zeros(1, np.int64))
    kernel.run(block)
    start = time.perf_counter()
    kernel.run(block)
    inner = max(1, int(2e-5 / (time.perf_counter() - start)))
    best, end = float("inf"), time.perf_counter() + budget
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        for _ in range(inner):
            kernel.run(block)
        best = min(best, (time.perf_counter() - start) / inner)
    return best


def measure(shape: Shape, dtype: DType, target: Target, budget: float) -> list[tuple[float, float, Plan]]:
    """(measured, estimated seconds, plan) of every plan but those estimated at thrice the least or more."""
    op = kernel_op(shape.graph(dtype), "contract")
    problem = Contract(op, target, "k0").problem
    estimates = {plan: cost(problem, plan, target) for plan in plans(problem, target)}
    limit = 3 * min(estimates.values())
    kept = sorted((e, str(plan), plan) for plan, e in estimates.items() if e <= limit)[:12]
    out = []
    for estimate, _, plan in kept:
        kernel = Standalone(
            op, target, "k0", lambda op, t, prefix, plan=plan: Contract(op, t, prefix, plan).emit()
        )
        out.append((seconds(kernel, budget), estimate * target.slot_ns * 1e-9, plan))
    chosen = choose(problem, target)
    return sorted(out, key=lambda row: (row[2] != chosen, row[0]))


FAMILIES = {
    "contraction": "benchmarks.choices:contractions",
    "elementwise": "benchmarks.choices_loops:main",
    "convolution": "benchmarks.choices_conv:main",
    "attention": "benchmarks.choices_attention:main",
}


def main() -> None:
    """Run the family that ``--family`` names on the other arguments."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--family", choices=FAMILIES, default="contraction")
    family, rest = parser.parse_known_args()
    module, _, function = FAMILIES[family.family].partition(":")
    getattr(importlib.import_module(module), function)(rest)


def contractions(arguments: list[str]) -> None:
    """Print the shapes where the choice was not the best."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", default=SHAPES)
    parser.add_argument("--cpu", default="", help="build for this CPU (see weft.codegen.target.named_target)")
    parser.add_argument("--dtype", choices=("f32", "f64", "bf16"), default="f32")
    parser.add_argument("--all", action="store_true", help="print every plan of every shape")
    parser.add_argument("--budget", type=float, default=0.02, help="seconds per plan")
    args = parser.parse_args(arguments)
    target = named_target(args.cpu) if args.cpu else host_target()
    dtype = {"f32": f32, "f64": f64, "bf16": bf16}[args.dtype]
    missed = total = 0
    for text in args.shapes.split(","):
        shape = parsed(text)
        rows = measure(shape, dtype, target, args.budget)
        best, total = min(rows, key=lambda row: row[0]), total + 1
        worse = rows[0][0] > 1.1 * best[0]
        missed += worse
        if worse or args.all:
            print(f"{shape!s:24s} chose {rows[0][2]!s:26s} {rows[0][0] * 1e6:9.1f} us, "
                  f"best {best[2]!s:26s} {best[0] * 1e6:9.1f} us", flush=True)  # fmt: skip
        if args.all:
            for took, estimate, plan in rows:
                print(f"    {plan!s:28s} {took * 1e6:9.1f} us (estimate {estimate * 1e6:9.1f})")
    print(f"{missed} of {total} choices were more than a tenth slower than the best plan tried")


if __name__ == "__main__":
    main()
