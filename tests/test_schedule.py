"""The order of the rounds and the stop rule."""

from __future__ import annotations

import collections

import pytest

from datbench import schedule


def test_two_models_give_abba_or_baab_about_equally_often():
    orders = collections.Counter(tuple(schedule.round_order(2, 0, 0, n)) for n in range(400))
    assert orders.keys() == {(0, 1, 1, 0), (1, 0, 0, 1)}
    assert min(orders.values()) > 150


@pytest.mark.parametrize("models", [1, 3, 7])
def test_every_model_has_two_slots_placed_symmetrically(models):
    for number in range(20):
        order = schedule.round_order(models, 5, 1, number)
        assert sorted(order) == sorted([*range(models)] * 2)
        assert order == order[::-1]


def test_order_follows_from_the_seed():
    first = [schedule.round_order(4, 7, p, r) for p in range(3) for r in range(5)]
    assert first == [schedule.round_order(4, 7, p, r) for p in range(3) for r in range(5)]
    assert first != [schedule.round_order(4, 8, p, r) for p in range(3) for r in range(5)]


@pytest.mark.parametrize(
    ("step_ms", "expected"), [(100, 3), (6.7, 3), (5, 4), (0.5, 40), (0.001, 1000)]
)
def test_a_slot_has_three_iterations_and_twenty_milliseconds(step_ms, expected):
    assert schedule.slot_iterations(step_ms) == expected


def test_more_comparisons_make_each_interval_wider():
    assert schedule.comparison_level(1) == pytest.approx(0.9875)
    assert schedule.comparison_level(4) == pytest.approx(1 - 0.0125 / 4)
