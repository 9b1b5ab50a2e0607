"""Executors: what they refuse, and what the one for Slurm reads and writes, without a cluster."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import stat
import subprocess

import pytest

from datbench.errors import UserError
from datbench.executors import EXECUTORS, make_executor
from datbench.executors.local import Local
from datbench.executors.slurm import (
    MEMORY,
    Unit,
    give_up,
    job_states,
    largest_array,
    minutes,
)
from datbench.request import make_request
from datbench.store import RunFolder
from datbench.sweep import Parts, Sweep, digest_of, is_of
from zoo import ZooError


def request(**options):
    return make_request({"models": ["block:ema", "block:sea"], "input": "16x8x8"} | options)


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Put commands on the path: commands(squeue="echo '1|RUNNING|None'")."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def make(**scripts):
        for name, script in scripts.items():
            file = folder / name
            file.write_text(f"#!/bin/sh\n{script}\n")
            file.chmod(file.stat().st_mode | stat.S_IXUSR)

    return make


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"slurm": {"partition": "gpu", "time": 5}}, "--slurm-partition, --slurm-time is for"),
        ({"gpus": "0,x"}, "expected 'all' or numbers"),
        ({"gpus": "0", "device": "cpu"}, "leave --device cpu out"),
        ({"gpus": "0"}, "no CUDA device|not there|no CUDA"),
        ({"gpus": "all"}, "CUDA"),
    ],
)
def test_the_local_executor_refuses_what_it_cannot_do(monkeypatch, options, told):
    monkeypatch.setattr("datbench.device.count_cuda_devices", lambda: 0)
    monkeypatch.setattr("datbench.executors.local.count_cuda_devices", lambda: 0)
    with pytest.raises(UserError, match=told):
        make_executor(request(**options))


def test_gpus_of_this_machine_are_named_once_each(monkeypatch):
    monkeypatch.setattr("datbench.device.count_cuda_devices", lambda: 4)
    monkeypatch.setattr("datbench.executors.local.count_cuda_devices", lambda: 4)
    assert Local(request(gpus="3, 0,3"))._devices == ["cuda:3", "cuda:0"]
    assert len(Local(request(gpus="all"))._devices) == 4


def test_an_unknown_executor_is_told_with_the_nearest():
    with pytest.raises(ZooError, match="no executor named 'slrum'; did you mean slurm"):
        make_executor(request(executor="slrum"))
    assert EXECUTORS["slurm"].elsewhere
    assert not EXECUTORS["local"].elsewhere


def test_without_submitit_the_extra_is_named(commands, monkeypatch):
    commands(sbatch="true")
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(UserError, match=r"submitit is not installed; pip install 'datbench\[slur"):
        make_executor(request(executor="slurm"))


def test_away_from_a_cluster_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="run this on a login node"):
        make_executor(request(executor="slurm"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"slurm": {"nodes": 2}}, "--slurm-nodes: a comparison is one task on one node"),
        ({"slurm": {"ntasks": "4"}}, "--slurm-ntasks: "),
        ({"slurm": {"nodes": "two"}}, "--slurm-nodes: "),
        ({"slurm": {"time": "tomorrow"}}, "--slurm-time tomorrow: expected minutes"),
        ({"slurm": {"array_parallelism": "many"}}, "--slurm-array-parallelism many: expected a"),
        ({"gpus": "all"}, "--slurm-gres gpu:1"),
    ],
)
def test_the_slurm_executor_refuses_what_would_split_a_comparison(commands, options, told):
    commands(sbatch="true")
    with pytest.raises(UserError, match=told):
        make_executor(request(executor="slurm", **options))


@pytest.mark.parametrize(
    ("slurm", "device"),
    [
        ({}, "cpu"),
        ({"partition": "gpu"}, "cpu"),  # a name says nothing
        ({"gres": "gpu:a100:1"}, "cuda"),
        ({"gpus": 1}, "cuda"),
        ({"gpus_per_node": "1"}, "cuda"),
    ],
)
def test_the_device_is_a_gpu_where_one_is_asked_for(commands, slurm, device):
    commands(sbatch="true")
    assert make_executor(request(executor="slurm", slurm=slurm)).device == device
    named = make_executor(request(executor="slurm", slurm=slurm, device="cuda:0"))
    assert named.device == "cuda:0"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90), ("30:00", 30), ("30:01", 31), ("1:30:00", 90), ("0:00:20", 1), ("1-0", 1440),
        ("2-12", 3600), ("1-02:30", 1590), ("1-02:30:30", 1591),
    ],
)  # fmt: skip
def test_times_are_read_as_slurm_reads_them(text, expected):
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["", "1:2:3:4", "x", "-5", "1-", "1h"])
def test_other_times_are_refused(text):
    with pytest.raises(UserError, match="expected minutes, HH:MM:SS or D-HH:MM:SS"):
        minutes(text)


def test_states_of_jobs_are_read(commands):
    lines = ("7_0|RUNNING|None", "7_1|PENDING|launch failed requeued held", "8|COMPLETED|None")
    commands(squeue="printf '%s\\n' " + " ".join(f"'{line}'" for line in lines))
    assert job_states() == {"7_0": "RUNNING", "7_1": "LAUNCH_FAILED", "8": "COMPLETED"}


def test_a_controller_that_does_not_answer_is_no_news_of_jobs(commands, monkeypatch):
    commands(squeue="echo 'Unable to contact slurm controller' >&2; exit 1")
    assert job_states() is None

    def late(*_, **__):
        raise subprocess.TimeoutExpired("squeue", 60)

    monkeypatch.setattr(subprocess, "run", late)
    assert job_states() is None


def test_the_largest_array_is_asked_for(commands):
    commands(scontrol="echo 'MaxArraySize            = 501'")
    assert largest_array() == 500  # Slurm counts its indices from 0 up to one less
    commands(scontrol="exit 1")
    assert largest_array() == 1000


@pytest.mark.parametrize(
    "line",
    [
        "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=5.0",
        "slurmstepd: error: Detected 1 oom_kill event in StepId=5.batch",
        "slurmstepd-n1: error: StepId=3.0 exceeded memory limit (549 > 209), being killed",
        "slurmstepd-n1: error: Exceeded job memory limit",
        "Some of the step tasks have been OOM Killed by the cgroup out-of-memory handler.",
    ],
)
def test_slurms_words_for_too_little_memory_are_known(line):
    assert MEMORY.search(line)
    assert not MEMORY.search("CUDA out of memory. Tried to allocate 3 GiB")  # the models' own


def test_giving_up_is_a_row_with_the_first_reason(tmp_path):
    sweep = Sweep(request(device="cpu", batch_size=[1, 2]))
    plan = sweep.unit(0)
    part = Parts(RunFolder.create(tmp_path, "compare")).of(0, plan)
    give_up(plan, part, "the node was struck by lightning")
    found = {record.model: record for record in part.records()}
    assert set(found) == {"block:ema", "block:sea"}
    for record in found.values():
        assert record.error == "the node was struck by lightning"
        assert record.finished
        assert record.unit == part.unit
        assert not is_of(record, sweep.unit(1))
    written = part.size
    give_up(plan, part, "again")
    told = {record.model: record.error for record in part.records()}
    assert set(told.values()) == {"the node was struck by lightning"}
    assert part.size > written


def test_a_unit_that_cannot_work_on_its_node_is_a_row_there(tmp_path, monkeypatch):
    asked = request(device="auto", executor="slurm", batch_size=[1, 2])
    folder = RunFolder.create(tmp_path, "compare")
    monkeypatch.setattr("datbench.device.count_cuda_devices", lambda: 0)
    plan = Sweep(asked, elsewhere=True).unit(1, "cuda")
    Unit()(asked, str(folder.path), 1, digest_of(plan), "cuda")
    records = folder.records()
    assert [record.model for record in records] == ["block:ema", "block:sea"]
    assert all("CUDA" in record.error for record in records)


def test_a_job_of_another_plan_is_refused(tmp_path):
    asked = request(executor="slurm", batch_size=[1, 2])
    with pytest.raises(UserError, match="unit 0 is another one here"):
        Unit()(asked, str(tmp_path), 0, "0" * 10, "cpu")


def test_a_unit_that_was_requeued_too_often_is_given_up(tmp_path, monkeypatch):
    asked = request(executor="slurm", batch_size=[1, 2], retries=1)
    folder = RunFolder.create(tmp_path, "compare")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    Unit()(
        asked, str(folder.path), 0, digest_of(Sweep(asked, elsewhere=True).unit(0, "cpu")), "cpu"
    )
    assert {record.error for record in folder.records()} == {"requeued more than 1 times"}


def test_records_are_of_a_plan_wherever_they_were_made(tmp_path, make_record):
    there = Sweep(request(executor="slurm", tier="quick"), elsewhere=True).unit(0, "cpu")
    here = Sweep(request(tier="quick", device="cpu", threads=3)).unit(0)
    known = {"tier": "quick", "min_effect": 0.01, "budget_s": None}
    case = here.cases[0]
    record = dataclasses.replace(
        make_record(case.label, work=case.workload), key=case.key, finished=True, **known
    )
    assert is_of(record, there)
    assert not is_of(dataclasses.replace(record, finished=False), there)
    assert not is_of(dataclasses.replace(record, tier="default"), there)
    assert not is_of(dataclasses.replace(record, key="k1"), there)
