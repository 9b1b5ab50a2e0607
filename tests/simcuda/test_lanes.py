"""Several GPUs of one machine, simulated: side by side on different cases, never two on one."""

from __future__ import annotations

import itertools
import json
from datetime import datetime, timedelta

import pytest

from datbench.store import RunFolder, latest_run

pytestmark = pytest.mark.slow
MODELS = ("block:ema", "block:psa")
SWEEP = ("--input", "16x8x8", "--batch-size", "1", "2", "4", "8", "--image", "noise", "--quick")


@pytest.fixture
def sweep(simulator, tmp_path):
    """Run a sweep on simulated GPUs: sweep("--gpus", "all", device_count=2)."""

    def run(*words, command="compare", status=0, **settings):
        models = ("--models", *MODELS) if command == "compare" else MODELS
        ran = simulator.datbench(
            command, *models, *SWEEP[: len(SWEEP) - (command == "profile")], *words,
            "--results", tmp_path, launch_ns=20_000, gflops=2000, **settings,
        )  # fmt: skip
        assert ran.process.returncode == status, ran.process.stdout + ran.process.stderr
        return ran, latest_run(tmp_path)

    return run


def spans(folder: RunFolder) -> dict[str, list[tuple[datetime, datetime]]]:
    """When each unit was timed, by its device."""
    devices = {record.unit: record.workload.device for record in folder.records()}
    found: dict[str, list[tuple[datetime, datetime]]] = {}
    for part in folder.parts():
        slots = part.samples()
        ends = [datetime.fromisoformat(slot["ended_utc"]) for slot in slots]
        first = timedelta(milliseconds=sum(slots[0]["latency_ms"]))
        found.setdefault(devices[part.unit], []).append((min(ends) - first, max(ends)))
    return found


def test_gpus_share_the_units_and_each_has_one_at_a_time(sweep):
    _, folder = sweep("--gpus", "all", device_count=2)
    records = folder.records()
    assert len(records) == 8
    assert all(record.finished and not record.error for record in records)
    found = spans(folder)
    assert set(found) == {"cuda:0", "cuda:1"}
    for of_device in found.values():
        in_order = sorted(of_device)
        for (_, end), (start, _) in itertools.pairwise(in_order):
            assert start >= end
    for unit in {record.unit for record in records}:
        pair = [record for record in records if record.unit == unit]
        assert len({record.workload.device for record in pair}) == 1  # a comparison stays together
        assert pair[1].comparison.baseline == MODELS[0]


def test_named_gpus_alone_are_used(sweep):
    _, folder = sweep("--gpus", "1", device_count=3, command="profile")
    records = folder.records()
    assert len(records) == 8
    assert {record.workload.device for record in records} == {"cuda:1"}


def test_what_was_begun_on_a_gpu_goes_on_there(sweep, tmp_path):
    _, folder = sweep("--gpus", "all", device_count=2)
    before = {(r.model, r.key): r for r in folder.records()}
    part = folder.parts()[1]
    lines = (part.path / "records.jsonl").read_text().splitlines()
    cut = [{**json.loads(line), "finished": False} for line in lines]
    (part.path / "records.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in cut))
    _, again = sweep("--gpus", "all", "--resume", folder.path, device_count=2)
    assert again.path == folder.path
    after = {(r.model, r.key): r for r in again.records()}
    assert set(after) == set(before)
    assert all(after[k] == before[k] for k in before if before[k].unit != part.unit)
    assert all(record.finished for record in after.values())
    assert not [path for path in (folder.path / "parts").iterdir() if path.suffix]  # none set aside


def test_a_gpu_that_is_not_there_is_told_before_anything_starts(sweep, tmp_path):
    with pytest.raises(ValueError, match="no run under"):
        sweep("--gpus", "0,5", device_count=2, status=2)
