"""Every layer compiled, as a module and inside a captured step: outputs, gradients and buffers of eager."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import weft
from weft import nn

Case = tuple[Callable[[], nn.Module], tuple[int, ...]]

LAYERS: dict[str, Case] = {
    "linear": (lambda: nn.Linear(5, 3), (4, 5)),
    "linear 3d": (lambda: nn.Linear(5, 3, bias=False), (2, 4, 5)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, padding=1), (2, 3, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1), (2, 3, 8, 7)),
    "conv2d groups": (lambda: nn.Conv2d(4, 4, 3, groups=2, dilation=2), (2, 4, 9, 9)),
    "conv2d reflect": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (1, 2, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1), (2, 3, 4, 4)),
    "batch norm": (lambda: nn.BatchNorm2d(3), (4, 3, 5, 5)),
    "batch norm 1d": (lambda: nn.BatchNorm1d(6), (8, 6)),
    "layer norm": (lambda: nn.LayerNorm(6), (4, 6)),
    "layer norm 2d": (lambda: nn.LayerNorm((3, 6)), (4, 3, 6)),
    "group norm": (lambda: nn.GroupNorm(2, 4), (3, 4, 5)),
    "rms norm": (lambda: nn.RMSNorm(6, eps=1e-5), (4, 6)),
    "max pool": (lambda: nn.MaxPool2d(2), (2, 3, 6, 6)),
    "max pool overlap": (lambda: nn.MaxPool2d(3, stride=2, padding=1), (2, 2, 7, 7)),
    "avg pool": (lambda: nn.AvgPool2d(2), (2, 3, 6, 6)),
    "adaptive pool": (lambda: nn.AdaptiveAvgPool2d((2, 3)), (2, 3, 6, 6)),
    "gelu": (lambda: nn.GELU(), (4, 9)),
    "gelu tanh": (lambda: nn.GELU("tanh"), (4, 9)),
    "silu": (lambda: nn.SiLU(), (4, 9)),
    "elu": (lambda: nn.ELU(), (4, 9)),
    "softplus": (lambda: nn.Softplus(), (4, 9)),
    "leaky relu": (lambda: nn.LeakyReLU(), (4, 9)),
    "softmax": (lambda: nn.Softmax(-1), (4, 9)),
    "log softmax": (lambda: nn.LogSoftmax(1), (4, 9, 2)),
    "prelu": (lambda: nn.PReLU(3), (4, 3, 2)),
    "dropout": (lambda: nn.Dropout(0.4), (40, 9)),
    "mlp": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 2)), (5, 3, 4)),
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64, 3),
        ),
        (4, 1, 8, 8),
    ),
}


def outcome(
    module: Any, call: Callable[..., weft.Tensor], x: weft.Tensor, within: bool
) -> dict[str, np.ndarray]:
    """Output, gradients and buffers; backward after ``call`` or, ``within``, captured with it."""
    x = x.clone().requires_grad_(True)

    def step(x: weft.Tensor) -> weft.Tensor:
        y = call(x)
        (y * y.detach().cos()).sum().backward()
        return y.detach()

    out = weft.compile(step, fullgraph=True)(x) if within else step(x)
    found = {"output": out, "input": x.grad}
    found |= {f"gradient of {n}": p.grad for n, p in module.named_parameters()}
    found |= {f"buffer {n}": b for n, b in module.named_buffers()}
    return {k: v.numpy().copy() for k, v in found.items()}


@pytest.mark.parametrize("name", LAYERS)
def test_compiled_layers_agree_with_eager(name: str) -> None:
    make, shape = LAYERS[name]
    weft.manual_seed(0)
    eager, x = make(), weft.randn(*shape)
    compiled, step = copy.deepcopy(eager), copy.deepcopy(eager)
    results = []
    for module, call, within in (
        (eager, eager, False),
        (compiled, weft.compile(compiled), False),
        (step, step, True),
    ):
        weft.manual_seed(1)
        results.append(outcome(module, call, x, within))
    for other in results[1:]:
        assert other.keys() == results[0].keys()
        for key, value in results[0].items():
            np.testing.assert_allclose(other[key], value, rtol=2e-4, atol=2e-5, err_msg=key)


def test_training_mode_is_guarded() -> None:
    m = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))
    f, x = weft.compile(m), weft.randn(6, 4)
    f(x)
    m.eval()
    assert weft.allclose(f(x), m(x), atol=1e-6)
    m.train()
    weft.manual_seed(0)
    a = f(x)
    weft.manual_seed(0)
    assert weft.allclose(a, m(x), atol=1e-5)


def test_embedding_and_attention_compiled() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 7, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: weft.Tensor) -> weft.Tensor:
            x = self.table(ids)
            out, _ = self.attention(x, x, x, need_weights=False, is_causal=True)
            return self.head(x + out)

    weft.manual_seed(0)
    eager = Net()
    other = copy.deepcopy(eager)
    ids = weft.randint(0, 7, (3, 5))
    for m, call in ((eager, eager), (other, weft.compile(other, fullgraph=True))):
        nn.CrossEntropyLoss()(call(ids).flatten(0, 1), ids.flatten()).backward()
        assert m.head.weight.grad is m.table.weight.grad
    for (n, p), q in zip(eager.named_parameters(), other.parameters(), strict=True):
        np.testing.assert_allclose(q.grad.numpy(), p.grad.numpy(), rtol=1e-3, atol=1e-6, err_msg=n)


def test_a_module_compiles_its_own_calls() -> None:
    m = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    x = weft.randn(2, 3)
    wanted = m(x)
    m.compile(fullgraph=True)
    assert weft.allclose(m(x), wanted)
    assert m._compiled_call.traces == 1
    with weft.no_grad():
        m[0].weight.zero_()
    assert weft.allclose(m(x), m[0].bias.tanh().expand(2, 4), atol=1e-6)
    again = copy.deepcopy(m)
    assert "_compiled_call" not in again.__dict__ and weft.allclose(again(x), m(x))
