"""Energy of one image, from the GPU's own counter, in a pass of its own.

`energy_mj_img`: what the board used while the step ran over and over for two seconds, divided by
the images. The counter moves every 100 ms or so, so that much is the resolution. Boards without
the counter, parts of a board (MIG) and processors have none.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from datbench.metrics import metric
from datbench.records import Measurement
from datbench.trial import Trial

LEAST_S = 2.0


@metric("energy", order=3)
def energy(trial: Trial) -> Iterator[Measurement]:
    """Run for two seconds between two readings of the counter."""
    before = trial.device.energy_mj()
    if before is None:
        return
    steps, start = 0, time.monotonic()
    while time.monotonic() - start < LEAST_S:
        trial.device.time(trial.step, 1)
        steps += 1
    after = trial.device.energy_mj()
    if after is not None:
        images = steps * trial.case.workload.batch_size
        yield Measurement("energy_mj_img", (after - before) / images)
