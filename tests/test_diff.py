"""What changed from one run to another."""

from __future__ import annotations

import dataclasses
import math

import pytest
from click.testing import CliRunner

from datbench.cli import cli
from datbench.diff import change, difference, failures, notes, reading, unjudged
from datbench.gate import DIRECTIONS, GROWTH, Gate
from datbench.records import Calibration, Workload
from datbench.reports.txt import plain_text
from datbench.store import RunFolder

KNOWN = Calibration("2026-11-22T11:00:00+00:00", "pvt_v2_b0", 30.0, 20, 0.02, {}, 0, 8)


@pytest.fixture
def timed(make_record):
    """Make a record with a latency and an interval of +-1 %."""

    def make(latency_ms=100.0, model="dat_tiny", **values):
        ends = {"latency_ms_lo": latency_ms / 1.01, "latency_ms_hi": latency_ms * 1.01}
        return make_record(model, latency_ms_median=latency_ms, **ends, **values)

    return make


def elsewhere(record, **facts):
    return dataclasses.replace(record, environment=dataclasses.replace(record.environment, **facts))


def test_the_interval_holds_both_medians_and_the_noise_of_the_machine(timed):
    found = change(timed(100.0), timed(110.0), None)
    assert found.ratio == pytest.approx(1.1)
    half = math.sqrt(2) * math.log(1.01)
    assert (found.lo, found.hi) == pytest.approx((1.1 * math.exp(-half), 1.1 * math.exp(half)))
    wider = change(timed(100.0), timed(110.0), KNOWN)
    half = math.hypot(half, 2.093024 * 0.02)  # Student's t with 19 degrees of freedom
    assert (wider.lo, wider.hi) == pytest.approx((1.1 * math.exp(-half), 1.1 * math.exp(half)))


@pytest.mark.parametrize(
    ("latency_ms", "expected"),
    [
        (101.0, "within the noise"),
        (110.0, "slower than noise explains"),
        (90.0, "faster than noise explains"),
    ],
)
def test_a_ratio_of_two_sessions_is_read_without_a_verdict(timed, latency_ms, expected):
    assert reading(change(timed(), timed(latency_ms), None)) == expected


def test_no_ratio_is_formed_across_machines(timed):
    for facts in ({"host": "b"}, {"cpu_name": "b"}, {"device_name": "b"}):
        found = change(timed(), elsewhere(timed(200.0), **facts), KNOWN)
        assert (found.ratio, found.lo, found.hi) == (None, None, None)
        assert reading(found) == "another machine, no ratio"
        assert found.row()["latency_ms_a"] == 100.0
        assert found.row()["latency_ms_b"] == 200.0


def test_models_are_matched_by_name_and_workload(timed):
    batch = Workload(device="cpu", input_shape=(3, 224, 224), batch_size=8)
    a = [timed(), timed(model="gone"), timed(model="dat_small")]
    b = [timed(model="new"), timed(), dataclasses.replace(a[2], workload=batch)]
    found = difference(a, b)
    assert [entry.model for entry in found.changes] == ["dat_tiny"]
    assert [name.partition(" ")[0] for name in found.only_a] == ["gone", "dat_small"]
    assert found.only_b[1] == "dat_small (batch 8 of 3x224x224, float32, cpu)"


def test_versions_settings_and_environment_are_told_where_they_differ(timed):
    b = elsewhere(timed(), torch="2.15.0", settings={"cudnn_benchmark": False})
    found = difference([timed()], [b])
    assert found.environment == [
        ("torch", "2.14.1", "2.15.0"),
        ("cudnn_benchmark", "True", "False"),
    ]
    told = list(notes(found))
    assert "  torch: 2.14.1 -> 2.15.0" in told
    assert any("not a fair comparison" in line for line in told)
    assert any("was not calibrated" in line for line in told)
    calibrated = dataclasses.replace(timed(), calibration=KNOWN)
    told = list(notes(difference([timed()], [calibrated])))
    assert any("allow for 2.0% from process pair" in line for line in told)
    assert "Environment: the same in both." in told


@pytest.mark.parametrize(
    ("condition", "b", "holds"),
    [
        ("slower>5%", {"latency_ms": 110.0}, True),
        ("slower>9%", {"latency_ms": 110.0}, False),
        ("faster>5%", {"latency_ms": 90.0}, True),
        ("faster>5%", {"latency_ms": 110.0}, False),
        ("params>0%", {"params": 28_319_139}, True),
        ("params>0%", {"params": 28_319_137}, False),
        ("macs>1%", {"macs": 4_700_000_000}, True),
        ("macs>3%", {"macs": 4_700_000_000}, False),
        ("memory>5%", {"peak_allocated_mib": 106.0}, True),
        ("memory>5%", {"peak_allocated_mib": 104.0}, False),
    ],
)
def test_conditions_hold_on_figures_and_on_whole_intervals(timed, condition, b, holds):
    gate = Gate.parse(condition, (*DIRECTIONS, *GROWTH))
    found = difference([timed(peak_allocated_mib=100.0)], [timed(**b)])
    assert bool(list(failures(found, [gate]))) == holds


def test_a_figure_that_is_not_known_is_not_judged(timed):
    gates = [Gate.parse("macs>1%", GROWTH), Gate.parse("slower>5%")]
    found = difference([timed()], [timed(macs=None)])
    assert list(failures(found, gates)) == []
    assert unjudged(found, gates) == ["dat_tiny has no macs in one of the runs"]
    grown = difference([timed(macs=0)], [timed(macs=1)])
    assert "+inf% macs" in next(failures(grown, gates))
    assert list(failures(difference([timed(macs=0)], [timed(macs=0)]), gates)) == []


def test_what_cannot_be_judged_does_not_pass(timed, make_record):
    gates = [Gate.parse("slower>5%")]
    failed = make_record(error="broke", latency_ms_median=None)
    few = make_record()
    assert unjudged(difference([timed()], [failed]), gates) == ["dat_tiny failed in B"]
    assert unjudged(difference([timed()], [few]), gates) == ["dat_tiny has too few samples"]
    away = difference([timed()], [elsewhere(timed(), host="b")])
    assert unjudged(away, gates) == ["dat_tiny was measured on different machines"]
    assert unjudged(away, [Gate.parse("macs>1%", GROWTH)]) == []
    gone = difference([timed(), timed(model="gone")], [timed()])
    assert "gone" in unjudged(gone, gates)[0]


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Keep records as runs and call `datbench diff` on them."""
    monkeypatch.chdir(tmp_path)

    def run(a, b, *options):
        folders = [RunFolder.create(tmp_path / "results", "compare") for _ in range(2)]
        for folder, records in zip(folders, (a, b), strict=True):
            for record in records:
                folder.append(record)
        names = [folder.run_id for folder in folders]
        return CliRunner().invoke(cli, ["diff", *names, *options], prog_name="datbench")

    return run


def test_the_command_shows_both_runs_and_ends_by_the_conditions(call, timed):
    same = call([timed()], [timed(101.0)], "--fail-if", "slower>5%")
    assert same.exit_code == 0
    assert "within the noise" in same.stdout
    slower = call([timed()], [timed(120.0, macs=5_000_000_000)], "--fail-if", "slower>5%")
    assert slower.exit_code == 4
    assert "dat_tiny: 1.20x the latency [1.18, 1.22], beyond slower>5%" in slower.stderr
    assert "4.59 -> 5.00" in slower.stdout
    counted = call([timed()], [timed(macs=5_000_000_000)], "--fail-if", "macs>1%")
    assert counted.exit_code == 4
    assert "+9.0% macs" in counted.stderr
    away = call([timed()], [elsewhere(timed(), host="b")], "--fail-if", "slower>5%")
    assert away.exit_code == 1
    assert "different machines" in away.stderr


def test_a_report_that_was_exported_is_of_the_same_machine(call, timed, tmp_path):
    call([timed()], [timed()])
    run = next((tmp_path / "results").iterdir()).name
    runner = CliRunner()
    export = ["export-report", run, "--output", "a.jsonl"]
    assert runner.invoke(cli, export, prog_name="datbench").exit_code == 0
    assert "bench-1" not in (tmp_path / "a.jsonl").read_text()
    for lines in ("a.jsonl", f"results/{run}/records.jsonl"):
        found = runner.invoke(cli, ["diff", lines, run], prog_name="datbench")
        assert "within the noise" in found.stdout


def test_the_command_refuses_what_it_cannot_do(call, timed):
    assert call([timed()], [timed(model="b")]).exit_code == 2
    wrong = call([timed()], [timed()], "--fail-if", "quicker>5%")
    assert wrong.exit_code == 2
    assert "'slower>5%' or 'faster>2%' or 'params>2%'" in wrong.stderr


def test_the_command_gives_csv_too(call, timed):
    text = call([timed()], [timed(110.0)], "--format", "csv").stdout
    titles, row = text.splitlines()
    assert dict(zip(titles.split(","), row.split(","), strict=True))["ratio"].startswith("1.1")


def test_several_workloads_of_a_model_are_told_apart(timed):
    batch = Workload(device="cpu", input_shape=(3, 224, 224), batch_size=8)
    records = [timed(), dataclasses.replace(timed(), workload=batch)]
    from datbench.diff import show

    text = plain_text(show(difference(records, records)))
    assert "8 x 224" in text
    assert "1 x 224" in text
