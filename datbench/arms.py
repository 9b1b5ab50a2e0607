"""What is known of the cases of a run, and how it is found again on disk."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from datbench.metrics.latency import Samples
from datbench.plan import Case
from datbench.pool import WorkerFault
from datbench.records import Environment, Measurement, Record
from datbench.stats import Decision, between, round_difference

DISTURBED = 0.05  # of a model's slots, from which on the row is flagged
SENSITIVE = 0.10  # between the fastest and the slowest layout, from which on the row is flagged
FEWEST_LAYOUTS = 3  # for which that is asked


@dataclasses.dataclass
class Arm:
    """What is known of one case so far; `met` is whether a worker told of its device."""

    case: Case
    environment: Environment
    measurements: list[Measurement] = dataclasses.field(default_factory=list)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    need_mib: float = 0.0
    processes: list[Samples] = dataclasses.field(default_factory=list)
    differences: list[list[float]] = dataclasses.field(default_factory=list)
    planned: list[int] = dataclasses.field(default_factory=list)
    rounds: list[int] = dataclasses.field(default_factory=list)
    slots: int = 0
    disturbed: dict[str, list[str]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(list)
    )
    foreign: int = 0
    spent_s: dict[str, float] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(float)
    )
    cold: list[int] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    met: bool = False
    decision: Decision | None = None
    error: str | None = None
    record: Record | None = None

    @property
    def label(self) -> str:
        """How the row is called."""
        return self.case.label

    @property
    def pairs(self) -> list[float]:
        """Log-ratio to the baseline in each process pair; pairs that were cut short are left out.

        A budget or Ctrl-C cuts a pair; less than half of its rounds are too few.
        """
        both = zip(self.differences, self.planned, strict=False)  # Ctrl-C may fall between the two
        return [statistics.median(rounds) for rounds, planned in both if len(rounds) > planned / 2]

    @property
    def pairs_done(self) -> int:
        """Process pairs that count."""
        both = zip(self.rounds, self.planned, strict=False)
        return sum(rounds > planned / 2 for rounds, planned in both)

    @property
    def wrong(self) -> bool:
        """Whether its answers are not those of eager PyTorch, so that its time says nothing."""
        return any(w.startswith("wrong_output:") for m in self.measurements for w in m.warnings)

    def open_pair(self, pair: int) -> None:
        """Start counting a process pair."""
        self.processes.append(Samples(pair))
        self.differences.append([])
        self.planned.append(0)
        self.rounds.append(0)

    def disturb(self, told: str) -> None:
        """Remember what disturbed a slot, "flag: what was seen"."""
        flag, _, what = told.partition(": ")
        self.disturbed[flag].append(what)

    def fail(self, error: Exception) -> None:
        """Keep what went wrong; the model is not asked again."""
        self.error = str(error)
        if self.error.startswith("out of memory"):
            self.warnings.append("oom: the device has too little memory for it")

    @contextlib.contextmanager
    def spending(self, what: str) -> Iterator[None]:
        """Add the time inside to what went into `what`; a worker's fault fails the arm."""
        start = time.monotonic()
        try:
            yield
        except WorkerFault as fault:
            self.fail(fault)
        finally:
            self.spent_s[what] += time.monotonic() - start

    def doubts(self, busiest: str) -> Iterator[str]:
        """Yield what warm-up and gauges showed, too often to be passed over."""
        if self.environment.simulated:
            yield "simulated: the device only pretends to work; nothing here was measured"
        if self.cold:
            which = ", ".join(str(pair + 1) for pair in self.cold)
            yield f"not_warm: times still moved after the warm-up of pair {which}"
        for flag, told in self.disturbed.items():
            if len(told) > DISTURBED * self.slots:
                who = f"; {busiest}" if busiest and flag == "contended" else ""
                yield f"{flag}: {len(told)} of {self.slots} slots, the last: {told[-1]}{who}"
        if self.foreign:
            yield f"foreign_process: {self.foreign} other processes are on the GPU"


def layout_doubt(arm: Arm, compared: Sequence[Arm]) -> Iterator[str]:
    """Yield it if a model is fast or slow by where its memory lies, from process to process.

    A machine that drifts makes processes differ too. It is not that if the ratios within rounds
    differ as much, by more than their scatter within the processes explains.

    Args:
        arm: the model.
        compared: with which other it was, in ratios; itself, or where it is the baseline all
            others; none where nothing is compared.
    """
    logs = [samples.logs for samples in arm.processes if samples.logs]
    if len(logs) < FEWEST_LAYOUTS:
        return
    seen = [logs, *([d for d in other.differences if d] for other in compared)]
    if any(len(groups) < FEWEST_LAYOUTS or not _apart(groups) for groups in seen):
        return
    times_ms = [statistics.median(samples.latency_ms) for samples in arm.processes if samples.logs]
    yield (
        f"layout_sensitive: {min(times_ms):.3g} ms in the fastest of {len(times_ms)} layouts of "
        f"its memory, {max(times_ms):.3g} ms in the slowest"
    )


def _apart(groups: Sequence[Sequence[float]]) -> bool:
    """Whether processes differ by more than `SENSITIVE`, and not by their scatter within."""
    medians = list(map(statistics.median, groups))
    apart = math.expm1(max(medians) - min(medians))
    return apart > SENSITIVE and between(groups) > 0.5


def close_round(
    arms: Sequence[Arm], baseline: str | None, medians: Mapping[str, Sequence[float]]
) -> None:
    """Count a round, and take its ratios, of the arms that have both of their slots.

    Args:
        arms: of the round, in the last of their process pairs.
        baseline: label of the one that the others are compared with.
        medians: of each slot, by label.
    """
    reference = medians.get(baseline or "", [])
    for arm in arms:
        own = medians.get(arm.label, [])
        if len(own) == 2:
            arm.rounds[-1] += 1
            if len(reference) == 2 and arm.label != baseline:
                arm.differences[-1].append(round_difference(reference, own))


def restore(
    arms: Mapping[tuple[str, str], Arm], baseline: str | None, slots: Sequence[Mapping[str, Any]]
) -> None:
    """Fill arms with the slots of an earlier process, as if this one had timed them.

    Args:
        arms: by label and key.
        baseline: label of the one that the others are compared with.
        slots: as `samples.jsonl` has them; those of other models or keys are left out.
    """
    kept = [s for s in slots if (s["model"], s.get("key")) in arms and not s["redone"]]
    for (pair, _), group in itertools.groupby(kept, key=lambda slot: (slot["pair"], slot["group"])):
        here: dict[str, Arm] = {}
        for _, round_ in itertools.groupby(group, key=lambda slot: slot["round"]):
            medians: dict[str, list[float]] = collections.defaultdict(list)
            for slot in round_:
                if slot["model"] not in here:
                    here[slot["model"]] = arm = arms[slot["model"], slot["key"]]
                    arm.open_pair(pair)
                    arm.planned[-1] = slot["rounds"]
                    arm.cold += [] if slot["steady"] else [pair]
                arm = here[slot["model"]]
                arm.processes[-1].take(slot["latency_ms"], slot["host_ms"], slot["parts_ms"])
                arm.slots += 1
                arm.foreign = max(arm.foreign, slot["foreign"])
                for told in slot["disturbed"]:
                    arm.disturb(told)
                medians[arm.label].append(statistics.median(slot["latency_ms"]))
            close_round(list(here.values()), baseline, medians)


def need_mib(measurements: Sequence[Measurement]) -> float:
    """Memory of a process that holds the model, as far as it was measured."""
    values = {m.name: m.value or 0.0 for m in measurements}
    names = ("process_memory_mib", "peak_reserved_mib", "rss_peak_mib")
    return next((values[name] for name in names if values.get(name)), 0.0)
