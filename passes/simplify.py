"""Algebraic simplification: the table of all rules and the pass that applies them."""

from __future__ import annotations

from weft.ir.graph import Graph
from weft.passes.canonicalise import CANONICAL
from weft.passes.dce import dce
from weft.passes.rewriting import Rewriter, Rules
from weft.passes.simplify_fold import FOLDING
from weft.passes.simplify_math import MATH
from weft.passes.simplify_reduce import REDUCING
from weft.passes.simplify_shape import SHAPE

SIMPLIFICATIONS = Rules(CANONICAL, FOLDING, MATH, SHAPE, REDUCING)


def simplify(graph: Graph) -> Graph:
    """Replace operations by cheaper ones with the same value.

    Expects a canonical graph (constants on the right, no ``gt``). Leaves one where no rule of the four tables
    applies: constants folded through the reference rules, chains of moves and conversions composed,
    arithmetic with neutral elements gone. NaN, infinity and the sign of zero come out as they went in: ``x
    * 0`` and ``x + 0.0`` stay. Small integer powers become products (within the accuracy of ``pow``),
    nested sums one sum.
    """
    return dce(Rewriter(graph, SIMPLIFICATIONS).run())
