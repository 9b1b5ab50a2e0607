"""The Python face: what the command line does, without printing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datbench.errors import UserError
from datbench.records import Record
from datbench.runner import Progress, run
from datbench.schedule import DEFAULT
from datbench.store import RunFolder, find_run

if TYPE_CHECKING:
    from datbench.request import Request

# Options of `make_plan` that hold several values in any case, and what a request calls them.
PLURAL = {
    "runtimes": "runtime", "checkpoints": "checkpoint", "plugins": "plugin", "input_shape": "input",
}  # fmt: skip


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

    Options with several values, e.g. `batch_size=[1, 8]`, make a sweep: a comparison under each
    combination of them.

    Args:
        models: names or patterns, e.g. ["dat", "swin*", "yolov8n+dat"].
        quick: one process pair, no verdicts.
        rigorous: up to 40 process pairs instead of 20.
        budget: seconds after which no further round starts.
        min_effect: relative difference below which two models count as the same.
        results: folder that gets a folder for this run, with records and raw samples.
        resume: a run to go on with; what it has of these models is not measured again.
        progress: called with what is going on and the fraction that is done.
        options: as `datbench.plan.make_plan` takes them: device, batch_size, img_size, ...; or
            of `datbench.request.Request`: executor, gpus, ...
    Returns:
        One record a case, in order; one that failed has `error` set.
    Raises:
        UserError, ZooError: (ValueErrors) before anything is measured.
    """
    asked = make(
        "compare", models, quick=quick, rigorous=rigorous, budget=budget,
        min_effect=100 * min_effect, **options,
    )  # fmt: skip
    return _measured(asked, results, resume, progress)


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
    asked = make("profile", models, rigorous=rigorous, budget=budget, **options)
    return _measured(asked, results, resume, progress)


def make(
    command: str, models: Sequence[str], *, quick: bool = False, rigorous: bool = False,
    **options: Any,
) -> Request:  # fmt: skip
    """Make a request of the options of a command, by their names in `make_plan`."""
    from datbench.request import make_request

    if quick and rigorous:
        raise UserError("--quick and --rigorous exclude each other; give one of them")
    tier = "quick" if quick else "rigorous" if rigorous else "default"
    given = {PLURAL.get(name, name): _plain(value) for name, value in options.items()}
    return make_request(
        {"command": command, "models": _plain(models), "tier": tier}
        | {name: value for name, value in given.items() if value is not None}
    )


def _plain(value: Any) -> Any:
    """Paths as text, absolute: a plan is read elsewhere."""
    if isinstance(value, os.PathLike):
        return str(Path(value).absolute())
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


class Execution:
    """A request that is ready to be measured, in a run folder.

    Args:
        request: what is asked for.
        results: folder that gets a folder for this run.
        resume: a run to go on with.
    Raises:
        UserError, ZooError: whatever the user can put right.

    Its `complete` tells whether everything came to its planned end.
    """

    def __init__(self, request: Request, results: Path, resume: Path | None = None) -> None:
        from datbench.calibration import calibrations
        from datbench.executors import EXECUTORS, make_executor
        from datbench.sweep import Sweep

        self._sweep = Sweep(request, elsewhere=EXECUTORS[request.executor].elsewhere)
        first = self._sweep.unit(0)
        self.executor = make_executor(request)
        if request.command == "compare" and self._sweep.is_plain:
            self._sweep.calibrations = calibrations(results, first.cases[0].workload)
        self.folder = (
            RunFolder.create(results, request.command)
            if resume is None
            else find_run(resume, results)
        )
        one = self._sweep.is_plain and not self._sweep.is_product
        self._single = one and not self.folder.parts()
        if self.folder.size and not self._single:
            raise UserError(
                f"{self.folder.path} is a single {request.command}, and this is a sweep; leave "
                "--resume out"
            )
        request.save(self.folder.path)
        self.complete = False

    def run(self, progress: Progress = lambda _, __: None) -> list[Record]:
        """Measure, and return a record for each case that was begun.

        Args:
            progress: called with what is going on and the fraction that is done.
        """
        if self._single:
            records = run(self._sweep.unit(0), self.folder, progress)
            self.complete = not any(record.interrupted for record in records)
            return records
        self.complete = self.executor.run(self._sweep, self.folder, progress)
        return self.folder.records() if self.folder.has_records else []


def _measured(request: Request, results: Any, resume: Any, progress: Progress) -> list[Record]:
    where = Path(results), None if resume is None else Path(resume)
    return Execution(request, *where).run(progress)
