"""Kernels of form ``conv`` on a GPU: an implicit contraction of patches with weights, and its surroundings.

Convolutions, their input gradients (a dilated input) and weight gradients (taps by the thousand) are all
products of patches, read in place, by weights. Columns run the way in which the result lies: along channels
if they are last, else along positions. Groups are a batch; of few channels each (depthwise) they are computed
directly, a thread for each vector of results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod

from weft.codegen.blocks import Ix
from weft.codegen.contract_kernel import contraction_of
from weft.codegen.conv_geometry import Geometry, geometry
from weft.codegen.epilogue import overwritable
from weft.codegen.gpu.contract_load import MatrixSide, Side
from weft.codegen.gpu.contract_plan import Plan
from weft.codegen.gpu.contract_tiles import Kernel, Product, Tiles
from weft.codegen.gpu.conv_direct import Direct, suits
from weft.codegen.gpu.conv_load import PatchSide, taps_outside
from weft.codegen.gpu.conv_weights import relaid
from weft.codegen.gpu.kernel import DeviceCode
from weft.codegen.gpu.target import GpuTarget
from weft.codegen.operands import matrix
from weft.codegen.places import Coord, Place, Region
from weft.ir.graph import Graph, Op

Sides = Callable[[int], Side]


def emit(op: Op, target: GpuTarget, prefix: str, plan: Plan | None = None) -> DeviceCode:
    """The code of a kernel of form ``conv``; ``plan`` instead of the cheapest one is for measuring."""
    kernel = Kernel(op, target, prefix)
    p, g, weights = conv_product(op)
    inplace = overwritable(p.graph, p.main)
    flops = 2 * p.batch * p.m * p.n * p.k
    if suits(g) and plan is None:
        direct = Direct(kernel, p, g)
        direct.emit()
        return kernel.code(direct.describe(), flops, inplace)
    p = replace(p, **{weights: relaid(kernel, getattr(p, weights), g.groups, flops // 2)})
    tiles = Tiles(kernel, p, plan)
    tiles.emit()
    return kernel.code(tiles.describe(), flops, inplace)


def conv_product(op: Op) -> tuple[Product, Geometry, str]:
    """The convolution of a kernel as a product, and which side of it ("a" or "b") the weights are."""
    graph = op.regions[0]
    conv = contraction_of(graph)
    g = geometry(conv)
    turn = _turn(graph, conv)
    perm = tuple(range(conv.result.type.ndim)) if turn is None else turn.attrs["perm"]
    root = conv.result if turn is None else turn.result
    outputs, positions = g.outputs // g.groups, g.samples * prod(g.out)
    by_channel = perm[-1] == 1  # columns are channels
    patches, weights = _patches(conv, graph, g), _weights(conv, graph, g)
    depth = g.channels // g.groups * prod(g.kernel)
    dtype = conv.result.type.dtype.name
    title = f"conv {g.groups} groups x [{positions}, {depth}] x [{depth}, {outputs}] {dtype}"
    place = _placer(g, perm, root.type.shape, by_channel)
    if by_channel:
        m, n, a, b, cols = positions, outputs, patches, weights, (outputs,)
    else:
        m, n, a, b, cols = outputs, positions, weights, patches, (prod(g.out) if _runs(perm) else 1,)
    return (
        Product(op, conv, root, g.groups, m, n, depth, a, b, cols, place, title),
        g,
        ("b" if by_channel else "a"),
    )


def _turn(graph: Graph, conv: Op) -> Op | None:
    """The permutation that stores the result, where nothing else reads it."""
    users = [op for op in graph.ops if conv.result in op.operands]
    alone = len(users) == 1 and conv.result not in graph.results
    return users[0] if alone and users[0].prim.name == "permute" else None


def _runs(perm: tuple[int, ...]) -> bool:
    """True where the spatial dimensions stay together and in order."""
    first = perm.index(2)
    return perm[first : first + len(perm) - 2] == tuple(range(2, len(perm)))


def _patches(conv: Op, graph: Graph, g: Geometry) -> Sides:
    x = conv.operands[0]
    if g.groups == 1 and prod(g.kernel) == 1 and g.as_is and set(g.stride) == {1}:
        m = matrix(x, graph, ((), (0, *range(2, x.type.ndim)), (1,)))
        return lambda most: MatrixSide(m, graph, most)
    return lambda most: PatchSide(x, graph, g, most)


def _weights(conv: Op, graph: Graph, g: Geometry) -> Sides:
    x, w = conv.operands
    taps = tuple(range(2, w.type.ndim))
    m = matrix(w, graph, ((), (0,), (*taps, 1) if taps_outside(x, graph, g) else (1, *taps)))
    return lambda most: MatrixSide(m, graph, most, g.groups)


def _placer(
    g: Geometry, perm: tuple[int, ...], shape: tuple[int, ...], by_channel: bool
) -> Callable[[Region, Ix, Ix, Coord], Place]:
    """Where the element of (group, row, column) is in the turned result."""
    outputs, plane = g.outputs // g.groups, prod(g.out)
    space = g.out[3 - (len(shape) - 2) :]

    def place(region: Region, group: Ix, row: Ix, col: Coord) -> Place:
        fn = region.fn
        o, at = (col, Coord(row)) if by_channel else (Coord(row), col)
        o = region.plus(Coord(fn.mul(group, outputs)), o) if g.groups > 1 else o
        o = Coord(o.base, o.step, o.vec, col.block) if by_channel else o
        n, s = region.divmod(at, plane, g.samples * plane)
        seen: list[Coord] = []

        def coords() -> list[Coord]:
            if not seen:
                seen.extend([n, o, *region.split(s, space)])
            return [seen[i] for i in perm]

        def linear() -> Coord:
            sizes = {0: g.samples, 1: g.outputs, 2: plane}
            order = [min(i, 2) for i in perm if i < 3]
            at, parts = Coord(), {0: n, 1: o, 2: s}
            for i in order:
                at = region.plus(region.times(at, sizes[i]), parts[i])
            return at

        return Place(shape, coords, linear if _runs(perm) else None)

    return place
