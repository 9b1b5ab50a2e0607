"""Latency: milliseconds of one forward of a batch that is already on the device.

Iterations come in slots, with gauges of what else went on read before and after. Where another
model ran before, one or two untimed iterations absorb what it left in the caches.
`latency_ms_median` is the median of all samples, from three processes on that of the medians of
processes, with a 95 % interval; p90, p95 and p99, of all samples, need 29, 59 and 299 of them;
`throughput_img_s` is images over the summed time. `host_ms_median` (CUDA) is how long launching
took; where that is longer than the work the row is `host_bound`. Of a training step,
`forward_ms_median` (with the loss), `backward_ms_median` and `optimizer_ms_median` are its parts.

`time_modules` marks the time before and after each module. That costs time itself, and keeps
TransformerEncoderLayer off its fast path: steps with and without marks take turns, and the
ratio is told.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from datbench import gauges
from datbench.records import Measurement
from datbench.stats import PERCENTILE_SAMPLES, latency_interval, latency_median, percentile

if TYPE_CHECKING:
    from datbench.trial import Trial

WARMUP_MOST_S = 20.0
STEADY = 0.05  # relative difference between the fastest of the last and the previous blocks
BLOCKS, BLOCK_MS = 2, 20.0  # blocks that are compared; milliseconds of each, or one iteration
SPUN_S = 0.02  # after which torch's threads no longer spin where a runtime has its own
MODULE_STEPS, MODULE_S = (10, 200), 5.0  # steps with marks, at least and at most; seconds
NOISY = 0.10  # width of the interval relative to the median


@dataclasses.dataclass(frozen=True)
class Warmup:
    """How the warm-up ended.

    Args:
        step_ms: median of the last iterations.
        steady: whether the times had settled.
    """

    step_ms: float
    steady: bool


@dataclasses.dataclass
class Samples:
    """Timed iterations of one model in one process, and the process pair that it was part of.

    Its `logs` are the logarithms of the medians of its slots.
    """

    pair: int = 0
    latency_ms: list[float] = dataclasses.field(default_factory=list)
    host_ms: list[float] = dataclasses.field(default_factory=list)
    parts_ms: dict[str, list[float]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(list)
    )
    logs: list[float] = dataclasses.field(default_factory=list)

    def add(self, slot: Slot) -> None:
        """Take the times of one more slot."""
        self.take(slot.latency_ms, slot.host_ms, slot.parts_ms)

    def take(
        self,
        latency_ms: Sequence[float],
        host_ms: Sequence[float] | None,
        parts_ms: Mapping[str, Sequence[float]] | None,
    ) -> None:
        """Take the times of one more slot, as `samples.jsonl` has them."""
        self.logs.append(math.log(statistics.median(latency_ms)))
        self.latency_ms += latency_ms
        self.host_ms += host_ms or []
        for part, times in (parts_ms or {}).items():
            self.parts_ms[part] += times


@dataclasses.dataclass(frozen=True)
class Slot:
    """Timed iterations in a row, and what else went on.

    Args:
        latency_ms: of each iteration, on the device's own clock.
        host_ms: until the host could go on; None where the device is the host.
        before, after: gauges around the timed iterations.
        parts_ms: of each training step, by part.
    """

    latency_ms: list[float]
    host_ms: list[float] | None
    before: gauges.Readings
    after: gauges.Readings
    parts_ms: dict[str, list[float]] = dataclasses.field(default_factory=dict)


def warm_up(trial: Trial, most_s: float = WARMUP_MOST_S) -> Warmup:
    """Run until the fastest of two blocks of iterations is as fast as that of the two before.

    Args:
        trial: what to run.
        most_s: seconds after which it ends in any case.
    """
    start = time.monotonic()
    blocks: list[float] = []
    iterations = 1
    while True:
        block = trial.device.time(trial.step, iterations).latency_ms
        blocks.append(statistics.median(block))
        iterations = max(1, min(1000, math.ceil(BLOCK_MS / max(blocks[-1], 1e-3))))
        spent = time.monotonic() - start
        last, previous = blocks[-BLOCKS:], blocks[-2 * BLOCKS : -BLOCKS]
        steady = (
            len(previous) == BLOCKS
            and abs(min(last) / min(previous) - 1) < STEADY
            and spent > trial.device.warm_up_s
        )
        if steady or spent > max(most_s, trial.device.warm_up_s):
            return Warmup(statistics.median(last), steady)


def time_slot(trial: Trial, iterations: int, switched: bool = True) -> Slot:
    """Time consecutive iterations after untimed ones.

    Args:
        trial: what to run.
        iterations: timed ones.
        switched: whether another model ran before; if not, one untimed iteration less will do.
    """
    device = trial.device
    reference_ms = None
    if trial.own_threads:
        reference_ms = device.reference_ms()
        time.sleep(SPUN_S)
    least, least_s = device.switch_steps - (not switched), device.switch_s if switched else 0.0
    start, steps = time.monotonic(), 0
    while steps < least or time.monotonic() - start < least_s:
        trial.step()
        steps += 1
    before = device.read(reference_ms)  # of a GPU: while it still works
    trial.forget_parts()
    timing = device.time(trial.step, iterations)
    after = device.read(reference_ms)
    return Slot(timing.latency_ms, timing.host_ms, before, after, trial.parts_ms())


@dataclasses.dataclass(frozen=True)
class ModuleTimes:
    """How long each module takes in a step.

    Args:
        latency_ms: median by name, submodules included, "" for the whole model.
        overhead: of the marks, as a fraction of the step without them.
        steps: with marks.
    """

    latency_ms: dict[str, float]
    overhead: float
    steps: int


def time_modules(trial: Trial, depth: int | None = None) -> ModuleTimes:
    """Time each module down to a depth, the calls of a step together."""
    warm_up(trial)
    device = trial.device
    plain: list[float] = []
    marked: dict[str, list[float]] = collections.defaultdict(list)
    start = time.monotonic()
    while len(plain) < MODULE_STEPS[0] or (
        time.monotonic() - start < MODULE_S and len(plain) < MODULE_STEPS[1]
    ):
        plain += device.time(trial.step, 1).latency_ms
        for name, latency_ms in _step_with_marks(trial, depth).items():
            marked[name].append(latency_ms)
    medians = {name: statistics.median(times) for name, times in marked.items()}
    return ModuleTimes(medians, medians[""] / statistics.median(plain) - 1, len(plain))


def _step_with_marks(trial: Trial, depth: int | None) -> dict[str, float]:
    device = trial.device
    calls: dict[str, list[tuple[Any, Any]]] = collections.defaultdict(list)
    hooks = []
    for name, module in trial.model.named_modules():
        if depth is None or len(name.split(".")) <= depth:
            opened: list[Any] = []

            def before(*_: Any, opened: list[Any] = opened) -> None:
                opened.append(device.mark())

            def after(*_: Any, opened: list[Any] = opened, name: str = name) -> None:
                call = (opened.pop(), device.mark())
                if not opened:  # a call inside another of the same module is part of that
                    calls[name].append(call)

            hooks += [
                module.register_forward_pre_hook(before),
                module.register_forward_hook(after),
            ]
    try:
        trial.step()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: sum(device.between(marks)) for name, marks in calls.items()}


def summarise(processes: Sequence[Samples], batch_size: int) -> Iterator[Measurement]:
    """Turn the samples of each process into the columns of a row.

    Args:
        processes: one entry for each process in which the model was timed; none may be empty.
        batch_size: images in an iteration.
    """
    samples = [t for process in processes for t in process.latency_ms]
    host = [t for process in processes for t in process.host_ms]
    each = [process.latency_ms for process in processes]
    median, interval = latency_median(each), latency_interval(each)
    doubts = []
    if interval is None or len(samples) < min(PERCENTILE_SAMPLES.values()):
        doubts.append(f"few_samples: {len(samples)} timed iterations")
    if interval is not None and interval[1] - interval[0] > NOISY * median:
        width = (interval[1] - interval[0]) / median
        doubts.append(f"noisy: the interval is {width:.0%} of the median wide")
    host_median = statistics.median(host) if host else None
    if host_median is not None and host_median > median:
        doubts.append("host_bound: limited by Python launching kernels, not by the GPU")
    lo, hi = interval or (None, None)
    yield Measurement("latency_ms_median", median, tuple(doubts))
    yield Measurement("latency_ms_lo", lo)
    yield Measurement("latency_ms_hi", hi)
    yield Measurement("latency_ms_min", min(samples))
    for q in PERCENTILE_SAMPLES:
        yield Measurement(f"latency_ms_p{q}", percentile(samples, q))
    yield Measurement("host_ms_median", host_median)
    for part in processes[0].parts_ms:
        times = [t for process in processes for t in process.parts_ms[part]]
        yield Measurement(f"{part}_ms_median", statistics.median(times))
    yield Measurement("throughput_img_s", 1000 * batch_size * len(samples) / sum(samples))
    yield Measurement("samples", len(samples))
    yield Measurement("pairs", len({process.pair for process in processes}))
