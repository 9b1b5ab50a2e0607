"""PyTorch as it is written."""

from __future__ import annotations

from datbench.runtimes import Program, Running, Runtime, runtime


@runtime("eager", order=0)
class Eager(Runtime):
    """PyTorch's eager mode: each operator is launched as Python comes to it."""

    def start(self, program: Program) -> Running:
        """Nothing is to be done."""
        return Running(program.eager, program.answers)
