"""Stochastic gradient descent."""

from __future__ import annotations

from typing import Any

from weft.creation import zeros_like
from weft.optim.fused import pure
from weft.optim.optimizer import Optimizer, check_options
from weft.tensor import Tensor


class SGD(Optimizer):
    """Gradient descent with (Nesterov) momentum and weight decay, as ``torch.optim.SGD``.

    v = momentum v + (1 - dampening) g;  p = p - lr v  (Nesterov: p = p - lr (g + momentum v)).

    >>> import weft
    >>> p = weft.nn.Parameter(weft.ones(2))
    >>> optimizer = SGD([p], lr=0.5)
    >>> (p * p).sum().backward()
    >>> optimizer.step()
    >>> p.tolist()
    [0.0, 0.0]
    """

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        check_options(
            ("learning rate", lr, lr >= 0.0),
            ("momentum value", momentum, momentum >= 0.0),
            ("weight_decay value", weight_decay, weight_decay >= 0.0),
        )
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        defaults = {
            "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay,
            "nesterov": nesterov, "maximize": maximize, "foreach": foreach, "differentiable": differentiable,
            "fused": fused,
        }  # fmt: skip
        super().__init__(params, defaults)

    def new_state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        # The first velocity is the gradient itself: from zeros it comes out the same, unless it is dampened.
        return {
            "momentum_buffer": zeros_like(p) if group["momentum"] != 0 and group["dampening"] == 0 else None
        }

    @pure
    def update(self, p: Tensor, grad: Tensor, state: dict[str, Any], options: dict[str, Any]) -> None:
        momentum, decay = options["momentum"], options["weight_decay"]
        if decay != 0:
            grad = grad + p * decay
        if momentum != 0:
            v = state.get("momentum_buffer")
            if v is None:
                v = state["momentum_buffer"] = grad.detach().clone()
            else:
                v.mul_(momentum).add_(grad * (1 - options["dampening"]) if options["dampening"] else grad)
            grad = grad + v * momentum if options["nesterov"] else v
        p.sub_(grad * options["lr"])
