"""Tests of the CUDA runtime run on the device that is there, or on the emulated one."""

import os
import sys
from pathlib import Path

import pytest

for folder in (Path(__file__).parent, Path(__file__).parent.parent):
    sys.path.insert(0, str(folder))


@pytest.fixture(autouse=True)
def device(monkeypatch):
    from weft.runtime.cuda.driver import is_available
    from weft.runtime.precision import switches

    switches.allow(conv_tf32=False)  # results are compared with those of exact convolutions
    if not is_available():
        monkeypatch.setenv("WEFT_CUDA", "emulate")
        monkeypatch.setenv("WEFT_CUDA_DEVICES", os.environ.get("WEFT_CUDA_DEVICES", "2"))
