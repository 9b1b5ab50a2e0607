"""What comparisons of a model with itself say of a machine, and where that is found again."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest

from datbench import calibration
from datbench.calibration import calibrations, layout_share, machine, summarise, told
from datbench.records import Calibration, Record, Workload, nearest
from datbench.reports import render

WORK = Workload("cpu", (3, 224, 224), threads=2)
KNOWN = Calibration(
    timestamp_utc="2026-11-22T11:00:00+00:00", model="pvt_v2_b0", latency_ms=21.4, pairs=20,
    deviation=0.006, detectable={"default": 0.011, "rigorous": 0.005}, false_verdicts=0,
    comparisons=8,
)  # fmt: skip


def pairs(deviation, number=20, copies=2, mean=0.0):
    rng = random.Random(0)
    return [[rng.gauss(mean, deviation) for _ in range(number)] for _ in range(copies)]


def test_the_noise_floor_is_the_deviation_over_process_pairs(make_record):
    found = summarise([make_record("pvt_v2_b0")], pairs(0.006))
    assert found.deviation == pytest.approx(0.006, rel=0.25)
    assert found.comparisons == 6
    assert found.false_verdicts == 0
    assert found.detectable["rigorous"] < found.detectable["default"]
    noisier = summarise([make_record()], pairs(0.06))  # 0.6 % is held up by the margin of 1 %
    assert noisier.detectable["default"] > 4 * found.detectable["default"]


def test_a_machine_that_favours_one_copy_is_found_out(make_record):
    found = summarise([make_record()], pairs(0.002, mean=0.02))
    assert found.false_verdicts == found.comparisons == 6


@pytest.mark.parametrize(
    ("between", "within", "share"), [(0.03, 0.005, 0.99), (0.0, 0.02, 0.0), (0.01, 0.02, 0.5)]
)
def test_what_rounds_do_not_explain_is_the_share_of_the_layout(between, within, share):
    rng = random.Random(0)
    copies = [
        [[rng.gauss(middle, within) for _ in range(4)] for middle in of_copy]
        for of_copy in pairs(between, number=200)
    ]
    assert layout_share(copies) == pytest.approx(share, abs=0.12)


def test_a_share_needs_pairs():
    assert layout_share([]) is None
    assert layout_share([[[0.01, 0.02]]]) is None
    assert layout_share([[[0.01], [0.01], []]]) == 0


@pytest.mark.parametrize(
    ("values", "latency_ms"), [(pairs(0.01, number=4), 1.0), ([], 1.0), (pairs(0.01), None)]
)
def test_too_few_pairs_make_no_calibration(make_record, values, latency_ms):
    assert summarise([make_record(latency_ms_median=latency_ms)], values) is None


def test_it_is_put_into_words():
    text = "\n".join(told(KNOWN))
    assert "scatters by 0.60%" in text
    assert "default, 20 process pairs: finds a difference of 1.1% 19 times of 20" in text
    assert "--rigorous, 40 process pairs: finds a difference of 0.5% 19 times of 20" in text
    assert "0 of 8 comparisons of 6 pairs." in text
    assert "in squares" not in text
    shared = dataclasses.replace(KNOWN, layout_share=0.734)
    assert any("73% of that, in squares, is what differs" in line for line in told(shared))
    assert "More than 1%, below which two models count as the same" in text


def keep(results, name, work=WORK, **changed):
    folder = results / name
    folder.mkdir(parents=True)
    content = dataclasses.asdict(dataclasses.replace(KNOWN, **changed))
    text = json.dumps({"machine": machine(work), **content})
    (folder / calibration.FILE).write_text(text)


def test_another_gpu_under_the_same_name_is_another_machine(tmp_path, monkeypatch):
    keep(tmp_path, "a")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert calibrations(tmp_path, WORK) == []


def test_the_newest_of_a_model_counts_and_false_verdicts_of_all(tmp_path):
    assert calibrations(tmp_path, WORK) == []
    keep(tmp_path, "a", latency_ms=1.0, false_verdicts=1)
    keep(tmp_path, "b", latency_ms=2.0, timestamp_utc="2026-11-23T11:00:00+00:00")
    keep(tmp_path, "c", dataclasses.replace(WORK, threads=1), latency_ms=3.0)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / calibration.FILE).write_text('{"machine": ')
    (found,) = calibrations(tmp_path, WORK)
    assert (found.latency_ms, found.false_verdicts, found.comparisons) == (2.0, 1, 16)


def test_a_record_has_the_calibration_of_the_nearest_latency(tmp_path):
    keep(tmp_path, "a", model="short", latency_ms=5.0)
    keep(tmp_path, "b", model="medium", latency_ms=20.0, timestamp_utc="2026-11-23T11:00:00+00:00")
    keep(tmp_path, "c", model="long", latency_ms=80.0)
    known = calibrations(tmp_path, WORK)
    assert known[0].model == "medium"
    for latency_ms, model in ((1.0, "short"), (11.0, "medium"), (39.0, "medium"), (41.0, "long")):
        assert nearest(known, latency_ms).model == model
    assert nearest(known, None).model == "medium"
    assert nearest([], 1.0) is nearest([], None) is None


def test_reports_tell_it_under_the_table(three_records):
    records = [dataclasses.replace(record, calibration=KNOWN) for record in three_records]
    line = (
        "This machine finds differences of: default 1.1%, rigorous 0.5% (calibrated 2026-11-22 "
        "with pvt_v2_b0, 21.4 ms; identical models were called different in 0 of 8 comparisons)."
    )
    assert " ".join(render(records, "txt").split()).count(line) == 1
    assert line in render(records, "html")
    assert Record.from_json(json.loads(json.dumps(records[0].to_json()))) == records[0]
