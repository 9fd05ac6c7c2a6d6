"""Adam and AdamW."""

from __future__ import annotations

from typing import Any

from weft.capture.state import is_capturing
from weft.creation import tensor, zeros_like
from weft.ir.types import f32, f64
from weft.optim.fused import pure
from weft.optim.optimizer import Optimizer, check_options
from weft.tensor import Tensor


class Adam(Optimizer):
    """Adaptive moments (Kingma and Ba 2015), as ``torch.optim.Adam``; ``amsgrad`` after Reddi et al. 2018.

    ``decoupled_weight_decay=True`` makes it AdamW (Loshchilov and Hutter 2019).
    """

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
    ) -> None:
        check_options(
            ("learning rate", lr, lr >= 0.0),
            ("epsilon value", eps, eps >= 0.0),
            ("beta parameter at index 0", betas[0], 0.0 <= betas[0] < 1.0),
            ("beta parameter at index 1", betas[1], 0.0 <= betas[1] < 1.0),
            ("weight_decay value", weight_decay, weight_decay >= 0.0),
        )
        defaults = {
            "lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad,
            "maximize": maximize, "foreach": foreach, "capturable": capturable,
            "differentiable": differentiable, "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
        }  # fmt: skip
        super().__init__(params, defaults)

    def new_state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        step = tensor(0.0, dtype=f32, device=p.device)
        state = {"step": step, "exp_avg": zeros_like(p), "exp_avg_sq": zeros_like(p)}
        if group["amsgrad"]:
            state["max_exp_avg_sq"] = zeros_like(p)
        return state

    @pure
    def update(self, p: Tensor, grad: Tensor, state: dict[str, Any], options: dict[str, Any]) -> None:
        (beta1, beta2), lr, decay = options["betas"], options["lr"], options["weight_decay"]
        step, first, second = state["step"], state["exp_avg"], state["exp_avg_sq"]
        step.add_(1)
        if decay != 0 and options["decoupled_weight_decay"]:
            p.mul_(1 - lr * decay)
        elif decay != 0:
            grad = grad + p * decay
        first.add_((grad - first) * (1 - beta1))
        second.mul_(beta2).add_(grad * grad * (1 - beta2))
        if options["amsgrad"]:
            largest = state["max_exp_avg_sq"]
            largest.copy_(largest.maximum(second))
            second = largest
        t = number_of(step)
        correction1, correction2 = 1 - beta1**t, 1 - beta2**t
        p.sub_(first / (second.sqrt() / correction2**0.5 + options["eps"]) * (lr / correction1))


def number_of(step: Tensor) -> Any:
    """The step count as a float, or in capture as a 0-d double: 1 - beta^t needs the digits."""
    return step.to(f64) if is_capturing() else float(step)


class AdamW(Adam):
    """Adam with decoupled weight decay: p = p (1 - lr weight_decay) before the step."""

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, foreach=foreach, maximize=maximize,
            capturable=capturable, differentiable=differentiable, fused=fused, decoupled_weight_decay=True,
        )  # fmt: skip
