"""What compiled training steps move and allocate: bytes and copies of the plan, and no fresh memory in later
calls."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import weft
from weft import nn
from weft.nn import functional as F
from weft.runtime import stats
from weft.runtime.executable import Executable

Step = Callable[[weft.Tensor, weft.Tensor], weft.Tensor]


class Block(nn.Module):
    """A transformer's block without its attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: weft.Tensor) -> weft.Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


def mlp() -> tuple[nn.Module, weft.Tensor, weft.Tensor]:
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 16))
    return net, weft.randn(32, 64), weft.randint(0, 16, (32,))


def blocks() -> tuple[nn.Module, weft.Tensor, weft.Tensor]:
    net = nn.Sequential(nn.Embedding(50, 64), Block(64), Block(64), nn.Linear(64, 64))
    return net, weft.randint(0, 50, (96,)), weft.randint(0, 64, (96,))


def cnn() -> tuple[nn.Module, weft.Tensor, weft.Tensor]:
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 36, 16)
    )
    return net, weft.randn(4, 1, 12, 12), weft.randint(0, 16, (4,))


MODELS = {"mlp": mlp, "blocks": blocks, "cnn": cnn}


def training(name: str) -> tuple[Step, nn.Module, weft.Tensor, weft.Tensor]:
    net, x, y = MODELS[name]()
    optimizer = weft.optim.Adam(net.parameters(), lr=1e-3)

    def step(x: weft.Tensor, y: weft.Tensor) -> weft.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return weft.compile(step, fullgraph=True), net, x, y


def executable(step: Step) -> Executable:
    (entry,) = step.entries  # type: ignore[attr-defined]
    return entry.executable


@pytest.mark.parametrize("name", MODELS)
def test_later_steps_allocate_nothing(name: str) -> None:
    step, _, x, y = training(name)
    for _ in range(2):
        loss = step(x, y)
    stats.reset()
    for _ in range(5):
        loss = step(x, y)
    assert stats.snapshot()["blocks_allocated"] == 0
    assert weft.isfinite(loss)


@pytest.mark.parametrize("name", ["mlp", "blocks"])
def test_weights_and_their_moments_are_updated_in_place(name: str) -> None:
    """What is copied at the end are vectors and step counts, none of the matrices."""
    step, net, x, y = training(name)
    step(x, y)
    smallest = min(p.numel() for p in net.parameters() if p.ndim == 2 and p.numel() > 64 * 50)
    plan = executable(step).plan
    assert all(copy.nbytes < 4 * smallest for copy in plan.copies)


def test_the_blocks_of_a_model_share_their_kernels() -> None:
    step, _, x, y = training("blocks")
    step(x, y)
    products = [k.text for k in executable(step).kernels if k.form == "contract"]
    again = [text for i, text in enumerate(products) if text in products[:i]]
    assert len(again) >= 5  # of the second block: up, down, and the gradients of both


def test_a_training_step_keeps_two_arrays_of_an_activation() -> None:
    """Of the hidden layer of a block the forward part stores the activation's argument and its result; the
    backward part the gradient of the argument."""
    step, _, x, y = training("blocks")
    step(x, y)
    hidden = [r.type for k in executable(step).kernels for r in k.region.results if r.type.shape == (96, 256)]
    assert len(hidden) == 2 * 3
