"""The Python face: what the command line does, without printing."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datbench.calibration import latest_calibration
from datbench.plan import Plan, make_plan
from datbench.records import Record
from datbench.runner import Progress, run
from datbench.schedule import DEFAULT, QUICK, RIGOROUS, Protocol, profile_protocol
from datbench.store import RunFolder, find_run


def compare(
    models: Sequence[str],
    *,
    quick: bool = False,
    rigorous: bool = False,
    budget: float | None = None,
    min_effect: float = DEFAULT.min_effect,
    results: str | os.PathLike[str] = "results",
    resume: str | os.PathLike[str] | None = None,
    progress: Progress = lambda _, __: None,
    **options: Any,
) -> list[Record]:
    """Measure models against the first of them, or against `baseline`.

    Args:
        models: names, e.g. ["dat", "swin", "yolov8n+dat"].
        quick: one process pair, no verdicts.
        rigorous: up to 20 process pairs instead of 8.
        budget: seconds after which no further round starts.
        min_effect: relative difference below which two models count as the same.
        results: folder that gets a folder for this run, with records and raw samples.
        resume: a run to go on with; what it has of these models is not measured again.
        progress: called with what is going on and the fraction that is done.
        options: as `datbench.plan.make_plan` takes them: device, batch_size, img_size, ...
    Returns:
        One record a model, in order; a model that failed has `error` set.
    Raises:
        UserError, ZooError: (ValueErrors) before anything is measured.
    """
    protocol = choose_protocol(quick, rigorous, budget, min_effect)
    where = Path(results), None if resume is None else Path(resume)
    return run(*prepare("compare", models, protocol, *where, **options), progress)


def profile(
    models: Sequence[str],
    *,
    rigorous: bool = False,
    budget: float | None = None,
    results: str | os.PathLike[str] = "results",
    resume: str | os.PathLike[str] | None = None,
    progress: Progress = lambda _, __: None,
    **options: Any,
) -> list[Record]:
    """Measure models each for itself, in one process; `rigorous` takes five.

    Arguments, result and errors are those of `compare`.
    """
    protocol = profile_protocol(rigorous, budget)
    where = Path(results), None if resume is None else Path(resume)
    return run(*prepare("profile", models, protocol, *where, **options), progress)


def prepare(
    command: str,
    models: Sequence[str],
    protocol: Protocol,
    results: Path,
    resume: Path | None = None,
    **options: Any,
) -> tuple[Plan, RunFolder]:
    """Plan a run and make its folder, or find it; whatever the user can put right shows here."""
    plan = make_plan(models, command=command, protocol=protocol, **options)
    if command == "compare":
        known = latest_calibration(results, plan.cases[0].workload)
        plan = dataclasses.replace(plan, calibration=known)
    if resume is None:
        return plan, RunFolder.create(results, command)
    return plan, find_run(resume, results)


def choose_protocol(
    quick: bool, rigorous: bool, budget: float | None, min_effect: float
) -> Protocol:
    """Return the protocol of a comparison."""
    tier = QUICK if quick else RIGOROUS if rigorous else DEFAULT
    return dataclasses.replace(tier, budget_s=budget, min_effect=min_effect)
