"""When eager operations run by generated kernels: the switch, and the runtime's part, loaded at first need.

``WEFT_EAGER=numpy`` in the environment turns kernels off: every eager operation is then numpy's.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np

LEAST_BYTES = 1 << 15  # operations whose operands are all smaller than this are numpy's


class _Switch:
    on: bool = os.environ.get("WEFT_EAGER", "") != "numpy"


switch = _Switch()


class _Kernels:
    """Stands for :mod:`weft.runtime.oneop`, which loads the compiler: importing weft must not."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(importlib.import_module("weft.runtime.oneop"), name)
        self.__dict__[name] = found
        return found


kernels: Any = _Kernels()


def is_whole(a: np.ndarray) -> bool:
    """Whether ``a`` is no view of another array: numpy's own memory, or a block of the allocator."""
    return a.base is None or type(a.base).__name__ == "Lease"
