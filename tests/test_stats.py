"""Medians, intervals, percentiles and verdicts."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from datbench import stats
from datbench.schedule import LOOK_LEVEL

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


def test_each_process_counts_alike_for_the_median_from_three_on():
    long, short = [10.0] * 100, [12.0] * 4
    assert stats.latency_median([long, short]) == 10.0
    assert stats.latency_median([long, short, short]) == 12.0


def test_the_interval_of_many_processes_holds_their_median():
    rng = random.Random(0)
    for number in (3, 5, 6, 9, 20):
        for _ in range(200):
            logs = [rng.gauss(0, 0.01) + 0.4 * (rng.random() < 0.3) for _ in range(number)]
            processes = [[10 * math.exp(log)] * 5 for log in logs]
            lo, hi = stats.latency_interval(processes)
            assert lo <= stats.latency_median(processes) <= hi


def test_scatter_between_groups_is_what_scatter_within_does_not_explain():
    rng = random.Random(0)

    def groups(between, within):
        middles = [rng.gauss(0, between) for _ in range(400)]
        return [[rng.gauss(middle, within) for _ in range(4)] for middle in middles]

    assert stats.between(groups(0.01, 0.01)) == pytest.approx(0.8, abs=0.05)
    assert stats.between(groups(0.0, 0.02)) < 0.15
    assert stats.between([[0.0], [0.2]]) == 1
    assert stats.between([[0.1, 0.1], [0.1, 0.1]]) == 0


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


ratios = st.lists(st.floats(-0.3, 0.3), min_size=3, max_size=20)


@given(st.lists(ratios, min_size=1, max_size=6), st.floats(0.001, 0.2))
def test_a_decision_agrees_with_its_own_interval(comparisons, min_effect):
    for values, decision in zip(
        comparisons, stats.decide(comparisons, LOOK_LEVEL, min_effect), strict=True
    ):
        assert decision.mean == pytest.approx(statistics.fmean(values), abs=1e-12)
        assert decision.lo <= decision.mean <= decision.hi
        assert decision.verdict == stats.verdict(decision.lo, decision.hi, min_effect)
        assert decision.pairs_needed is None or decision.verdict == "INCONCLUSIVE"


@given(st.lists(ratios, min_size=1, max_size=6))
def test_decisions_do_not_depend_on_the_order_of_the_comparisons(comparisons):
    forward = stats.decide(comparisons, LOOK_LEVEL, 0.01)
    backward = stats.decide(comparisons[::-1], LOOK_LEVEL, 0.01)
    for one, other in zip(forward, backward[::-1], strict=True):
        assert one.verdict == other.verdict


@given(ratios, st.lists(ratios, max_size=5))
def test_a_comparison_alone_is_never_held_to_more_than_among_others(values, others):
    assume(statistics.stdev(values) > 1e-9)
    alone = stats.decide([values], LOOK_LEVEL, 0.01)[0]
    among = stats.decide([values, *others], LOOK_LEVEL, 0.01)[0]
    assert among.lo <= alone.lo
    assert alone.hi <= among.hi
    _, lo, hi = stats.student_interval(values, 1 - (1 - LOOK_LEVEL) / (1 + len(others)))
    assert lo <= among.lo + 1e-12
    assert among.hi - 1e-12 <= hi


def test_the_level_follows_holm_step_by_step():
    clear = [0.1001, 0.1, 0.0999, 0.1, 0.1]
    middling = [0.0085, 0.03, 0.028, 0.005, 0.025]
    vague = [0.03, -0.02, 0.01, 0.04, -0.03]

    def interval(values, share):
        return stats.student_interval(values, 1 - 0.05 / share)[1:]

    assert interval(middling, 3)[0] < 0 < interval(middling, 2)[0]
    found = stats.decide([vague, clear, middling], 0.95, 0.01)
    expected = ((vague, 1, "INCONCLUSIVE"), (clear, 3, "SLOWER"), (middling, 2, "SLOWER"))
    for decision, (values, share, word) in zip(found, expected, strict=True):
        assert (decision.lo, decision.hi) == pytest.approx(interval(values, share))
        assert decision.verdict == word


def test_only_a_difference_frees_the_others():
    # It would be decided at 95 %, not at 97.5 %.
    values = [0.007, 0.03, 0.025, 0.0, 0.021]
    same = [0.0001, -0.0001, 0.0, 0.0001, 0.0]
    _, lo, _ = stats.student_interval(values, 0.95)
    _, lower, _ = stats.student_interval(values, 0.975)
    assert lower < 0 < lo
    for other, expected in (
        (values, "INCONCLUSIVE"),
        (same, "INCONCLUSIVE"),
        ([0.5] * 5, "SLOWER"),
    ):
        assert stats.decide([values, other], 0.95, 0.005)[0].verdict == expected
    assert stats.decide([values, same], 0.95, 0.005)[1].verdict == "SAME"
    assert stats.decide([], 0.95, 0.005) == []


def test_values_without_spread_are_decided():
    same, slower = stats.decide([[0.0] * 5, [0.02] * 5], LOOK_LEVEL, 0.01)
    assert (same.verdict, slower.verdict) == ("SAME", "SLOWER")


def test_pairs_needed_are_those_that_settle_it():
    values = [0.01, -0.008, 0.02, 0.016, -0.004]
    needed = stats.decide([values], LOOK_LEVEL, 0.01)[0].pairs_needed
    error = statistics.stdev(values)

    def half(pairs):
        # as many pairs with the same mean and deviation
        spread = error * math.sqrt((pairs - 1) / pairs)
        made = [statistics.fmean(values) + spread * (-1) ** i for i in range(pairs)]
        _, lo, hi = stats.student_interval(made, LOOK_LEVEL)
        return (hi - lo) / 2

    mean = statistics.fmean(values)
    room = max(abs(mean), math.log1p(0.01) - abs(mean))
    even = needed + needed % 2
    assert half(even) < room * 1.02
    assert half(even - 4) > room * 0.98
    assert stats.pairs_needed([0.5, -0.5, 0.5, -0.5], LOOK_LEVEL, 0.01) is None


@pytest.mark.parametrize("deviation", [0.001, 0.003, 0.01, 0.03])
def test_what_is_detectable_is_called_a_difference_as_often_as_it_says(deviation):
    rng = random.Random(4)
    pairs, runs = 8, 1000

    def found(effect):
        verdicts = 0
        for _ in range(runs):
            values = [rng.gauss(math.log1p(effect), deviation) for _ in range(pairs)]
            verdicts += stats.decide([values], LOOK_LEVEL, 0.01)[0].verdict == "SLOWER"
        return verdicts / runs

    least = stats.detectable(deviation, pairs, LOOK_LEVEL, 0.01)
    assert found(least) >= 0.93
    assert found(0.6 * least) < 0.9


def test_wilson_interval_is_the_textbook_one():
    assert stats.wilson_interval(0, 100) == pytest.approx((0.0, 0.0370), abs=1e-4)
    assert stats.wilson_interval(5, 100) == pytest.approx((0.0215, 0.1118), abs=1e-4)
    assert stats.wilson_interval(100, 100)[1] == pytest.approx(1.0)
