"""A character transformer on one page: causal attention, layer norm, GELU, dropout, tied weights, AdamW.

Trains on the text of this project's licence, eagerly and with the whole step compiled, from the same seed,
and compares the two loss curves; on a GPU (``--device cuda``, with ``WEFT_CUDA=emulate`` an emulated one)
also with that of the CPU.

Run: ``python examples/char_transformer.py [--steps N] [--device cpu] [--context N] [--width N] [--batch N]``
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import weft
from weft import nn
from weft.nn import functional as F

HEADS, LAYERS = 4, 2


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(0.1)
        )

    def forward(self, x: weft.Tensor) -> weft.Tensor:
        b, t, c = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, t, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], is_causal=True)
        x = x + self.proj(attended.transpose(1, 2).reshape(b, t, c))
        return x + self.mlp(self.norm2(x))


class CharTransformer(nn.Module):
    def __init__(self, vocabulary: int, context: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.dropout = nn.Dropout(0.1)
        self.blocks = nn.ModuleList([Block(width) for _ in range(LAYERS)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: weft.Tensor) -> weft.Tensor:
        x = self.dropout(self.tokens(ids) + self.positions(weft.arange(ids.shape[1], device=ids.device)))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def train(text: str, sizes: argparse.Namespace, compiled: bool, device: str) -> tuple[list[float], float]:
    """Losses of every step and the median time of a step in seconds."""
    weft.manual_seed(0)
    alphabet = sorted(set(text))
    codes = np.array([alphabet.index(c) for c in text])
    model = CharTransformer(len(alphabet), sizes.context, sizes.width).to(device)
    weft.manual_seed(1)
    optimizer = weft.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)

    def step(x: weft.Tensor, y: weft.Tensor) -> weft.Tensor:
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    run = weft.compile(step) if compiled else step
    starts = np.random.default_rng(0)
    losses, times = [], []
    for _ in range(sizes.steps):
        first = starts.integers(0, len(codes) - sizes.context - 1, sizes.batch)
        batch = weft.from_numpy(codes[first[:, None] + np.arange(sizes.context + 1)]).to(device)
        begin = time.perf_counter()
        losses.append(run(batch[:, :-1], batch[:, 1:]).item())
        times.append(time.perf_counter() - begin)
    return losses, float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--device", default="cpu")
    for name, size in (("context", 64), ("width", 64), ("batch", 16)):
        parser.add_argument(f"--{name}", type=int, default=size)
    args = parser.parse_args()
    text = (Path(__file__).resolve().parent.parent / "LICENSE").read_text()
    curves = {}
    runs = [("eager", False, args.device), ("compiled step", True, args.device)]
    if args.device != "cpu":
        runs.append(("on the CPU", True, "cpu"))
    for name, compiled, device in runs:
        losses, seconds = train(text, args, compiled, device)
        curves[name] = np.array(losses[:50])
        print(f"{name:<14} loss {losses[0]:.4f} -> {losses[-1]:.4f}   {seconds * 1e3:.2f} ms a step")
    eager = curves["eager"]
    worst = float(max(np.max(np.abs(eager - curve) / eager) for curve in curves.values()))
    print(f"largest relative difference of the losses over the first {len(eager)} steps: {worst:.1e}")
    if worst > (1e-3 if args.device == "cpu" else 1e-4):
        raise SystemExit("the runs disagree")


if __name__ == "__main__":
    main()
