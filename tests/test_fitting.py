"""The search for the largest batch, and amounts of memory as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datbench.errors import UserError
from datbench.fitting import MOST, largest_batch, parse_memory


@pytest.mark.parametrize(
    ("text", "expected"),
    [("8GiB", 2**33), ("8G", 2**33), ("8 gib", 2**33), ("8GB", 8 * 10**9), ("512MiB", 2**29),
     ("1.5g", 3 * 2**29), ("4096", 4096), ("4096B", 4096), ("2T", 2**41)],
)  # fmt: skip
def test_amounts_of_memory_are_read(text, expected):
    assert parse_memory(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "eight", "8XB", "-8G", "8G8", "0"])
def test_what_is_no_amount_is_named(text):
    with pytest.raises(UserError, match="not an amount of memory"):
        parse_memory(text)


@given(st.integers(0, 500), st.floats(0.01, 200), st.integers(0, 9), st.integers(1, 50_000))
def test_the_largest_batch_is_found_in_few_attempts(weights, an_input, waste, memory):
    asked = []

    def need(batch):
        asked.append(batch)
        needed = int(weights + an_input * batch + batch % 5 * waste / 10)
        return needed if needed <= memory else None

    found = largest_batch(need, memory)
    assert len(asked) == len(set(asked)) <= 40
    assert found == 0 or need(found) is not None
    assert found == MOST or need(found + 1) is None


def test_a_straight_line_takes_a_handful_of_attempts():
    asked = []

    def need(batch):
        asked.append(batch)
        return 300 + 70 * batch if 300 + 70 * batch <= 8192 else None

    assert largest_batch(need, 8192) == 112
    assert len(asked) <= 6
