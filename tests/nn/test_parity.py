"""Modules and optimizers side by side with an installed PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import weft

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity
torch.set_num_threads(1)  # small tensors: a pool of threads only fights with the other processes


def mlp(lib: Any) -> Any:
    nn = lib.nn
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.GELU(),
        nn.LayerNorm(32),
        nn.Linear(32, 16),
        nn.Tanh(),
        nn.Linear(16, 10),
    )


def cnn(lib: Any) -> Any:
    nn = lib.nn
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 8, 3, groups=2, bias=False), nn.GroupNorm(2, 8), nn.SiLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip


def twins(make: Callable[[Any], Any]) -> tuple[Any, Any]:
    """A torch module and a weft module with its weights."""
    torch.manual_seed(0)
    a, b = make(torch), make(weft)
    assert list(a.state_dict()) == list(b.state_dict())
    b.load_state_dict({k: weft.from_numpy(v.numpy().copy()) for k, v in a.state_dict().items()})
    return a, b


OPTIMIZERS: dict[str, Callable[[Any, Any], Any]] = {
    "sgd": lambda lib, ps: lib.optim.SGD(ps, lr=0.05, momentum=0.9, weight_decay=1e-3, nesterov=True),
    "adam": lambda lib, ps: lib.optim.Adam(ps, lr=3e-3, weight_decay=1e-2),
    "amsgrad": lambda lib, ps: lib.optim.Adam(ps, lr=3e-3, amsgrad=True),
    "adamw": lambda lib, ps: lib.optim.AdamW(ps, lr=3e-3),
    "rmsprop": lambda lib, ps: lib.optim.RMSprop(ps, lr=1e-3, momentum=0.5, centered=True),
    "adagrad": lambda lib, ps: lib.optim.Adagrad(ps, lr=1e-2),
}


def losses(
    lib: Any, model: Any, optimizer: Any, x: np.ndarray, y: np.ndarray, steps: int = 20
) -> list[float]:
    loss_fn, out = lib.nn.CrossEntropyLoss(), []
    scheduler = lib.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for i in range(steps):
        part = slice(i % 4 * 16, i % 4 * 16 + 16)
        loss = loss_fn(model(lib.from_numpy(x[part])), lib.from_numpy(y[part]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        out.append(loss.item())
    return out


@pytest.mark.parametrize("make", [mlp, cnn])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_same_losses(make: Callable[[Any], Any], name: str) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 1, 8, 8)).astype(np.float32), rng.integers(0, 10, 64)
    a, b = twins(make)
    oa, ob = OPTIMIZERS[name](torch, a.parameters()), OPTIMIZERS[name](weft, b.parameters())
    np.testing.assert_allclose(losses(weft, b, ob, x, y), losses(torch, a, oa, x, y), rtol=2e-4)
    for key, value in a.state_dict().items():
        np.testing.assert_allclose(b.state_dict()[key].numpy(), value.numpy(), rtol=2e-2, atol=1e-4)
    sa, sb = oa.state_dict(), ob.state_dict()
    assert list(sa["state"][0]) == list(sb["state"][0])
    assert set(sa["param_groups"][0]) == set(sb["param_groups"][0])
    assert sa["param_groups"][0]["lr"] == pytest.approx(sb["param_groups"][0]["lr"], rel=1e-12)


ZOO: list[Callable[[Any], Any]] = [
    lambda nn: nn.Linear(2, 3, bias=False),
    lambda nn: nn.Conv2d(2, 4, 3, stride=2, padding=1, dilation=2, groups=2, bias=False),
    lambda nn: nn.Conv1d(2, 4, 3, padding="same", padding_mode="reflect"),
    lambda nn: nn.ConvTranspose2d(2, 4, 3, stride=2, output_padding=1),
    lambda nn: nn.BatchNorm1d(3, momentum=None, affine=False),
    lambda nn: nn.LayerNorm((2, 3), elementwise_affine=False),
    lambda nn: nn.RMSNorm(3),
    lambda nn: nn.GroupNorm(2, 4),
    lambda nn: nn.Embedding(4, 3, padding_idx=-1),
    lambda nn: nn.Dropout(0.3, inplace=True),
    lambda nn: nn.MaxPool2d(2, padding=1),
    lambda nn: nn.AvgPool2d((2, 3)),
    lambda nn: nn.AdaptiveAvgPool2d((None, 2)),
    lambda nn: nn.GELU("tanh"),
    lambda nn: nn.LeakyReLU(0.1, True),
    lambda nn: nn.ELU(),
    lambda nn: nn.Softplus(),
    lambda nn: nn.Softmax(1),
    lambda nn: nn.Hardtanh(),
    lambda nn: nn.PReLU(3),
    lambda nn: nn.Flatten(),
    lambda nn: nn.CrossEntropyLoss(),
    lambda nn: nn.MultiheadAttention(4, 2),
    lambda nn: nn.ModuleDict({"a": nn.Sequential(nn.ReLU(), nn.Sequential()), "b": nn.ModuleList()}),
]


@pytest.mark.parametrize("i", range(len(ZOO)))
def test_the_same_text_and_the_same_keys(i: int) -> None:
    a, b = ZOO[i](torch.nn), ZOO[i](weft.nn)
    assert repr(b) == repr(a).replace("NonDynamicallyQuantizable", "")
    assert list(b.state_dict()) == list(a.state_dict())
    assert [tuple(p.shape) for p in b.parameters()] == [tuple(p.shape) for p in a.parameters()]


def test_attention_gives_the_same() -> None:
    a, b = twins(lambda lib: lib.nn.MultiheadAttention(8, 2))
    x = np.random.default_rng(0).normal(size=(5, 3, 8)).astype(np.float32)
    ya, wa = a(*(torch.from_numpy(x),) * 3)
    yb, wb = b(*(weft.from_numpy(x),) * 3)
    np.testing.assert_allclose(yb.detach().numpy(), ya.detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(wb.detach().numpy(), wa.detach().numpy(), atol=1e-6)


def test_the_same_words_for_the_same_mistake() -> None:
    def message(lib: Any) -> str:
        model = lib.nn.Sequential(lib.nn.Linear(2, 3), lib.nn.BatchNorm1d(3))
        state = model.state_dict()
        del state["1.running_mean"], state["0.bias"]
        state["0.weight"], state["2.x"], state["1.y.z"] = lib.zeros(3, 3), lib.zeros(1), lib.zeros(1)
        with pytest.raises(RuntimeError) as error:
            model.load_state_dict(state)
        return str(error.value).replace(f"{lib.__name__}.Size", "Size")

    assert message(weft) == message(torch)


SCHEDULES: list[Callable[[Any, Any], Any]] = [
    lambda s, o: s.StepLR(o, 3, 0.3),
    lambda s, o: s.MultiStepLR(o, [2, 4], 0.3),
    lambda s, o: s.ExponentialLR(o, 0.9),
    lambda s, o: s.CosineAnnealingLR(o, 5, 0.01),
    lambda s, o: s.LambdaLR(o, lambda e: 0.95**e),
    lambda s, o: s.LinearLR(o, 0.2, total_iters=4),
]


@pytest.mark.parametrize("i", range(len(SCHEDULES)))
def test_the_same_rates(i: int) -> None:
    def rates(lib: Any) -> list[float]:
        optimizer = lib.optim.SGD([lib.nn.Parameter(lib.zeros(1))], lr=0.7)
        scheduler = SCHEDULES[i](lib.optim.lr_scheduler, optimizer)
        out = []
        for _ in range(14):
            out.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return out

    np.testing.assert_allclose(rates(weft), rates(torch), rtol=1e-12)


RECURRENT: dict[str, Callable[[Any], Any]] = {
    "lstm": lambda lib: lib.nn.LSTM(4, 6, 2, bidirectional=True),
    "lstm projected": lambda lib: lib.nn.LSTM(4, 6, proj_size=3, batch_first=True),
    "gru": lambda lib: lib.nn.GRU(4, 6, 2, bias=False),
    "rnn": lambda lib: lib.nn.RNN(4, 6, nonlinearity="relu", bidirectional=True),
}


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("compiled", [False, True])
def test_recurrent_layers(name: str, compiled: bool) -> None:
    a, b = twins(RECURRENT[name])
    assert repr(a) == repr(b)
    x = np.random.default_rng(0).standard_normal((5, 3, 4)).astype(np.float32)
    want = a(torch.from_numpy(x))[0]
    got = (weft.compile(b) if compiled else b)(weft.tensor(x))[0]
    np.testing.assert_allclose(got.detach().numpy(), want.detach().numpy(), rtol=1e-5, atol=1e-6)
    want.square().sum().backward()
    got.square().sum().backward()
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        np.testing.assert_allclose(q.grad.numpy(), p.grad.numpy(), rtol=1e-4, atol=1e-5)


def test_packed_recurrence() -> None:
    a, b = twins(lambda lib: lib.nn.GRU(4, 6, bidirectional=True))
    x, lengths = np.random.default_rng(0).standard_normal((5, 3, 4)).astype(np.float32), [2, 5, 4]
    packed = torch.nn.utils.rnn.pack_padded_sequence(torch.from_numpy(x), lengths, enforce_sorted=False)
    mine = weft.nn.utils.rnn.pack_padded_sequence(weft.tensor(x), lengths, enforce_sorted=False)
    (want, last), (got, mine_last) = a(packed), b(mine)
    assert got.batch_sizes.tolist() == want.batch_sizes.tolist()
    np.testing.assert_allclose(got.data.detach().numpy(), want.data.detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mine_last.detach().numpy(), last.detach().numpy(), rtol=1e-5, atol=1e-6)
