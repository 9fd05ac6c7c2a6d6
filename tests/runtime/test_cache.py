"""The disk cache: a second process compiles nothing, and nothing wrong with it gives a wrong result."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from weft.runtime.cache import DiskCache, key_of

SCRIPT = """
import json, sys, warnings
import numpy as np
from weft.ir import prims as P
from weft.ir.prims.base import trace
from weft.ir.types import TensorType, f32, f64
from weft.runtime import cache, compile_graph, stats

cache.build_stamp = lambda: "one build"  # sources may be edited while the tests run
seen = []
warnings.showwarning = lambda message, *rest: seen.append(str(message))
t, m = TensorType((40, 30), f32), TensorType((30, 30), f32)
c = np.linspace(0, 1, 30 * 30).reshape(30, 30).astype(np.float32)

def fn(x, w):
    dot = P.dot_general_p.bind(x, w, contract=((1,), (0,)), batch=((), ()))
    row = P.sum_p.bind(P.exp_p.bind(dot), axes=(1,))
    step = trace(lambda s, v: (s + v, s), TensorType((), f32), TensorType((), f32))
    zero = P.full_p.bind(shape=(), dtype=f32, value=0.0)
    return (P.tanh_p.bind(x) * x, w + P.constant_p.bind(value=c),
            *P.scan_p.bind(zero, row, n_carry=1, length=40, regions=(step,)))

g = trace(fn, t, m)
x = (np.arange(1200).reshape(40, 30) / 1200).astype(np.float32)
w = (np.arange(900).reshape(30, 30) / 9000).astype(np.float32)
outs = compile_graph(g).runner(x, w)
from weft.ir.interp import run
for a, b in zip(outs, run(g, [x, w])):
    np.testing.assert_allclose(a, b, rtol=2e-5)
print(json.dumps({"sums": [float(np.float64(o).sum()) for o in outs], "warnings": seen, **stats.snapshot()}))
"""


def start(folder: Path, **env: str) -> subprocess.Popen[str]:
    env = {**os.environ, "WEFT_CACHE_DIR": str(folder), "WEFT_CACHE": "1", **env}
    return subprocess.Popen([sys.executable, "-c", SCRIPT], env=env, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)  # fmt: skip


def finish(process: subprocess.Popen[str]) -> dict:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out)


def run(folder: Path, **env: str) -> dict:
    return finish(start(folder, **env))


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.weft"))


@pytest.fixture
def filled(tmp_path):
    folder = tmp_path / "cache"
    return folder, run(folder)


def test_second_process_compiles_nothing(filled):
    folder, cold = filled
    warm = run(folder)
    assert cold["compiles"] == 1 and cold["cache_disk_writes"] == len(entries(folder)) > 0
    assert warm["compiles"] == warm["objects_compiled"] == warm["cache_disk_misses"] == 0
    assert warm["cache_disk_hits"] == 1
    assert warm["sums"] == cold["sums"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_two_processes_fill_one_cache(tmp_path):
    folder = tmp_path / "cache"
    both = [start(folder), start(folder)]
    first, second = (finish(p) for p in both)
    assert first["sums"] == second["sums"]
    assert run(folder)["compiles"] == 0
    assert not list(folder.glob("*.tmp"))


@pytest.mark.parametrize("damage", ["truncate", "empty", "flip", "other key", "garbage"])
def test_damaged_entries_are_compiled_again(filled, damage):
    folder, cold = filled
    for path in entries(folder):
        data = path.read_bytes()
        flipped = bytearray(data)
        flipped[len(data) // 2] ^= 0x10
        path.write_bytes({
            "truncate": data[: len(data) // 2],
            "empty": b"",
            "flip": bytes(flipped),
            "other key": data.replace(path.stem.encode(), b"0" * 64),
            "garbage": os.urandom(500),
        }[damage])  # fmt: skip
    again = run(folder)
    assert again["cache_disk_damaged"] == len(entries(folder)) and again["compiles"] == 1
    assert again["sums"] == cold["sums"]
    assert run(folder)["compiles"] == 0


def change_artifacts(folder, change):
    """Store every compiled graph again with other fields; how many there were."""
    import pickle

    from weft.runtime.executable import Artifact

    store, changed = DiskCache(folder, 1 << 30), 0
    for path in entries(folder):
        payload = store.load(path.stem)
        assert payload is not None
        try:
            artifact = Artifact.from_bytes(payload)
        except (pickle.UnpicklingError, KeyError, TypeError, EOFError, ValueError):
            continue  # one of the runtime's own modules, which are bare objects, or the host's description
        store.store(path.stem, Artifact(**{**vars(artifact), **change(artifact)}).to_bytes())
        changed += 1
    return changed


def test_entry_for_another_cpu_is_not_loaded(filled):
    """An entry whose checksum is right but whose artifact names another CPU, under this CPU's name."""
    folder, cold = filled
    changed = change_artifacts(folder, lambda a: {"target": "a CPU from elsewhere"})
    again = run(folder)
    assert changed == 1 and again["compiles"] == 1 and again["cache_disk_damaged"] == 1
    assert again["sums"] == cold["sums"]


def test_object_that_the_linker_refuses_is_compiled_again(filled):
    folder, cold = filled
    assert change_artifacts(folder, lambda a: {"image": a.image[:300]}) == 1
    again = run(folder)
    assert again["compiles"] == 1 and again["sums"] == cold["sums"]


def test_key_depends_on_target_and_text():
    assert len({key_of("graph", "a", "x"), key_of("graph", "b", "x"), key_of("graph", "a", "y")}) == 3


def test_world_writable_folder_is_not_used(tmp_path):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    got = run(folder)
    assert not list(folder.iterdir())
    assert len(got["warnings"]) == 1 and "mode 0777" in got["warnings"][0]


def test_read_only_folder(filled):
    folder, cold = filled
    for path in entries(folder)[:1]:
        path.unlink()
    folder.chmod(0o500)
    try:
        assert run(folder)["sums"] == cold["sums"]
    finally:
        folder.chmod(0o700)


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    got = run(tmp_path / "file" / "cache")
    assert got["compiles"] == 1 and len(got["warnings"]) == 1


def test_symbolic_link_is_not_used(tmp_path):
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    got = run(tmp_path / "link")
    assert not list((tmp_path / "real").iterdir()) and "not a folder" in got["warnings"][0]


def test_cache_can_be_turned_off(tmp_path):
    got = run(tmp_path / "cache", WEFT_CACHE="0")
    assert not (tmp_path / "cache").exists() and got["compiles"] == 1 and not got["warnings"]


def test_least_recently_used_entries_go_first(tmp_path):
    store = DiskCache(tmp_path, limit_bytes=1600)
    keys = [key_of(str(i)) for i in range(4)]
    for i, key in enumerate(keys[:3]):
        store.store(key, bytes(400))
        os.utime(tmp_path / f"{key}.weft", (i, i))
    assert store.load(keys[0]) == bytes(400)  # now the newest
    store.store(keys[3], bytes(400))
    os.utime(tmp_path / f"{keys[3]}.weft")
    store.evict()
    assert [store.load(k) is not None for k in keys] == [True, False, True, True]
