"""Sweeps on a real Slurm: what happens to jobs and nodes happens to them here."""

from __future__ import annotations

import functools
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from datbench.store import RunFolder

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.xdist_group("cluster")]
MODELS = ("block:ema", "block:psa")
ONE_UNIT = ("--input", "16x8x8")
TWELVE = ("--batch-size", "1", "2", "4", "--input", "16x8x8", "16x10x10")


class Sweep:
    """A `datbench compare --executor slurm` that runs beside the test.

    Args:
        cluster: where its jobs go.
        folder: where it is started.
        words: further options.
        tier: "quick", or "default" for jobs that last long enough to be disturbed.
        terminal: its standard input; none by default.
    """

    def __init__(
        self, cluster, folder: Path, *words: str, tier: str = "quick", terminal: int | None = None
    ) -> None:
        self._cluster, self._folder = cluster, folder
        command = [
            sys.executable, "-m", "datbench", "compare", "--models", *MODELS,
            *(["--quick"] if tier == "quick" else []), "--image", "noise", "--executor", "slurm",
            "--slurm-cpus-per-task", "1", "--slurm-time", "10", "--slurm-mem", "2000", *words,
        ]  # fmt: skip
        with (folder / "out.txt").open("a") as out:
            self.process = subprocess.Popen(
                command, cwd=folder, env=cluster.environment, start_new_session=True,
                stdin=subprocess.DEVNULL if terminal is None else terminal,
                stdout=out, stderr=subprocess.STDOUT,
                preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
            )  # fmt: skip

    @property
    def run(self) -> Path:
        """Its run folder."""
        (found,) = self._folder.glob("results/*-compare")
        return found

    def job(self, number: int = -1) -> dict[str, object]:
        """What it noted of a job, once it has noted it."""
        journal = "results/*-compare/slurm/jobs.jsonl"
        lines: list[str] = []

        def noted() -> bool:
            found = self._folder.glob(journal)
            lines[:] = [line for file in found for line in file.read_text().splitlines()]
            return len(lines) > max(number, 0)

        self._cluster.wait(noted)
        return json.loads(lines[number])

    def running(self, number: int = -1) -> str:
        """A job of its, once it measures."""
        job = str(self.job(number)["job"])
        parts = f"results/*-compare/parts/{self.job(number)['unit']:05d}-*/records.jsonl"
        self._cluster.wait(lambda: any(self._folder.glob(parts)))
        return job

    def end(self, status: int = 0) -> dict[str, list]:
        """Wait for its end; its records by model."""
        assert self.process.wait(240) == status, self.said()
        records: dict[str, list] = {}
        for record in RunFolder(self.run).records():
            records.setdefault(record.model, []).append(record)
        return records

    def said(self) -> str:
        """What it has printed."""
        return (self._folder / "out.txt").read_text()


@pytest.fixture
def sweep(cluster, tmp_path):
    """Start a sweep: sweep("--batch-size", "1", "2")."""
    started = []

    def start(*words, **settings):
        started.append(Sweep(cluster, tmp_path, *words, **settings))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()


def test_a_sweep_of_twelve_cases_comes_back_whole(sweep):
    records = sweep(*TWELVE).end()
    assert set(records) == set(MODELS)
    for found in records.values():
        works = {(r.workload.batch_size, r.workload.input_shape) for r in found}
        assert len(works) == len(found) == 6
        assert all(r.finished and not r.error and r.values["latency_ms_median"] for r in found)
        assert all(r.environment.host and r.environment.threads == 1 for r in found)
    # The models of a comparison were measured by one job: each has its partner's unit.
    assert {r.unit for r in records[MODELS[0]]} == {r.unit for r in records[MODELS[1]]}
    assert all(r.comparison.baseline == MODELS[0] for r in records[MODELS[1]])


def test_a_job_that_is_cancelled_is_a_row_with_its_reason_and_resume_measures_it(cluster, sweep):
    options = ("--batch-size", "1", "2", "--slurm-array-parallelism", "1")
    begun = sweep(*ONE_UNIT, *options, tier="default")
    cluster.tell("scancel", begun.running(0))
    records = begun.end(status=1)
    errors = {(r.model, r.workload.batch_size): r.error or "" for v in records.values() for r in v}
    assert "was cancelled" in errors[MODELS[1], 1]
    assert not errors[MODELS[0], 2]
    assert not errors[MODELS[1], 2]
    timed = [r.timestamp_utc for v in records.values() for r in v if not r.error]
    again = sweep(*ONE_UNIT, *options, "--resume", str(begun.run), tier="default").end()
    found = [record for of in again.values() for record in of]
    assert len(found) == 4
    assert not any(record.error for record in found)
    assert set(timed) <= {r.timestamp_utc for r in found}  # what was there is not measured again


def test_a_job_that_takes_more_memory_than_it_has_is_a_row_that_says_so(sweep):
    records = sweep(*ONE_UNIT, "--slurm-mem", "200").end(status=1)
    for found in records.values():
        assert found[0].error.startswith("out of memory: Slurm ended the job"), found[0].error
        assert "--slurm-mem" in found[0].error
        assert "oom" in found[0].flags


def test_a_drained_node_gets_no_more_jobs_and_its_job_goes_on(cluster, sweep):
    begun = sweep(*TWELVE)
    job = begun.running(0)
    node = cluster.tell("squeue", "-h", "-t", "all", "-j", job, "-o", "%N").strip()
    cluster.tell("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
    records = begun.end()
    assert [len(found) for found in records.values()] == [6, 6]
    assert not any(record.error for found in records.values() for record in found)
    state = cluster.tell("sinfo", "-h", "-N", "-n", node, "-o", "%T").strip()
    assert state.startswith("drain")


def test_a_job_goes_on_when_its_node_has_failed(cluster, sweep):
    begun = sweep(*ONE_UNIT, tier="default")
    job = begun.running(0)
    node = cluster.tell("squeue", "-h", "-t", "all", "-j", job, "-o", "%N").strip()
    cluster.tell("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    cluster.hurry(job, begun.run.resolve())
    records = begun.end()
    assert not any(record.error for found in records.values() for record in found)


def test_a_job_that_is_requeued_goes_on_with_what_it_has(cluster, sweep):
    begun = sweep(*ONE_UNIT, tier="default")
    job = begun.running(0)
    cluster.tell("scontrol", "requeue", job)
    cluster.hurry(job, begun.run.resolve())
    records = begun.end()
    assert not any(record.error for found in records.values() for record in found)
    assert begun.job()["job"] == job  # Slurm's own second attempt, not another job
    assert len((begun.run / "slurm" / "jobs.jsonl").read_text().splitlines()) == 1


def test_a_job_that_is_requeued_too_often_is_given_up(cluster, sweep):
    begun = sweep(*ONE_UNIT, "--retries", "0", tier="default")
    job = begun.running(0)
    cluster.tell("scontrol", "requeue", job)
    cluster.hurry(job, begun.run.resolve())
    records = begun.end(status=1)
    errors = [found[0].error for found in records.values() if found[0].error]
    assert errors
    assert all("requeued more than 0 times" in error for error in errors)


def test_jobs_that_fail_are_tried_again_a_bounded_number_of_times(cluster, sweep):
    begun = sweep(*ONE_UNIT, "--retries", "1", "--slurm-export", "NONE")
    # Without its environment a job finds neither Slurm's configuration nor its commands.
    records = begun.end(status=1)
    for found in records.values():
        assert "ended without a result" in found[0].error
        assert "after 2 attempts: RuntimeError: " in found[0].error


def test_the_controller_may_be_gone_for_a_while(cluster, sweep):
    begun = sweep(*ONE_UNIT, "--batch-size", "1", "2", tier="default")
    begun.running(0)
    cluster.kill("slurmctld")
    cluster.start_controller()
    records = begun.end()
    assert [len(found) for found in records.values()] == [2, 2]
    assert not any(record.error for found in records.values() for record in found)


def test_after_ctrl_c_the_jobs_go_on_and_resume_follows_them(cluster, sweep):
    begun = sweep(*TWELVE)
    begun.running(0)
    os.killpg(begun.process.pid, signal.SIGINT)
    assert begun.process.wait(60) == 130, begun.said()
    assert "On the cluster: " in begun.said()
    known = set(cluster.jobs())
    assert {"RUNNING"} <= {*cluster.jobs().values()}
    records = sweep(*TWELVE, "--resume", str(begun.run)).end()
    assert not set(cluster.jobs()) - known  # nothing was submitted again; Slurm forgets old jobs
    assert [len(found) for found in records.values()] == [6, 6]
    assert not any(record.error for found in records.values() for record in found)


def test_ctrl_c_asks_whether_to_cancel_the_jobs(cluster, sweep):
    ours, theirs = pty.openpty()
    begun = sweep(*ONE_UNIT, "--batch-size", "1", "2", tier="default", terminal=theirs)
    begun.running(0)
    os.killpg(begun.process.pid, signal.SIGINT)
    cluster.wait(lambda: "Not finished: 2 jobs. Cancel what is left?" in begun.said())
    os.write(ours, b"y\n")
    assert begun.process.wait(60) == 130
    cluster.wait(lambda: not {"RUNNING", "PENDING"} & {*cluster.jobs().values()})


def test_sbatch_has_the_last_word_on_its_options(sweep):
    begun = sweep(*ONE_UNIT, "--slurm-partition", "none")
    assert begun.process.wait(60) == 2, begun.said()
    assert "Error: sbatch refused the jobs" in begun.said()
    assert "nvalid partition" in begun.said()
