"""One metric per file: a function from a trial to measurements, found by reading the package."""

from __future__ import annotations

import dataclasses

from zoo.registry import Registry, Spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricSpec(Spec):
    """A metric that a worker answers once per model, before anything is timed.

    Args:
        order: the lower is measured earlier; what disturbs the process goes last.
    """

    order: int


METRICS: Registry[MetricSpec] = Registry("metric", "datbench.metrics", "metric", MetricSpec)
metric = METRICS.register
