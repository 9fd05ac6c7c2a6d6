"""A character transformer on one page: causal attention, layer norm, GELU, dropout, tied weights, AdamW.

Trains on the text of this project's licence, eagerly and with the whole step compiled, from the same seed,
and compares the two loss curves.

Run: ``python examples/char_transformer.py [--steps N]``
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import weft
from weft import nn
from weft.nn import functional as F

CONTEXT, WIDTH, HEADS, LAYERS, BATCH = 64, 64, 4, 2, 16


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH), nn.Dropout(0.1)
        )

    def forward(self, x: weft.Tensor) -> weft.Tensor:
        b, t, c = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, t, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], is_causal=True)
        x = x + self.proj(attended.transpose(1, 2).reshape(b, t, c))
        return x + self.mlp(self.norm2(x))


class CharTransformer(nn.Module):
    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.dropout = nn.Dropout(0.1)
        self.blocks = nn.ModuleList([Block() for _ in range(LAYERS)])
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: weft.Tensor) -> weft.Tensor:
        x = self.dropout(self.tokens(ids) + self.positions(weft.arange(ids.shape[1])))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def train(text: str, steps: int, compiled: bool) -> tuple[list[float], float]:
    """Losses of every step and the median time of a step in seconds."""
    weft.manual_seed(0)
    alphabet = sorted(set(text))
    codes = np.array([alphabet.index(c) for c in text])
    model = CharTransformer(len(alphabet))
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
    for _ in range(steps):
        at = starts.integers(0, len(codes) - CONTEXT - 1, BATCH)[:, None] + np.arange(CONTEXT + 1)
        batch = weft.from_numpy(codes[at])
        begin = time.perf_counter()
        losses.append(run(batch[:, :-1], batch[:, 1:]).item())
        times.append(time.perf_counter() - begin)
    return losses, float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    text = (Path(__file__).resolve().parent.parent / "LICENSE").read_text()
    curves = {}
    for name, compiled in (("eager", False), ("compiled step", True)):
        losses, seconds = train(text, args.steps, compiled)
        curves[name] = np.array(losses)
        print(f"{name:<14} loss {losses[0]:.4f} -> {losses[-1]:.4f}   {seconds * 1e3:.2f} ms a step")
    eager, step = curves["eager"][:50], curves["compiled step"][:50]
    worst = float(np.max(np.abs(eager - step) / eager))
    print(f"largest relative difference of the losses over the first {len(eager)} steps: {worst:.1e}")
    if worst > 1e-3:
        raise SystemExit("eager and compiled disagree")


if __name__ == "__main__":
    main()
