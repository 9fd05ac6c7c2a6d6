"""Tensors on a GPU: the one that is there, or an emulated one."""

from __future__ import annotations

import copy
import io
import os
from typing import Any

import numpy as np
import pytest
import weft
from weft import nn
from weft.composite import PATIENCE
from weft.nn import functional as F
from weft.runtime import stats
from weft.utils.data import DataLoader, TensorDataset
from weft.utils.data.dataloader import pinned

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    weft.backends.cudnn.allow_tf32 = False  # results are compared with those of exact convolutions
    if not weft.cuda.is_available():
        monkeypatch.setenv("WEFT_CUDA", "emulate")
        monkeypatch.setenv("WEFT_CUDA_DEVICES", os.environ.get("WEFT_CUDA_DEVICES", "2"))


def close(x: Any, y: Any) -> bool:
    a, b = (np.asarray(t.detach().cpu().numpy()) for t in (x, y))
    return a.shape == b.shape and np.allclose(a, b, rtol=1e-5, atol=1e-6)


# -- what it is ---------------------------------------------------------------------------------------------


def test_a_tensor_says_where_it_is() -> None:
    x = weft.tensor([1.0, 2.0], device="cuda")
    assert x.device == weft.device("cuda:0") and x.is_cuda and not x.is_cpu and x.get_device() == 0
    assert repr(x) == "tensor([1., 2.], device='cuda:0')"
    assert x.cpu().device == weft.device("cpu") and x.cpu().tolist() == [1.0, 2.0]
    assert x.to("cuda") is x and x.cuda() is x and x.cpu() is not x
    assert weft.ones(2).cpu() is not None and weft.zeros_like(x).is_cuda and x.new_ones(3).is_cuda


@pytest.mark.parametrize("make", [
    lambda **k: weft.zeros(2, 3, **k), lambda **k: weft.full((2,), 7, **k),
    lambda **k: weft.arange(1, 9, 2, **k), lambda **k: weft.linspace(0, 1, 5, **k),
    lambda **k: weft.eye(3, **k),
    lambda **k: weft.tensor([[True, False]], **k), lambda **k: weft.as_tensor(np.arange(3), **k),
    lambda **k: weft.empty(0, 2, **k), lambda **k: weft.tensor(3.0, **k),
])  # fmt: skip
def test_what_is_made_on_a_gpu_is_what_is_made_on_the_cpu(make: Any) -> None:
    here, there = make(), make(device="cuda")
    assert there.is_cuda and here.dtype is there.dtype
    assert np.array_equal(here.numpy(), there.cpu().numpy())


def test_the_default_device() -> None:
    weft.set_default_device("cuda")
    try:
        assert weft.ones(2).is_cuda and nn.Linear(2, 2).weight.is_cuda
        assert weft.get_default_device() == weft.device("cuda:0")
    finally:
        weft.set_default_device(None)
    assert not weft.ones(2).is_cuda


def test_questions_about_the_gpu() -> None:
    assert weft.cuda.is_available() and weft.cuda.device_count() >= 1 and weft.cuda.get_device_name()
    assert weft.cuda.get_device_capability() >= (7, 5) and weft.cuda.current_device() == 0
    assert weft.cuda.get_device_properties().total_memory > 0
    with pytest.raises(RuntimeError, match="device"):
        weft.zeros(1, device="cuda:99")


def test_memory_is_counted_and_reused() -> None:
    before = weft.cuda.memory_allocated()
    x = weft.empty(1000, device="cuda")
    assert weft.cuda.memory_allocated() >= before + 4000 and weft.cuda.memory_reserved() > 0
    del x
    assert weft.cuda.memory_allocated() == before and weft.cuda.max_memory_allocated() >= before + 4000
    weft.cuda.empty_cache()


# -- eager --------------------------------------------------------------------------------------------------


def test_operations_are_those_of_the_cpu() -> None:
    x, y = weft.randn(3, 5), weft.randn(5)

    def f(x: weft.Tensor, y: weft.Tensor) -> list[weft.Tensor]:
        return [
            (x + y) * 2 - 1, x.t().contiguous(), x[1:, ::2], x[:, -1], x @ y, x.softmax(-1), x.sum(0),
            x.max(), weft.where(x > 0, x, 0.0), x[weft.tensor([2, 0])], x[x > 0], x.argmax(1), x.cumsum(1),
            x.sort(1)[0], weft.cat([x, x]), x.std(), x.reshape(5, 3), x.flip(0), x.to(weft.float16), x.bool(),
        ]  # fmt: skip

    for a, b in zip(f(x, y), f(x.cuda(), y.cuda()), strict=True):
        assert b.is_cuda and a.dtype is b.dtype and close(a, b)


def test_a_number_with_a_large_tensor() -> None:
    x = weft.ones(80, 80, device="cuda", requires_grad=True)
    (2.0 - x * 3.0).sum().backward()
    assert x.grad.is_cuda and x.grad[0, 0].item() == -3


def test_views_share_memory_and_writes_reach_them() -> None:
    x = weft.zeros(3, 4, device="cuda")
    row, corner = x[1], x.t()[:2, :2]
    row += 1
    corner[0, 0] = 5.0
    x[2] = weft.arange(4.0)
    assert x.tolist() == [[5, 0, 0, 0], [1, 1, 1, 1], [0, 1, 2, 3]]
    assert row._version == x._version and row.data_ptr() == x.data_ptr() + 16
    x.copy_(weft.ones(3, 4))
    host = weft.zeros(3, 4)
    host.copy_(x)
    assert row.tolist() == [1, 1, 1, 1] and host.sum().item() == 12
    with pytest.raises(RuntimeError, match="single memory location"):
        weft.zeros(1, device="cuda").expand(3).add_(1)


def test_gradients_stay_on_the_device() -> None:
    def loss(x: weft.Tensor, w: weft.Tensor) -> weft.Tensor:
        return ((x @ w).tanh() * 3).square().sum()

    x, w = weft.randn(4, 3).tanh(), weft.randn(3, 2).tanh() / 3  # where tanh is flat, 1 - tanh**2 cancels
    grads = []
    for device in ("cpu", "cuda"):
        a, b = (t.clone().to(device).requires_grad_() for t in (x, w))
        loss(a, b).backward()
        grads.append((a.grad, b.grad))
    for mine, theirs in zip(*grads, strict=True):
        assert theirs.is_cuda and close(mine, theirs)
    a = x.cuda().requires_grad_()
    (g,) = weft.autograd.grad(a.pow(3).sum(), a, create_graph=True)
    assert close(weft.autograd.grad(g.sum(), a)[0], 6 * x)


def test_a_gradient_crosses_devices() -> None:
    x = weft.ones(3, requires_grad=True)
    (x.cuda() * 2).sum().backward()
    assert x.grad.device == weft.device("cpu") and x.grad.tolist() == [2, 2, 2]


def test_devices_do_not_mix() -> None:
    x, y = weft.ones(2, 2, device="cuda"), weft.ones(2, 2)
    with pytest.raises(RuntimeError, match=r"same device.*cuda:0 and cpu.*argument 'other' of add"):
        x + y
    with pytest.raises(RuntimeError, match="argument 'input' of dot_general"):
        y @ x
    assert (x + weft.tensor(2.0)).tolist() == [[3, 3], [3, 3]]
    with pytest.raises(RuntimeError, match="indices should be either on cpu"):
        y[weft.tensor([0], device="cuda")]
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        x.numpy()
    if weft.cuda.device_count() > 1:
        with pytest.raises(RuntimeError, match="cuda:0 and cuda:1"):
            x + x.to("cuda:1")


def test_random_numbers_are_those_of_the_cpu() -> None:
    drawn = []
    for device in ("cpu", "cuda"):
        weft.manual_seed(3)
        drawn.append([
            weft.rand(5, device=device), weft.randint(9, (4,), device=device),
            weft.randperm(6, device=device),
            F.dropout(weft.ones(8, device=device), 0.5), weft.empty(3, device=device).normal_(),
        ])  # fmt: skip
    for a, b in zip(*drawn, strict=True):
        assert b.is_cuda and close(a, b)
    state = weft.cuda.get_rng_state()
    first = weft.rand(2, device="cuda")
    weft.cuda.set_rng_state(state)
    assert weft.equal(first, weft.rand(2, device="cuda"))
    with pytest.raises(RuntimeError, match="device type for generator"):
        weft.rand(2, device="cuda", generator=weft.Generator())


def test_an_index_out_of_range_is_an_error_at_the_next_synchronisation() -> None:
    table = weft.ones(4, 2, device="cuda")
    with pytest.raises(IndexError, match="out of range"):
        F.embedding(weft.tensor([1, 7], device="cuda"), table).cpu()
    assert F.embedding(weft.tensor([1], device="cuda"), table).tolist() == [[1, 1]]


# -- modules, files, other libraries ------------------------------------------------------------------------


def test_modules_and_optimizers_move() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).cuda()
    assert all(t.is_cuda for t in (*model.parameters(), *model.buffers()))
    twin = copy.deepcopy(model)
    assert twin[0].weight.data_ptr() != model[0].weight.data_ptr() and twin[0].weight.is_cuda
    optimizer = weft.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x = weft.randn(6, 3, device="cuda")
    first = model(x).square().mean()
    first.backward()
    optimizer.step()
    assert model(x).square().mean().item() < first.item()
    assert not any(t.is_cuda for t in model.cpu().parameters())


def test_an_eager_step_of_an_optimizer_becomes_one_kernel() -> None:
    ways = []
    for device in ("cpu", "cuda"):
        weft.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).to(device)
        optimizer = weft.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(PATIENCE + 3):
            for p in model.parameters():
                p.grad = weft.ones_like(p)
            before = stats.snapshot().get("device_launches", 0)
            optimizer.step()
        ways.append((list(model.parameters()), stats.snapshot().get("device_launches", 0) - before))
    assert ways[1][1] == 1
    assert all(close(a, b) for a, b in zip(ways[0][0], ways[1][0], strict=True))


def test_files_remember_the_device() -> None:
    file = io.BytesIO()
    weft.save({"w": weft.arange(3, device="cuda"), "b": weft.ones(1)}, file)
    for where, expected in ((None, "cuda"), ("cpu", "cpu"), ({"cuda:0": "cpu"}, "cpu")):
        file.seek(0)
        found = weft.load(file, map_location=where)
        assert found["w"].device.type == expected and found["w"].tolist() == [0, 1, 2]
    assert found["b"].device.type == "cpu"


def test_pinned_memory_streams_and_events() -> None:
    x = weft.arange(8.0).pin_memory()
    assert x.is_pinned() and not weft.ones(2).is_pinned()
    start, end = weft.cuda.Event(enable_timing=True), weft.cuda.Event(enable_timing=True)
    side = weft.cuda.Stream()
    with weft.cuda.stream(side):
        start.record()
        y = x.to("cuda", non_blocking=True) * 2
        end.record()
    weft.cuda.current_stream().wait_stream(side)
    weft.cuda.synchronize()
    assert y.tolist() == (x * 2).tolist() and start.elapsed_time(end) >= 0


class Foreign:
    """An array of another library."""

    def __init__(self, interface: dict[str, Any]) -> None:
        self.__cuda_array_interface__ = interface


def test_batches_come_in_pinned_memory() -> None:
    data = TensorDataset(weft.arange(4), weft.ones(4))
    for x, y in DataLoader(data, batch_size=2, pin_memory=True):
        assert x.is_pinned() and y.is_pinned()
    assert pinned({"a": [x], "b": "text"})["a"][0].is_pinned()


def test_comparisons_look_at_devices() -> None:
    x = weft.ones(2, device="cuda")
    weft.testing.assert_close(x, x.clone())
    with pytest.raises(AssertionError, match="device"):
        weft.testing.assert_close(x, x.cpu())
    assert x.type() == "weft.cuda.FloatTensor" and weft.ones(2).type_as(x).is_cuda


def test_the_memory_can_be_shared() -> None:
    x = weft.ones(2, 3, device="cuda")
    shown = x.__cuda_array_interface__
    assert shown["shape"] == (2, 3) and shown["data"][0] == x.data_ptr() and shown["typestr"] == "<f4"
    assert x.__dlpack_device__() == (2, 0)
    other = weft.from_dlpack(x)
    other += 1
    again = weft.as_tensor(Foreign(x.__cuda_array_interface__), device="cuda")
    assert x.tolist() == [[2, 2, 2], [2, 2, 2]] and again.data_ptr() == x.data_ptr()
    with pytest.raises(AttributeError, match="non-CUDA"):
        weft.ones(1).__cuda_array_interface__  # noqa: B018


# -- compiled -----------------------------------------------------------------------------------------------


def test_a_compiled_function_runs_where_its_arguments_are() -> None:
    @weft.compile
    def f(x: weft.Tensor, scale: float) -> weft.Tensor:
        mask = weft.ones(x.shape[-1], device=x.device).cumsum(0)
        return (x * scale).softmax(-1) + mask

    x = weft.randn(3, 6)
    here, there = f(x, 2.0), f(x.cuda(), 2.0)
    assert there.is_cuda and close(here, there) and close(f(x.cuda(), 3.0), f(x, 3.0))
    assert f.recompiles == ["device of x changed from cpu to cuda:0"] or len(f.recompiles) <= 2
    alone = weft.compile(lambda x: x * 2)
    alone(x.cuda())
    assert ".target sm_" in alone.asm()


def training(device: str) -> tuple[list[float], Any]:
    weft.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Dropout(0.2), nn.LayerNorm(8), nn.Linear(8, 3))
    model.to(device)
    optimizer = weft.optim.AdamW(model.parameters(), lr=1e-2)
    x, y = weft.randn(5, 4).to(device), weft.tensor([0, 1, 2, 0, 1], device=device)
    weft.manual_seed(1)

    @weft.compile
    def step(x: weft.Tensor, y: weft.Tensor) -> weft.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return [step(x, y).item() for _ in range(3)], (step, x, y)


def test_a_training_step_is_one_graph_with_the_losses_and_kernels_of_the_cpu() -> None:
    here, (on_cpu, *_) = training("cpu")
    there, (step, x, y) = training("cuda")
    assert np.allclose(here, there, rtol=1e-5)
    assert len(step.kernels()) <= len(on_cpu.kernels()) and not step.recompiles
    before = stats.snapshot()
    step(x, y)
    after = stats.snapshot()
    for counter in ("device_allocations", "device_synchronisations"):
        assert after.get(counter, 0) == before.get(counter, 0)
    assert after["device_launches"] > before["device_launches"]


def test_gradients_flow_through_a_compiled_function() -> None:
    @weft.compile
    def f(x: weft.Tensor, w: weft.Tensor) -> weft.Tensor:
        return (x @ w).relu().sum()

    x, w = weft.randn(3, 4), weft.randn(4, 2)
    a, b = (t.cuda().requires_grad_() for t in (x, w))
    f(a, b).backward()
    c, d = (t.clone().requires_grad_() for t in (x, w))
    f(c, d).backward()
    assert a.grad.is_cuda and close(a.grad, c.grad) and close(b.grad, d.grad)


def test_a_graph_break_reads_a_value_and_goes_on() -> None:
    @weft.compile
    def f(x: weft.Tensor) -> weft.Tensor:
        y = x * 2
        return y + 1 if y.sum().item() > 0 else y - 1

    x = weft.ones(3, device="cuda")
    assert f(x).tolist() == [3, 3, 3] and f(-x).tolist() == [-3, -3, -3] and f(x).is_cuda


def test_numbers_fill_a_tensor_whether_or_not_gradients_are_recorded() -> None:
    x = weft.zeros(3, 4).cuda()
    assert x.fill_(2.5).sum().item() == 30
    x[1:] = 1
    with weft.no_grad():
        x[:, 0] = 4
    assert x.tolist() == [[4, 2.5, 2.5, 2.5], [4, 1, 1, 1], [4, 1, 1, 1]]
    w = weft.ones(2, 2).cuda().requires_grad_()
    y = w * 1
    y[0].fill_(7)
    y.sum().backward()
    assert w.grad is not None and w.grad.tolist() == [[0, 0], [1, 1]]


# -- captured graphs ----------------------------------------------------------------------------------------


def test_a_graph_repeats_eager_and_compiled_work_on_new_inputs() -> None:
    x = weft.ones(8, 8).cuda()
    double = weft.compile(lambda x: x * 2 + 1)
    double(x)
    g = weft.cuda.CUDAGraph()
    with weft.cuda.graph(g):
        assert weft.cuda.is_current_stream_capturing()
        y = double(x).sum(0)
    assert not weft.cuda.is_current_stream_capturing()
    for value in (1.0, 5.0):
        x.fill_(value)
        g.replay()
        assert y.tolist() == [8 * (2 * value + 1)] * 8
    g.reset()
    with pytest.raises(RuntimeError, match="nothing was captured"):
        g.replay()


def test_a_graph_begins_and_ends_once() -> None:
    g = weft.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="no capture was begun"):
        g.capture_end()
    g.capture_begin()
    with pytest.raises(RuntimeError, match="being captured already"):
        g.capture_begin()
    g.capture_end()
    with pytest.raises(RuntimeError, match="holds a capture already"), weft.cuda.graph(g):
        pass
    x = weft.ones(3).cuda()
    with pytest.raises(RuntimeError, match="cannot wait"), weft.cuda.graph(weft.cuda.CUDAGraph()):
        x.sum().item()
    assert x.sum().item() == 3 and not weft.cuda.is_current_stream_capturing()


def test_the_states_of_all_generators() -> None:
    states = weft.cuda.get_rng_state_all()
    assert len(states) == weft.cuda.device_count()
    first = weft.randn(4, device="cuda").tolist()
    weft.cuda.set_rng_state_all(states)
    assert weft.randn(4, device="cuda").tolist() == first
    stats = weft.cuda.memory_stats()
    assert stats["allocated_bytes.all.peak"] >= stats["allocated_bytes.all.current"] >= 0
