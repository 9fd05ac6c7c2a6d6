"""Runs one program eagerly, compiled, and (for comparison only) under another library of the same names."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import weft
from programs import Program

TOLERANCE = {"float16": 2e-2, "bfloat16": 8e-2, "float32": 2e-4, "float64": 1e-7}


@dataclass
class Outcome:
    """Outputs, gradients and inputs afterwards as (name, dtype, array); which share memory; the error."""

    values: list[tuple[str, str, np.ndarray | None]]
    sharing: set[tuple[int, int]]
    error: str | None = None


def function(program: Program, T: Any) -> Any:
    import linecache

    file = f"<fuzz {program.seed}>"
    linecache.cache[file] = (len(program.source), None, program.source.splitlines(True), file)
    scope: dict[str, Any] = {"T": T, "F": T.nn.functional, "__name__": "fuzzed"}
    exec(compile(program.source, file, "exec"), scope)
    return scope["f"]


def gradients(T: Any, outputs: Any, inputs: list[Any]) -> list[Any]:
    loss = 0
    for i, o in enumerate(outputs):
        if o.requires_grad:
            loss = loss + (o.to(T.float64) * (0.5 + 0.25 * i)).sum()
    leaves = [x for x in inputs if x.requires_grad and x.is_leaf]
    if not isinstance(loss, T.Tensor) or not leaves:
        return []
    return list(T.autograd.grad(loss, leaves, allow_unused=True))


def array(T: Any, t: Any) -> np.ndarray | None:
    if t is None:
        return None
    t = t.detach()
    return (t.to(T.float32) if str(t.dtype).endswith("bfloat16") else t).numpy()


def shares(a: Any, b: Any) -> bool:
    return a.numel() > 0 and b.numel() > 0 and a.detach().data_ptr() == b.detach().data_ptr()


def run(program: Program, fn: Any, T: Any, call: int, inside: bool) -> Outcome:
    """``inside``: the gradients are part of ``fn``."""
    T.manual_seed(7)
    seed = 100 * program.seed + 17 * call
    inputs = [x.build(T, seed + i) for i, x in enumerate(program.inputs)]
    s, k = (0.5, 2) if call < 2 else (0.75, 3)
    try:
        if inside:
            outputs, grads = fn(inputs, s, k)
        else:
            outputs = fn(*inputs, s, k)
            grads = gradients(T, outputs, inputs)
    except (RuntimeError, IndexError, ValueError, TypeError) as e:
        return Outcome([], set(), f"{type(e).__name__}: {e}")
    tensors = [*outputs, *inputs]
    sharing = {
        (i, j)
        for i in range(len(outputs))
        for j in range(i + 1, len(tensors))
        if shares(tensors[i], tensors[j])
    }
    named = [
        *(("output", o) for o in outputs),
        *(("gradient", g) for g in grads),
        *(("input", x) for x in inputs),
    ]
    values = [
        (f"{n} {i}", "" if t is None else str(t.dtype).split(".")[-1], array(T, t))
        for i, (n, t) in enumerate(named)
    ]
    return Outcome(values, sharing)


def difference(got: Outcome, want: Outcome, loose: float = 1.0) -> str | None:
    if got.error is not None or want.error is not None:
        if got.error is None or want.error is None:
            return f"raised {got.error!r} instead of {want.error!r}"
        same = got.error.split(":")[0] == want.error.split(":")[0]
        return None if same else f"raised {got.error!r} instead of {want.error!r}"
    for (name, dtype, g), (_, wanted, w) in zip(got.values, want.values, strict=True):
        if g is None or w is None:
            if g is not w and not (g is None and not np.any(w)) and not (w is None and not np.any(g)):
                return f"{name}: {g} instead of {w}"
            continue
        if dtype != wanted or g.shape != w.shape:
            return f"{name}: {dtype}{list(g.shape)} instead of {wanted}{list(w.shape)}"
        if not agree(g, w, TOLERANCE.get(dtype, 0.0) * loose):
            return f"{name}: {dtype}{list(g.shape)}\n{g.ravel()[:12]}\ninstead of\n{w.ravel()[:12]}"
    if got.sharing != want.sharing:
        return f"sharing of memory {sorted(got.sharing)} instead of {sorted(want.sharing)}"
    return None


def agree(g: np.ndarray, w: np.ndarray, tolerance: float) -> bool:
    if w.dtype.kind != "f" or not tolerance:
        return bool(np.array_equal(g, w))
    g, w = g.astype(np.float64), w.astype(np.float64)
    finite = np.isfinite(w)
    scale = 1 + (np.abs(w[finite]).max() if finite.any() else 0.0)
    with np.errstate(all="ignore"):
        return bool(np.allclose(g, w, rtol=tolerance, atol=tolerance * min(scale, 1e6), equal_nan=True))


def check(seed: int, length: int = 12, parity: Any = None) -> None:
    """AssertionError, with the source, where compiled and eager differ (or eager and ``parity``)."""
    with np.errstate(all="ignore"):
        program = Program(seed, length)
        eager = function(program, weft)
        if parity is not None and not program.is_random:
            want = run(program, function(program, parity), parity, 0, False)
            got = run(program, eager, weft, 0, False)
            # What the peer refuses to overwrite may still have a right answer here.
            wrong = None if want.error is not None and got.error is None else difference(got, want, 4.0)
            assert wrong is None, (
                f"seed {seed}, eager against {parity.__name__}: {wrong}\n{program.source}{program.inputs}"
            )
        for inside in (False, True):
            plain = step(eager) if inside else eager
            compiled = weft.compile(plain)
            for call in range(3):
                want = run(program, plain, weft, call, inside)
                wrong = difference(run(program, compiled, weft, call, inside), want)
                how = f"call {call}{', gradients inside' if inside else ''}"
                assert wrong is None, f"seed {seed}, {how}: {wrong}\n{program.source}{program.inputs}"


def step(fn: Any) -> Any:
    def with_gradients(inputs: list[Any], s: float, k: int) -> Any:
        outputs = fn(*inputs, s, k)
        return outputs, gradients(weft, outputs, inputs)

    return with_gradients


def main(first: int, last: int, parity: bool) -> None:
    import sys
    import traceback

    library = None
    if parity:
        import torch as library  # type: ignore[import-not-found, no-redef]
    failed = []
    for seed in range(first, last):
        try:
            check(seed, length=6 + seed % 14, parity=library)
        except AssertionError as e:
            failed.append(seed)
            print(f"==== {e}", flush=True)
        except Exception:
            failed.append(seed)
            with contextlib.suppress(Exception):
                print(f"==== seed {seed} CRASH\n{Program(seed, 6 + seed % 14).source}", flush=True)
            traceback.print_exc(file=sys.stdout, limit=-4)
    print(f"{last - first} programs, {len(failed)} failed: {failed}")


if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parent))
    main(int(sys.argv[1]), int(sys.argv[2]), "--parity" in sys.argv)
