"""Runs that were cut short go on where their samples end."""

from __future__ import annotations

import dataclasses
import json

import pytest

import datbench.runner
from datbench.errors import UserError
from datbench.plan import make_plan
from datbench.runner import run
from datbench.schedule import DEFAULT, QUICK, RIGOROUS
from datbench.store import RunFolder

from .test_runner import FakePool, FakeWorker  # isort: skip

THREE = {"pvt_tiny": 100.0, "pvt_small": 105.0, "swin_tiny": 92.0}


class Killed(BaseException):
    """Ends a run as SIGKILL does: nothing is written after it."""


@pytest.fixture
def measure(monkeypatch, tmp_path):
    """Measure into one folder: measure(pool) gives the records by label."""
    folder = RunFolder.create(tmp_path, "compare")

    def go(pool, protocol=DEFAULT, command="compare", models=tuple(THREE), **options):
        monkeypatch.setattr(datbench.runner, "Pool", pool)
        plan = make_plan(models, protocol=protocol, command=command, device="cpu", **options)
        return {record.model: record for record in run(plan, RunFolder(folder.path))}

    go.folder = folder
    return go


def pool(killed_at=None, **options):
    """Workers that take the parent with them at a slot."""

    def hogged(clock):
        if clock == killed_at:
            raise Killed
        return False

    return FakePool(THREE, hogged=hogged, **options)


@pytest.mark.parametrize("killed_at", [1, 7, 18, 19, 24, 31, 49, 61, 99, 108])
def test_a_comparison_that_was_killed_goes_on_with_the_pairs_that_it_has(measure, killed_at):
    with pytest.raises(Killed):
        measure(pool(killed_at))
    kept = measure.folder.samples()
    assert len(kept) == killed_at - 1
    again = pool()
    records = measure(again)
    slots = measure.folder.samples()
    assert slots[: len(kept)] == kept
    assert {r.finished for r in records.values()} == {True}
    assert records["pvt_small"].comparison.verdict == "SLOWER"
    assert records["swin_tiny"].comparison.verdict == "FASTER"
    assert records["pvt_tiny"].values["samples"] == sum(
        len(s["latency_ms"]) for s in slots if s["model"] == "pvt_tiny"
    )
    rounds = slots[0]["rounds"]
    pairs, rest = divmod(len(kept), 6 * rounds)  # a round has six slots of three models
    counts = pairs + (rest // 6 > rounds / 2)
    assert again.clock == (DEFAULT.looks[0] - counts) * 6 * rounds
    assert not [asked for asked in again.asked if asked[1] == "metrics"]


@pytest.mark.parametrize("killed_at", [1, 10, 20, 21, 39, 41, 59])
def test_a_profile_that_was_killed_loses_at_most_the_model_in_flight(measure, killed_at):
    with pytest.raises(Killed):
        measure(pool(killed_at), QUICK, "profile")
    done = [r.model for r in measure.folder.records() if r.finished]
    assert done == list(THREE)[: (killed_at - 1) // 20]  # ten rounds of two slots each
    before = {r.model: r for r in measure.folder.records()}
    again = pool()
    records = measure(again, QUICK, "profile")
    assert {r.finished for r in records.values()} == {True}
    for model in done:
        assert records[model] == before[model]
        assert model not in {asked[0] for asked in again.asked}


def test_a_finished_run_is_not_measured_again(measure):
    first = measure(pool())
    again = pool()
    assert measure(again) == first
    assert again.asked == []


def test_a_larger_tier_adds_pairs_to_a_finished_run(measure):
    noisy = {"noise": 0.001, "per_process": 0.2}
    first = measure(pool(**noisy), models=("pvt_tiny", "pvt_small"))
    assert first["pvt_small"].comparison.verdict == "INCONCLUSIVE"
    again = measure(pool(**noisy), RIGOROUS, models=("pvt_tiny", "pvt_small"))
    assert again["pvt_small"].values["pairs"] > first["pvt_small"].values["pairs"]
    assert first["pvt_small"].values["pairs"] == DEFAULT.looks[-1]
    assert again["pvt_small"].tier == "rigorous"


def test_a_model_that_was_added_is_measured_beside_the_baseline_alone(measure):
    first = measure(pool(), models=("pvt_tiny", "pvt_small"))
    again = pool()
    records = measure(again)
    assert records["pvt_small"] == first["pvt_small"]
    assert {label for label, request in again.asked if request == "slot"} == {
        "pvt_tiny",
        "swin_tiny",
    }
    assert records["swin_tiny"].comparison.verdict == "FASTER"
    assert records["pvt_tiny"].values["pairs"] > first["pvt_tiny"].values["pairs"]


def test_a_model_that_failed_is_tried_again(measure):
    first = measure(pool(faults={("swin_tiny", "build"): 0}))
    assert first["swin_tiny"].error
    records = measure(pool())
    assert records["swin_tiny"].error is None
    assert records["swin_tiny"].comparison.verdict == "FASTER"
    assert records["pvt_small"] == first["pvt_small"]


def test_ratios_are_measured_when_a_baseline_that_failed_works_again(measure):
    for request in ("build", "slot"):
        first = measure(pool(faults={("pvt_tiny", request): 0}))
        assert first["pvt_tiny"].error
        assert first["pvt_small"].comparison is None
    records = measure(pool())
    assert records["pvt_tiny"].error is None
    assert records["pvt_small"].comparison.verdict == "SLOWER"
    assert records["swin_tiny"].comparison.verdict == "FASTER"


def test_another_baseline_is_compared_with_by_the_same_samples(measure):
    measure(pool())
    again = pool()
    records = measure(again, baseline="pvt_small")
    assert again.clock == 0
    assert records["pvt_small"].comparison is None
    assert records["pvt_tiny"].comparison.baseline == "pvt_small"
    assert records["pvt_tiny"].comparison.verdict == "FASTER"


def test_a_profile_does_not_become_a_comparison(measure):
    measure(pool(), QUICK, "profile")
    with pytest.raises(UserError, match="is a profile, and this is a compare; leave --resume out"):
        measure(pool(), QUICK)


def test_times_of_parts_are_told_once_however_often_a_run_is_resumed(measure, monkeypatch):
    slot = FakeWorker.slot

    def with_parts(self, iterations, switched):
        found = slot(self, iterations, switched)
        return dataclasses.replace(found, parts_ms={"forward": found.latency_ms})

    monkeypatch.setattr(FakeWorker, "slot", with_parts)
    for killed_at in (30, 30):
        with pytest.raises(Killed):
            measure(pool(killed_at))
    names = [m.name for m in measure(pool())["pvt_small"].measurements]
    assert names.count("forward_ms_median") == 1
    assert len(names) == len(set(names))


def test_other_processes_on_the_gpu_are_remembered(measure):
    with pytest.raises(Killed):
        measure(FakePool(THREE, hogged=pool(40).hogged, processes=5))
    assert "foreign_process" in measure(pool())["pvt_small"].flags


def test_another_workload_is_another_case(measure):
    measure(pool(), QUICK, "profile")
    again = pool()
    measure(again, QUICK, "profile", batch_size=2)
    assert len([asked for asked in again.asked if asked[1] == "metrics"]) == 3
    assert len(measure.folder.records()) == 6


def test_an_interrupted_run_goes_on_too(measure):
    first = measure(FakePool(THREE, faults={("swin_tiny", "slot"): KeyboardInterrupt()}))
    assert {r.finished for r in first.values()} == {False}
    assert "interrupted" in first["pvt_tiny"].flags
    records = measure(pool())
    assert "interrupted" not in records["pvt_tiny"].flags
    assert records["swin_tiny"].comparison.verdict == "FASTER"


def test_doubts_about_slots_of_the_first_part_are_kept(measure):
    with pytest.raises(Killed):
        measure(FakePool(THREE, cold=("pvt_small",), hogged=pool(40).hogged))
    records = measure(pool())
    assert "not_warm" in records["pvt_small"].flags
    assert "not_warm" not in records["pvt_tiny"].flags


def test_a_run_of_another_machine_is_not_continued(measure, monkeypatch):
    with pytest.raises(Killed):
        measure(pool(30))
    path = measure.folder.path / "records.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["environment"]["host"] = "elsewhere"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=r"was measured on elsewhere .* two machines do not mix"):
        measure(pool())


def test_a_run_on_another_device_is_not_continued(measure, monkeypatch):
    with pytest.raises(Killed):
        measure(pool(30))
    kept = RunFolder.records
    monkeypatch.setattr(
        RunFolder,
        "records",
        lambda self: [
            dataclasses.replace(
                r, environment=dataclasses.replace(r.environment, device_name="Other GPU")
            )
            for r in kept(self)
        ],
    )
    with pytest.raises(UserError, match="was measured on Other GPU, and this is Fake"):
        measure(pool())


def test_two_processes_do_not_measure_one_run(measure):
    with (
        RunFolder(measure.folder.path).measuring(),
        pytest.raises(UserError, match="being measured by another datbench"),
    ):
        measure(pool())


def test_models_that_are_ahead_wait_for_those_that_are_behind(measure):
    """Groups that take turns may be cut between them, and be others when the run goes on."""
    with pytest.raises(Killed):
        measure(FakePool(THREE, room_mib=1000.0, hogged=pool(20).hogged))  # in the second group
    done = {slot["model"] for slot in measure.folder.samples() if slot["group"] == 0}
    ahead = (done - {"pvt_tiny"}).pop()
    again = pool()
    records = measure(again)
    slots = [s for s in measure.folder.samples() if s["pair"] == 1]
    assert ahead not in {slot["model"] for slot in slots}
    first = DEFAULT.looks[0]
    assert {r.values["pairs"] for r in records.values()} <= {first, first + 1}
    assert records["pvt_small"].comparison.verdict == "SLOWER"
    assert records["swin_tiny"].comparison.verdict == "FASTER"
