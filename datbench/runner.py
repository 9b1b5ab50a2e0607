"""Runs a plan: owns the worker processes and decides what is timed when.

First each model answers, in a process of its own, what needs no clock. Then come process pairs:
fresh workers for all models are alive together and are timed one at a time, in rounds whose
order is a random permutation and its mirror image, while this process sleeps.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import platform
import socket
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from datbench.device import cpu_name
from datbench.metrics.latency import WARMUP_MOST_S, Samples, summarise
from datbench.plan import Case, Plan, versions
from datbench.pool import Pool, Worker, WorkerFault
from datbench.records import Comparison, Environment, Measurement, Record
from datbench.schedule import comparison_level, round_order, slot_iterations
from datbench.stats import median_interval, round_difference, student_interval, verdict
from datbench.store import RunFolder

Progress = Callable[[str, float], None]


@dataclasses.dataclass
class Arm:
    """What is known of one case so far."""

    case: Case
    environment: Environment
    measurements: list[Measurement] = dataclasses.field(default_factory=list)
    processes: list[Samples] = dataclasses.field(default_factory=list)
    differences: list[list[float]] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    verdict: str | None = None
    error: str | None = None

    def fail(self, error: Exception) -> None:
        """Keep what went wrong; the model is not asked again."""
        self.error = str(error)
        if self.error.startswith("out of memory"):
            self.warnings.append(f"oom: {self.error}")


def run(plan: Plan, folder: RunFolder, progress: Progress = lambda _, __: None) -> list[Record]:
    """Measure every case and keep each record in `folder` as soon as it says something new.

    A case that fails becomes a record with `error`, and the others go on. Ctrl-C ends the
    measuring; what was measured by then is returned.

    Args:
        plan: what to measure.
        folder: where records and samples go.
        progress: called with what is going on and the fraction that is done.
    """
    run_ = _Run(plan, folder, progress)
    try:
        with Pool(plan.protocol.timeout_s, plan.cases) as pool:
            run_.measure(pool)
    except KeyboardInterrupt:
        run_.interrupted = True
    return run_.finish()


class _Run:
    def __init__(self, plan: Plan, folder: RunFolder, progress: Progress) -> None:
        self.plan, self.folder, self.progress = plan, folder, progress
        facts = _host_facts()
        self.arms = [
            Arm(case, Environment(**facts, threads=case.workload.threads)) for case in plan.cases
        ]
        self.started = time.monotonic()
        self.interrupted = False

    @property
    def alive(self) -> list[Arm]:
        return [arm for arm in self.arms if arm.error is None]

    def measure(self, pool: Pool) -> None:
        for i, arm in enumerate(self.arms):
            self.progress(f"{arm.case.label}: parameters, MACs, memory", 0.2 * i / len(self.arms))
            self._describe(pool, arm)
            self._save(arm)
        looks = self.plan.protocol.looks
        for pair in range(looks[-1]):
            if not self.alive or (pair and self._out_of_time()):
                return
            self._pair(pool, pair)
            if pair + 1 in looks and self._settled():
                return
            for arm in self.alive:
                self._save(arm)

    def finish(self) -> list[Record]:
        for arm in self.arms:
            if self.interrupted and arm.error is None:
                arm.warnings.append("interrupted: stopped by the user before the planned end")
        return [self._save(arm) for arm in self.arms]

    def _describe(self, pool: Pool, arm: Arm) -> None:
        worker = pool.start(arm.case)
        try:
            arm.environment = dataclasses.replace(arm.environment, **worker.ask("facts"))
            worker.ask("build")
            arm.measurements = worker.ask("metrics")
        except WorkerFault as fault:
            arm.fail(fault)
        finally:
            worker.stop()

    def _pair(self, pool: Pool, pair: int) -> None:
        """Time all models against each other in fresh processes."""
        workers: dict[str, Worker] = {}
        iterations: dict[str, int] = {}
        for arm in self.alive:
            self.progress(f"{arm.case.label}: warm-up", self._done(pair, 0))
            worker = workers[arm.case.label] = pool.start(arm.case)
            try:
                worker.ask("build")
                warmup = worker.ask("warm_up", most_s=self._warmup_s())
            except WorkerFault as fault:
                arm.fail(fault)
                continue
            if not warmup.steady:
                arm.warnings.append(
                    f"not_warm: times still moved after the warm-up of pair {pair + 1}"
                )
            iterations[arm.case.label] = slot_iterations(warmup.step_ms)
            arm.processes.append(Samples())
            arm.differences.append([])
        for number in range(self.plan.protocol.rounds):
            if number and self._out_of_time():
                break
            self.progress(f"pair {pair + 1}, round {number + 1}", self._done(pair, number))
            self._round(workers, iterations, pair, number)
        for worker in workers.values():
            worker.stop()

    def _round(
        self, workers: dict[str, Worker], iterations: dict[str, int], pair: int, number: int
    ) -> None:
        arms = self.alive
        medians: dict[str, list[float]] = collections.defaultdict(list)
        seed = self.plan.cases[0].workload.seed
        for position, index in enumerate(round_order(len(arms), seed, pair, number)):
            arm = arms[index]
            label = arm.case.label
            if arm.error is not None:
                continue
            try:
                latency, host = workers[label].ask("slot", iterations=iterations[label])
            except WorkerFault as fault:
                arm.fail(fault)
                continue
            arm.processes[-1].latency_ms += latency
            arm.processes[-1].host_ms += host or []
            medians[label].append(statistics.median(latency))
            self.folder.append_samples(
                {
                    "model": label,
                    "pair": pair,
                    "round": number,
                    "slot": position,
                    "ended_utc": datetime.now(UTC).isoformat(),
                    "latency_ms": latency,
                    "host_ms": host,
                }
            )
        baseline = medians.get(self.plan.baseline or "", [])
        for arm in self._challengers():
            if len(medians[arm.case.label]) == len(baseline) == 2:
                difference = round_difference(baseline, medians[arm.case.label])
                arm.differences[-1].append(difference)

    def _challengers(self) -> list[Arm]:
        if self.plan.baseline is None:
            return []
        return [arm for arm in self.alive if arm.case.label != self.plan.baseline]

    def _settled(self) -> bool:
        """Look at the intervals; tell whether every comparison has its verdict."""
        compared = [arm for arm in self._challengers() if sum(map(bool, arm.differences)) > 1]
        for arm in compared:
            if arm.verdict in (None, "INCONCLUSIVE"):
                _, lo, hi = self._interval(arm)
                arm.verdict = verdict(lo, hi, self.plan.protocol.min_effect)
        return all(arm.verdict != "INCONCLUSIVE" for arm in compared)

    def _interval(self, arm: Arm) -> tuple[float, float, float]:
        """Log-ratio to the baseline with its interval over process pairs."""
        level = comparison_level(len(self.arms) - 1)
        return student_interval([statistics.median(d) for d in arm.differences if d], level)

    def _comparison(self, arm: Arm) -> Comparison | None:
        pairs = [d for d in arm.differences if d]
        if self.plan.baseline is None or arm.error is not None or not pairs:
            return None
        if len(pairs) > 1:
            mean, lo, hi = self._interval(arm)
            bounds: tuple[float, float] | None = (math.exp(lo), math.exp(hi))
        else:
            mean = statistics.median(pairs[0])
            within = median_interval(pairs[0])
            bounds = (math.exp(within[0]), math.exp(within[1])) if within else None
        lo_, hi_ = bounds or (None, None)
        return Comparison(self.plan.baseline, math.exp(mean), lo_, hi_, arm.verdict)

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
            warnings=tuple(dict.fromkeys(arm.warnings)),
            error=arm.error,
            **case.published,
        )

    def _save(self, arm: Arm) -> Record:
        record = self._record(arm)
        self.folder.append(record)
        return record

    def _out_of_time(self) -> bool:
        budget = self.plan.protocol.budget_s
        return budget is not None and time.monotonic() - self.started > budget

    def _warmup_s(self) -> float:
        """Longest warm-up of a model; with a budget, its share of a quarter of it."""
        budget = self.plan.protocol.budget_s
        return WARMUP_MOST_S if budget is None else min(WARMUP_MOST_S, budget / 4 / len(self.arms))

    def _done(self, pair: int, number: int) -> float:
        protocol = self.plan.protocol
        pairs = (pair + number / protocol.rounds) / protocol.looks[-1]
        budget = (time.monotonic() - self.started) / protocol.budget_s if protocol.budget_s else 0
        return min(1.0, 0.2 + 0.8 * max(pairs, budget))


def _host_facts() -> dict[str, Any]:
    """What this process can tell of the environment."""
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
