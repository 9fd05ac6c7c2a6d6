"""``weft.amp.GradScaler``: gradients of float16 are kept in its range by scaling the loss."""

from __future__ import annotations

from typing import Any

from weft.autograd.grad_mode import no_grad
from weft.tensor import Tensor


class GradScaler:
    """Scales the loss, so that gradients in float16 do not become zero, as ``torch.amp.GradScaler``.

    ``step`` skips the step where a gradient is not finite, and ``update`` then lowers the scale; after
    ``growth_interval`` steps without that it grows.

    >>> import weft
    >>> p = weft.nn.Parameter(weft.ones(2))
    >>> optimizer, scaler = weft.optim.SGD([p], lr=0.5), GradScaler("cpu", init_scale=4.0)
    >>> scaler.scale((p * p).sum()).backward()
    >>> scaler.step(optimizer)
    >>> scaler.update()
    >>> p.tolist(), scaler.get_scale()
    ([0.0, 0.0], 4.0)
    """

    def __init__(
        self,
        device: str = "cuda",
        init_scale: float = 65536.0,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        if enabled and growth_factor <= 1.0:
            raise AssertionError("The growth factor must be > 1.0.")
        if enabled and backoff_factor >= 1.0:
            raise AssertionError("The backoff factor must be < 1.0.")
        self._device, self._enabled = device, enabled
        self._scale, self._growth, self._backoff = init_scale, growth_factor, backoff_factor
        self._interval, self._streak = growth_interval, 0
        self._found: dict[int, bool] = {}  # by optimizer that was unscaled: whether something was not finite
        self._stepped: set[int] = set()

    def is_enabled(self) -> bool:
        return self._enabled

    def scale(self, outputs: Any) -> Any:
        """A tensor, or those of a list or tuple, times the scale."""
        if not self._enabled:
            return outputs
        if isinstance(outputs, Tensor):
            return outputs * self._scale
        if isinstance(outputs, (list, tuple)):
            return type(outputs)([self.scale(x) for x in outputs])
        raise ValueError("outputs must be a Tensor or an iterable of Tensors")

    def unscale_(self, optimizer: Any) -> None:
        """Divide the gradients of an optimizer's parameters by the scale, once between its steps."""
        if not self._enabled:
            return
        if id(optimizer) in self._stepped:
            raise RuntimeError("unscale_() is being called after step().")
        if id(optimizer) in self._found:
            raise RuntimeError(
                "unscale_() has already been called on this optimizer since the last update()."
            )
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        found = False
        with no_grad():
            for g in grads:
                g.mul_(1.0 / self._scale)
            for g in grads:
                found = found or not bool(g.isfinite().all())
        self._found[id(optimizer)] = found

    def step(self, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        """``optimizer.step(...)``, unless a gradient is not finite; unscales first if nobody did."""
        if not self._enabled:
            return optimizer.step(*args, **kwargs)
        if "closure" in kwargs:
            raise RuntimeError("Closure use is not currently supported if GradScaler is enabled.")
        if id(optimizer) in self._stepped:
            raise RuntimeError("step() has already been called since the last update().")
        if id(optimizer) not in self._found:
            self.unscale_(optimizer)
        self._stepped.add(id(optimizer))
        return None if self._found[id(optimizer)] else optimizer.step(*args, **kwargs)

    def update(self, new_scale: Any = None) -> None:
        """The scale of the next step: lower where a gradient was not finite, higher after long without."""
        if not self._enabled:
            return
        if new_scale is not None:
            self._scale = float(new_scale)
        elif not self._found:
            raise AssertionError("No inf checks were recorded prior to update.")
        elif any(self._found.values()):
            self._scale, self._streak = self._scale * self._backoff, 0
        else:
            self._streak += 1
            if self._streak == self._interval:
                self._scale, self._streak = self._scale * self._growth, 0
        self._found.clear()
        self._stepped.clear()

    def get_scale(self) -> float:
        """The scale; 1 where the scaler is not enabled."""
        return self._scale if self._enabled else 1.0

    def get_growth_factor(self) -> float:
        return self._growth

    def set_growth_factor(self, new_factor: float) -> None:
        self._growth = new_factor

    def get_backoff_factor(self) -> float:
        return self._backoff

    def set_backoff_factor(self, new_factor: float) -> None:
        self._backoff = new_factor

    def get_growth_interval(self) -> int:
        return self._interval

    def set_growth_interval(self, new_interval: int) -> None:
        self._interval = new_interval

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` takes; empty where the scaler is not enabled."""
        if not self._enabled:
            return {}
        return {
            "scale": self.get_scale(), "growth_factor": self._growth, "backoff_factor": self._backoff,
            "growth_interval": self._interval, "_growth_tracker": self._streak,
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state. RuntimeError for an empty one, which a disabled scaler saved."""
        if not self._enabled:
            return
        if not state_dict:
            raise RuntimeError(
                "The source state dict is empty, possibly because it was saved from a disabled instance of "
                "GradScaler."
            )
        self._scale, self._growth = state_dict["scale"], state_dict["growth_factor"]
        self._backoff, self._interval = state_dict["backoff_factor"], state_dict["growth_interval"]
        self._streak = state_dict["_growth_tracker"]
