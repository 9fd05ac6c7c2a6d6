"""Integer division by zero: torch's error, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import weft

OPERATIONS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "floor_divide": lambda T, a, b: a // b,
    "remainder": lambda T, a, b: a % b,
    "fmod": lambda T, a, b: T.fmod(a, b),
    "trunc": lambda T, a, b: T.div(a, b, rounding_mode="trunc"),
    "padded": lambda T, a, b: T.nn.functional.pad(a // b, (3, 5)),
    "joined": lambda T, a, b: T.cat([a, a % b]),
    "summed": lambda T, a, b: (a // b).sum(),
}
A = np.arange(1, 60)


def divisors(zero: bool) -> np.ndarray:
    b = np.tile([1, 3, 2], 20)[:59]
    b[40] = 0 if zero else 7
    return b


@pytest.mark.parametrize("dtype", ["int64", "int32", "int16", "uint8"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_zero_among_divisors(name: str, dtype: str) -> None:
    def fn(a: Any, b: Any) -> Any:
        return OPERATIONS[name](weft, a, b)

    a, good, bad = (weft.tensor(x.astype(dtype)) for x in (A, divisors(False), divisors(True)))
    compiled = weft.compile(fn)
    assert (compiled(a, good) == fn(a, good)).all()  # what pads a vector or an array is no divisor
    for f in (fn, compiled):
        with pytest.raises(RuntimeError, match=r"^ZeroDivisionError$"):
            f(a, bad)
    assert (compiled(a, good) == fn(a, good)).all()


def test_no_elements_no_error() -> None:
    empty = weft.zeros(0, dtype=weft.int64)
    assert (empty // 0).shape == (0,)
    assert weft.compile(lambda a, b: a % b)(empty, weft.zeros(1, dtype=weft.int64)).shape == (0,)


def test_floats_have_infinities() -> None:
    x = weft.tensor([1.0, -1.0])
    np.testing.assert_array_equal((x // 0.0).numpy(), [np.inf, -np.inf])


def test_a_constant_divisor_is_not_checked() -> None:
    fn = weft.compile(lambda a: a // 3 + a % weft.full((59,), 5, dtype=weft.int64))
    fn(weft.tensor(A))
    (kernel,) = fn.kernels()
    assert "check" not in str(kernel.loops)
    fn = weft.compile(lambda a, b: a // b)
    fn(weft.tensor(A), weft.tensor(divisors(False)))
    assert str(fn.kernels()[0].loops).count("check") == 1


@pytest.mark.gpu
def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if not weft.cuda.is_available():
        monkeypatch.setenv("WEFT_CUDA", "emulate")
        monkeypatch.setenv("WEFT_CUDA_DEVICES", "2")  # the driver that other tests use, too
    a, b = weft.tensor(A).cuda(), weft.tensor(divisors(True)).cuda()
    out = weft.compile(lambda a, b: a // b)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        out(a, b).cpu()


@pytest.mark.parity
@pytest.mark.parametrize("name", OPERATIONS)
def test_as_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    for T in (torch, weft):
        with pytest.raises(RuntimeError, match=r"^ZeroDivisionError$"):
            OPERATIONS[name](T, T.tensor(A), T.tensor(divisors(True)))
        with pytest.raises(RuntimeError, match=r"^ZeroDivisionError$"):
            T.fmod(T.tensor(A), 0)
