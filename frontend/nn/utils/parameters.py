"""Helpers for gradients and parameters, as ``torch.nn.utils``."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from weft.autograd.grad_mode import no_grad
from weft.tensor import Tensor


def _grads(parameters: Any) -> list[Tensor]:
    parameters = [parameters] if isinstance(parameters, Tensor) else parameters
    return [p.grad for p in parameters if p.grad is not None]


def get_total_norm(
    tensors: Any, norm_type: float = 2.0, error_if_nonfinite: bool = False, foreach: Any = None
) -> Tensor:
    """The norm of all tensors as if they were one vector."""
    from weft.creation import tensor
    from weft.ops.shape import stack

    tensors = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    p = float(norm_type)
    if not tensors:
        return tensor(0.0)
    if p == math.inf:
        total = stack([t.detach().abs().max() for t in tensors]).max()
    elif p == 2.0:
        total = stack([(t.detach() * t.detach()).sum() for t in tensors]).sum().sqrt()
    else:
        total = stack([t.detach().abs().pow(p).sum() for t in tensors]).sum().pow(1.0 / p)
    if error_if_nonfinite and not math.isfinite(total.item()):
        raise RuntimeError(
            f"The total norm of order {p} for gradients from `parameters` is non-finite, so it "
            "cannot be clipped. "
            "To disable this error and scale the gradients by the non-finite norm anyway, set "
            "`error_if_nonfinite=False`"
        )
    return total


def clip_grad_norm_(
    parameters: Any,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: Any = None,
) -> Tensor:
    """Scale the gradients in place so that their joint norm is at most ``max_norm``; the norm before.

    >>> import weft
    >>> p = weft.nn.Parameter(weft.zeros(2))
    >>> p.grad = weft.tensor([3.0, 4.0])
    >>> round(clip_grad_norm_([p], 1.0).item(), 4), [round(g, 4) for g in p.grad.tolist()]
    (5.0, [0.6, 0.8])
    """
    with no_grad():
        grads = _grads(list(parameters) if not isinstance(parameters, Tensor) else parameters)
        total = get_total_norm(grads, norm_type, error_if_nonfinite)
        factor = (max_norm / (total + 1e-6)).clamp(max=1.0)
        for g in grads:
            g.mul_(factor.to(g.dtype))
        return total


def clip_grad_value_(parameters: Any, clip_value: float, foreach: Any = None) -> None:
    """Clamp the gradients in place to [-clip_value, clip_value]."""
    with no_grad():
        for g in _grads(parameters):
            g.clamp_(-float(clip_value), float(clip_value))


def parameters_to_vector(parameters: Iterable[Tensor]) -> Tensor:
    """All parameters as one vector."""
    from weft.ops.shape import cat

    return cat([p.reshape(-1) for p in parameters])


def vector_to_parameters(vec: Tensor, parameters: Iterable[Tensor]) -> None:
    """Give the parameters the values of one vector."""
    at = 0
    for p in parameters:
        n = p.numel()
        p.data = vec[at : at + n].reshape(p.shape).data.clone()
        at += n
