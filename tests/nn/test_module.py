"""Module: attributes, walking, state dicts, hooks, printing."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from typing import Any

import pytest
import weft
from weft import nn
from weft.capture.state import EPOCH


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(4, 2, bias=False))
        self.register_buffer("scale", weft.ones(2))
        self.register_buffer("scratch", weft.zeros(1), persistent=False)

    def forward(self, x: weft.Tensor) -> weft.Tensor:
        return self.rest(self.first(x)) * self.scale


def test_names_of_everything() -> None:
    net = Net()
    assert [n for n, _ in net.named_parameters()] == ["first.weight", "first.bias", "rest.1.weight"]
    assert [n for n, _ in net.named_buffers()] == ["scale", "scratch"]
    assert [n for n, _ in net.named_modules()] == ["", "first", "rest", "rest.0", "rest.1"]
    assert [n for n, _ in net.named_children()] == ["first", "rest"]
    assert [n for n, _ in net.named_parameters(prefix="net", recurse=False)] == []
    assert list(net.state_dict()) == ["scale", "first.weight", "first.bias", "rest.1.weight"]
    assert net.get_submodule("rest.1") is net.rest[1]
    assert net.get_parameter("first.bias") is net.first.bias and net.get_buffer("scale") is net.scale
    with pytest.raises(AttributeError, match=r"has no attribute `nope`"):
        net.get_submodule("rest.nope")


def test_tied_weights_are_one_parameter() -> None:
    net = Net()
    net.tied = nn.Linear(4, 2, bias=False)
    net.tied.weight = net.rest[1].weight
    assert len(list(net.parameters())) == 3
    assert [n for n, _ in net.named_parameters(remove_duplicate=False)][-1] == "tied.weight"
    assert "tied.weight" in net.state_dict()
    again = copy.deepcopy(net)
    assert again.tied.weight is again.rest[1].weight and again.tied.weight is not net.tied.weight


def test_an_attribute_is_one_thing_at_a_time() -> None:
    m = nn.Module()
    m.x = 3
    m.x = nn.Parameter(weft.zeros(2))
    assert "x" not in m.__dict__ and isinstance(m.x, nn.Parameter)
    m.x = None
    assert m.x is None and "x" in m._parameters
    with pytest.raises(TypeError, match=r"cannot assign 'weft.tensor.Tensor' as parameter 'x'"):
        m.x = weft.zeros(2)
    del m.x
    with pytest.raises(AttributeError, match=r"'Module' object has no attribute 'x'"):
        _ = m.x
    m.x = nn.ReLU()
    assert m.x is m._modules["x"]
    with pytest.raises(TypeError, match=r"cannot assign 'int' as child module 'x'"):
        m.x = 1
    m.register_buffer("b", weft.zeros(1))
    m.b = weft.ones(1)
    assert m._buffers["b"].item() == 1
    with pytest.raises(TypeError, match=r"cannot assign 'str' as buffer 'b'"):
        m.b = "no"


def test_registering_with_bad_names_and_values() -> None:
    m = nn.Module()
    m.plain = 1
    with pytest.raises(KeyError, match=r"attribute 'plain' already exists"):
        m.register_parameter("plain", nn.Parameter(weft.zeros(1)))
    with pytest.raises(KeyError, match=r"name can.+t contain"):
        m.register_buffer("a.b", weft.zeros(1))
    with pytest.raises(KeyError, match=r"name can.+t be empty"):
        m.add_module("", nn.ReLU())
    with pytest.raises(TypeError, match=r"weft.nn.Parameter or None required"):
        m.register_parameter("w", weft.zeros(1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"is not a Module subclass"):
        m.add_module("c", 3)  # type: ignore[arg-type]

    class Forgetful(nn.Module):
        def __init__(self) -> None:
            self.w = nn.Parameter(weft.zeros(1))

    with pytest.raises(AttributeError, match=r"cannot assign parameters before Module.__init__"):
        Forgetful()


def test_forward_is_required() -> None:
    with pytest.raises(NotImplementedError, match='missing the required "forward" function'):
        nn.Module()(1)


def test_loading_a_state_dict() -> None:
    a, b = Net(), Net()
    result = b.load_state_dict(a.state_dict())
    assert str(result) == "<All keys matched successfully>"
    x = weft.randn(5, 3)
    assert weft.equal(a(x), b(x))
    assert all(p is not q for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_loading_says_everything_that_is_wrong() -> None:
    net = Net()
    state = net.state_dict()
    del state["first.bias"]
    state["extra"] = weft.zeros(1)
    state["rest.7.weight"] = weft.zeros(1)
    state["first.weight"] = weft.zeros(2, 2)
    with pytest.raises(RuntimeError) as error:
        net.load_state_dict(state)
    text = str(error.value)
    assert text.startswith(
        'Error(s) in loading state_dict for Net:\n\tMissing key(s) in state_dict: "first.bias". '
    )
    assert 'Unexpected key(s) in state_dict: "extra", "rest.7.weight". ' in text
    assert "size mismatch for first.weight: copying a param with shape" in text
    state.pop("first.weight")
    result = net.load_state_dict(state, strict=False)
    assert result.missing_keys == ["first.weight", "first.bias"]
    assert result.unexpected_keys == ["extra", "rest.7.weight"]
    with pytest.raises(TypeError, match=r"Expected state_dict to be dict-like"):
        net.load_state_dict([])  # type: ignore[arg-type]


def test_loading_keeps_history_out_and_identity_in() -> None:
    net = Net()
    before = net.first.weight
    net.load_state_dict({k: v + 1 for k, v in net.state_dict().items()})
    assert net.first.weight is before and before.is_leaf and before.requires_grad
    other = OrderedDict((k, v.clone()) for k, v in net.state_dict().items())
    net.load_state_dict(other, assign=True)
    assert net.first.weight is not before and isinstance(net.first.weight, nn.Parameter)


def test_state_dicts_share_memory_and_keep_vars() -> None:
    net = Net()
    state = net.state_dict()
    state["scale"].fill_(5.0)
    assert net.scale.tolist() == [5.0, 5.0]
    assert not state["first.weight"].requires_grad
    assert net.state_dict(keep_vars=True)["first.weight"] is net.first.weight
    assert list(net.first.state_dict(prefix="p.")) == ["p.weight", "p.bias"]


def test_extra_state_travels() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n = 0

        def get_extra_state(self) -> Any:
            return {"n": self.n}

        def set_extra_state(self, state: Any) -> None:
            self.n = state["n"]

    a, b = nn.Sequential(Counter()), nn.Sequential(Counter())
    a[0].n = 4
    assert list(a.state_dict()) == ["0._extra_state"]
    b.load_state_dict(a.state_dict())
    assert b[0].n == 4


def test_casting_keeps_parameters() -> None:
    net = Net()
    net.register_buffer("count", weft.tensor(0))
    w = net.first.weight
    net(weft.randn(2, 3)).sum().backward()
    assert net.double() is net
    assert net.first.weight is w and w.dtype is weft.float64 and w.grad.dtype is weft.float64
    assert net.count.dtype is weft.int64
    assert net.to(weft.float16).scale.dtype is weft.float16
    assert net.to(dtype=weft.float32).half().float().bfloat16().scale.dtype is weft.bfloat16
    with pytest.raises(TypeError, match=r"only accepts floating point or complex dtypes"):
        net.to(weft.int32)


def test_modes_and_gradients() -> None:
    net = Net()
    net.eval()
    assert not any(m.training for m in net.modules())
    net.train()
    assert all(m.training for m in net.modules())
    with pytest.raises(ValueError, match=r"expected to be boolean"):
        net.train(1)  # type: ignore[arg-type]
    net(weft.randn(2, 3)).sum().backward()
    net.zero_grad(set_to_none=False)
    assert net.first.weight.grad.abs().sum().item() == 0
    net.zero_grad()
    assert net.first.weight.grad is None
    net.requires_grad_(False)
    assert not any(p.requires_grad for p in net.parameters())


def test_apply_visits_children_first() -> None:
    seen: list[str] = []
    Net().apply(lambda m: seen.append(type(m).__name__))
    assert seen == ["Linear", "ReLU", "Linear", "Sequential", "Net"]


def test_changes_move_the_epoch() -> None:
    net = Net()
    for change in (
        net.eval,
        lambda: setattr(net, "flag", 1),
        lambda: delattr(net, "flag"),
        lambda: net.register_buffer("late", None),
        lambda: net.register_forward_hook(lambda *a: None),
        net.double,
        lambda: net.load_state_dict(net.state_dict()),
    ):
        before = EPOCH[0]
        change()
        assert EPOCH[0] > before


def test_forward_hooks() -> None:
    m, seen = nn.Linear(2, 2), []
    h1 = m.register_forward_pre_hook(lambda mod, args: (args[0] * 2,))
    h2 = m.register_forward_hook(lambda mod, args, out: seen.append("second") or out + 1)
    with m.register_forward_hook(lambda mod, args, out: seen.append("first"), prepend=True):
        x = weft.ones(1, 2)
        got = m(x)
    assert seen == ["first", "second"]
    assert weft.allclose(got, m.forward(x * 2) + 1)
    h1.remove()
    h2.remove()
    assert weft.equal(m(x), m.forward(x))
    m.register_forward_hook(lambda mod, args, kwargs, out: seen.append(kwargs), with_kwargs=True)
    m(input=x)
    assert list(seen[-1]) == ["input"]


def test_a_hook_that_is_always_called() -> None:
    class Fails(nn.Module):
        def forward(self, x: Any) -> Any:
            raise RuntimeError("no")

    m, seen = Fails(), []
    m.register_forward_hook(lambda *a: seen.append("skipped"))
    m.register_forward_hook(lambda *a: seen.append("called"), always_call=True)
    with pytest.raises(RuntimeError, match=r"no"):
        m(1)
    assert seen == ["called"]


def test_backward_hooks_see_and_replace_gradients() -> None:
    m, seen = nn.Linear(2, 1, bias=False), []
    m.register_full_backward_pre_hook(lambda mod, g: (g[0] * 2,))
    m.register_full_backward_hook(
        lambda mod, gi, go: seen.append((gi[0].clone(), go[0].clone())) or (gi[0] * 10,)
    )
    x = weft.ones(3, 2, requires_grad=True)
    m(x).sum().backward()
    grad_input, grad_output = seen[0]
    assert grad_output.tolist() == [[2.0]] * 3
    assert weft.allclose(grad_input, m.weight.detach().expand(3, 2) * 2)
    assert weft.allclose(x.grad, grad_input * 10)
    assert weft.allclose(m.weight.grad, weft.full((1, 2), 6.0))


def test_backward_hook_without_gradients_of_inputs() -> None:
    m, seen = nn.Linear(2, 1), []
    m.register_full_backward_hook(lambda mod, gi, go: seen.append(gi))
    m(weft.ones(3, 2)).sum().backward()
    assert seen == [(None,)]


def test_printing_as_torch() -> None:
    assert repr(nn.Linear(3, 4)) == "Linear(in_features=3, out_features=4, bias=True)"
    assert repr(Net()) == (
        "Net(\n"
        "  (first): Linear(in_features=3, out_features=4, bias=True)\n"
        "  (rest): Sequential(\n"
        "    (0): ReLU()\n"
        "    (1): Linear(in_features=4, out_features=2, bias=False)\n"
        "  )\n"
        ")"
    )
    assert repr(nn.Parameter(weft.zeros(2))).startswith("Parameter containing:\ntensor([0., 0.]")


def test_pickling_and_copying() -> None:
    net = Net()
    x = weft.randn(2, 3)
    for again in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
        assert weft.equal(again(x), net(x))
        assert isinstance(again.first.weight, nn.Parameter) and again.first.weight is not net.first.weight
        assert list(again.state_dict()) == list(net.state_dict())


def test_parameters() -> None:
    t = weft.zeros(2)
    p = nn.Parameter(t)
    t.fill_(3.0)
    assert p.tolist() == [3.0, 3.0] and p.requires_grad and p.is_leaf
    assert not nn.Parameter(t, requires_grad=False).requires_grad
    assert type(p * 2) is weft.Tensor and isinstance(p, weft.Tensor)
    with pytest.raises(RuntimeError, match=r"floating point and complex"):
        nn.Parameter(weft.tensor([1]))


def test_sequential() -> None:
    a, b, c = nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)
    s = nn.Sequential(OrderedDict([("lin", a), ("act", b)]))
    s.append(c)
    assert s.lin is a and s[-1] is c and len(s) == 3 and list(s) == [a, b, c]
    assert list(s[:2]._modules) == ["lin", "act"]
    del s[1]
    assert list(s) == [a, c]
    s.insert(1, b)
    assert list(s) == [a, b, c] and s.pop() is c
    with pytest.raises(IndexError, match=r"out of range"):
        s[5]


def test_lists_and_dicts_of_modules_and_parameters() -> None:
    items = nn.ModuleList([nn.Linear(1, 1)])
    items += [nn.ReLU()]
    items.insert(0, nn.Tanh())
    items[1] = nn.Identity()
    assert [type(m).__name__ for m in items] == ["Tanh", "Identity", "ReLU"]
    assert len(items[1:]) == 2 and isinstance(items[1:], nn.ModuleList)
    named = nn.ModuleDict({"a": nn.Linear(1, 2)})
    named["b"] = nn.ReLU()
    assert list(named) == ["a", "b"] and "a" in named and len(list(named.parameters())) == 2
    assert isinstance(named.pop("b"), nn.ReLU) and list(named.keys()) == ["a"]
    ps = nn.ParameterList([weft.zeros(2), nn.Parameter(weft.ones(1))])
    ps.append(weft.zeros(3))
    assert [n for n, _ in ps.named_parameters()] == ["0", "1", "2"] and ps[-1].shape == (3,)
    pd = nn.ParameterDict({"w": weft.zeros(2)})
    assert [n for n, _ in pd.named_parameters()] == ["w"] and "w" in pd
