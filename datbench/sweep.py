"""A request unrolled: comparisons of one workload each, in the order in which they are run."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from datbench.catalogue import models_of
from datbench.device import usable_cores
from datbench.errors import UserError
from datbench.plan import Case, Plan, add_plugins, make_plan, shell
from datbench.records import Calibration, Record, Workload
from datbench.request import Request
from datbench.schedule import Protocol, choose_protocol, profile_protocol
from datbench.store import RunFolder


class Sweep:
    """What a request comes to.

    The models of a comparison are measured together, under one workload, before the next one
    begins; the batch size is what changes first. Models of a profile are units of their own where
    the request has several workloads or several devices.

    Args:
        request: what is asked for.
        elsewhere: whether it is for other machines than this one.

    Raises:
        UserError, ZooError: something cannot work at all; what merely cannot be combined is a
            case of its unit, with its reason.
    """

    def __init__(self, request: Request, *, elsewhere: bool = False) -> None:
        self.request = request
        self._elsewhere = elsewhere
        add_plugins(request.plugin)  # before names of theirs are looked up
        self.models = _models(request.models)
        self._workloads = _workloads(request)
        self._arms = len(self.models) * max(1, len(request.runtime))
        self._threads = request.threads or (None if elsewhere else usable_cores())
        # Where nothing trains, an optimiser is a mistake that the plan tells.
        self._optimized = {"train"} if "train" in request.mode else set(request.mode)
        self.calibrations: Sequence[Calibration] = ()  # of this machine, for the records
        self._last: tuple[tuple[int, str | None], Plan] | None = None
        alone = request.command == "profile" and (self.is_product or not self.is_plain)
        self._units_each = self._arms if alone else 1

    @property
    def is_product(self) -> bool:
        """Whether there are several workloads."""
        return len(self._workloads) > 1

    @property
    def is_plain(self) -> bool:
        """Whether one device of this machine does everything."""
        return self.request.executor == "local" and self.request.gpus is None

    @property
    def protocol(self) -> Protocol:
        """How often to measure."""
        request = self.request
        quick, rigorous = request.tier == "quick", request.tier == "rigorous"
        if request.command == "profile":
            return profile_protocol(rigorous, request.budget)
        return choose_protocol(quick, rigorous, request.budget, request.min_effect / 100)

    def __len__(self) -> int:
        return len(self._workloads) * self._units_each

    def __iter__(self) -> Iterator[Plan]:
        return (self.unit(number) for number in range(len(self)))

    def unit(self, number: int, device: str | None = None) -> Plan:
        """Return a unit: a comparison, or a profile of one or more models.

        Args:
            number: of the unit.
            device: instead of the one that was asked for.
        """
        workload, arm = divmod(number, self._units_each)
        plan = dataclasses.replace(self._plan(workload, device), calibrations=self.calibrations)
        if self._units_each == 1:
            return plan
        case = plan.cases[arm]
        impossible = {k: v for k, v in plan.impossible.items() if k == case.label}
        return dataclasses.replace(plan, cases=(case,), impossible=impossible)

    def every_kind(self) -> Sequence[Case]:
        """A case of each model."""
        return self._plan(0, None).cases

    def _plan(self, workload: int, device: str | None) -> Plan:
        """Plan all models under one workload; the last one is kept, units of a profile share it."""
        asked = (workload, device)
        if self._last is None or self._last[0] != asked:
            self._last = asked, self._make(self._workloads[workload], device)
        return self._last[1]

    def _make(self, workload: Mapping[str, Any], device: str | None) -> Plan:
        request = self.request
        plan = make_plan(
            self.models,
            command=request.command,
            protocol=self.protocol,
            baseline=request.baseline,
            device=device or request.device,
            amp=request.amp,
            channels_last=request.channels_last,
            tf32=request.tf32,
            cudnn_benchmark=request.cudnn_benchmark,
            cold_cache=request.cold_cache,
            optimizer=request.optimizer if workload["mode"] in self._optimized else None,
            runtimes=request.runtime,
            fuse=request.fuse,
            scope=request.scope,
            threads=self._threads,
            seed=request.seed,
            image=request.image,
            checkpoints=request.checkpoint,
            plugins=request.plugin,
            lenient=self.is_product,
            elsewhere=self._elsewhere,
            **workload,
        )
        return plan if self.is_plain and not self.is_product else self._named(plan)

    def _named(self, plan: Plan) -> Plan:
        """Let the records tell the command of the whole sweep."""
        request = self.request
        words = shell(
            request.command,
            request.models,
            self.protocol,
            **{option: getattr(request, option) for option in OPTIONS},
            nms=request.scope == "nms",
            end_to_end=request.scope == "end-to-end",
            no_cudnn_benchmark=not request.cudnn_benchmark,
            executor=None if request.executor == "local" else request.executor,
            **{f"slurm_{name}": value for name, value in request.slurm.items()},
        )
        return dataclasses.replace(plan, shell=words)


OPTIONS = (
    "baseline", "device", "batch_size", "img_size", "input", "image", "dtype", "amp",
    "channels_last", "mode", "optimizer", "runtime", "fuse", "tf32", "cold_cache", "threads",
    "seed", "checkpoint", "plugin", "gpus",
)  # fmt: skip


def cases_of(request: Request) -> int:
    """Number of rows that a request comes to."""
    arms = len(_models(request.models)) * max(1, len(request.runtime))
    return len(_workloads(request)) * arms


def _workloads(request: Request) -> list[Mapping[str, Any]]:
    """What the units differ in, the batch size changing first.

    Raises:
        UserError: the size of the input is given in two ways.
    """
    if request.img_size and request.input:
        raise UserError("--input and --img-size both set the size; give one of them")
    sizes: list[Mapping[str, Any]] = [{"img_size": size} for size in request.img_size]
    sizes += [{"input_shape": shape} for shape in request.input]
    return [
        {**size, "dtype": dtype, "mode": mode, "batch_size": batch_size}
        for size, dtype, mode, batch_size in itertools.product(
            sizes or [{}], request.dtype, request.mode, request.batch_size
        )
    ]


def _models(patterns: Sequence[str]) -> tuple[str, ...]:
    """Names with patterns replaced by what they match, without what was named already."""
    found: list[str] = []
    for pattern in patterns:
        matching = models_of(pattern)
        found += matching if matching == [pattern] else [m for m in matching if m not in found]
    return tuple(found)


class Parts:
    """The parts of a run folder, by the units that they hold.

    A part has the name of a unit's place and of a digest of what it is: the same under another
    plan, on another device of its kind, and with another number of threads.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._known = {part.path.name.partition("-")[2]: part for part in folder.parts()}

    def known(self, plan: Plan) -> RunFolder | None:
        """The part of a unit; None if nothing of it was begun."""
        return self._known.get(digest_of(plan))

    def records(self, plan: Plan) -> list[Record]:
        """What there is of a unit."""
        part = self.known(plan)
        return part.records() if part is not None and part.has_records else []

    def of(self, number: int, plan: Plan) -> RunFolder:
        """The part of a unit, made if it is not there."""
        digest = digest_of(plan)
        if digest not in self._known:
            self._known[digest] = self._folder.part(f"{number:05d}-{digest}")
        return self._known[digest]


def digest_of(plan: Plan) -> str:
    """Tell one unit from another, wherever it runs."""
    content = [
        plan.command,
        plan.baseline,
        [
            (case.label, case.name, case.checkpoint, _anywhere(case.workload).facts())
            for case in plan.cases
        ],
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:10]


def _anywhere(work: Workload) -> Workload:
    return dataclasses.replace(work, device=work.device.partition(":")[0], threads=0)


def is_of(record: Record, plan: Plan) -> bool:
    """Whether a record is the whole of what a plan comes to for its model, wherever it was made."""
    protocol, work = plan.protocol, record.workload
    asked = (protocol.name, protocol.budget_s, protocol.min_effect)
    if not record.finished or (record.tier, record.budget_s, record.min_effect) != asked:
        return False
    return any(
        case.label == record.model
        and case.workload.threads in (0, work.threads)
        and dataclasses.replace(
            case,
            workload=dataclasses.replace(case.workload, device=work.device, threads=work.threads),
        ).key
        == record.key
        for case in plan.cases
    )


def is_whole(records: Sequence[Record], plan: Plan, failed: Collection[str] = ()) -> bool:
    """Whether records are the last word on all cases of a unit, wherever they were made.

    Args:
        records: of its part.
        plan: of the unit.
        failed: models whose failure is a last word too.
    """
    done = {r.model for r in records if not r.error and is_of(r, plan)}
    return bool(records) and all(
        case.label in done or case.label in plan.impossible or case.label in failed
        for case in plan.cases
    )
