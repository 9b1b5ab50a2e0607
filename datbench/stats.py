"""Pure arithmetic on samples: medians, their intervals, percentiles, ratios and verdicts."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

# Samples from which a percentile has a distribution-free 95 % upper bound: ln 0.05 / ln p.
PERCENTILE_SAMPLES = {90: 29, 95: 59, 99: 299}


def median_interval(samples: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Interval of the median by order statistics, free of any assumption on the distribution.

    Returns:
        Low and high sample; None if no pair of samples covers `level` (fewer than 6 at 95 %).
    """
    from scipy.special import bdtr

    n = len(samples)
    # The k smallest and k largest samples lie outside; P(Binomial(n, 1/2) < k) is one tail.
    k = 0
    while k + 1 < n / 2 and 2 * bdtr(k, n, 0.5) <= 1 - level:
        k += 1
    if k == 0:
        return None
    ordered = sorted(samples)
    return ordered[k - 1], ordered[n - k]


def percentile(samples: Sequence[float], q: int) -> float | None:
    """Percentile `q` by linear interpolation; None where the samples are too few to tell."""
    if len(samples) < PERCENTILE_SAMPLES[q]:
        return None
    return statistics.quantiles(samples, n=100, method="inclusive")[q - 1]


def student_interval(values: Sequence[float], level: float) -> tuple[float, float, float]:
    """Mean of `values` and its Student t interval; the interval is infinite for one value."""
    from scipy.special import stdtrit

    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, -math.inf, math.inf
    error = statistics.stdev(values) / math.sqrt(len(values))
    half = float(stdtrit(len(values) - 1, (1 + level) / 2)) * error
    return mean, mean - half, mean + half


def latency_median(processes: Sequence[Sequence[float]]) -> float:
    """Median latency, given the samples of each process.

    Of three processes or more it is the median of their medians, so that each process, with the
    layout of its memory, counts alike; of one or two it is the median of all samples.
    """
    if len(processes) < 3:
        return statistics.median(t for samples in processes for t in samples)
    return statistics.median(map(statistics.median, processes))


def latency_interval(processes: Sequence[Sequence[float]]) -> tuple[float, float] | None:
    """95 % interval of `latency_median`, given the samples of each process.

    Of three processes or more it covers what differs from process to process, the layout of their
    memory too: it is Student's interval of the logarithms of their medians, and from six processes
    on the hull of that and of the interval by order statistics. Of one or two it is the interval
    by order statistics of all samples.
    """
    if len(processes) < 3:
        return median_interval([t for samples in processes for t in samples])
    medians = [statistics.median(samples) for samples in processes]
    _, lo, hi = student_interval(list(map(math.log, medians)), 0.95)
    of_order = median_interval(medians) or (math.inf, -math.inf)
    return min(of_order[0], math.exp(lo)), max(of_order[1], math.exp(hi))


def between(groups: Sequence[Sequence[float]]) -> float:
    """Share of the scatter of groups' means, in squares, that scatter within does not explain.

    Args:
        groups: two at least, of which those with a single value tell nothing of the scatter within.
    Returns:
        0 to 1; 0 where the means do not scatter.
    """
    errors = [statistics.variance(group) / len(group) for group in groups if len(group) > 1]
    scatter = statistics.variance(map(statistics.fmean, groups))
    within = statistics.fmean(errors) if errors else 0.0
    return max(0.0, 1 - within / scatter) if scatter else 0.0


def round_difference(baseline: Sequence[float], model: Sequence[float]) -> float:
    """Log-ratio of one round from the slot medians of both models; above 0 is slower."""
    return statistics.fmean(map(math.log, model)) - statistics.fmean(map(math.log, baseline))


def verdict(lo: float, hi: float, min_effect: float) -> str:
    """Name what an interval of the log-ratio shows.

    Args:
        lo, hi: interval of log(model time / baseline time).
        min_effect: relative difference below which two models count as the same.
    """
    margin = math.log1p(min_effect)
    if -margin < lo and hi < margin:
        return "SAME"
    if lo > 0:
        return "SLOWER"
    if hi < 0:
        return "FASTER"
    return "INCONCLUSIVE"


@dataclasses.dataclass(frozen=True)
class Decision:
    """What the process pairs of one comparison show at one look.

    Args:
        mean: log-ratio, above 0 is slower.
        lo, hi: its interval, at the level at which the verdict was taken.
        verdict: as `verdict` names it.
        pairs_needed: pairs that would settle it if it went on like this; None where it is
            settled, or where more than `MOST_PAIRS` would not do.
    """

    mean: float
    lo: float
    hi: float
    verdict: str
    pairs_needed: int | None = None


MOST_PAIRS = 1000


def decide(
    comparisons: Sequence[Sequence[float]], level: float, min_effect: float
) -> list[Decision]:
    """Take the verdicts of all comparisons at one look, by Holm's step-down rule.

    All of them are held to the level that they need together (Bonferroni's). Each one found
    FASTER or SLOWER can be wrong no more, so the rest are held to the level of so many fewer,
    until no more differences are found. SAME frees nothing: what is the same could still have been
    called different. Each interval is at the level at which its verdict was taken.

    Args:
        comparisons: of each, one log-ratio a process pair, two pairs at least.
        level: that the verdicts hold together, e.g. 0.9875.
        min_effect: relative difference below which two models count as the same.
    Returns:
        One decision a comparison, in their order.
    """
    different: dict[int, Decision] = {}
    while True:
        rest = [i for i in range(len(comparisons)) if i not in different]
        each = 1 - (1 - level) / max(1, len(rest))
        found = {i: _decision(comparisons[i], each, min_effect) for i in rest}
        clear = {i: d for i, d in found.items() if d.verdict in ("FASTER", "SLOWER")}
        different |= clear
        if not clear:
            break
    for i, decision in found.items():
        if decision.verdict == "INCONCLUSIVE":
            needed = pairs_needed(comparisons[i], each, math.log1p(min_effect))
            found[i] = dataclasses.replace(decision, pairs_needed=needed)
    found |= different
    return [found[i] for i in range(len(comparisons))]


def _decision(values: Sequence[float], level: float, min_effect: float) -> Decision:
    mean, lo, hi = student_interval(values, level)
    return Decision(mean, lo, hi, verdict(lo, hi, min_effect))


def pairs_needed(values: Sequence[float], level: float, margin: float) -> int | None:
    """Pairs that would settle a comparison that goes on like this; None beyond `MOST_PAIRS`."""
    from scipy.special import stdtrit

    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    room = max(abs(mean), margin - abs(mean))  # widest half interval that would give a verdict
    for pairs in range(len(values) + 1, MOST_PAIRS + 1):
        if float(stdtrit(pairs - 1, (1 + level) / 2)) * deviation / math.sqrt(pairs) < room:
            return pairs
    return None


def detectable(
    deviation: float, pairs: int, level: float, min_effect: float, power: float = 0.95
) -> float:
    """Smallest relative difference that is called one with probability `power`.

    Args:
        deviation: standard deviation of the log-ratio over process pairs.
        pairs: number of them.
        level: of the interval, which must be clear of 1 and must not lie within the margin.
        min_effect: the margin; beyond it the estimate itself is asked to be.
        power: probability with which it is.
    """
    from scipy.special import stdtrit

    error = deviation / math.sqrt(pairs)
    half = float(stdtrit(pairs - 1, (1 + level) / 2)) * error
    scatter = float(stdtrit(pairs - 1, power)) * error
    return math.expm1(scatter + max(half, math.log1p(min_effect)))


def wilson_interval(hits: int, trials: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson's score interval)."""
    z2 = 1.959964**2
    middle = (hits + z2 / 2) / (trials + z2)
    half = math.sqrt(z2 * (hits * (trials - hits) / trials + z2 / 4)) / (trials + z2)
    return max(0.0, middle - half), min(1.0, middle + half)
