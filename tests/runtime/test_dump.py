"""What a compiled graph shows of itself, fresh and from the disk cache, and the files of WEFT_DUMP."""

from __future__ import annotations

import pytest
import runtime_graphs as G
from weft.codegen.target import named_target
from weft.ir import prims as P
from weft.ir.errors import CompilerError
from weft.ir.prims.base import trace
from weft.ir.types import Device, TensorType, f32
from weft.runtime import build, compile_graph, compile_only, stats
from weft.runtime import compile as compiling
from weft.runtime.cache import DiskCache


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A disk cache of its own, and no executables in memory."""
    monkeypatch.setattr(compiling, "disk_cache", lambda: DiskCache(tmp_path, 1 << 30))
    monkeypatch.setattr(compiling, "_memory", compiling.OrderedDict())


def shown(exe):
    return [str(exe.plan), exe.llvm(), exe.asm(), [n for n, _ in exe.stages], [k.text for k in exe.kernels]]


@pytest.mark.usefixtures("own_cache")
def test_views_are_the_same_from_the_cache():
    fresh = compile_graph(G.running(False))
    compiling._memory.clear()
    stats.reset()
    cached = compile_graph(G.running(False))
    assert stats.snapshot()["cache_disk_hits"] == 1 and stats.snapshot()["compiles"] == 0
    assert shown(cached) == shown(fresh)
    assert cached.n_kernels == fresh.n_kernels == len(cached.kernels)
    assert "define void @weft_entry" in cached.llvm() and "weft_entry:" in cached.asm()


def test_dump_writes_files(tmp_path, monkeypatch, own_cache):
    monkeypatch.setenv("WEFT_DUMP", "graph, fused,loops,llvm,asm,plan,stages")
    monkeypatch.setenv("WEFT_DUMP_DIR", str(tmp_path / "dump"))
    compile_graph(G.tiny(), name="my step")
    names = sorted(p.name.split(".", 1)[1] for p in (tmp_path / "dump").iterdir())
    assert names == ["fused.txt", "graph.txt", "ll", "loops.txt", "plan.txt", "s", "stages.txt"]
    assert all(p.name.startswith("my_step-") for p in (tmp_path / "dump").iterdir())
    assert "tanh" in next((tmp_path / "dump").glob("*.graph.txt")).read_text()


@pytest.mark.usefixtures("own_cache")
def test_unknown_dump_is_an_error(monkeypatch):
    monkeypatch.setenv("WEFT_DUMP", "graph,everything")
    with pytest.raises(ValueError, match="everything"):
        compile_graph(G.tiny())


@pytest.mark.usefixtures("own_cache")
def test_null_device_compiles_and_does_not_run():
    t = TensorType((8,), f32, Device("null"))
    exe = compile_graph(trace(lambda x, y: x + y * y, t, t))
    assert "weft_entry" in exe.asm()
    with pytest.raises(RuntimeError, match="not to run here"):
        exe.runner(*G.samples(exe.graph))
    with pytest.raises(RuntimeError, match="'tpu'"):
        compile_graph(trace(lambda x: x + x, TensorType((8,), f32, Device("tpu"))))


@pytest.mark.usefixtures("own_cache")
def test_failure_of_the_compiler_carries_the_graph(monkeypatch):
    def broken(*args):
        raise KeyError("schedule")

    monkeypatch.setattr(build, "emit_kernel", broken)
    graph = G.tiny()
    with pytest.raises(CompilerError, match="no code for kernel") as caught:
        compile_graph(graph)
    assert caught.value.graph is graph and isinstance(caught.value.__cause__, KeyError)


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("name", ["haswell", "skylake-avx512"])
def test_compile_for_another_machine(name):
    for graph in (G.tiny(), G.doubling(), G.running(True)):
        exe = compile_only(graph, named_target(name))
        assert f'"target-cpu"="{name}"' in exe.llvm() and "weft_entry:" in exe.asm()
        with pytest.raises(RuntimeError, match=name):
            exe.runner(*G.samples(graph))


def test_times_of_kernels():
    t = TensorType((64, 64), f32)

    def fn(x, y):
        dot = P.dot_general_p.bind(x, y, contract=((1,), (0,)), batch=((), ()))
        return P.sum_p.bind(P.exp_p.bind(dot), axes=(1,)), P.cumsum_p.bind(x, axis=0)

    exe = compile_graph(trace(fn, t, t))
    seconds = exe.kernel_seconds(G.samples(exe.graph))
    assert len(seconds) == len(exe.kernels) >= 2
    assert all(0 < s < 1 for s, k in zip(seconds, exe.kernels, strict=True) if k.native)
    loop = compile_graph(G.running(False))
    assert len(loop.kernel_seconds(G.samples(loop.graph))) == len(loop.kernels)
