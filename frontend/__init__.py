# ruff: noqa: F401  (what users import from here)
"""weft: a PyTorch-shaped tensor library whose functions compile.

``import weft as torch`` runs scripts written for PyTorch; ``@weft.compile`` captures a function into a graph
and runs it as native code.
"""

from __future__ import annotations

import importlib
import math as _math
from typing import Any

from weft import autograd, methods
from weft.autograd.grad_mode import (
    enable_grad,
    inference_mode,
    is_grad_enabled,
    is_inference_mode_enabled,
    no_grad,
    set_grad_enabled,
)
from weft.creation import (
    arange,
    as_tensor,
    asarray,
    empty,
    empty_like,
    empty_strided,
    eye,
    from_dlpack,
    from_numpy,
    frombuffer,
    full,
    full_like,
    is_tensor,
    linspace,
    logspace,
    ones,
    ones_like,
    polar,
    scalar_tensor,
    tensor,
    zeros,
    zeros_like,
)
from weft.creation import complex_ as complex
from weft.creation import range_ as range
from weft.dtypes import DTYPE_NAMES as _DTYPE_NAMES
from weft.dtypes import (
    Size,
    device,
    dtype,
    finfo,
    get_default_device,
    get_default_dtype,
    iinfo,
    set_default_device,
    set_default_dtype,
)
from weft.indexing import index_put
from weft.legacy import TYPES as _TYPES
from weft.ops import FUNCTIONS as _FUNCTIONS
from weft.ops.shape import broadcast_to_ as broadcast_to
from weft.promotion import promote_types
from weft.random import (
    Generator,
    bernoulli,
    default_generator,
    fork_rng,
    get_rng_state,
    initial_seed,
    manual_seed,
    multinomial,
    normal,
    poisson,
    rand,
    rand_like,
    randint,
    randint_like,
    randn,
    randn_like,
    randperm,
    seed,
    set_rng_state,
)
from weft.tensor import Tensor

__version__ = "0.1.0"

methods.attach()
globals().update(_DTYPE_NAMES)
globals().update(_FUNCTIONS)
globals().update(_TYPES)

inf, nan, pi, e, newaxis = _math.inf, _math.nan, _math.pi, _math.e, None
strided, contiguous_format, preserve_format, channels_last = (
    "strided",
    "contiguous",
    "preserve",
    "channels_last",
)
long, int, float, double, bool = (_DTYPE_NAMES[n] for n in ("long", "int", "float", "double", "bool"))

# What is loaded on first use: name -> (module, attribute or None for the module itself).
_LAZY: dict[str, tuple[str, str | None]] = {
    # modules, optimizers, data
    "nn": ("weft.nn", None),
    "optim": ("weft.optim", None),
    "utils": ("weft.utils", None),
    "testing": ("weft.testing", None),
    "linalg": ("weft.linalg", None),
    "special": ("weft.special", None),
    "random": ("weft.random", None),
    "cuda": ("weft.cuda", None),
    "backends": ("weft.backends", None),
    "amp": ("weft.amp", None),
    "autocast": ("weft.amp", "autocast"),
    "is_autocast_enabled": ("weft.amp", "is_autocast_enabled"),
    "get_autocast_dtype": ("weft.amp", "get_autocast_dtype"),
    "set_float32_matmul_precision": ("weft.backends", "set_float32_matmul_precision"),
    "get_float32_matmul_precision": ("weft.backends", "get_float32_matmul_precision"),
    "use_deterministic_algorithms": ("weft.backends", "use_deterministic_algorithms"),
    "are_deterministic_algorithms_enabled": ("weft.backends", "are_deterministic_algorithms_enabled"),
    "is_deterministic_algorithms_warn_only_enabled": (
        "weft.backends", "is_deterministic_algorithms_warn_only_enabled",
    ),
    "set_deterministic_debug_mode": ("weft.backends", "set_deterministic_debug_mode"),
    "get_deterministic_debug_mode": ("weft.backends", "get_deterministic_debug_mode"),
    "save": ("weft.serialization", "save"),
    "load": ("weft.serialization", "load"),
    "serialization": ("weft.serialization", None),
    "set_printoptions": ("weft.printing", "set_printoptions"),
    # capture
    "capture": ("weft.capture", None),
    "compile": ("weft.capture", "compile"),
    "lazy": ("weft.capture", "lazy"),
    "explain": ("weft.capture", "explain"),
    "compiler": ("weft.capture", None),
    "set_num_threads": ("weft.runtime", "set_num_threads"),
    "get_num_threads": ("weft.runtime", "get_num_threads"),
}


def __getattr__(name: str) -> Any:
    try:
        module, attribute = _LAZY[name]
    except KeyError:
        raise AttributeError(f"module 'weft' has no attribute {name!r}") from None
    found = importlib.import_module(module)
    value = found if attribute is None else getattr(found, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


def is_floating_point(input: Tensor) -> Any:
    """Whether the dtype of a tensor is a floating point one."""
    return input.is_floating_point()


def is_complex(input: Tensor) -> Any:
    """Whether the dtype of a tensor is complex."""
    return input.is_complex()


def is_nonzero(input: Tensor) -> Any:
    """The truth of a tensor of one element."""
    return input.__bool__()


def numel(input: Tensor) -> Any:
    """The number of elements."""
    return input.numel()


def typename(obj: Any) -> str:
    return obj.type() if isinstance(obj, Tensor) else f"{type(obj).__module__}.{type(obj).__qualname__}"
