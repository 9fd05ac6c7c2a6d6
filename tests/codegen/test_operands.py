"""How operands lie in memory, and how tiles are chosen."""

from __future__ import annotations

import re

import numpy as np
import pytest
from weft.codegen.blocks import Code
from weft.codegen.contract_plan import inner_shapes, stream_turns
from weft.codegen.llvm import module_text
from weft.codegen.microkernel import (
    Tile,
    accumulator,
    inner_kernel,
    outer_kernel,
    rows_for,
    stream_kernel,
    widest,
)
from weft.codegen.operands import matrix
from weft.codegen.target import named_target
from weft.ir import prims as P
from weft.ir.access import access_of, collapse, merge, reshaped_strides, row_major
from weft.ir.prims.base import trace
from weft.ir.types import TensorType, bf16, f32, f64, i8, i32, i64

TARGETS = [named_target("haswell"), named_target("skylake-avx512")]


def test_strides_of_reshaped_views_are_those_of_numpy():
    x = np.zeros((4, 6, 5), np.int8).transpose(1, 0, 2)
    for shape in ((6, 4, 5), (2, 3, 4, 5), (6, 20), (6, 2, 10), (3, 2, 1, 20)):
        strides = reshaped_strides(x.shape, x.strides, shape)
        view = x.reshape(shape)
        assert np.shares_memory(x, view) == (strides is not None)
        if strides is not None:
            wide = [i for i, d in enumerate(shape) if d > 1]
            assert [strides[i] for i in wide] == [view.strides[i] for i in wide]
    assert reshaped_strides((6, 4), (1, 6), (24,)) is None


def test_dimensions_that_run_as_one_are_merged():
    assert row_major((2, 3, 4)) == (12, 4, 1)
    assert collapse((2, 3, 4), (12, 4, 1)) == 1
    assert collapse((2, 1, 4), (8, 99, 2)) == 2
    assert collapse((2, 3), (1, 2)) is None
    assert merge((2, 3, 4), (12, 4, 1)) == [(24, 1)]
    assert merge((2, 3, 4), (100, 4, 1)) == [(2, 100), (12, 1)]
    assert merge((1, 1), (5, 5)) == []


def test_access_goes_through_moves_and_stops_being_pure_at_maps():
    def fn(x):
        y = P.permute_p.bind(P.slice_p.bind(x, start=(1, 0), stop=(7, 8), step=(2, 1)), perm=(1, 0))
        return [P.flip_p.bind(y, axes=(1,)), P.neg_p.bind(y), P.pad_p.bind(y, P.full_p.bind(
            shape=(), dtype=f32, value=0.0), lo=(1, 0), hi=(0, 0), interior=(0, 0))]  # fmt: skip

    graph = trace(fn, TensorType((8, 8), f32))
    flipped, negated, padded = (access_of(v, graph.producers()) for v in graph.results)
    assert flipped is not None and (flipped.offset, flipped.strides, flipped.pure) == (40, (1, -16), True)
    assert negated is not None and (negated.offset, negated.strides, negated.pure) == (8, (1, 16), False)
    assert padded is None


def test_a_matrix_knows_how_it_can_be_read():
    graph = trace(lambda x: [P.neg_p.bind(x)], TensorType((4, 6, 5), f32))
    m = matrix(graph.params[0], graph, ((), (0, 1), (2,)))
    assert (m.rows, m.depth, m.row_stride, m.k_stride, m.in_registers) == (24, 5, 5, 1, True)
    apart = matrix(graph.params[0], graph, ((1,), (0, 2), ()))
    assert apart.row_stride is None and apart.run(1) == 5 and not apart.in_registers
    assert not matrix(graph.results[0], graph, ((), (0, 1), (2,))).affine


def test_accumulators():
    assert [accumulator(d) for d in (bf16, f32, f64, i8, i64)] == [f32, f32, f64, i32, i64]


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.cpu)
def test_tiles_fit_the_registers(target):
    for vectors in range(1, widest(target) + 1):
        for rows in range(1, 200):
            high = rows_for(target, vectors, rows)
            assert 1 <= high <= rows
            assert high * vectors + vectors + 1 <= target.registers
            assert -(-rows // high) * high <= 1.5 * rows


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.cpu)
def test_inner_loops_keep_everything_in_registers(target):
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    fn = Code("all", "ptr %a")
    lanes = target.lanes(32)
    for vectors in range(1, widest(target) + 1):
        for step in ("k", "m", "any"):
            outer_kernel(fn, Tile(rows_for(target, vectors, 1000), vectors, lanes, f32), step=step)
    for rows, cols in {*inner_shapes(target, 8, lanes, lanes), *inner_shapes(target, 8, 5, lanes)}:
        inner_kernel(fn, rows, cols, f32, lanes)
    for rows in (1, 2, 3, 4, 9):
        stream_kernel(fn, Tile(rows, 8, lanes, f32), stream_turns(target, rows), step="k")
    # they are internal: used from outside so that none is dropped
    text = module_text(target, [fn.finish()], fn.declares).replace("define internal", "define")
    machine = llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=1, codemodel="small", reloc="pic"
    )
    asm = machine.emit_assembly(llvm.parse_assembly(text))
    assert all(asm.count(f"weft_{kind}") for kind in ("outer", "inner", "stream"))
    assert re.search(r"vfmadd231ps\s.*%[yz]mm", asm)
    assert not re.search(r"%[yz]mm\d+, -?\d*\(%r[sb]p\)", asm)  # a vector stored to the stack
