"""One process pair: fresh workers of a group of models, timed against each other in rounds."""

from __future__ import annotations

import collections
import dataclasses
import statistics
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from datbench import gauges
from datbench.arms import Arm, close_round
from datbench.memory_layout import Layout, draw
from datbench.metrics.latency import Slot
from datbench.pool import Pool, Worker, WorkerFault
from datbench.schedule import (
    affordable_rounds,
    pair_rounds,
    round_order,
    slot_iterations,
    start_order,
    switch_share,
)

if TYPE_CHECKING:
    from datbench.runner import Run

SWITCH_MS = 12.0  # untimed at the start of a slot after another model, about


@dataclasses.dataclass(frozen=True)
class Place:
    """Which process pair it is.

    Args:
        pair: its number, which no other of the run has.
        group, groups: number of the group in it, and how many groups there are.
        done: pairs that came before it and count.
    """

    pair: int
    group: int
    groups: int
    done: int

    def left(self, looks: Sequence[int]) -> int:
        """Pairs of groups until the first look, with this one."""
        return max(0, looks[0] - self.done - 1) * self.groups + self.groups - self.group


class Pair:
    """One process pair: fresh workers of a group of models, timed against each other.

    Args:
        run_: what it is part of.
        pool: starts the workers.
        arms: the group.
        place: where it stands in the run.
    """

    def __init__(self, run_: Run, pool: Pool, arms: Sequence[Arm], place: Place) -> None:
        self._run, self._pool, self._arms, self._place = run_, pool, arms, place
        self._pair = place.pair
        self._workers: dict[str, Worker] = {}
        self._layouts: dict[str, Layout] = {}
        self._iterations: dict[str, int] = {}
        self._step_ms: dict[str, float] = {}
        self._steady: dict[str, bool] = {}
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
        rounds = pair_rounds(protocol.rounds, setup_s, round_s)
        if protocol.budget_s is not None and self.alive:
            rounds = affordable_rounds(
                rounds,
                setup_s=setup_s,
                round_s=round_s,
                left_s=self._run.left_s(),
                pairs=self._place.left(protocol.looks),
            )
        for arm in self.alive:
            arm.planned[-1] = rounds
        for number in range(rounds):
            if not self.alive or (number and self._run.left_s() < 0):
                break
            done = self._run.done(self._place, number / rounds)
            self._run.progress(f"{self._name()}, round {number + 1} of {rounds}", done)
            self._round(number)
        for worker in self._workers.values():
            worker.stop()

    @property
    def alive(self) -> list[Arm]:
        """Arms of the group without a fault."""
        return [arm for arm in self._arms if arm.error is None]

    def _name(self) -> str:
        """How it is called while it runs."""
        alone = self._arms[0].label if self._run.plan.baseline is None else ""
        return alone or f"pair {self._place.done + 1}"

    def _start(self, arm: Arm) -> None:
        self._run.progress(f"{arm.label}: warm-up", self._run.done(self._place, 0))
        worker = self._workers[arm.label] = self._pool.start(arm.case)
        seed, run_id = arm.case.workload.seed, self._run.folder.run_id
        layout = draw(seed, run_id, self._pair, arm.label, arm.case.key)
        self._layouts[arm.label] = layout
        with arm.spending("start and build"):
            worker.ask("lay_out", layout=layout)
            worker.ask("build")
        if arm.error is not None:
            return
        with arm.spending("warm-up"):
            warmup = worker.ask("warm_up", most_s=self._run.warmup_s())
            self._steady[arm.label] = warmup.steady
            if not warmup.steady:
                arm.cold.append(self._pair)
            self._step_ms[arm.label] = warmup.step_ms
            self._iterations[arm.label] = slot_iterations(warmup.step_ms)
            arm.open_pair(self._pair)

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
        close_round(arms, self._run.plan.baseline, medians)

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
        disturbed = [
            f"{flag}: {told}"
            for flag, told in (("contended", found.contended), ("throttled", found.throttled))
            if told
        ]
        if not redone:
            arm.slots += 1
            for told in disturbed:
                arm.disturb(told)
        seen = slot.after.gpu.processes if slot.after.gpu else None
        foreign = max(0, (seen or 0) - len(self._workers))
        arm.foreign = max(arm.foreign, foreign)
        self._run.folder.append_samples(
            {
                "model": arm.label,
                "key": arm.case.key,
                "pair": self._pair,
                "group": self._place.group,
                "round": place[0],
                "slot": place[1],
                "ended_utc": datetime.now(UTC).isoformat(),
                "latency_ms": slot.latency_ms,
                "host_ms": slot.host_ms,
                "parts_ms": slot.parts_ms or None,
                "disturbed": disturbed,
                "redone": redone,
                "rounds": arm.planned[-1],
                "steady": self._steady[arm.label],
                "layout": dataclasses.asdict(self._layouts[arm.label]),
                "foreign": foreign,
                "host": gauges.changes(slot.before, slot.after),
                "reference_ms": [slot.before.reference_ms, slot.after.reference_ms],
                "gpu": [dataclasses.asdict(r.gpu) for r in (slot.before, slot.after) if r.gpu],
            }
        )
