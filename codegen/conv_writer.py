"""What the kernels of convolutions share: what they compute, and the epilogue that stores their results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

from weft.codegen.contract_kernel import contraction_of
from weft.codegen.conv_geometry import geometry
from weft.codegen.conv_plan import Way
from weft.codegen.epilogue import EPILOGUE, Output, emit_epilogue
from weft.codegen.kernel import KernelCode
from weft.codegen.microkernel import accumulator
from weft.codegen.phases import Writer
from weft.codegen.target import Target
from weft.codegen.uniforms import Uniforms
from weft.ir.contraction import turn_of
from weft.ir.graph import Op


class ConvWriter(Writer, ABC):
    """``conv`` is the convolution, ``turn`` the permutation that its result is stored in, if there is one,
    ``acc`` the dtype of the sums, ``g`` the geometry, ``cost_ns`` what all of it is estimated to take one
    core. Each ``way`` of computing it lists plans, and takes the one of least cost.
    """

    uniforms: Uniforms
    way: ClassVar[Way]
    problem: Any
    plan: Any
    cost_ns: float

    def __init__(self, op: Op, target: Target, prefix: str) -> None:
        super().__init__(op, target, prefix)
        self.conv = contraction_of(self.graph)
        self.turn = turn_of(self.graph, self.conv)
        self.acc = accumulator(self.conv.result.type.dtype)
        self.lanes = target.lanes(self.acc.bits)
        self.g = geometry(self.conv)

    def choose(self, problem: Any, plan: Any = None) -> None:
        """Take ``plan``, or that of least estimated cost."""
        self.problem = problem
        self.plan = plan or min(self.plans(), key=self.estimate)
        self.cost_ns = self.estimate(self.plan) * self.target.slot_ns

    def plans(self) -> Iterator[Any]:
        """Every plan that is worth an estimate."""
        return self.way.plans(self.problem, self.target)

    def estimate(self, plan: Any) -> float:
        """Slots that a plan takes."""
        return self.way.cost(self.problem, plan, self.target)

    @abstractmethod
    def emit(self) -> KernelCode:
        """The code of the kernel."""

    def start_epilogue(self, turned: Output | None = None) -> None:
        """Write the function that stores sums, as ``turned`` where the result is permuted."""
        shape = self.conv.result.type.shape
        output = Output((shape[0],), (shape[1],), tuple(shape[2:]))
        if turned is not None and self.turn is not None:
            output = turned
        fn = self.start(f"{self.prefix}_epilogue", EPILOGUE)
        self.epilogue = emit_epilogue(fn, self.op, self.turn or self.conv, output, self.acc, self.lanes, True,
                                      self.uniforms)  # fmt: skip
        self.keep(self.epilogue)
