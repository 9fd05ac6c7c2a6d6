"""Choosing a driver, the emulated one's answers, and the one over pycuda with a libcuda of our own."""

from __future__ import annotations

import subprocess
import sys
import types

import numpy as np
import pytest
import runtime_graphs as G
from device_graphs import on_device
from weft.codegen.gpu.target import gpu_target, target_of
from weft.ir.interp import run
from weft.runtime import compile_graph, stats
from weft.runtime.cuda import api, assembler, compile, driver, pycuda_driver
from weft.runtime.cuda.array import from_host
from weft.runtime.cuda.assembler import find_ptxas, ptxas_release
from weft.runtime.cuda.device import device_state
from weft.runtime.cuda.driver import CudaError, CudaUnavailable

CHECK = """
import sys
import weft
x = weft.ones(3) + 1
f = weft.compile(lambda a: a * 2)
f(x)
loaded = [m for m in sys.modules if m.startswith(("weft.runtime.cuda", "weft.runtime.emulate", "pycuda"))]
assert not loaded, loaded
"""


def test_nothing_of_it_is_loaded_without_a_gpu():
    out = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr


def test_availability_never_raises(monkeypatch):
    monkeypatch.setenv("WEFT_CUDA", "0")
    assert not driver.is_available() and driver.device_count() == 0
    with pytest.raises(CudaUnavailable, match="turned off by WEFT_CUDA=0"):
        driver.driver()
    monkeypatch.setenv("WEFT_CUDA", "emulate")
    monkeypatch.setenv("WEFT_CUDA_DEVICES", "3")
    assert driver.device_count() == 3
    monkeypatch.setenv("WEFT_CUDA_DEVICES", "many")
    assert driver.device_count() == 0
    with pytest.raises(ValueError, match="WEFT_CUDA_DEVICES=many"):
        driver.driver()


def test_what_to_install_is_said(monkeypatch):
    monkeypatch.setattr(pycuda_driver, "_LIBRARY", "libcuda-is-not-here.so")
    said = r"no NVIDIA driver .*pip install weft\[cuda\].*WEFT_CUDA=emulate"
    with pytest.raises(CudaUnavailable, match=said):
        pycuda_driver.PycudaDriver()
    monkeypatch.setattr(pycuda_driver, "_library", lambda: None)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(CudaUnavailable, match=r"pycuda cannot be imported.*pip install weft\[cuda\]"):
        pycuda_driver.PycudaDriver()


@pytest.mark.gpu
def test_failed_calls_are_named():
    device_state(0).activate()
    d = device_state(0).driver
    with pytest.raises(CudaError, match="cuEventQuery failed: CUDA_ERROR_INVALID_HANDLE"):
        d.is_ready("cuEventQuery", 12345)
    with pytest.raises(CudaError, match="cuMemAlloc_v2 failed: CUDA_ERROR_OUT_OF_MEMORY") as e:
        d.malloc(1 << 50)
    assert e.value.code == api.OUT_OF_MEMORY


@pytest.mark.gpu
def test_memory_and_properties():
    state = device_state(0)
    state.activate()
    free, total = state.driver.memory_info()
    assert 0 < free <= total == state.properties.total_memory
    assert (state.properties.major, state.properties.minor) == state.target.capability
    assert state.properties.multi_processor_count == state.target.multiprocessors


def test_targets_by_capability():
    assert target_of((8, 0)) is gpu_target("sm_80")
    assert [target_of(c).name for c in ((8, 7), (8, 8), (9, 0), (10, 3), (12, 1), (12, 2), (13, 0))] == [
        "sm_87", "sm_87", "sm_90a", "sm_103", "sm_121", "sm_121", "sm_121"
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"7\.5 or later, this one has 7\.0"):
        target_of((7, 0))


def test_names_that_are_not_known_say_what_is():
    with pytest.raises(ValueError, match="unknown GPU architecture 'sm_130'; known: sm_75, sm_80"):
        gpu_target("sm_130")
    with pytest.raises(ValueError, match=r"'sm_120a' \(sm_120 is: nothing that sm_120a adds is used\)"):
        gpu_target("sm_120a")
    with pytest.raises(ValueError, match="unknown GPU architecture 'volta'; known"):
        gpu_target("volta")


def test_machine_code_is_for_devices_of_its_generation():
    runs = [
        gpu_target(name).machine_code_runs_on(capability)
        for name, capability in (
            ("sm_86", (8, 6)), ("sm_86", (8, 9)), ("sm_86", (8, 0)), ("sm_90a", (9, 0)), ("sm_121", (12, 1)),
            ("sm_121", (13, 0)), ("sm_103", (11, 0)), ("sm_90", (10, 0)),
        )
    ]  # fmt: skip
    assert runs == [True, True, False, True, True, False, False, False]


@pytest.mark.parametrize(("capability", "release", "assembled"), [
    ((12, 1), (13, 0), True), ((12, 1), (12, 8), False), ((13, 0), (13, 0), False), ((8, 9), (12, 4), True),
    ((8, 9), (11, 8), False),
])  # fmt: skip
def test_a_newer_device_compiles_the_newest_ptx_itself(monkeypatch, capability, release, assembled):
    """Neither machine code of another generation, nor a ptxas that does not know the PTX."""
    monkeypatch.setattr(assembler, "find_ptxas", lambda: "ptxas")
    monkeypatch.setattr(assembler, "ptxas_release", lambda path: release)
    monkeypatch.setattr(assembler, "assemble", lambda ptx, architecture: (architecture.encode(), []))
    target = target_of(capability)
    taking = types.SimpleNamespace(runs_cubins_of=lambda ptxas: True)
    properties = types.SimpleNamespace(capability=capability)
    state = types.SimpleNamespace(driver=taking, properties=properties)
    found = compile._cubin("", target, state)
    assert found == (target.name.encode() if assembled else b"")


class FakeDevice:
    """What pycuda's Device says of an A100 with half its multiprocessors."""

    def __init__(self, index: int) -> None:
        self.index = index

    @staticmethod
    def count() -> int:
        return 1

    def name(self) -> str:
        return "half an A100"

    def compute_capability(self) -> tuple[int, int]:
        return 8, 0

    def total_memory(self) -> int:
        return 1 << 30

    def get_attribute(self, which: str) -> int:
        return {"sms": 54, "threads": 2048, "shared": 163 << 10}[which]

    def retain_primary_context(self) -> object:
        return types.SimpleNamespace(handle=driver._emulated("sm_80").context(self.index))


class FakePycuda:
    Device = FakeDevice
    device_attribute = types.SimpleNamespace(
        MULTIPROCESSOR_COUNT="sms", MAX_THREADS_PER_MULTIPROCESSOR="threads",
        MAX_SHARED_MEMORY_PER_BLOCK_OPTIN="shared",
    )  # fmt: skip


def test_the_driver_over_pycuda(monkeypatch):
    """pycuda is a stand-in, libcuda the emulated functions: everything between them is what a GPU runs on."""
    emulated = driver._emulated("sm_80")
    monkeypatch.setattr(pycuda_driver, "_library", lambda: types.SimpleNamespace(**emulated.functions))
    monkeypatch.setattr(pycuda_driver, "_pycuda", lambda: FakePycuda)
    found = pycuda_driver.PycudaDriver()
    monkeypatch.setattr(found, "runs_cubins_of", lambda ptxas: False)  # the emulated functions take PTX
    monkeypatch.setattr(driver, "driver", lambda: found)
    monkeypatch.setattr("weft.runtime.cuda.device.driver", lambda: found)
    assert found.device_count() == 1 and found.version == (13, 0)
    state = device_state(0)
    assert state.driver is found and state.target.multiprocessors == 54
    assert state.properties.name == "half an A100"
    x, y = G.samples(G.tiny())
    stats.reset()
    out = compile_graph(on_device(G.tiny())).runner(from_host(x), from_host(y))[0]
    np.testing.assert_allclose(out.copy_to_host(), run(G.tiny(), [x, y])[0], rtol=1e-6)
    assert stats.snapshot()["device_launches"] == 1


def test_an_old_driver_is_named(monkeypatch):
    functions = dict(driver._emulated("sm_80").functions)
    del functions["cuGraphLaunch"]
    monkeypatch.setattr(pycuda_driver, "_library", lambda: types.SimpleNamespace(**functions))
    monkeypatch.setattr(pycuda_driver, "_pycuda", lambda: FakePycuda)
    with pytest.raises(CudaUnavailable, match="too old: it has no cuGraphLaunch"):
        pycuda_driver.PycudaDriver()


def test_machine_code_is_for_drivers_of_its_major_version_or_later(monkeypatch):
    monkeypatch.setattr(pycuda_driver, "ptxas_release", lambda path: (13, 0))
    found = object.__new__(pycuda_driver.PycudaDriver)
    for version, runs in (((12, 8), False), ((13, 0), True), ((14, 1), True)):
        found.__dict__["version"] = version
        assert found.runs_cubins_of("ptxas") is runs


def test_the_release_of_ptxas():
    path = find_ptxas()
    if path is None:
        pytest.skip("there is no ptxas")
    assert ptxas_release(path) >= (12, 0)


def test_ptx_follows_the_driver():
    of = pycuda_driver.ptx_version
    assert [of(v) for v in ((11, 0), (11, 8), (12, 0), (12, 5), (12, 6), (12, 8), (12, 9), (13, 0))] == [
        70, 78, 80, 85, 85, 87, 88, 90
    ]  # fmt: skip
