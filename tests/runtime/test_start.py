"""What a start loads: with ``import weft``, with the first compile, with a first call from a full cache."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from weft.runtime import loader

SCRIPT = """
import json, sys
def names():
    return sorted(sys.modules)
import numpy, ml_dtypes
found = [names()]
import weft
found.append(names())
f = weft.compile(lambda x, y: weft.tanh(x + y) * y, fullgraph=True)
found.append(names())
f(weft.ones(8), weft.ones(8))
found.append(names())
from weft.runtime import stats, workers
for thread in list(workers._threads):
    thread.join()
print(json.dumps([found, stats.snapshot()]))
"""
STAGES = ("numpy", "import", "compile", "call")
GPU = ("weft.codegen.gpu", "weft.runtime.cuda", "weft.runtime.emulate", "pycuda")


def start(folder: Path) -> tuple[dict[str, set[str]], dict[str, int]]:
    """The modules that each stage added, and the counters."""
    env = {**os.environ, "WEFT_CACHE_DIR": str(folder), "WEFT_CACHE": "1"}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    found, counters = json.loads(done.stdout)
    new = [set(found[0]), *(set(b) - set(a) for a, b in itertools.pairwise(found))]
    return dict(zip(STAGES, new, strict=True)), counters


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    folder = tmp_path_factory.mktemp("cache")
    return start(folder), start(folder)


def under(modules: set[str], *packages: str) -> set[str]:
    return {m for m in modules if m.startswith(packages)}


def test_import_loads_nothing_that_it_does_not_need(starts: tuple) -> None:
    for modules, _ in starts:
        heavy = {"zipfile", "logging", "random", "dataclasses", "concurrent.futures", "multiprocessing"}
        assert not modules["import"] & heavy
        assert not under(modules["import"], "llvmlite", "weft.codegen", "weft.capture", *GPU)
        assert len(under(modules["import"], "weft")) <= 90


def test_a_cold_first_call_finds_the_compiler_loaded(starts: tuple) -> None:
    (modules, counters), _ = starts
    assert {"weft.passes.pipeline", "weft.codegen.loop_kernel", "weft.runtime.build"} <= modules["compile"]
    assert not under(modules["compile"] | modules["call"], "llvmlite.binding", "llvmlite.ir", *GPU)
    emitters = ("weft.codegen.contract", "weft.codegen.conv", "weft.codegen.attention", "weft.codegen.sort")
    assert not under(modules["compile"] | modules["call"], *emitters)
    assert len(under(modules["call"], "weft")) <= 12
    assert counters["compiles"] == 1 and counters["objects_compiled"] == 2  # the call path, and the graph


@pytest.mark.skipif(not loader.supported(), reason="LLVM links the objects here")
def test_a_warm_first_call_loads_no_compiler(starts: tuple) -> None:
    _, (modules, counters) = starts
    new = modules["compile"] | modules["call"]
    assert under(new, "weft.codegen") <= {"weft.codegen", "weft.codegen.target", "weft.codegen.libllvm"}
    assert not under(new, "weft.passes.pipeline", "weft.runtime.build", "llvmlite.binding", *GPU)
    assert not new & {"logging", "random", "sysconfig", "concurrent.futures"}
    assert len(under(modules["call"], "weft")) <= 2
    assert counters["compiles"] == counters["objects_compiled"] == 0 and counters["cache_disk_hits"] == 1
