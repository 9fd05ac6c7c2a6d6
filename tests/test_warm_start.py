"""The MLP training step in a second process: everything comes from the disk cache, nothing is compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

STEP = """
import json
import weft
from weft import nn
from weft.nn import functional as F
from weft.runtime import stats

weft.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = weft.optim.Adam(model.parameters(), lr=1e-3)
x, y = weft.randn(32, 64), weft.randint(0, 10, (32,))

@weft.compile(fullgraph=True)
def step(x, y):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.detach()

losses = [step(x, y).item() for _ in range(5)]
print(json.dumps({"losses": losses, **stats.snapshot()}))
"""


def run_step(cache: Path) -> dict:
    env = {**os.environ, "WEFT_CACHE_DIR": str(cache)}
    env.pop("WEFT_CACHE", None)
    done = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    cold = run_step(tmp_path / "cache")
    warm = run_step(tmp_path / "cache")
    assert cold["compiles"] > 0 and cold["cache_disk_hits"] == 0
    assert warm["compiles"] == 0 and warm["cache_disk_hits"] > 0
    assert warm["losses"] == cold["losses"]
    assert cold["losses"][-1] < cold["losses"][0]
