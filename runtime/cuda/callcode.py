"""The call of a compiled graph of a GPU: a Python function written for its parameters and results.

It compares the kind of each array (one object for a device, shape and dtype) with what the graph was
compiled for, takes the memory, packs the addresses into the block that native code reads, and enters that.
Whatever is out of the ordinary (arrays of other kinds, views that do not lie densely, numpy arrays, overlap
with a donated array) goes to ``general``, which takes everything. The text depends on the number of
parameters and results, not on their shapes, so that graphs of one form share the code.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import CodeType
from typing import Any

import numpy as np
from weft.ir.record import record
from weft.ir.types import TensorType

_NUMBERS = {"f64": "float", "i64": "int", "bool": "bool"}  # the Python number that goes as such a parameter
_PACKED = {"f64": "d", "f32": "f", "f16": "e", "i64": "q", "i32": "i", "i16": "h", "i8": "b", "u64": "Q",
           "u32": "I", "u16": "H", "u8": "B", "bool": "?"}  # fmt: skip
_packers = {f"pack_{name}": struct.Struct(code).pack_into for name, code in _PACKED.items()}


_ABSENT: Any = object()  # what a parameter is without an argument


def _given(*arguments: Any) -> list[Any]:
    """What the caller passed."""
    return [a for a in arguments if a is not _ABSENT]


@record(frozen=True)
class Form:
    """What the text of a call depends on. ``numbers[i]``: the dtype of the number that parameter ``i`` may be
    instead, a Python number or a 0-d numpy array (None: none). ``results[k]``: the parameter donated to
    result ``k`` (None: a new array)."""

    numbers: tuple[str | None, ...]
    results: tuple[int | None, ...]
    arena: bool
    status: bool


def form_of(
    ins: Sequence[TensorType], places: Sequence[int], outs: int, donate: Mapping[int, int], arena: bool,
    status: bool,
) -> Form:  # fmt: skip
    """``places[i]`` is where a number for parameter ``i`` goes with the call; -1 where none may."""
    numbers = [t.dtype.name if at >= 0 and not t.shape and t.dtype.name in _PACKED else None
               for t, at in zip(ins, places, strict=True)]  # fmt: skip
    return Form(tuple(numbers), tuple(donate.get(k) for k in range(outs)), arena, status)


@lru_cache(1024)
def code_of(form: Form) -> CodeType:
    """The compiled text of calls of this form, which defines ``call``."""
    return compile(text_of(form), "<weft call of a GPU>", "exec")


def call_of(form: Form, namespace: dict[str, Any]) -> Callable[..., list[Any]]:
    """The call of one graph, whose constants the namespace holds."""
    space: dict[str, Any] = {**_packers, "ndarray": np.ndarray, "ABSENT": _ABSENT, "given": _given}
    space["pack"] = struct.Struct(f"{len(form.numbers) + len(form.results) + 1}Q").pack_into
    space |= namespace
    exec(code_of(form), space)
    return space["call"]


def text_of(form: Form) -> str:
    """The source of a call."""
    params = [f"a{i}" for i in range(len(form.numbers))]
    general = f"return general(*given({', '.join([*params, '*more'])}))"
    numbers = [i for i, name in enumerate(form.numbers) if name is not None]
    lines = [*_checks(form, params, general), "stream = current.handle"]
    some = " or ".join(f"n{i}" for i in numbers)
    if numbers:
        lines += [f"numbers = {some}", f"if numbers and stream in capturing: {general}"]
    if any(j is not None for j in form.results):
        at = "".join(f"{'0' if i in numbers else f'{p}.address'}, " for i, p in enumerate(params))
        lines += [f"at = ({at})", "if at != apart[0]:", f"    if clash(at): {general}", "    apart[0] = at"]
    lines += ["try: words, base = blocks.pop()", "except IndexError: words, base = block()"]
    lines += _memory(form, bool(numbers))
    body = _issue(form, params, numbers)
    lines += ["try:", *[f"    {x}" for x in body], "finally:"]
    if form.arena or numbers:
        lines.append("    if arena is not None: freed.append(arena)")
    lines.append("    blocks.append((words, base))")
    lines.append(f"return [{', '.join(f'o{k}' for k in range(len(form.results)))}]")
    head = ", ".join([*(f"{p}=ABSENT" for p in params), "*more"])
    return f"def call({head}):\n" + "".join(f"    {x}\n" for x in lines)


def _checks(form: Form, params: list[str], general: str) -> list[str]:
    """Tests that every argument is what its parameter wants."""
    tests = ["more"]
    lines = []
    for i, (p, name) in enumerate(zip(params, form.numbers, strict=True)):
        if name is None:
            tests.append(f"{p}.dense is not D{i}")
        else:
            lines.append(f"n{i} = type({p}) is ndarray and {p}.dtype is T{i} and not {p}.shape")
            if name in _NUMBERS:
                lines[-1] += f" or type({p}) is {_NUMBERS[name]}"
            tests.append(f"(not n{i} and {p}.dense is not D{i})")
    return ["try:", *[f"    {x}" for x in lines], f"    if {' or '.join(tests)}: {general}",
            f"except AttributeError: {general}"]  # fmt: skip


def _memory(form: Form, numbers: bool) -> list[str]:
    if form.arena:
        return ["arena = take(ARENA, stream)", "start = arena.address"]
    if numbers:
        return ["arena = take(ARENA, stream) if numbers else None", "start = arena.address if numbers else 0"]
    return ["start = 0"]


def _issue(form: Form, params: list[str], numbers: list[int]) -> list[str]:
    """Put everything in its place and enter the native code."""
    lines = []
    places = [f"{p}.address" for p in params]
    if numbers:
        lines.append("if numbers:")
        lines += [f"    if n{i}: pack_{form.numbers[i]}(words, W{i}, a{i})" for i in numbers]
        lines.append("    words[N], words[AT] = BYTES, start + SCALARS")
        lines.append("else: words[N] = 0")
        for i in numbers:
            places[i] = f"start + S{i} if n{i} else a{i}.address"
    outs = []
    for k, donated in enumerate(form.results):
        lines.append(f"o{k} = new{k}(stream)" if donated is None else f"o{k} = a{donated}")
        outs.append(f"o{k}.address")
    lines.append(f"pack(words, 0, {', '.join([*places, *outs, 'start'])})")
    lines += ["words[STREAM] = stream", "entry(base)"]
    if form.status:
        lines.append("ran(stream, WORD)")
    return [*lines, "if words[ERROR]: failed(words, base)"]
