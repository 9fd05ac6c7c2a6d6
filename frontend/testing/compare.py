"""``assert_close``: element by element, with a message that names the first and the worst difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from weft.dtypes import dtype_of_array
from weft.ir.types import DType
from weft.tensor import Tensor

# torch.testing's: (rtol, atol) by dtype; exact where it is not listed
TOLERANCES = {
    "f16": (1e-3, 1e-5),
    "bf16": (1.6e-2, 1e-5),
    "f32": (1.3e-6, 1e-5),
    "f64": (1e-7, 1e-7),
    "c64": (1.3e-6, 1e-5),
    "c128": (1e-7, 1e-7),
}


def tolerances(*dtypes: DType) -> tuple[float, float]:
    """The widest default (rtol, atol) of the dtypes."""
    pairs = [TOLERANCES.get(d.name, (0.0, 0.0)) for d in dtypes]
    return max(r for r, _ in pairs), max(a for _, a in pairs)


def assert_close(
    actual: Any,
    expected: Any,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    equal_nan: bool = False,
    check_device: bool = True,
    check_dtype: bool = True,
    check_layout: bool = True,
    check_stride: bool = False,
    msg: Any = None,
) -> None:
    """Raise AssertionError unless ``|actual - expected| <= atol + rtol * |expected|`` everywhere.

    Takes tensors, numbers, numpy arrays, and sequences and mappings of them. Without ``rtol`` and ``atol``
    (give both or neither) the tolerances are those of the dtypes, as in ``torch.testing``. ValueError if
    only one is given.

    >>> import weft
    >>> assert_close(weft.tensor([1.0, 2.0]), weft.tensor([1.0, 2.0]))
    """
    if (rtol is None) != (atol is None):
        raise ValueError(
            f"Both 'rtol' and 'atol' must be either specified or unspecified, but got rtol={rtol} and "
            f"atol={atol}."
        )
    why = difference(actual, expected, rtol, atol, equal_nan, check_dtype, "")
    if why is not None:
        raise AssertionError(why if msg is None else msg(why) if callable(msg) else str(msg))


def difference(
    a: Any, b: Any, rtol: float | None, atol: float | None, equal_nan: bool, check_dtype: bool, where: str
) -> str | None:
    """How ``a`` differs from ``b``; None if it does not. ``where`` is put before the message."""
    head = f"{where}: " if where else ""
    if isinstance(b, Mapping) and isinstance(a, Mapping):
        if set(a) != set(b):
            keys = sorted(map(str, a)), sorted(map(str, b))
            return f"{head}The keys of the mappings do not match: {keys[0]} and {keys[1]}"
        pairs = [(f"{where}[{k!r}]", a[k], b[k]) for k in b]
    elif isinstance(b, Sequence) and isinstance(a, Sequence) and not isinstance(b, (str, bytes)):
        if len(a) != len(b):
            return f"{head}The length of the sequences mismatch: {len(a)} != {len(b)}"
        pairs = [(f"{where}[{i}]", x, y) for i, (x, y) in enumerate(zip(a, b, strict=True))]
    else:
        return _leaf_difference(a, b, rtol, atol, equal_nan, check_dtype, head)
    for inner, x, y in pairs:
        why = difference(x, y, rtol, atol, equal_nan, check_dtype, inner)
        if why is not None:
            return why
    return None


def _leaf_difference(
    a: Any, b: Any, rtol: float | None, atol: float | None, equal_nan: bool, check_dtype: bool, head: str
) -> str | None:
    if not (_is_numeric(a) and _is_numeric(b)):
        return None if a is b or (type(a) is type(b) and a == b) else f"{head}{a!r} is not {b!r}"
    x, y = _array(a), _array(b)
    if isinstance(a, Tensor) and isinstance(b, Tensor) and a.device != b.device:
        return f"{head}The values for attribute 'device' do not match: {a.device} != {b.device}."
    if check_dtype and isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype is not b.dtype:
        return f"{head}The values for attribute 'dtype' do not match: {a.dtype} != {b.dtype}."
    if x.shape != y.shape:
        return f"{head}The values for attribute 'shape' do not match: {x.shape} != {y.shape}."
    if rtol is None or atol is None:
        rtol, atol = tolerances(dtype_of_array(x), dtype_of_array(y))
    return compare(x, y, rtol, atol, equal_nan, head)


def _is_numeric(x: Any) -> bool:
    return isinstance(x, (Tensor, np.ndarray, np.generic, bool, int, float, complex))


def _array(x: Any) -> np.ndarray:
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)


def _wide(x: np.ndarray) -> np.ndarray:
    """Enough precision to subtract in."""
    if x.dtype.kind in "biu":
        return x.astype(np.float64) if x.dtype.itemsize < 8 else x.astype(object).astype(np.longdouble)
    return x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)


def compare(
    x: np.ndarray, y: np.ndarray, rtol: float, atol: float, equal_nan: bool, head: str = ""
) -> str | None:
    """How two arrays of one shape differ, naming the first and the worst element; None if they do not."""
    with np.errstate(all="ignore"):
        wx, wy = _wide(x), _wide(y)
        off = np.abs(wx - wy)
        good = (wx == wy) | (off <= atol + rtol * np.abs(wy))
        if equal_nan:
            good |= np.isnan(wx) & np.isnan(wy)
    bad = ~good
    if not bad.any():
        return None
    first = tuple(int(i) for i in np.argwhere(bad)[0])
    worst_off = np.where(bad & ~np.isnan(off), off, -1.0)
    worst = tuple(int(i) for i in np.unravel_index(int(np.argmax(worst_off)), x.shape)) if x.ndim else ()
    with np.errstate(all="ignore"):
        relative = off[worst] / np.abs(wy[worst])
    n = int(bad.sum())
    what = "Scalars" if x.ndim == 0 else "Tensor-likes"
    return (
        f"{head}{what} are not {'equal' if rtol == atol == 0 else 'close'}!\n\n"
        f"Mismatched elements: {n} / {max(x.size, 1)} ({100 * n / max(x.size, 1):.1f}%)\n"
        f"First difference: {x[first]} is not {y[first]} at index {first}\n"
        f"Greatest absolute difference: {off[worst]} at index {worst} (up to {atol} allowed)\n"
        f"Greatest relative difference: {relative} at index {worst} (up to {rtol} allowed)"
    )
