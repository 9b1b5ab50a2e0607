"""A cluster under Slurm: each unit is a job on one node, whose results come back through the disk.

Jobs are submitted as arrays by submitit, which also requeues a job that is preempted or out of
time. This process then only watches: what a job wrote is read from its part of the run folder,
which must be on a file system that the nodes share, and whether it is still there is asked of
`squeue`. Killing this process loses nothing; `--resume` attaches to the jobs again.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from datbench.errors import UserError
from datbench.executors import Executor, executor, measure
from datbench.plan import Plan
from datbench.records import Record
from datbench.request import Request
from datbench.runner import Progress
from datbench.store import RunFolder
from datbench.sweep import Parts, Sweep, digest_of, is_of, is_whole
from zoo.registry import ZooError

FOLDER, JOURNAL = "slurm", "jobs.jsonl"
ENDED = "BOOT_FAIL COMPLETED DEADLINE FAILED NODE_FAIL PREEMPTED TIMEOUT".split()
HOPELESS = {  # states after which another attempt would end alike, and what the row says of them
    "CANCELLED": "Slurm's job {job} was cancelled",
    "OUT_OF_MEMORY": "out of memory: Slurm ended the job {job}, which took more than it was given; "
    "ask for more with --slurm-mem",
}
HELD = "LAUNCH_FAILED"
OVER = frozenset([*ENDED, *HOPELESS, HELD])
MEMORY = re.compile(r"exceeded (job )?memory limit|oom[ _-]kill", re.I)
GONE = "gone"  # of a job that Slurm no longer knows
# After these the job may be queued again by Slurm, or have written what is not yet seen here.
LINGERING = frozenset([GONE, "COMPLETED", "NODE_FAIL", "PREEMPTED"])
POLL_S = (1.0, 10.0)  # between two looks, longer as nothing happens
GRACE_S = 30.0  # for that
MINUTES, SIGNAL_S = 60, 30  # default time limit; how long before it a job is warned
ARRAY = 1001  # largest array where Slurm does not tell


@executor("slurm", elsewhere=True, needs=("submitit",), extra="slurm")
class Slurm(Executor):
    """Measures each unit in a job of its own, on one node."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        if shutil.which("sbatch") is None:
            raise UserError("there is no sbatch here: run this on a login node of the cluster")
        if request.gpus is not None:
            raise UserError("--gpus is for this machine; on a cluster give --slurm-gres gpu:1")
        self._options = dict(request.slurm)
        for name in ("nodes", "ntasks", "ntasks_per_node"):
            if str(self._options.pop(name, 1)) != "1":
                raise UserError(
                    f"--slurm-{name.replace('_', '-')}: a comparison is one task on one node; "
                    "leave it out"
                )
        self._minutes = minutes(str(self._options.pop("time", MINUTES)))
        parallel = str(self._options.pop("array_parallelism", 256))
        if not parallel.isdecimal() or int(parallel) < 1:
            raise UserError(f"--slurm-array-parallelism {parallel}: expected a number, 1 or more")
        self._parallel = int(parallel)
        self.device = request.device
        if request.device == "auto":
            resources = {k: v for k, v in self._options.items() if k.startswith(("gres", "tres"))}
            asked = any(name.startswith("gpus") for name in self._options)
            asked = asked or any("gpu" in str(value) for value in resources.values())
            self.device = "cuda" if asked else "cpu"

    def run(self, sweep: Sweep, folder: RunFolder, progress: Progress) -> bool:
        """Submit what is not finished and not under way, and watch."""
        watch = _Watch(self, sweep, folder, progress)
        try:
            watch.begin()
            watch.follow()
        except KeyboardInterrupt:
            self.under_way = watch.under_way
            return False
        return True

    def cancel(self) -> None:
        """Cancel the jobs that are under way."""
        _cancel(self.under_way)

    def submit(
        self, folder: RunFolder, units: Sequence[tuple[int, str]]
    ) -> Iterator[tuple[int, str]]:
        """Submit units, given by number and digest, as arrays.

        Yields:
            The number of each and the job that it became.

        Raises:
            UserError: Slurm refuses them.
        """
        import submitit

        made = submitit.SlurmExecutor(folder.path / FOLDER, max_num_timeout=self.request.retries)
        exclusive = self.device == "cpu" and not {"cpus_per_task", "mem", "exclusive"} & {
            *self._options
        }
        made.update_parameters(
            job_name=f"datbench-{folder.run_id}",
            time=self._minutes,
            nodes=1,
            signal_delay_s=SIGNAL_S,
            array_parallelism=self._parallel,
            additional_parameters={
                **({"exclusive": True} if exclusive else {}),
                "requeue": True,
                **self._options,
            },
        )
        most = largest_array()
        for first in range(0, len(units), most):
            some = units[first : first + most]
            try:
                with made.batch():
                    jobs = [
                        made.submit(
                            Unit(), self.request, str(folder.path.resolve()), *unit, self.device
                        )
                        for unit in some
                    ]
            except submitit.core.utils.FailedJobError as error:
                raise UserError(f"sbatch refused the jobs: {_last_line(str(error))}") from error
            yield from ((number, job.job_id) for (number, _), job in zip(some, jobs, strict=True))


class Unit:
    """What a job does; submitit calls it, again if the job was requeued."""

    def __call__(
        self, request: Request, folder: str, number: int, digest: str, device: str
    ) -> None:
        """Measure a unit in its part of a run folder, or go on with it.

        Args:
            request: what was asked for.
            folder: of the run.
            number, digest: of the unit.
            device: "cpu", "cuda" or "cuda:N", which must be on the node.
        """
        plan = Sweep(request, elsewhere=True).unit(number, device)
        if digest_of(plan) != digest:
            raise UserError(f"unit {number} is another one here: is datbench of another version?")
        parts = Parts(RunFolder(Path(folder)))
        try:
            if int(os.environ.get("SLURM_RESTART_COUNT", "0")) > request.retries:
                raise UserError(f"requeued more than {request.retries} times")
            tell = functools.partial(print, flush=True)
            measure(Sweep(request), number, parts, lambda text, _: tell(text), device=device)
        except (UserError, ZooError) as error:  # another attempt would end alike
            give_up(plan, parts.of(number, plan), str(error))

    def checkpoint(self, *arguments: Any) -> Any:
        """Go on with the same unit after a requeue; its part of the folder holds the rest."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, *arguments)


@dataclasses.dataclass
class _Under:
    """A unit that is not finished.

    Args:
        plan: of the unit.
        digest: of the plan.
        job: that it became last.
        attempts: jobs that it became.
        offset: size of its records when that was submitted.
        over_s: when the job was first seen to be over.
        size: of its records when they were last read.
    """

    plan: Plan
    digest: str
    job: str = ""
    attempts: int = 0
    offset: int = 0
    over_s: float | None = None
    size: int = 0


class _Watch:
    """Follows the jobs of a run folder."""

    def __init__(self, slurm: Slurm, sweep: Sweep, folder: RunFolder, progress: Progress) -> None:
        self._slurm, self._sweep, self._folder, self._progress = slurm, sweep, folder, progress
        self._parts = Parts(folder)
        self._units: dict[int, _Under] = {}
        (folder.path / FOLDER).mkdir(exist_ok=True)
        self._journal = folder.path / FOLDER / JOURNAL

    @property
    def under_way(self) -> list[str]:
        """Jobs that are not known to be over."""
        return [unit.job for unit in self._units.values() if unit.job and unit.over_s is None]

    def begin(self) -> None:
        """Find what is finished, attach to what is under way, and submit the rest."""
        for number in range(len(self._sweep)):
            plan = self._sweep.unit(number, self._slurm.device)
            unit = _Under(plan, digest_of(plan))
            if not is_whole(self._parts.records(plan), plan):
                self._units[number] = unit
        jobs = self._journalled()
        states = job_states() if jobs else {}
        if states is None:
            raise UserError("squeue does not tell which jobs are under way; try again later")
        for unit in self._units.values():
            job, offset = jobs.get(unit.digest, ("", 0))
            if states.get(job, GONE) not in OVER | {GONE}:
                unit.job, unit.attempts, unit.offset = job, 1, offset
        self._submit([number for number, unit in self._units.items() if not unit.job])

    def _journalled(self) -> dict[str, tuple[str, int]]:
        """The last job of each unit, and where its records begin, by the digest of the unit."""
        if not self._journal.is_file():
            return {}
        lines = self._journal.read_text(encoding="utf-8").splitlines()
        entries = [json.loads(line) for line in lines if line.endswith("}")]
        return {entry["digest"]: (entry["job"], entry["offset"]) for entry in entries}

    def _submit(self, numbers: Sequence[int]) -> None:
        """Submit units, and keep which jobs they became."""
        for number in numbers:
            part = self._parts.known(self._units[number].plan)
            self._units[number].offset = 0 if part is None else part.size
        units = [(number, self._units[number].digest) for number in numbers]
        for number, job in self._slurm.submit(self._folder, units):
            unit = self._units[number]
            unit.job, unit.over_s = job, None
            unit.attempts += 1
            told = {"unit": number, "digest": unit.digest, "job": job, "offset": unit.offset}
            with self._journal.open("a", encoding="utf-8") as journal:
                journal.write(f"{json.dumps(told)}\n")

    def follow(self) -> None:
        """Watch until every unit is finished or given up."""
        pause = POLL_S[0]
        while self._units:
            states = job_states()
            left = len(self._units)
            self._submit([number for number in list(self._units) if self._failed(number, states)])
            self._tell(states)
            pause = POLL_S[0] if len(self._units) < left else min(1.5 * pause, POLL_S[1])
            if self._units:
                time.sleep(pause)

    def _failed(self, number: int, states: Mapping[str, str] | None) -> bool:
        """Look at a unit, and drop it if it is finished or given up; whether it is to be tried
        again.
        """
        unit = self._units[number]
        part = self._parts.of(number, unit.plan)
        if part.size != unit.size:
            unit.size = part.size
            failed = {record.model for record in part.records(unit.offset) if record.error}
            if is_whole(part.records(), unit.plan, failed):
                del self._units[number]
                return False
        state = "" if states is None else states.get(unit.job, GONE)
        if state not in OVER | {GONE}:
            unit.over_s = None
            return False
        unit.over_s = unit.over_s or time.monotonic()
        if state in LINGERING and time.monotonic() - unit.over_s < GRACE_S:
            return False
        log = self._log(unit.job)
        if MEMORY.search(log):
            state = "OUT_OF_MEMORY"  # some clusters call it a failure
        if state == HELD:
            _cancel([unit.job])
        if state not in HOPELESS and unit.attempts <= self._slurm.request.retries:
            return True
        told = HOPELESS.get(state, "Slurm's job {job} ended without a result ({state})").format(
            job=unit.job, state=state
        )
        attempts = f" after {unit.attempts} attempts" * (unit.attempts > 1)
        last = f": {_last_line(log)}" * (state not in HOPELESS)
        give_up(unit.plan, part, f"{told}{attempts}{last}; see {self._folder.path / FOLDER}")
        del self._units[number]
        return False

    def _log(self, job: str) -> str:
        """What Slurm and the job itself said of its errors."""
        files = sorted((self._folder.path / FOLDER).glob(f"{job}_*_log.err"))
        return "".join(file.read_text(encoding="utf-8", errors="replace") for file in files)

    def _tell(self, states: Mapping[str, str] | None) -> None:
        """Tell how far it is."""
        units = len(self._sweep)
        done = units - len(self._units)
        if states is None:
            text = "Slurm's controller does not answer"
        else:
            found = [states.get(unit.job, GONE).lower() for unit in self._units.values()]
            text = ", ".join(f"{n} {state}" for state, n in collections.Counter(found).items())
        self._progress(f"{done} of {units} done; {text}" if text else f"{done} done", done / units)


def give_up(plan: Plan, part: RunFolder, reason: str) -> None:
    """Write why the cases of a unit without a last word have no figures; others keep theirs."""
    known = {r.model: r for r in part.records()} if part.has_records else {}
    flags = ("oom: the job had too little memory",) if reason.startswith("out of memory") else ()
    for case in plan.cases:
        found = known.get(case.label)
        if case.label in plan.impossible or (found and not found.error and is_of(found, plan)):
            continue
        found = found or Record(
            run_id=part.run_id,
            key=case.key,
            model=case.label,
            family=case.named.family,
            source=case.named.source,
            workload=case.workload,
            timestamp_utc="",
            tier=plan.protocol.name,
            command=plan.shell,
            unit=part.unit,
        )
        part.append(
            dataclasses.replace(
                found,
                timestamp_utc=datetime.now(UTC).isoformat(timespec="seconds"),
                error=found.error or reason,
                warnings=(*found.warnings, *flags),
                finished=True,
            )
        )


def _cancel(jobs: Sequence[str]) -> None:
    subprocess.run(["scancel", *jobs], check=False, timeout=60)


def job_states() -> dict[str, str] | None:
    """Ask Slurm for the states of this user's jobs, by number; None if it does not answer.

    A job that could not be started, and that Slurm therefore keeps until somebody releases it,
    is `HELD`.
    """
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r"]
    try:
        done = subprocess.run(
            [*command, f"--user={os.getuid()}"],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        return None
    lines = (line.split("|", 2) for line in done.stdout.splitlines())
    return {job: HELD if "requeued held" in reason else state for job, state, reason in lines}


def largest_array() -> int:
    """Ask Slurm how many jobs an array may have."""
    try:
        done = subprocess.run(
            ["scontrol", "show", "config"], capture_output=True, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return ARRAY - 1
    match = re.search(r"MaxArraySize\s*=\s*(\d+)", done.stdout)
    return max(1, int(match[1] if match else ARRAY) - 1)


def minutes(text: str) -> int:
    """Read a time limit as Slurm does, rounded up to minutes.

    Args:
        text: "90", "MM:SS", "HH:MM:SS", "D-HH", "D-HH:MM" or "D-HH:MM:SS".
    Raises:
        UserError: it reads as none of these.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if match is None:
        raise UserError(f"--slurm-time {text}: expected minutes, HH:MM:SS or D-HH:MM:SS")
    days, *rest = match.groups()
    numbers = [int(number) for number in rest if number is not None]
    if days is not None:  # hours come first
        hours, mins, seconds = (*numbers, 0, 0)[:3]
    elif len(numbers) == 3:
        hours, mins, seconds = numbers
    else:
        hours, (mins, seconds) = 0, (*numbers, 0)[:2]
    return 60 * (24 * int(days or 0) + hours) + mins + (seconds > 0)


def _last_line(text: str) -> str:
    """The last line that tells an error, of what a program said."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    own = [line for line in lines if not line.startswith(("srun:", "slurmstepd"))]
    told = [line for line in own if re.search("error|fatal", line, re.I)]
    return (told or own or lines or ["it said nothing"])[-1]
