"""A CUDA graph of the eager forward: the same kernels, launched at once.

What it saves against eager is what the host took to launch kernel by kernel. `peak_allocated_mib`
is taken while the graph is captured, because a replay allocates nothing.
"""

from __future__ import annotations

import time

from datbench.device import MIB
from datbench.records import Measurement
from datbench.runtimes import Program, Running, Runtime, runtime

WARM_UPS = 3  # before the capture, so that cuDNN's search and lazy loading are not part of it


@runtime("cudagraph", order=2, device="cuda")
class CudaGraph(Runtime):
    """A CUDA graph, captured after a warm-up."""

    def start(self, program: Program) -> Running:
        """Warm up on a stream of its own, and capture one forward."""
        began = time.perf_counter()
        replay, peak = program.device.capture(program.eager, WARM_UPS)
        measured = [
            Measurement("prepare_s", time.perf_counter() - began),
            Measurement("peak_allocated_mib", peak / MIB),
        ]
        return Running(replay, program.answers, {"warm_ups": WARM_UPS}, measured, allocates=False)
