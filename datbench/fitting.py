"""The largest batch that fits into a device's memory: predicted, or found on the device."""

from __future__ import annotations

import re
from collections.abc import Callable

from datbench.errors import UserError

MOST = 1 << 16  # inputs in a batch; more are not tried
STRIDE = 16  # by how much a batch may grow from one attempt to the next
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

Need = Callable[[int], int | None]


def parse_memory(text: str) -> int:
    """Read an amount of memory.

    Args:
        text: "8GiB", "8G", "8192MiB", "8GB" (of powers of ten) or a number of bytes.
    Returns:
        Bytes.
    Raises:
        UserError: it reads as none of these.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?B)?\s*", text, re.IGNORECASE)
    if match is None or not float(match[1]):
        raise UserError(f"memory {text!r} is not an amount of memory, e.g. 8GiB or 512MiB")
    unit, ending = match[2].upper(), match[3] or ""
    if unit and ending.lower() == "b":
        return int(float(match[1]) * 1000 ** " KMGT".index(unit))
    return int(float(match[1]) * UNITS[unit])


def largest_batch(need: Need, memory: int) -> int:
    """Search for the largest batch that fits.

    Memory is close to a straight line over the batch, so guesses come from the line through the
    last two that fitted. Where it keeps falling short they go on in steps that double, and
    between one that fits and one that does not they halve what is left.

    Args:
        need: bytes that a batch needs, None if it does not fit.
        memory: bytes that there are.
    Returns:
        The batch, 0 if not even one input fits, `MOST` at most.
    """
    fitting: list[tuple[int, int]] = []
    least, beyond = 0, MOST + 1
    guess = step = 1
    while least + 1 < beyond:
        found = need(guess)
        if found is None:
            beyond = guess
        else:
            least = guess
            step *= 2 if len(fitting) > 2 else 1
            fitting.append((guess, found))
        if beyond <= MOST and len(fitting) > 1:
            guess = (least + beyond) // 2 if found is None else min(beyond - 1, least + step)
        else:
            guess = min(beyond - 1, max(least + step, _on_the_line(fitting, memory)))
    return least


def _on_the_line(fitting: list[tuple[int, int]], memory: int) -> int:
    """Batch at which the line through the last two that fitted meets the memory."""
    if len(fitting) < 2:
        return 2 * len(fitting)
    (one, needed), (two, more) = fitting[-2:]
    slope = max(1.0, (more - needed) / (two - one))
    return min(STRIDE * two, int(two + (memory - more) / slope))
