"""The order of the rounds and the stop rule."""

from __future__ import annotations

import collections
import itertools

import pytest

from datbench import schedule


def test_two_models_give_abba_or_baab_about_equally_often():
    orders = collections.Counter(tuple(schedule.round_order(2, 0, 0, n)) for n in range(400))
    assert orders.keys() == {(0, 1, 1, 0), (1, 0, 0, 1)}
    assert min(orders.values()) > 150


@pytest.mark.parametrize("models", [1, 2, 5])
def test_so_many_slots_follow_one_of_another_model(models):
    orders = [schedule.round_order(models, 0, 0, number) for number in range(2000)]
    slots = [index for order in orders for index in order]
    switches = sum(a != b for a, b in itertools.pairwise(slots))
    assert switches / len(slots) == pytest.approx(schedule.switch_share(models), abs=0.01)


@pytest.mark.parametrize("models", [1, 3, 7])
def test_every_model_has_two_slots_placed_symmetrically(models):
    for number in range(20):
        order = schedule.round_order(models, 5, 1, number)
        assert sorted(order) == sorted([*range(models)] * 2)
        assert order == order[::-1]


def test_every_model_starts_first_about_equally_often():
    orders = collections.Counter(tuple(schedule.start_order(2, 0, pair)) for pair in range(400))
    assert orders.keys() == {(0, 1), (1, 0)}
    assert min(orders.values()) > 150
    assert sorted(schedule.start_order(5, 3, 1)) == [0, 1, 2, 3, 4]


def test_order_follows_from_the_seed():
    first = [schedule.round_order(4, 7, p, r) for p in range(3) for r in range(5)]
    assert first == [schedule.round_order(4, 7, p, r) for p in range(3) for r in range(5)]
    assert first != [schedule.round_order(4, 8, p, r) for p in range(3) for r in range(5)]


@pytest.mark.parametrize(
    ("step_ms", "expected"), [(100, 3), (10, 3), (5, 6), (0.5, 60), (0.001, 10_000)]
)
def test_a_slot_has_three_iterations_and_thirty_milliseconds(step_ms, expected):
    assert schedule.slot_iterations(step_ms) == expected


@pytest.mark.parametrize("setup_s", [0.5, 0.9, 2.6, 10.0, 60.0])
@pytest.mark.parametrize("round_s", [0.1, 0.3, 1.3, 16.0])
def test_no_other_number_of_rounds_tells_more_for_the_time(setup_s, round_s):
    def variance(rounds):
        """Of the mean of as many pairs as a second has, where pairs scatter by 1."""
        return (1 + schedule.ROUNDS_SCATTER / rounds) * (setup_s + rounds * round_s)

    chosen = schedule.pair_rounds(3, setup_s, round_s)
    best = min(range(3, schedule.MOST_ROUNDS + 1), key=variance)
    assert variance(chosen) <= 1.01 * variance(best)


def test_rounds_have_bounds():
    assert schedule.pair_rounds(4, 0.1, 11.0) == 4
    assert schedule.pair_rounds(4, 100.0, 0.1) == schedule.MOST_ROUNDS
    assert schedule.pair_rounds(10, 100.0, 0.1) == 10
    assert schedule.pair_rounds(3, 1.0, 0.0) == 3  # no model is left


@pytest.mark.parametrize(
    ("left_s", "pairs", "expected"),
    [
        pytest.param(1000, 5, 16, id="enough for all"),
        pytest.param(100, 5, 7, id="fewer rounds, so that five pairs fit"),
        pytest.param(20, 5, 3, id="never fewer than the least"),
        pytest.param(20, 1, 9, id="the last pair takes what is left, and time to redo slots"),
        pytest.param(-3, 1, 3, id="nothing is left"),
    ],
)
def test_a_budget_buys_pairs_before_rounds(left_s, pairs, expected):
    rounds = schedule.affordable_rounds(16, setup_s=5.0, round_s=2.0, left_s=left_s, pairs=pairs)
    assert rounds == expected


def test_a_tenth_of_the_slots_may_be_redone_and_a_few_at_the_start():
    assert schedule.may_redo(0, 1)
    assert schedule.may_redo(13, 100)
    assert not schedule.may_redo(14, 100)


@pytest.mark.parametrize(
    ("needs", "room", "baseline", "expected"),
    [
        pytest.param([1, 1, 1], 10, 0, [[0, 1, 2]], id="all fit"),
        pytest.param([1, 1, 1], None, 0, [[0, 1, 2]], id="nothing is known"),
        pytest.param([3, 3, 3, 3], 12, 0, [[0, 1, 2], [0, 3]], id="three at a time"),
        pytest.param([3, 3, 3, 3], 12, 2, [[0, 1, 2], [2, 3]], id="another baseline"),
        pytest.param([3, 3, 3], 4, None, [[0], [1], [2]], id="no baseline"),
        pytest.param([3, 30, 3], 12, 0, [[0, 1], [0, 2]], id="one that never fits"),
        pytest.param([30], 12, 0, [[0]], id="the baseline alone"),
    ],
)
def test_groups_fit_in_memory_and_hold_the_baseline(needs, room, baseline, expected):
    assert schedule.groups(needs, room, baseline) == expected
