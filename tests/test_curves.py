"""Curves against the batch, and where throughput stops growing."""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datbench.records import Comparison, Workload
from datbench.reports import render
from datbench.reports.curves import SHARE, curves, saturation
from datbench.reports.notes import notes


@pytest.mark.parametrize(
    ("points", "batch"),
    [
        ([(1, 100), (2, 190), (4, 300), (8, 310), (16, 312)], 4),
        ([(1, 100), (2, 190), (4, 300), (8, 400)], None),  # it still grows
        ([(1, 100), (2, 99), (4, 98)], 1),  # it never grew
        ([(1, 100), (2, 200), (4, 150)], 2),  # it falls behind its best
        ([(1, 94.9), (2, 95), (4, 100)], 2),
        ([(1, 100), (2, 104)], 1),
        ([(8, 100)], None),
    ],
)
def test_saturation_is_the_smallest_batch_near_the_best_throughput(points, batch):
    assert saturation(points) == batch


@given(st.dictionaries(st.integers(1, 512), st.floats(0.1, 1e6), min_size=1, max_size=12))
def test_whatever_is_told_as_saturated_has_its_share_of_the_best(throughputs):
    points = sorted(throughputs.items())
    best, found = max(throughputs.values()), saturation(points)
    smaller = [rate for batch, rate in points if found is None or batch < found]
    if found is None:
        assert all(rate < SHARE * best for rate in smaller[:-1])
    else:
        assert throughputs[found] >= SHARE * best
        assert all(rate < SHARE * best for rate in smaller)
        assert found < points[-1][0]


@pytest.fixture
def swept(make_record):
    """Records of a model over batches: swept({1: 100.0, 8: 400.0}, dtype="bfloat16")."""

    def make(rates, model="dat_tiny", device="cpu", **options):
        return [
            make_record(
                model,
                work=Workload(device, (3, 224, 224), batch_size=batch, threads=2, **options),
                latency_ms_median=1000 * batch / rate,
                throughput_img_s=rate,
                peak_allocated_mib=100.0 + batch,
            )
            for batch, rate in rates.items()
        ]

    return make


def test_a_curve_holds_what_differs_in_the_batch_alone(swept, make_record):
    records = [
        *swept({8: 400.0, 1: 100.0}),
        *swept({1: 90.0, 8: 91.0}, dtype="bfloat16"),
        *swept({1: 50.0}, "swin_tiny"),
        make_record("pvt_tiny", error="broke"),
    ]
    found = curves(records)
    assert [curve.label for curve in found] == ["dat_tiny (float32)", "dat_tiny (bfloat16)"]
    assert [[r.workload.batch_size for r in curve.records] for curve in found] == [[1, 8]] * 2
    assert [curve.saturation for curve in found] == [None, 1]
    assert "still grows at the largest batch, 400 img/s at batch 8" in found[0].told()
    assert "from batch 1 on, throughput is within 5% of its best, 91" in found[1].told()


def test_runs_are_curves_of_their_own(swept):
    first = swept({1: 100.0, 2: 110.0})
    second = [dataclasses.replace(r, run_id="20261122T120000Z-compare") for r in first]
    assert len(curves([*first, *second])) == 2
    assert curves([first[0], second[1]]) == []


def test_gpus_of_one_kind_share_a_curve_and_hosts_are_told(swept):
    one, two = swept({1: 100.0}, device="cuda:0"), swept({8: 110.0}, device="cuda:1")
    there = dataclasses.replace(two[0].environment, host="bench-2")
    (curve,) = curves([*one, dataclasses.replace(two[0], environment=there)])
    assert "measured on 2 machines" in curve.told()


def test_reports_tell_the_curves(swept):
    records = swept({1: 100.0, 8: 400.0, 16: 405.0})
    for suffix in ("txt", "md", "html"):
        text = re.sub(r"\\|\s+", " ", render(records, suffix))
        assert "from batch 8 on, throughput is within 5" in text
    page = render(records, "html")
    assert '"curves":[{"label":"dat_tiny","style":' in page
    assert '"saturation":8' in page
    assert '"curves":[]' in render(swept({1: 100.0}), "html")


def test_comparisons_without_a_verdict_are_told_beside_those_that_have_one(make_record):
    def compared(batch, verdict, pairs):
        return make_record(
            "swin_tiny",
            comparison=Comparison("dat_tiny", 1.3, 1.2, 1.4, verdict),
            work=Workload("cpu", (3, 224, 224), batch_size=batch, threads=2),
            pairs=pairs,
        )

    told = list(notes([compared(1, "SLOWER", 8), compared(2, "SLOWER", 8), compared(4, None, 2)]))
    assert (
        "Against dat_tiny - slower: swin_tiny (2 of 2). Models of one side are not ranked. "
        "No verdict of swin_tiny (batch 4): 2 process pairs are too few."
    ) in told
