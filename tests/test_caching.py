"""The model of torch's caching allocator, against its documented rules."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datbench.caching import MIB, CachingAllocator, OutOfMemory


@pytest.mark.parametrize(
    ("size", "allocated", "reserved"),
    [
        pytest.param(1, 512, 2 * MIB, id="a unit at least"),
        pytest.param(513, 1024, 2 * MIB, id="whole units"),
        pytest.param(MIB, MIB, 2 * MIB, id="the largest of the small"),
        pytest.param(MIB + 1, MIB + 512, 20 * MIB, id="the smallest of the large"),
        pytest.param(10 * MIB - 512, 10 * MIB - 512, 20 * MIB, id="the largest that shares"),
        pytest.param(10 * MIB, 10 * MIB, 10 * MIB, id="a segment of its own"),
        pytest.param(11 * MIB, 12 * MIB, 12 * MIB, id="a rest of a MiB is not split off"),
        pytest.param(29 * MIB + 1, 30 * MIB, 30 * MIB, id="rounded up to 2 MiB"),
    ],
)
def test_one_tensor(size, allocated, reserved):
    allocator = CachingAllocator()
    allocator.allocate(size)
    assert (allocator.allocated, allocator.reserved) == (allocated, reserved)


def test_freed_blocks_are_used_again_the_smallest_that_fits_first():
    allocator = CachingAllocator()
    first, _, third = (allocator.allocate(size * MIB) for size in (6, 2, 4))
    allocator.release(first)
    allocator.release(third)  # joins what is left of the segment: 12 MiB at its end
    assert allocator.reserved == 20 * MIB
    assert allocator.allocate(5 * MIB).address == first.address
    assert allocator.allocated == 8 * MIB  # a rest of a MiB is not split off
    assert allocator.allocate(9 * MIB).address == third.address
    assert allocator.reserved == 20 * MIB


def test_what_is_free_is_given_back_before_it_is_out_of_memory():
    allocator = CachingAllocator(limit=64 * MIB)
    allocator.release(allocator.allocate(40 * MIB))
    allocator.allocate(60 * MIB)
    assert allocator.reserved == 60 * MIB
    with pytest.raises(OutOfMemory):
        allocator.allocate(20 * MIB)
    assert allocator.peak_reserved == 60 * MIB


@given(st.lists(st.tuples(st.integers(1, 30 * MIB), st.integers(0, 9)), max_size=60))
def test_nothing_is_lost_and_nothing_overlaps(operations):
    allocator, held = CachingAllocator(), []
    for size, choice in operations:
        if choice < 4 and held:
            allocator.release(held.pop(choice % len(held)))
        else:
            held.append(allocator.allocate(size))
        places = sorted((block.address, block.size) for block in held)
        for (start, length), (following, _) in itertools.pairwise(places):
            assert start + length <= following
        assert allocator.allocated == sum(block.size for block in held) <= allocator.reserved
    for block in held:
        allocator.release(block)
    assert allocator.allocated == 0
    free = [entry for entries in allocator._free.values() for entry in entries]
    assert sum(size for size, _, _ in free) == allocator.reserved
    assert all(block.before is block.after is None for _, _, block in free)
