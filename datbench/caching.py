"""A model of torch's caching allocator for CUDA: what is allocated and reserved, to the byte.

Source: the rules in torch's notes on CUDA memory management and c10/cuda/CUDACachingAllocator,
for one stream and default settings. Sizes are rounded up to 512 bytes. Up to 1 MiB they come from
segments of 2 MiB, up to 10 MiB from segments of 20 MiB, larger ones from segments of their own,
rounded up to 2 MiB. The smallest free block that is large enough is taken, and split where
the rest is worth it; neighbours that are free are joined again.
"""

from __future__ import annotations

import bisect
import dataclasses
import math

UNIT, MIB = 512, 2**20
SMALL, SMALL_SEGMENT = MIB, 2 * MIB
LARGE, LARGE_SEGMENT, LARGE_UNIT = 10 * MIB, 20 * MIB, 2 * MIB


class OutOfMemory(Exception):
    """What was asked for does not fit, even with everything free given back."""


@dataclasses.dataclass(eq=False)
class Block:
    """A piece of a segment.

    Args:
        address: of its first byte, among all segments.
        size: bytes.
        small: whether it belongs to the segments for small sizes.
        free: whether nobody has it.
        before, after: neighbours in the segment.
    """

    address: int
    size: int
    small: bool
    free: bool = False
    before: Block | None = None
    after: Block | None = None


class CachingAllocator:
    """Counts what tensors take and what torch keeps of the device's memory.

    Args:
        limit: bytes that may be reserved.
    """

    def __init__(self, limit: float = math.inf) -> None:
        self.allocated = self.reserved = self.peak_allocated = self.peak_reserved = 0
        self._limit = limit
        self._free: dict[bool, list[tuple[int, int, Block]]] = {True: [], False: []}
        self._end = 0

    def allocate(self, size: int) -> Block:
        """Take a block.

        Args:
            size: bytes, more than none.
        Raises:
            OutOfMemory: it does not fit.
        """
        size = _up(size, UNIT)
        small = size <= SMALL
        block = self._best(size, small) or self._segment(size, small)
        rest = block.size - size
        if rest >= UNIT if small else rest > SMALL:
            other = Block(block.address + size, rest, small, True, block, block.after)
            if block.after is not None:
                block.after.before = other
            block.after, block.size = other, size
            self._keep(other)
        block.free = False
        self.allocated += block.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        return block

    def release(self, block: Block) -> None:
        """Give a block back."""
        self.allocated -= block.size
        block.free = True
        for one, other in ((block.before, block), (block, block.after)):
            if one is None or other is None or not (one.free and other.free):
                continue
            neighbour = other if one is block else one
            self._forget(neighbour)
            block.address = one.address
            block.size = one.size + other.size
            block.before, block.after = one.before, other.after
            if block.before is not None:
                block.before.after = block
            if block.after is not None:
                block.after.before = block
        self._keep(block)

    def reset_peaks(self) -> None:
        """Let the peaks start from now."""
        self.peak_allocated, self.peak_reserved = self.allocated, self.reserved

    def empty_cache(self) -> None:
        """Return segments that are free as a whole to the device."""
        for free in self._free.values():
            whole = [entry for entry in free if not (entry[2].before or entry[2].after)]
            for entry in whole:
                free.remove(entry)
                self.reserved -= entry[0]

    def _best(self, size: int, small: bool) -> Block | None:
        free = self._free[small]
        place = bisect.bisect_left(free, size, key=lambda entry: entry[0])
        return free.pop(place)[2] if place < len(free) else None

    def _segment(self, size: int, small: bool) -> Block:
        if small:
            segment = SMALL_SEGMENT
        else:
            segment = LARGE_SEGMENT if size < LARGE else _up(size, LARGE_UNIT)
        if self.reserved + segment > self._limit:
            self.empty_cache()
        if self.reserved + segment > self._limit:
            raise OutOfMemory
        self.reserved += segment
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        self._end += segment + LARGE_UNIT  # segments never touch
        return Block(self._end - segment, segment, small)

    def _keep(self, block: Block) -> None:
        bisect.insort(
            self._free[block.small], (block.size, block.address, block), key=lambda e: e[:2]
        )

    def _forget(self, block: Block) -> None:
        free = self._free[block.small]
        place = bisect.bisect_left(free, (block.size, block.address), key=lambda e: e[:2])
        del free[place]


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit
