"""The examples run as a newcomer would run them, shortened."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run_example(tmp_path: Path, name: str, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *args],
        capture_output=True, text=True, cwd=tmp_path, timeout=300, env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_digits_learns_three_ways_and_writes_its_ir(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the examples extra is not installed")
    out = run_example(tmp_path, "digits.py", "--epochs", "12", "--out", "ir")
    for word in ("MLP", "CNN", "eager", "compiled module", "compiled step", "accuracy"):
        assert word in out
    written = {p.name for p in (tmp_path / "ir").iterdir()}
    assert {"80-loops.txt", "90-llvm.ll", "91-assembly.s"} < written
    assert all((tmp_path / "ir" / name).stat().st_size > 100 for name in written)


def test_the_character_transformer_trains_alike_both_ways(tmp_path: Path) -> None:
    out = run_example(tmp_path, "char_transformer.py", "--steps", "30")
    eager, compiled = (line.split() for line in out.splitlines()[:2])
    assert float(eager[-5]) < float(eager[-7])
    assert compiled[0] == "compiled"


@pytest.mark.gpu
def test_the_examples_train_on_a_gpu_as_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="the examples extra is not installed")
    on_emulated_device(monkeypatch)
    sizes = ("--context", "8", "--width", "16", "--batch", "1", "--steps", "2")
    out = run_example(tmp_path, "char_transformer.py", "--device", "cuda", *sizes)
    assert out.splitlines()[2].startswith("on the CPU") and "largest relative difference" in out
    sizes = ("--epochs", "1", "--batch", "2", "--steps", "1", "--out", "ir")
    out = run_example(tmp_path, "digits.py", "--device", "cuda", *sizes)
    assert out.count("on the CPU") == 2 and out.count("largest relative difference") == 2
    assert ".target sm_" in (tmp_path / "ir" / "91-assembly.s").read_text()


def on_emulated_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the GPU that is there, or an emulated one."""
    from weft import cuda

    if not cuda.is_available():
        monkeypatch.setenv("WEFT_CUDA", "emulate")
