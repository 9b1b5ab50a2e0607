"""What a request would come to: its cases, the memory that they need and the time that they take.

Memory is predicted as by `datbench predict`. Time is that of an earlier run of the same case where
there is one, and otherwise a guess: multiply-adds, at the rate of earlier runs on this machine or
at one that is merely usual, through the protocol's rounds.
"""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import signal
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datbench.device import MIB, usable_cores
from datbench.errors import UserError
from datbench.pair import SWITCH_MS
from datbench.plan import Case, Plan
from datbench.pool import no_main_module
from datbench.records import Record
from datbench.schedule import pair_rounds, slot_iterations
from datbench.store import run_folders
from datbench.sweep import Sweep, is_of

if TYPE_CHECKING:
    from rich.console import RenderableType

COLUMNS = (
    "unit", "model", "input", "dtype", "mode", "runtime", "batch_size", "predicted_peak_mib",
    "expected_s", "expected_by", "error",
)  # fmt: skip
ALWAYS = {"unit", "model", "predicted_peak_mib", "expected_s"}  # columns of the table for people
TITLES = {"predicted_peak_mib": "predicted\npeak MiB", "expected_s": "expected\ntime"}
START_S, COUNT_S = 1.5, 2.0  # to start, build and warm up a model; to count and weigh it, about
RATE = {"cpu": 50e9, "cuda": 2e12}  # multiply-adds a second where nothing was measured yet
LEAST_MS = 2.0  # of a step, whatever its multiply-adds
TRAINED = 3.0  # forwards that a training step takes, about
EARLIER, RATED, USUAL = "earlier run", "rate of earlier runs", "usual rate"


def rows(
    sweep: Sweep, results: Path, progress: Callable[[str, float], None]
) -> Iterator[dict[str, Any]]:
    """A row of `COLUMNS` for each case, unit by unit."""
    known = [record for folder in run_folders(results) for record in _readable(folder)]
    plans = list(sweep)
    context = multiprocessing.get_context("spawn")
    deaf = (signal.signal, (signal.SIGINT, signal.SIG_IGN))  # Ctrl-C is for this process
    with ProcessPoolExecutor(usable_cores(), context, *deaf) as pool:
        needs = _Needs(pool)
        for plan in plans:
            for case in _possible(plan):
                needs.ask(case)
        times = _Times(plans[0].cases[0].workload.device, known, needs)
        try:
            for number, plan in enumerate(plans):
                progress(f"unit {number + 1}: {plan.cases[0].label}", number / len(plans))
                for case in plan.cases:
                    yield {"unit": number + 1} | _row(case, plan, times, needs)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _row(case: Case, plan: Plan, times: _Times, needs: _Needs) -> dict[str, Any]:
    work = case.workload
    row = dict.fromkeys(COLUMNS[1:]) | {
        "model": case.label,
        "input": "x".join(map(str, work.input_shape)),
        "dtype": work.arithmetic,
        "mode": work.step,
        "runtime": work.execution,
        "batch_size": work.batch_size,
    }
    if case.label in plan.impossible:
        return row | {"error": plan.impossible[case.label]}
    try:
        peak = needs.peak_mib(case) if work.runtime == "eager" else None
        expected_s, by = times.of(case, plan)
    except _Failed as failed:
        return row | {"error": str(failed)}
    return row | {"predicted_peak_mib": peak, "expected_s": expected_s, "expected_by": by}


def _possible(plan: Plan) -> list[Case]:
    return [case for case in plan.cases if case.label not in plan.impossible]


class _Failed(Exception):
    """A model raised something; the message is the row's error."""


class _Needs:
    """Memory and multiply-adds of cases, found by other processes, each once.

    Args:
        pool: of these processes.
    """

    def __init__(self, pool: Executor) -> None:
        self._pool = pool
        self._asked: dict[Any, Future[float | str]] = {}

    def ask(self, case: Case) -> None:
        """Let what will be wanted of a case be found."""
        if case.workload.runtime == "eager":
            self._future(_peak_mib, _portable(case))
        self._future(_macs, _single(case))

    def peak_mib(self, case: Case) -> float:
        """Predicted peak of a case."""
        return self._result(_peak_mib, _portable(case))

    def macs(self, case: Case) -> float:
        """Multiply-adds of one input."""
        return self._result(_macs, _single(case))

    def _future(self, find: Callable[[Case], float], case: Case) -> Future[float | str]:
        if (find, case) not in self._asked:
            with no_main_module():
                self._asked[find, case] = self._pool.submit(_answer, find, case)
        return self._asked[find, case]

    def _result(self, find: Callable[[Case], float], case: Case) -> float:
        found = self._future(find, case).result()
        if isinstance(found, str):
            raise _Failed(found)
        return found


def _answer(find: Callable[[Case], float], case: Case) -> float | str:
    """What is found of a case, or in words what went wrong."""
    import torch

    torch.set_num_threads(1)
    try:
        return find(case)
    except Exception as error:  # noqa: BLE001 - a model may raise anything; others go on
        return f"{type(error).__name__}: {error}".partition("\n")[0]


def _readable(folder: Any) -> list[Record]:
    try:
        return list(folder.records())
    except UserError:
        return []


class _Times:
    """Seconds that cases will take on a device, by what is known of it."""

    def __init__(self, device: str, known: Sequence[Record], needs: _Needs) -> None:
        self._known = known
        self._needs = needs
        self._rates: list[float] = []
        kind = device.partition(":")[0]
        for record in known:
            values, work = record.values, record.workload
            median, macs = values.get("latency_ms_median"), values.get("macs")
            alike = work.device.partition(":")[0] == kind and work.mode == "inference"
            if median and macs and alike:
                self._rates.append(1000 * macs * work.batch_size / median)
        self._rate = statistics.median(self._rates) if self._rates else RATE[kind]

    def of(self, case: Case, plan: Plan) -> tuple[float, str]:
        """Seconds, and what tells."""
        for record in reversed(self._known):
            if record.model == case.label and not record.error and is_of(record, plan):
                return sum(record.spent_s.values()), EARLIER
        return self._guessed(case, plan), RATED if self._rates else USUAL

    def _guessed(self, case: Case, plan: Plan) -> float:
        protocol = plan.protocol
        pairs = protocol.looks[-1]
        shared = plan.baseline is not None
        steps = [self._step_ms(arm) for arm in (_possible(plan) if shared else [case])]
        slots = [slot_iterations(step) * step / 1000 for step in steps]
        timed_s = 2 * sum(slots)
        untimed_s = 2 * sum(max(SWITCH_MS, step) for step in steps) / 1000
        rounds = pair_rounds(protocol.rounds, START_S * len(steps), timed_s + untimed_s)
        total_s = COUNT_S * len(steps) + pairs * (
            START_S * len(steps) + rounds * (timed_s + untimed_s)
        )
        if protocol.budget_s is not None:
            total_s = min(total_s, protocol.budget_s + COUNT_S * len(steps))
        return total_s / len(steps)

    def _step_ms(self, case: Case) -> float:
        work = case.workload
        trained = TRAINED if work.mode == "train" else 1.0
        return max(LEAST_MS, 1000 * trained * work.batch_size * self._needs.macs(case) / self._rate)


def _portable(case: Case) -> Case:
    """The same case for whatever machine."""
    work = dataclasses.replace(case.workload, device="cuda:0", threads=1)
    return dataclasses.replace(case, label="", workload=work)


def _single(case: Case) -> Case:
    """A forward of one input, as multiply-adds are counted."""
    work = dataclasses.replace(
        _portable(case).workload, batch_size=1, mode="inference", optimizer=None, dtype="float32",
        amp=False, runtime="eager",
    )  # fmt: skip
    return dataclasses.replace(case, label="", workload=work)


def _peak_mib(case: Case) -> float:
    from datbench.prediction import predict

    return predict(case).peak_allocated / MIB


def _macs(case: Case) -> float:
    import torch

    from datbench.counters import built_from, count

    work = case.workload
    images = torch.empty(work.batch_size, *work.input_shape, device="meta")
    return float(count(built_from(case, fuse=False), images).macs or 0)


def show(found: Sequence[dict[str, Any]]) -> RenderableType:
    """Lay the cases out as a table, with the sum of their times below."""
    from rich.console import Group
    from rich.text import Text

    from datbench.memory import NOTE
    from datbench.reports.txt import plain_table

    table = plain_table()
    varied = {c for c in COLUMNS if len({row[c] for row in found}) > 1} | ALWAYS
    shown = [column for column in COLUMNS if column in varied and column != "error"]
    for column in shown:
        title = TITLES.get(column, column.replace("_", " "))
        words = column in ("model", "input", "dtype", "mode", "runtime", "expected_by")
        table.add_column(Text(title), justify="left" if words else "right")
    for row in found:
        told = row | ({"expected_s": "impossible"} if row["error"] else {})
        cells = (_cell(column, told[column]) for column in shown)
        table.add_row(*map(Text, cells), style="red" if row["error"] else "")
    errors = [f"{row['model']} cannot be: {row['error']}" for row in found if row["error"]]
    return Group(table, "", *map(Text, dict.fromkeys(errors)), Text(summary(found)), Text(NOTE))


def _cell(column: str, value: Any) -> str:
    from datbench.reports.cells import rounded

    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return duration(value) if column == "expected_s" else rounded(value)


def summary(found: Sequence[dict[str, Any]]) -> str:
    """Say in a line how many cases there are and what they take."""
    from datbench.reports.protocol import counted

    seconds = sum(row["expected_s"] or 0.0 for row in found)
    guessed = sum(row["expected_by"] not in (None, EARLIER) for row in found)
    impossible = sum(row["error"] is not None for row in found)
    units = len({row["unit"] for row in found})
    told = f"{counted(len(found), 'case')} in {counted(units, 'unit')}"
    told += f", {impossible} of them impossible" if impossible else ""
    told += f"; about {duration(seconds)} on one device"
    return told + (f", a guess for {guessed} of them." if guessed else ".")


def duration(seconds: float) -> str:
    """Write seconds for people: "40 s", "12 min" or "3 h 20 min"."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
