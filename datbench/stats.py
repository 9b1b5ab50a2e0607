"""Pure arithmetic on samples: medians, their intervals, percentiles, ratios and verdicts."""

from __future__ import annotations

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


def latency_interval(processes: Sequence[Sequence[float]]) -> tuple[float, float] | None:
    """95 % interval of the median latency, given the samples of each process.

    With three processes or more it also covers what differs from process to process: it is the
    hull of the order-statistic interval of all samples and Student's interval of the processes'
    medians.
    """
    inner = median_interval([t for samples in processes for t in samples])
    if inner is None or len(processes) < 3:
        return inner
    logs = [math.log(statistics.median(samples)) for samples in processes]
    _, lo, hi = student_interval(logs, 0.95)
    return min(inner[0], math.exp(lo)), max(inner[1], math.exp(hi))


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
