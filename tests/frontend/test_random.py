"""Random numbers: the Philox stream, distributions, generators, state."""

from __future__ import annotations

import numpy as np
import pytest
import weft as torch


def test_seed_repeats_and_streams_differ() -> None:
    torch.manual_seed(3)
    a, b = torch.rand(5), torch.rand(5)
    torch.manual_seed(3)
    assert torch.equal(a, torch.rand(5)) and not torch.equal(a, b)
    assert torch.initial_seed() == 3
    torch.manual_seed(4)
    assert not torch.equal(a, torch.rand(5))


def test_state_round_trip() -> None:
    torch.manual_seed(1)
    torch.rand(3)
    state = torch.get_rng_state()
    a = torch.randn(4)
    torch.set_rng_state(state)
    assert torch.equal(a, torch.randn(4))
    with pytest.raises(RuntimeError, match="RNG state"):
        torch.set_rng_state(torch.zeros(3))
    with torch.random.fork_rng():
        b = torch.rand(2)
    assert torch.equal(b, torch.rand(2))


def test_offset_advances_by_blocks_of_four() -> None:
    g = torch.Generator().manual_seed(0)
    torch.rand(5, generator=g)
    assert g.get_state().tolist() == [0, 2]
    torch.rand(0, generator=g)
    assert g.get_state().tolist() == [0, 2]


def test_generators_are_independent() -> None:
    g, h = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
    torch.manual_seed(0)
    first = torch.get_rng_state()
    assert torch.equal(torch.rand(3, generator=g), torch.rand(3, generator=h))
    assert torch.equal(first, torch.get_rng_state()) and g.initial_seed() == 7


def test_large_and_negative_seeds() -> None:
    assert torch.Generator().manual_seed(2**64 - 1).initial_seed() == 2**64 - 1
    assert torch.Generator().manual_seed(-1).initial_seed() == 2**64 - 1
    with pytest.raises(RuntimeError, match="Overflow"):
        torch.manual_seed(2**64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_uniform_range_and_moments(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.rand(20000, dtype=dtype).double()
    assert x.min().item() >= 0 and x.max().item() < 1
    assert abs(x.mean().item() - 0.5) < 0.01 and abs(x.var().item() - 1 / 12) < 0.01


def test_normal_moments() -> None:
    torch.manual_seed(0)
    x = torch.randn(40000, dtype=torch.float64).numpy()
    assert abs(x.mean()) < 0.02 and abs(x.std() - 1) < 0.02
    assert abs((x**3).mean()) < 0.06 and abs((x**4).mean() - 3) < 0.15
    y = torch.randn(20000, dtype=torch.complex64)
    assert abs((y.abs() ** 2).mean().item() - 1) < 0.03
    z = torch.normal(torch.tensor([1.0, -5.0]).repeat(5000), 0.1).reshape(-1, 2).mean(0)
    np.testing.assert_allclose(z.numpy(), [1, -5], atol=0.02)


def test_integers() -> None:
    torch.manual_seed(0)
    x = torch.randint(-3, 4, (7000,))
    assert x.dtype is torch.int64 and sorted(set(x.tolist())) == list(range(-3, 4))
    assert abs(torch.bincount(x + 3).double().std().item()) < 80
    assert torch.randint(5, (2, 2)).shape == (2, 2) and torch.randint(high=5, size=(3,)).max().item() < 5
    big = torch.randint(0, 2**40, (1000,))
    assert big.max().item() > 2**38 and big.min().item() >= 0
    with pytest.raises(RuntimeError, match="expects 'from' to be less than 'to'"):
        torch.randint(5, 5, (1,))


def test_permutation() -> None:
    torch.manual_seed(0)
    p = torch.randperm(100)
    assert sorted(p.tolist()) == list(range(100)) and p.tolist() != list(range(100))
    assert torch.randperm(0).shape == (0,)


def test_bernoulli_and_multinomial() -> None:
    torch.manual_seed(0)
    assert abs(torch.bernoulli(torch.full((20000,), 0.3)).mean().item() - 0.3) < 0.02
    w = torch.tensor([0.1, 0.0, 0.6, 0.3])
    draws = torch.multinomial(w, 20000, replacement=True)
    np.testing.assert_allclose(torch.bincount(draws, minlength=4).numpy() / 20000, w.numpy(), atol=0.02)
    once = torch.multinomial(w.expand(50, 4), 3)
    assert all(sorted(r) == [0, 2, 3] for r in once.tolist())
    with pytest.raises(RuntimeError, match="without replacement"):
        torch.multinomial(w, 5)


def test_in_place_fills() -> None:
    torch.manual_seed(0)
    x = torch.empty(20000)
    assert abs(x.uniform_(2, 4).mean().item() - 3) < 0.02 and x.min().item() >= 2
    assert abs(x.normal_(1, 2).std().item() - 2) < 0.05
    assert abs(x.exponential_(2.0).mean().item() - 0.5) < 0.02
    assert abs(x.bernoulli_(0.25).mean().item() - 0.25) < 0.02
    assert set(torch.empty(500, dtype=torch.int64).random_(0, 3).tolist()) == {0, 1, 2}
    assert abs(x.geometric_(0.5).mean().item() - 2) < 0.1
    with pytest.raises(RuntimeError, match="leaf Variable"):
        torch.ones(2, requires_grad=True).normal_()


def test_like_forms() -> None:
    x = torch.zeros(2, 3, dtype=torch.float64)
    for fn in (torch.rand_like, torch.randn_like):
        assert fn(x).shape == (2, 3) and fn(x).dtype is torch.float64
    assert torch.randint_like(x, 5).dtype is torch.float64 and torch.poisson(x + 3).shape == (2, 3)


def test_dropout_mask_follows_the_stream() -> None:
    F = torch.nn.functional
    x = torch.ones(1000)
    torch.manual_seed(0)
    a = F.dropout(x, 0.4)
    torch.manual_seed(0)
    assert torch.equal(a, F.dropout(x, 0.4))
    np.testing.assert_allclose(np.unique(a.numpy()), [0, 1 / 0.6], rtol=1e-6)
    assert abs((a == 0).float().mean().item() - 0.4) < 0.06
    assert F.dropout(x, 0.4, training=False) is x
    with pytest.raises(ValueError, match="between 0 and 1"):
        F.dropout(x, 1.5)
    channels = F.dropout2d(torch.ones(4, 8, 3, 3), 0.5)
    assert all(len(set(c.reshape(-1).tolist())) == 1 for n in channels for c in n)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_compiled_streams_have_the_same_bits(dtype: torch.dtype) -> None:
    def draw() -> tuple[torch.Tensor, ...]:
        x = torch.ones(50)
        return (
            torch.rand(300, dtype=dtype),
            torch.randn(5000, dtype=dtype),
            torch.randint(0, 100, (20,)),
            torch.randperm(30),
            torch.nn.functional.dropout(x, 0.3),
        )

    torch.manual_seed(11)
    eager = [draw(), draw()]
    state = torch.get_rng_state()
    compiled = torch.compile(draw)
    torch.manual_seed(11)
    for want in eager:
        for a, b in zip(want, compiled(), strict=True):
            assert torch.equal(a, b)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("n", [1, 7, 1000, 70000])
def test_normal_numbers_of_float64_are_the_same_eager_and_compiled(n: int) -> None:
    torch.manual_seed(3)
    eager = torch.randn(n, dtype=torch.float64)
    torch.manual_seed(3)
    compiled = torch.compile(lambda: torch.randn(n, dtype=torch.float64))()
    np.testing.assert_array_equal(eager.numpy().view(np.int64), compiled.numpy().view(np.int64))
