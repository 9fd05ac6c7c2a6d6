"""Functions that look values up in registers: the same bits on every kind of vector as in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from weft.codegen.kernel import emit_kernel
from weft.codegen.llvm import module_text
from weft.codegen.standalone import compile_function, kernel_op
from weft.codegen.target import Target, host_target, named_target
from weft.ir.prims.base import PRIMITIVES, trace
from weft.ir.record import replace
from weft.ir.scalarnumpy import NumpyBuilder
from weft.ir.types import TensorType, f32
from weft.runtime import jit

FUNCTIONS = ("erf", "tanh", "exp", "exp2", "log", "log2", "sinh")
SPECIALS = np.float32([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-42, 100.0, 88.7, -103.5, -2.5, 0.125, 3.9])


def targets() -> list[Target]:
    """The machine's own vectors, those of AVX2, and plain ones of four lanes; those that it can run."""
    host = host_target()
    if not host.triple.startswith("x86_64"):
        return [host]
    found = [host]
    if host.vector_bits >= 256:
        found.append(named_target("haswell"))
        found.append(replace(named_target("haswell"), features="+sse4.1,+avx,+fma", vector_bits=128))
    return found


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_way_to_look_up_gives_the_bits_of_numpy(name: str) -> None:
    x = np.concatenate([np.random.default_rng(0).normal(scale=4, size=1000).astype(np.float32), SPECIALS])
    with np.errstate(all="ignore"):
        want = getattr(NumpyBuilder(), name)(x)
    for target in targets():
        run = compile_function(PRIMITIVES[name].bind, TensorType(x.shape, f32), form="loop", target=target)
        got = run(x)[0]
        same = (got.view(np.int32) == want.view(np.int32)) | (np.isnan(got) & np.isnan(want))
        assert same.all(), (target.vector_bits, x[~same], got[~same], want[~same])


def assembly(name: str, target: Target) -> str:
    op = kernel_op(trace(PRIMITIVES[name].bind, TensorType((64,), f32)), "loop")
    code = emit_kernel(op, target, "k0")
    return jit.assembly(module_text(target, [code.llvm], code.declares), target)


def test_lookups_are_permutations_in_registers() -> None:
    assert assembly("erf", named_target("skylake-avx512")).count("vpermps") >= 6
    assert assembly("erf", named_target("haswell")).count("vpermps") >= 12
    arm = Target("aarch64-unknown-linux-gnu", "generic", "+neon", 128, 32)
    assert assembly("erf", arm).count("tbl") >= 6


def test_scaling_and_splitting_are_one_instruction_on_avx512() -> None:
    wide = named_target("skylake-avx512")
    assert "vscalefps" in assembly("exp", wide)
    assert "vgetexpps" in assembly("log", wide) and "vgetmantps" in assembly("log", wide)
