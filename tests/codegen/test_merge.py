"""Functions that are there already are left out of a module."""

from __future__ import annotations

import weft
from weft.codegen.kernel import KernelCode, Phase
from weft.codegen.merge import Merger

KERNEL = """define internal void @{k}_unit(ptr %bufs) #0 {{
start:
  store i64 {n}, ptr %bufs
  ret void
}}

define void @{k}_0(ptr %bufs, i64 %begin, i64 %end, i64 %thread) #0 {{
start:
  call void @{k}_unit(ptr %bufs)
  call void @weft_shared(ptr %bufs)
  ret void
}}
"""


def code(k: str, n: int) -> KernelCode:
    text = KERNEL.format(k=k, n=n)
    return KernelCode(k, text, frozenset(), (Phase(f"{k}_0", 4, 10.0),))


def test_a_kernel_of_the_same_code_brings_nothing() -> None:
    merger = Merger()
    first, same = merger.add(code("k0_add", 7)), merger.add(code("k1_mul", 7))
    assert first == code("k0_add", 7)
    assert "define" not in same.llvm and [p.symbol for p in same.phases] == ["k0_add_0"]
    assert same.name == "k1_mul" and same.phases[0].units == 4


def test_a_function_that_calls_another_one_is_kept() -> None:
    merger = Merger()
    merger.add(code("k0", 7))
    other = merger.add(code("k1", 8))
    assert other == code("k1", 8)
    third = code("k2", 9)
    extended = third.llvm.replace("ret void\n}\n\n", "ret void\n}\n\n" + code("k2x", 7).llvm)
    mixed = merger.add(KernelCode("k2", extended, frozenset(), third.phases))
    assert mixed.llvm.count("define") == 2 and "k2x" not in mixed.llvm


def test_layers_of_one_kind_share_their_functions() -> None:
    """Softmax of rows of 64, once of (8, 64) and once of (2, 4, 64), with a product between them."""

    def f(x: weft.Tensor, w: weft.Tensor) -> weft.Tensor:
        return (x.softmax(-1) @ w).reshape(2, 4, 64).softmax(-1)

    g = weft.compile(f, fullgraph=True)
    x, w = weft.randn(8, 64), weft.randn(64, 64)
    assert float((g(x, w) - f(x, w)).abs().max()) < 1e-6
    assert [k.form for k in g.kernels()] == ["loop", "contract", "loop"]
    phases = [line for line in g.llvm().splitlines() if line.startswith("define void @k")]
    assert len(phases) == 2 and sum("reduce_max" in line for line in phases) == 1
