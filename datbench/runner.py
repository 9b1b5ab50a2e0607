"""Runs a plan: owns the worker processes and decides what is timed when.

First each model answers, in a process of its own, what needs no clock. Then come process pairs:
fresh workers for all models are alive together and are timed one at a time, in rounds whose
order is a random permutation and its mirror image, while this process sleeps. Models that do not
fit in memory together are split into groups that each hold the baseline.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import os
import platform
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from datbench import gauges
from datbench.device import SIMULATED, cpu_name
from datbench.metrics.latency import WARMUP_MOST_S, Samples, Slot, summarise
from datbench.plan import Case, Plan, versions
from datbench.pool import Pool, Worker, WorkerFault
from datbench.records import Comparison, Environment, Measurement, Record
from datbench.schedule import (
    FEWEST_PAIRS,
    LOOK_LEVEL,
    PAUSES_S,
    affordable_rounds,
    groups,
    may_redo,
    pair_rounds,
    round_order,
    slot_iterations,
    start_order,
    switch_share,
)
from datbench.stats import Decision, decide, median_interval, round_difference
from datbench.store import RunFolder

Progress = Callable[[str, float], None]
SWITCH_MS = 12.0  # untimed at the start of a slot after another model, about
MOST_OF_A_PAIR = 0.75  # of the time of the last pair; for less than that no other is started
DISTURBED = 0.05  # of a model's slots, from which on the row is flagged


@dataclasses.dataclass
class Arm:
    """What is known of one case so far."""

    case: Case
    environment: Environment
    measurements: list[Measurement] = dataclasses.field(default_factory=list)
    need_mib: float = 0.0
    processes: list[Samples] = dataclasses.field(default_factory=list)
    differences: list[list[float]] = dataclasses.field(default_factory=list)
    planned: list[int] = dataclasses.field(default_factory=list)
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
    decision: Decision | None = None
    error: str | None = None

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
        if self.environment.device_name.startswith(SIMULATED):
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


def run(plan: Plan, folder: RunFolder, progress: Progress = lambda _, __: None) -> list[Record]:
    """Measure every case and keep each record in `folder` as soon as it says something new.

    A case that fails becomes a record with `error`, and the others go on. Ctrl-C ends the
    measuring; what was measured by then is returned.

    Args:
        plan: what to measure.
        folder: where records and samples go.
        progress: called with what is going on and the fraction that is done.
    """
    run_ = Run(plan, folder, progress)
    run_.measure()
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

    def measure(self) -> None:
        """Measure everything, or until Ctrl-C."""
        try:
            with Pool(self.plan.protocol.timeout_s, self.plan.cases) as pool:
                self._measure(pool)
        except KeyboardInterrupt:
            self.interrupted = True

    def _measure(self, pool: Pool) -> None:
        for i, arm in enumerate(self.arms):
            self.progress(f"{arm.label}: parameters, MACs, memory", 0.2 * i / len(self.arms))
            self._describe(pool, arm)
            self._save(arm)
        looks = self.plan.protocol.looks
        for pair in range(looks[-1]):
            if not self.alive or (pair and self.left_s() < MOST_OF_A_PAIR * self._pair_s):
                break
            start, earlier, before = time.monotonic(), gauges.processes(), self._contended()
            for number, group in enumerate(self._groups()):
                _Pair(self, pool, group, (pair, number)).measure()
            self._pair_s = time.monotonic() - start
            if self._contended() > before:
                self._busiest = gauges.busiest(earlier, self._pair_s) or self._busiest
            if pair + 1 in looks and self._look():
                return
            for arm in self.alive:
                self._save(arm)
        self._look()

    def finish(self) -> list[Record]:
        """Write the last state of every record and return them."""
        if self.interrupted:
            self._look()
            for arm in self.alive:
                arm.warnings.append("interrupted: stopped by the user before the planned end")
        return [self._save(arm) for arm in self.arms]

    def _describe(self, pool: Pool, arm: Arm) -> None:
        worker = pool.start(arm.case)
        with arm.spending("facts, MACs and memory"):
            arm.environment = dataclasses.replace(arm.environment, **worker.ask("facts"))
            room = worker.ask("room")
            self._room_mib = room if self._room_mib is None else min(room, self._room_mib)
            self.health = worker.ask("health")
            worker.ask("build")
            arm.measurements = worker.ask("metrics")
            values = {m.name: m.value or 0.0 for m in arm.measurements}
            memory = ("process_memory_mib", "peak_reserved_mib", "rss_peak_mib")
            arm.need_mib = next((values[name] for name in memory if values.get(name)), 0.0)
        worker.stop()

    def _groups(self) -> list[list[Arm]]:
        """Arms that are alive together."""
        alive = self.alive
        baseline = [i for i, arm in enumerate(alive) if arm.label == self.plan.baseline]
        found = groups(
            [arm.need_mib for arm in alive], self._room_mib, baseline[0] if baseline else None
        )
        return [[alive[i] for i in group] for group in found]

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
        compared = [arm for arm in self._challengers() if len(arm.pairs) >= FEWEST_PAIRS]
        min_effect = self.plan.protocol.min_effect
        decisions = decide([arm.pairs for arm in compared], LOOK_LEVEL, min_effect)
        for arm, decision in zip(compared, decisions, strict=True):
            arm.decision = decision
        settled = all(decision.verdict != "INCONCLUSIVE" for decision in decisions)
        return settled or all(arm.label != self.plan.baseline for arm in self.alive)

    def _contended(self) -> int:
        return sum(len(arm.disturbed["contended"]) for arm in self.arms)

    def _challengers(self) -> list[Arm]:
        if self.plan.baseline is None:
            return []
        return [arm for arm in self.alive if arm.label != self.plan.baseline]

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

    def _record(self, arm: Arm) -> Record:
        case = arm.case
        timed = [samples for samples in arm.processes if samples.latency_ms]
        measurements = [*arm.measurements]
        if timed:
            measurements += summarise(timed, case.workload.batch_size)
        return Record(
            run_id=self.folder.run_id,
            key=case.key,
            model=case.label,
            family=case.named.family,
            source=case.named.source,
            workload=case.workload,
            timestamp_utc=datetime.now(UTC).isoformat(timespec="seconds"),
            environment=arm.environment,
            measurements=tuple(measurements),
            comparison=self._comparison(arm),
            warnings=tuple(dict.fromkeys((*arm.warnings, *arm.doubts(self._busiest)))),
            error=arm.error,
            tier=self.plan.protocol.name,
            budget_s=self.plan.protocol.budget_s,
            spent_s=dict(arm.spent_s),
            calibration=self.plan.calibration,
            **case.published,
        )

    def _save(self, arm: Arm) -> Record:
        record = self._record(arm)
        self.folder.append(record)
        return record

    def left_s(self) -> float:
        """Seconds that the budget leaves."""
        budget = self.plan.protocol.budget_s
        return math.inf if budget is None else budget - (time.monotonic() - self.started)

    def warmup_s(self) -> float:
        """Longest warm-up of a model; with a budget, its share of a quarter of it."""
        budget = self.plan.protocol.budget_s
        return WARMUP_MOST_S if budget is None else min(WARMUP_MOST_S, budget / 4 / len(self.arms))

    def done(self, pair: int, share: float) -> float:
        """Fraction of the work that is done."""
        protocol = self.plan.protocol
        pairs = (pair + share) / protocol.looks[-1]
        budget = (time.monotonic() - self.started) / protocol.budget_s if protocol.budget_s else 0
        return min(1.0, 0.2 + 0.8 * max(pairs, budget))


class _Pair:
    """One process pair: fresh workers of a group of models, timed against each other.

    Args:
        run_: what it is part of.
        pool: starts the workers.
        arms: the group.
        place: number of the pair, and of the group in it.
    """

    def __init__(self, run_: Run, pool: Pool, arms: Sequence[Arm], place: tuple[int, int]) -> None:
        self._run, self._pool, self._arms = run_, pool, arms
        self._pair, self._group = place
        self._workers: dict[str, Worker] = {}
        self._iterations: dict[str, int] = {}
        self._step_ms: dict[str, float] = {}
        self._last = ""  # what ran in the slot before

    def measure(self) -> None:
        """Start, warm up, time in rounds, and end the workers."""
        protocol = self._run.plan.protocol
        start = time.monotonic()
        seed = self._run.plan.cases[0].workload.seed
        for index in start_order(len(self._arms), seed, self._pair):
            self._start(self._arms[index])
        timed_s = sum(2 * self._step_ms[a.label] * self._iterations[a.label] for a in self.alive)
        untimed_s = sum(2 * max(SWITCH_MS, self._step_ms[arm.label]) for arm in self.alive)
        untimed_s *= switch_share(max(1, len(self.alive)))
        setup_s, round_s = time.monotonic() - start, (timed_s + untimed_s) / 1000
        rounds = pair_rounds(protocol.rounds, setup_s, timed_s / 1000, untimed_s / 1000)
        if protocol.budget_s is not None and self.alive:
            rounds = affordable_rounds(
                rounds,
                setup_s=setup_s,
                round_s=round_s,
                left_s=self._run.left_s(),
                pairs=max(1, protocol.looks[0] - self._pair),
            )
        for arm in self.alive:
            arm.planned[-1] = rounds
        for number in range(rounds):
            if not self.alive or (number and self._run.left_s() < 0):
                break
            done = self._run.done(self._pair, number / rounds)
            self._run.progress(f"pair {self._pair + 1}, round {number + 1} of {rounds}", done)
            self._round(number)
        for worker in self._workers.values():
            worker.stop()

    @property
    def alive(self) -> list[Arm]:
        """Arms of the group without a fault."""
        return [arm for arm in self._arms if arm.error is None]

    def _start(self, arm: Arm) -> None:
        self._run.progress(f"{arm.label}: warm-up", self._run.done(self._pair, 0))
        worker = self._workers[arm.label] = self._pool.start(arm.case)
        with arm.spending("start and build"):
            worker.ask("build")
        if arm.error is not None:
            return
        with arm.spending("warm-up"):
            warmup = worker.ask("warm_up", most_s=self._run.warmup_s())
            if not warmup.steady:
                arm.cold.append(self._pair)
            self._step_ms[arm.label] = warmup.step_ms
            self._iterations[arm.label] = slot_iterations(warmup.step_ms)
            arm.processes.append(Samples(self._pair))
            arm.differences.append([])
            arm.planned.append(0)

    def _round(self, number: int) -> None:
        medians: dict[str, list[float]] = collections.defaultdict(list)
        seed = self._run.plan.cases[0].workload.seed
        arms = self.alive
        for position, index in enumerate(round_order(len(arms), seed, self._pair, number)):
            arm = arms[index]
            slot = self._slot(arm, (number, position)) if arm.error is None else None
            if slot is not None:
                arm.processes[-1].add(slot)
                medians[arm.label].append(statistics.median(slot.latency_ms))
        baseline = medians.get(self._run.plan.baseline or "", [])
        for arm in arms:
            both = len(medians[arm.label]) == len(baseline) == 2
            if both and arm.label != self._run.plan.baseline:
                arm.differences[-1].append(round_difference(baseline, medians[arm.label]))

    def _slot(self, arm: Arm, place: tuple[int, int]) -> Slot | None:
        """Time a slot, again where it was disturbed; None if the worker failed.

        `place` is its round and its position there.
        """
        while True:
            start = time.monotonic()
            try:
                slot: Slot = self._workers[arm.label].ask(
                    "slot",
                    iterations=self._iterations[arm.label],
                    switched=self._last != arm.label,
                )
            except WorkerFault as fault:
                arm.fail(fault)
                return None
            asked_s = time.monotonic() - start
            found = self._run.disturbance(slot)
            pause_s = self._run.redo(found)
            self._keep(arm, slot, found, place, redone=pause_s is not None)
            timed_s = sum(slot.latency_ms) / 1000
            arm.spent_s["timed" if pause_s is None else "redone"] += timed_s
            arm.spent_s["switching"] += asked_s - timed_s
            self._last = arm.label if pause_s is None else ""
            if pause_s is None:
                return slot
            if pause_s:
                time.sleep(pause_s)
                arm.spent_s["waiting for quiet"] += pause_s

    def _keep(
        self, arm: Arm, slot: Slot, found: gauges.Disturbance, place: tuple[int, int], redone: bool
    ) -> None:
        """Write a slot down, and remember what disturbed it."""
        if not redone:
            arm.slots += 1
            for flag, told in (("contended", found.contended), ("throttled", found.throttled)):
                if told:
                    arm.disturbed[flag].append(told)
        gpu = slot.after.gpu
        if gpu is not None and gpu.processes is not None:
            arm.foreign = max(arm.foreign, gpu.processes - len(self._workers))
        self._run.folder.append_samples(
            {
                "model": arm.label,
                "pair": self._pair,
                "group": self._group,
                "round": place[0],
                "slot": place[1],
                "ended_utc": datetime.now(UTC).isoformat(),
                "latency_ms": slot.latency_ms,
                "host_ms": slot.host_ms,
                "parts_ms": slot.parts_ms or None,
                "disturbed": found.contended or found.throttled or None,
                "redone": redone,
                "host": gauges.changes(slot.before, slot.after),
                "reference_ms": [slot.before.reference_ms, slot.after.reference_ms],
                "gpu": [dataclasses.asdict(r.gpu) for r in (slot.before, slot.after) if r.gpu],
            }
        )


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


def _git_commit() -> str | None:
    """Commit of the current directory, with `-dirty` behind it where files differ."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
