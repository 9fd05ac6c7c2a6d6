"""A second process finds everything on disk: it runs no pass, no LLVM and no ptxas."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
sys.path[:0] = PATHS
import numpy as np
import runtime_graphs as G
from device_graphs import device_arrays, fetched, on_device
from weft.ir.interp import run
from weft.runtime import cache, compile_graph, stats
from weft.runtime.cuda import compile

cache.build_stamp = compile._stamp = lambda: "one build"  # sources may be edited while the tests run
g = G.running(True, 3)
made = compile_graph(on_device(g))
arrays = G.samples(g)
for a, b in zip(fetched(made.runner(*device_arrays(arrays))), run(g, arrays)):
    np.testing.assert_allclose(a, b, rtol=1e-6)
names = ("weft.passes.pipeline", "llvmlite", "weft.runtime.cuda.build", "weft.runtime.cuda.ptx")
print(json.dumps({"loaded": [m for m in sys.modules if m.startswith(names)], **stats.snapshot()}))
"""


def start(folder, **env):
    here = os.path.dirname(__file__)
    script = SCRIPT.replace("PATHS", repr([here, os.path.dirname(here)]))
    env = {**os.environ, "WEFT_CACHE_DIR": str(folder), "WEFT_CACHE": "1", **env}
    out = subprocess.run([sys.executable, "-c", script], env=env, text=True, capture_output=True)
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout)


@pytest.mark.gpu
def test_a_warm_start_compiles_nothing(tmp_path):
    folder = tmp_path / "cache"
    cold, warm = start(folder), start(folder)
    assert cold["compiles"] == 1 and cold["cache_disk_writes"] >= 1
    for name in ("compiles", "objects_compiled", "cubins_assembled", "cache_disk_writes"):
        assert warm[name] == 0, name
    assert warm["cache_disk_hits"] == 1 and warm["device_launches"] == cold["device_launches"] == 3
    assert warm["loaded"] == []


@pytest.mark.gpu
def test_a_damaged_entry_is_made_again(tmp_path):
    folder = tmp_path / "cache"
    start(folder)
    for path in folder.iterdir():
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
    again = start(folder)
    assert again["compiles"] == 1 and again["cache_disk_damaged"] >= 1


@pytest.mark.gpu
def test_another_architecture_is_another_entry(tmp_path):
    if os.environ.get("WEFT_CUDA") != "emulate":
        pytest.skip("a real device has one architecture")
    folder = tmp_path / "cache"
    start(folder)
    assert start(folder, WEFT_CUDA_ARCH="sm_90")["compiles"] == 1
