"""Where the units of a sweep are measured: one executor per file, under `@executor(name)`."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

from datbench.errors import UserError
from datbench.extras import missing
from datbench.pool import Pool
from datbench.records import Record
from datbench.request import Request
from datbench.runner import OtherMachine, Progress, run
from datbench.store import RunFolder
from datbench.sweep import Parts, Sweep, is_whole
from zoo.registry import Registry, Spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExecutorSpec(Spec):
    """An executor.

    Args:
        elsewhere: whether it measures on other machines than this one.
        needs: modules that it imports.
        extra: of datbench, that installs those.
    """

    elsewhere: bool = False
    needs: tuple[str, ...] = ()
    extra: str = ""


EXECUTORS: Registry[ExecutorSpec] = Registry(
    "executor", "datbench.executors", "executor", ExecutorSpec
)
executor = EXECUTORS.register


class Executor(abc.ABC):
    """Measures the units of a sweep.

    Args:
        request: what is asked for; whatever is wrong with it shows here.

    Its `under_way` names the jobs that go on without it, after Ctrl-C.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.under_way: list[str] = []

    @abc.abstractmethod
    def run(self, sweep: Sweep, folder: RunFolder, progress: Progress) -> bool:
        """Measure each unit that `folder` does not hold yet, in its part of the folder.

        Returns:
            Whether everything came to its planned end; Ctrl-C ends it earlier.
        """

    def cancel(self) -> None:
        """End what is under way; what leaves nothing under way has no need of it."""
        raise NotImplementedError


def measure(
    sweep: Sweep,
    number: int,
    parts: Parts,
    progress: Progress,
    *,
    device: str | None = None,
    pool: Pool | None = None,
) -> list[Record]:
    """Measure a unit on this machine, or go on with it, unless it is whole.

    What another machine, device or version began of it is set aside: figures do not mix.

    Args:
        sweep, number: say which.
        parts: of the run folder.
        progress: called with what is going on and the fraction of the unit that is done.
        device: instead of the one that was asked for.
        pool: starts its workers.
    """
    plan = sweep.unit(number, device)
    known = parts.records(plan)
    if is_whole(known, plan):
        return known
    part = parts.of(number, plan)
    keys = {case.key for case in plan.cases}
    if any(record.key not in keys for record in known):
        part.set_aside()
    try:
        return run(plan, part, progress, pool)
    except OtherMachine:
        part.set_aside()
        return run(plan, part, progress, pool)


def make_executor(request: Request) -> Executor:
    """Make the executor of a request.

    Raises:
        UserError, ZooError: there is none of that name, or it cannot work here.
    """
    spec = EXECUTORS[request.executor]
    if absent := missing(spec.needs, spec.extra):
        raise UserError(f"executor {spec.name}: {absent}")
    made: Any = spec.load()(request)
    return made
