"""Parameters: all of them, shared ones once; buffers are not parameters."""

from __future__ import annotations

from collections.abc import Iterator

from datbench.metrics import metric
from datbench.records import Measurement
from datbench.trial import Trial


@metric("params", order=0)
def params(trial: Trial) -> Iterator[Measurement]:
    """Count parameters, those that train apart."""
    parameters = list(trial.model.parameters())  # a shared one comes once
    yield Measurement("params", sum(p.numel() for p in parameters))
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    yield Measurement("params_trainable", trainable)
