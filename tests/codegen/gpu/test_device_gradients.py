"""The gradient of every primitive, all points of the matrix at once, on the emulated device."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from on_device import on_device
from test_primitives import DIFFERENTIABLE, gradients
from weft.codegen.gpu.target import gpu_target
from weft.ir.interp import run
from weft.passes.pipeline import lower

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::numpy.exceptions.ComplexWarning")


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradient_on_the_device_against_the_interpreter(name: str) -> None:
    graph, arguments = gradients(name)
    found, _ = on_device(lower(graph).graph, arguments, gpu_target("sm_80"))
    for got, want in zip(found, run(graph, arguments), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10)
