"""The passes that a graph goes through on its way to code, in order."""

from __future__ import annotations

import os
from collections.abc import Callable

from weft.ir.graph import Graph
from weft.ir.record import record
from weft.passes.canonicalise import canonicalise
from weft.passes.cse import cse
from weft.passes.dce import dce
from weft.passes.decompose import decompose
from weft.passes.layout import choose_layouts
from weft.passes.panels import pack_constants
from weft.passes.simplify import simplify
from weft.passes.trim import trim

Pass = Callable[[Graph, str], Graph]


def _fuse(graph: Graph, target_kind: str) -> Graph:
    from weft.passes.fuse import fuse

    return fuse(graph, target_kind)


# Memory is planned on the last graph by the runtime (passes/plan.py), which knows the donated buffers.
PASSES: list[tuple[str, Pass]] = [
    ("dce", lambda g, kind: dce(g)),
    ("pack", pack_constants),
    ("canonicalise", lambda g, kind: canonicalise(g)),
    ("cse", lambda g, kind: cse(g)),
    ("simplify", lambda g, kind: simplify(g)),
    ("decompose", decompose),
    ("cse again", lambda g, kind: cse(g)),  # what simplifying made equal
    ("layout", lambda g, kind: choose_layouts(g)),
    ("fuse", _fuse),
    ("trim", lambda g, kind: trim(g)),
]


@record(frozen=True)
class Lowered:
    """A graph on its way to code: the graph after each stage by name, the last one, and what was not fused.

    ``refusals`` are (producer, consumer, reason) of neighbours that stayed in kernels of their own.
    """

    stages: list[tuple[str, Graph]]
    graph: Graph
    refusals: list[tuple[str, str, str]]


def lower(graph: Graph, target_kind: str = "cpu") -> Lowered:
    """Run all passes on a captured graph.

    The last graph holds ``kernel`` operations, host and control operations, and free views (reshapes). The
    first stage, ``captured``, is the graph itself. ``target_kind`` is ``"cpu"``, ``"cuda"`` or ``"null"``.
    With ``WEFT_VERIFY=1`` in the environment every stage goes through the verifier, which raises
    VerificationError.
    """
    check = os.environ.get("WEFT_VERIFY") == "1"
    stages = [("captured", graph)]
    for name, run in PASSES:
        graph = run(graph, target_kind)
        if check:
            _verify(graph, name)
        stages.append((name, graph))
    from weft.passes.fuse import refusals

    return Lowered(stages, graph, list(refusals))


def simplified(graph: Graph) -> Graph:
    """The graph after the passes that know of no target."""
    return simplify(cse(canonicalise(dce(graph))))


def _verify(graph: Graph, stage: str) -> None:
    from weft.ir.errors import VerificationError
    from weft.ir.verify import verify

    try:
        verify(graph)
    except VerificationError as error:
        raise VerificationError(f"after {stage}: {error}", graph) from error
