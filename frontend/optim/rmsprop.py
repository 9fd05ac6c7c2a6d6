"""RMSprop and Adagrad."""

from __future__ import annotations

from typing import Any

from weft.creation import full_like, tensor, zeros_like
from weft.ir.types import f32
from weft.optim.adam import number_of
from weft.optim.fused import pure
from weft.optim.optimizer import Optimizer, check_options
from weft.tensor import Tensor


class RMSprop(Optimizer):
    """Divides by a running root mean square of gradients (Hinton, lecture 6e), as ``torch.optim.RMSprop``.

    ``centered`` subtracts the square of the running mean.
    """

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
    ) -> None:
        check_options(
            ("learning rate", lr, lr >= 0.0),
            ("epsilon value", eps, eps >= 0.0),
            ("momentum value", momentum, momentum >= 0.0),
            ("weight_decay value", weight_decay, weight_decay >= 0.0),
            ("alpha value", alpha, alpha >= 0.0),
        )
        defaults = {
            "lr": lr, "momentum": momentum, "alpha": alpha, "eps": eps, "centered": centered,
            "weight_decay": weight_decay, "capturable": capturable, "foreach": foreach, "maximize": maximize,
            "differentiable": differentiable,
        }  # fmt: skip
        super().__init__(params, defaults)

    def new_state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        state = {"step": tensor(0.0, dtype=f32, device=p.device), "square_avg": zeros_like(p)}
        if group["momentum"] > 0:
            state["momentum_buffer"] = zeros_like(p)
        if group["centered"]:
            state["grad_avg"] = zeros_like(p)
        return state

    @pure
    def update(self, p: Tensor, grad: Tensor, state: dict[str, Any], options: dict[str, Any]) -> None:
        alpha, square = options["alpha"], state["square_avg"]
        state["step"].add_(1)
        if options["weight_decay"] != 0:
            grad = grad + p * options["weight_decay"]
        square.mul_(alpha).add_(grad * grad * (1 - alpha))
        variance = square
        if options["centered"]:
            mean = state["grad_avg"]
            mean.add_((grad - mean) * (1 - alpha))
            variance = square - mean * mean
        change = grad / (variance.sqrt() + options["eps"])
        if options["momentum"] > 0:
            change = state["momentum_buffer"].mul_(options["momentum"]).add_(change)
        p.sub_(change * options["lr"])


class Adagrad(Optimizer):
    """Divides by the root of the sum of all squared gradients (Duchi et al. 2011)."""

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        check_options(
            ("learning rate", lr, lr >= 0.0),
            ("lr_decay value", lr_decay, lr_decay >= 0.0),
            ("weight_decay value", weight_decay, weight_decay >= 0.0),
            ("initial_accumulator_value value", initial_accumulator_value, initial_accumulator_value >= 0.0),
            ("epsilon value", eps, eps >= 0.0),
        )
        defaults = {
            "lr": lr, "lr_decay": lr_decay, "eps": eps, "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value, "foreach": foreach, "maximize": maximize,
            "differentiable": differentiable, "fused": fused,
        }  # fmt: skip
        super().__init__(params, defaults)
        for group in self.param_groups:
            for p in group["params"]:
                self.state_of(p, group)

    def new_state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        start = full_like(p, group["initial_accumulator_value"])
        return {"step": tensor(0.0, dtype=f32, device=p.device), "sum": start}

    @pure
    def update(self, p: Tensor, grad: Tensor, state: dict[str, Any], options: dict[str, Any]) -> None:
        step, total = state["step"], state["sum"]
        step.add_(1)
        if options["weight_decay"] != 0:
            grad = grad + p * options["weight_decay"]
        rate = options["lr"] / (1 + (number_of(step) - 1) * options["lr_decay"])
        total.add_(grad * grad)
        p.sub_(grad / (total.sqrt() + options["eps"]) * rate)
