"""Medians, intervals, percentiles and verdicts."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datbench import stats

floats = st.floats(0.1, 1e4)


@pytest.mark.parametrize(
    ("n", "outside"),
    [
        pytest.param(5, None, id="five samples cannot give 95 %"),
        pytest.param(6, 1, id="six: the range, 96.9 %"),
        pytest.param(10, 2, id="ten: second to ninth, 97.9 %"),
        pytest.param(60, 22, id="sixty, from the binomial table"),
    ],
)
def test_median_interval_takes_the_tabulated_order_statistics(n, outside):
    interval = stats.median_interval(list(range(1, n + 1)))
    assert interval == (None if outside is None else (outside, n + 1 - outside))


def test_median_interval_covers_the_median_as_often_as_it_says():
    rng = random.Random(1)
    runs = 2000
    covered = 0
    for _ in range(runs):
        lo, hi = stats.median_interval([rng.expovariate(1.0) for _ in range(25)])
        covered += lo <= math.log(2) <= hi
    assert 0.94 <= covered / runs <= 0.98  # 95.7 % for 25 samples


@given(st.lists(floats, min_size=6))
def test_median_interval_holds_the_median(samples):
    lo, hi = stats.median_interval(samples)
    assert lo <= statistics.median(samples) <= hi


@pytest.mark.parametrize(("q", "needed"), [(90, 29), (95, 59), (99, 299)])
def test_percentiles_need_enough_samples(q, needed):
    assert stats.percentile([1.0] * (needed - 1), q) is None
    assert stats.percentile([1.0] * needed, q) == 1.0
    assert (q / 100) ** needed <= 0.05 < (q / 100) ** (needed - 1)


def test_percentile_is_numpys_linear_one():
    np = pytest.importorskip("numpy")
    samples = [random.Random(2).random() for _ in range(301)]
    for q in (90, 95, 99):
        assert stats.percentile(samples, q) == pytest.approx(np.percentile(samples, q))


def test_student_interval_is_the_textbook_one():
    mean, lo, hi = stats.student_interval([1.0, 2.0, 3.0, 4.0, 5.0], 0.95)
    assert mean == 3.0
    assert hi - mean == pytest.approx(2.776445 * math.sqrt(2.5 / 5), rel=1e-6)
    assert mean - lo == pytest.approx(hi - mean)
    assert stats.student_interval([1.0], 0.95)[1:] == (-math.inf, math.inf)


def test_latency_interval_widens_with_what_differs_between_processes():
    steady = [[10.0 + 0.01 * i for i in range(12)]] * 4
    moved = [[s + shift for s in samples] for shift, samples in enumerate(steady)]
    narrow, wide = stats.latency_interval(steady), stats.latency_interval(moved)
    assert narrow[1] - narrow[0] < 0.2
    assert wide[1] - wide[0] > 3
    assert stats.latency_interval([[1.0] * 3]) is None


def test_round_difference_is_free_of_linear_drift():
    # ABBA under a machine that slows by 10 ms a slot; B is 20 % slower.
    drift = [1.0, 1.1, 1.2, 1.3]
    difference = stats.round_difference(
        [100 * drift[0], 100 * drift[3]], [120 * drift[1], 120 * drift[2]]
    )
    assert math.exp(difference) == pytest.approx(1.2, rel=0.01)


@pytest.mark.parametrize(
    ("lo", "hi", "expected"),
    [
        (-0.005, 0.005, "SAME"),
        (0.002, 0.006, "SAME"),
        (0.002, 0.06, "SLOWER"),
        (0.03, 0.06, "SLOWER"),
        (-0.06, -0.03, "FASTER"),
        (-0.02, 0.001, "INCONCLUSIVE"),
        (-math.inf, math.inf, "INCONCLUSIVE"),
    ],
)
def test_verdict_reads_the_interval(lo, hi, expected):
    assert stats.verdict(lo, hi, 0.01) == expected


@given(st.floats(-1, 1), st.floats(0, 1))
def test_verdicts_are_symmetric(middle, half):
    turned = {"FASTER": "SLOWER", "SLOWER": "FASTER"}
    forward = stats.verdict(middle - half, middle + half, 0.01)
    backward = stats.verdict(-middle - half, -middle + half, 0.01)
    assert backward == turned.get(forward, forward)
