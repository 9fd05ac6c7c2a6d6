"""What a call costs the host before a GPU has its work: microseconds a call, on a driver that does nothing.

Run: ``python -m benchmarks.gpu_host [--rows TEXT] [--profile]``. The device is the emulated one, but native
code is given functions that return at once in place of launches and copies, so what is left is what weft
itself takes: checks, addresses, memory, results. A real driver takes about 2 to 5 us for each launch, torch
some 4 to 5 us for an eager operation. ``--profile`` prints where Python's part of the rows goes.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import time
from collections.abc import Callable
from typing import Any

Call = Callable[[], Any]
_SILENT = ("cuCtxSetCurrent", "cuLaunchKernel", "cuMemcpyHtoDAsync_v2", "cuMemcpyDtoDAsync_v2")


def silence(driver: Any) -> None:
    """Give native code functions that do nothing and succeed, where it issues work."""
    from weft.codegen.target import host_target
    from weft.runtime import jit

    target = host_target()
    text = f'target triple = "{target.triple}"\ndefine i32 @nothing() {{\n  ret i32 0\n}}\n'
    address = jit.link(jit.compile_object(text, target), ("nothing",), {})["nothing"]
    addresses = driver.addresses | dict.fromkeys(_SILENT, address)
    driver.__class__ = type("Silent", (type(driver),), {"addresses": addresses})


def rows(weft: Any) -> dict[str, Call]:
    """The calls, each of them prepared."""
    from weft.nn import functional as F

    x, y = (weft.ones(32, 32, device="cuda") for _ in range(2))
    p = weft.ones(32, 32, device="cuda")
    p.requires_grad_(True)
    compiled = weft.compile(lambda x, y: (x * y + x).tanh())
    compiled(x, y)
    (entry,) = compiled.entries
    runner, a, b = entry.executable.runner, x._data, y._data
    scaled = weft.compile(lambda x, k: x * k)
    step = _training_step(weft)
    return {
        "executable, two arrays": lambda: runner(a, b),
        "compiled function, two tensors": lambda: compiled(x, y),
        "compiled function, a tensor and a number": lambda: scaled(x, 0.5),
        "compiled training step, 4 layers of 64": step,
        "eager x + y": lambda: x + y,
        "eager x * 2.0": lambda: x * 2.0,
        "eager x.tanh()": lambda: x.tanh(),
        "eager x.sum()": lambda: x.sum(),
        "eager x @ y": lambda: x @ y,
        "eager x.add_(y)": lambda: x.add_(y),
        "eager x.reshape(-1)": lambda: x.reshape(-1),
        "eager x.t()": lambda: x.t(),
        "eager F.softmax(x, -1)": lambda: F.softmax(x, -1),
        "eager p * y, recorded": lambda: p * y,
    }


def _training_step(weft: Any) -> Call:
    nn = weft.nn
    layers = [m for _ in range(4) for m in (nn.Linear(64, 64), nn.ReLU())]
    model = nn.Sequential(*layers).to("cuda")
    optimizer = weft.optim.Adam(model.parameters())
    x = weft.ones(16, 64, device="cuda")

    def step() -> Any:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return weft.compile(step)


def microseconds(call: Call, calls: int = 2000) -> float:
    """The best of a few batches, per call."""
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(calls // 5):
            call()
        best = min(best, (time.perf_counter() - start) / (calls // 5))
    return best * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="")
    parser.add_argument("--profile", action="store_true", help="print where Python's part of the rows goes")
    args = parser.parse_args()
    os.environ["WEFT_CUDA"] = "emulate"
    import weft
    from weft.runtime.cuda.driver import driver

    silence(driver())
    print("| on the host | us a call |\n|---|---|")
    for name, call in rows(weft).items():
        if args.rows not in name:
            continue
        for _ in range(20):
            call()
        print(f"| {name} | {microseconds(call):.2f} |", flush=True)
        if args.profile:
            profile(call)


def profile(call: Call) -> None:
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(2000):
        call()
    profiler.disable()
    profiler.print_stats("tottime")


if __name__ == "__main__":
    main()
