"""An emulated CUDA device, which executes PTX text in numpy."""

from weft.runtime.emulate.faults import EmulationError, Finding, LaunchStatistics
from weft.runtime.emulate.machine import Machine

__all__ = ["EmulationError", "Finding", "LaunchStatistics", "Machine"]
