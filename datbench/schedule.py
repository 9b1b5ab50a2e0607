"""Pure: how often and in which order the models are timed, and when it is enough."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence

LOOK_LEVEL = 0.9875  # four looks at 98.75 % keep a comparison at 95 %
FEWEST_PAIRS = 3  # for a verdict where a budget ends a comparison before its first look
FEWEST_ROUNDS = 3  # of a pair, where a budget leaves no more
SLOT_MS, SLOT_ITERATIONS = 30.0, 3  # a slot is at least so long
ROUNDS_SCATTER = 8.0  # variance of the median of one round within a pair, over that of pairs
MOST_ROUNDS = 5  # more pairs tell more than longer ones: docs/decisions.md
REDONE_SHARE, REDONE_FIRST = 0.1, 4  # slots that may be redone: so many, and a share of all
PAUSES_S = (0.1, 0.2, 0.4, 0.8, 1.6)  # before a contended slot is redone, longer each in a row
MEMORY_SHARE = 0.8  # of the free memory that models alive together may need


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How much is measured.

    Args:
        looks: numbers of process pairs after which the intervals are looked at; the last is the
            most that are run. With a single pair there is no verdict.
        rounds: rounds in a pair, at least; in each round every model has two slots.
        min_effect: relative difference below which two models count as the same.
        budget_s: seconds after which no further round starts; None for no limit.
        timeout_s: seconds after which a silent worker counts as hung.
        name: of the tier.
    """

    looks: tuple[int, ...]
    rounds: int
    min_effect: float = 0.01
    budget_s: float | None = None
    timeout_s: float = 600.0
    name: str = ""


QUICK = Protocol(looks=(1,), rounds=10, name="quick")
DEFAULT = Protocol(looks=(6, 12, 20), rounds=3, name="default")
RIGOROUS = Protocol(looks=(6, 12, 20, 40), rounds=3, name="rigorous")


def choose_protocol(
    quick: bool, rigorous: bool, budget: float | None, min_effect: float
) -> Protocol:
    """Return the protocol of a comparison."""
    tier = QUICK if quick else RIGOROUS if rigorous else DEFAULT
    return dataclasses.replace(tier, budget_s=budget, min_effect=min_effect)


def profile_protocol(rigorous: bool, budget_s: float | None) -> Protocol:
    """Return the protocol of a profile: nothing is compared, so one look at the end."""
    tier, pairs = (RIGOROUS, DEFAULT.looks[0]) if rigorous else (QUICK, 1)
    return dataclasses.replace(QUICK, looks=(pairs,), budget_s=budget_s, name=tier.name)


def round_order(models: int, seed: int, pair: int, number: int) -> list[int]:
    """Order of the slots of one round: a random permutation, then its mirror image.

    A linear drift cancels within the round. Two models give ABBA or BAAB.
    """
    order = list(range(models))
    random.Random(f"{seed}/{pair}/{number}").shuffle(order)
    return order + order[::-1]


def start_order(models: int, seed: int, pair: int) -> list[int]:
    """Order in which the processes of a pair start: random, so that being first favours nobody."""
    return random.Random(f"{seed}/{pair}/start").sample(range(models), models)


def switch_share(models: int) -> float:
    """Share of the slots that follow one of another model: not in the middle of a round, and at
    its start not always.
    """
    return 1 - (1 + 1 / models) / (2 * models)


def slot_iterations(step_ms: float) -> int:
    """Timed iterations of a slot: at least `SLOT_ITERATIONS`, and `SLOT_MS` together."""
    return min(10_000, max(SLOT_ITERATIONS, math.ceil(SLOT_MS / step_ms)))


def pair_rounds(least: int, setup_s: float, round_s: float) -> int:
    """Rounds of a pair, by which a comparison knows most for its time.

    Of two-stage sampling, with pairs that scatter and rounds that scatter within them: the best
    number grows with the square root of what a pair costs beside its rounds.

    Args:
        least: at least so many.
        setup_s: what starting, building and warming up the models took.
        round_s: of one round in which nothing is redone; 0 where no model is left.
    """
    best = round(math.sqrt(ROUNDS_SCATTER * setup_s / round_s)) if round_s else least
    return max(least, min(MOST_ROUNDS, best))


def affordable_rounds(
    rounds: int, *, setup_s: float, round_s: float, left_s: float, pairs: int
) -> int:
    """Rounds that let a budget reach its first look: pairs count for more than rounds.

    Args:
        rounds: of this pair without a budget.
        setup_s, round_s: of this pair, and of one round in which nothing is redone.
        left_s: of the budget, from now on.
        pairs: still wanted, with this one.
    """
    share = (left_s - (pairs - 1) * setup_s) / pairs
    affordable = math.floor(share / ((1 + REDONE_SHARE) * round_s))
    return min(rounds, max(FEWEST_ROUNDS, affordable))


def may_redo(redone: int, slots: int) -> bool:
    """Whether one more disturbed slot may be timed again, of so many timed."""
    return redone < REDONE_FIRST + REDONE_SHARE * slots


def groups(needs: Sequence[float], room: float | None, baseline: int | None) -> list[list[int]]:
    """Split models into groups that fit in memory together, each with the baseline.

    Args:
        needs: memory of each model's process.
        room: free memory, in the same unit; None if unknown.
        baseline: index of the model that every group holds.
    Returns:
        Indices in ascending order. A model that does not fit even so has a group of its own.
    """
    everyone = list(range(len(needs)))
    if room is None or sum(needs) <= MEMORY_SHARE * room:
        return [everyone]
    shared = [] if baseline is None else [baseline]
    found: list[list[int]] = []
    for i in everyone:
        if i in shared:
            continue
        if found and sum(needs[j] for j in (*found[-1], i)) <= MEMORY_SHARE * room:
            found[-1].append(i)
        else:
            found.append([*shared, i])
    return [sorted(group) for group in found] or [everyone]
