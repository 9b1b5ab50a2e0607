"""Runs a plan: owns the worker processes and decides what is timed when.

First each model answers, in a process of its own, what needs no clock. Then come process pairs:
fresh workers for all models are alive together and are timed one at a time, in rounds whose
order is a random permutation and its mirror image, while this process sleeps. Models that do not
fit in memory together are split into groups that each hold the baseline; without one, each model
has a process pair for itself. A run that was cut short goes on where its samples end.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import math
import os
import platform
import shlex
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from datbench import gauges
from datbench.arms import Arm, layout_doubt, need_mib, restore
from datbench.device import cpu_name
from datbench.errors import UserError
from datbench.metrics.latency import WARMUP_MOST_S, Samples, Slot, summarise
from datbench.pair import Pair, Place
from datbench.plan import Plan, versions
from datbench.pool import Pool
from datbench.records import PARTS, Comparison, Environment, Record, nearest
from datbench.schedule import (
    FEWEST_PAIRS,
    LOOK_LEVEL,
    PAUSES_S,
    groups,
    may_redo,
)
from datbench.stats import decide, median_interval
from datbench.store import RunFolder
from datbench.turns import turn

Progress = Callable[[str, float], None]
MOST_OF_A_PAIR = 0.75  # of the time of the last pair; for less than that no other is started


class OtherMachine(UserError):
    """A run cannot go on here, because it was begun on another machine."""


def run(
    plan: Plan,
    folder: RunFolder,
    progress: Progress = lambda _, __: None,
    pool: Pool | None = None,
) -> list[Record]:
    """Measure every case and keep each record in `folder` as soon as it says something new.

    A case that fails becomes a record with `error`, and the others go on. Ctrl-C ends the
    measuring; what was measured by then is returned. What `folder` already holds of a case is not
    measured again, unless it failed.

    Args:
        plan: what to measure.
        folder: where records and samples go.
        progress: called with what is going on and the fraction that is done.
        pool: starts the workers; one for this run by default.
    Raises:
        UserError: another process measures in `folder`.
        OtherMachine: it is of another machine.
    """
    with folder.measuring():
        run_ = Run(plan, folder, progress)
        run_.resume()
        run_.measure(pool)
        return run_.finish()


class Run:
    """A plan being measured.

    Args:
        plan, folder, progress: as `run` takes them.

    Its `health` is what the device told of its settings.
    """

    def __init__(self, plan: Plan, folder: RunFolder, progress: Progress) -> None:
        self.plan, self.folder, self.progress = plan, folder, progress
        facts = host_facts()
        self.arms = [
            Arm(case, Environment(**facts, threads=case.workload.threads)) for case in plan.cases
        ]
        for arm in self.arms:
            if arm.label in plan.impossible:
                arm.error = plan.impossible[arm.label]
                arm.warnings.append("impossible: nothing was tried")
        self._next_pair = 0
        self.started = time.monotonic()
        self.interrupted = False
        self.health: dict[str, Any] = {}
        self._room_mib: float | None = None
        self._pair_s = 0.0
        self._slots = self._redone = self._in_a_row = 0
        self._reference_ms: collections.deque[float] = collections.deque(maxlen=gauges.REMEMBERED)
        self._busiest = ""

    @property
    def alive(self) -> list[Arm]:
        """Arms without a fault."""
        return [arm for arm in self.arms if arm.error is None]

    @property
    def wanted(self) -> list[Arm]:
        """Arms that are still to be measured, with the baseline that they are compared with."""
        found = [arm for arm in self.alive if arm.record is None]
        return [arm for arm in self.alive if arm in found or (found and self._is_baseline(arm))]

    def _is_baseline(self, arm: Arm) -> bool:
        return arm.label == self.plan.baseline

    def resume(self) -> None:
        """Take over what the folder holds of these cases.

        Raises:
            UserError: it is of another machine.
        """
        arms = {arm.label: arm for arm in self.arms}
        timed = _timed_columns()
        for record in self.folder.records() if self.folder.has_records else []:
            arm = arms.get(record.model)
            if arm is None or record.key != arm.case.key or record.environment is None:
                continue
            self._check_origin(record, arm.environment)
            arm.environment = record.environment
            arm.met = True
            arm.facts = dict(record.facts)
            arm.measurements = [m for m in record.measurements if m.name not in timed]
            arm.need_mib = need_mib(arm.measurements)
            arm.spent_s.update(record.spent_s)
            if record.finished and not record.error and self._as_planned(record):
                arm.record = record
        slots = self.folder.samples()
        described = {(arm.label, arm.case.key): arm for arm in self.arms if arm.measurements}
        restore(described, self.plan.baseline, slots)
        self._next_pair = max((slot["pair"] for slot in slots), default=-1) + 1

    def _as_planned(self, record: Record) -> bool:
        """Whether a record is what this plan would come to, and not that of another protocol."""
        protocol = self.plan.protocol
        asked = (protocol.name, protocol.budget_s, protocol.min_effect)
        against = record.comparison.baseline if record.comparison else None
        compared = self.plan.baseline is not None and record.model != self.plan.baseline
        return (record.tier, record.budget_s, record.min_effect) == asked and (
            against == (self.plan.baseline if compared else None)
        )

    def _check_origin(self, record: Record, here: Environment) -> None:
        """Refuse to go on with what another machine or command began.

        A GPU is known only when it is opened.
        """
        words = shlex.split(record.command)
        if words and words[1] != self.plan.command:
            raise UserError(
                f"{self.folder.path} is a {words[1]}, and this is a {self.plan.command}; leave "
                "--resume out"
            )
        known = record.machine[:2]
        if known != (here.host, here.cpu_name):
            raise OtherMachine(
                f"{self.folder.path} was measured on {' '.join(known)}, and this is {here.host} "
                f"{here.cpu_name}: figures of two machines do not mix; leave --resume out"
            )

    def measure(self, pool: Pool | None = None) -> None:
        """Measure everything in its turn, or until Ctrl-C."""
        if not self.wanted:
            return
        given = contextlib.nullcontext(pool) if pool else None
        try:
            with (
                turn(self.plan.cases[0].workload.device),
                given or Pool(self.plan.protocol.timeout_s, self.plan.cases) as pool_,
            ):
                self.started = time.monotonic()
                self._measure(pool_)
        except KeyboardInterrupt:
            self.interrupted = True

    def _measure(self, pool: Pool) -> None:
        for i, arm in enumerate(self.wanted):
            if i == 0 or not arm.measurements:
                self.progress(f"{arm.label}: parameters, MACs, memory", 0.2 * i / len(self.arms))
                self._describe(pool, arm)
                self._save(arm)
        looks = self.plan.protocol.looks
        first = self._next_pair
        if self.wanted and self._pairs_done() in looks and self._look():
            return  # a run that was cut between its last pair and its end
        while self.wanted and (done := self._pairs_done()) < looks[-1]:
            again = self._next_pair > first
            if again and self.left_s() < MOST_OF_A_PAIR * self._pair_s:
                break
            start, earlier, before = time.monotonic(), gauges.processes(), self._contended()
            together = self._groups(done)
            for number, group in enumerate(together):
                place = Place(self._next_pair, number, len(together), done)
                Pair(self, pool, group, place).measure()
                if self.plan.baseline is None:
                    self._save(group[0], finished=group[0].pairs_done >= looks[-1])
            self._pair_s = time.monotonic() - start
            self._next_pair += 1
            if self._contended() > before:
                self._busiest = gauges.busiest(earlier, self._pair_s) or self._busiest
            if done + 1 in looks and self._look():
                return
            if self.plan.baseline is not None:
                for arm in self.wanted:
                    self._save(arm)
        self._look()

    def _pairs_done(self) -> int:
        """Process pairs that every wanted arm has."""
        return min(self._done(arm) for arm in self.wanted if not self._skipped(arm))

    def _done(self, arm: Arm) -> int:
        """Process pairs of an arm that count; where it is compared, those with the baseline."""
        compared = any(map(self._is_baseline, self.alive)) and not self._is_baseline(arm)
        return len(arm.pairs) if compared else arm.pairs_done

    def _skipped(self, arm: Arm) -> bool:
        """Whether an arm only goes along, because others are compared with it."""
        return self._is_baseline(arm) and len(self.wanted) > 1

    def finish(self) -> list[Record]:
        """Write the last state of every record and return them."""
        wanted = self.wanted
        if self.interrupted:
            self._look()
            for arm in wanted:
                arm.warnings.append("interrupted: stopped by the user before the planned end")
        for arm in wanted:
            self._save(arm, finished=not self.interrupted)
        return [arm.record or self._save(arm) for arm in self.arms]

    def _describe(self, pool: Pool, arm: Arm) -> None:
        """Ask for what needs no clock; of an arm that was taken over, for the machine alone."""
        worker = pool.start(arm.case)
        with arm.spending("facts, MACs and memory"):
            facts = worker.ask("facts")
            if arm.measurements and facts["device_name"] != arm.environment.device_name:
                raise OtherMachine(
                    f"{self.folder.path} was measured on {arm.environment.device_name}, and this "
                    f"is {facts['device_name']}; leave --resume out"
                )
            arm.environment = dataclasses.replace(arm.environment, **facts)
            arm.met = True
            room = worker.ask("room")
            self._room_mib = room if self._room_mib is None else min(room, self._room_mib)
            self.health = worker.ask("health")
            if not arm.measurements:
                worker.ask("build")
                arm.facts = worker.ask("how")
                arm.measurements = worker.ask("metrics")
                arm.need_mib = need_mib(arm.measurements)
        worker.stop()

    def _groups(self, done: int) -> list[list[Arm]]:
        """Arms that are alive together, those left out that are ahead of `done` pairs."""
        behind = [arm for arm in self.wanted if self._skipped(arm) or self._done(arm) <= done]
        if self.plan.baseline is None:
            return [[arm] for arm in behind]
        baseline = [i for i, arm in enumerate(behind) if self._is_baseline(arm)]
        found = groups(
            [arm.need_mib for arm in behind], self._room_mib, baseline[0] if baseline else None
        )
        return [[behind[i] for i in group] for group in found]

    def disturbance(self, slot: Slot) -> gauges.Disturbance:
        """Say what disturbed a slot, by its gauges and those of the slots before."""
        usual_ms = statistics.median(self._reference_ms) if self._reference_ms else None
        slowest_ms = gauges.slowest(slot.before, slot.after)
        if slowest_ms is not None:
            self._reference_ms.append(slowest_ms)
        return gauges.disturbance(slot.before, slot.after, usual_ms)

    def redo(self, found: gauges.Disturbance) -> float | None:
        """Count a slot; the pause after which it is to be timed again, None if it stands.

        Clocks and other machines give no sign of when they will have calmed down, so there is
        nothing to wait for.
        """
        self._slots += 1
        if not found.redo:
            self._in_a_row = 0
            return None
        if not may_redo(self._redone, self._slots):
            return None
        self._redone += 1
        if not found.contended:
            return 0.0
        self._in_a_row += 1
        return PAUSES_S[min(self._in_a_row, len(PAUSES_S)) - 1]

    def _look(self) -> bool:
        """Take verdicts; tell whether every comparison that goes on has one."""
        compared = [arm for arm in self._judged() if len(arm.pairs) >= FEWEST_PAIRS]
        min_effect = self.plan.protocol.min_effect
        decisions = decide([arm.pairs for arm in compared], LOOK_LEVEL, min_effect)
        for arm, decision in zip(compared, decisions, strict=True):
            arm.decision = decision
        settled = all(decision.verdict != "INCONCLUSIVE" for decision in decisions)
        return settled or not any(map(self._is_baseline, self.alive))

    def _contended(self) -> int:
        return sum(len(arm.disturbed["contended"]) for arm in self.arms)

    def _challengers(self) -> list[Arm]:
        if self.plan.baseline is None:
            return []
        return [arm for arm in self.alive if arm.record is None and not self._is_baseline(arm)]

    def _judged(self) -> list[Arm]:
        """Challengers that get a verdict: both they and the baseline give the right answers."""
        if any(arm.wrong for arm in self.arms if self._is_baseline(arm)):
            return []
        return [arm for arm in self._challengers() if not arm.wrong]

    def _comparison(self, arm: Arm) -> Comparison | None:
        pairs = [d for d in arm.differences if d]
        if self.plan.baseline is None or arm.error is not None or not pairs:
            return None
        if (found := arm.decision) is not None:
            ratio, lo, hi = map(math.exp, (found.mean, found.lo, found.hi))
            baseline, needed = self.plan.baseline, found.pairs_needed
            return Comparison(baseline, ratio, lo, hi, found.verdict, needed)
        within = median_interval(pairs[0]) if len(pairs) == 1 else None
        bounds = map(math.exp, within) if within else (None, None)
        mean = statistics.fmean(statistics.median(rounds) for rounds in pairs)
        return Comparison(self.plan.baseline, math.exp(mean), *bounds)

    def _record(self, arm: Arm, finished: bool) -> Record:
        case, protocol = arm.case, self.plan.protocol
        timed = [samples for samples in arm.processes if samples.latency_ms]
        measurements = [*arm.measurements]
        if timed:
            measurements += summarise(timed, case.workload.batch_size)
        latency_ms = next((m.value for m in measurements if m.name == "latency_ms_median"), None)
        return Record(
            run_id=self.folder.run_id,
            key=case.key,
            model=case.label,
            family=case.named.family,
            source=case.named.source,
            workload=case.workload,
            timestamp_utc=datetime.now(UTC).isoformat(timespec="seconds"),
            environment=arm.environment if self._met(arm) else None,
            measurements=tuple(measurements),
            comparison=self._comparison(arm),
            warnings=tuple(dict.fromkeys((*arm.warnings, *self._doubts(arm)))),
            error=arm.error,
            tier=protocol.name,
            min_effect=protocol.min_effect,
            budget_s=protocol.budget_s,
            command=self.plan.shell,
            finished=finished or arm.error is not None,
            spent_s=dict(arm.spent_s),
            calibration=nearest(self.plan.calibrations, latency_ms),
            facts=dict(arm.facts),
            unit=self.folder.unit,
            **case.published,
        )

    def _doubts(self, arm: Arm) -> Iterator[str]:
        """Yield what stands in doubt about the times of an arm."""
        yield from arm.doubts(self._busiest)
        compared = self._challengers() if self._is_baseline(arm) else [arm]
        yield from layout_doubt(arm, compared if self.plan.baseline is not None else [])

    def _met(self, arm: Arm) -> bool:
        """Whether the device of a case is known; a GPU is when a worker has told of it."""
        on_cpu = arm.case.workload.device == "cpu"
        return arm.met or (on_cpu and arm.label not in self.plan.impossible)

    def _save(self, arm: Arm, finished: bool = False) -> Record:
        record = self._record(arm, finished)
        self.folder.append(record)
        if finished:
            arm.record = record
        return record

    def left_s(self) -> float:
        """Seconds that the budget leaves."""
        budget = self.plan.protocol.budget_s
        return math.inf if budget is None else budget - (time.monotonic() - self.started)

    def warmup_s(self) -> float:
        """Longest warm-up of a model; with a budget, its share of a quarter of it."""
        budget = self.plan.protocol.budget_s
        return WARMUP_MOST_S if budget is None else min(WARMUP_MOST_S, budget / 4 / len(self.arms))

    def done(self, place: Place, share: float) -> float:
        """Fraction of the work that is done, with a share of one group's pair."""
        protocol = self.plan.protocol
        pairs = (place.done + (place.group + share) / place.groups) / protocol.looks[-1]
        budget = (time.monotonic() - self.started) / protocol.budget_s if protocol.budget_s else 0
        return min(1.0, 0.2 + 0.8 * max(pairs, budget))


@functools.cache
def _timed_columns() -> frozenset[str]:
    """Names of what comes from timed iterations."""
    known = (m.name for m in summarise([Samples(latency_ms=[1.0])], 1))
    return frozenset([*known, *(f"{part}_ms_median" for part in PARTS)])


def host_facts() -> dict[str, Any]:
    """Return what this process can tell of the environment, by the names of `Environment`."""
    found, processor = versions(), cpu_name()
    return {
        "device_name": processor,
        "cpu_name": processor,
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "torch": found["torch"],
        "datbench_version": found["datbench"],
        "git_commit": _git_commit(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "packages": found,
    }


@functools.cache
def _git_commit() -> str | None:
    """Commit of the current directory, with `-dirty` behind it where files differ, as it was when
    this process first asked: that is the code that runs.
    """
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
