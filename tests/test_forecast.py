"""`--dry-run`: the cases, with predicted memory and expected time."""

from __future__ import annotations

import dataclasses

import pytest

from datbench.forecast import COLUMNS, EARLIER, RATED, USUAL, duration, rows, show, summary
from datbench.memory import predictions
from datbench.reports.txt import plain_text
from datbench.request import make_request
from datbench.store import RunFolder
from datbench.sweep import Sweep

at_once = pytest.mark.usefixtures("at_once")


def forecast(tmp_path, **options):
    request = make_request({"models": ["pvt_v2_b0", "pvt_tiny"], "device": "cpu"} | options)
    return list(rows(Sweep(request), tmp_path, lambda *_: None))


@at_once
def test_each_case_is_a_row_with_memory_and_time(tmp_path):
    models = ["pvt_v2_b0", "dat_tiny"]
    found = forecast(tmp_path, models=models, batch_size=[1, 2], img_size=[64, 224])
    assert [row["unit"] for row in found] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert all(tuple(row) == COLUMNS for row in found)
    impossible = [row for row in found if row["error"]]
    assert [row["model"] for row in impossible] == ["dat_tiny"] * 2
    assert all("at least 224x224" in row["error"] for row in impossible)
    assert {row["expected_by"] for row in found if not row["error"]} == {USUAL}
    (known,) = predictions(["pvt_v2_b0"], dtype="float32", amp=False, batch_size=2, img_size=224)
    (row,) = [r for r in found if (r["batch_size"], r["input"]) == (2, "3x224x224")
              and r["model"] == "pvt_v2_b0"]  # fmt: skip
    assert row["predicted_peak_mib"] == pytest.approx(known["predicted_peak_allocated_mib"])
    text = plain_text(show(found))
    assert "impossible" in text
    assert "8 cases in 4 units, 2 of them impossible; about" in text
    assert "dat_tiny cannot be: dat_tiny needs an input of at least 224x224" in text


@at_once
def test_a_larger_batch_and_a_larger_tier_take_longer(tmp_path):
    def seconds(**options):
        found = forecast(tmp_path, models=["pvt_v2_b0"], **options)
        return [row["expected_s"] for row in found]

    small, large = seconds(batch_size=[1, 64])
    assert large > 2 * small
    assert seconds(tier="quick") < seconds() < seconds(tier="rigorous")
    assert seconds(mode=["train"])[0] > small
    assert seconds(budget=3)[0] < 10


@at_once
def test_an_earlier_run_of_the_case_tells_its_time(tmp_path, make_record):
    request = make_request({"models": ["pvt_v2_b0", "pvt_tiny"], "device": "cpu"})
    case = Sweep(request).unit(0).cases[0]
    known = dataclasses.replace(
        make_record("pvt_v2_b0", work=case.workload, macs=6e8, latency_ms_median=10.0),
        key=case.key, tier="default", min_effect=0.01, finished=True,
        spent_s={"timed": 11.0, "warm-up": 2.5},
    )  # fmt: skip
    RunFolder.create(tmp_path, "compare").append(known)
    of_known, other = forecast(tmp_path)
    assert (of_known["expected_s"], of_known["expected_by"]) == (13.5, EARLIER)
    assert other["expected_by"] == RATED  # multiply-adds, at the rate of that run
    rigorous, _ = forecast(tmp_path, tier="rigorous")
    assert rigorous["expected_by"] == RATED


def test_a_model_that_cannot_be_built_is_a_row_and_the_others_go_on(tmp_path):
    (tmp_path / "mine.py").write_text("def net():\n    raise RuntimeError('no luck')\n")
    name = f"{tmp_path / 'mine.py'}:net"
    bad, good = forecast(tmp_path, models=[name, "pvt_v2_b0"], img_size=[64])
    assert bad["error"] == "RuntimeError: no luck"
    assert good["expected_s"] > 0


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.2, "1 s"), (89, "89 s"), (90.5, "2 min"), (5340, "89 min"), (5400, "1 h 30 min"),
     (90_000, "25 h 0 min")],
)  # fmt: skip
def test_durations_are_for_people(seconds, told):
    assert duration(seconds) == told


def test_the_sum_says_what_is_a_guess():
    row = dict.fromkeys(COLUMNS) | {"unit": 1, "expected_s": 60.0, "expected_by": EARLIER}
    assert summary([row]) == "1 case in 1 unit; about 60 s on one device."
    told = summary([row, row | {"expected_by": USUAL}])
    assert told.endswith("about 2 min on one device, a guess for 1 of them.")
