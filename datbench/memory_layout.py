"""Where a worker's memory lies: drawn anew for each process of each pair.

Where buffers lie decides which of them share sets of the caches, and that alone can make a network
faster or slower (Mytkowicz et al. 2009, https://doi.org/10.1145/1508244.1508275). Workers are
forked from one server, so without this they would all begin with one layout, drawn once a run,
and what differs between two models, a longer label even, would shift one of them in every pair.
Randomised, it is noise that the interval covers (Curtsinger and Berger 2013,
https://doi.org/10.1145/2451116.2451141).
"""

from __future__ import annotations

import ctypes
import dataclasses
import mmap
import random
import sys
from typing import Any

LINE, PAGE, MIB = 64, mmap.PAGESIZE, 2**20
SHIFT_MOST = 2 * MIB  # a huge page
GAPS_MOST, GAP_MOST = 16, MIB
SCATTERED_MOST = 32 * MIB
END = 32 * MIB  # no room below the end of the heap is as large
FILLED_MOST = 256 * MIB  # where blocks come from elsewhere than from one heap
KEPT = 4  # of so many scattered pages one is kept, so that the kernel cannot join the others


@dataclasses.dataclass(frozen=True)
class Layout:
    """One draw of a layout, in bytes.

    Args:
        heap: kept in front of everything that the heap gets; a multiple of a cache line.
        gaps: blocks on the heap, of which every second is freed for others to lie in.
        mapped: kept in front of what the kernel maps next, stacks of threads for instance.
        scattered: memory given back page by page at random, so that the kernel hands pages on
            that do not follow each other.
        device: kept in front of everything that a GPU's small and large segments get.
    """

    heap: int = 0
    gaps: tuple[int, ...] = ()
    mapped: int = 0
    scattered: int = 0
    device: tuple[int, int] = (0, 0)


def draw(*seed: Any) -> Layout:
    """Draw a layout; the same one for the same seed."""
    rng = random.Random("/".join(map(str, seed)))
    gaps = rng.randrange(0, GAPS_MOST + 1, 2)
    return Layout(
        heap=rng.randrange(0, SHIFT_MOST, LINE),
        gaps=tuple(rng.randrange(LINE, GAP_MOST, LINE) for _ in range(gaps)),
        mapped=rng.randrange(PAGE, SHIFT_MOST, PAGE),
        scattered=rng.randrange(0, SCATTERED_MOST, MIB),
        device=(rng.randrange(512, MIB, 512), rng.randrange(MIB + 512, 8 * MIB, 512)),
    )


def occupy(layout: Layout) -> list[Any]:
    """Take memory of this process as a layout says, before anything is built.

    Blocks of the heap stay taken for as long as the process lives.

    Returns:
        What is to be kept beside them.
    """
    kept = []
    if layout.mapped:
        kept.append(mmap.mmap(-1, layout.mapped))
    if layout.scattered and hasattr(mmap, "MADV_DONTNEED"):
        kept.append(_scatter(layout.scattered))
    if sys.platform != "win32":
        heap = _heap()
        _fill(heap)
        heap.malloc(layout.heap)
        gaps = [heap.malloc(size) for size in layout.gaps]
        _fill(heap)
        for gap in gaps[1::2]:
            heap.free(gap)
    return kept


def _heap() -> ctypes.CDLL:
    """The C library's allocator, from which torch and the other runtimes take their buffers."""
    heap = ctypes.CDLL(None)
    heap.malloc.argtypes, heap.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    heap.free.argtypes, heap.free.restype = [ctypes.c_void_p], None
    return heap


def _fill(heap: ctypes.CDLL) -> None:
    """Fill what is free in the heap below its end.

    Buffers that fit there would lie where the fork server left room, alike in all of its children.
    """
    end = heap.malloc(END) or 0
    heap.free(end)
    size, left = END // 2, FILLED_MOST
    while size >= LINE:
        block = heap.malloc(size)
        if block is not None and block < end and size <= left:
            left -= size
        else:
            heap.free(block)
            size //= 2


def _scatter(size: int) -> mmap.mmap:
    """Touch so many bytes, and give most of their pages back in random order."""
    region = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages = range(0, size, PAGE)
    for start in pages:
        region[start] = 1
    back = random.Random(size).sample(pages, len(pages) - len(pages) // KEPT)
    for start in back:
        region.madvise(mmap.MADV_DONTNEED, start, PAGE)
    return region
