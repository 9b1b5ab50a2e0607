"""Requests with several values: which units they come to, in which order, and in which parts."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json

import pytest

import datbench.runner
from datbench.api import compare, profile
from datbench.errors import UserError
from datbench.history import facts
from datbench.request import PLAN, make_request, read_request
from datbench.store import RunFolder, latest_run
from datbench.sweep import Parts, Sweep, cases_of, digest_of
from zoo import ZooError

from .test_runner import FakePool  # isort: skip

TWO = ["pvt_tiny", "swin_tiny"]
TIMES = {"pvt_tiny": 100.0, "swin_tiny": 92.0, "dat_tiny": 110.0}


def sweep(elsewhere=False, **options):
    return Sweep(make_request({"models": TWO, "device": "cpu"} | options), elsewhere=elsewhere)


def test_options_with_several_values_come_to_their_product():
    found = sweep(
        batch_size=[1, 8, 32],
        img_size=[224, 384],
        dtype=["float32", "bfloat16"],
        runtime=["eager", "compile"],
    )
    assert len(found) == 12
    works = [case.workload for plan in found for case in plan.cases]
    assert len(works) == cases_of(found.request) == 48
    spans = {(w.batch_size, w.img_size, w.dtype, w.runtime) for w in works}
    assert spans == set(
        itertools.product((1, 8, 32), (224, 384), ("float32", "bfloat16"), ("eager", "compile"))
    )


def test_the_arms_of_a_comparison_stay_together_and_the_batch_changes_first():
    found = list(sweep(batch_size=[1, 8], img_size=[224, 384]))
    for plan in found:
        assert [case.name for case in plan.cases] == TWO
        assert plan.baseline == "pvt_tiny"
        assert len({dataclasses.replace(case.workload) for case in plan.cases}) == 1
    sizes = [(p.cases[0].workload.img_size, p.cases[0].workload.batch_size) for p in found]
    assert sizes == [(224, 1), (224, 8), (384, 1), (384, 8)]


def test_patterns_name_models_and_nothing_twice():
    found = sweep(models=["pvt_v2_b*", "pvt_v2_b0", "swin*"], batch_size=[1, 2])
    names = [case.name for case in found.unit(0).cases]
    assert names[:6] == [f"pvt_v2_b{n}" for n in range(6)]
    assert names[6] == "pvt_v2_b0"  # named outright: once more, to compare it with itself
    assert "swin_tiny" in names
    with pytest.raises(UserError, match="nothing in the zoo matches 'zz\\*'"):
        sweep(models=["zz*"])


def test_cases_of_a_profile_are_units_of_their_own():
    found = sweep(command="profile", batch_size=[1, 2])
    assert [[case.name for case in plan.cases] for plan in found] == [[n] for n in (*TWO, *TWO)]
    assert [plan.baseline for plan in found] == [None] * 4
    assert len(sweep(command="profile")) == 1  # one workload on one device is one run


def test_what_cannot_be_is_a_case_with_its_reason():
    found = sweep(models=["dat_tiny", "pvt_tiny"], img_size=[64, 224], mode=["inference", "train"])
    small, train_small, large, _ = found
    assert "at least 224x224" in small.impossible["dat_tiny"]
    assert set(small.impossible) == set(train_small.impossible) == {"dat_tiny"}
    assert not large.impossible
    # The baseline is the first that can be; one that was asked for stays.
    assert (small.baseline, large.baseline) == ("pvt_tiny", "dat_tiny")
    named = sweep(models=["dat_tiny", "pvt_tiny"], img_size=[64, 224], baseline="dat_tiny")
    assert named.unit(0).baseline == "dat_tiny"


@pytest.mark.parametrize(
    ("options", "name", "reason"),
    [
        ({"mode": ["inference", "train"], "dtype": ["float16"]}, "pvt_tiny", "do not train"),
        (
            {"mode": ["inference", "train"], "runtime": ["eager", "onnxruntime"]},
            "pvt_tiny (onnxruntime)",
            "inference",
        ),
        ({"models": ["yolov8n", "pvt_tiny"], "scope": "nms", "batch_size": [1, 2]},
         "pvt_tiny", "--nms is for detectors"),
        ({"models": ["pvt_tiny[img_size=384]"], "img_size": [224, 384]},
         "pvt_tiny[img_size=384]", "has its own img_size"),
    ],
)  # fmt: skip
def test_each_kind_of_impossible_case_is_told(options, name, reason):
    plans = list(sweep(**options))
    told = [plan.impossible[name] for plan in plans if name in plan.impossible]
    assert told
    assert all(reason in text for text in told)
    assert any(name not in plan.impossible for plan in plans) or options.get("scope") == "nms"


def test_what_no_combination_mends_is_refused():
    with pytest.raises(UserError, match="both set the size"):
        sweep(img_size=[224], input=["3x64x64"])
    with pytest.raises(ZooError, match="no runtime named"):
        sweep(runtime=["egaer"], batch_size=[1, 2]).unit(0)
    with pytest.raises(ZooError, match="no model named"):
        sweep(models=["dta"], batch_size=[1, 2]).unit(0)


def test_units_for_elsewhere_have_the_digest_that_they_have_there():
    here, there = sweep(batch_size=[1, 2]), sweep(batch_size=[1, 2], elsewhere=True)
    digests = [digest_of(plan) for plan in here]
    assert digests == [digest_of(plan) for plan in there]
    assert len(set(digests)) == 2
    assert there.unit(0).cases[0].workload.threads == 0
    gpu = sweep(device="cuda", elsewhere=True, batch_size=[1, 2])
    assert gpu.unit(0).cases[0].workload.device == "cuda:0"  # which this machine need not have


def test_parts_are_found_again_whatever_the_order_of_units(tmp_path):
    folder = RunFolder.create(tmp_path, "compare")
    first = sweep(batch_size=[1, 2])
    parts = Parts(folder)
    made = [parts.of(number, plan).path for number, plan in enumerate(first)]
    assert [path.name[:6] for path in made] == ["00000-", "00001-"]
    turned = Parts(RunFolder(folder.path))
    assert [turned.known(plan).path for plan in sweep(batch_size=[2, 1])] == made[::-1]
    assert turned.known(sweep(batch_size=[4]).unit(0)) is None


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Run a sweep of models without building them: measured(batch_size=[1, 2])."""

    def go(call=compare, pool=None, models=TWO, **options):
        started = pool or FakePool(TIMES)
        monkeypatch.setattr(datbench.runner, "Pool", started)
        monkeypatch.setattr("datbench.executors.local.Pool", started)
        return call(models, device="cpu", results=tmp_path / "results", **options)

    return go


def test_a_sweep_is_kept_in_parts_and_read_as_one_run(measured, tmp_path):
    records = measured(batch_size=[1, 2], dtype=["float32", "bfloat16"])
    assert len(records) == 8
    assert all(record.finished for record in records)
    folder = latest_run(tmp_path / "results")
    assert [(r.model, r.key) for r in folder.records()] == [(r.model, r.key) for r in records]
    assert {r.run_id for r in records} == {folder.run_id}
    assert len({r.unit for r in records}) == 4
    assert len({r.key for r in records}) == 8
    assert not (folder.path / "records.jsonl").exists()
    for record in records[1::2]:
        assert record.comparison.baseline == "pvt_tiny"
        assert record.comparison.verdict == "FASTER"
    commands = {record.command for record in records}
    assert len(commands) == 1
    assert "--batch-size 1 --batch-size 2 --dtype float32 --dtype bfloat16" in commands.pop()
    assert facts(folder)["state"] == "finished"


def test_a_run_folder_holds_the_plan_that_made_it(measured, tmp_path):
    measured(batch_size=[1, 2], budget=900)
    folder = latest_run(tmp_path / "results")
    request = read_request(folder.path / PLAN)
    assert (request.models, request.batch_size, request.budget) == (tuple(TWO), (1, 2), 900)
    measured()  # one workload too
    assert read_request(latest_run(tmp_path / "results").path / PLAN).batch_size == (1,)


class Killed(BaseException):
    """Ends a run as SIGKILL does."""


@pytest.mark.parametrize("killed_at", [1, 30, 49, 60, 99, 130])
def test_a_sweep_that_was_killed_goes_on_where_it_was(measured, tmp_path, killed_at):
    def hogged(clock):
        if clock == killed_at:
            raise Killed
        return False

    with pytest.raises(Killed):
        measured(pool=FakePool(TIMES, hogged=hogged), batch_size=[1, 2, 4])
    folder = latest_run(tmp_path / "results")
    kept = folder.samples()
    assert len(kept) == killed_at - 1
    assert facts(folder)["state"] == "unfinished"
    records = measured(batch_size=[1, 2, 4], resume=folder.path)
    assert len(records) == 6
    assert all(record.finished and not record.error for record in records)
    again = RunFolder(folder.path).samples()
    assert [slot for slot in again if slot in kept] == kept  # nothing of it was measured again
    slots = collections.Counter((s["key"], s["model"], s["pair"], s["round"]) for s in again)
    assert max(slots.values()) == 2  # a round has two slots of each model


def test_ctrl_c_ends_a_sweep_and_keeps_what_there_is(measured, tmp_path):
    def hogged(clock):
        if clock == 40:
            raise KeyboardInterrupt
        return False

    records = measured(pool=FakePool(TIMES, hogged=hogged), batch_size=[1, 2, 4])
    assert "interrupted" in {flag for record in records for flag in record.flags}
    assert len(records) < 6  # units after it were not begun


def test_an_impossible_case_is_a_row_without_figures(measured):
    records = measured(models=["dat_tiny", *TWO], img_size=[64, 224])
    (row,) = [r for r in records if r.model == "dat_tiny" and r.workload.img_size == 64]
    assert row.impossible
    assert "at least 224x224" in row.error
    assert not row.measurements
    assert row.environment is None
    others = [r for r in records if r is not row and r.workload.img_size == 64]
    assert [r.error for r in others] == [None, None]
    assert others[1].comparison.baseline == "pvt_tiny"


def test_a_sweep_of_profiles_has_a_row_each(measured):
    records = measured(profile, batch_size=[1, 2])
    assert [(r.model, r.workload.batch_size) for r in records] == [
        ("pvt_tiny", 1), ("swin_tiny", 1), ("pvt_tiny", 2), ("swin_tiny", 2),
    ]  # fmt: skip
    assert not any(record.comparison for record in records)


def test_a_single_run_is_not_gone_on_with_as_a_sweep(measured, tmp_path):
    measured()
    with pytest.raises(UserError, match="is a single compare, and this is a sweep"):
        measured(batch_size=[1, 2], resume=latest_run(tmp_path / "results").path)


def test_what_another_version_left_of_a_unit_is_set_aside(measured, tmp_path):
    measured(batch_size=[1, 2])
    folder = latest_run(tmp_path / "results")
    part = folder.parts()[0]
    lines = [json.loads(line) for line in (part.path / "records.jsonl").read_text().splitlines()]
    for line in lines:
        line["key"] = "k" + "0" * 15
    (part.path / "records.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    records = measured(batch_size=[1, 2], resume=folder.path)
    assert len(records) == 4
    assert all(record.key != "k" + "0" * 15 for record in records)
    aside = [path.name for path in (folder.path / "parts").iterdir() if path.suffix]
    assert aside == [f"{part.path.name}.aside1"]  # nothing is thrown away


def test_what_another_machine_measured_stands_and_what_it_began_is_set_aside(
    measured, tmp_path, monkeypatch
):
    measured(batch_size=[1, 2])
    folder = latest_run(tmp_path / "results")
    part = folder.parts()[1]
    lines = [json.loads(line) for line in (part.path / "records.jsonl").read_text().splitlines()]
    cut = "".join(f"{json.dumps(line | {'finished': False})}\n" for line in lines)
    (part.path / "records.jsonl").write_text(cut)
    monkeypatch.setattr("socket.gethostname", lambda: "another")
    records = measured(batch_size=[1, 2, 4], resume=folder.path)
    hosts = {(r.workload.batch_size, r.environment.host) for r in records}
    assert len(records) == len(hosts) * 2 == 6
    assert {batch for batch, host in hosts if host == "another"} == {2, 4}
