"""The whole protocol on simulated machines: how often its verdicts are right.

The order of the rounds, the medians of slots and rounds, the looks and the decisions are those that
a run uses; only the clock is made up. The machine drifts by a tenth within seconds, has white noise
of 3 % in each iteration, a tenth of the slots fall into bursts that add a third on average, and two
processes of one model differ by half a percent for as long as they live, or by three where the
layout of their memory matters.
"""

from __future__ import annotations

import math
import random
import statistics

import pytest

from datbench.schedule import DEFAULT, LOOK_LEVEL, MOST_ROUNDS, RIGOROUS, round_order
from datbench.stats import decide, round_difference, wilson_interval

ROUNDS, ITERATIONS, STEP_S = MOST_ROUNDS, 4, 0.02


class Machine:
    """Times that a model takes on it.

    Args:
        seed: of everything random.
        noise, burst, per_process: standard deviations, and the share of slots in bursts.
    """

    def __init__(self, seed, noise=0.03, burst=0.1, per_process=0.005):
        self.random = random.Random(seed)
        self.noise, self.burst, self.per_process = noise, burst, per_process
        self.seed, self.now_s = seed, self.random.uniform(0, 100)

    def slot(self, factor):
        """Median of a slot's iterations, in any unit."""
        gauss, slow = self.random.gauss, 0.0
        if self.random.random() < self.burst:
            slow = self.random.expovariate(3.0)
        drift = 0.1 * math.sin(self.now_s / 1.1) + 0.0005 * self.now_s
        self.now_s += (ITERATIONS + 1) * STEP_S
        times = [math.exp(gauss(drift + slow, self.noise)) for _ in range(ITERATIONS)]
        return factor * statistics.median(times)

    def pair(self, effects, pair):
        """Log-ratio of each model to the first, over the rounds of one process pair."""
        factors = [(1 + e) * math.exp(self.random.gauss(0, self.per_process)) for e in effects]
        rounds = []
        for number in range(ROUNDS):
            medians = [[] for _ in effects]
            for index in round_order(len(effects), self.seed, pair, number):
                medians[index].append(self.slot(factors[index]))
            rounds.append([round_difference(medians[0], other) for other in medians[1:]])
        return [statistics.median(column) for column in zip(*rounds, strict=True)]

    def compare(self, effects, looks):  # as `Run` does
        """Decisions about models that are slower than the first by `effects`, after some look."""
        effects = [0.0, *effects]
        found = [[] for _ in effects[1:]]
        for pair in range(looks[-1]):
            for values, value in zip(found, self.pair(effects, pair), strict=True):
                values.append(value)
            if pair + 1 in looks:
                decisions = decide(found, LOOK_LEVEL, DEFAULT.min_effect)
                if all(decision.verdict != "INCONCLUSIVE" for decision in decisions):
                    break
        return decisions


def verdicts(runs, effects, looks, **machine):
    return [Machine(seed, **machine).compare(effects, looks) for seed in range(runs)]


def wrong(decision, effect):
    """Whether a verdict is false; 1 % and more is never the same."""
    if decision.verdict == "SAME":
        return abs(effect) >= DEFAULT.min_effect
    return decision.verdict == ("SLOWER" if effect < 0 else "FASTER") or (
        effect == 0 and decision.verdict == "SLOWER"
    )


@pytest.mark.parametrize("burst", [0.1, 0.3])
@pytest.mark.parametrize("looks", [DEFAULT.looks, RIGOROUS.looks])
def test_identical_models_are_rarely_called_different(looks, burst):
    runs = verdicts(400, [0.0], looks, burst=burst)
    false = sum(wrong(decision, 0.0) for (decision,) in runs)
    assert false / len(runs) <= 0.05, wilson_interval(false, len(runs))
    covered = sum(decision.lo <= 0 <= decision.hi for (decision,) in runs)
    assert covered / len(runs) >= 0.95


def test_the_lottery_of_layouts_makes_no_verdicts():
    runs = verdicts(400, [0.0], DEFAULT.looks, per_process=0.03)
    false = sum(wrong(decision, 0.0) for (decision,) in runs)
    assert false / len(runs) <= 0.05, wilson_interval(false, len(runs))
    covered = sum(decision.lo <= 0 <= decision.hi for (decision,) in runs)
    assert covered / len(runs) >= 0.95


def test_one_layout_for_a_whole_run_would_make_them():
    """The hole that a layout of its own for each process closes: the lot is drawn once."""
    false = 0
    for seed in range(200):
        lot = math.expm1(random.Random(seed).gauss(0, 0.03 * math.sqrt(2)))
        (decision,) = Machine(seed).compare([lot], DEFAULT.looks)
        false += decision.verdict in ("FASTER", "SLOWER")
    assert false / 200 > 0.3


def test_five_percent_is_found_in_spite_of_the_lottery():
    runs = verdicts(400, [0.05], DEFAULT.looks, per_process=0.03)
    found = sum(decision.verdict == "SLOWER" for (decision,) in runs)
    assert found / len(runs) >= 0.9, wilson_interval(found, len(runs))
    assert sum(wrong(decision, 0.05) for (decision,) in runs) / len(runs) <= 0.05


@pytest.mark.parametrize("effect", [0.02, -0.02])
def test_a_difference_of_two_percent_is_found(effect):
    runs = verdicts(400, [effect], RIGOROUS.looks)
    word = "SLOWER" if effect > 0 else "FASTER"
    found = sum(decision.verdict == word for (decision,) in runs)
    assert found / len(runs) >= 0.95, wilson_interval(found, len(runs))
    assert sum(wrong(decision, effect) for (decision,) in runs) / len(runs) <= 0.05
    truth = math.log1p(effect)
    assert sum(d.lo <= truth <= d.hi for (d,) in runs) / len(runs) >= 0.95


@pytest.mark.parametrize(
    ("effects", "looks"),
    [([0.0, 0.0, 0.0, 0.05], DEFAULT.looks), ([0.0] * 12, RIGOROUS.looks)],
)
def test_several_comparisons_are_wrong_no_more_often_than_one(effects, looks):
    runs = verdicts(100, effects, looks)
    false = sum(any(wrong(d, e) for d, e in zip(found, effects, strict=True)) for found in runs)
    assert false / len(runs) <= 0.05


def test_measuring_one_after_the_other_would_be_wrong_most_of_the_time():
    """The yardstick: ten and forty iterations of one model, then of the other, and two means."""
    false = 0
    for seed in range(200):
        machine = Machine(seed)
        means = [statistics.fmean(machine.slot(1.0) for _ in range(10)) for _ in range(2)]
        false += abs(means[1] / means[0] - 1) > DEFAULT.min_effect
    assert false / 200 > 0.5
