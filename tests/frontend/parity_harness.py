"""Runs one function on weft and on PyTorch, on equal inputs, and compares what comes out: values, dtypes,
shapes, gradients, or the errors.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import weft

torch: Any = None


def load() -> Any:
    """PyTorch, imported on first use."""
    global torch
    if torch is None:
        import torch as found

        torch = found
        warnings.simplefilter("ignore")
    return torch


def convert(a: Any, lib: Any) -> Any:
    """Arrays as tensors of ``lib``, in nested lists too."""
    if isinstance(a, np.ndarray):
        return lib.from_numpy(a.copy())
    if isinstance(a, (list, tuple)):
        return type(a)(convert(x, lib) for x in a)
    return a


def flat(o: Any) -> list[Any]:
    if isinstance(o, (tuple, list)):
        return [y for x in o for y in flat(x)]
    return [o]


def run(fn: Callable[..., Any], args: Any, kwargs: Any, lib: Any) -> tuple[Any, Any, Any]:
    """(result, gradients of the float inputs or None, error or None)."""
    inputs = [convert(a, lib) for a in args]
    leaves = [x for a in inputs for x in flat(a) if isinstance(x, lib.Tensor) and x.is_floating_point()]
    for x in leaves:
        x.requires_grad_()
    try:
        out = fn(lib, *inputs, **kwargs)
    except Exception as e:  # any error is what is compared
        return None, None, e
    floats = [x for x in flat(out) if isinstance(x, lib.Tensor) and x.is_floating_point() and x.requires_grad]
    if not floats:
        return out, None, None
    total = sum((x * x.detach().cos()).sum() for x in floats)
    try:
        total.backward()
    except (RuntimeError, NotImplementedError):
        if lib is weft:
            raise
        return out, "none", None
    return out, [x.grad for x in leaves], None


def assert_same(a: Any, b: Any, tol: float, what: str) -> None:
    """A result of weft against one of PyTorch."""
    if isinstance(b, torch.Tensor):
        assert isinstance(a, weft.Tensor), what
        assert tuple(a.shape) == tuple(b.shape), f"{what}: shape {a.shape} instead of {b.shape}"
        assert a.dtype.long_name == str(b.dtype).split(".")[1], (
            f"{what}: dtype {a.dtype} instead of {b.dtype}"
        )
        x, y = a.detach(), b.detach().resolve_conj().clone()
        if a.dtype is weft.bfloat16:
            x, y = x.float(), y.float()
        np.testing.assert_allclose(x.numpy(), y.numpy(), rtol=tol, atol=tol, equal_nan=True, err_msg=what)
    elif isinstance(b, (tuple, list)):
        assert len(a) == len(b), what
        for x, y in zip(a, b, strict=True):
            assert_same(x, y, tol, what)
    elif isinstance(b, float):
        np.testing.assert_allclose(a, b, rtol=1e-5, err_msg=what)
    else:
        assert str(a).replace("weft", "torch") == str(b), what


def check(
    name: str, *args: Any, tol: float = 2e-5, fn: Callable[..., Any] | None = None, **kwargs: Any
) -> None:
    """``lib.<name>(*args, **kwargs)`` (or ``fn(lib, ...)``, or a method ``.name``) of both libraries."""
    load()
    if fn is None and name.startswith("."):
        fn = lambda lib, x, *a, **k: getattr(x, name[1:])(*a, **k)  # noqa: E731
    elif fn is None:
        fn = lambda lib, *a, **k: getattr(lib, name)(*a, **k)  # noqa: E731
    a, ga, ea = run(fn, args, kwargs, weft)
    b, gb, eb = run(fn, args, kwargs, torch)
    if eb is not None:
        assert ea is not None, f"{name}: PyTorch raises {eb!r}"
        assert isinstance(ea, type(eb)), f"{name}: {ea!r} instead of {eb!r}"
        return
    assert ea is None, f"{name}: {ea!r}"
    assert_same(a, b, tol, name)
    if gb == "none":
        return
    assert (ga is None) == (gb is None), f"{name}: gradients {ga} instead of {gb}"
    for x, y in zip(ga or [], gb or [], strict=True):
        assert (x is None) == (y is None), f"{name}: gradient {x} instead of {y}"
        if y is not None:
            assert_same(x, y, tol * 20, f"gradient of {name}")
