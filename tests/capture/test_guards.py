"""Guards as counts: what makes another version, with its reason, and what does not."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import weft
from weft import nn
from weft.nn import functional as F
from weft.runtime import stats
from weft.testing import assert_close


def graphs_made() -> int:
    """Graphs that were compiled, or whose code came from the disk cache."""
    now = stats.snapshot()
    return now.get("compiles", 0) + now.get("cache_disk_hits", 0)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8) if hasattr(nn, "BatchNorm1d") else nn.LayerNorm(8)
        self.drop = nn.Dropout(0.2)
        self.out = nn.Linear(8, 3)
        self.scale = 1.0

    def forward(self, x: weft.Tensor) -> weft.Tensor:
        return self.out(self.drop(self.norm(F.relu(self.hidden(x))))) * self.scale


def data(n: int = 10) -> tuple[weft.Tensor, weft.Tensor]:
    weft.manual_seed(n)
    return weft.randn(n, 6), weft.randint(0, 3, (n,))


def training(optimizer: str = "Adam", **options: Any) -> tuple[Net, Any, Any]:
    weft.manual_seed(0)
    model = Net()
    opt = getattr(weft.optim, optimizer)(model.parameters(), lr=1e-2, **options)

    def step(x: weft.Tensor, y: weft.Tensor) -> weft.Tensor:
        opt.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        return loss.detach()

    return model, opt, step


def test_one_compile_over_100_steps_with_a_schedule() -> None:
    model, opt, step = training()
    compiled = weft.compile(step, fullgraph=True)
    x, y = data()
    for i in range(100):
        opt.param_groups[0]["lr"] = 1e-2 * (1 - i / 200)
        compiled(x, y)
    assert len(compiled.entries) == 1 and compiled.recompiles == []
    before = graphs_made()
    model.eval()
    compiled(x, y)
    assert graphs_made() == before + 1
    assert len(compiled.entries) == 2 and len(compiled.recompiles) == 1
    assert "training changed from True to False" in compiled.recompiles[0]
    compiled(*data(7))
    assert len(compiled.entries) == 3
    assert compiled.recompiles[1] == "shape of x changed from [10, 6] to [7, 6]"
    model.train()
    compiled(x, y)
    compiled(x, y)
    model.eval()
    compiled(x, y)
    compiled(*data(7))
    assert len(compiled.entries) == 3


@pytest.mark.parametrize("optimizer,options", [
    ("SGD", {}), ("SGD", {"momentum": 0.9, "weight_decay": 1e-3}), ("Adam", {}), ("AdamW", {}),
])  # fmt: skip
def test_compiled_training_is_eager_training(optimizer: str, options: dict[str, Any]) -> None:
    histories = []
    for decorate in (lambda f: f, weft.compile):
        model, opt, step = training(optimizer, **options)
        run = decorate(step)
        losses = []
        for i in range(12):
            opt.param_groups[0]["lr"] = 1e-2 / (1 + i)
            losses.append(run(*data(10 if i % 4 else 6)))
        histories.append([losses, dict(model.state_dict())])
    assert_close(histories[1], histories[0], rtol=1e-4, atol=1e-5)


def test_scheduler_steps_outside() -> None:
    _, opt, step = training("SGD")
    schedule = weft.optim.lr_scheduler.StepLR(opt, step_size=2, gamma=0.5)
    compiled = weft.compile(step)
    x, y = data()
    for _ in range(8):
        compiled(x, y)
        schedule.step()
    assert len(compiled.entries) == 1 and opt.param_groups[0]["lr"] < 1e-3


def test_zero_grad_at_the_end_and_accumulation() -> None:
    histories = []
    for decorate in (lambda f: f, weft.compile):
        model, opt, _ = training("SGD")

        def micro(
            x: weft.Tensor, y: weft.Tensor, last: bool, model: Any = model, opt: Any = opt
        ) -> weft.Tensor:
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            if last:
                opt.step()
                opt.zero_grad()
            return loss.detach()

        run = decorate(micro)
        losses = [run(*data(), i % 3 == 2) for i in range(9)]
        histories.append([losses, dict(model.state_dict()), [p.grad is None for p in model.parameters()]])
    assert_close(histories[1], histories[0], rtol=1e-4, atol=1e-5)


def test_a_compiled_module_is_a_module() -> None:
    weft.manual_seed(0)
    model = Net()
    compiled = weft.compile(model)
    assert isinstance(compiled, nn.Module)
    assert [id(p) for p in compiled.parameters()] == [id(p) for p in model.parameters()]
    assert all(k.startswith("_orig_mod.") for k in compiled.state_dict())
    assert compiled.hidden is model.hidden and compiled.scale == 1.0
    x, _ = data()
    model.eval()
    assert compiled.training is False
    assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-6)
    compiled.scale = 3.0
    assert model.scale == 3.0
    assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-6)
    assert compiled.recompiles == ["Net.scale changed from 1.0 to 3.0"]
    assert "graph" in str(compiled.graph)


def test_gradients_of_a_compiled_module() -> None:
    grads = []
    for decorate in (lambda m: m, weft.compile):
        weft.manual_seed(0)
        model = Net()
        run = decorate(model)
        x, y = data()
        x.requires_grad_(True)
        for _ in range(3):
            F.cross_entropy(run(x), y).backward()
        grads.append([[p.grad for p in model.parameters()], x.grad, dict(model.state_dict())])
    assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-5)


def test_parameters_replaced_and_moved() -> None:
    weft.manual_seed(0)
    model = Net().eval()
    compiled = weft.compile(model, fullgraph=True)
    x, _ = data()
    compiled(x)
    model.hidden.weight = nn.Parameter(weft.zeros(8, 6))
    assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-6)
    model.load_state_dict({k: v * 2 for k, v in model.state_dict().items()})
    assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-6)
    assert len(compiled.entries) == 1
    model.hidden = nn.Linear(6, 8)
    assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-6)


def test_hooks_on_modules_are_noticed() -> None:
    model = nn.Linear(6, 3)
    compiled = weft.compile(model)
    x, _ = data()
    compiled(x)
    handle = model.register_forward_hook(lambda m, args, out: out * 10)
    assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-6)
    handle.remove()
    assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-6)


def test_list_of_modules_mutated() -> None:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(6, 6)])
            self.plain = [1.0]

        def forward(self, x: weft.Tensor) -> weft.Tensor:
            for layer in self.layers:
                x = layer(x)
            return x * self.plain[0]

    model = Stack()
    compiled = weft.compile(model)
    x, _ = data()
    compiled(x)
    model.layers.append(nn.Linear(6, 6))
    assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-6)
    model.plain[0] = 5.0
    assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-6)


def test_frozen_parameters() -> None:
    model = nn.Linear(6, 3)
    compiled = weft.compile(model)
    x, _ = data()
    assert compiled(x).requires_grad
    for p in model.parameters():
        p.requires_grad_(False)
    assert not compiled(x).requires_grad
    assert any("requires_grad of" in r for r in compiled.recompiles)


def test_optimizer_state_loaded() -> None:
    results = []
    for decorate in (lambda f: f, weft.compile):
        model, opt, step = training()
        run = decorate(step)
        x, y = data()
        run(x, y)
        saved = dict(opt.state_dict())
        run(x, y)
        opt.load_state_dict(saved)
        results.append([run(x, y), run(x, y), dict(model.state_dict())])
    assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


def test_reasons_are_logged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WEFT_LOG", "recompiles")
    caplog.set_level(logging.INFO, "weft.recompiles")
    f = weft.compile(lambda x: x * 2)
    f(weft.ones(3))
    f(weft.ones(4))
    expected = "recompiling <lambda>: shape of x changed from [3] to [4]"
    assert f"weft: {expected}" in capsys.readouterr().err
    assert expected in caplog.text


def test_guards_in_words() -> None:
    w = weft.ones(3)
    factor = 2.0
    f = weft.compile(lambda x, a: x * w * factor if a > 0 else x)
    f(weft.ones(3), 1.0)
    guards = f.guards()
    assert "x: Tensor f32[3]" in guards and "grad mode is on" in guards
    assert "closure variable `factor` is 2.0" in guards and "(a > 0) is True" in guards
    assert any(g.startswith("closure variable `w`") for g in guards)


def test_reading_param_groups_guards_on_the_values() -> None:
    _, opt, _ = training("SGD")

    @weft.compile
    def scaled(x: weft.Tensor) -> weft.Tensor:
        return x * opt.param_groups[0]["lr"]

    x = weft.ones(2)
    for lr in (0.1, 0.2, 0.3):
        opt.param_groups[0]["lr"] = lr
        assert_close(scaled(x), x * lr)


def test_methods_have_versions_per_instance() -> None:
    class Scaler:
        def __init__(self, k: float) -> None:
            self.k = k

        @weft.compile
        def run(self, x: weft.Tensor) -> weft.Tensor:
            return x * self.k

    a, b = Scaler(2.0), Scaler(3.0)
    for _ in range(2):
        assert_close(a.run(weft.ones(2)), weft.full((2,), 2.0))
        assert_close(b.run(weft.ones(2)), weft.full((2,), 3.0))
    assert len(a.run.entries) == 1


def test_options() -> None:
    assert weft.compile(nn.functional.relu, backend="eager")(weft.tensor([-1.0])).item() == 0
    with pytest.raises(RuntimeError, match="Invalid backend"):
        weft.compile(lambda x: x, backend="nothing")
    with pytest.raises(RuntimeError, match="Unrecognized mode"):
        weft.compile(lambda x: x, mode="nothing")

    @weft.compile(dynamic=True, mode="reduce-overhead")
    def f(x: weft.Tensor, n: int) -> weft.Tensor:
        return x * n

    for n in range(4):
        assert_close(f(weft.ones(2), n), weft.ones(2) * n)
    assert len(f.entries) == 1
    assert weft.compile(f) is f


def test_looking_inside() -> None:
    f = weft.compile(lambda x: (x * 2).tanh().sum())
    with pytest.raises(RuntimeError, match="not called yet"):
        _ = f.graph
    f(weft.ones(4))
    assert [op.prim.name for op in f.graph.ops][-1] == "sum"
    assert f.stages()[0][0] and len(f.kernels()) == 1
    assert "define" in f.llvm() and len(f.asm()) > 100
    assert f.kernels(weft.ones(5, 5))[0].bytes_moved >= 100
    assert "shape (5, 5)" not in str(f.stages()[0]) and len(f.entries) == 2


def test_disabled_functions_and_is_compiling() -> None:
    seen = []

    @weft.capture.disable
    def eager(x: weft.Tensor) -> weft.Tensor:
        seen.append(weft.capture.is_compiling())
        return x + 1

    f = weft.compile(lambda x: eager(x * 2) * 3)
    for _ in range(3):
        assert_close(f(weft.ones(2)), weft.full((2,), 9.0))
    assert seen == [False] * 3


def test_the_default_dtype_is_guarded() -> None:
    f = weft.compile(lambda: weft.ones(2) * 1.5)
    assert f().dtype is weft.float32
    weft.set_default_dtype(weft.float64)
    try:
        assert f().dtype is weft.float64
    finally:
        weft.set_default_dtype(weft.float32)
    assert f().dtype is weft.float32 and len(f.entries) == 2
    assert f.recompiles == ["the default dtype changed from weft.float32"]


def test_modes_change_versions() -> None:
    f = weft.compile(lambda x: x * 2)
    x = weft.ones(2, requires_grad=True)
    assert f(x).requires_grad
    with weft.no_grad():
        assert not f(x).requires_grad
    with weft.inference_mode():
        assert f(x).is_inference()
    assert len(f.entries) == 3 and f.recompiles[0] == "grad mode changed from on"


def test_copies_of_compiled_modules_and_methods() -> None:
    class Net2(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        @weft.compile
        def forward(self, x: weft.Tensor) -> weft.Tensor:
            return self.layer(x)

    x = weft.ones(1, 2)
    model = Net2()
    first = model(x)
    for original in (model, weft.compile(nn.Linear(2, 2))):
        first = original(x)
        other = copy.deepcopy(original)
        with weft.no_grad():
            for p in other.parameters():
                p.zero_()
        assert_close(other(x), weft.zeros(1, 2))
        assert_close(original(x), first)


def test_recursion_through_the_compiled_name() -> None:
    @weft.compile(fullgraph=True)
    def power(x: weft.Tensor, n: int) -> weft.Tensor:
        return x if n == 0 else power(x * 2, n - 1)

    assert_close(power(weft.ones(2), 4), weft.full((2,), 16.0))
    assert len(power.entries) == 1


def test_seeding_inside() -> None:
    def f(x: weft.Tensor) -> weft.Tensor:
        weft.manual_seed(3)
        return x + weft.rand(2)

    g = weft.compile(f, fullgraph=True)
    want = f(weft.zeros(2))
    for _ in range(2):
        assert_close(g(weft.zeros(2)), want)


def test_the_base_of_a_written_view_gets_its_history_once() -> None:
    def fn(a: weft.Tensor, b: weft.Tensor, read_again: bool) -> weft.Tensor:
        v = a**2
        a.mul_(b)
        return v + a + b if read_again else v + b

    compiled = weft.compile(fn)
    for read_again, value, slope in ((True, 3.25, 1.5), (False, 2.25, 1.0)):
        for call in (fn, compiled, compiled):
            base = weft.tensor([0.5])
            a = base.reshape(())
            b = weft.tensor(2.0, requires_grad=True)
            out = call(a, b, read_again)
            out.backward(retain_graph=True)
            assert (out.item(), b.grad.item(), a.item()) == (value, slope, 1.0)
            assert (a.requires_grad, base.requires_grad) == (True, True)
            assert not a.is_leaf and not base.is_leaf
            b.grad = None
            (3 * base).sum().backward()
            assert b.grad.item() == 1.5
    assert not compiled.breaks


def test_a_write_into_an_expanded_input_says_what_to_do() -> None:
    @weft.compile
    def fn(x: weft.Tensor) -> weft.Tensor:
        x[2].mul_(2)
        return x

    with pytest.raises(RuntimeError, match=r"single memory location. Please clone\(\) the tensor"):
        fn(weft.ones(7, 3)[None].expand(3, 7, 3))


class Shy:
    """Counts how often it is printed."""

    def __init__(self) -> None:
        self.scale, self.printed = 2.0, 0

    def __repr__(self) -> str:
        self.printed += 1
        return "Shy()"


def test_guards_are_put_into_words_only_when_asked_for() -> None:
    shy = Shy()
    f = weft.compile(lambda x: x * shy.scale, fullgraph=True)
    assert f(weft.ones(2)).tolist() == [2.0, 2.0]
    assert shy.printed == 0
    assert any("shy" in line for line in f.guards()) and shy.printed > 0
