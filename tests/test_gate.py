"""Conditions for CI."""

from __future__ import annotations

import pytest

from datbench.errors import UserError
from datbench.gate import Gate, unjudged
from datbench.records import Comparison


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("slower>5%", Gate("slower", 5.0)),
        (" slower > 2.5 % ", Gate("slower", 2.5)),
        ("faster>0%", Gate("faster", 0.0)),
    ],
)
def test_conditions_are_read(text, expected):
    assert Gate.parse(text) == expected


@pytest.mark.parametrize("text", ["slower", "slower>5", "slower<5%", "slower>x%", "memory>5%", ""])
def test_what_is_no_condition_is_refused(text):
    with pytest.raises(UserError, match=r"write e\.g\. 'slower>5%'"):
        Gate.parse(text)


@pytest.mark.parametrize(
    ("comparison", "condition", "holds"),
    [
        (Comparison("a", 1.1, 1.06, 1.14, "SLOWER"), "slower>5%", True),
        (Comparison("a", 1.1, 1.04, 1.16, "SLOWER"), "slower>5%", False),
        (Comparison("a", 0.9, 0.86, 0.94, "FASTER"), "slower>5%", False),
        (Comparison("a", 0.9, 0.86, 0.94, "FASTER"), "faster>5%", True),
        (Comparison("a", 0.9, 0.86, 0.96, "FASTER"), "faster>5%", False),
        (Comparison("a", 1.002, 0.999, 1.005, "SAME"), "slower>0%", False),
        (Comparison("a", 1.1, 1.06, 1.14), "slower>5%", False),  # a single pair is no verdict
        (Comparison("a", 1.1), "slower>5%", False),
        (None, "slower>5%", False),
    ],
)
def test_a_condition_holds_if_the_whole_interval_lies_beyond(
    make_record, comparison, condition, holds
):
    assert Gate.parse(condition).holds(make_record(comparison=comparison)) is holds


def test_a_model_that_was_never_compared_cannot_be_judged(make_record):
    compared = make_record("b", comparison=Comparison("dat_tiny", 1.1, 1.0, 1.2, "SLOWER"))
    never = make_record("c")
    failed = make_record("d", error="broke")
    assert unjudged([make_record(), compared, never, failed]) == ["c"]
