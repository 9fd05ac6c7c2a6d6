"""Exponentials, quotients and tables in the instructions of a GPU, over all of f32."""

from __future__ import annotations

import re

import numpy as np
import pytest
import weft
from weft.codegen.gpu.target import gpu_target
from weft.runtime import compile_graph

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_CUDA", "emulate")  # its units do not always give the nearest number
    monkeypatch.setenv("WEFT_CUDA_DEVICES", "2")


def _any_floats(n: int, seed: int) -> np.ndarray:
    bits = np.random.default_rng(seed).integers(0, 1 << 32, n, dtype=np.uint32)
    special = np.array([0, -0.0, 1, np.inf, -np.inf, np.nan, 1e-45, 1.1754944e-38, 3.4028235e38], np.float32)
    bits[: special.size] = special.view(np.uint32)
    return bits.view(np.float32)


def _ulps(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.abs(got - exact) / np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)


def _check_quotient(got: np.ndarray, x: np.ndarray, y: np.ndarray) -> int:
    """The nearest number; within 2 ULP of it where dividend or quotient are next to the smallest. How
    many those were."""
    with np.errstate(all="ignore"):
        want = x / y
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    small = ((np.abs(want) < 2.0**-125) | (np.abs(x) < 2.0**-100)) & np.isfinite(want)
    usual = ~small & ~np.isnan(want)
    np.testing.assert_array_equal(got[usual].view(np.int32), want[usual].view(np.int32))
    assert _ulps(got[small], want[small].astype(np.float64)).max(initial=0) <= 2
    return small.sum()


def test_quotients_are_the_nearest_numbers():
    x, y = _any_floats(1 << 14, 0), np.roll(_any_floats(1 << 14, 1), 3)
    small = _check_quotient((weft.tensor(x).cuda() / weft.tensor(y).cuda()).cpu().numpy(), x, y)
    assert 1000 < small < 1 << 13


@pytest.mark.parametrize("divisor", [3.0, -0.1, 1e-30, 2.0**120, 0.0, np.inf, 1e-44])
def test_quotients_by_a_constant(divisor):
    x = _any_floats(4096, 2)
    divide = weft.compile(lambda x: x / divisor)
    _check_quotient(divide(weft.tensor(x).cuda()).cpu().numpy(), x, np.float32(divisor))


@pytest.mark.parametrize("fn", ["exp", "exp2"])
def test_exponentials_are_within_two_ulp(fn):
    x = np.concatenate([np.linspace(-151, 129, 1 << 14, dtype=np.float32), _any_floats(4096, 3)])
    got = getattr(weft.tensor(x).cuda(), fn)().cpu().numpy()
    with np.errstate(all="ignore"):
        exact = getattr(np, fn)(x.astype(np.float64))
        rounded = exact.astype(np.float32)
    edge = np.isinf(rounded) | np.isnan(rounded) | (rounded == 0)
    np.testing.assert_array_equal(got[edge & (exact != 0)], rounded[edge & (exact != 0)])
    assert _ulps(got[~edge], exact[~edge]).max() < 2
    assert getattr(weft.zeros(1).cuda(), fn)().item() == 1


def test_no_branches_and_one_address_for_the_tables():
    """What makes these rules worth having: 16 quotients and exponentials in a row have no branch between
    them, and an error function asks for its six coefficients at one address."""
    x = weft.zeros(4, 64)
    soft = weft.compile(lambda x: weft.softmax(x, -1))
    soft(x)
    ptx = compile_graph(soft.graph, target=gpu_target("sm_90")).ptx()
    assert "div.rn" not in ptx and ptx.count("bra") <= 1
    assert (ptx.count("ex2.approx.ftz"), ptx.count("rcp.approx.ftz")) == (16, 1)  # of one row in a thread
    erf = weft.compile(lambda x: weft.erf(x))
    erf(x)
    ptx = compile_graph(erf.graph, target=gpu_target("sm_90")).ptx()
    loads = re.findall(r"ld\.global\.nc\S* +\S+ \[(%rd\d+)", ptx)
    assert len(loads) == 6 * len(set(loads))


def test_epilogues_of_products_have_the_same_rules():
    """An epilogue is evaluated on vectors, whose elements take the same units and tables."""

    @weft.compile
    def gelu(x, w):
        return weft.nn.functional.gelu(x @ w) / (1 + weft.exp(-x @ w))

    x, w = weft.randn(16, 16), weft.randn(16, 16)
    here, there = gelu(x, w), gelu(x.cuda(), w.cuda())
    np.testing.assert_allclose(there.cpu().numpy(), here.numpy(), rtol=1e-5, atol=1e-6)
    ptx = gelu.asm()
    assert "ex2.approx.ftz" in ptx and "rcp.approx.ftz" in ptx and "div.rn" not in ptx
    assert len(re.findall(r"ld\.global\.nc\.b32", ptx)) % 6 == 0 and ptx.count("selp") < 80
