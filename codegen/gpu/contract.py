"""Kernels of form ``contract`` on a GPU: one dot_general with what fusion put before and after it."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from weft.codegen.blocks import Ix
from weft.codegen.contract_kernel import contraction_of
from weft.codegen.epilogue import Output, overwritable
from weft.codegen.gpu.contract_load import MatrixSide, Side
from weft.codegen.gpu.contract_plan import Plan
from weft.codegen.gpu.contract_tiles import Kernel, Product, Tiles
from weft.codegen.gpu.kernel import DeviceCode
from weft.codegen.gpu.target import GpuTarget
from weft.codegen.operands import Matrix, matrix
from weft.codegen.places import Coord, Place, Region
from weft.ir.graph import Graph, Op


def emit(op: Op, target: GpuTarget, prefix: str, plan: Plan | None = None) -> DeviceCode:
    """The code of a kernel of form ``contract``; ``plan`` instead of the cheapest one is for measuring."""
    kernel = Kernel(op, target, prefix)
    p = dot_product(op)
    tiles = Tiles(kernel, p, plan)
    tiles.emit()
    flops = 2 * p.batch * p.m * p.n * p.k
    folds = tiles.folds.folds
    inplace = overwritable(p.graph, p.main) | (folds.overwritable() if folds is not None else frozenset())
    return kernel.code(tiles.describe(), flops, inplace)


def dot_product(op: Op) -> Product:
    """The contraction of a kernel. A single column is taken as a row, which is contiguous."""
    graph = op.regions[0]
    dot = contraction_of(graph)
    sides: list[Matrix] = []
    for v, c, s in zip(dot.operands, dot.attrs["contract"], dot.attrs["batch"], strict=True):
        free = tuple(i for i in range(v.type.ndim) if i not in c and i not in s)
        sides.append(matrix(v, graph, (tuple(s), free, tuple(c))))
    a, b = sides
    batch, rows, cols = a.sizes(0), a.sizes(1), b.sizes(1)
    swapped = prod(cols) == 1 and prod(rows) > 1
    output = Output(batch, rows, cols, swapped)
    if swapped:
        a, b = b, a

    def place(region: Region, batch: Ix, row: Ix, col: Coord) -> Place:
        return output.place(region, batch, row, col)

    title = f"contract {a.batch} x [{a.rows}, {a.depth}] x [{b.depth}, {b.rows}] {a.dtype.name}"
    return Product(
        op, dot, dot.result, a.batch, a.rows, b.rows, a.depth, _side(a, graph), _side(b, graph),
        rows if swapped else cols, place, title, output,
    )  # fmt: skip


def _side(m: Matrix, graph: Graph) -> Callable[[int], Side]:
    def side(most: int) -> Side:
        return MatrixSide(m, graph, most)

    return side
