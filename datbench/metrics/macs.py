"""Multiply-adds of one image, counted twice.

`macs` is what papers call FLOPs and fvcore calls flops: one multiply-add is 1. `flops` is twice
that. Counted are convolutions, linear layers, matrix products, fused attention and whatever else
`datbench.counters.rules` has a formula for, and as fvcore does 5 per element of a LayerNorm or
GroupNorm, 2 of a BatchNorm in eval, 4 per output element of bilinear sampling, and adaptive pooling
by its input. Other elementwise work and data movement are not. docs/macs.md has the convention.

The count is that of the batch, divided by its size. Products that a module does only to mask them
are left out: it tells their number as `excess_macs`. Attention of the zoo is counted as the papers
write it, however it is computed.

`macs_second_opinion` is torch's FlopCounterMode, which counts products only. Where the products of
both are more than 2 % apart the row is flagged `macs_disagree`; operators without a rule that are
not known to be negligible flag `uncounted_ops`; what only one counter could count, `one_counter`.
"""

from __future__ import annotations

from collections.abc import Iterator

from datbench.counters import copies_of, count
from datbench.metrics import metric
from datbench.records import Measurement
from datbench.trial import Trial


@metric("macs", order=2)
def macs(trial: Trial) -> Iterator[Measurement]:
    """Count multiply-adds with fvcore, and again with torch's own counter."""
    found = count(copies_of(trial.model), trial.inputs)
    yield Measurement("macs", found.macs, found.doubts)
    yield Measurement("flops", None if found.macs is None else 2 * found.macs)
    yield Measurement("macs_second_opinion", found.second)
