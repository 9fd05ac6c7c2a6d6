"""Learn scikit-learn's digits (1,797 real 8x8 images) three ways: eager, compiled module, compiled step.

For an MLP and a small CNN, the same seed and the same batches, so that the three loss curves can be compared
step by step. Writes the IR of the MLP's whole training step, at every stage, to a folder. On a GPU
(``--device cuda``, with ``WEFT_CUDA=emulate`` an emulated one) a fourth run, on the CPU, is compared, too.

Run: ``python examples/digits.py [--epochs N] [--out FOLDER] [--device cpu] [--batch 64] [--steps N]``
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import weft
from sklearn.datasets import load_digits
from weft import nn
from weft.nn import functional as F

MODES = ("eager", "compiled module", "compiled step")


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(64, 128)
        self.out = nn.Linear(128, 10)

    def forward(self, x: weft.Tensor) -> weft.Tensor:
        return self.out(F.relu(self.hidden(x.flatten(1))))


class CNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.head = nn.Linear(32 * 4 * 4, 10)

    def forward(self, x: weft.Tensor) -> weft.Tensor:
        return self.head(self.features(x).flatten(1))


def load() -> tuple[weft.Tensor, weft.Tensor, weft.Tensor, weft.Tensor]:
    """Images (N, 1, 8, 8) in [0, 1] and labels (N,): 1,437 to learn from, 360 held out."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images = (digits.images[order, None] / 16.0).astype(np.float32)
    x, y = weft.from_numpy(images), weft.from_numpy(digits.target[order].astype(np.int64))
    return x[:1437], y[:1437], x[1437:], y[1437:]


def training_step(model: nn.Module, mode: str) -> Callable[[weft.Tensor, weft.Tensor], weft.Tensor]:
    """The function that learns from one batch and returns its loss."""
    optimizer = weft.optim.Adam(model.parameters(), lr=2e-3)
    forward = weft.compile(model) if mode == "compiled module" else model

    def step(x: weft.Tensor, y: weft.Tensor) -> weft.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(forward(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return weft.compile(step) if mode == "compiled step" else step


def train(
    make: type[nn.Module], mode: str, args: argparse.Namespace, data: tuple[weft.Tensor, ...], device: str
) -> dict[str, Any]:
    """Train one model one way; losses of every step, held-out accuracy and times in seconds."""
    weft.manual_seed(0)
    x, y, x_test, y_test = (t.to(device) for t in data)
    if args.steps is not None:
        x_test, y_test = x_test[: args.batch], y_test[: args.batch]
    model = make().to(device)
    step = training_step(model, mode)
    order = np.random.default_rng(1)
    losses, times = [], []
    for _ in range(args.epochs):
        permutation = weft.from_numpy(order.permutation(len(x))).to(device)
        for batch in permutation.split(args.batch)[: len(x) // args.batch]:
            if len(losses) == args.steps:
                break
            xb, yb = x[batch], y[batch]
            start = time.perf_counter()
            loss = step(xb, yb)
            losses.append(loss.item())
            times.append(time.perf_counter() - start)
    model.eval()
    with weft.no_grad():
        accuracy = (model(x_test).argmax(1) == y_test).float().mean().item()
    return {
        "losses": losses,
        "accuracy": accuracy,
        "first": times[0],
        "step": float(np.median(times[1:])),
        "fn": step,
    }


def write_ir(step: Any, folder: Path) -> list[Path]:
    """Write every stage of the compiled step: graphs after each pass, loops, LLVM IR, assembly."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {f"{i:02d}-{name}.txt": str(graph) for i, (name, graph) in enumerate(step.stages())}
    texts["80-loops.txt"] = "\n\n".join(k.loops for k in step.kernels())
    texts["90-llvm.ll"] = step.llvm()
    texts["91-assembly.s"] = step.asm()
    for name, text in texts.items():
        (folder / name).write_text(text + "\n")
    return [folder / name for name in texts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("demo-ir"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, help="stop after so many batches, before anything is learnt")
    args = parser.parse_args()
    data = load()
    print(f"digits: {len(data[0])} images to learn from, {len(data[2])} held out, batches of {args.batch}")
    for make in (MLP, CNN):
        runs = {mode: train(make, mode, args, data, args.device) for mode in MODES}
        if args.device != "cpu":
            runs["on the CPU"] = train(make, "compiled step", args, data, "cpu")
        print(
            f"\n{make.__name__:<18}{'first loss':>12}{'last loss':>12}{'accuracy':>10}"
            f"{'step':>12}{'first call':>13}"
        )
        for mode, r in runs.items():
            print(
                f"  {mode:<16}{r['losses'][0]:12.6f}{r['losses'][-1]:12.6f}{r['accuracy']:10.2%}"
                f"{r['step'] * 1e3:9.3f} ms{r['first'] * 1e3:10.1f} ms"
            )
        curves = np.array([r["losses"][:50] for r in runs.values()])
        worst = float(np.max(np.abs(curves - curves[0]) / np.abs(curves[0])))
        print(
            f"  largest relative difference of the losses over the first {curves.shape[1]} steps: {worst:.1e}"
        )
        learnt = args.steps is not None or min(r["accuracy"] for r in runs.values()) >= 0.97
        if worst > 1e-4 or not learnt:
            raise SystemExit("the ways disagree, or did not learn")
        if make is MLP:
            files = write_ir(runs["compiled step"]["fn"], args.out)
            print(f"  IR of the compiled step at every stage: {args.out}/ ({len(files)} files)")


if __name__ == "__main__":
    main()
