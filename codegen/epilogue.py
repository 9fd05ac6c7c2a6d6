"""From a finished tile of sums to the results of the kernel, through the epilogue's scalar rules."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from weft.codegen.blocks import Code, Ix
from weft.codegen.emit import Reg
from weft.codegen.lanes import load_lanes, store_lanes, tail_mask
from weft.codegen.llvm import mem_type
from weft.codegen.microkernel import Tile, narrowed
from weft.codegen.places import Coord, Place, Region
from weft.codegen.tile_folds import Folds, Tally
from weft.codegen.uniforms import Uniforms
from weft.ir.contraction import Columns
from weft.ir.graph import Graph, Op, Value
from weft.ir.prims.base import Kind
from weft.ir.record import record, replace
from weft.ir.types import DType

Ints = tuple[int, ...]
EPILOGUE = "ptr %bufs, ptr %tile, i64 %stride, i64 %batch, i64 %row, i64 %rows, i64 %col, i64 %cols"


@record(frozen=True)
class Output:
    """The result's dimensions: batch, rows, columns, in memory order.

    ``swapped`` means that the kernel's columns are the result's rows (which then has a single column).
    """

    batch: Ints
    rows: Ints
    cols: Ints
    swapped: bool = False

    @property
    def shape(self) -> Ints:
        return (*self.batch, *self.rows, *self.cols)

    def place(self, region: Region, batch: Ix, row: Ix, col: Coord) -> Place:
        """The place of the elements from ``col`` on."""
        fn = region.fn
        rows, cols = prod(self.rows), prod(self.cols)
        r, c = (col, Coord(row)) if self.swapped else (Coord(row), col)

        def coords() -> list[Coord]:
            return [
                *region.split(Coord(batch), self.batch),
                *region.split(r, self.rows),
                *region.split(c, self.cols),
            ]  # fmt: skip

        def linear() -> Coord:
            whole = fn.mul(fn.mul(batch, rows), cols)
            return region.plus(Coord(whole), region.plus(region.times(r, cols), c))

        return Place(self.shape, coords, linear)


def kernel_pointers(fn: Code, op: Op) -> Mapping[Value, str]:
    """The addresses of the kernel's operands, by parameter of its region."""
    return {v: fn.arg(i) for i, v in enumerate(op.regions[0].params)}


def emit_epilogue(
    fn: Code,
    op: Op,
    contract: Op,
    output: Output,
    acc: DType,
    lanes: int,
    masked: bool,
    uniforms: Uniforms,
    columns: Columns | None = None,
    folds: Folds | None = None,
    most_cols: int = 0,
) -> Code:
    """Write ``fn(bufs, tile, stride, batch, row, rows, col, cols)``: store rows x cols of results from there
    on.

    ``stride`` is in bytes between rows of the tile. Unless ``masked``, ``cols`` is a multiple of the lanes.
    Where the result's ``columns`` come in groups, a row of the tile has the ones from ``col`` on of each,
    one group after the other. With ``folds`` there is one more parameter, and at most ``most_cols`` columns.
    """
    graph = op.regions[0]
    pointers = kernel_pointers(fn, op)
    tile_results = [
        (value, fn.arg(len(op.operands) + i))
        for i, value in enumerate(graph.results)
        if folds is None or value not in folds.folded
    ]
    dtype = contract.result.type.dtype
    uniform = uniforms.load(fn)
    groups = columns or Columns(1, prod(output.cols))
    part = output if groups.count == 1 else replace(output, cols=(groups.width,))
    apart = fn.div("%stride", groups.count)  # bytes between groups in the tile
    tally = Tally(fn, folds, lanes, "%cols", most_cols)
    with fn.range(0, "%rows", 1, tally.tile_start(), runs=True) as r:
        row = fn.add("%row", r.i)
        same = {**uniform, **_same_in_row(fn, op, part, lanes, pointers, uniform, row)}
        line = fn.at("%tile", fn.mul(r.i, "%stride"))
        with fn.range(0, "%cols", lanes, tally.row_start(), runs=True) as v:
            mask = tail_mask(fn, fn.sub("%cols", v.i), lanes) if masked else None
            region = Region(fn, graph, lanes, pointers, mask, same)
            col = fn.add("%col", v.i)
            places = []
            for j in range(groups.count):
                place = output.place(region, "%batch", row, Coord(fn.add(col, j * groups.width), 1))
                at = fn.at(line, fn.add(fn.mul(apart, j), fn.mul(v.i, acc.itemsize)))
                sums = load_lanes(fn, at, acc, lanes)
                region.given[(contract.result, id(place))] = rounded_result(region, sums, acc, dtype)
                places.append(place)
            root = places[0]
            if groups.count > 1:
                root = part.place(region, "%batch", row, Coord(col, 1))
                _give_parts(region, contract, groups, places, root)
            # all values before the first store: a result may lie over an operand
            wanted = [
                (value, base, place)
                for value, base in tile_results
                for place in (places if value.type.shape == output.shape else [root])
            ]
            found = [region.wide(region.value(value, place)) for value, _, place in wanted]
            v.next = tally.take(region, root, v.i, v.vars)
            for (value, base, place), got in zip(wanted, found, strict=True):
                elem = mem_type(value.type.dtype)
                at = fn.at(base, region.linear(place).base, elem)
                store_lanes(fn, got, at, value.type.dtype, lanes, mask)
        r.next = tally.end_row(row, v.out, r.vars)
    tally.end("%col", r.out, masked)
    return fn


def _give_parts(region: Region, contract: Op, columns: Columns, places: list[Place], root: Place) -> None:
    """The slices of what the product becomes are at ``root`` what they are slices of at one of ``places``."""
    after = set(contract.results)
    for op in region.graph.ops:
        if not after.intersection(op.operands):
            continue
        after.update(op.results)
        if op.prim.name == "slice":
            place = places[op.attrs["start"][-1] // columns.width]
            region.given[(op.result, id(root))] = region.value(op.operands[0], place)


def overwritable(graph: Graph, contract: Op) -> frozenset[tuple[int, int]]:
    """Pairs (operand, result) that may share memory where the epilogue runs once on every element.

    Such an operand is read by maps of the result's shape alone, none of which the contraction or a movement
    reads: so only at the place where the result is written afterwards.
    """
    shape = contract.result.type.shape
    elsewhere = set(contract.operands)
    for op in reversed(graph.ops):
        own = op is not contract and op.prim.kind is Kind.MAP and op.result.type.shape == shape
        if not own or op.result in elsewhere:
            elsewhere.update(op.operands)
    return frozenset(
        (i, j)
        for i, x in enumerate(graph.params)
        for j, y in enumerate(graph.results)
        if x not in elsewhere
        and x.type.shape == y.type.shape == shape
        and x.type.dtype.itemsize == y.type.dtype.itemsize
    )


def _same_in_row(
    fn: Code,
    op: Op,
    output: Output,
    lanes: int,
    pointers: Mapping[Value, str],
    uniform: Mapping[Value, Reg],
    row: Ix,
) -> dict[Value, Reg]:
    """Broadcast values that do not change along a row of the tile, made once per row."""
    graph = op.regions[0]
    first = len(output.batch) if output.swapped else len(output.batch) + len(output.rows)
    last = first + len(output.rows if output.swapped else output.cols)
    region = Region(fn, graph, lanes, pointers, None, uniform)
    place = output.place(region, "%batch", row, Coord())
    out: dict[Value, Reg] = {}
    for move in graph.ops:
        axes = move.attrs.get("axes", ())
        if move.prim.name != "broadcast" or move.result.type.shape != output.shape:
            continue
        sizes = move.operands[0].type.shape
        if all(d == 1 or not first <= a < last for d, a in zip(sizes, axes, strict=True)):
            out[move.result] = region.value(move.result, place)
    return out


def rounded_result(region: Region, sums: str, acc: DType, dtype: DType) -> Reg:
    """The contraction's own result, rounded to its dtype."""
    b = region.builder
    if dtype.is_floating_point:
        return b.convert(b.reg(sums, acc, region.lanes), dtype)
    return b.reg(narrowed(region.fn, sums, dtype, region.lanes), dtype, region.lanes)


def emit_partial_store(fn: Code, tile: str, shape: Tile, dst: str, cols: int, count: Ix) -> None:
    """Copy the first ``count`` columns of a tile of sums to rows of ``cols`` elements at ``dst``."""
    size = shape.dtype.itemsize
    with fn.range(0, shape.rows) as r, fn.range(0, count, shape.lanes, runs=True) as v:
        at = fn.mul(v.i, size)
        x = load_lanes(fn, fn.at(tile, fn.add(fn.mul(r.i, shape.row_bytes), at)), shape.dtype, shape.lanes)
        mask = tail_mask(fn, fn.sub(count, v.i), shape.lanes)
        store_lanes(fn, x, fn.at(dst, fn.add(fn.mul(r.i, cols * size), at)), shape.dtype, shape.lanes, mask)
