"""How tensors print: PyTorch's rules (``torch/_tensor_str.py``) for widths, precision and summaries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from weft.dtypes import default_complex, get_default_device, get_default_dtype
from weft.ir import types as T
from weft.ir.record import record
from weft.tensor import Tensor


@record
class _Options:
    precision: int = 4
    threshold: float = 1000
    edgeitems: int = 3
    linewidth: int = 80
    sci_mode: bool | None = None


OPTIONS = _Options()


def set_printoptions(
    precision: int | None = None,
    threshold: float | None = None,
    edgeitems: int | None = None,
    linewidth: int | None = None,
    profile: str | None = None,
    sci_mode: bool | None = None,
) -> None:
    """Set how tensors print. ``profile``: "default", "short" or "full"."""
    presets = {"default": (4, 1000, 3, 80), "short": (2, 1000, 2, 80), "full": (4, math.inf, 3, 80)}
    if profile is not None:
        OPTIONS.precision, OPTIONS.threshold, OPTIONS.edgeitems, OPTIONS.linewidth = presets[profile]
    for name, value in (
        ("precision", precision),
        ("threshold", threshold),
        ("edgeitems", edgeitems),
        ("linewidth", linewidth),
    ):
        if value is not None:
            setattr(OPTIONS, name, value)
    OPTIONS.sci_mode = sci_mode


class _Formatter:
    """Width and style that suit all the values shown."""

    def __init__(self, values: np.ndarray) -> None:
        self.floating = values.dtype.kind == "f"
        self.int_mode, self.sci_mode, self.width = True, False, 1
        flat = values.reshape(-1)
        if not self.floating:
            self.width = max((len(str(v)) for v in flat.tolist()), default=1)
            return
        wide = flat.astype(np.float64)
        shown = np.abs(wide[np.isfinite(wide) & (wide != 0)])
        if shown.size:
            self._choose(wide, shown)

    def _choose(self, wide: np.ndarray, shown: np.ndarray) -> None:
        low, high = float(shown.min()), float(shown.max())
        self.int_mode = bool(np.all(shown == np.ceil(shown)))
        p = OPTIONS.precision
        far = high / low > 1000.0 or high > 1.0e8
        self.sci_mode = far if self.int_mode else far or low < 1.0e-4
        if OPTIONS.sci_mode is not None:
            self.sci_mode = OPTIONS.sci_mode
        nonzero = wide[np.isfinite(wide) & (wide != 0)].tolist()
        if self.sci_mode:
            texts = [f"{v:.{p}e}" for v in nonzero]
        elif self.int_mode:
            texts = [f"{v:.0f}." for v in nonzero]
        else:
            texts = [f"{v:.{p}f}" for v in nonzero]
        self.width = max(self.width, *(len(t) for t in texts))

    def plain(self, v: Any) -> str:
        if not self.floating:
            return str(v)
        if self.sci_mode:
            return f"{v:.{OPTIONS.precision}e}"
        if self.int_mode:
            text = f"{v:.0f}"
            return text if math.isinf(v) or math.isnan(v) else text + "."
        return f"{v:.{OPTIONS.precision}f}"

    def format(self, v: Any) -> str:
        return self.plain(v).rjust(self.width)


def _scalar_text(v: Any, f: _Formatter, f2: _Formatter | None) -> str:
    if f2 is None:
        return f.format(v)
    imag = f2.format(v.imag).lstrip()
    return f.format(v.real) + ("+" + imag if not imag.startswith("-") else imag) + "j"


def _items(row: np.ndarray, f: _Formatter, f2: _Formatter | None) -> list[str]:
    return [_scalar_text(v, f, f2) for v in row.tolist()]


def _vector(row: np.ndarray, indent: int, summarize: bool, f: _Formatter, f2: _Formatter | None) -> str:
    width = f.width + 2 + (f2.width + 1 if f2 is not None else 0)
    per_line = max(1, (OPTIONS.linewidth - indent) // width)
    e = OPTIONS.edgeitems
    if summarize and not e:
        data = ["..."]
    elif summarize and row.shape[0] > 2 * e:
        data = [*_items(row[:e], f, f2), " ...", *_items(row[-e:], f, f2)]
    else:
        data = _items(row, f, f2)
    lines = [data[i : i + per_line] for i in range(0, len(data), per_line)]
    return "[" + (",\n" + " " * (indent + 1)).join(", ".join(line) for line in lines) + "]"


def _nested(a: np.ndarray, indent: int, summarize: bool, f: _Formatter, f2: _Formatter | None) -> str:
    if a.ndim == 0:
        return _scalar_text(a.item(), f, f2)
    if a.ndim == 1:
        return _vector(a, indent, summarize, f, f2)
    e = OPTIONS.edgeitems
    if summarize and a.shape[0] > 2 * e:
        parts = [_nested(a[i], indent + 1, summarize, f, f2) for i in range(e)]
        parts += ["..."]
        parts += [_nested(a[i], indent + 1, summarize, f, f2) for i in range(len(a) - e, len(a))]
    else:
        parts = [_nested(x, indent + 1, summarize, f, f2) for x in a]
    return "[" + ("," + "\n" * (a.ndim - 1) + " " * (indent + 1)).join(parts) + "]"


def _edges(a: np.ndarray) -> np.ndarray:
    """Only what a summary shows."""
    e = OPTIONS.edgeitems
    for d in range(a.ndim):
        if a.shape[d] > 2 * e:
            n = a.shape[d]
            index = np.concatenate([np.arange(e), np.arange(n - e, n)]).astype(np.int64)
            a = np.take(a, index, axis=d)
    return a


def contents(a: Any, indent: int) -> str:
    """The nested brackets."""
    summarize = a.size > OPTIONS.threshold
    shown: Any = _edges(a) if summarize else a
    if a.dtype.kind == "c":
        return _nested(a, indent, summarize, _Formatter(shown.real), _Formatter(shown.imag))
    return _nested(a, indent, summarize, _Formatter(shown), None)


def _suffixes(t: Tensor, empty: bool) -> list[str]:
    d = t.dtype
    usual = d in (get_default_dtype(), T.i64, T.bool_) or (d.is_complex and d is default_complex())
    out = []
    if empty:
        if t.ndim != 1:
            out.append(f"size={tuple(t.shape)}")
        usual = d is get_default_dtype()
    if not usual:
        out.append(f"dtype=weft.{d.long_name}")
    if t.device != get_default_device() or t.device.type != "cpu":
        out.insert(0, f"device='{t.device}'")
    return out


def tensor_str(t: Tensor) -> str:
    """``repr(tensor)``."""
    prefix = "tensor("
    a = t._array("printing a tensor")
    if a.dtype == T.bf16.np:
        a = a.astype(np.float32)
    suffixes = _suffixes(t, a.size == 0)
    text = "[]" if a.size == 0 else contents(a, len(prefix))
    if t.grad_fn is not None:
        suffixes.append(f"grad_fn=<{t.grad_fn.name()}>")
    elif t.requires_grad:
        suffixes.append("requires_grad=True")
    out = _add_suffixes(prefix + text, suffixes, len(prefix))
    if type(t) is not Tensor and type(t).__name__ == "Parameter":
        return "Parameter containing:\n" + out
    return out


def _add_suffixes(text: str, suffixes: Sequence[str], indent: int) -> str:
    parts = [text]
    last = len(text) - text.rfind("\n") + 1
    for s in suffixes:
        n = len(s)
        if last + n + 2 > OPTIONS.linewidth:
            parts.append(",\n" + " " * indent + s)
            last = indent + n
        else:
            parts.append(", " + s)
            last += n + 2
    parts.append(")")
    return "".join(parts)
