"""What kernels move: operands read once, results written once, in whole sectors, without bank conflicts.

Counted on the emulated device, in sectors of 32 bytes of global memory. What every row reads comes from
caches: a bias, the weights of a norm, and tables of coefficients, which are not counted (``ld.global.nc``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import weft
from weft import nn
from weft.nn import functional as F
from weft.runtime.cuda.driver import driver

SECTOR = 32

@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_CUDA", "emulate")
    monkeypatch.setenv("WEFT_CUDA_DEVICES", "2")  # the driver that other tests use, too


def traffic(call: Callable[[], Any]) -> tuple[int, int, int]:
    """Bytes read and written by the launches of a call, in whole sectors, and their bank conflicts."""
    call()
    weft.cuda.synchronize()
    launches = driver().machines[0].launches  # type: ignore[attr-defined]
    before = len(launches)
    call()
    weft.cuda.synchronize()
    lines = [line for s in launches[before:] for line in s.lines.values()]
    read = sum(x.sectors for x in lines if x.instruction.startswith("ld") and ".nc." not in x.instruction)
    written = sum(x.sectors for x in lines if x.instruction.startswith("st"))
    return read * SECTOR, written * SECTOR, sum(s.bank_conflicts for s in launches[before:])


def rand(*shape: int, **how: Any) -> weft.Tensor:
    return weft.randn(*shape, device="cuda", **how)


def assert_compulsory(call: Callable[[], Any], read: int, written: int, shared: int = 0) -> None:
    """``read`` and ``written`` bytes and what rounds up sectors; ``shared`` more, of what all rows read."""
    got = traffic(call)
    assert read <= got[0] <= read + shared + SECTOR * 64, (got, read)
    assert written <= got[1] <= written + SECTOR * 64, (got, written)
    assert got[2] == 0


@pytest.mark.parametrize(("rows", "n"), [(64, 512), (61, 517)])
def test_elementwise_chain(rows: int, n: int) -> None:
    """Also where neither the number of elements nor the rows are multiples of a vector."""
    x, w, b = rand(rows, n), rand(n), rand(n)
    fn = weft.compile(lambda x, w, b: F.gelu(x * w + b) * 0.5 + x)
    size = 4 * rows * n
    assert_compulsory(lambda: fn(x, w, b), size, size, 3 * size)


@pytest.mark.parametrize("n", [256, 1000, 2048])
def test_softmax(n: int) -> None:
    x = rand(24, n)
    fn = weft.compile(lambda x: F.softmax(x, -1))
    assert_compulsory(lambda: fn(x), 4 * 24 * n, 4 * 24 * n)


def test_layer_norm_and_its_gradient() -> None:
    rows, n = 32, 768
    x, r, w, b = rand(rows, n), rand(rows, n), rand(n), rand(n)
    size = 4 * rows * n
    fn = weft.compile(lambda x, r, w, b: F.layer_norm(x + r, (n,), w, b))
    assert_compulsory(lambda: fn(x, r, w, b), 2 * size, size, 2 * size)
    ct = rand(rows, n)
    x.requires_grad_()

    def backward(x: weft.Tensor, w: weft.Tensor, ct: weft.Tensor) -> Any:
        return weft.autograd.grad(F.layer_norm(x, (n,), w), [x], ct)

    grad = weft.compile(backward)
    assert_compulsory(lambda: grad(x, w, ct), 2 * size, size, size)


def test_cross_entropy() -> None:
    rows, words = 24, 1024
    x, y = rand(rows, words), weft.randint(0, words, (rows,), device="cuda")
    fn = weft.compile(lambda x, y: F.cross_entropy(x, y))
    assert_compulsory(lambda: fn(x, y), 4 * rows * words, 4, SECTOR * 4 * rows)


@pytest.mark.parametrize("shape", [(96, 160), (77, 131)])
def test_transposition(shape: tuple[int, int]) -> None:
    """Through tiles in shared memory: both sides in whole sectors; tiles of odd rows share their ends."""
    x = rand(*shape)
    fn = weft.compile(lambda x: x.t().contiguous())
    size, ends = 4 * x.numel(), 0 if shape[0] % 32 == 0 else 8 * x.numel()
    read, written, conflicts = traffic(lambda: fn(x))
    assert conflicts == 0 and size <= read <= size + ends and size <= written <= size + ends


@pytest.mark.parametrize(("kind", "reads", "writes"), [("SGD", 2, 1), ("Adam", 4, 3)])
def test_optimizer_step(kind: str, reads: int, writes: int) -> None:
    """SGD reads parameter and gradient, and writes the parameter; Adam has two states more."""
    parameters = [nn.Parameter(rand(64, 96)), nn.Parameter(rand(96))]
    optimizer = getattr(weft.optim, kind)(parameters, lr=0.1)
    for p in parameters:
        p.grad = rand(*p.shape)
    size = sum(4 * p.numel() for p in parameters)
    step = weft.compile(lambda: optimizer.step())
    step()
    scalars = 8 * SECTOR * -(-size // 512)  # of a warp: the learning rate, the corrections
    assert_compulsory(step, reads * size, writes * size, scalars)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_products_store_their_result_only(dtype: str) -> None:
    """Bias and activation pass over the tile in shared memory: the product itself is never stored."""
    kind = getattr(weft, dtype)
    x, w, b = rand(64, 64, dtype=kind), rand(128, 64, dtype=kind), rand(128, dtype=kind)
    fn = weft.compile(lambda x, w, b: F.gelu(F.linear(x, w, b)))
    _, written, _ = traffic(lambda: fn(x, w, b))
    assert written == 64 * 128 * kind.itemsize
