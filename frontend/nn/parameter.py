"""Parameter: a tensor that a module learns."""

from __future__ import annotations

import copy
from typing import Any

from weft.tensor import Tensor


class Parameter(Tensor):
    """A tensor that, assigned to an attribute of a :class:`~weft.nn.Module`, joins its ``parameters()``.

    ``Parameter(data=None, requires_grad=True)`` shares the storage of ``data`` and is a leaf.

    >>> import weft
    >>> Parameter(weft.zeros(2))
    Parameter containing:
    tensor([0., 0.], requires_grad=True)
    """

    def __new__(cls, data: Tensor | None = None, requires_grad: bool = True) -> Parameter:
        if data is None:
            from weft.creation import empty

            data = empty(0)
        if not isinstance(data, Tensor):
            raise TypeError(f"Parameter data must be a Tensor, got {type(data).__name__}")
        return Tensor._make_subclass(cls, data, requires_grad)

    def __init__(self, data: Tensor | None = None, requires_grad: bool = True) -> None:
        pass

    def __deepcopy__(self, memo: dict[int, Any]) -> Parameter:
        found = memo.get(id(self))
        if found is None:
            found = memo[id(self)] = type(self)(self.data.clone(), self.requires_grad)
            if self.grad is not None:
                found.grad = copy.deepcopy(self.grad, memo)
        return found

    def __reduce_ex__(self, protocol: Any) -> Any:
        return type(self), (self.data, self.requires_grad)


def is_parameter(x: Any) -> bool:
    return isinstance(x, Parameter)
