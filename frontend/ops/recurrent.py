"""Recurrent layers as scans: the products with the inputs are done for all steps at once, before the loop.

A cell is a step graph in primitives, made once for its sizes: the scan runs it natively, and its gradient is
a scan in the other direction. The recurrent weights go in transposed: a step reads their rows as they lie.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from weft.casting import lower
from weft.composite import composite
from weft.dispatch import apply
from weft.ir import prims as P
from weft.ir.graph import Graph, GraphBuilder, Value
from weft.ir.prims.base import GraphInterpreter, interpreting
from weft.ir.types import Device, DType, TensorType, bool_
from weft.ops.common import shape_of
from weft.ops.layers import linear
from weft.tensor import Tensor

GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}


class Weights(NamedTuple):
    """One layer in one direction: [gates * hidden, inputs], [gates * hidden, outputs], two biases [gates *
    hidden] or None, and the projection [outputs, hidden] or None."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None = None
    b_hh: Tensor | None = None
    w_hr: Tensor | None = None


class _Step(NamedTuple):
    """What a step graph is made for."""

    mode: str
    batch: int
    hidden: int
    outputs: int
    dtype: DType
    device: Device
    masked: bool
    recurrent_bias: bool
    projected: bool


def _full(like: Value, value: float) -> Value:
    t = like.type
    return P.full_p.bind(shape=t.shape, dtype=t.dtype, value=value, device=t.device)


def _sigmoid(x: Value) -> Value:
    """By tanh: one table of coefficients for all gates, and a gradient that cannot overflow."""
    half = _full(x, 0.5)
    return half * P.tanh_p.bind(half * x) + half


def _chunks(x: Value, n: int) -> list[Value]:
    rows, columns = x.type.shape
    size = columns // n
    return [
        P.slice_p.bind(x, start=(0, k * size), stop=(rows, (k + 1) * size), step=(1, 1)) for k in range(n)
    ]


def _product(x: Value, w: Value) -> Value:
    return P.dot_general_p.bind(x, w, contract=((1,), (0,)), batch=((), ()))


def _lstm(gates: Value, recurrent: Value, carry: list[Value]) -> list[Value]:
    i, f, g, o = _chunks(gates + recurrent, 4)
    c = _sigmoid(f) * carry[1] + _sigmoid(i) * P.tanh_p.bind(g)
    return [_sigmoid(o) * P.tanh_p.bind(c), c]


def _gru(gates: Value, recurrent: Value, carry: list[Value]) -> list[Value]:
    (r, z, n), (hr, hz, hn) = _chunks(gates, 3), _chunks(recurrent, 3)
    update = _sigmoid(z + hz)
    new = P.tanh_p.bind(n + _sigmoid(r + hr) * hn)
    return [new + update * (carry[0] - new)]


def _rnn_tanh(gates: Value, recurrent: Value, carry: list[Value]) -> list[Value]:
    return [P.tanh_p.bind(gates + recurrent)]


def _rnn_relu(gates: Value, recurrent: Value, carry: list[Value]) -> list[Value]:
    x = gates + recurrent
    return [P.maximum_p.bind(x, _full(x, 0.0))]


_CELLS: dict[str, Callable[[Value, Value, list[Value]], list[Value]]] = {
    "LSTM": _lstm, "GRU": _gru, "RNN_TANH": _rnn_tanh, "RNN_RELU": _rnn_relu,
}  # fmt: skip


@lru_cache(maxsize=256)
def _step_graph(s: _Step) -> Graph:
    """``(w_hh', [b_hh], [w_hr'], h, [c], gates, [keep]) -> (h, [c], h)``; where ``keep`` is false a row's
    state stays as it is."""
    b = GraphBuilder(f"{s.mode.lower()}_step")

    def param(*shape: int, dtype: DType = s.dtype) -> Value:
        return b.param(TensorType(shape, dtype, s.device))

    n = GATES[s.mode] * s.hidden
    w_hh = param(s.outputs, n)
    b_hh = param(n) if s.recurrent_bias else None
    w_hr = param(s.hidden, s.outputs) if s.projected else None
    carry = [param(s.batch, s.outputs)]
    if s.mode == "LSTM":
        carry.append(param(s.batch, s.hidden))
    gates = param(s.batch, n)
    keep = param(s.batch, dtype=bool_) if s.masked else None
    with interpreting(GraphInterpreter(b)):
        recurrent = _product(carry[0], w_hh)
        if b_hh is not None:
            recurrent = recurrent + P.broadcast_p.bind(b_hh, shape=(s.batch, n), axes=(1,))
        new = _CELLS[s.mode](gates, recurrent, carry)
        if w_hr is not None:
            new[0] = _product(new[0], w_hr)
        if keep is not None:
            new = [_where(keep, x, old) for x, old in zip(new, carry, strict=True)]
    return b.finish([*new, new[0]])


def _where(keep: Value, x: Value, old: Value) -> Value:
    return P.where_p.bind(P.broadcast_p.bind(keep, shape=x.type.shape, axes=(0,)), x, old)


@lower
def layer(
    mode: str, x: Tensor, state: tuple[Tensor, ...], weights: Weights, reverse: bool, keep: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One layer in one direction over ``x`` [time, batch, inputs] from ``state`` ([batch, outputs] and for an
    LSTM [batch, hidden]): all outputs [time, batch, outputs] and the last state. ``keep`` [time, batch]: the
    steps that a row has; its state does not change in others.
    """
    out, *last = _layer(mode, reverse, x, keep, *weights, *state)
    return out, tuple(last)


@composite
def _layer(
    mode: str, reverse: bool, x: Tensor, keep: Tensor | None, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None,
    b_hh: Tensor | None, w_hr: Tensor | None, *state: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """All outputs, then the last state."""
    weights = Weights(w_ih, w_hh, b_ih, b_hh, w_hr)
    steps, batch = shape_of(x)[:2]
    hidden = shape_of(weights.w_ih)[0] // GATES[mode]
    # GRU's candidate multiplies its recurrent part by a gate, so the bias of that cannot be moved out
    outside = weights.b_ih
    if weights.b_ih is not None and weights.b_hh is not None and mode != "GRU":
        outside = weights.b_ih + weights.b_hh
    gates = linear(x, weights.w_ih, outside)
    consts = [weights.w_hh.t().contiguous()]
    if mode == "GRU" and weights.b_hh is not None:
        consts.append(weights.b_hh)
    if weights.w_hr is not None:
        consts.append(weights.w_hr.t().contiguous())
    graph = _step_graph(_Step(
        mode, batch, hidden, shape_of(state[0])[1], x.dtype, x.device, keep is not None,
        mode == "GRU" and weights.b_hh is not None, weights.w_hr is not None,
    ))  # fmt: skip
    xs = [gates] if keep is None else [gates, keep]
    out = apply(
        P.scan_p, *consts, *state, *xs,
        n_consts=len(consts), n_carry=len(state), length=steps, reverse=reverse, regions=(graph,),
    )  # fmt: skip
    return out[-1], *out[:-1]


@lower
def cell(mode: str, x: Tensor, state: tuple[Tensor, ...], weights: Weights) -> tuple[Tensor, ...]:
    """One step on ``x`` [batch, inputs]: the new state."""
    return layer(mode, x.unsqueeze(0), state, weights, False, None)[1]
