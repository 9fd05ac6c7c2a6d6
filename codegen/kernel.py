"""From a ``kernel`` operation to LLVM IR: one emitter per form, found in a registry."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from weft.codegen.target import Target, emitting_for
from weft.ir.graph import Op
from weft.ir.record import field, record


class Unsupported(Exception):
    """No code can be made for this operation; the reason is the message. The runtime then evaluates it."""


@record(frozen=True)
class Phase:
    """One parallel region of a kernel: ``symbol(bufs, begin, end, thread)`` over work units 0..units.

    Phases of a kernel run one after the other. ``cost_ns`` estimates one unit on one core.
    """

    symbol: str
    units: int
    cost_ns: float
    parallel: bool = True


@record(frozen=True)
class KernelCode:
    """The code of one kernel.

    Each phase is a function ``void @symbol(ptr %bufs, i64 %begin, i64 %end, i64 %thread)``; ``bufs`` holds
    pointers: operands, results, scratch (``scratch_bytes``, 64-byte aligned, shared by phases and threads),
    status (i64, set to 1 by an index out of range). ``llvm`` holds the functions, ``declares`` the
    module-level lines.
    ``inplace`` lists the pairs (operand, result) that may share memory: each element is read before it is
    written, by the same thread.
    """

    name: str
    llvm: str
    declares: frozenset[str]
    phases: tuple[Phase, ...]
    scratch_bytes: int = 0
    loops: str = ""
    bytes_moved: int = 0
    flops: int = 0
    inplace: frozenset[tuple[int, int]] = field(default_factory=frozenset)


Emitter = Callable[[Op, Target, str], KernelCode]

# form -> "module:function", imported at first use
FORMS: dict[str, str] = {
    "loop": "weft.codegen.loop_kernel:emit",
    "contract": "weft.codegen.contract_kernel:emit",
    "conv": "weft.codegen.conv_kernel:emit",
    "gather": "weft.codegen.gather_kernel:emit",
    "scatter": "weft.codegen.scatter_kernel:emit",
    "sort": "weft.codegen.sort_kernel:emit",
    "cumulative": "weft.codegen.cumulative_kernel:emit",
    "window": "weft.codegen.window_kernel:emit",
    "attention": "weft.codegen.attention_kernel:emit",
}


def emitter_of(form: str) -> Emitter:
    """The emitter of a form; Unsupported where there is none."""
    where = FORMS.get(form)
    if where is None:
        raise Unsupported(f"no code generation for kernels of form {form!r}")
    module, _, function = where.partition(":")
    return getattr(import_module(module), function)


def emit_kernel(op: Op, target: Target, symbol_prefix: str) -> KernelCode:
    """The code of one ``kernel`` op. Raises Unsupported with a reason where it cannot be compiled."""
    with emitting_for(target):
        return emitter_of(op.attrs["form"])(op, target, symbol_prefix)
