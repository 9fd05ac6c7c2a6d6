"""``weft.linalg``, ``weft.special``, ``weft.cuda``, ``weft.backends``, and what ``import weft`` loads."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import weft as torch


def test_norms() -> None:
    x = torch.tensor([[1.0, -2.0], [3.0, -4.0]])
    a = x.numpy()
    for order in ("fro", 1, -1, math.inf, -math.inf):
        expected = np.linalg.norm(a, order)
        assert torch.linalg.norm(x, order).item() == pytest.approx(expected)
        assert torch.linalg.matrix_norm(x, order).item() == pytest.approx(expected)
    for order in (0, 1, 2, 3, math.inf, -math.inf):
        expected = np.linalg.norm(a.ravel(), order)
        assert torch.linalg.vector_norm(x, order).item() == pytest.approx(expected)
    with pytest.raises(ValueError, match="singular values"):
        torch.linalg.matrix_norm(x, 2)
    with pytest.raises(RuntimeError, match="floating point"):
        torch.norm(torch.tensor([1, 2]))


def test_products() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert torch.linalg.matrix_power(x, 3).tolist() == (x @ x @ x).tolist()
    assert torch.linalg.multi_dot([x, x, x]).tolist() == (x @ x @ x).tolist()
    assert torch.linalg.vecdot(x, x).tolist() == [5, 25]
    u, v = torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0])
    assert torch.linalg.cross(u, v).tolist() == [0, 0, 1]


def test_special() -> None:
    x = torch.tensor([0.2, 0.7], dtype=torch.float64)
    assert torch.special.expit(x).tolist() == x.sigmoid().tolist()
    assert torch.special.entr(x).tolist() == pytest.approx([-v * math.log(v) for v in x.tolist()])
    assert torch.special.ndtr(torch.zeros(1)).item() == 0.5
    assert torch.special.gammaln(x).tolist() == pytest.approx([math.lgamma(v) for v in x.tolist()])
    assert torch.special.multigammaln(x + 2, 1).tolist() == pytest.approx(
        [math.lgamma(v + 2) for v in x.tolist()]
    )
    assert torch.special.xlog1py(x, x).tolist() == pytest.approx([v * math.log1p(v) for v in x.tolist()])


def test_questions_about_devices() -> None:
    assert torch.cuda.is_available() == (torch.cuda.device_count() > 0)
    assert not torch.backends.mps.is_available()
    torch.backends.cudnn.benchmark = True
    torch.cuda.manual_seed_all(0)


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match="module 'weft' has no attribute 'nonsense'"):
        torch.nonsense  # noqa: B018
    assert "compile" in dir(torch) and "nn" in dir(torch)


def test_import_is_light() -> None:
    """Neither the compiler's back end nor modules and optimizers are loaded before they are used."""
    code = (
        "import sys, weft; heavy = 'llvmlite', 'weft.codegen', 'weft.nn', 'weft.optim', 'weft.capture'; "
        "print([m for m in heavy if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
