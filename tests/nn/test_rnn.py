"""Recurrent layers against loops in float64, compiled against eager, gradients, packed sequences, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import weft
from weft import nn
from weft.autograd import gradcheck
from weft.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
    pad_sequence,
    unpack_sequence,
    unpad_sequence,
)

Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def seed() -> None:
    weft.manual_seed(0)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def lstm_step(gx: Array, gh: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
    i, f, g, o = np.split(gx + gh, 4, -1)
    c = sigmoid(f) * state[1] + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def gru_step(gx: Array, gh: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
    (r, z, n), (hr, hz, hn) = np.split(gx, 3, -1), np.split(gh, 3, -1)
    z = sigmoid(z + hz)
    return ((1 - z) * np.tanh(n + sigmoid(r + hr) * hn) + z * state[0],)


STEPS: dict[str, Callable[..., tuple[Array, ...]]] = {
    "LSTM": lstm_step,
    "GRU": gru_step,
    "RNN_TANH": lambda gx, gh, state: (np.tanh(gx + gh),),
    "RNN_RELU": lambda gx, gh, state: (np.maximum(gx + gh, 0),),
}


def loop(module: Any, x: Array, state: list[Array], lengths: list[int] | None = None) -> Any:
    """All layers of ``module`` on x [time, batch, inputs] in float64: outputs and last state."""
    weights = {k: v.numpy().astype(np.float64) for k, v in module.state_dict().items()}
    lengths = lengths or [len(x)] * x.shape[1]
    last: list[tuple[Array, ...]] = []
    for k in range(module.num_layers):
        outs = []
        for suffix in (f"_l{k}", f"_l{k}_reverse")[: 2 if module.bidirectional else 1]:
            now = [s[len(last)].astype(np.float64) for s in state]
            out = np.zeros((len(x), x.shape[1], now[0].shape[1]))
            order = range(len(x))[::-1] if suffix.endswith("reverse") else range(len(x))
            for t in order:
                gx = x[t] @ weights["weight_ih" + suffix].T + weights.get("bias_ih" + suffix, 0)
                gh = now[0] @ weights["weight_hh" + suffix].T + weights.get("bias_hh" + suffix, 0)
                new = list(STEPS[module.mode](gx, gh, tuple(now)))
                if "weight_hr" + suffix in weights:
                    new[0] = new[0] @ weights["weight_hr" + suffix].T
                keep = (t < np.array(lengths))[:, None]
                now = [np.where(keep, a, b) for a, b in zip(new, now, strict=True)]
                out[t] = now[0]
            outs.append(out)
            last.append(tuple(now))
        x = np.concatenate(outs, -1)
    return x, [np.stack(parts) for parts in zip(*last, strict=True)]


MODULES: dict[str, Callable[[], Any]] = {
    "lstm": lambda: nn.LSTM(3, 5),
    "lstm projected": lambda: nn.LSTM(3, 5, 2, proj_size=2, bidirectional=True),
    "lstm without bias": lambda: nn.LSTM(3, 5, bias=False),
    "gru": lambda: nn.GRU(3, 5),
    "gru deep": lambda: nn.GRU(3, 5, 2, bidirectional=True),
    "gru without bias": lambda: nn.GRU(3, 4, bias=False),
    "rnn": lambda: nn.RNN(3, 5, bidirectional=True),
    "rnn relu": lambda: nn.RNN(3, 5, nonlinearity="relu"),
}


def states(module: Any, batch: int, dtype: Any = None) -> list[weft.Tensor]:
    n = module.num_layers * (2 if module.bidirectional else 1)
    sizes = [module.proj_size or module.hidden_size] + [module.hidden_size] * (module.mode == "LSTM")
    return [weft.randn(n, batch, size, dtype=dtype) for size in sizes]


def given(module: Any, state: list[weft.Tensor]) -> Any:
    return tuple(state) if module.mode == "LSTM" else state[0]


def flat(state: Any) -> list[weft.Tensor]:
    return list(state) if isinstance(state, tuple) else [state]


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("compiled", [False, True])
def test_against_a_loop(name: str, compiled: bool) -> None:
    module = MODULES[name]()
    x, state = weft.randn(7, 4, 3), states(module, 4)
    run = weft.compile(module, fullgraph=True) if compiled else module
    out, last = run(x, given(module, state))
    want, want_last = loop(module, x.numpy(), [s.numpy() for s in state])
    np.testing.assert_allclose(out.detach().numpy(), want, rtol=2e-6, atol=2e-6)
    for a, b in zip(flat(last), want_last, strict=True):
        np.testing.assert_allclose(a.detach().numpy(), b, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", MODULES)
def test_gradients(name: str) -> None:
    module = MODULES[name]().double()
    x = weft.randn(3, 2, 3, dtype=weft.float64, requires_grad=True)
    state = [s.requires_grad_() for s in states(module, 2, weft.float64)]
    weights = list(module.parameters())

    def run(x: weft.Tensor, *rest: weft.Tensor) -> Any:
        out, last = module(x, given(module, list(rest[: len(state)])))
        return out, *flat(last)

    assert gradcheck(run, (x, *state, *weights))


@pytest.mark.parametrize("name", MODULES)
def test_compiled_training_equals_eager(name: str) -> None:
    module = MODULES[name]()
    x = weft.randn(5, 3, 3)

    def gradients(x: weft.Tensor) -> Any:
        out, last = module(x)
        loss = (out * out).sum() + sum(s.sum() for s in flat(last))
        return weft.autograd.grad(loss, list(module.parameters()))

    for a, b in zip(gradients(x), weft.compile(gradients, fullgraph=True)(x), strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-5)


def test_weights_gradients_are_made_after_the_loop() -> None:
    """The scan backward carries no sum of the size of the weights."""
    module = nn.LSTM(32, 32)

    @weft.compile
    def gradients(x: weft.Tensor) -> Any:
        return weft.autograd.grad(module(x)[0].sum(), list(module.parameters()))

    gradients(weft.randn(6, 2, 32))
    scans = [op for op in gradients.graph.ops if op.prim.name == "scan"]
    backward = [op for op in scans if op.attrs["reverse"]]
    assert len(backward) == 1
    carried = backward[0].results[: backward[0].attrs["n_carry"]]
    assert {r.type.shape for r in carried} == {(2, 32)}


def test_a_layer_is_a_product_and_a_scan() -> None:
    module = nn.LSTM(8, 16)
    run = weft.compile(lambda x: module(x)[0])
    with weft.no_grad():
        run(weft.randn(5, 4, 8))
    # the inputs of all steps; the transposed weights; and a step's recurrent product with the gates
    assert sorted(k.form for k in run.kernels()) == ["contract", "contract", "loop"]


@pytest.mark.parametrize("make", [lambda: nn.LSTM(3, 4), lambda: nn.GRU(3, 4), lambda: nn.RNN(3, 4)])
def test_layouts_and_unbatched(make: Callable[[], Any]) -> None:
    module = make()
    x = weft.randn(6, 2, 3)
    out, _ = module(x)
    twin = type(module)(3, 4, batch_first=True)
    twin.load_state_dict(module.state_dict())
    np.testing.assert_array_equal(twin(x.transpose(0, 1))[0].transpose(0, 1).detach(), out.detach())
    single, state = module(x[:, 0])
    np.testing.assert_allclose(single.detach(), out[:, 0].detach(), rtol=1e-6, atol=1e-6)
    assert flat(state)[0].shape == (1, 4)


@pytest.mark.parametrize("cell,module", [(nn.LSTMCell, nn.LSTM), (nn.GRUCell, nn.GRU), (nn.RNNCell, nn.RNN)])
def test_cells_are_one_step(cell: Any, module: Any) -> None:
    a, b = cell(3, 4), module(3, 4)
    b.load_state_dict({f"{k}_l0": v for k, v in a.state_dict().items()})
    x, state = weft.randn(2, 3), states(b, 2)
    inner = [s[0] for s in state]
    got = flat(a(x, given(b, inner)))
    want = flat(b(x.unsqueeze(0), given(b, state))[1])
    for g, w in zip(got, want, strict=True):
        np.testing.assert_array_equal(g.detach(), w[0].detach())
    assert flat(a(x[0]))[0].shape == (4,)


def test_dropout_acts_between_layers_in_training_only() -> None:
    module = nn.GRU(3, 16, 2, dropout=0.5)
    x = weft.randn(4, 2, 3)
    assert not weft.equal(module(x)[0], module(x)[0])
    module.eval()
    assert weft.equal(module(x)[0], module(x)[0])
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
        nn.GRU(3, 4, dropout=0.5)


def test_pad_and_pack() -> None:
    rows = [weft.arange(n * 2.0).reshape(n, 2) + n for n in (2, 4, 1)]
    padded = pad_sequence(rows, batch_first=True, padding_value=-1)
    assert padded.shape == (3, 4, 2) and padded[2, 1:].tolist() == [[-1.0, -1.0]] * 3
    assert pad_sequence(rows, padding_side="left")[0, 2].tolist() == [0.0, 0.0]
    packed = pack_sequence(rows, enforce_sorted=False)
    assert packed.batch_sizes.tolist() == [3, 2, 1, 1]
    assert packed.sorted_indices.tolist() == [1, 0, 2] and packed.unsorted_indices.tolist() == [1, 0, 2]
    again, lengths = pad_packed_sequence(packed, batch_first=True, padding_value=-1)
    assert lengths.tolist() == [2, 4, 1]
    assert weft.equal(again, padded)
    for a, b in zip(unpack_sequence(packed), rows, strict=True):
        assert weft.equal(a, b)
    assert [len(r) for r in unpad_sequence(padded, lengths, batch_first=True)] == [2, 4, 1]
    assert pad_packed_sequence(packed, total_length=6)[0].shape == (6, 3, 2)


@pytest.mark.parametrize("name", ["lstm", "gru deep", "rnn", "lstm projected"])
def test_packed_sequences(name: str) -> None:
    module, lengths = MODULES[name](), [2, 5, 3]
    x, state = weft.randn(5, 3, 3), states(module, 3)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    out, last = module(packed, given(module, state))
    assert isinstance(out, PackedSequence)
    want, want_last = loop(module, x.numpy(), [s.numpy() for s in state], lengths)
    got, found = pad_packed_sequence(out)
    assert found.tolist() == lengths
    for b, n in enumerate(lengths):
        np.testing.assert_allclose(got[:n, b].detach().numpy(), want[:n, b], rtol=2e-6, atol=2e-6)
        assert not got[n:, b].any()
    for a, b in zip(flat(last), want_last, strict=True):
        np.testing.assert_allclose(a.detach().numpy(), b, rtol=2e-6, atol=2e-6)


def test_a_packed_batch_has_gradients() -> None:
    module = nn.LSTM(3, 4).double()
    x = weft.randn(4, 2, 3, dtype=weft.float64, requires_grad=True)

    def run(x: weft.Tensor) -> weft.Tensor:
        return module(pack_padded_sequence(x, [4, 2]))[0].data

    assert gradcheck(run, (x,))


ERRORS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: nn.LSTM(3, 4)(weft.zeros(2, 3, 5)), RuntimeError,
     "input.size(-1) must be equal to input_size. Expected 3, got 5"),
    (lambda: nn.LSTM(3, 4)(weft.zeros(2, 2, 3, 3)), ValueError,
     "LSTM: Expected input to be 2D or 3D, got 4D instead"),
    (lambda: nn.GRU(3, 4)(weft.zeros(2, 3, 3).double()), ValueError, "RNN input dtype"),
    (lambda: nn.GRU(3, 4)(weft.zeros(2, 3, 3), weft.zeros(1, 2, 4)), RuntimeError,
     "Expected hidden size (1, 3, 4), got [1, 2, 4]"),
    (lambda: nn.LSTM(3, 4)(weft.zeros(2, 3, 3), (weft.zeros(1, 3, 4), weft.zeros(1, 3, 5))), RuntimeError,
     "Expected hidden[1] size (1, 3, 4), got [1, 3, 5]"),
    (lambda: nn.GRU(3, 4)(weft.zeros(2, 3, 3), weft.zeros(3, 4)), RuntimeError,
     "For batched 3-D input, hx should also be 3-D but got 2-D tensor"),
    (lambda: nn.LSTM(3, 4)(weft.zeros(0, 3, 3)), RuntimeError,
     "Expected sequence length to be larger than 0 in RNN"),
    (lambda: nn.LSTM(3, 4, dropout=2), ValueError, "dropout should be a number in range [0, 1]"),
    (lambda: nn.LSTM(3, 4, proj_size=4), ValueError, "proj_size has to be smaller than hidden_size"),
    (lambda: nn.GRU(3, 4, proj_size=2), ValueError, "proj_size argument is only supported for LSTM"),
    (lambda: nn.RNN(3, 4, nonlinearity="gelu"), ValueError, "Unknown nonlinearity 'gelu'"),
    (lambda: nn.LSTM(0, 4), ValueError, "input_size must be greater than zero"),
    (lambda: nn.LSTM(3, 4, bias=1), TypeError, "bias should be of type bool, got: int"),
    (lambda: nn.LSTMCell(3, 4)(weft.zeros(2, 4)), RuntimeError,
     "input has inconsistent input_size: got 4 expected 3"),
    (lambda: nn.GRUCell(3, 4)(weft.zeros(2, 3), weft.zeros(3, 4)), RuntimeError,
     "Input batch size 2 doesn't match hidden0 batch size 3"),
    (lambda: nn.GRUCell(3, 4)(weft.zeros(2, 3), weft.zeros(2, 5)), RuntimeError,
     "hidden0 has inconsistent hidden_size: got 5, expected 4"),
    (lambda: pack_padded_sequence(weft.zeros(4, 2, 3), [2, 4]), RuntimeError,
     "must be sorted in decreasing order"),
    (lambda: pack_padded_sequence(weft.zeros(4, 2, 3), [4, 0]), RuntimeError, "has to be greater than 0"),
    (lambda: pack_padded_sequence(weft.zeros(4, 2, 3), [4]), RuntimeError, "equal to batch_size"),
    (lambda: pack_padded_sequence(weft.zeros(4, 2, 3), [5, 1]), RuntimeError, "exceeds dimension size (4)"),
    (lambda: pad_packed_sequence(pack_sequence([weft.zeros(3)]), total_length=2), ValueError,
     "Expected total_length to be at least the length"),
    (lambda: pad_sequence(3), RuntimeError, "Expected iterable for input sequences"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(ERRORS)))
def test_errors(number: int) -> None:
    run, kind, message = ERRORS[number]
    with pytest.raises(kind) as caught:
        run()
    assert message in str(caught.value)
