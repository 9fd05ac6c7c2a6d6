"""Each rewrite rule: what it makes of a small text, and what it must leave alone."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

import numpy as np
import pytest
from weft.ir.graph import Graph
from weft.ir.interp import run
from weft.ir.prims.base import Kind
from weft.ir.text import parse_graph, print_graph
from weft.ir.types import DType
from weft.passes.canonicalise import canonicalise
from weft.passes.cse import cse
from weft.passes.dce import dce
from weft.passes.decompose import decompose
from weft.passes.simplify import simplify


def parse(signature: str, lines: str) -> Graph:
    """``"%x: f32[3]"`` and lines ``%y = exp(%x)``; the last line's value is the result.

    ``f32(2.0)`` is short for a full of shape (3), ``f32_0d(2.0)`` of shape ().
    """
    lines = re.sub(r"(f32|i32)\((.*)\)", r"full() {dtype=\1, shape=(3), value=\2}", lines)
    lines = re.sub(r"(f32)_0d\((.*)\)", r"full() {dtype=\1, shape=(), value=\2}", lines)
    *rows, last = [line.strip() for line in lines.strip().splitlines()]
    if not last.startswith("return"):
        rows, last = [*rows, last], f"return {last.split('=')[0].strip()}"
    text = "\n".join(f"  {row}" for row in [*rows, last])
    return parse_graph(f"graph main({signature}) {{\n{text}\n}}\n")


def special(shape: tuple[int, ...], dtype: DType, seed: int) -> np.ndarray:
    """Values of all kinds: signed zeros, infinities, NaN, extremes."""
    rng = np.random.default_rng(seed)
    if dtype.category == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.is_integer:
        pool = [0, 1, 2, 3, 5, 100, np.iinfo(dtype.np).max, np.iinfo(dtype.np).min]
        return rng.choice(np.array(pool, dtype.np), shape)
    pool = [0.0, -0.0, 1.0, -1.5, 2.0, 3.0, np.inf, -np.inf, np.nan, 1e-30, -1e30]
    return rng.choice(np.array(pool), shape).astype(dtype.np)


# (pass, parameters, before, expected operations; None: nothing may change)
ROWS: list[tuple[Callable[[Graph], Graph], str, str, list[str] | None]] = [
    # canonicalise
    (canonicalise, "%x: f32[3]", "%c = f32(2.0)\n%y = mul(%c, %x)", ["full", "mul"]),
    (canonicalise, "%x: f32[3], %y: f32[3]", "%z = gt(%x, %y)", ["lt"]),
    (canonicalise, "%x: f32[3], %y: f32[3]", "%z = ge(%x, %y)", ["le"]),
    (canonicalise, "%x: f32[3]", "%y = convert(%x) {dtype=f32}\n%z = neg(%y)", ["neg"]),
    (canonicalise, "%x: f32[3]", "%y = copy(%x)\n%z = neg(%y)", ["neg"]),
    (canonicalise, "%x: f32[3]", "%y = copy(%x)", None),
    (canonicalise, "%x: f32[3,1]", "%y = permute(%x) {perm=(1,0)}", ["reshape"]),
    (canonicalise, "%x: f32[3]", "%y = broadcast(%x) {shape=(3,1), axes=(0)}", ["reshape"]),
    (canonicalise, "%x: f32[1,3]", "%y = broadcast(%x) {shape=(2,3), axes=(0,1)}", ["reshape", "broadcast"]),
    (
        canonicalise,
        "%x: f32[3,4]",
        "%y = slice(%x) {start=(0,0), stop=(3,4), step=(1,1)}\n%z = neg(%y)",
        ["neg"],
    ),
    (canonicalise, "%x: f32[3,1]", "%y = flip(%x) {axes=(0,1)}", ["flip"]),
    (canonicalise, "%x: f32[3,1]", "%y = sum(%x) {axes=(1)}", ["reshape"]),
    (canonicalise, "%x: f32[3,1]", "%y = argmax(%x) {axis=1}", ["full"]),
    (
        canonicalise,
        "%x: f32[3], %v: f32[]",
        "%y = pad(%x, %v) {lo=(-1), hi=(2), interior=(0)}",
        ["slice", "pad"],
    ),
    (
        canonicalise,
        "%x: f32[3], %v: f32[]",
        "%y = pad(%x, %v) {lo=(-1), hi=(0), interior=(1)}",
        ["pad", "slice"],
    ),
    (canonicalise, "%x: f32[3], %e: f32[0]", "%y = concatenate(%e, %x) {axis=0}\n%z = neg(%y)", ["neg"]),
    # arithmetic
    (simplify, "%x: f32[3]", "%c = f32(-0.0)\n%y = add(%x, %c)\n%z = abs(%y)", ["abs"]),
    (simplify, "%x: f32[3]", "%c = f32(0.0)\n%y = add(%x, %c)", None),
    (simplify, "%x: f32[3]", "%c = f32(0.0)\n%y = sub(%x, %c)\n%z = abs(%y)", ["abs"]),
    (simplify, "%x: f32[3]", "%c = f32(-0.0)\n%y = sub(%x, %c)", None),
    (simplify, "%x: f32[3]", "%c = f32(0.0)\n%y = mul(%x, %c)", None),
    (simplify, "%x: i32[3]", "%c = i32(0)\n%y = mul(%x, %c)", ["full"]),
    (simplify, "%x: f32[3]", "%c = f32(-1.0)\n%y = mul(%x, %c)", ["neg"]),
    (simplify, "%x: f32[3]", "%y = sub(%x, %x)", None),
    (simplify, "%x: i32[3]", "%y = sub(%x, %x)", ["full"]),
    (simplify, "%x: f32[3], %y: f32[3]", "%n = neg(%y)\n%z = add(%x, %n)", ["sub"]),
    (simplify, "%x: f32[3], %y: f32[3]", "%n = neg(%y)\n%z = sub(%x, %n)", ["add"]),
    (simplify, "%x: f32[3], %y: f32[3]", "%a = neg(%x)\n%b = neg(%y)\n%z = mul(%a, %b)", ["mul"]),
    (simplify, "%x: f32[3]", "%a = neg(%x)\n%b = neg(%a)\n%z = exp(%b)", ["exp"]),
    (simplify, "%x: f32[3]", "%c = f32(8.0)\n%y = div(%x, %c)", ["full", "mul"]),
    (simplify, "%x: f32[3]", "%c = f32(3.0)\n%y = div(%x, %c)", None),
    (simplify, "%x: f32[3]", "%c = f32(2.0)\n%y = pow(%x, %c)", ["mul"]),
    (simplify, "%x: f32[3]", "%c = f32(3.0)\n%y = pow(%x, %c)", ["mul", "mul"]),
    (simplify, "%x: f32[3]", "%c = f32(-1.0)\n%y = pow(%x, %c)", ["full", "div"]),
    (simplify, "%x: f32[3]", "%c = f32(0.5)\n%y = pow(%x, %c)", None),
    (simplify, "%x: f32[3]", "%c = f32(0.0)\n%y = pow(%x, %c)", ["full"]),
    (simplify, "%x: f32[3]", "%c = f32(3.0)\n%y = mul(%x, %c)\n%z = neg(%y)", ["full", "mul"]),
    (simplify, "%x: i32[3]", "%c = i32(3)\n%y = add(%x, %c)\n%z = add(%y, %c)", ["full", "add"]),
    (simplify, "%x: f32[3]", "%c = f32(3.0)\n%y = add(%x, %c)\n%z = add(%y, %c)", None),
    (simplify, "%x: f32[3]", "%y = neg(%x)\n%z = abs(%y)", ["abs"]),
    (simplify, "%x: f32[3]", "%y = maximum(%x, %x)\n%z = exp(%y)", ["exp"]),
    # selection and comparison
    (simplify, "%x: f32[3]", "%y = eq(%x, %x)", None),
    (simplify, "%x: i32[3]", "%y = eq(%x, %x)", ["full"]),
    (simplify, "%c: bool[3], %x: f32[3]", "%y = where(%c, %x, %x)\n%z = neg(%y)", ["neg"]),
    (simplify, "%c: bool[3], %x: f32[3], %y: f32[3]", "%n = bit_not(%c)\n%z = where(%n, %x, %y)", ["where"]),
    (
        simplify,
        "%c: bool[3], %x: f32[3], %y: f32[3]",
        "%a = where(%c, %x, %y)\n%b = exp(%y)\n%z = where(%c, %a, %b)",
        ["exp", "where"],
    ),
    (simplify, "%x: f32[3], %y: f32[3]", "%a = eq(%x, %y)\n%z = bit_not(%a)", ["ne"]),
    (simplify, "%x: f32[3], %y: f32[3]", "%a = lt(%x, %y)\n%z = bit_not(%a)", None),
    (simplify, "%c: bool[3]", "%f = convert(%c) {dtype=f32}\n%o = f32(0.0)\n%z = eq(%f, %o)", ["bit_not"]),
    # conversion
    (
        simplify,
        "%x: f32[3]",
        "%y = convert(%x) {dtype=f64}\n%z = convert(%y) {dtype=f32}\n%w = neg(%z)",
        ["neg"],
    ),
    (simplify, "%x: f64[3]", "%y = convert(%x) {dtype=f32}\n%z = convert(%y) {dtype=f64}", None),
    (simplify, "%x: i8[3]", "%y = convert(%x) {dtype=f32}\n%z = convert(%y) {dtype=u8}", None),
    (simplify, "%x: i8[3]", "%y = convert(%x) {dtype=f32}\n%z = convert(%y) {dtype=i32}", ["convert"]),
    (simplify, "%x: i8[3]", "%y = convert(%x) {dtype=i32}\n%z = convert(%y) {dtype=u8}", ["convert"]),
    # moves
    (simplify, "%x: f32[3,4]", "%y = reshape(%x) {shape=(12)}\n%z = reshape(%y) {shape=(2,6)}", ["reshape"]),
    (
        simplify,
        "%x: f32[3,4,2]",
        "%y = permute(%x) {perm=(1,2,0)}\n%z = permute(%y) {perm=(2,0,1)}\n%w = neg(%z)",
        ["neg"],
    ),
    (
        simplify,
        "%x: f32[3]",
        "%y = broadcast(%x) {shape=(3,4), axes=(0)}\n%z = permute(%y) {perm=(1,0)}",
        ["broadcast"],
    ),
    (
        simplify,
        "%x: f32[3]",
        "%y = broadcast(%x) {shape=(3,4), axes=(0)}\n%z = broadcast(%y) {shape=(2,3,4), axes=(1,2)}",
        ["broadcast"],
    ),
    (
        simplify,
        "%x: f32[]",
        "%y = broadcast(%x) {shape=(3,4), axes=()}\n%z = reshape(%y) {shape=(12)}",
        ["broadcast"],
    ),
    (
        simplify,
        "%x: f32[3]",
        "%y = broadcast(%x) {shape=(3,4), axes=(0)}\n%z = reshape(%y) {shape=(12)}",
        None,
    ),
    (
        simplify,
        "%x: f32[3]",
        "%y = broadcast(%x) {shape=(3,4), axes=(0)}\n%z = reshape(%y) {shape=(1,3,1,4)}",
        ["broadcast"],
    ),
    (
        simplify,
        "%x: f32[3]",
        "%y = broadcast(%x) {shape=(3,4), axes=(0)}\n%z = exp(%y)",
        ["exp", "broadcast"],
    ),
    (simplify, "", "%y = f32_0d(2.0)\n%z = broadcast(%y) {shape=(3), axes=()}", ["full"]),
    (
        simplify,
        "%x: f32[9]",
        "%y = slice(%x) {start=(1), stop=(9), step=(2)}\n%z = slice(%y) {start=(1), stop=(4), step=(2)}",
        ["slice"],
    ),
    (
        simplify,
        "%x: f32[3]",
        "%c = f32_0d(0.0)\n"
        "%y = pad(%x, %c) {lo=(1), hi=(2), interior=(0)}\n"
        "%z = slice(%y) {start=(1), stop=(4), step=(1)}\n%w = neg(%z)",
        ["neg"],
    ),
    (
        simplify,
        "%x: f32[3]",
        "%c = f32_0d(0.0)\n"
        "%y = pad(%x, %c) {lo=(1), hi=(2), interior=(0)}\n%z = slice(%y) {start=(0), stop=(4), step=(1)}",
        None,
    ),
    (
        simplify,
        "%x: f32[3], %y: f32[2]",
        "%c = concatenate(%x, %y) {axis=0}\n%z = slice(%c) {start=(3), stop=(5), step=(1)}\n%w = neg(%z)",
        ["neg"],
    ),
    (
        simplify,
        "%x: f32[5], %u: f32[2]",
        "%y = update_slice(%x, %u) {start=(1), step=(2)}\n"
        "%z = slice(%y) {start=(1), stop=(4), step=(2)}\n%w = neg(%z)",
        ["neg"],
    ),
    (
        simplify,
        "%x: f32[5], %u: f32[5]",
        "%y = update_slice(%x, %u) {start=(0), step=(1)}\n%w = neg(%y)",
        ["neg"],
    ),
    (simplify, "%x: f32[5]", "%y = flip(%x) {axes=(0)}\n%z = flip(%y) {axes=(0)}\n%w = neg(%z)", ["neg"]),
    (
        simplify,
        "%x: f32[5,4]",
        "%i = full() {dtype=i64, shape=(1,1), value=2}\n%y = gather(%x, %i) {axes=(0)}",
        ["slice"],
    ),
    (
        simplify,
        "%x: f32[5,4]",
        "%i = full() {dtype=i64, shape=(1,1), value=7}\n%y = gather(%x, %i) {axes=(0)}",
        None,
    ),
    (
        simplify,
        "%x: f32[3]",
        "%y = reshape(%x) {shape=(3,1)}\n%z = log(%y)\n%w = reshape(%z) {shape=(3)}",
        ["log"],
    ),
    (
        simplify,
        "%x: f32[3,4]",
        "%y = permute(%x) {perm=(1,0)}\n%z = slice(%y) {start=(1,0), stop=(3,3), step=(1,1)}",
        ["slice", "permute"],
    ),
    (
        simplify,
        "%x: f32[2,12]",
        "%y = reshape(%x) {shape=(2,3,4)}\n%z = slice(%y) {start=(0,1,0), stop=(2,2,4), step=(1,1,1)}",
        ["slice", "reshape"],
    ),
    (
        simplify,
        "%x: f32[2,12]",
        "%y = reshape(%x) {shape=(2,3,4)}\n%z = slice(%y) {start=(0,0,1), stop=(2,3,2), step=(1,1,1)}",
        None,
    ),
    (simplify, "%x: f32[3,1,4]", "%y = permute(%x) {perm=(2,1,0)}", ["reshape", "permute", "reshape"]),
    (
        simplify,
        "%x: f32[5,4]",
        "%i = iota() {axis=0, dtype=i64, shape=(3)}\n%j = reshape(%i) {shape=(3,1)}\n"
        "%y = gather(%x, %j) {axes=(0)}",
        ["slice"],
    ),
    (
        simplify,
        "%x: f32[5,4], %u: f32[3,4]",
        '%i = iota() {axis=0, dtype=i64, shape=(3,1)}\n%y = scatter(%x, %i, %u) {axes=(0), mode="add"}',
        ["slice", "add", "update_slice"],
    ),
    # reductions
    (simplify, "%x: f32[3,4,2]", "%y = sum(%x) {axes=(1)}\n%z = sum(%y) {axes=(0)}", ["sum"]),
    (simplify, "%x: bf16[3,4,2]", "%y = sum(%x) {axes=(1)}\n%z = sum(%y) {axes=(0)}", None),
    (simplify, "%x: f32[3,4]", "%y = permute(%x) {perm=(1,0)}\n%z = sum(%y) {axes=(0)}", ["sum"]),
    (
        simplify,
        "%x: f32[3,4]",
        "%y = reshape(%x) {shape=(12)}\n%z = reduce_max(%y) {axes=(0)}",
        ["reduce_max"],
    ),
    (
        simplify,
        "%x: f32[3]",
        "%y = broadcast(%x) {shape=(3,4), axes=(0)}\n%z = sum(%y) {axes=(1)}",
        ["full", "mul"],
    ),
    (simplify, "%x: f32[3]", "%y = broadcast(%x) {shape=(3,5), axes=(0)}\n%z = sum(%y) {axes=(1)}", None),
    (
        simplify,
        "%x: f32[3]",
        "%y = broadcast(%x) {shape=(3,5), axes=(0)}\n%z = reduce_max(%y) {axes=(1)}\n%w = neg(%z)",
        ["neg"],
    ),
    (simplify, "", "%c = full() {dtype=f32, shape=(7), value=1.0}\n%z = sum(%c) {axes=(0)}", ["full"]),
    # contractions
    (
        simplify,
        "%x: f32[3,4], %w: f32[5,4]",
        "%t = permute(%w) {perm=(1,0)}\n%y = dot_general(%x, %t) {contract=((1),(0))}",
        ["dot_general"],
    ),
    (
        simplify,
        "%x: f32[3,4], %w: f32[4,5]",
        "%y = dot_general(%x, %w) {contract=((1),(0))}\n%z = permute(%y) {perm=(1,0)}",
        ["dot_general"],
    ),
    (
        simplify,
        "%x: f32[1,2,5], %w: f32[3,2,3]",
        "%c = f32_0d(0.0)\n"
        "%p = pad(%x, %c) {lo=(0,0,1), hi=(0,0,1), interior=(0,0,0)}\n"
        "%y = conv(%p, %w) {stride=(1), padding=((0,0)), lhs_dilation=(1), rhs_dilation=(1)}",
        ["conv"],
    ),
    # common and dead operations
    (cse, "%x: f32[3]", "%a = exp(%x)\n%b = exp(%x)\n%c = add(%a, %b)", ["exp", "add"]),
    (cse, "%x: f32[3]", "%p = f32(0.0)\n%q = f32(-0.0)\n%a = add(%x, %p)\n%b = add(%a, %q)", None),
    (cse, "%x: f32[3]", "%a = copy(%x)\n%b = copy(%x)\nreturn %a, %b", None),
    (dce, "%x: f32[3]", "%a = exp(%x)\n%b = log(%a)\n%c = neg(%x)", ["neg"]),
    # decompose
    (
        decompose,
        "%x: f32[3], %y: f32[4]",
        "%z = dot_general(%x, %y) {contract=((),())}",
        ["broadcast", "broadcast", "mul"],
    ),
    (decompose, "%x: f32[3], %y: f32[3]", "%z = dot_general(%x, %y) {contract=((0),(0))}", ["mul", "sum"]),
    (decompose, "%x: f32[3,0], %y: f32[0,4]", "%z = dot_general(%x, %y) {contract=((1),(0))}", ["full"]),
    (decompose, "%x: f32[0,4]", "%z = exp(%x)", ["full"]),
    (decompose, "%x: f32[0,4]", "%z = prod(%x) {axes=(0)}", ["full"]),
    (decompose, "%x: f32[6]", "%a, %b = topk(%x) {axis=0, k=2}\nreturn %a, %b", ["sort", "slice", "slice"]),
    (decompose, "%x: f32[60]", "%a, %b = topk(%x) {axis=0, k=2}\nreturn %a, %b", ["topk"]),
    (decompose, "%x: f32[6]", "return %x", ["copy"]),
    (decompose, "%x: f32[6]", "%y = reshape(%x) {shape=(2,3)}", ["reshape", "copy"]),
    (decompose, "%x: f32[6]", "%y = exp(%x)\nreturn %y, %y", ["exp", "copy"]),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0].__name__}: {row[2]}"[:90])
def test_rule(
    row: tuple[Callable[[Graph], Graph], str, str, list[str] | None], same: Callable[..., None]
) -> None:
    apply, signature, lines, wanted = row
    graph = parse(signature, lines)
    out = apply(graph)
    names = [op.prim.name for op in out.ops]
    assert names == ([op.prim.name for op in graph.ops] if wanted is None else wanted), print_graph(out)
    for seed in range(5):
        arguments = [special(p.type.shape, p.type.dtype, seed) for p in graph.params]
        if "value=7" not in lines:
            same(graph, out, arguments, exact="pow" not in lines and "conv" not in lines)


def test_attributes_of_composed_moves() -> None:
    graph = parse("%x: f32[9]", "%y = slice(%x) {start=(1), stop=(9), step=(2)}\n"
                  "%z = slice(%y) {start=(1), stop=(4), step=(2)}")  # fmt: skip
    (op,) = simplify(graph).ops
    assert dict(op.attrs) == {"start": (3,), "stop": (8,), "step": (4,)}


def test_contraction_reads_a_transposed_weight_in_place() -> None:
    graph = parse("%x: f32[3,4], %w: f32[5,4]",
                  "%t = permute(%w) {perm=(1,0)}\n%y = dot_general(%x, %t) {contract=((1),(0))}")  # fmt: skip
    (op,) = simplify(graph).ops
    assert op.operands == graph.params and op.attrs["contract"] == ((1,), (1,))


def test_every_unary_of_a_constant_is_the_reference_value() -> None:
    for name, value in itertools.product(("exp", "log", "tanh", "sqrt", "floor", "neg"), (0.5, -0.0, -1.0)):
        graph = parse("", f"%c = full() {{dtype=f32, shape=(2), value={value}}}\n%y = {name}(%c)")
        (op,) = simplify(graph).ops
        with np.errstate(all="ignore"):
            wanted = getattr(np, {"neg": "negative"}.get(name, name))(np.float32(value))
        np.testing.assert_array_equal(np.float32(op.attrs["value"]), wanted)


def test_rules_reach_into_regions() -> None:
    text = """graph main(%p: bool[], %x: f32[3]) {
  %y = cond(%p, %x): f32[3]
    graph then(%0: f32[3]) {
      %1 = neg(%0): f32[3]
      %2 = neg(%1): f32[3]
      %3 = exp(%0): f32[3]
      %4 = exp(%2): f32[3]
      return %4
    }
    graph otherwise(%0: f32[3]) {
      return %0
    }
  return %y
}
"""
    out = cse(simplify(parse_graph(text)))
    assert [op.prim.name for op in out.ops[0].regions[0].ops] == ["exp"]


def test_a_known_condition_is_inlined() -> None:
    text = """graph main(%x: f32[3]) {
  %p = full() {dtype=bool, shape=(), value=false}: bool[]
  %y = cond(%p, %x): f32[3]
    graph then(%0: f32[3]) {
      return %0
    }
    graph otherwise(%0: f32[3]) {
      %1 = exp(%0): f32[3]
      return %1
    }
  return %y
}
"""
    assert [op.prim.name for op in simplify(parse_graph(text)).ops] == ["exp"]


def test_the_gradient_of_picking_one_element_per_row_is_a_map() -> None:
    graph = parse(
        "%x: f32[4,5], %i: i64[4,1], %g: f32[4,1]",
        "%p = take_along(%x, %i) {axis=1}\n"
        "%c = full() {dtype=f32, shape=(4,5), value=0.0}\n"
        "%s = scatter_along(%c, %i, %g) {axis=1, mode='add'}\n"
        "return %p, %s".replace("'", '"'),
    )
    out = decompose(graph)
    assert {op.prim.kind for op in out.ops} == {Kind.GATHER, Kind.MAP, Kind.MOVE, Kind.SOURCE}
    rng = np.random.default_rng(0)
    arguments = [
        rng.normal(size=(4, 5)).astype("f4"),
        rng.integers(0, 5, (4, 1)),
        np.float32([[1], [-0.0], [2], [3]]),
    ]
    for a, b in zip(run(graph, arguments), run(out, arguments), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_scatter_whose_index_is_not_checked_elsewhere_is_a_map_that_checks_it() -> None:
    graph = parse(
        "%x: f32[4,5], %i: i64[4,1], %g: f32[4,1]",
        '%s = scatter_along(%x, %i, %g) {axis=1, mode="add"}\nreturn %s',
    )
    out = decompose(graph)
    assert "scatter_along" not in [op.prim.name for op in out.ops]
    x, g = np.ones((4, 5), "f4"), np.float32([[1], [2], [3], [4]])
    good, bad = np.array([[0], [4], [2], [2]]), np.array([[0], [5], [2], [2]])
    np.testing.assert_array_equal(run(out, [x, good, g])[0], run(graph, [x, good, g])[0])
    with pytest.raises(IndexError):
        run(out, [x, bad, g])
