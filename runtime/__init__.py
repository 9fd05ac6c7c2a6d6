"""The runtime: buffers, threads, the just-in-time linker, executables and the kernel cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from weft.runtime import buffers, stats

if TYPE_CHECKING:
    from weft.codegen.target import Target
    from weft.ir.graph import Graph
    from weft.runtime.executable import Executable

__all__ = [
    "Executable", "buffers", "compile_graph", "compile_only", "freeze_graph", "get_num_threads",
    "prepare", "set_num_threads", "stats",
]  # fmt: skip


def compile_graph(
    graph: Graph,
    *,
    donate: Mapping[int, int] | None = None,
    target: Target | None = None,
    name: str | None = None,
) -> Executable:
    """Compile ``graph`` for the host. Result ``i`` is written into the buffer of param ``donate[i]``.

    With another ``target`` the graph is compiled only: the executable shows its code and refuses to run.
    ValueError for a donation whose types differ; CompilerError, with the graph, for a bug of the compiler.

    >>> from weft.ir.prims.base import trace
    >>> from weft.ir.types import TensorType, f32
    >>> import numpy as np
    >>> twice = compile_graph(trace(lambda x: x + x, TensorType((2,), f32)))
    >>> twice.runner(np.float32([1, 2]))
    [array([2., 4.], dtype=float32)]
    """
    from weft.runtime.compile import compile_graph as run  # the passes and LLVM load with the first compile

    return run(graph, donate=donate, target=target, name=name)


def prepare() -> None:
    """Load what the first compile of this process needs, unless the disk cache has it: LLVM and the code that
    all executables share in another thread, the compiler's modules in this one."""
    from weft.runtime import callpath

    if not callpath.ready():
        import weft.codegen.loop_kernel
        import weft.passes.pipeline
        import weft.runtime.build  # noqa: F401


def compile_only(graph: Graph, target: Target, name: str | None = None) -> Executable:
    """Compile for any machine LLVM knows and run nothing."""
    return compile_graph(graph, target=target, name=name)


def freeze_graph(graph: Graph, params: Sequence[int], stamp: Any, name: str) -> Any:
    """Compile ``graph`` so that what depends on ``params`` alone runs once per version of them.

    ``stamp()`` gives, in order of ``params``, the array and the version of each. None where nothing depends
    on them alone.
    """
    from weft.runtime.frozen import freeze_graph as run

    return run(graph, params, stamp, name)


def get_num_threads() -> int:
    """Threads that a parallel kernel uses, the calling one included."""
    from weft.runtime import threads

    return threads.get_num_threads()


def set_num_threads(n: int) -> None:
    """Use ``n`` threads from now on. Results do not depend on it. RuntimeError unless ``n`` >= 1."""
    from weft.runtime import threads

    threads.set_num_threads(n)


def __getattr__(name: str) -> Any:
    if name == "Executable":
        from weft.runtime.executable import Executable

        return Executable
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
