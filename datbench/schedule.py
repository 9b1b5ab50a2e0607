"""Pure: how often and in which order the models are timed, and when it is enough."""

from __future__ import annotations

import dataclasses
import math
import random

LOOK_LEVEL = 0.9875  # four looks at 98.75 % keep a comparison at 95 %


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How much is measured.

    Args:
        looks: numbers of process pairs after which the intervals are looked at; the last is the
            most that are run. With a single pair there is no verdict.
        rounds: rounds in a pair; in each round every model has two slots.
        min_effect: relative difference below which two models count as the same.
        budget_s: seconds after which no further round starts; None for no limit.
        timeout_s: seconds after which a silent worker counts as hung.
    """

    looks: tuple[int, ...]
    rounds: int
    min_effect: float = 0.01
    budget_s: float | None = None
    timeout_s: float = 600.0


QUICK = Protocol(looks=(1,), rounds=10)
DEFAULT = Protocol(looks=(5, 8), rounds=6)
RIGOROUS = Protocol(looks=(5, 8, 12, 20), rounds=6)


def round_order(models: int, seed: int, pair: int, number: int) -> list[int]:
    """Order of the slots of one round: a random permutation, then its mirror image.

    A linear drift cancels within the round. Two models give ABBA or BAAB.
    """
    order = list(range(models))
    random.Random(f"{seed}/{pair}/{number}").shuffle(order)
    return order + order[::-1]


def slot_iterations(step_ms: float) -> int:
    """Timed iterations of a slot: at least 3, and at least 20 ms together."""
    return min(1000, max(3, math.ceil(20 / step_ms)))


def comparison_level(comparisons: int) -> float:
    """Level of each interval at a look so that all comparisons hold together (Bonferroni)."""
    return 1 - (1 - LOOK_LEVEL) / max(1, comparisons)
