"""Recurrent layers: RNN, LSTM and GRU, and their cells."""

from __future__ import annotations

import math
import warnings
from typing import Any

from weft.creation import empty, zeros
from weft.nn import functional as F
from weft.nn import init
from weft.nn.module import Module
from weft.nn.parameter import Parameter
from weft.nn.utils.rnn import PackedSequence, kept_steps, unpack
from weft.ops.index import index_select
from weft.ops.recurrent import GATES, Weights, cell, layer
from weft.ops.shape import cat, stack
from weft.tensor import Tensor

State = tuple[Tensor, ...]


def _checked(dropout: Any, num_layers: int) -> float:
    fits = isinstance(dropout, (int, float)) and not isinstance(dropout, bool) and 0 <= dropout <= 1
    if not fits:
        raise ValueError("dropout should be a number in range [0, 1] representing the probability of an "
                         "element being zeroed")  # fmt: skip
    if dropout > 0 and num_layers == 1:
        warnings.warn(
            "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects "
            f"num_layers greater than 1, but got dropout={dropout} and num_layers={num_layers}",
            stacklevel=4,
        )
    return float(dropout)


def _check_arguments(module: RNNBase) -> None:
    for name, kind in (("bias", bool), ("batch_first", bool), ("input_size", int), ("hidden_size", int)):
        value = getattr(module, name)
        if not isinstance(value, kind):
            raise TypeError(f"{name} should be of type {kind.__name__}, got: {type(value).__name__}")
    for name in ("input_size", "hidden_size", "num_layers"):
        if getattr(module, name) <= 0:
            raise ValueError(f"{name} must be greater than zero")
    if module.proj_size < 0:
        raise ValueError("proj_size should be a positive integer or zero to disable projections")
    if module.proj_size >= module.hidden_size:
        raise ValueError("proj_size has to be smaller than hidden_size")


class RNNBase(Module):
    """What RNN, LSTM and GRU share.

    Weights of layer k: ``weight_ih_l{k}`` [gates * hidden, inputs], ``weight_hh_l{k}`` [gates * hidden,
    outputs], ``bias_ih_l{k}``, ``bias_hh_l{k}``, and with ``proj_size`` ``weight_hr_l{k}`` [proj_size,
    hidden]; those of the second direction end in ``_reverse``. All are uniform within 1 / sqrt(hidden).
    """

    def __init__(
        self, mode: str, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
        batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, proj_size: int = 0,
        device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if mode not in GATES:
            raise ValueError("Unrecognized RNN mode: " + str(mode))
        self.mode, self.input_size, self.hidden_size = mode, input_size, hidden_size
        self.num_layers, self.bias, self.batch_first = num_layers, bias, batch_first
        self.bidirectional, self.proj_size = bidirectional, proj_size
        self.dropout = _checked(dropout, num_layers)
        _check_arguments(self)
        self._all_weights: list[list[str]] = []
        for k in range(num_layers):
            inputs = input_size if k == 0 else self._outputs * self._directions
            for suffix in ("", "_reverse")[: self._directions]:
                self._add_weights(f"_l{k}{suffix}", inputs, {"device": device, "dtype": dtype})
        self.reset_parameters()

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def _outputs(self) -> int:
        return self.proj_size or self.hidden_size

    def _add_weights(self, suffix: str, inputs: int, kind: dict[str, Any]) -> None:
        n = GATES[self.mode] * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (n, inputs), "weight_hh": (n, self._outputs)}
        if self.bias:
            shapes |= {"bias_ih": (n,), "bias_hh": (n,)}
        if self.proj_size:
            shapes["weight_hr"] = (self.proj_size, self.hidden_size)
        for name, shape in shapes.items():
            setattr(self, name + suffix, Parameter(empty(*shape, **kind)))
        self._all_weights.append([name + suffix for name in shapes])

    @property
    def all_weights(self) -> list[list[Parameter]]:
        """The parameters of each layer and direction."""
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    def flatten_parameters(self) -> None:
        """Nothing to do: weights need not lie in one block here."""

    def reset_parameters(self) -> None:
        bound = 1.0 / math.sqrt(self.hidden_size)
        for p in self.parameters():
            init.uniform_(p, -bound, bound)

    def _weights(self, k: int, direction: int) -> Weights:
        suffix = f"_l{k}" + "_reverse" * direction
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
        found: list[Any] = [getattr(self, name + suffix, None) for name in names]
        return Weights(*found)

    def _state_sizes(self) -> tuple[int, ...]:
        return (self._outputs, self.hidden_size) if self.mode == "LSTM" else (self._outputs,)

    def _initial(self, x: Tensor, batch: int) -> State:
        n = self.num_layers * self._directions
        return tuple(zeros(n, batch, size, dtype=x.dtype, device=x.device) for size in self._state_sizes())

    def _check_input(self, x: Tensor, expected_dim: int) -> None:
        weight = self.weight_ih_l0
        if x.dtype is not weight.dtype:
            raise ValueError(
                f"RNN input dtype ({x.dtype}) does not match weight dtype ({weight.dtype}). "
                f"Convert input: input.to({weight.dtype}), or convert model: model.to({x.dtype})"
            )
        if x.ndim != expected_dim:
            raise RuntimeError(f"input must have {expected_dim} dimensions, got {x.ndim}")
        if x.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {x.shape[-1]}"
            )

    def _check_state(self, state: State, batch: int) -> None:
        for k, (s, size) in enumerate(zip(state, self._state_sizes(), strict=True)):
            expected = (self.num_layers * self._directions, batch, size)
            if tuple(s.shape) != expected:
                what = f"hidden[{k}]" if self.mode == "LSTM" else "hidden"
                raise RuntimeError(f"Expected {what} size {expected}, got {list(s.shape)}")

    def _run(self, x: Tensor, state: State, keep: Tensor | None) -> tuple[Tensor, State]:
        """All layers on ``x`` [time, batch, inputs]."""
        if x.shape[0] == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        last: list[State] = []
        for k in range(self.num_layers):
            if k and self.dropout:
                x = F.dropout(x, self.dropout, self.training)
            outs = []
            for d in range(self._directions):
                start = tuple(s[len(last)] for s in state)
                out, end = layer(self.mode, x, start, self._weights(k, d), d == 1, keep)
                outs.append(out)
                last.append(end)
            x = outs[0] if len(outs) == 1 else cat(outs, -1)
        return x, tuple(stack(parts) for parts in zip(*last, strict=True))

    def _forward_packed(self, packed: PackedSequence, state: State | None) -> tuple[PackedSequence, State]:
        self._check_input(packed.data, 2)
        batch, steps = int(packed.batch_sizes[0]), len(packed.batch_sizes)
        if state is None:
            state = self._initial(packed.data, batch)
        elif packed.sorted_indices is not None:
            state = tuple(index_select(s, 1, packed.sorted_indices) for s in state)
        self._check_state(state, batch)
        keep = kept_steps(packed)
        out, state = self._run(unpack(packed, steps), state, keep)
        data = out.flatten(0, 1)[keep.flatten().nonzero().squeeze(1)]
        if packed.unsorted_indices is not None:
            state = tuple(index_select(s, 1, packed.unsorted_indices) for s in state)
        return PackedSequence(data, *packed[1:]), state

    def _forward_padded(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        if x.ndim not in (2, 3):
            raise ValueError(f"{type(self).__name__}: Expected input to be 2D or 3D, got {x.ndim}D instead")
        batched = x.ndim == 3
        self._check_ranks(state, batched)
        if not batched:
            x = x.unsqueeze(1)
            state = state and tuple(s.unsqueeze(1) for s in state)
        elif self.batch_first:
            x = x.transpose(0, 1)
        self._check_input(x, 3)
        state = self._initial(x, x.shape[1]) if state is None else state
        self._check_state(state, x.shape[1])
        out, state = self._run(x, state, None)
        if not batched:
            return out.squeeze(1), tuple(s.squeeze(1) for s in state)
        return (out.transpose(0, 1) if self.batch_first else out), state

    def _check_ranks(self, state: State | None, batched: bool) -> None:
        n = 3 if batched else 2
        if state is None or all(s.ndim == n for s in state):
            return
        ranks = [f"{s.ndim}-D" for s in state]
        names, got = ("hx and cx", f"({', '.join(ranks)})") if len(state) == 2 else ("hx", ranks[0])
        kind = "batched 3-D" if batched else "unbatched 2-D"
        plural = "tensors" if len(state) == 2 else "tensor"
        raise RuntimeError(f"For {kind} input, {names} should also be {n}-D but got {got} {plural}")

    def _apply_state(self, input: Any, state: State | None) -> tuple[Any, State]:
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, state)
        return self._forward_padded(input, state)

    def forward(self, input: Any, hx: Tensor | None = None) -> tuple[Any, Any]:
        out, state = self._apply_state(input, None if hx is None else (hx,))
        return out, state[0]

    def extra_repr(self) -> str:
        shown = [f"{self.input_size}, {self.hidden_size}"]
        defaults = {"proj_size": 0, "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0,
                    "bidirectional": False}  # fmt: skip
        shown += [f"{k}={getattr(self, k)}" for k, v in defaults.items() if getattr(self, k) != v]
        return ", ".join(shown)


def _check_no_projection(kwargs: dict[str, Any]) -> None:
    if "proj_size" in kwargs:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")


def _mode_of(nonlinearity: str) -> str:
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    return f"RNN_{nonlinearity.upper()}"


class RNN(RNNBase):
    """``h' = tanh(W_ih x + b_ih + W_hh h + b_hh)`` (or relu) over a sequence.

    Input [time, batch, inputs] ([batch, time, inputs] with ``batch_first``, [time, inputs], or a
    PackedSequence), first state [layers * directions, batch, hidden]; gives all outputs and the last state.
    Arguments: input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, dropout, bidirectional.

    >>> import weft
    >>> out, h = RNN(3, 5)(weft.zeros(7, 2, 3))
    >>> out.shape, h.shape
    (weft.Size([7, 2, 5]), weft.Size([1, 2, 5]))
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _check_no_projection(kwargs)
        if len(args) > 3:
            nonlinearity, args = args[3], (*args[:3], *args[4:])
        else:
            nonlinearity = kwargs.pop("nonlinearity", "tanh")
        super().__init__(_mode_of(nonlinearity), *args, **kwargs)
        self.nonlinearity = nonlinearity


class LSTM(RNNBase):
    """Long short-term memory (Hochreiter and Schmidhuber 1997), gates in the order i, f, g, o.

    ``c' = sigmoid(f) c + sigmoid(i) tanh(g)``, ``h' = sigmoid(o) tanh(c')``, where the gates are ``W_ih x +
    b_ih + W_hh h + b_hh``; with ``proj_size`` h is projected. Shapes as for :class:`RNN`, state (h, c).

    >>> import weft
    >>> out, (h, c) = LSTM(3, 5, bidirectional=True)(weft.zeros(7, 2, 3))
    >>> out.shape, c.shape
    (weft.Size([7, 2, 10]), weft.Size([2, 2, 5]))
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("LSTM", *args, **kwargs)

    def forward(self, input: Any, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Any, Any]:
        return self._apply_state(input, None if hx is None else tuple(hx))


class GRU(RNNBase):
    """Gated recurrent unit (Cho et al. 2014), gates in the order r, z, n.

    ``n = tanh(W_in x + b_in + sigmoid(r) (W_hn h + b_hn))``, ``h' = (1 - sigmoid(z)) n + sigmoid(z) h``.
    Shapes as for :class:`RNN`.

    >>> import weft
    >>> GRU(3, 5, num_layers=2, batch_first=True)(weft.zeros(2, 7, 3))[1].shape
    weft.Size([2, 2, 5])
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _check_no_projection(kwargs)
        super().__init__("GRU", *args, **kwargs)


class RNNCellBase(Module):
    """What the cells share: ``weight_ih`` [gates * hidden, inputs], ``weight_hh`` [gates * hidden, hidden]
    and two biases, uniform within 1 / sqrt(hidden)."""

    mode = "RNN_TANH"

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bias
        n, kind = GATES[self.mode] * hidden_size, {"device": device, "dtype": dtype}
        self.weight_ih = Parameter(empty(n, input_size, **kind))
        self.weight_hh = Parameter(empty(n, hidden_size, **kind))
        for name in ("bias_ih", "bias_hh"):
            self.register_parameter(name, Parameter(empty(n, **kind)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = 1.0 / math.sqrt(self.hidden_size) if self.hidden_size > 0 else 0
        for p in self.parameters():
            init.uniform_(p, -bound, bound)

    def _step(self, x: Tensor, state: State | None) -> State:
        name = type(self).__name__
        for what, t in (("input", x), *(("hidden", s) for s in state or ())):
            if t.ndim not in (1, 2):
                raise ValueError(f"{name}: Expected {what} to be 1D or 2D, got {t.ndim}D instead")
        batched = x.ndim == 2
        x = x if batched else x.unsqueeze(0)
        if state is None:
            first = zeros(x.shape[0], self.hidden_size, dtype=x.dtype, device=x.device)
            state = (first,) * (2 if self.mode == "LSTM" else 1)
        elif not batched:
            state = tuple(s.unsqueeze(0) for s in state)
        self._check(x, state)
        new = cell(self.mode, x, state, Weights(self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh))
        return new if batched else tuple(s.squeeze(0) for s in new)

    def _check(self, x: Tensor, state: State) -> None:
        if x.shape[1] != self.input_size:
            raise RuntimeError(
                f"input has inconsistent input_size: got {x.shape[1]} expected {self.input_size}"
            )
        for k, s in enumerate(state):
            if s.shape[0] != x.shape[0]:
                raise RuntimeError(
                    f"Input batch size {x.shape[0]} doesn't match hidden{k} batch size {s.shape[0]}"
                )
            if s.shape[1] != self.hidden_size:
                raise RuntimeError(
                    f"hidden{k} has inconsistent hidden_size: got {s.shape[1]}, expected {self.hidden_size}"
                )

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Any:
        return self._step(input, None if hx is None else (hx,))[0]

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}" + ("" if self.bias else f", bias={self.bias}")


class RNNCell(RNNCellBase):
    """One step of :class:`RNN`: [batch, inputs] (or [inputs]) and the state -> the new state.

    >>> import weft
    >>> RNNCell(3, 5)(weft.zeros(2, 3)).shape
    weft.Size([2, 5])
    """

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, nonlinearity: str = "tanh",
        device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        self.__dict__["mode"] = _mode_of(nonlinearity)
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self.mode, self.nonlinearity = _mode_of(nonlinearity), nonlinearity

    def extra_repr(self) -> str:
        extra = "" if self.nonlinearity == "tanh" else f", nonlinearity={self.nonlinearity}"
        return super().extra_repr() + extra


class LSTMCell(RNNCellBase):
    """One step of :class:`LSTM`: [batch, inputs] (or [inputs]) and (h, c) -> the new (h, c).

    >>> import weft
    >>> h, c = LSTMCell(3, 5)(weft.zeros(2, 3))
    >>> c.shape
    weft.Size([2, 5])
    """

    mode = "LSTM"

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        h, c = self._step(input, None if hx is None else tuple(hx))
        return h, c


class GRUCell(RNNCellBase):
    """One step of :class:`GRU`: [batch, inputs] (or [inputs]) and the state -> the new state.

    >>> import weft
    >>> GRUCell(3, 5)(weft.zeros(3)).shape
    weft.Size([5])
    """

    mode = "GRU"
