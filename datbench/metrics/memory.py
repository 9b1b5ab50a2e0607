"""Memory of one step after warm-up, in a pass of its own.

`weights_mib`: parameters and buffers. `peak_allocated_mib`: the most bytes of tensors alive at once
during the step, weights and input included, and what an optimiser keeps: on CUDA the caching
allocator's figure, on the CPU the sum of the allocator's events. `allocated_before_mib` and
`allocated_after_mib`: what was alive before and after it; `activations_mib`: by how much the peak
was above what was alive before. `peak_reserved_mib`: what that allocator had taken from the
device (CUDA). `process_memory_mib`: what the driver counts for the process, CUDA's context
included. `rss_peak_mib`: peak resident memory of the worker process during the step (Linux), with
torch itself.

Of a runtime that takes its memory elsewhere than from torch, `peak_allocated_mib` and what goes
with it are not known; `rss_peak_mib` and `process_memory_mib` then hold the model twice.
"""

from __future__ import annotations

from collections.abc import Iterator

from datbench.device import MIB
from datbench.metrics import metric
from datbench.records import Measurement
from datbench.trial import Trial

ALLOCATED = (
    "allocated_before_mib", "peak_allocated_mib", "activations_mib", "allocated_after_mib",
)  # fmt: skip


@metric("memory", order=1)
def memory(trial: Trial) -> Iterator[Measurement]:
    """Measure the memory of one step."""
    weights = [*trial.model.parameters(), *trial.model.buffers()]
    yield Measurement("weights_mib", sum(t.nbytes for t in weights) / MIB)
    trial.step()
    trial.forget_parts()
    for found in trial.device.memory(trial.step, trial.resident_bytes()):
        if trial.allocates or found.name not in ALLOCATED:
            yield found
